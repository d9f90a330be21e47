"""From the slices of a volume to what a 3D network sees: pure functions, one a step.

stacked to right, anterior, superior -> cropped -> the network's axes -> resampled -> intensity ->
squeezed, padded or cut into windows. Dims: n slices; X, Y, Z voxels of a volume along its axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from pipeline.recipe import VolumeInput
from pipeline.types import Plane

Voxels = NDArray[np.float32]
# Axis of a volume in RAS that a letter names, and whether it leads the other way.
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Volume:
    """A volume (X, Y, Z) whose axes lead to the patient's right, anterior and superior.

    spacing_mm: of its voxels along these; None where files do not tell. is_ct: values are HU.
    """

    voxels: Voxels
    spacing_mm: tuple[float, float, float] | None
    is_ct: bool


def stacked(
    slices: Sequence[NDArray[Any]],
    plane: Plane,
    in_plane_mm: tuple[float, float] | None,
    step_mm: float,
    *,
    is_ct: bool,
) -> Volume:
    """Return slices (H, W), as they are shown and in the order of their positions, as a volume.

    How slices of a plane are shown, and where their normal leads, `io.formats.reorientation` says.
    in_plane_mm: down and along a slice; step_mm: from slice to slice. What pads (NaN) is air in a
    CT, else the least value.
    """
    stack = np.empty((len(slices), *slices[0].shape), np.float32)
    for i, pixels in enumerate(slices):
        stack[i] = pixels
    pads = np.isnan(stack)
    if pads.any():
        stack[pads] = -1024.0 if is_ct else np.nanmin(stack)
    down, along = in_plane_mm or (0.0, 0.0)
    match plane:
        case "axial":
            voxels = stack[:, ::-1, ::-1].transpose(2, 1, 0)
            spacing = (along, down, step_mm)
        case "coronal":
            voxels = stack[::-1, ::-1, ::-1].transpose(2, 0, 1)
            spacing = (along, step_mm, down)
        case "sagittal":
            voxels = stack[:, ::-1, ::-1].transpose(0, 2, 1)
            spacing = (step_mm, along, down)
        case _:
            assert_never(plane)
    return Volume(voxels, spacing if in_plane_mm else None, is_ct)


def as_shown(voxels: Tensor, plane: Plane) -> Tensor:
    """Return the slices (n, H, W) of a volume (X, Y, Z) in RAS along a plane, as they are shown.

    In the order of their positions: what `stacked` makes a volume of.
    """
    match plane:
        case "axial":
            return voxels.permute(2, 1, 0).flip(1, 2)
        case "coronal":
            return voxels.permute(1, 2, 0).flip(0, 1, 2)
        case "sagittal":
            return voxels.permute(0, 2, 1).flip(1, 2)
        case _:
            assert_never(plane)


def network_input(volume: Volume, how: VolumeInput) -> Iterator[Tensor]:
    """Yield what a network sees of a volume, (1, 1, *how.size) float32 in [0, 1]: one, or windows.

    Where it is shrunk at most, fewer voxels stay as they are. Its spacing must be known where it is
    to be resampled.
    """
    low, high = _ends(volume, how)
    voxels = volume.voxels
    if how.crop_above is not None:
        voxels = _cropped(voxels, how.crop_above)
    voxels = _turned(voxels, how.axes)
    if how.spacing_mm is not None:
        assert volume.spacing_mm is not None
        spacing = [volume.spacing_mm[_AXES[letter][0]] for letter in how.axes]
        voxels = _resampled(voxels, spacing, how.spacing_mm)
    x = torch.from_numpy(np.ascontiguousarray(voxels))
    match how.fit:
        case "resize":
            x = functional.interpolate(x[None, None], size=how.size, mode="area")[0, 0]
            yield _scaled(x, low, high)[None, None]
        case "shrink":
            size = tuple(min(n, most) for n, most in zip(x.shape, how.size, strict=True))
            x = functional.interpolate(x[None, None], size=size, mode="area")
            yield _scaled(x, low, high)
        case "pad":
            yield _centred(_scaled(x, low, high), how.size)[None, None]
        case "windows":
            x = _padded(_scaled(x, low, high), how.size)
            for start in window_starts(x.shape, how.size, how.overlap):
                window = tuple(slice(a, a + side) for a, side in zip(start, how.size, strict=True))
                yield x[window][None, None].contiguous()
        case _:
            assert_never(how.fit)


def window_starts(
    shape: Sequence[int], size: Sequence[int], overlap: float
) -> Iterator[tuple[int, ...]]:
    """Yield where windows of a size begin that cover a volume, the last ones at its ends."""
    along = []
    for length, side in zip(shape, size, strict=True):
        step = max(1, int(side * (1 - overlap)))
        last = length - side
        along.append(sorted({*range(0, last, step), last}))
    yield from itertools.product(*along)


def _ends(volume: Volume, how: VolumeInput) -> tuple[float, float]:
    """Return the values that become 0 and 1."""
    if volume.is_ct:
        return how.window
    low, high = np.percentile(volume.voxels, how.percentiles).tolist()
    return low, high if high > low else low + 1.0  # of a constant volume


def _scaled(x: Tensor, low: float, high: float) -> Tensor:
    return ((x - low) / (high - low)).clamp(0.0, 1.0)


def _cropped(voxels: Voxels, above: float) -> Voxels:
    """Return the box of all voxels above a value; all of it where none is."""
    inside = voxels > above
    if not inside.any():
        return voxels
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(inside.any(axis=others))
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return voxels[tuple(box)]


def _turned(voxels: Voxels, axes: str) -> Voxels:
    """Return a volume in RAS along other axes."""
    order = [_AXES[letter][0] for letter in axes]
    step = tuple(slice(None, None, _AXES[letter][1]) for letter in axes)
    return voxels.transpose(order)[step]


def _resampled(voxels: Voxels, spacing: Sequence[float], to: Sequence[float]) -> Voxels:
    """Return a volume of other voxels: linear between old ones, the first at the same place."""
    ratio = np.array(to) / np.array(spacing)
    shape = [
        int(np.round((length - 1) / part + 1))
        for length, part in zip(voxels.shape, ratio.tolist(), strict=True)
    ]
    resampled: Voxels = ndimage.affine_transform(
        voxels, ratio, output_shape=tuple(shape), order=1, mode="nearest", prefilter=False
    )
    return resampled


def _padded(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a volume of at least a size, zeros about it."""
    pads: list[int] = []
    for side, length in zip(reversed(size), reversed(x.shape), strict=True):  # the last axis first
        lacking = max(side - length, 0)
        pads += [lacking // 2, lacking - lacking // 2]
    return functional.pad(x, pads)


def _centred(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the middle of a volume, padded to a size."""
    x = _padded(x, size)
    middle = []
    for length, side in zip(x.shape, size, strict=True):
        start = length // 2 - side // 2
        middle.append(slice(start, start + side))
    return x[tuple(middle)]
