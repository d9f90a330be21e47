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
    inside,
    nearest,
    paint,
    wave,
)

LUNG, MASS = 1, 2
SIZE = 256


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
    build = rng.uniform(0.86, 1.12)
    trunk = _Trunk(
        width=165 * build,
        depth=112 * build * rng.uniform(0.92, 1.08),
        fat=rng.uniform(6, 20) * build,
        blood=rng.uniform(45, 210),
        rib_phase=rng.uniform(0, 2 * np.pi),
        table=rng.uniform(2, 9),
    )
    pixel_mm = float(np.round(2 * trunk.width * rng.uniform(1.08, 1.26) / SIZE, 4))
    lump = _place_mass(rng, trunk, count, slice_mm) if mass else None
    levels = np.linspace(rng.uniform(-0.10, 0.02), rng.uniform(0.93, 1.04), count)
    y, x = (np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2) * np.float32(pixel_mm)
    drawn = [
        _ct_slice(rng, trunk, x, y, float(level), _cut(lump, k * slice_mm))
        for k, level in enumerate(levels)
    ]
    hounsfield = np.stack([image for image, _ in drawn])
    return ChestVolume(hounsfield, np.stack([mask for _, mask in drawn]), pixel_mm, slice_mm)


def _place_mass(rng: np.random.Generator, trunk: _Trunk, count: int, slice_mm: float) -> _Mass:
    """Draw a mass 25 to 35 mm across, in a lung or against its wall, between apex and dome."""
    wide, deep = _cavity(trunk, 0.5)
    angle = rng.uniform(-0.9, 0.9) + (np.pi if rng.random() < 0.5 else 0)
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
    radius = float(np.sqrt(mass.radius**2 - (z - mass.z) ** 2))
    return _Mass(mass.x, mass.y, z, radius, mass.lobes)


def _cavity(trunk: _Trunk, level: float) -> tuple[float, float]:
    """Half-axes in mm of the inner chest wall at a level, 0 lung base to 1 apex."""
    taper = float(np.sqrt(max(1 - (max(level - 0.35, 0) / 0.74) ** 2, 0.0)))
    wide, deep = trunk.width - trunk.fat - 15, trunk.depth - trunk.fat - 11
    return wide * taper, deep * (0.35 + 0.65 * taper)


def _ct_slice(
    rng: np.random.Generator, trunk: _Trunk, x: Array, y: Array, level: float, mass: _Mass | None
) -> tuple[npt.NDArray[np.int16], Mask]:
    """Draw one slice in HU, int16 (H, W), and its mask."""
    wide, deep = _cavity(trunk, level)
    hu = _ct_body(trunk, x, y, level)
    cavity = ellipse(x, y, wide, deep, power=2.3)
    lung = _ct_lung(trunk, x, y, level, cavity)
    paint(hu, inside(cavity - 1, 1.5), -60)
    _ct_organs(hu, trunk, x, y, level, cavity)
    _ct_bones(hu, trunk, x, y, level, cavity)
    cover = inside(lung, 1.2)
    vessels = _ct_vessels(rng, x, y, level)
    texture = ndimage.gaussian_filter(rng.standard_normal(x.shape, np.float32), 1.5)
    aerated = -870 + 0.35 * y + 88 * texture
    paint(hu, cover, aerated + (30 - aerated) * 0.85 * vessels)
    mask = np.where(lung > 0, LUNG, 0).astype(np.uint8)
    if mass is not None:
        lump = _lump(x, y, mass)
        near = np.minimum(lump, cavity + 4)
        paint(hu, inside(near, 1.5), 45)
        mask[near > 0] = MASS
    noise = ndimage.gaussian_filter(rng.standard_normal(x.shape, np.float32), 0.6) * 28
    return np.clip(np.round(hu + noise), -1024, 3071).astype(np.int16), mask


def _lump(x: Array, y: Array, mass: _Mass) -> Array:
    """Distance into a lobulated disc, mm."""
    u, v = x - mass.x, y - mass.y
    angle = np.arctan2(v, u)
    wobble = 1 + 0.08 * np.sin(3 * angle + mass.lobes[0]) + 0.05 * np.sin(7 * angle + mass.lobes[1])
    distance: Array = mass.radius * wobble - np.hypot(u, v)
    return distance


def _ct_body(trunk: _Trunk, x: Array, y: Array, level: float) -> Array:
    """Air, table, skin, fat and the muscles of the chest wall, HU."""
    swell = 1 + 0.04 * np.sin(3 * level)
    outline = ellipse(x, y, trunk.width * swell, trunk.depth, power=2.4)
    hu = np.full_like(x, -1000)
    bed = trunk.depth + 5 + trunk.table - 0.0011 * x**2
    paint(hu, inside(2 - np.abs(y - bed), 1) * (np.abs(x) < 0.95 * trunk.width), -250)
    paint(hu, inside(14 - np.abs(y - bed - 16), 1) * (np.abs(x) < 0.95 * trunk.width), -930)
    paint(hu, inside(outline, 1), 20)
    paint(hu, inside(outline - 2.5, 1), -105)
    fat = trunk.fat * (1 + 0.25 * np.cos(2 * np.arctan2(y, x)))
    paint(hu, inside(outline - fat, 1.5), 48)
    seam = np.abs(outline - fat - 11 - 3 * np.sin(x / 17))
    paint(hu, 0.7 * inside(1.6 - seam, 1.2), -90)
    return hu


def _ct_lung(trunk: _Trunk, x: Array, y: Array, level: float, cavity: Array) -> Array:
    """Distance into the lungs at a level: the cavity without mediastinum, heart and domes."""
    deep = _cavity(trunk, level)[1]
    middle = np.abs(x) - (15 + 10 * np.clip(0.3 + y / deep, 0, 1) + 10 * np.clip(level - 0.7, 0, 1))
    lung = np.minimum(cavity - 3, middle)
    lung = np.minimum(lung, -_ct_heart(trunk, x, y, level) - 1)
    lung = np.minimum(lung, -_ct_spine(trunk, x, y) - 2)
    for side, start, reach in ((-1, 0.32, 0.95), (1, 0.24, 0.85)):
        grown = float(np.clip((start - level) / 0.34, 0, 1)) ** 0.5
        if grown > 0:
            wide, high = 0.48 * trunk.width * grown, 0.66 * trunk.depth * grown
            centre = x - side * 0.42 * trunk.width, y + 0.14 * trunk.depth
            dome = ellipse(*centre, wide * reach, high * reach, 0.2 * side)
            lung = np.minimum(lung, -dome)
    return lung if level < 1.02 else np.full_like(lung, -9)


def _ct_heart(trunk: _Trunk, x: Array, y: Array, level: float) -> Array:
    """Distance into the heart or, above it, the great vessels, mm."""
    size = float(np.sqrt(max(1 - ((level - 0.22) / 0.34) ** 2, 0.0)))
    great = float(np.sqrt(max(1 - ((level - 0.60) / 0.26) ** 2, 0.0)))
    bulk = trunk.width / 165
    front = -0.28 * trunk.depth
    heart = ellipse(x - 18 * bulk, y - front, 62 * bulk * size, 45 * bulk * size, 0.5)
    stem = ellipse(x - 2, y - front - 4, 36 * bulk * great, 30 * bulk * great)
    arteries = ellipse(x - 26 * bulk, y - 0.36 * trunk.depth, 15, 15)
    return np.maximum(np.maximum(heart, stem), arteries if level < 0.8 else arteries - 99)


def _ct_spine(trunk: _Trunk, x: Array, y: Array) -> Array:
    """Distance into the vertebral body, mm."""
    return ellipse(x, y - 0.44 * trunk.depth, 17, 14)


def _ct_organs(hu: Array, trunk: _Trunk, x: Array, y: Array, level: float, cavity: Array) -> None:
    """Paint liver, spleen, heart chambers, great vessels and windpipe into `hu`."""
    bulk, front, blood = trunk.width / 165, -0.28 * trunk.depth, trunk.blood
    if level < 0.34:
        organ = np.where(x < 20, 55 + 0.25 * blood, 45 + 0.3 * blood)
        paint(hu, inside(cavity - 2, 2), organ)
    heart = _ct_heart(trunk, x, y, level)
    paint(hu, inside(heart - 2, 1.5), 50 + 0.25 * blood)
    if level < 0.5:
        for cx, cy, a, b in ((36, 8, 20, 13), (-12, -8, 22, 15), (14, 24, 26, 11)):
            chamber = ellipse(x - cx * bulk, y - front - cy * bulk, a * bulk, b * bulk, 0.5)
            paint(hu, inside(np.minimum(chamber, heart - 7), 2), blood)
    elif level < 0.82:
        for cx, cy, r in ((-12, -4, 14), (14, -8, 13), (-26, 8, 8)):
            paint(hu, inside(ellipse(x - cx * bulk, y - front - cy * bulk, r, r), 1.5), blood)
    else:
        for cx, cy, r in ((-14, 2, 6), (12, 6, 5), (-24, -6, 6), (24, 0, 5)):
            paint(hu, inside(ellipse(x - cx * bulk, y - front - cy, r, r), 1.5), blood)
    if level < 0.8:
        aorta = ellipse(x - 26 * bulk, y - 0.36 * trunk.depth, 12, 12)
        paint(hu, inside(aorta, 1.5), blood)
    for cx, r in ((0, 9),) if level > 0.66 else ((-15, 6), (17, 6)):
        if level > 0.42:
            paint(hu, inside(ellipse(x - cx, y - 0.10 * trunk.depth, r, r), 1), -990)


def _ct_bones(hu: Array, trunk: _Trunk, x: Array, y: Array, level: float, cavity: Array) -> None:
    """Paint vertebra, ribs, breastbone and shoulder blades into `hu`."""
    back = 0.44 * trunk.depth
    for bone in (
        ellipse(x, y - back - 36, 4, 11),
        ellipse(np.abs(x) - 22, y - back - 18, 15, 5, 0.4),
        ellipse(x, y - back - 19, 15, 12),
        _ct_spine(trunk, x, y),
        ellipse(x, y + trunk.depth - trunk.fat - 9, 20, 6),
    ):
        paint(hu, inside(bone, 1.2), 480)
        paint(hu, inside(bone - 2.5, 1.2), 190)
    paint(hu, inside(ellipse(x, y - back - 19, 9, 8), 1.2), 25)
    angle = np.arctan2(y, np.abs(x))
    along = wave(angle + trunk.rib_phase + 1.9 * level, 0.50) * np.hypot(x, y)
    rib = ellipse(along, cavity + 6, 16, 4.6) - 9 * (np.abs(angle) > 1.3)
    paint(hu, inside(rib, 1.2), 520)
    paint(hu, inside(rib - 2.6, 1.2), 180)
    if level > 0.55:
        blade = ellipse(np.abs(x) - 0.70 * trunk.width, y - 0.42 * trunk.depth, 32, 3.5, -0.7)
        paint(hu, inside(blade, 1.2), 420)


def _ct_vessels(rng: np.random.Generator, x: Array, y: Array, level: float) -> Array:
    """Vessels cut or run along by the slice, (H, W) within 0 to 1."""
    roots = [root for sign in (-1, 1) for root in fan(rng, nearest(x - sign * 38, y - 4), sign, 7)]
    strength = 3.4 - 2.2 * abs(level - 0.45)
    lines = branches(rng, x.shape, roots, 15, strength, depth=4)
    drawn = np.zeros(x.shape, np.float32)
    height, width = x.shape
    drawn[rng.integers(0, height, 500), rng.integers(0, width, 500)] = rng.uniform(1, 7, 500)
    dots = ndimage.gaussian_filter(drawn, 0.8)
    vessels: Array = np.minimum(ndimage.gaussian_filter(lines, 0.6) * 0.9 + dots, 1)
    return vessels
