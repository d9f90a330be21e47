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

from pipeline.datasets.phantoms.shapes import Array, Mask, ellipse, inside, paint, turn

Tumour = Literal["none", "small", "large"]

BRAIN, TUMOUR = 1, 2
SHAPE = (192, 224, 8)


@dataclass(frozen=True)
class BrainVolume:
    """A drawn MR: scanner units int16 (X, Y, Z) in RAS order, mask alike, voxel size in mm."""

    signal: npt.NDArray[np.int16]
    mask: Mask
    voxel_mm: tuple[float, float, float]


def draw_brain_mr(rng: np.random.Generator, tumour: Tumour) -> BrainVolume:
    """Draw a T1-weighted-looking head; the overall scale is arbitrary, as it is in MR."""
    pixel_mm = float(np.round(rng.uniform(0.9, 1.02), 3))
    voxel_mm = (pixel_mm, pixel_mm, float(np.round(rng.uniform(12.5, 15), 2)))
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32)
        for n, mm in zip(SHAPE, voxel_mm, strict=True)
    )
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :] + np.float32(18)
    x, y = turn(
        x + np.float32(rng.uniform(-5, 5)),
        y + np.float32(rng.uniform(-5, 5)),
        rng.uniform(-0.12, 0.12),
    )
    skull = _head(rng, x, y, z)
    signal = _brain(rng, x, y, z, skull)
    depth = _brain_depth(x, y, z, skull)
    mask = np.where(depth > 0, BRAIN, 0).astype(np.uint8)
    if tumour != "none":
        _grow_tumour(rng, tumour, (x, y, z), depth, signal, mask)
    return BrainVolume(_acquire(rng, signal), mask, voxel_mm)


def _head(rng: np.random.Generator, x: Array, y: Array, z: Array) -> Array:
    """Distance below the skin in mm, (X, Y, Z)."""
    wide, long = rng.uniform(71, 79), rng.uniform(89, 98)
    height = np.sqrt(np.clip(1 - (z / rng.uniform(84, 90)) ** 2, 0.02, 1))
    egg = 1 - 0.10 * y / long
    radius = np.sqrt((x / (wide * egg)) ** 2 + (y / long) ** 2) / height
    distance: Array = (1 - radius) * 80 * height
    return distance


def _brain(rng: np.random.Generator, x: Array, y: Array, z: Array, skull: Array) -> Array:
    """Paint scalp, skull, folded grey and white matter, ventricles and orbits, (X, Y, Z)."""
    signal = np.zeros_like(skull)
    for below, level in ((0.0, 125), (6.0, 14), (11.5, 20)):
        paint(signal, inside(skull - below, 0.8), level)
    depth = _brain_depth(x, y, z, skull)
    paint(signal, inside(skull - 14, 0.8) * inside(-3 - depth, 0.8), 55)
    brain = inside(depth, 0.8)
    fold = _folds(rng, skull.shape)
    midline = np.abs(x) + 4 * np.clip(36 - np.maximum(np.abs(y + 4), z), 0, 9)
    edge = np.minimum(depth, midline)
    shallow = np.clip(1 - edge / 26, 0, 1)
    paint(signal, brain, 100)
    ribbon = np.maximum(1.05 * shallow - 0.12 - fold, (4.0 - edge) * 0.1)
    paint(signal, brain * inside(ribbon, 0.12), 66)
    sulcus = np.maximum(0.36 * shallow - 0.12 - fold, (1.2 - midline) * 0.2)
    paint(signal, brain * inside(sulcus, 0.10), 24)
    _hindbrain(signal, x, y, z, brain)
    _deep_brain(signal, x, y, z)
    return signal


def _brain_depth(x: Array, y: Array, z: Array, skull: Array) -> Array:
    """Distance into the brain, mm: below the vault and above the floor of the skull."""
    temples = 11 * np.exp(-(((np.abs(x) - 40) / 15) ** 2))
    floor: Array = 0.8 * (z + 12) + 0.6 * (34 - y) + temples
    return np.minimum(skull - 13, floor)


def _folds(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Distance from the nearest sulcus, about 0 to 2: the zero lines of band-limited noise."""
    noise = rng.standard_normal(shape, np.float32)
    fine = ndimage.gaussian_filter(noise, (3.6, 3.6, 0.45))
    band = fine - ndimage.gaussian_filter(noise, (7.0, 7.0, 0.6))
    distance: Array = np.abs(band / band.std())
    return distance


def _hindbrain(signal: Array, x: Array, y: Array, z: Array, brain: Array) -> None:
    """Paint cerebellum, brain stem, eyes and nose into `signal`, on the low levels only."""
    low = np.clip(-13 - z, 0, 3) / 3
    cerebellum = ellipse(x, y + 46, 50, 30)
    folia = 82 - 22 * np.sin(1.1 * np.hypot(x, y + 18) + 0.06 * np.abs(x))
    paint(signal, low * brain * inside(cerebellum + 3, 0.8), 24)
    paint(signal, low * brain * inside(cerebellum, 0.8), folia)
    for v, a, b, level in ((9, 19, 15, 24), (10, 15, 12, 92), (25, 6, 4, 24)):
        paint(signal, low * brain * inside(ellipse(x, y + v, a, b), 0.8), level)
    for u, v, a, b, level in ((27, 56, 16, 18, 112), (27, 59, 11, 11, 28), (0, 52, 7, 22, 10)):
        socket = ellipse(np.abs(x) - u, y - v, a, b) - 0.8 * np.clip(np.abs(z + 22) - 8, 0, 99)
        paint(signal, inside(socket, 1), level)


def _deep_brain(signal: Array, x: Array, y: Array, z: Array) -> None:
    """Paint the deep grey nuclei and the ventricles into `signal`."""
    side = np.abs(x)
    near = np.sqrt(np.clip(1 - ((z - 10) / 24) ** 2, 0, 1))
    for u, v, a, b, tilt in ((11, -12, 8, 13, 0.2), (27, 4, 6, 17, -0.15), (13, 20, 5, 10, -0.3)):
        nucleus = ellipse(side - u, y - v, a, b, tilt) - 12 * (1 - near)
        paint(signal, inside(nucleus, 1), 72)
    high = np.sqrt(np.clip(1 - ((z - 16) / 22) ** 2, 0, 1))
    for u, v, a, b, tilt in ((8, 22, 5, 14, -0.35), (10, -2, 5, 16, 0.1), (19, -34, 5, 16, 0.35)):
        horn = ellipse(side - u, y - v, a, b, tilt) - 8 * (1 - high)
        paint(signal, inside(horn, 0.8), 24)
    slit = ellipse(side, y + 6, 2.5, 12) - 0.4 * np.clip(np.abs(z - 2) - 8, 0, 99)
    paint(signal, inside(slit, 0.8), 24)


def _grow_tumour(
    rng: np.random.Generator,
    tumour: Tumour,
    axes: tuple[Array, Array, Array],
    depth: Array,
    signal: Array,
    mask: Mask,
) -> None:
    """Paint a bright or ring-enhancing tumour with dark oedema into `signal` and `mask`."""
    x, y, z = axes
    radius = rng.uniform(8, 10.5) if tumour == "small" else rng.uniform(18, 23)
    level = int(rng.integers(z.size // 3, z.size - z.size // 3))
    room = np.argwhere((depth[..., level] > 2 + radius) & (np.abs(x[..., 0]) > 0.6 * radius))
    i, j = rng.choice(room)
    u, v = x - x[i, j], y - y[i, j]
    angle = np.arctan2(v, u)
    wobble = 1 + 0.09 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.06 * np.sin(5 * angle)
    lump = radius - np.sqrt((u**2 + v**2) / wobble**2 + (z - z[..., level, None]) ** 2)
    brain = depth > 0
    paint(signal, 0.8 * brain * inside(lump + 0.35 * radius, 0.2 * radius), 58)
    paint(signal, brain * inside(lump, 1), 150)
    if rng.random() < 0.6:
        paint(signal, brain * inside(lump - max(0.3 * radius, 3.0), 1), 40)
    mask[brain & (lump > 0)] = TUMOUR


def _acquire(rng: np.random.Generator, signal: Array) -> npt.NDArray[np.int16]:
    """Blur, coil shading, Rician noise and an arbitrary scale, int16."""
    width, length, _ = signal.shape
    across = np.linspace(-1, 1, width, dtype=np.float32)[:, None, None]
    along = np.linspace(-1, 1, length, dtype=np.float32)[None, :, None]
    tilt = rng.uniform(-0.12, 0.12, 3)
    shading = 1 + tilt[0] * across + tilt[1] * along + tilt[2] * across * along
    clean = ndimage.gaussian_filter(signal, (0.6, 0.6, 0)) * shading
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * 3.0
    scale = np.exp(rng.uniform(np.log(2.0), np.log(12.0)))
    magnitude: npt.NDArray[np.int16] = np.rint(scale * np.hypot(clean + real, imaginary)).astype(
        np.int16
    )
    return magnitude
