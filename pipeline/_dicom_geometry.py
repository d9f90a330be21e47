"""What a DICOM header says of one frame: whose it is, where and when. Private to `_dicom`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.types import Header

# Gantry tilt from which the header's own word is believed (degrees).
_TILTED = 0.5


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


def frame_header(dataset: Dataset, frame: int) -> Header:
    """Return the header of one frame of a file that has passed the checks."""
    measures = macro(dataset, frame, "PixelMeasuresSequence")
    spacing = floats(measures, "PixelSpacing", 2) or floats(dataset, "ImagerPixelSpacing", 2)
    axes = orientation(dataset, frame)
    corner = floats(macro(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    position, offset = place(axes, corner)
    instance = text(dataset, "SOPInstanceUID")
    return Header(
        frame=frame,
        modality=text(dataset, "Modality"),
        height=int(dataset.Rows),
        width=int(dataset.Columns),
        patient=text(dataset, "PatientID"),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        instance=instance,
        volume=_volume(dataset, frame, axes),
        order=_order(dataset, frame),
        position_mm=position,
        offset_mm=offset,
        spacing_mm=(spacing[0], spacing[1]) if spacing else None,
        flags=flags(dataset, frame),
    )


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
    axes: NDArray[np.float64] | None, corner: tuple[float, ...] | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Return a corner's place along the normal, and down and along the slice (mm)."""
    if axes is None or corner is None:
        return None, None
    along, down, normal = (float(axis @ np.array(corner)) for axis in axes)
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
