"""NIfTI-1, NIfTI-2 and Analyze 7.5, in one file or two: slices of the canonical orientation.

- The array is turned so that its axes run to the patient's right, anterior and superior (RAS);
  nothing is interpolated, so an oblique volume keeps its obliqueness and is flagged.
- Slices lie and follow each other as a DICOM series would show them: axial from inferior to
  superior, rows running to posterior and columns to the patient's left; coronal from anterior to
  posterior and sagittal from left to right, rows running to inferior.
- frame = time point * slices + slice.
- A header (.hdr) whose voxels lie beside it (.img) is the image, and tells where they are.
- A gzipped file is never held as a whole: it is checked in one pass, so that nothing of a damaged
  file is taken for an image, and read in a second, a slice at a time where the slices follow each
  other in the file, else a time point.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from gzip import BadGzipFile
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.io.formats.gzip_stream import MAGIC, end_of_gzip, open_gzip, stated_size
from pipeline.io.formats.limits import (
    DEFLATE_RATIO,
    MAX_FILE_BYTES,
    as_unreadable,
    check_size,
    luma,
)
from pipeline.io.formats.nifti_header import MENDED, Affine, NiftiHeader, read_header
from pipeline.io.formats.pair import voxels_of
from pipeline.io.formats.planes import (
    AXIS,
    canonical,
    cut,
    is_oblique,
    label_volume,
    volume_headers,
)
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

Voxels = NDArray[Any]
Pixels = NDArray[np.float32]  # (H, W)

TRAILING_BYTES = "trailing-bytes"

_FREE_BYTES = 2**20
# Fields of voxels that are colours.
_COLOURS = (("R", "G", "B"), ("R", "G", "B", "A"))
# Bytes that are decompressed at a time.
_BLOCK = 2**20


class _Volume:
    """An opened file: its header, checked, and where the voxels begin.

    path: of the file that has the voxels; of a pair, not that of the header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.zipped = file.read(2) == MAGIC
        self.stored = path.stat().st_size
        # Where a gzipped stream ends, if the file goes on.
        self.end: int | None = None
        self.header = self._read_header()
        if self.header.paired:
            self.path = voxels_of(path)
            with self.path.open("rb") as file:
                self.zipped = file.read(2) == MAGIC
            self.stored = self.path.stat().st_size
            self.end = None
        self.shape = self.header.shape
        self.dtype = self.header.raw.get_data_dtype()
        self.offset = self.header.offset
        self._check()
        # The search decompresses all: only where the file's end does not state its voxels' size.
        size = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if self.zipped and self.end is None and stated_size(self.path) != size % 2**32:
            self.end = end_of_gzip(self.path)
        self.affine = self.header.affine
        self.turn = nib.orientations.io_orientation(self.affine)

    def _read_header(self) -> NiftiHeader:
        try:
            with self._stream() as stream:
                return read_header(stream)
        except (EOFError, BadGzipFile):
            # Of a small file the end is met with the header.
            self.end = end_of_gzip(self.path) if self.zipped else None
            if self.end is None:
                raise
            with self._stream() as stream:
                return read_header(stream)

    @property
    def flags(self) -> tuple[str, ...]:
        """What is odd about the file."""
        oddities = [] if self.header.placed else ["no-orientation"]
        if is_oblique(self.affine):
            oddities.append("oblique")
        if self.header.mended:
            oddities.append(MENDED)
        if self.end is not None:
            oddities.append(TRAILING_BYTES)
        return tuple(oddities)

    def _stream(self) -> BinaryIO:
        return open_gzip(self.path, self.end) if self.zipped else self.path.open("rb")

    def _check(self) -> None:
        if self.dtype.kind not in "iufV" or self.dtype.itemsize > 8:
            raise UnreadableError("unsupported", f"voxels of type {self.dtype}")
        if self.dtype.kind == "V" and self.dtype.names not in _COLOURS:
            raise UnreadableError("unsupported", "voxels of an unknown structure")
        x, y, z, t = self.shape
        # A slice of any plane, since which of them is wanted is not known yet; then all voxels.
        for height, width in ((x, y), (y, z), (x, z)):
            check_size(height, width, 1, self.dtype.itemsize, self.stored, coded=False)
        total = check_size(x, y, z * t, self.dtype.itemsize, self.stored, coded=False)
        possible = self.stored
        if self.zipped:
            possible = self.stored * DEFLATE_RATIO + _FREE_BYTES
        if self.offset < 0 or self.offset + total > possible:
            raise UnreadableError(
                "truncated", f"declares {total} bytes of voxels; the file has {self.stored} bytes"
            )

    def pictures(self, frames: Sequence[int], plane: Plane) -> Iterator[Voxels]:
        """Yield the requested slices (H, W) in order, laid as they are shown, unscaled."""
        pieces, places = self._pieces(frames, plane)
        for piece, place in zip(pieces, places, strict=True):
            turned = nib.orientations.apply_orientation(piece, self.turn)
            yield cut(cast(Voxels, turned), plane, place)

    def _pieces(self, frames: Sequence[int], plane: Plane) -> tuple[Iterator[Voxels], list[int]]:
        """Return stored voxels (X, Y, Z) with each frame, and which slice of them it is.

        As few as can be read by themselves: a slice where its voxels lie together in the file, else
        a time point.
        """
        count = self.slice_count(plane)
        times: list[int] = []
        places: list[int] = []
        for frame in frames:
            time, place = divmod(frame, count)
            times.append(time)
            places.append(place)
        if not self.zipped:
            stored = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")
            pieces = (stored[..., time] for time in times)
            return pieces, places
        stored_axis, direction = self.turn[2]  # the RAS axis along which the file goes slowest
        if int(stored_axis) != AXIS[plane]:
            return self._inflated(times, self.shape[:3]), places
        # Slices of a plane follow their RAS axis upwards, coronal ones downwards (`planes.cut`).
        downwards = plane == "coronal"
        if (direction < 0) != downwards:
            places = [count - 1 - place for place in places]
        numbers = [time * count + place for time, place in zip(times, places, strict=True)]
        slice_shape = (*self.shape[:2], 1)
        places = [0] * len(frames)
        return self._inflated(numbers, slice_shape), places

    def _inflated(self, numbers: Sequence[int], shape: tuple[int, ...]) -> Iterator[Voxels]:
        """Yield the pieces of a gzipped file's voxels that have these numbers, in their order.

        The file is read once from front to back; a piece that is wanted later than it comes is
        kept until then.
        """
        self._check_whole()
        size = math.prod(shape) * self.dtype.itemsize
        uses = Counter(numbers)
        upcoming = iter(sorted(uses))
        ready: dict[int, Voxels] = {}
        with self._stream() as stream:
            for number in numbers:
                while number not in ready:
                    following = next(upcoming)
                    stream.seek(self.offset + following * size)
                    piece = np.empty(shape, self.dtype, order="F")
                    ready[following] = _fill(piece, stream)
                yield ready[number]
                uses[number] -= 1
                if not uses[number]:
                    del ready[number]

    def _check_whole(self) -> None:
        """Raise what is wrong with a gzipped file: decompressing tells, and the sum at its end."""
        room = memoryview(bytearray(_BLOCK))
        done = 0
        with self._stream() as stream:
            while count := _into(stream, room):
                done += count
                if done > MAX_FILE_BYTES + _FREE_BYTES:
                    raise UnreadableError("too-large", f"holds more than {MAX_FILE_BYTES} bytes")
        voxels = math.prod(self.shape) * self.dtype.itemsize
        if done < self.offset + voxels:
            raise UnreadableError("truncated", f"ends after {done} of {self.offset + voxels} bytes")

    def canonical(self) -> tuple[tuple[int, ...], Affine]:
        """Return the shape (X, Y, Z) and the affine of the volume once turned to RAS."""
        return canonical(self.shape[:3], self.affine, self.turn)

    def known_spacing(self) -> list[bool]:
        """Return which axes of the volume have a spacing, once it is turned to RAS."""
        order = np.argsort(self.turn[:, 0])
        return [self.header.known_spacing[int(axis)] for axis in order]

    def slice_count(self, plane: Plane) -> int:
        """Return how many slices of a plane a time point has."""
        shape, _ = self.canonical()
        return shape[AXIS[plane]]


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return a header for each slice of each time point. Raises UnreadableError."""
    volume = _open(path)
    shape, affine = volume.canonical()
    times = volume.shape[3]
    known = volume.known_spacing()
    return volume_headers(shape, affine, plane, times, volume.flags, known)


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested slices in order, float32 (H, W), scaled. Raises UnreadableError.

    A file that ends too early has the slices before its end.
    """
    volume = _open(path)
    stop = volume.slice_count(plane) * volume.shape[3]
    there = [frame for frame in frames if 0 <= frame < stop]
    pictures = volume.pictures(there, plane)
    slope, inter = volume.header.raw.get_slope_inter()
    for frame in frames:
        if not 0 <= frame < stop:
            yield Failure(frame, "corrupt", f"the file has no frame {frame}")
            continue
        try:
            picture = next(pictures)
        except Exception as error:
            raise as_unreadable(error, "reading the voxels") from error
        yield Slice(frame, _scaled(picture, slope, inter))


def write_like(
    path: Path, planes: Mapping[int, NDArray[np.uint8]], plane: Plane, out: Path
) -> None:
    """Write label planes (frame -> (H, W)) as NIfTI, in the space of the file they are of.

    The frames of one time point; voxels of others are 0. Raises UnreadableError.
    """
    volume = _open(path)
    labels = label_volume(planes, plane, volume.shape[:3], volume.turn)
    # Of the lengths as they were read, whatever the file's unit is.
    image = nib.Nifti1Image(labels, volume.affine)
    raw = volume.header.raw
    image.header.set_xyzt_units("mm")
    if not volume.header.is_analyze:
        image.set_sform(volume.affine, int(raw["sform_code"]) or 1)
        image.set_qform(volume.affine, int(raw["qform_code"]))
        image.header.set_xyzt_units("mm", raw.get_xyzt_units()[1])
    nib.save(image, out)


def _open(path: Path) -> _Volume:
    try:
        return _Volume(path)
    except Exception as error:
        raise as_unreadable(error, "reading the NIfTI header") from error


def _fill(array: Voxels, stream: BinaryIO) -> Voxels:
    """Return an array filled from a stream, in the order of the file. Raises UnreadableError."""
    flat = array.reshape(-1, order="F")  # a view, as the array lies in this order
    left = memoryview(flat.view(np.uint8).data)
    while left:
        count = _into(stream, left[:_BLOCK])
        if not count:
            raise UnreadableError("truncated", "ended sooner than when it was checked")
        left = left[count:]
    return array


def _into(stream: BinaryIO, room: memoryview) -> int:
    """Fill some bytes from a stream; return how many, none at its end."""
    return int(stream.readinto(room))  # type: ignore[attr-defined]


def _scaled(picture: Voxels, slope: float | None, inter: float | None) -> Pixels:
    """Return voxels as float32 with the file's scaling; colour becomes luma."""
    if picture.dtype.names:
        colour = np.stack([picture[channel] for channel in "RGB"], axis=-1)
        return np.ascontiguousarray(luma(colour))
    if slope is None:
        return np.ascontiguousarray(picture, dtype=np.float32)
    scaled = picture.astype(np.float64) * slope + (inter or 0.0)
    return np.ascontiguousarray(scaled, dtype=np.float32)
