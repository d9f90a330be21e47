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

RIGHT_LUNG, LEFT_LUNG = 1, 2


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
    path = _tissue(thorax, habitus) - 0.52 * air * (1 - 0.92 * fluid) + 0.03 * fluid
    path += _bones(rng, thorax, habitus)
    path += 0.20 * _lung_vessels(rng, thorax) * np.minimum(air * 1.5, 1) * (1 - fluid)
    if findings.nodule:
        path += _nodules(rng, thorax, mask, fluid)
    return _expose(rng, path), mask


def _thorax(rng: np.random.Generator, habitus: Habitus, cardiomegaly: bool) -> _Thorax:
    """Place the thorax in a frame of random size: 320 to 420 px a side, never square."""
    height, width = _frame(rng)
    unit = min(height / 2.55, width / 2.36) * rng.uniform(0.97, 1.07)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    u = (columns - width / 2) / np.float32(unit) + np.float32(rng.uniform(-0.05, 0.05))
    v = (rows - height / 2) / np.float32(unit) + np.float32(rng.uniform(-0.1, 0.02))
    x, y = turn(u, v, rng.uniform(-0.045, 0.045))
    side = np.abs(x)
    t = np.clip(0.13 + 0.87 * (y - habitus.apex) / (habitus.base - habitus.apex), 0, 1.2)
    lateral = 0.94 * np.sqrt(1 - np.abs(1 - t) ** 2.6)
    top = y - habitus.apex - 1.9 * (side - 0.36) ** 2
    left_lower = 0.05 * (x > 0)
    arch = 1 - ((side - 0.40) / 0.56) ** 2
    diaphragm = y - (habitus.base + left_lower - habitus.dome * arch)
    lung = np.minimum(np.minimum(lateral - side, side - 0.17), np.minimum(top, -diaphragm))
    ratio = rng.uniform(0.60, 0.72) if cardiomegaly else rng.uniform(0.39, 0.47)
    heart = _heart(x, y, habitus, ratio + habitus.heart)
    return _Thorax(x, y, lung, diaphragm, heart, side, lateral, unit)


def _frame(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the height and width of an X-ray in pixels, at least 12 apart."""
    height = int(rng.integers(332, 409))
    width = height + int(rng.choice([-1, 1])) * int(rng.integers(12, 60))
    return height, int(np.clip(width, 320, 420))


def _heart(x: Array, y: Array, habitus: Habitus, ratio: float) -> Array:
    """Distance into the heart shadow, whose width is `ratio` of the inner thorax."""
    width = ratio * 1.88
    centre = 0.21 * width
    low = habitus.base - habitus.dome * 0.75
    body = ellipse(x - centre, y - low + 0.22, width / 2, 0.27 + 0.22 * ratio, 0.42)
    vessels = ellipse(x - 0.03, y - low + 0.72, 0.22, 0.52)
    knob = ellipse(x - 0.19, y - low + 1.04, 0.13, 0.15)
    return join(join(body, vessels, 0.22), knob, 0.08)


def _lung_mask(thorax: _Thorax) -> Mask:
    """Label the lung fields beside heart and mediastinum; the patient's right is image left."""
    field = (thorax.lung > 0) & (thorax.heart < 0)
    return np.where(field, np.where(thorax.x < 0, RIGHT_LUNG, LEFT_LUNG), 0).astype(np.uint8)


def _air(thorax: _Thorax) -> Array:
    """Depth of air along the beam, 0 to 1: thinner towards the edge of a lung."""
    rim: Array = np.clip(thorax.lung / 0.30, 0, 1)
    return (1 - (1 - rim) ** 3) * (1 - 0.9 * inside(thorax.heart, 0.02))


def _tissue(thorax: _Thorax, habitus: Habitus) -> Array:
    """Depth of soft tissue along the beam: body with shoulders and neck, heart, abdomen."""
    x, y, side = thorax.x, thorax.y, thorax.side
    shoulder = y - (habitus.apex - 0.36 + 0.50 * np.clip(side - 0.26, 0, 2) ** 1.4)
    flank = habitus.flesh + 2.0 * np.clip(-0.40 - y, 0, 0.3) ** 1.3 - side
    edge = np.minimum(join(shoulder, 0.30 - side, 0.1), flank)
    body = np.sqrt(inside(edge - 0.12, 0.12))
    belly = inside(thorax.diaphragm, 0.012) * inside(thorax.lateral - side + 0.12, 0.1)
    bubble = inside(ellipse(x - 0.48, y - habitus.base - 0.04, 0.16, 0.07), 0.02)
    centre = np.clip(1 - (side / 0.22) ** 2, 0, 1)
    windpipe = inside(0.055 - np.abs(x + 0.01), 0.015) * inside(-0.32 - y, 0.05)
    heart = inside(thorax.heart, 0.015) * (0.06 + 0.10 * np.clip(thorax.heart / 0.3, 0, 1))
    tissue: Array = body * (0.60 + 0.14 * belly - 0.16 * bubble + 0.07 * centre + heart)
    return tissue - 0.10 * body * windpipe


def _bones(rng: np.random.Generator, thorax: _Thorax, habitus: Habitus) -> Array:
    """Depth of bone: back and front ribs, spine, clavicles, shoulder blades and arms."""
    y, side = thorax.y, thorax.side
    cage = inside(thorax.lateral - side + 0.035, 0.02) * inside(y - habitus.apex + 0.02, 0.05)
    chest = cage * inside(habitus.base + 0.1 - y, 0.2)
    back = y + 0.30 * side - habitus.rib_tilt * side**3 * 2.0
    front = y + 0.55 * side**2 + 0.75 * side - 0.45 * side**3
    gap = habitus.rib_gap
    ribs = tube(wave(back + rng.uniform(0, gap), gap), 0.046) * inside(side - 0.08, 0.03)
    ribs += 0.6 * tube(wave(front, gap * 1.12), 0.052) * inside(side - 0.40, 0.12)
    brighter = 1 + 1.2 * np.clip(1 - (thorax.lateral - side) / 0.12, 0, 1)
    spine = inside(0.105 - side, 0.02) * (0.7 + 0.3 * inside(np.abs(wave(y, 0.165)) - 0.015, 0.02))
    sweep = y - habitus.apex - 0.27 + 0.26 * side + 0.05 * np.sin(4.6 * side)
    clavicle = tube(sweep, 0.045) * inside(side - 0.12, 0.02) * inside(1.0 - side, 0.05)
    blade = ellipse(side - 0.93, y - habitus.apex - 0.62, 0.15, 0.42, 0.25)
    arm = ellipse(side - 1.16, y - habitus.apex - 0.22, 0.13, 0.16)
    bones: Array = 0.10 * ribs * brighter * chest + 0.05 * spine + 0.13 * clavicle
    bones += 0.035 * inside(blade, 0.03) + 0.10 * inside(arm, 0.04)
    return bones


def _lung_vessels(rng: np.random.Generator, thorax: _Thorax) -> Array:
    """Shadows of the vessels that branch from both hila, (H, W) within 0 to 1."""
    roots = [
        root
        for sign in (-1, 1)
        for root in fan(rng, nearest(thorax.x - sign * 0.27, thorax.y - 0.02), sign, 9)
    ]
    fine = branches(rng, thorax.x.shape, roots, 0.17 * thorax.unit, 0.03 * thorax.unit)
    blurred = ndimage.gaussian_filter(fine, 1.2)
    hilum: Array = np.exp(-(((thorax.side - 0.26) / 0.10) ** 2) - ((thorax.y - 0.02) / 0.17) ** 2)
    shadow: Array = np.minimum(blurred + 0.7 * hilum, 1)
    return shadow


def _fluid(rng: np.random.Generator, thorax: _Thorax) -> Array:
    """Pleural fluid on one side, 0 to 1, with a meniscus that climbs the chest wall."""
    sign = int(rng.choice([-1, 1]))
    level = rng.uniform(0.26, 0.52)
    wall = np.clip(thorax.lateral - thorax.side, 0, 1)
    floor = np.max(thorax.y[(thorax.lung > 0) & (thorax.x * sign > 0)])
    surface: Array = (
        floor - level - 0.26 * np.exp(-wall / 0.13) - 0.05 * np.exp(-(0.8 - wall) / 0.2)
    )
    return inside(thorax.y - surface, 0.045) * (thorax.x * sign > 0)


def _nodules(rng: np.random.Generator, thorax: _Thorax, mask: Mask, fluid: Array) -> Array:
    """One to three round shadows, 12 to 25 px across, in aerated lung."""
    height, width = mask.shape
    room = ndimage.binary_erosion((mask > 0) & (fluid < 0.05), iterations=13, border_value=0)
    spots = np.argwhere(room if room.any() else mask > 0)
    shadow = np.zeros((height, width), np.float32)
    rows, columns = np.ogrid[:height, :width]
    for row, column in rng.choice(spots, size=rng.integers(1, 4)):
        radius = rng.uniform(6.5, 12.5)
        depth = np.clip(1 - ((rows - row) ** 2 + (columns - column) ** 2) / radius**2, 0, 1)
        shadow = np.maximum(shadow, rng.uniform(0.20, 0.30) * np.sqrt(depth))
    return shadow


def _expose(rng: np.random.Generator, path: Array) -> Array:
    """Film: blur, noise, gamma, then a mean and a contrast that know nothing of the findings."""
    blurred = ndimage.gaussian_filter(path, rng.uniform(0.7, 1.2))
    noise = rng.standard_normal(path.shape, np.float32) * (0.5 + blurred)
    grey = np.clip(blurred + rng.uniform(0.010, 0.022) * noise, 0, 1) / 0.95
    curved = grey ** rng.uniform(0.8, 1.25)
    curved -= curved.mean()
    mean, contrast = rng.uniform(0.42, 0.58), rng.uniform(0.55, 0.85)
    exposed: Array = np.clip(mean + contrast * curved, 0, 1).astype(np.float32)
    return exposed
