"""Draw T1-weighted-looking MR volumes of a head, with and without a tumour.

- Arrays in, arrays out: no file, no header, no label; `collection` writes what is drawn here.
- Coordinates are in mm, x to the patient's right, y to the front, z to the top of the head.
- Tissue levels are in percent of white matter, until a scanner's arbitrary scale is put on.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.datasets.phantoms.shapes import Array, Mask, ellipse, fill, inside, paint, turn

Tumour = Literal["none", "small", "large"]

# The values of the mask.
BRAIN = 1
TUMOUR = 2
SHAPE = (192, 224, 8)  # voxels to the right, the front and the top

# Signal of tissues, percent of white matter, as T1 weighting orders them.
_BONE = 14
_CSF = 24  # cerebrospinal fluid
_OEDEMA = 58
_GREY = 66
_NUCLEUS = 72
_WHITE = 100
_FAT = 112
_ENHANCED = 150

# Layers from the skin inwards: depth of each in mm, signal: scalp, skull, what lies below it.
_LAYERS = (
    (0.0, 125),
    (6.0, _BONE),
    (11.5, 20),
)
# Behind the middle: distance y, half-axes, signal: the fluid about the brain stem, the stem itself,
# the ventricle at its back.
_STEM = (
    (9, 19, 15, _CSF),
    (10, 15, 12, 92),
    (25, 6, 4, _CSF),
)
# Face: middle (x on both sides, y), half-axes, signal: fat of the orbits, eyes, nose.
_FACE = (
    (27, 56, 16, 18, _FAT),
    (27, 59, 11, 11, 28),
    (0, 52, 7, 22, 10),
)
# Deep on both sides: middle (x, y), half-axes, tilt: thalamus, putamen, caudate.
_NUCLEI = (
    (11, -12, 8, 13, 0.2),
    (27, 4, 6, 17, -0.15),
    (13, 20, 5, 10, -0.3),
)
# Side ventricles likewise: front horn, body, back horn.
_HORNS = (
    (8, 22, 5, 14, -0.35),
    (10, -2, 5, 16, 0.1),
    (19, -34, 5, 16, 0.35),
)


@dataclass(frozen=True)
class BrainVolume:
    """A drawn MR: scanner units int16 (X, Y, Z) in RAS order, mask alike, voxel size in mm."""

    signal: npt.NDArray[np.int16]
    mask: Mask
    voxel_mm: tuple[float, float, float]


def draw_brain_mr(rng: np.random.Generator, tumour: Tumour) -> BrainVolume:
    """Draw a T1-weighted-looking head; the overall scale is arbitrary, as it is in MR."""
    pixel_mm = float(np.round(rng.uniform(0.9, 1.02), 3))
    slice_mm = float(np.round(rng.uniform(12.5, 15), 2))
    voxel_mm = (pixel_mm, pixel_mm, slice_mm)
    x, y, z = _axes(rng, voxel_mm)
    skull = _head(rng, x, y, z)
    signal = _brain(rng, x, y, z, skull)
    depth = _brain_depth(x, y, z, skull)
    mask = np.where(depth > 0, BRAIN, 0).astype(np.uint8)
    if tumour != "none":
        _grow_tumour(rng, tumour, (x, y, z), depth, signal, mask)
    return BrainVolume(_acquire(rng, signal), mask, voxel_mm)


def _axes(
    rng: np.random.Generator,
    voxel_mm: tuple[float, float, float],
) -> tuple[Array, Array, Array]:
    """Coordinates in mm, of shapes that broadcast to (X, Y, Z), of a head a little askew."""
    right, front, top = (
        ((np.arange(count) - (count - 1) / 2) * mm).astype(np.float32)
        for count, mm in zip(SHAPE, voxel_mm, strict=True)
    )
    x = right[:, None, None] + np.float32(rng.uniform(-5, 5))
    y = front[None, :, None] + np.float32(rng.uniform(-5, 5))
    z = top[None, None, :] + np.float32(18)
    x, y = turn(x, y, rng.uniform(-0.12, 0.12))
    return x, y, z


def _head(rng: np.random.Generator, x: Array, y: Array, z: Array) -> Array:
    """Distance below the skin in mm, (X, Y, Z)."""
    wide = rng.uniform(71, 79)
    long = rng.uniform(89, 98)
    vault = rng.uniform(84, 90)
    height = np.sqrt(np.clip(1 - (z / vault) ** 2, 0.02, 1))
    egg = 1 - 0.10 * y / long  # narrower to the front
    across = x / (wide * egg)
    radius = np.sqrt(across**2 + (y / long) ** 2) / height
    distance: Array = (1 - radius) * 80 * height
    return distance


def _brain(rng: np.random.Generator, x: Array, y: Array, z: Array, skull: Array) -> Array:
    """Paint scalp, skull, folded grey and white matter, ventricles and orbits, (X, Y, Z)."""
    signal = np.zeros_like(skull)
    for below, level in _LAYERS:
        fill(signal, skull - below, 0.8, level)
    depth = _brain_depth(x, y, z, skull)
    # Muscle and fat below the floor of the skull.
    paint(signal, inside(skull - 14, 0.8) * inside(-3 - depth, 0.8), 55)
    brain = inside(depth, 0.8)
    paint(signal, brain, _WHITE)
    _cortex(rng, signal, x, y, z, depth)
    _hindbrain(signal, x, y, z, brain)
    _deep_brain(signal, x, y, z)
    return signal


def _cortex(
    rng: np.random.Generator,
    signal: Array,
    x: Array,
    y: Array,
    z: Array,
    depth: Array,
) -> None:
    """Paint grey matter along the folds, and the fluid within them, into `signal`."""
    brain = inside(depth, 0.8)
    fold = _folds(rng, signal.shape)
    # The halves of the brain part in the middle, but for the bar that joins them.
    low = np.maximum(np.abs(y + 4), z)
    midline = np.abs(x) + 4 * np.clip(36 - low, 0, 9)
    edge = np.minimum(depth, midline)
    shallow = np.clip(1 - edge / 26, 0, 1)
    ribbon = 1.05 * shallow - 0.12 - fold
    rim = (4.0 - edge) * 0.1
    paint(signal, brain * inside(np.maximum(ribbon, rim), 0.12), _GREY)
    sulcus = 0.36 * shallow - 0.12 - fold
    cleft = (1.2 - midline) * 0.2
    paint(signal, brain * inside(np.maximum(sulcus, cleft), 0.10), _CSF)


def _brain_depth(x: Array, y: Array, z: Array, skull: Array) -> Array:
    """Distance into the brain, mm: below the vault and above the floor of the skull."""
    from_temple = (np.abs(x) - 40) / 15
    temples = 11 * np.exp(-(from_temple**2))
    floor: Array = 0.8 * (z + 12) + 0.6 * (34 - y) + temples
    return np.minimum(skull - 13, floor)


def _folds(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Distance from the nearest sulcus, about 0 to 2: the zero lines of band-limited noise."""
    noise = rng.standard_normal(shape, np.float32)
    fine = ndimage.gaussian_filter(noise, (3.6, 3.6, 0.45))
    coarse = ndimage.gaussian_filter(noise, (7.0, 7.0, 0.6))
    band = fine - coarse
    distance: Array = np.abs(band / band.std())
    return distance


def _hindbrain(signal: Array, x: Array, y: Array, z: Array, brain: Array) -> None:
    """Paint cerebellum, brain stem, eyes and nose into `signal`, on the low levels only."""
    low = np.clip(-13 - z, 0, 3) / 3
    within = low * brain
    cerebellum = ellipse(x, y + 46, 50, 30)
    paint(signal, within * inside(cerebellum + 3, 0.8), _CSF)
    from_middle = 1.1 * np.hypot(x, y + 18)
    folia = 82 - 22 * np.sin(from_middle + 0.06 * np.abs(x))
    paint(signal, within * inside(cerebellum, 0.8), folia)
    for back, a, b, level in _STEM:
        part = ellipse(x, y + back, a, b)
        paint(signal, within * inside(part, 0.8), level)
    away = 0.8 * np.clip(np.abs(z + 22) - 8, 0, 99)
    for u, v, a, b, level in _FACE:
        socket = ellipse(np.abs(x) - u, y - v, a, b) - away
        fill(signal, socket, 1, level)


def _deep_brain(signal: Array, x: Array, y: Array, z: Array) -> None:
    """Paint the deep grey nuclei and the ventricles into `signal`."""
    side = np.abs(x)
    near = np.sqrt(np.clip(1 - ((z - 10) / 24) ** 2, 0, 1))
    for u, v, a, b, tilt in _NUCLEI:
        nucleus = ellipse(side - u, y - v, a, b, tilt)
        fill(signal, nucleus - 12 * (1 - near), 1, _NUCLEUS)
    high = np.sqrt(np.clip(1 - ((z - 16) / 22) ** 2, 0, 1))
    for u, v, a, b, tilt in _HORNS:
        horn = ellipse(side - u, y - v, a, b, tilt)
        fill(signal, horn - 8 * (1 - high), 0.8, _CSF)
    # The third ventricle, a slit in the middle.
    slit = ellipse(side, y + 6, 2.5, 12)
    away = 0.4 * np.clip(np.abs(z - 2) - 8, 0, 99)
    fill(signal, slit - away, 0.8, _CSF)


def _grow_tumour(
    rng: np.random.Generator,
    tumour: Tumour,
    axes: tuple[Array, Array, Array],
    depth: Array,
    signal: Array,
    mask: Mask,
) -> None:
    """Paint a bright or ring-enhancing tumour with dark oedema into `signal` and `mask`."""
    radius = rng.uniform(8, 10.5) if tumour == "small" else rng.uniform(18, 23)
    lump = _lump(rng, axes, depth, radius)
    brain = depth > 0
    oedema = inside(lump + 0.35 * radius, 0.2 * radius)
    paint(signal, 0.8 * brain * oedema, _OEDEMA)
    paint(signal, brain * inside(lump, 1), _ENHANCED)
    if rng.random() < 0.6:
        core = lump - max(0.3 * radius, 3.0)
        paint(signal, brain * inside(core, 1), 40)
    mask[brain & (lump > 0)] = TUMOUR


def _lump(
    rng: np.random.Generator,
    axes: tuple[Array, Array, Array],
    depth: Array,
    radius: float,
) -> Array:
    """Distance into a lobulated ball in mm, (X, Y, Z), which lies deep enough on either side."""
    x, y, z = axes
    third = z.size // 3
    level = int(rng.integers(third, z.size - third))
    is_deep = depth[..., level] > 2 + radius
    is_lateral = np.abs(x[..., 0]) > 0.6 * radius
    i, j = rng.choice(np.argwhere(is_deep & is_lateral))
    u = x - x[i, j]
    v = y - y[i, j]
    w = z - z[..., level, None]
    angle = np.arctan2(v, u)
    phase = rng.uniform(0, 6)
    coarse = 0.09 * np.sin(2 * angle + phase)
    fine = 0.06 * np.sin(5 * angle)
    wobble = 1 + coarse + fine
    distance: Array = radius - np.sqrt((u**2 + v**2) / wobble**2 + w**2)
    return distance


def _acquire(rng: np.random.Generator, signal: Array) -> npt.NDArray[np.int16]:
    """Blur, coil shading, Rician noise and an arbitrary scale, int16."""
    clean = ndimage.gaussian_filter(signal, (0.6, 0.6, 0)) * _shading(rng, signal.shape)
    # The magnitude of a complex signal with noise in both parts: Rician, as in MR.
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * 3.0
    scale = np.exp(rng.uniform(np.log(2.0), np.log(12.0)))
    magnitude = scale * np.hypot(clean + real, imaginary)
    stored: npt.NDArray[np.int16] = np.rint(magnitude).astype(np.int16)
    return stored


def _shading(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """How strongly the coil hears each place, about 1, (X, Y, 1)."""
    width, length, _ = shape
    across = np.linspace(-1, 1, width, dtype=np.float32)[:, None, None]
    along = np.linspace(-1, 1, length, dtype=np.float32)[None, :, None]
    tilt = rng.uniform(-0.12, 0.12, 3)
    shading: Array = 1 + tilt[0] * across + tilt[1] * along + tilt[2] * across * along
    return shading
