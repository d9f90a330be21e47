"""Draw axial CT slices of a chest in Hounsfield units, with and without a mass.

- Arrays in, arrays out: no file, no header, no label; `collection` writes what is drawn here.
- Coordinates are in mm from the middle of the slice, x to the patient's left, y to the back.
- A level is the height in the chest: 0 at the base of the lungs, 1 at their apex.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.datasets.phantoms.shapes import (
    Array,
    Mask,
    branches,
    ellipse,
    fan,
    fill,
    inside,
    nearest,
    paint,
    wave,
)

# The values of the mask.
LUNG = 1
MASS = 2
SIZE = 256  # pixels a side

# Hounsfield units: water is 0, air -1000 by definition; the others as in a chest without disease.
_AIR = -1000
_WINDPIPE = -990
_MATTRESS = -930
_TABLE = -250
_FAT = -105
_SEAM = -90
_PLEURA = -60
_SKIN = 20
_SPINAL_CANAL = 25
_MASS_HU = 45
_MUSCLE = 48

# Domes of the diaphragm: side (1 is the patient's left), level below which they rise, reach.
_DOMES = (
    (-1, 0.32, 0.95),
    (1, 0.24, 0.85),
)
# Chambers of the heart: middle (x, y) from the front of the heart, and half-axes.
_CHAMBERS = (
    (36, 8, 20, 13),
    (-12, -8, 22, 15),
    (14, 24, 26, 11),
)
# Vessels above the heart, and above these: middle (x, y), and radius.
_GREAT_VESSELS = (
    (-12, -4, 14),
    (14, -8, 13),
    (-26, 8, 8),
)
_NECK_VESSELS = (
    (-14, 2, 6),
    (12, 6, 5),
    (-24, -6, 6),
    (24, 0, 5),
)
# The windpipe, and the bronchi that it parts into below: middle x, and radius.
_TRACHEA = ((0, 9),)
_BRONCHI = (
    (-15, 6),
    (17, 6),
)


@dataclass(frozen=True)
class ChestVolume:
    """A drawn CT: Hounsfield units int16 (n, H, W), foot to head, mask alike, spacings in mm."""

    hounsfield: npt.NDArray[np.int16]
    mask: Mask
    pixel_mm: float
    slice_mm: float


@dataclass(frozen=True)
class _Trunk:
    """What the slices of one CT share; lengths in mm, `blood` in HU."""

    width: float
    depth: float
    fat: float
    blood: float
    rib_phase: float
    table: float


@dataclass(frozen=True)
class _Mass:
    """A lump at (x, y) mm around level z mm, `lobes` giving its edge."""

    x: float
    y: float
    z: float
    radius: float
    lobes: tuple[float, float]


def draw_chest_ct(rng: np.random.Generator, mass: bool) -> ChestVolume:
    """Draw 7 to 9 axial slices of a chest, 256 pixels a side, with or without a mass.

    Rows run from front to back, columns from the patient's right to the left.
    """
    count = int(rng.integers(7, 10))
    slice_mm = float(np.round(rng.uniform(12, 15), 1))
    trunk = _draw_trunk(rng)
    air_around = rng.uniform(1.08, 1.26)
    pixel_mm = float(np.round(2 * trunk.width * air_around / SIZE, 4))
    lump = _place_mass(rng, trunk, count, slice_mm) if mass else None
    lowest = rng.uniform(-0.10, 0.02)
    highest = rng.uniform(0.93, 1.04)
    levels = np.linspace(lowest, highest, count)
    grid = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2
    y, x = grid * np.float32(pixel_mm)
    images = []
    masks = []
    for k, level in enumerate(levels):
        cut = _cut(lump, k * slice_mm)
        image, mask = _ct_slice(rng, trunk, x, y, float(level), cut)
        images.append(image)
        masks.append(mask)
    return ChestVolume(np.stack(images), np.stack(masks), pixel_mm, slice_mm)


def _draw_trunk(rng: np.random.Generator) -> _Trunk:
    """Draw the build of one patient."""
    build = rng.uniform(0.86, 1.12)
    return _Trunk(
        width=165 * build,
        depth=112 * build * rng.uniform(0.92, 1.08),
        fat=rng.uniform(6, 20) * build,
        blood=rng.uniform(45, 210),  # without and with contrast agent
        rib_phase=rng.uniform(0, 2 * np.pi),
        table=rng.uniform(2, 9),
    )


def _place_mass(rng: np.random.Generator, trunk: _Trunk, count: int, slice_mm: float) -> _Mass:
    """Draw a mass 25 to 35 mm across, in a lung or against its wall, between apex and dome."""
    wide, deep = _cavity(trunk, 0.5)
    bearing = rng.uniform(-0.9, 0.9)
    side = np.pi if rng.random() < 0.5 else 0
    angle = bearing + side
    reach = rng.uniform(0.62, 0.82)
    return _Mass(
        x=wide * reach * np.cos(angle),
        y=deep * reach * np.sin(angle),
        z=slice_mm * rng.uniform(0.42, 0.62) * (count - 1),
        radius=rng.uniform(12.5, 17.5),
        lobes=(rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
    )


def _cut(mass: _Mass | None, z: float) -> _Mass | None:
    """The disc in which the plane at z mm cuts the mass, None where it misses."""
    if mass is None or abs(z - mass.z) >= mass.radius:
        return None
    squared = mass.radius**2 - (z - mass.z) ** 2
    radius = float(np.sqrt(squared))
    return _Mass(mass.x, mass.y, z, radius, mass.lobes)


def _section(height: float) -> float:
    """Radius at which a plane at a height cuts a ball of radius 1; 0 where it misses."""
    return float(np.sqrt(max(1 - height**2, 0.0)))


def _cavity(trunk: _Trunk, level: float) -> tuple[float, float]:
    """Half-axes in mm of the inner chest wall at a level, 0 lung base to 1 apex."""
    above = max(level - 0.35, 0)  # the chest narrows from here on
    taper = _section(above / 0.74)
    wide = trunk.width - trunk.fat - 15
    deep = trunk.depth - trunk.fat - 11
    return wide * taper, deep * (0.35 + 0.65 * taper)


def _ct_slice(
    rng: np.random.Generator,
    trunk: _Trunk,
    x: Array,
    y: Array,
    level: float,
    mass: _Mass | None,
) -> tuple[npt.NDArray[np.int16], Mask]:
    """Draw one slice in HU, int16 (H, W), and its mask."""
    wide, deep = _cavity(trunk, level)
    cavity = ellipse(x, y, wide, deep, power=2.3)
    lung = _ct_lung(trunk, x, y, level, cavity)
    # From the outside in: what is painted later lies over what was there.
    hu = _ct_body(trunk, x, y, level)
    fill(hu, cavity - 1, 1.5, _PLEURA)
    _ct_organs(hu, trunk, x, y, level, cavity)
    _ct_bones(hu, trunk, x, y, level, cavity)
    _ct_aerated(rng, hu, x, y, level, lung)
    mask = np.where(lung > 0, LUNG, 0).astype(np.uint8)
    if mass is not None:
        lump = _lump(x, y, mass)
        near = np.minimum(lump, cavity + 4)  # it may reach a little into the wall
        fill(hu, near, 1.5, _MASS_HU)
        mask[near > 0] = MASS
    noisy = hu + 28 * _grain(rng, x.shape, 0.6)
    return np.clip(np.round(noisy), -1024, 3071).astype(np.int16), mask


def _grain(rng: np.random.Generator, shape: tuple[int, ...], blur: float) -> Array:
    """Noise (H, W), smoothed over `blur` pixels."""
    noise = rng.standard_normal(shape, np.float32)
    grain: Array = ndimage.gaussian_filter(noise, blur)
    return grain


def _ct_aerated(
    rng: np.random.Generator,
    hu: Array,
    x: Array,
    y: Array,
    level: float,
    lung: Array,
) -> None:
    """Paint aerated lung with its vessels into `hu`; it is denser towards the back."""
    vessels = _ct_vessels(rng, x, y, level)
    texture = _grain(rng, x.shape, 1.5)
    aerated = -870 + 0.35 * y + 88 * texture
    tissue = aerated + (30 - aerated) * 0.85 * vessels
    fill(hu, lung, 1.2, tissue)


def _lump(x: Array, y: Array, mass: _Mass) -> Array:
    """Distance into a lobulated disc, mm."""
    u = x - mass.x
    v = y - mass.y
    angle = np.arctan2(v, u)
    coarse = 0.08 * np.sin(3 * angle + mass.lobes[0])
    fine = 0.05 * np.sin(7 * angle + mass.lobes[1])
    wobble = 1 + coarse + fine
    distance: Array = mass.radius * wobble - np.hypot(u, v)
    return distance


def _ct_body(trunk: _Trunk, x: Array, y: Array, level: float) -> Array:
    """Air, table, skin, fat and the muscles of the chest wall, HU."""
    hu = np.full_like(x, _AIR)
    _ct_table(hu, trunk, x, y)
    swell = 1 + 0.04 * np.sin(3 * level)
    outline = ellipse(x, y, trunk.width * swell, trunk.depth, power=2.4)
    fill(hu, outline, 1, _SKIN)
    fill(hu, outline - 2.5, 1, _FAT)
    # Fat is thicker at the sides.
    angle = np.arctan2(y, x)
    fat = trunk.fat * (1 + 0.25 * np.cos(2 * angle))
    fill(hu, outline - fat, 1.5, _MUSCLE)
    # A wavy seam of fat between two layers of muscle.
    ripple = 3 * np.sin(x / 17)
    seam = np.abs(outline - fat - 11 - ripple)
    paint(hu, 0.7 * inside(1.6 - seam, 1.2), _SEAM)
    return hu


def _ct_table(hu: Array, trunk: _Trunk, x: Array, y: Array) -> None:
    """Paint the curved table under the back, and its core below, into `hu`."""
    bed = trunk.depth + 5 + trunk.table - 0.0011 * x**2
    below = y - bed
    across = np.abs(x) < 0.95 * trunk.width
    paint(hu, inside(2 - np.abs(below), 1) * across, _TABLE)
    paint(hu, inside(14 - np.abs(below - 16), 1) * across, _MATTRESS)


def _ct_lung(trunk: _Trunk, x: Array, y: Array, level: float, cavity: Array) -> Array:
    """Distance into the lungs at a level: the cavity without mediastinum, heart and domes."""
    if level >= 1.02:  # above the apex
        return np.full_like(cavity, -9)
    _, deep = _cavity(trunk, level)
    # The mediastinum is wider towards the back, and at the top.
    to_back = 10 * np.clip(0.3 + y / deep, 0, 1)
    to_top = 10 * np.clip(level - 0.7, 0, 1)
    middle = np.abs(x) - (15 + to_back + to_top)
    lung: Array = np.minimum(cavity - 3, middle)
    lung = np.minimum(lung, -_ct_heart(trunk, x, y, level) - 1)
    lung = np.minimum(lung, -_ct_spine(trunk, x, y) - 2)
    for side, start, reach in _DOMES:
        grown = float(np.clip((start - level) / 0.34, 0, 1)) ** 0.5
        if grown > 0:
            lung = np.minimum(lung, -_dome(trunk, x, y, side, grown, reach))
    return lung


def _dome(
    trunk: _Trunk,
    x: Array,
    y: Array,
    side: int,
    grown: float,
    reach: float,
) -> Array:
    """Distance into one dome of the diaphragm, mm; grown: 0 at its top to 1."""
    wide = 0.48 * trunk.width * grown
    high = 0.66 * trunk.depth * grown
    u = x - side * 0.42 * trunk.width
    v = y + 0.14 * trunk.depth
    return ellipse(u, v, wide * reach, high * reach, 0.2 * side)


def _ct_heart(trunk: _Trunk, x: Array, y: Array, level: float) -> Array:
    """Distance into the heart or, above it, the great vessels, mm."""
    size = _section((level - 0.22) / 0.34)
    great = _section((level - 0.60) / 0.26)
    bulk = trunk.width / 165
    front = -0.28 * trunk.depth
    heart = ellipse(
        x - 18 * bulk,
        y - front,
        62 * bulk * size,
        45 * bulk * size,
        angle=0.5,
    )
    stem = ellipse(
        x - 2,
        y - front - 4,
        36 * bulk * great,
        30 * bulk * great,
    )
    aorta = ellipse(x - 26 * bulk, y - 0.36 * trunk.depth, 15, 15)
    # The descending aorta runs along the spine up to its arch.
    descending = aorta if level < 0.8 else aorta - 99
    return np.maximum(np.maximum(heart, stem), descending)


def _ct_spine(trunk: _Trunk, x: Array, y: Array) -> Array:
    """Distance into the vertebral body, mm."""
    return ellipse(x, y - 0.44 * trunk.depth, 17, 14)


def _ct_organs(
    hu: Array,
    trunk: _Trunk,
    x: Array,
    y: Array,
    level: float,
    cavity: Array,
) -> None:
    """Paint liver, spleen, heart chambers, great vessels and windpipe into `hu`."""
    blood = trunk.blood
    if level < 0.34:
        liver = 55 + 0.25 * blood
        spleen = 45 + 0.3 * blood
        fill(hu, cavity - 2, 2, np.where(x < 20, liver, spleen))
    heart = _ct_heart(trunk, x, y, level)
    fill(hu, heart - 2, 1.5, 50 + 0.25 * blood)
    if level < 0.5:
        _ct_chambers(hu, trunk, x, y, heart)
    else:
        _ct_upper_vessels(hu, trunk, x, y, level)
    if level < 0.8:
        aorta = ellipse(x - 26 * (trunk.width / 165), y - 0.36 * trunk.depth, 12, 12)
        fill(hu, aorta, 1.5, blood)
    if level > 0.42:
        for middle, radius in _TRACHEA if level > 0.66 else _BRONCHI:
            airway = ellipse(x - middle, y - 0.10 * trunk.depth, radius, radius)
            fill(hu, airway, 1, _WINDPIPE)


def _ct_chambers(hu: Array, trunk: _Trunk, x: Array, y: Array, heart: Array) -> None:
    """Paint the blood of the heart's chambers into `hu`, a wall away from its edge."""
    bulk = trunk.width / 165
    front = -0.28 * trunk.depth
    for middle_x, middle_y, a, b in _CHAMBERS:
        chamber = ellipse(
            x - middle_x * bulk,
            y - front - middle_y * bulk,
            a * bulk,
            b * bulk,
            angle=0.5,
        )
        fill(hu, np.minimum(chamber, heart - 7), 2, trunk.blood)


def _ct_upper_vessels(hu: Array, trunk: _Trunk, x: Array, y: Array, level: float) -> None:
    """Paint the vessels above the heart into `hu`: the great ones, and higher up their branches."""
    bulk = trunk.width / 165
    front = -0.28 * trunk.depth
    great = level < 0.82
    for middle_x, middle_y, radius in _GREAT_VESSELS if great else _NECK_VESSELS:
        down = middle_y * bulk if great else middle_y
        vessel = ellipse(x - middle_x * bulk, y - front - down, radius, radius)
        fill(hu, vessel, 1.5, trunk.blood)


def _ct_bones(
    hu: Array,
    trunk: _Trunk,
    x: Array,
    y: Array,
    level: float,
    cavity: Array,
) -> None:
    """Paint vertebra, ribs, breastbone and shoulder blades into `hu`."""
    back = 0.44 * trunk.depth
    spinous_process = ellipse(x, y - back - 36, 4, 11)
    transverse_processes = ellipse(np.abs(x) - 22, y - back - 18, 15, 5, 0.4)
    arch = ellipse(x, y - back - 19, 15, 12)
    body = _ct_spine(trunk, x, y)
    breastbone = ellipse(x, y + trunk.depth - trunk.fat - 9, 20, 6)
    for bone in (spinous_process, transverse_processes, arch, body, breastbone):
        fill(hu, bone, 1.2, 480)
        fill(hu, bone - 2.5, 1.2, 190)
    canal = ellipse(x, y - back - 19, 9, 8)
    fill(hu, canal, 1.2, _SPINAL_CANAL)
    _ct_ribs(hu, trunk, x, y, level, cavity)
    if level > 0.55:
        u = np.abs(x) - 0.70 * trunk.width
        v = y - 0.42 * trunk.depth
        blade = ellipse(u, v, 32, 3.5, -0.7)
        fill(hu, blade, 1.2, 420)


def _ct_ribs(
    hu: Array,
    trunk: _Trunk,
    x: Array,
    y: Array,
    level: float,
    cavity: Array,
) -> None:
    """Paint the ribs where the slice cuts them into `hu`; from slice to slice they move on."""
    angle = np.arctan2(y, np.abs(x))
    phase = angle + trunk.rib_phase + 1.9 * level
    along = wave(phase, 0.50) * np.hypot(x, y)
    beside_spine = np.abs(angle) > 1.3
    rib = ellipse(along, cavity + 6, 16, 4.6) - 9 * beside_spine
    fill(hu, rib, 1.2, 520)
    fill(hu, rib - 2.6, 1.2, 180)


def _ct_vessels(rng: np.random.Generator, x: Array, y: Array, level: float) -> Array:
    """Vessels cut or run along by the slice, (H, W) within 0 to 1."""
    right = fan(rng, nearest(x + 38, y - 4), -1, 7)
    left = fan(rng, nearest(x - 38, y - 4), 1, 7)
    strength = 3.4 - 2.2 * abs(level - 0.45)
    along = branches(rng, x.shape, [*right, *left], 15, strength, depth=4)
    dots = ndimage.gaussian_filter(_cut_vessels(rng, x.shape), 0.8)
    lines = ndimage.gaussian_filter(along, 0.6)
    vessels: Array = np.minimum(lines * 0.9 + dots, 1)
    return vessels


def _cut_vessels(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """500 points (H, W) at which vessels run through the slice."""
    height, width = shape
    strengths = rng.uniform(1, 7, 500)
    rows = rng.integers(0, height, 500)
    columns = rng.integers(0, width, 500)
    points = np.zeros(shape, np.float32)
    points[rows, columns] = strengths
    return points
