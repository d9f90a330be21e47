"""How a slice lies: its axes, its place along them, and how it is turned to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Header, Plane

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]  # (H, W)

# By the axis of the normal (LPS), how its plane is shown: along the rows, down the columns.
_SHOWN = {
    2: ((1, 0, 0), (0, 1, 0)),
    1: ((1, 0, 0), (0, 0, -1)),
    0: ((0, 1, 0), (0, 0, -1)),
}

_NORMAL: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Reorientation:
    """How stored rows and columns are turned to lie as their plane is usually shown.

    Axial: rows to posterior, columns to the patient's left; coronal and sagittal: rows to
    inferior, columns to left and to posterior. Thus a prone patient, or a scanner with its own
    mind, does not turn the picture, and a volume's DICOM and NIfTI give the same slices.
    """

    transpose: bool = False
    up_down: bool = False
    left_right: bool = False

    @classmethod
    def of(cls, axes: Floats) -> Reorientation:
        """Return the layout for stored axes (see `orientation`), by the nearest plane."""
        plane = int(np.abs(axes[2]).argmax())
        shown = np.array(_SHOWN[plane], dtype=np.float64)
        fit = axes[:2] @ shown.T  # stored (along, down) against shown (along, down)
        straight = abs(fit[0, 0]) + abs(fit[1, 1])
        crossed = abs(fit[0, 1]) + abs(fit[1, 0])
        transpose = bool(straight < crossed)
        if transpose:
            fit = fit[::-1]
        along = fit[0, 0]
        down = fit[1, 1]
        return cls(transpose, up_down=bool(down < 0), left_right=bool(along < 0))

    def apply(self, pixels: Pixels) -> Pixels:
        """Return stored pixels (H, W) as they are shown."""
        if self.transpose:
            pixels = pixels.T
        if self.up_down:
            pixels = pixels[::-1]
        if self.left_right:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def undo(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Return shown pixels (H, W) as they are stored."""
        pixels = shown
        if self.left_right:
            pixels = pixels[:, ::-1]
        if self.up_down:
            pixels = pixels[::-1]
        if self.transpose:
            pixels = pixels.T
        return np.ascontiguousarray(pixels)

    def axes(self, axes: Floats) -> Floats:
        """Return the axes of the pixels once shown."""
        along, down = axes[[1, 0]] if self.transpose else axes[[0, 1]]
        if self.left_right:
            along = -along
        if self.up_down:
            down = -down
        return np.stack([along, down, np.cross(along, down)])

    def shift(self, axes: Floats, shape: tuple[int, int], spacing: tuple[float, float]) -> Floats:
        """Return the way from the first stored pixel to the first shown one (mm)."""
        height, width = shape
        # What is turned over when shown, by the axis it lies along as stored.
        along_turned = self.up_down if self.transpose else self.left_right
        down_turned = self.left_right if self.transpose else self.up_down
        way = np.zeros(3)
        if down_turned:
            way += axes[1] * (height - 1) * spacing[0]
        if along_turned:
            way += axes[0] * (width - 1) * spacing[1]
        return way


# Beyond this angle (radians, 1 degree) axes are not those of the patient.
OBLIQUE = 0.0175


def shown_axes(header: Header, plane: Plane) -> Floats | None:
    """Return (3, 3): along the rows, down the columns and the normal of a slice, as it is shown.

    They are the patient's (LPS). None where the slice lies askew to these, or does not say how it
    lies. plane: that files of voxels are cut along, whose headers have no axes of their own.
    """
    if header.axes is None:
        if header.position_mm is None or "oblique" in header.flags:
            return None
        return _along(_NORMAL[plane])
    axes = axes_of(header.axes)
    if axes is None:
        return None
    shown = _along(int(np.abs(axes[2]).argmax()))
    askew = np.abs(Reorientation.of(axes).axes(axes) - shown).max()
    return shown if askew <= OBLIQUE else None


def _along(axis: int) -> Floats:
    """Return the axes of a plane as it is shown; axis: that its normal follows."""
    along, down = np.array(_SHOWN[axis], np.float64)
    return np.stack([along, down, np.cross(along, down)])


def axes_of(cosines: Sequence[float]) -> Floats | None:
    """Return (3, 3): along the rows, down the columns, normal, of the six cosines of the first two.

    None where these are none of an orientation.
    """
    along = np.array(cosines[:3])
    down = np.array(cosines[3:])
    normal = np.cross(along, down)
    # Rounded cosines are a little off; what is further off is no orientation.
    axes = []
    for axis in (along, down, normal):
        length = float(np.linalg.norm(axis))
        if not 0.9 < length < 1.1:
            return None
        axes.append(axis / length)
    return np.stack(axes)


def place(
    axes: Floats | None, corner: Floats | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Return a corner's place along the normal, and down and along the slice (mm)."""
    if axes is None or corner is None:
        return None, None
    along = float(axes[0] @ corner)
    down = float(axes[1] @ corner)
    normal = float(axes[2] @ corner)
    return normal, (down, along)


def placed_along(header: Header, reference: tuple[float, ...] | None) -> Header:
    """Return a header with its slice's place along the axes of another that lies all but alike.

    reference: the stored cosines of that one's axes. Far from the origin, the last digits of
    cosines are as much as the distance between slices.
    """
    if header.axes is None or reference is None or header.axes == reference:
        return header
    axes = axes_of(header.axes)
    others = axes_of(reference)
    if axes is None or others is None or header.position_mm is None or header.offset_mm is None:
        return header
    # Both turned as one of them is shown.
    turn = Reorientation.of(axes)
    down, along = header.offset_mm
    corner: Floats = np.linalg.solve(turn.axes(axes), np.array([along, down, header.position_mm]))
    if header.spacing_mm is not None:
        shape = (header.height, header.width)
        spacing = header.spacing_mm
        if turn.transpose:
            shape = shape[::-1]
            spacing = spacing[::-1]
        # The pixel that is shown first lies where the slice's own axes lead to.
        corner += turn.shift(others, shape, spacing) - turn.shift(axes, shape, spacing)
    position, offset = place(turn.axes(others), corner)
    return replace(header, position_mm=position, offset_mm=offset)
