"""Shapes that the phantoms are painted with: ellipses, bands and branching lines.

Distances are positive inside a shape and negative outside it, in the units of its coordinates.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.floating[Any]]  # float32 wherever it is big
Mask = npt.NDArray[np.uint8]
Root = tuple[float, float, float]  # column, row, angle


def inside(distance: Array, soft: float) -> Array:
    """Cover of a shape, 0 to 1, from the distance into it; the edge is 2 `soft` wide."""
    cover: Array = np.clip(distance / (2 * soft) + 0.5, 0, 1)
    return cover


def paint(image: Array, cover: Array, value: Array | float) -> None:
    """Blend `value` into `image`, in place, where `cover` is above 0."""
    image += cover * (value - image)


def turn(u: Array, v: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates turned by an angle in radians."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * u + sin * v, cos * v - sin * u


def ellipse(
    u: Array, v: Array, a: float, b: float, angle: float = 0.0, power: float = 2.0
) -> Array:
    """Approximate distance into an ellipse about 0 with half-axes a, b; above 2 is boxier."""
    a, b = max(a, 1e-3), max(b, 1e-3)
    if angle:
        u, v = turn(u, v, angle)
    if power == 2.0:
        return (1 - np.sqrt((u / a) ** 2 + (v / b) ** 2)) * min(a, b)
    reach: Array = (np.abs(u / a) ** power + np.abs(v / b) ** power) ** (1 / power)
    return (1 - reach) * min(a, b)


def join(first: Array, second: Array, soft: float) -> Array:
    """Distance into the union of two shapes, the notch between them filled over `soft`."""
    share = np.clip(0.5 + 0.5 * (first - second) / soft, 0, 1)
    return second + share * (first - second) + soft * share * (1 - share)


def wave(phase: Array, period: float) -> Array:
    """Signed distance to the nearest multiple of `period`."""
    return phase - period * np.round(phase / period)


def tube(distance: Array, radius: float) -> Array:
    """Shadow of a hollow bone, 0 to 1: its walls are denser than its core."""
    return inside(radius - np.abs(distance), 0.012) * (0.6 + 0.4 * (distance / radius) ** 2)


def nearest(u: Array, v: Array) -> tuple[int, int]:
    """Row and column of the pixel nearest to u = v = 0."""
    row, column = np.unravel_index(np.argmin(u * u + v * v), u.shape)
    return int(row), int(column)


def fan(rng: np.random.Generator, place: tuple[int, int], sign: int, count: int) -> list[Root]:
    """Roots at one (row, column) that point to image right (sign 1) or left (sign -1)."""
    row, column = place
    middle = 0.0 if sign > 0 else np.pi
    return [(column, row, middle + float(bend)) for bend in rng.uniform(-1.5, 1.5, count)]


def branches(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    roots: list[Root],
    length: float,
    width: float,
    depth: int = 5,
) -> Array:
    """Draw trees of ever finer lines, in pixels, from their roots: (H, W) within 0 to 1."""
    canvas = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    for order in range(depth):
        shade = int(255 * 0.80**order)
        twigs: list[Root] = []
        for column, row, angle in roots:
            step = length * 0.82**order * rng.uniform(0.7, 1.2)
            end = (column + step * np.cos(angle), row + step * np.sin(angle))
            pen.line([(column, row), end], fill=shade, width=max(round(width * 0.66**order), 1))
            twigs += [(*end, angle + float(bend)) for bend in rng.normal(0, 0.45, 2)]
        roots = twigs
    return np.asarray(canvas, np.float32) / 255
