"""DICOM segmentations and structure sets as planes of label values.

A frame of a segmentation is one segment of one plane; a structure set has contours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.annotations import contours
from pipeline.annotations.mask_types import MaskFile, Values
from pipeline.io.formats.dicom_geometry import (
    floats,
    frame_header,
    macro,
    orientation,
)
from pipeline.io.formats.inflate import open_inflated, stream_size
from pipeline.io.formats.limits import as_unreadable, check_size
from pipeline.io.formats.reorientation import Reorientation
from pipeline.types import Header
from stores.errors import UnreadableError

# Segmentation Storage, and Label Map Segmentation Storage (PS3.6).
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
T = TypeVar("T")
# What tells planes apart: the UID of the image a frame was drawn on, and its place.
PlaneKey = tuple[str, str]
Frames = dict[PlaneKey, list[int]]  # plane -> the numbers of its frames


def inspect(path: Path) -> MaskFile:
    """Return what a file holds. Raises UnreadableError."""
    dataset = _read(path, pixels=False)
    if _is_contours(dataset):
        return _guarded(contours.inspect, dataset)
    frames = _guarded(_frames, dataset)
    headers = []
    instances = set()
    for number, ((image, _), members) in enumerate(frames.items()):
        headers.append(_plane_header(dataset, number, image, members))
        if image:
            instances.add(image)
    series = set()
    for referenced in dataset.get("ReferencedSeriesSequence") or ():
        series.add(str(referenced.get("SeriesInstanceUID", "")))
        for instance in referenced.get("ReferencedInstanceSequence") or ():
            instances.add(str(instance.get("ReferencedSOPInstanceUID", "")))
    segments = {
        int(segment.SegmentNumber): str(segment.get("SegmentLabel", ""))
        for segment in dataset.get("SegmentSequence") or ()
    }
    return MaskFile(headers, segments, frozenset(series), frozenset(instances), sparse=True)


def _plane_header(dataset: Dataset, number: int, image: str, members: list[int]) -> Header:
    """Return the header of a plane: where its first frame lies, and the image it is of."""
    return replace(frame_header(dataset, members[0]), frame=number, instance=image or None)


def planes(path: Path, images: Sequence[Header], wanted: Collection[int]) -> Iterator[Values]:
    """Yield the label values (H, W) of each plane, as it is shown. Raises UnreadableError.

    images, wanted: on which slices which structures are drawn, of a structure set.
    """
    dataset = _read(path, pixels=True)
    if _is_contours(dataset):
        yield from _guarded(lambda each: list(contours.planes(each, images, wanted)), dataset)
        return
    frames = _guarded(_frames, dataset)
    try:
        stored = np.asarray(dataset.pixel_array)
    except Exception as error:
        raise as_unreadable(error, "decoding the segmentation") from error
    # A single frame comes without its axis.
    stored = stored.reshape(-1, *stored.shape[-2:])
    for members in frames.values():
        values = _plane_values(dataset, stored, members)
        axes = orientation(dataset, members[0])
        turned: Any = values if axes is None else Reorientation.of(axes).apply(values)
        yield turned


def _plane_values(dataset: Dataset, stored: NDArray[Any], members: list[int]) -> Any:
    """Return the label values (H, W) of a plane, as stored. Raises UnreadableError."""
    values: Any = np.zeros(stored.shape[1:], np.int64)
    for frame in members:
        number = _segment_number(dataset, frame)
        marked = stored[frame].astype(np.int64)
        if number is not None:
            marked = marked * number
        if (values * marked != 0).any():
            raise UnreadableError("unsupported", "has segments that overlap")
        values += marked
    return values


def _read(path: Path, *, pixels: bool) -> Dataset:
    """Return the dataset, which is of a mask and holds what it promises. Raises UnreadableError."""
    try:
        with open_inflated(path) as file:
            stored_bytes = stream_size(file)
            dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
        if _is_contours(dataset):
            return dataset
        if str(dataset.get("SOPClassUID", "")) not in _SEGMENTATIONS:
            raise UnreadableError("unsupported", "is DICOM, and no segmentation")
        if dataset.get("SegmentationType") == "FRACTIONAL":
            raise UnreadableError("unsupported", "is a segmentation of fractions, not of labels")
        _check_limits(dataset, int(dataset.get("NumberOfFrames") or 1), stored_bytes)
    except Exception as error:
        raise as_unreadable(error, "reading the segmentation") from error
    return dataset


def _is_contours(dataset: Dataset) -> bool:
    return str(dataset.get("SOPClassUID", "")) == contours.STRUCTURE_SET


def _frames(dataset: Dataset) -> Frames:
    """Return the frames of each plane of a segmentation."""
    frames: Frames = {}
    for frame in range(int(dataset.get("NumberOfFrames") or 1)):
        frames.setdefault(_plane_key(dataset, frame), []).append(frame)
    return frames


def _guarded(read: Callable[[Dataset], T], dataset: Dataset) -> T:
    """Return what is read of a dataset. Raises UnreadableError where it is not as it should be."""
    try:
        return read(dataset)
    except Exception as error:
        raise as_unreadable(error, "reading the segmentation") from error


def _check_limits(dataset: Dataset, count: int, stored_bytes: int) -> None:
    """Raise UnreadableError where a file promises more than it can hold, coded or decoded."""
    height = int(dataset.Rows)
    width = int(dataset.Columns)
    bits = int(dataset.BitsAllocated)
    check_size(height, width, count, bits / 8, stored_bytes, coded=True)
    # Pixels of one bit become bytes once they are decoded.
    check_size(height, width, count, 1, stored_bytes, coded=False)


def _plane_key(dataset: Dataset, frame: int) -> PlaneKey:
    place = macro(dataset, frame, "PlanePositionSequence")
    corner = floats(place, "ImagePositionPatient", 3)
    image, number = _source(macro(dataset, frame, "DerivationImageSequence"))
    return image, f"{number} {corner}"


def _source(derivation: Dataset) -> tuple[str, str]:
    """Return the UID of the image that a frame was drawn on, and its frame there; "" if unsaid."""
    sources = derivation.get("SourceImageSequence")
    if not sources:
        return "", ""
    frame = sources[0].get("ReferencedFrameNumber") or ""
    return str(sources[0].get("ReferencedSOPInstanceUID", "")), str(frame)


def _segment_number(dataset: Dataset, frame: int) -> int | None:
    """Return the segment that a frame marks; None where its values are the numbers (LABELMAP)."""
    if dataset.get("SegmentationType") == "LABELMAP":
        return None
    identification = macro(dataset, frame, "SegmentIdentificationSequence")
    return int(identification.ReferencedSegmentNumber)
