"""Shapes that the phantoms are painted with: ellipses, bands and branching lines.

Distances are positive inside a shape and negative outside it, in the units of its coordinates.
Every operation keeps its order and its type: another order rounds otherwise, and the files of a
collection would no longer be the same bytes.
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


def fill(image: Array, distance: Array, soft: float, value: Array | float) -> None:
    """Blend `value` into `image`, in place, inside a shape whose edge is 2 `soft` wide."""
    paint(image, inside(distance, soft), value)


def turn(u: Array, v: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates turned by an angle in radians."""
    cos = np.float32(np.cos(angle))
    sin = np.float32(np.sin(angle))
    return cos * u + sin * v, cos * v - sin * u


def ellipse(
    u: Array,
    v: Array,
    a: float,
    b: float,
    angle: float = 0.0,
    power: float = 2.0,
) -> Array:
    """Approximate distance into an ellipse about 0 with half-axes a, b; above 2 is boxier."""
    a = max(a, 1e-3)
    b = max(b, 1e-3)
    if angle:
        u, v = turn(u, v, angle)
    if power == 2.0:
        reach = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    else:
        powers = np.abs(u / a) ** power + np.abs(v / b) ** power
        reach = powers ** (1 / power)
    distance: Array = (1 - reach) * min(a, b)
    return distance


def join(first: Array, second: Array, soft: float) -> Array:
    """Distance into the union of two shapes, the notch between them filled over `soft`."""
    # The smooth maximum of Inigo Quilez: a polynomial in how far one exceeds the other.
    share = np.clip(0.5 + 0.5 * (first - second) / soft, 0, 1)
    return second + share * (first - second) + soft * share * (1 - share)


def wave(phase: Array, period: float) -> Array:
    """Signed distance to the nearest multiple of `period`."""
    return phase - period * np.round(phase / period)


def tube(distance: Array, radius: float) -> Array:
    """Shadow of a hollow bone, 0 to 1: its walls are denser than its core."""
    wall = 0.6 + 0.4 * (distance / radius) ** 2
    return inside(radius - np.abs(distance), 0.012) * wall


def nearest(u: Array, v: Array) -> tuple[int, int]:
    """Row and column of the pixel nearest to u = v = 0."""
    row, column = np.unravel_index(np.argmin(u * u + v * v), u.shape)
    return int(row), int(column)


def fan(
    rng: np.random.Generator,
    place: tuple[int, int],
    sign: int,
    count: int,
) -> list[Root]:
    """Roots at one (row, column) that point to image right (sign 1) or left (sign -1)."""
    row, column = place
    middle = 0.0 if sign > 0 else np.pi
    bends = rng.uniform(-1.5, 1.5, count)
    return [(column, row, middle + float(bend)) for bend in bends]


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
        thickness = max(round(width * 0.66**order), 1)
        twigs: list[Root] = []
        for column, row, angle in roots:
            step = length * 0.82**order * rng.uniform(0.7, 1.2)
            end_column = column + step * np.cos(angle)
            end_row = row + step * np.sin(angle)
            pen.line(
                [(column, row), (end_column, end_row)],
                fill=shade,
                width=thickness,
            )
            for bend in rng.normal(0, 0.45, 2):
                twigs.append((end_column, end_row, angle + float(bend)))
        roots = twigs
    return np.asarray(canvas, np.float32) / 255
