"""What a DICOM header says of one frame: whose it is, where and when. Private to `_dicom`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.types import Header

# Gantry tilt from which the header's own word is believed (degrees).
_TILTED = 0.5
# By the axis of the normal (LPS), how its plane is shown: along the rows, down the columns.
_SHOWN = {2: ((1, 0, 0), (0, 1, 0)), 1: ((1, 0, 0), (0, 0, -1)), 0: ((0, 1, 0), (0, 0, -1))}


def macro(dataset: Dataset, frame: int, name: str) -> Dataset:
    """Return what a frame's functional group `name` says: its own, the shared one, or the file."""
    for groups, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        sequence = dataset.get(groups)
        if sequence is not None and index < len(sequence):
            inner = sequence[index].get(name)
            if inner:
                found: Dataset = inner[0]
                return found
    return dataset


def floats(dataset: Dataset, name: str, count: int = 1) -> tuple[float, ...] | None:
    """Return the first `count` values of an element, or None where it has not that many finite."""
    try:
        value: Any = dataset.get(name)
        if value is None or value == "":
            return None
        values = [value] if isinstance(value, (str, int, float)) else list(value)
        numbers = tuple(float(number) for number in values[:count])
    except (ValueError, TypeError, OverflowError, AttributeError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def text(dataset: Dataset, name: str) -> str | None:
    """Return an element as text, None where it is absent or empty."""
    try:
        value = dataset.get(name)
    except (ValueError, TypeError, NotImplementedError):
        return None
    return str(value).strip() or None if value is not None else None


def frame_header(
    dataset: Dataset,
    frame: int,
    shape: tuple[int, int] | None = None,
    corner: NDArray[np.float64] | None = None,
) -> Header:
    """Return the header of one frame of a file that has passed the checks, laid as it is shown.

    shape and corner (height, width; x, y, z): of a mosaic's tile, where the file speaks of all.
    """
    height, width = shape or (int(dataset.Rows), int(dataset.Columns))
    spacing = pixel_spacing(dataset, frame)
    axes = orientation(dataset, frame)
    found = floats(macro(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    corner = np.array(found) if corner is None and found else corner
    volume = _volume(dataset, frame, axes)
    if axes is not None:
        layout = Reorientation.of(axes)
        if corner is not None and spacing is not None:
            corner = corner + layout.shift(axes, (height, width), spacing)
        axes = layout.axes(axes)
        height, width = (width, height) if layout.transpose else (height, width)
        spacing = spacing[::-1] if spacing and layout.transpose else spacing
    position, offset = place(axes, corner)
    return Header(
        frame=frame,
        modality=text(dataset, "Modality"),
        height=height,
        width=width,
        patient=text(dataset, "PatientID"),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        instance=text(dataset, "SOPInstanceUID"),
        volume=volume,
        order=_order(dataset, frame),
        position_mm=position,
        offset_mm=offset,
        spacing_mm=spacing,
        flags=flags(dataset, frame),
    )


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
    def of(cls, axes: NDArray[np.float64]) -> Reorientation:
        """Return the layout for stored axes (see `orientation`), by the nearest plane."""
        shown = np.array(_SHOWN[int(np.abs(axes[2]).argmax())], dtype=np.float64)
        fit = axes[:2] @ shown.T  # stored (along, down) against shown (along, down)
        transpose = abs(fit[0, 0]) + abs(fit[1, 1]) < abs(fit[0, 1]) + abs(fit[1, 0])
        fit = fit[::-1] if transpose else fit
        return cls(bool(transpose), bool(fit[1, 1] < 0), bool(fit[0, 0] < 0))

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return stored pixels (H, W) as they are shown."""
        pixels = pixels.T if self.transpose else pixels
        pixels = pixels[::-1] if self.up_down else pixels
        return np.ascontiguousarray(pixels[:, ::-1] if self.left_right else pixels)

    def undo(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Return shown pixels (H, W) as they are stored."""
        pixels = shown[:, ::-1] if self.left_right else shown
        pixels = pixels[::-1] if self.up_down else pixels
        return np.ascontiguousarray(pixels.T if self.transpose else pixels)

    def axes(self, axes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the axes of the pixels once shown."""
        along, down = axes[[1, 0]] if self.transpose else axes[[0, 1]]
        along, down = -along if self.left_right else along, -down if self.up_down else down
        return np.stack([along, down, np.cross(along, down)])

    def shift(
        self, axes: NDArray[np.float64], shape: tuple[int, int], spacing: tuple[float, float]
    ) -> NDArray[np.float64]:
        """Return the way from the first stored pixel to the first shown one (mm)."""
        height, width = shape
        stored_down, stored_along = self.up_down, self.left_right
        if self.transpose:
            stored_down, stored_along = stored_along, stored_down
        way = np.zeros(3)
        if stored_down:
            way += axes[1] * (height - 1) * spacing[0]
        if stored_along:
            way += axes[0] * (width - 1) * spacing[1]
        return way


def pixel_spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the distance of rows and of columns (mm); at the detector for projections."""
    measures = macro(dataset, frame, "PixelMeasuresSequence")
    found = floats(measures, "PixelSpacing", 2) or floats(dataset, "ImagerPixelSpacing", 2)
    return (found[0], found[1]) if found else None


def orientation(dataset: Dataset, frame: int) -> NDArray[np.float64] | None:
    """Return (3, 3): along the rows, down the columns, normal; None where unknown."""
    cosines = floats(
        macro(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
    )
    if cosines is None:
        return None
    along, down = np.array(cosines[:3]), np.array(cosines[3:])
    normal = np.cross(along, down)
    lengths = [float(np.linalg.norm(axis)) for axis in (along, down, normal)]
    if not all(0.9 < length < 1.1 for length in lengths):
        return None
    return np.stack([along / lengths[0], down / lengths[1], normal / lengths[2]])


def place(
    axes: NDArray[np.float64] | None, corner: NDArray[np.float64] | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Return a corner's place along the normal, and down and along the slice (mm)."""
    if axes is None or corner is None:
        return None, None
    along, down, normal = (float(axis @ corner) for axis in axes)
    return normal, (down, along)


def flags(dataset: Dataset, frame: int) -> tuple[str, ...]:
    """Return what the header itself says is unusual: a localizer, a tilted gantry."""
    found = []
    if "LOCALIZER" in image_type(dataset, frame):
        found.append("localizer")
    tilt = floats(dataset, "GantryDetectorTilt")
    if tilt is not None and abs(tilt[0]) > _TILTED:
        found.append("gantry-tilt")
    return tuple(found)


def image_type(dataset: Dataset, frame: int) -> tuple[str, ...]:
    """Return the frame's image type, of its own where the file is multi-frame."""
    for name in ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
        own = macro(dataset, frame, name).get("FrameType")
        if own:
            return tuple(map(str, own))
    value = dataset.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _volume(dataset: Dataset, frame: int, axes: NDArray[np.float64] | None) -> str:
    """Return a text that differs between slices that cannot be of one volume."""
    content = macro(dataset, frame, "FrameContentSequence")
    turned = "" if axes is None else " ".join(f"{value:.2f}" for value in axes[:2].ravel() + 0.0)
    echo = macro(dataset, frame, "MREchoSequence")
    parts = (
        f"{dataset.Rows}x{dataset.Columns}",
        turned,
        text(echo, "EffectiveEchoTime") or text(dataset, "EchoTime") or "",
        text(content, "StackID") or "",
        "/".join(image_type(dataset, frame)[2:]),
    )
    return "|".join(parts)


def _order(dataset: Dataset, frame: int) -> tuple[float, ...]:
    """Return what sorts the slices of one place in time, the plainest first."""
    content = macro(dataset, frame, "FrameContentSequence")
    keys = (
        floats(content, "TemporalPositionIndex") or floats(dataset, "TemporalPositionIdentifier"),
        floats(dataset, "AcquisitionNumber"),
        floats(dataset, "TriggerTime"),
        floats(dataset, "InstanceNumber"),
    )
    return (*(key[0] if key else 0.0 for key in keys), float(frame))
