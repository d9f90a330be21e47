"""What a DICOM header says of the way from stored values to those of the modality, and what is odd.

Slope and intercept are taken each by itself: a file that lacks one, or has one that is no number,
loses nothing of the other. What had to be put in its place, and other scalings that would give
other numbers, become flags; pixels always follow the modality's own scaling (PS3.3 C.11.1).

    rescale-incomplete  a slope or an intercept that is missing, empty, no number, 0 (the slope), or
                        written with a comma; a CT that has neither
    real-world-values   a Real World Value Mapping (C.7.6.16.2.11) that gives other numbers
    private-scaling     Philips' own scale (2005,100E), by which values of several series compare
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_geometry import (
    floats,
    functional_groups,
    groups,
    has_commas,
    text,
)
from pipeline.types import Header

RESCALE_INCOMPLETE = "rescale-incomplete"
REAL_WORLD_VALUES = "real-world-values"
PRIVATE_SCALING = "private-scaling"

# Slopes and intercepts that differ by less than this part are one: writers round them.
_SAME = 1e-4
# Philips' scale slope, and the item of an enhanced file's frame where it stands.
_PHILIPS_SLOPE = (0x2005, 0x100E)
_PHILIPS_FRAME = (0x2005, 0x140F)
# Objects that must have both (PS3.3 C.8.2.1, C.8.15.3.10).
_HOUNSFIELD = frozenset({uid.CTImageStorage, uid.EnhancedCTImageStorage})


@dataclass(frozen=True)
class Rescale:
    """The way of one frame from stored to modality values: value * slope + intercept.

    complete: whether the file says both as the standard has them, or neither and need not.
    """

    slope: float
    intercept: float
    complete: bool


@dataclass(frozen=True)
class _Stated:
    """A number as a file states it: whether the element is there, and the number in it, if any.

    plain: whether it is written as the standard has numbers.
    """

    there: bool
    number: float | None
    plain: bool


def rescale_of(dataset: Dataset, frame: int) -> Rescale:
    """Return a frame's rescale; 1 and 0 stand where the file does not say."""
    sources = list(groups(dataset, frame, "PixelValueTransformationSequence"))
    slope = _stated(sources, "RescaleSlope")
    intercept = _stated(sources, "RescaleIntercept")
    complete = slope.plain and slope.number != 0 and intercept.plain
    if not slope.there and not intercept.there:
        complete = dataset.get("SOPClassUID") not in _HOUNSFIELD
    return Rescale(slope.number or 1.0, intercept.number or 0.0, complete)


def _stated(sources: list[Dataset], name: str) -> _Stated:
    """Return what the first source that has a number says."""
    there = False
    for source in sources:
        if name not in source:
            continue
        there = True
        numbers = floats(source, name)
        if numbers:
            return _Stated(there, numbers[0], plain=not has_commas(source, name))
    return _Stated(there, None, plain=False)


def with_scaling(header: Header, dataset: Dataset) -> Header:
    """Return a frame's header with what is odd about the scaling of its values as flags."""
    flags = tuple(_oddities(dataset, header.frame))
    return replace(header, flags=(*header.flags, *flags)) if flags else header


def _oddities(dataset: Dataset, frame: int) -> Iterator[str]:
    has_table = modality_table(dataset) is not None
    rescale = rescale_of(dataset, frame)
    if not has_table and not rescale.complete:
        yield RESCALE_INCOMPLETE
    mappings = list(_mappings(dataset, frame))
    if mappings and not any(_is_same(mapping, rescale) for mapping in mappings):
        yield REAL_WORLD_VALUES
    private = _philips_slope(dataset, frame)
    # C.11.1 of the standard and Philips' floating point value, (stored * slope + intercept) /
    # (slope * scale), are the same where slope * scale is 1 (PMC3998685).
    if private and not math.isclose(private * rescale.slope, 1, rel_tol=_SAME):
        yield PRIVATE_SCALING


def modality_table(dataset: Dataset) -> Dataset | None:
    """Return a file's modality LUT; None where it has none, or an item without a table in it.

    The item's elements are of type 1C: one that has none transforms nothing.
    """
    sequence: Any = dataset.get("ModalityLUTSequence")
    if not sequence:
        return None
    item: Dataset = sequence[0]
    is_empty = item.get("LUTDescriptor") is None and item.get("LUTData") is None
    return None if is_empty else item


def _mappings(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yield the Real World Value Mappings of a frame."""
    for source in (*functional_groups(dataset, frame), dataset):
        yield from source.get("RealWorldValueMappingSequence") or ()


def _is_same(mapping: Dataset, rescale: Rescale) -> bool:
    """Return whether a mapping gives the numbers of the rescale."""
    slope = floats(mapping, "RealWorldValueSlope")
    intercept = floats(mapping, "RealWorldValueIntercept")
    if slope is None or intercept is None:
        return False  # a table
    same_slope = math.isclose(slope[0], rescale.slope, rel_tol=_SAME)
    same_intercept = math.isclose(
        intercept[0], rescale.intercept, rel_tol=_SAME, abs_tol=_SAME * abs(rescale.slope)
    )
    return same_slope and same_intercept


def _philips_slope(dataset: Dataset, frame: int) -> float | None:
    """Return Philips' private scale slope of a frame, None where there is none."""
    if not (text(dataset, "Manufacturer") or "").lower().startswith("philips"):
        return None
    for source in _philips_sources(dataset, frame):
        element = source.get(_PHILIPS_SLOPE)
        value: Any = element.value if element else None
        if isinstance(value, bytes) and len(value) == 4:  # where its type was lost
            value = struct.unpack("<f", value)[0]
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _philips_sources(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yield where Philips' private elements of a frame may stand."""
    frames: Any = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if frame < len(frames):
        element = frames[frame].get(_PHILIPS_FRAME)
        if element and element.VR == "SQ":
            yield from element.value
    yield dataset
