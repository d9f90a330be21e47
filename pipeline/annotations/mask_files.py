"""Masks: NIfTI, DICOM segmentations, PNG, TIFF, BMP, .npy and .mat, as planes of label values.

Planes lie as the slices of the same file, or of the images they were drawn on, are shown. Values
are the file's own whole numbers: the indices of a palette, not its colours; the numbers of DICOM
segments. JPEG is refused, since it alters values.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.io.decode import read_headers, read_slices
from pipeline.io.formats.limits import as_unreadable, check_size
from pipeline.io.sniff import sniff
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

Values = NDArray[np.int64]
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


@dataclass(frozen=True)
class MaskFile:
    """What a mask file holds, known without decoding it: a header a plane.

    Of a DICOM segmentation: segments (number -> label), the UIDs of the series and instances it is
    of, and, in the header of each plane, that of its own image. sparse: a slice that has no plane
    is background.
    """

    headers: list[Header]
    segments: dict[int, str] = field(default_factory=dict)
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    sparse: bool = False


def inspect(path: Path, plane: Plane) -> MaskFile:
    """Return what a file holds. Raises UnreadableError."""
    if sniff(path) == "dicom":
        return _inspect_segmentation(path)
    return MaskFile(read_headers(path, plane))


def planes(path: Path, plane: Plane) -> Iterator[Values]:
    """Yield the label values (H, W) of each plane, as `inspect` lists them.

    Raises UnreadableError, also for values that are no whole numbers.
    """
    kind = sniff(path)
    if kind == "dicom":
        yield from _segmentation_planes(path)
    elif kind == "raster":
        yield from _raster_planes(path)
    else:
        frames = range(len(read_headers(path, plane)))
        for item in read_slices(path, frames, plane):
            yield _whole(item)


def _whole(item: Slice | Failure) -> Values:
    if isinstance(item, Failure):
        raise UnreadableError(item.reason, item.detail)
    values = item.pixels
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise UnreadableError("corrupt", "holds values that are no whole numbers: no mask")
    return values.astype(np.int64)


# --- pictures ----------------------------------------------------------------------------------


def _raster_planes(path: Path) -> Iterator[Values]:
    from PIL import Image, ImageOps

    pages = len(read_headers(path))  # held against the limits there
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=("PNG", "TIFF", "BMP")) as image:
                for page in range(pages):
                    image.seek(page)
                    found.append(_indices(np.asarray(ImageOps.exif_transpose(image))))
        except Exception as error:
            raise as_unreadable(error, "decoding the picture") from error
    yield from found


def _indices(values: NDArray[Any]) -> Values:
    """Return label values (H, W); colours whose channels are equal are one value."""
    if values.ndim == 3:
        opaque = values[..., :-1] if values.shape[2] in (2, 4) else values
        if (opaque != opaque[..., :1]).any():
            raise UnreadableError(
                "unsupported", "a coloured picture: save label values as grey or as a palette"
            )
        values = opaque[..., 0]
    return values.astype(np.int64)


# --- DICOM segmentations -----------------------------------------------------------------------


def _inspect_segmentation(path: Path) -> MaskFile:
    dataset, frames = _open_segmentation(path, pixels=False)
    from pipeline.io.formats.dicom_geometry import frame_header

    headers = [
        replace(frame_header(dataset, members[0]), frame=number, instance=key[0] or None)
        for number, (key, members) in enumerate(frames.items())
    ]
    series, instances = set(), {key[0] for key in frames if key[0]}
    for each in dataset.get("ReferencedSeriesSequence") or ():
        series.add(str(each.get("SeriesInstanceUID", "")))
        for one in each.get("ReferencedInstanceSequence") or ():
            instances.add(str(one.get("ReferencedSOPInstanceUID", "")))
    segments = {
        int(each.SegmentNumber): str(each.get("SegmentLabel", ""))
        for each in dataset.get("SegmentSequence") or ()
    }
    return MaskFile(headers, segments, frozenset(series), frozenset(instances), sparse=True)


def _segmentation_planes(path: Path) -> Iterator[Values]:
    from pipeline.io.formats.dicom_geometry import Reorientation, orientation

    dataset, frames = _open_segmentation(path, pixels=True)
    try:
        stored = np.asarray(dataset.pixel_array)
    except Exception as error:
        raise as_unreadable(error, "decoding the segmentation") from error
    stored = stored.reshape(-1, *stored.shape[-2:])
    for members in frames.values():
        values: Any = np.zeros(stored.shape[1:], np.int64)
        for frame in members:
            number = _segment_number(dataset, frame)
            own = stored[frame].astype(np.int64)
            own = own if number is None else own * number
            if (values * own != 0).any():
                raise UnreadableError("unsupported", "its segments overlap")
            values += own
        axes = orientation(dataset, members[0])
        turned: Any = values if axes is None else Reorientation.of(axes).apply(values)
        yield turned


def _open_segmentation(path: Path, *, pixels: bool) -> tuple[Any, dict[tuple[str, str], list[int]]]:
    """Return the dataset, and the frames of each plane: (image's UID, place) -> frame numbers."""
    import pydicom

    from pipeline.io.formats.dicom_geometry import floats, macro

    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
        if str(dataset.get("SOPClassUID", "")) not in _SEGMENTATIONS:
            raise UnreadableError("unsupported", "a DICOM file that is no segmentation")
        if dataset.get("SegmentationType") == "FRACTIONAL":
            raise UnreadableError("unsupported", "a segmentation of fractions, not of labels")
        count, bits = int(dataset.get("NumberOfFrames") or 1), int(dataset.BitsAllocated)
        stored = path.stat().st_size
        check_size(int(dataset.Rows), int(dataset.Columns), count, bits / 8, stored, coded=True)
        check_size(int(dataset.Rows), int(dataset.Columns), count, 1, stored, coded=False)
        found: dict[tuple[str, str], list[int]] = {}
        for frame in range(count):
            corner = floats(
                macro(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3
            )
            image, number = _source(macro(dataset, frame, "DerivationImageSequence"))
            key = (image, f"{number} {corner}")
            found.setdefault(key, []).append(frame)
    except Exception as error:
        raise as_unreadable(error, "reading the segmentation") from error
    return dataset, found


def _source(derivation: Any) -> tuple[str, str]:
    """Return the UID of the image that a frame was drawn on, and its frame there; "" if unsaid."""
    sources = derivation.get("SourceImageSequence")
    if not sources:
        return "", ""
    frame = sources[0].get("ReferencedFrameNumber") or ""
    return str(sources[0].get("ReferencedSOPInstanceUID", "")), str(frame)


def _segment_number(dataset: Any, frame: int) -> int | None:
    """Return the segment that a frame marks; None where its values are the numbers (LABELMAP)."""
    from pipeline.io.formats.dicom_geometry import macro

    if dataset.get("SegmentationType") == "LABELMAP":
        return None
    own = macro(dataset, frame, "SegmentIdentificationSequence")
    return int(own.ReferencedSegmentNumber)
