"""Masks: NIfTI, DICOM segmentations, structure sets, PNG, TIFF, BMP, .npy and .mat, as planes.

Planes of label values lie as the slices of the same file, or of the images they were drawn on, are
shown. Values are the file's own whole numbers: the indices of a palette, not its colours; the
numbers of DICOM segments. JPEG is refused, since it alters values.

pydicom and Pillow are imported once a mask of theirs is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.annotations.mask_types import MaskFile, Values
from pipeline.io.decode import read_headers, read_slices
from pipeline.io.sniff import sniff
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError


def inspect(path: Path, plane: Plane) -> MaskFile:
    """Return what a file holds. Raises UnreadableError, whose detail goes on behind its name."""
    with _named():
        kind = sniff(path)
    if kind == "dicom":
        from pipeline.annotations import dicom_masks

        return dicom_masks.inspect(path)
    with _named():
        return MaskFile(read_headers(path, plane))


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Say of what no image can be read from that it cannot be read, and not that alone why."""
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(error.reason, f"cannot be read: {error.detail}") from error


def planes(
    path: Path, plane: Plane, images: Sequence[Header] = (), wanted: Collection[int] = ()
) -> Iterator[Values]:
    """Yield the label values (H, W) of each plane, as `inspect` lists them.

    images: the slices on which contours are drawn, a plane each; wanted: the numbers of those that
    are. Raises UnreadableError, also for values that are no whole numbers.
    """
    match sniff(path):
        case "dicom":
            from pipeline.annotations import dicom_masks

            yield from dicom_masks.planes(path, images, wanted)
        case "raster":
            from pipeline.annotations import raster_masks

            yield from raster_masks.planes(path)
        case _:
            frames = range(len(read_headers(path, plane)))
            for item in read_slices(path, frames, plane):
                yield _whole_numbers(item)


def _whole_numbers(item: Slice | Failure) -> Values:
    if isinstance(item, Failure):
        raise UnreadableError(item.reason, f"cannot be read: {item.detail}")
    values = item.pixels
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise UnreadableError("corrupt", "holds values that are no whole numbers: no mask")
    return values.astype(np.int64)
