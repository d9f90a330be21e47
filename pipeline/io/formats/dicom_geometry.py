"""What a DICOM header says of one frame: whose it is, where and when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from pipeline.io.formats.dicom_classes import SECONDARY_CAPTURE, capture_flags
from pipeline.io.formats.localizers import LOCALIZER
from pipeline.io.formats.reorientation import Floats, Reorientation, axes_of, place
from pipeline.types import Header

_PER_FRAME = BaseTag(0x52009230)
_SHARED = BaseTag(0x52009229)
# Gantry tilt from which the header's own word is believed (degrees).
_TILTED = 0.05


def functional_groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yield the functional groups of a frame: its own, then those of all frames (C.7.6.16)."""
    for tag, name, index in (
        (_PER_FRAME, "PerFrameFunctionalGroupsSequence", frame),
        (_SHARED, "SharedFunctionalGroupsSequence", 0),
    ):
        # Most files have neither, and a look by tag takes a tenth of one by keyword.
        if tag not in dataset:
            continue
        sequence = dataset.get(name)
        if sequence is not None and index < len(sequence):
            yield sequence[index]


def groups(dataset: Dataset, frame: int, name: str) -> Iterator[Dataset]:
    """Yield what may speak of a frame: its functional group `name`, the shared one, the file."""
    for each in functional_groups(dataset, frame):
        group = each.get(name)
        if group:
            yield group[0]
    yield dataset


def macro(dataset: Dataset, frame: int, name: str) -> Dataset:
    """Return what a frame's functional group `name` says: its own, the shared one, or the file."""
    return next(groups(dataset, frame, name))


def floats(dataset: Dataset, name: str, count: int = 1) -> tuple[float, ...] | None:
    """Return the first `count` values of an element, or None where it has not that many finite.

    A comma in the place of the point is read as one: programs write it where a country does.
    """
    try:
        numbers = tuple(map(_number, _values(dataset, name)[:count]))
    except (ValueError, TypeError, OverflowError):
        return None
    if len(numbers) < count or not all(map(math.isfinite, numbers)):
        return None
    return numbers


def has_commas(dataset: Dataset, name: str) -> bool:
    """Return whether a number of an element has a comma in the place of the point."""
    return any(isinstance(value, str) and "," in value for value in _values(dataset, name))


def _values(dataset: Dataset, name: str) -> list[Any]:
    """Return the values of an element, none where it is absent, empty or contradicts its type."""
    try:
        value: Any = dataset.get(name)
        if value is None or value == "":
            return []
        return [value] if isinstance(value, (str, int, float)) else list(value)
    except (ValueError, TypeError, OverflowError, AttributeError):
        return []


def _number(value: Any) -> float:
    # What is no number stays text, as pydicom reads it here.
    return float(value.replace(",", ".")) if type(value) is str else float(value)


def positive(dataset: Dataset, name: str, count: int = 1) -> tuple[float, ...] | None:
    """Return `floats` of a distance, None where one is 0 or less (PS3.3 10.7.1.3)."""
    numbers = floats(dataset, name, count)
    return numbers if numbers and min(numbers) > 0 else None


def text(dataset: Dataset, name: str) -> str | None:
    """Return an element as text, None where it is absent or empty."""
    try:
        value = dataset.get(name)
    except (ValueError, TypeError, NotImplementedError):
        return None
    if value is None:
        return None
    return str(value).strip() or None


def frame_header(
    dataset: Dataset,
    frame: int,
    shape: tuple[int, int] | None = None,
    corner: Floats | None = None,
) -> Header:
    """Return the header of one frame of a file that has passed the checks, laid as it is shown.

    shape and corner (height, width; x, y, z): of a mosaic's tile, where the file speaks of all.
    """
    height, width = shape or (int(dataset.Rows), int(dataset.Columns))
    spacing = pixel_spacing(dataset, frame)
    axes = orientation(dataset, frame)
    if corner is None:
        corner = _corner(dataset, frame)
    # As stored: a volume is told apart by what its own files say.
    stored_axes = None
    if axes is not None:
        stored_axes = tuple(map(float, axes[:2].ravel()))
    if axes is not None:
        turn = Reorientation.of(axes)
        # The first shown pixel is another than the first stored one, and lies elsewhere.
        if corner is not None and spacing is not None:
            corner = corner + turn.shift(axes, (height, width), spacing)
        axes = turn.axes(axes)
        if turn.transpose:
            height, width = width, height
            spacing = spacing and (spacing[1], spacing[0])
    position, offset = place(axes, corner)
    kind = image_type(dataset, frame)
    oddities = _flags(dataset, kind)
    return Header(
        frame=frame,
        modality=text(dataset, "Modality"),
        height=height,
        width=width,
        patient=text(dataset, "PatientID"),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        instance=text(dataset, "SOPInstanceUID"),
        volume=_volume(dataset, frame, kind, is_capture=SECONDARY_CAPTURE in oddities),
        axes=stored_axes,
        echo_ms=_echo(dataset, frame),
        position_mm=position,
        offset_mm=offset,
        spacing_mm=spacing,
        flags=oddities,
    )


def _corner(dataset: Dataset, frame: int) -> Floats | None:
    """Return where a frame's first stored pixel lies (x, y, z; mm), None where unknown."""
    plane = macro(dataset, frame, "PlanePositionSequence")
    position = floats(plane, "ImagePositionPatient", 3)
    return np.array(position) if position else None


def pixel_spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the distance of rows and of columns (mm); at the detector for projections."""
    measures = macro(dataset, frame, "PixelMeasuresSequence")
    spacing = positive(measures, "PixelSpacing", 2) or positive(dataset, "ImagerPixelSpacing", 2)
    return (spacing[0], spacing[1]) if spacing else None


def orientation(dataset: Dataset, frame: int) -> Floats | None:
    """Return (3, 3): along the rows, down the columns, normal; None where unknown."""
    plane = macro(dataset, frame, "PlaneOrientationSequence")
    cosines = floats(plane, "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    return axes_of(cosines)


def _flags(dataset: Dataset, kind: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the header itself says is unusual: localizers, saved screens, tilted gantries.

    kind: the frame's image type.
    """
    oddities = capture_flags(dataset, kind)
    if "LOCALIZER" in kind:
        oddities.append(LOCALIZER)
    tilt = floats(dataset, "GantryDetectorTilt")
    if tilt is not None and abs(tilt[0]) > _TILTED:
        oddities.append("gantry-tilt")
    return tuple(oddities)


def image_type(dataset: Dataset, frame: int) -> tuple[str, ...]:
    """Return the frame's image type, of its own where the file is multi-frame."""
    for name in ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
        frame_type = macro(dataset, frame, name).get("FrameType")
        if frame_type:
            return tuple(map(str, frame_type))
    value = dataset.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _volume(dataset: Dataset, frame: int, kind: tuple[str, ...], *, is_capture: bool) -> str:
    """Return a text that differs between slices that cannot be of one volume.

    kind: the frame's image type; is_capture: whether it is a saved screen.
    """
    content = macro(dataset, frame, "FrameContentSequence")
    parts = (
        f"{dataset.Rows}x{dataset.Columns}",
        text(content, "StackID") or "",
        # What is shown. Further values are the maker's own (PS3.3 C.8.2.1.1.1).
        "/".join(kind[2:3]),
        # A saved screen among slices is none of them, even where it bears their place.
        SECONDARY_CAPTURE if is_capture else "",
    )
    return "|".join(parts)


def _echo(dataset: Dataset, frame: int) -> float | None:
    """Return a frame's echo time (ms), None where unknown."""
    echo = macro(dataset, frame, "MREchoSequence")
    times = floats(echo, "EffectiveEchoTime") or floats(dataset, "EchoTime")
    return times[0] if times else None
