"""Draw frontal chest X-rays, with and without findings, as sums of shadows along the beam.

- Arrays in, arrays out: no file, no header, no label; `collection` writes what is drawn here.
- Coordinates have the half-width of the thorax as their unit, x to image right, y downwards.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.datasets.phantoms.shapes import (
    Array,
    Mask,
    branches,
    ellipse,
    fan,
    inside,
    join,
    nearest,
    tube,
    turn,
    wave,
)

# The values of the mask.
RIGHT_LUNG = 1
LEFT_LUNG = 2


@dataclass(frozen=True)
class ChestFindings:
    """What a chest X-ray shows; the three are independent."""

    nodule: bool
    effusion: bool
    cardiomegaly: bool


@dataclass(frozen=True)
class Habitus:
    """How one patient is built, shared by all X-rays of them; lengths in thorax half-widths."""

    apex: float
    base: float
    dome: float
    rib_gap: float
    rib_tilt: float
    heart: float
    flesh: float


def draw_habitus(rng: np.random.Generator) -> Habitus:
    """Draw the build of one patient."""
    return Habitus(
        apex=rng.uniform(-1.10, -0.98),
        base=rng.uniform(0.86, 1.0),
        dome=rng.uniform(0.22, 0.34),
        rib_gap=rng.uniform(0.19, 0.23),
        rib_tilt=rng.uniform(0.28, 0.45),
        heart=rng.uniform(-0.03, 0.03),
        flesh=rng.uniform(1.10, 1.22),
    )


@dataclass(frozen=True)
class _Thorax:
    """The shapes one X-ray is made of: coordinates and distances, each (H, W)."""

    x: Array
    y: Array
    lung: Array
    diaphragm: Array
    heart: Array
    side: Array
    lateral: Array
    unit: float


def draw_chest_xray(
    rng: np.random.Generator, habitus: Habitus, findings: ChestFindings
) -> tuple[Array, Mask]:
    """Draw a frontal chest X-ray, float32 (H, W), dense is bright, and its lung mask.

    The mean of the image and its contrast are drawn without a look at the findings, so that the
    mean grey level of a file tells nothing; values are within 0 to 1.
    """
    thorax = _thorax(rng, habitus, findings.cardiomegaly)
    mask = _lung_mask(thorax)
    air = _air(thorax)
    fluid = _fluid(rng, thorax) if findings.effusion else np.zeros_like(air)
    # What lies along the beam adds up; fluid takes the place of air.
    aerated = 0.52 * air * (1 - 0.92 * fluid)
    path = _tissue(thorax, habitus) - aerated + 0.03 * fluid
    path += _bones(rng, thorax, habitus)
    vessels = 0.20 * _lung_vessels(rng, thorax)
    path += vessels * np.minimum(air * 1.5, 1) * (1 - fluid)
    if findings.nodule:
        path += _nodules(rng, thorax, mask, fluid)
    return _expose(rng, path), mask


def _thorax(rng: np.random.Generator, habitus: Habitus, cardiomegaly: bool) -> _Thorax:
    """Place the thorax in a frame of random size: 320 to 420 px a side, never square."""
    height, width = _frame(rng)
    unit = min(height / 2.55, width / 2.36) * rng.uniform(0.97, 1.07)
    x, y = _coordinates(rng, height, width, unit)
    side = np.abs(x)
    lateral = _lateral(y, habitus)
    diaphragm = _diaphragm(x, y, habitus)
    top = y - habitus.apex - 1.9 * (side - 0.36) ** 2
    between = np.minimum(lateral - side, side - 0.17)
    lung = np.minimum(between, np.minimum(top, -diaphragm))
    # Above half of the chest's width is what radiology calls an enlarged heart.
    ratio = rng.uniform(0.60, 0.72) if cardiomegaly else rng.uniform(0.39, 0.47)
    heart = _heart(x, y, habitus, ratio + habitus.heart)
    return _Thorax(x, y, lung, diaphragm, heart, side, lateral, unit)


def _coordinates(
    rng: np.random.Generator,
    height: int,
    width: int,
    unit: float,
) -> tuple[Array, Array]:
    """Coordinates (H, W) of a patient who stands a little askew before the plate."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    u = (columns - width / 2) / np.float32(unit)
    u = u + np.float32(rng.uniform(-0.05, 0.05))
    v = (rows - height / 2) / np.float32(unit)
    v = v + np.float32(rng.uniform(-0.1, 0.02))
    return turn(u, v, rng.uniform(-0.045, 0.045))


def _lateral(y: Array, habitus: Habitus) -> Array:
    """How far the chest wall lies from the middle at each height."""
    below_apex = 0.87 * (y - habitus.apex)
    t = np.clip(0.13 + below_apex / (habitus.base - habitus.apex), 0, 1.2)
    lateral: Array = 0.94 * np.sqrt(1 - np.abs(1 - t) ** 2.6)
    return lateral


def _diaphragm(x: Array, y: Array, habitus: Habitus) -> Array:
    """Distance below the domes of the diaphragm; the left one is lower."""
    left_lower = 0.05 * (x > 0)
    arch = 1 - ((np.abs(x) - 0.40) / 0.56) ** 2
    return y - (habitus.base + left_lower - habitus.dome * arch)


def _frame(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the height and width of an X-ray in pixels, at least 12 apart."""
    height = int(rng.integers(332, 409))
    sign = int(rng.choice([-1, 1]))
    width = height + sign * int(rng.integers(12, 60))
    return height, int(np.clip(width, 320, 420))


def _heart(x: Array, y: Array, habitus: Habitus, ratio: float) -> Array:
    """Distance into the heart shadow, whose width is `ratio` of the inner thorax."""
    width = ratio * 1.88
    centre = 0.21 * width
    low = habitus.base - habitus.dome * 0.75
    body = ellipse(
        x - centre,
        y - low + 0.22,
        width / 2,
        0.27 + 0.22 * ratio,
        angle=0.42,
    )
    vessels = ellipse(x - 0.03, y - low + 0.72, 0.22, 0.52)
    aortic_knob = ellipse(x - 0.19, y - low + 1.04, 0.13, 0.15)
    return join(join(body, vessels, 0.22), aortic_knob, 0.08)


def _lung_mask(thorax: _Thorax) -> Mask:
    """Label the lung fields beside heart and mediastinum; the patient's right is image left."""
    field = (thorax.lung > 0) & (thorax.heart < 0)
    side = np.where(thorax.x < 0, RIGHT_LUNG, LEFT_LUNG)
    return np.where(field, side, 0).astype(np.uint8)


def _air(thorax: _Thorax) -> Array:
    """Depth of air along the beam, 0 to 1: thinner towards the edge of a lung."""
    rim: Array = np.clip(thorax.lung / 0.30, 0, 1)
    depth = 1 - (1 - rim) ** 3
    beside_heart = 1 - 0.9 * inside(thorax.heart, 0.02)
    return depth * beside_heart


def _tissue(thorax: _Thorax, habitus: Habitus) -> Array:
    """Depth of soft tissue along the beam: body with shoulders and neck, heart, abdomen."""
    x = thorax.x
    y = thorax.y
    side = thorax.side
    body = _body(thorax, habitus)
    below = inside(thorax.diaphragm, 0.012)
    belly = below * inside(thorax.lateral - side + 0.12, 0.1)
    # Air in the stomach, under the left dome.
    stomach = ellipse(x - 0.48, y - habitus.base - 0.04, 0.16, 0.07)
    bubble = inside(stomach, 0.02)
    centre = np.clip(1 - (side / 0.22) ** 2, 0, 1)
    depth_of_heart = 0.06 + 0.10 * np.clip(thorax.heart / 0.3, 0, 1)
    heart = inside(thorax.heart, 0.015) * depth_of_heart
    depth = 0.60 + 0.14 * belly - 0.16 * bubble + 0.07 * centre + heart
    tissue: Array = body * depth
    tube_of_air = inside(0.055 - np.abs(x + 0.01), 0.015)
    windpipe = tube_of_air * inside(-0.32 - y, 0.05)
    return tissue - 0.10 * body * windpipe


def _body(thorax: _Thorax, habitus: Habitus) -> Array:
    """Outline of the body, 0 to 1, round towards its edges: shoulders, neck and flanks."""
    y = thorax.y
    side = thorax.side
    slope = 0.50 * np.clip(side - 0.26, 0, 2) ** 1.4
    shoulder = y - (habitus.apex - 0.36 + slope)
    neck = 0.30 - side
    armpit = 2.0 * np.clip(-0.40 - y, 0, 0.3) ** 1.3
    flank = habitus.flesh + armpit - side
    edge = np.minimum(join(shoulder, neck, 0.1), flank)
    body: Array = np.sqrt(inside(edge - 0.12, 0.12))
    return body


def _bones(rng: np.random.Generator, thorax: _Thorax, habitus: Habitus) -> Array:
    """Depth of bone: back and front ribs, spine, clavicles, shoulder blades and arms."""
    y = thorax.y
    side = thorax.side
    ribs = _ribs(rng, thorax, habitus)
    discs = inside(np.abs(wave(y, 0.165)) - 0.015, 0.02)
    spine = inside(0.105 - side, 0.02) * (0.7 + 0.3 * discs)
    sweep = y - habitus.apex - 0.27 + 0.26 * side + 0.05 * np.sin(4.6 * side)
    clavicle = tube(sweep, 0.045)
    clavicle = clavicle * inside(side - 0.12, 0.02) * inside(1.0 - side, 0.05)
    blade = ellipse(side - 0.93, y - habitus.apex - 0.62, 0.15, 0.42, 0.25)
    arm = ellipse(side - 1.16, y - habitus.apex - 0.22, 0.13, 0.16)
    bones: Array = ribs + 0.05 * spine + 0.13 * clavicle
    bones += 0.035 * inside(blade, 0.03) + 0.10 * inside(arm, 0.04)
    return bones


def _ribs(rng: np.random.Generator, thorax: _Thorax, habitus: Habitus) -> Array:
    """Depth of the ribs: those of the back rise to the spine, those of the front fall from it."""
    y = thorax.y
    side = thorax.side
    gap = habitus.rib_gap
    back = y + 0.30 * side - habitus.rib_tilt * side**3 * 2.0
    back_ribs = tube(wave(back + rng.uniform(0, gap), gap), 0.046)
    ribs = back_ribs * inside(side - 0.08, 0.03)
    front = y + 0.55 * side**2 + 0.75 * side - 0.45 * side**3
    front_ribs = 0.6 * tube(wave(front, gap * 1.12), 0.052)
    ribs += front_ribs * inside(side - 0.40, 0.12)
    # Along the wall the beam runs through more of them.
    brighter = 1 + 1.2 * np.clip(1 - (thorax.lateral - side) / 0.12, 0, 1)
    cage = inside(thorax.lateral - side + 0.035, 0.02)
    cage = cage * inside(y - habitus.apex + 0.02, 0.05)
    chest = cage * inside(habitus.base + 0.1 - y, 0.2)
    depth: Array = 0.10 * ribs * brighter * chest
    return depth


def _lung_vessels(rng: np.random.Generator, thorax: _Thorax) -> Array:
    """Shadows of the vessels that branch from both hila, (H, W) within 0 to 1."""
    y = thorax.y - 0.02
    right = fan(rng, nearest(thorax.x + 0.27, y), -1, 9)
    left = fan(rng, nearest(thorax.x - 0.27, y), 1, 9)
    fine = branches(
        rng,
        thorax.x.shape,
        [*right, *left],
        length=0.17 * thorax.unit,
        width=0.03 * thorax.unit,
    )
    blurred = ndimage.gaussian_filter(fine, 1.2)
    across = (thorax.side - 0.26) / 0.10
    along = y / 0.17
    hilum: Array = np.exp(-(across**2) - along**2)
    shadow: Array = np.minimum(blurred + 0.7 * hilum, 1)
    return shadow


def _fluid(rng: np.random.Generator, thorax: _Thorax) -> Array:
    """Pleural fluid on one side, 0 to 1, with a meniscus that climbs the chest wall."""
    sign = int(rng.choice([-1, 1]))
    level = rng.uniform(0.26, 0.52)
    on_side = thorax.x * sign > 0
    wall = np.clip(thorax.lateral - thorax.side, 0, 1)
    floor = np.max(thorax.y[(thorax.lung > 0) & on_side])
    outer_climb = 0.26 * np.exp(-wall / 0.13)
    inner_climb = 0.05 * np.exp(-(0.8 - wall) / 0.2)
    surface: Array = floor - level - outer_climb - inner_climb
    return inside(thorax.y - surface, 0.045) * on_side


def _nodules(rng: np.random.Generator, thorax: _Thorax, mask: Mask, fluid: Array) -> Array:
    """One to three round shadows, 12 to 25 px across, in aerated lung."""
    height, width = mask.shape
    aerated = (mask > 0) & (fluid < 0.05)
    # So far from the edge that the largest fits in.
    room = ndimage.binary_erosion(aerated, iterations=13, border_value=0)
    spots = np.argwhere(room if room.any() else mask > 0)
    shadow = np.zeros((height, width), np.float32)
    rows, columns = np.ogrid[:height, :width]
    for row, column in rng.choice(spots, size=rng.integers(1, 4)):
        radius = rng.uniform(6.5, 12.5)
        distance2 = (rows - row) ** 2 + (columns - column) ** 2
        depth = np.clip(1 - distance2 / radius**2, 0, 1)
        nodule = rng.uniform(0.20, 0.30) * np.sqrt(depth)
        shadow = np.maximum(shadow, nodule)
    return shadow


def _expose(rng: np.random.Generator, path: Array) -> Array:
    """Film: blur, noise, gamma, then a mean and a contrast that know nothing of the findings."""
    blurred = ndimage.gaussian_filter(path, rng.uniform(0.7, 1.2))
    noise = rng.standard_normal(path.shape, np.float32) * (0.5 + blurred)
    noisy = blurred + rng.uniform(0.010, 0.022) * noise
    grey = np.clip(noisy, 0, 1) / 0.95
    curved = grey ** rng.uniform(0.8, 1.25)
    curved -= curved.mean()
    mean = rng.uniform(0.42, 0.58)
    contrast = rng.uniform(0.55, 0.85)
    exposed: Array = np.clip(mean + contrast * curved, 0, 1).astype(np.float32)
    return exposed
