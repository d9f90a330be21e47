"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): slices as those of the same volume in NIfTI.

- The header is checked as text before ITK sees the file (`volume_text`), and ITK's word on sizes
  and types is held against it.
- ITK tells how a volume lies in the patient (LPS); it is turned to RAS, and cut as a NIfTI is.
- frame = time point * slices + slice. Values of a voxel that are no colour are time points, unless
  they are a direction, which is no grey.
- Coded voxels are decoded once to be checked, since ITK makes up what a damaged file lacks, and
  once to be read. ITK has no slices of a coded file: it is in memory as a whole.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (its usual name)
from numpy.typing import NDArray

from pipeline.io.formats.itk_text import is_nrrd, read_text
from pipeline.io.formats.limits import DEFLATE_RATIO, as_unreadable, check_size, luma
from pipeline.io.formats.planes import (
    AXIS,
    canonical,
    cut,
    is_oblique,
    label_volume,
    volume_headers,
)
from pipeline.io.formats.volume_text import VolumeText
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

Voxels = NDArray[Any]
Affine = NDArray[np.float64]  # (4, 4): voxel -> mm, RAS

_FREE_BYTES = 2**20
_BLOCK = 2**20
# zlib's word for: with the header of gzip or of zlib, whichever there is.
_ANY_HEADER = zlib.MAX_WBITS | 32
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class _Volume:
    """A file whose header is checked, as text and by ITK, and how it lies in the patient."""

    def __init__(self, path: Path) -> None:
        self.text = read_text(path)
        self.reader = _reader_of(path)
        self.reader.ReadImageInformation()
        dimensions = self.reader.GetDimension()
        self.size = tuple(self.reader.GetSize())
        self.values = self.reader.GetNumberOfComponents()
        if dimensions not in (2, 3, 4):
            raise UnreadableError("unsupported", f"has {dimensions} dimensions, not 2 to 4")
        if math.prod(self.size) * self.values != self.text.count:
            raise UnreadableError("corrupt", "its header is read in two ways")
        if self.text.channels == "vector":
            raise UnreadableError("unsupported", "voxels that are directions, not grey")
        padded = (*self.size, 1, 1)
        self.shape: tuple[int, ...] = padded[:3]
        self._check()
        self.affine = self._affine(dimensions)
        self.turn = nib.orientations.io_orientation(self.affine)

    @property
    def is_colour(self) -> bool:
        """Whether several values of a voxel are its colour."""
        return self.text.channels == "colour"

    @property
    def times(self) -> int:
        """The number of volumes: time points, or values of a voxel one behind the other."""
        points = self.size[3] if len(self.size) == 4 else 1
        return points if self.is_colour else points * self.values

    def _check(self) -> None:
        """Raise UnreadableError where the file cannot have the voxels that it declares."""
        text = self.text
        x, y, z = self.shape
        for height, width in ((x, y), (y, z), (x, z)):
            check_size(height, width, 1, text.itemsize, text.stored, coded=False)
        check_size(x, y, z, text.count / (x * y * z) * text.itemsize, text.stored, coded=False)
        possible = {
            "raw": text.stored,
            "deflate": text.stored * DEFLATE_RATIO + _FREE_BYTES,
            # A digit and what parts it from the next.
            "text": (text.stored + 1) // 2 * text.itemsize,
        }
        if text.bytes > possible[text.encoding]:
            raise UnreadableError(
                "truncated",
                f"declares {text.bytes} bytes of voxels; the file has {text.stored} bytes of them",
            )

    def _affine(self, dimensions: int) -> Affine:
        """Return voxel -> mm (RAS), of the axes of space."""
        axes = min(dimensions, 3)
        direction = np.array(self.reader.GetDirection()).reshape(dimensions, dimensions)
        lps = np.eye(4)
        lps[:axes, :axes] = direction[:axes, :axes] * self.reader.GetSpacing()[:axes]
        lps[:axes, 3] = self.reader.GetOrigin()[:axes]
        affine = lps.copy()
        affine[:3] = self.text.unit_mm * (_TO_RAS @ lps[:3])
        volume_mm3 = abs(np.linalg.det(affine[:3, :3]))  # of a voxel
        if not np.isfinite(affine).all() or volume_mm3 < 1e-12:
            raise UnreadableError("corrupt", "its axes lie in one plane")
        return affine

    def canonical(self) -> tuple[tuple[int, ...], Affine]:
        """Return the shape (X, Y, Z) and the affine of the volume once turned to RAS."""
        return canonical(self.shape, self.affine, self.turn)

    def slice_count(self, plane: Plane) -> int:
        """Return how many slices of a plane a time point has."""
        shape, _ = self.canonical()
        return shape[AXIS[plane]]

    def voxels(self) -> list[Voxels]:
        """Return each volume (X, Y, Z) in RAS, of colours (X, Y, Z, 3 or 4): views of ITK's memory.

        Raises UnreadableError.
        """
        if self.text.encoding == "deflate":
            _check_deflated(self.text)
        image = self.reader.Execute()
        values = image.GetNumberOfComponentsPerPixel()
        if tuple(image.GetSize()) != self.size or values != self.values:
            raise UnreadableError("corrupt", "its header is read in two ways")
        self._image = image  # whose memory is shown below
        stored = sitk.GetArrayViewFromImage(image)  # (time, z, y, x, values), as far as there are
        x, y, z = self.shape
        by_time = stored.reshape(-1, z, y, x, self.values)
        volumes = []
        for of_time in by_time:
            if self.is_colour:
                volumes.append(of_time.transpose(2, 1, 0, 3))
                continue
            for value in range(self.values):
                volumes.append(of_time[..., value].transpose(2, 1, 0))
        return [nib.orientations.apply_orientation(volume, self.turn) for volume in volumes]


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return a header for each slice of each time point. Raises UnreadableError."""
    volume = _open(path)
    shape, affine = volume.canonical()
    flags = [] if volume.text.placed else ["no-orientation"]
    if is_oblique(affine):
        flags.append("oblique")
    return volume_headers(shape, affine, plane, volume.times, tuple(flags))


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested slices in order, float32 (H, W). Raises UnreadableError."""
    volume = _open(path)
    count = volume.slice_count(plane)
    try:
        voxels = volume.voxels()
    except Exception as error:
        raise as_unreadable(error, "reading the voxels") from error
    for frame in frames:
        if not 0 <= frame < count * volume.times:
            yield Failure(frame, "corrupt", f"the file has no frame {frame}")
            continue
        time, place = divmod(frame, count)
        if volume.is_colour:
            channels = [cut(voxels[time][..., c], plane, place) for c in range(3)]
            grey = luma(np.stack(channels, axis=-1))
        else:
            grey = cut(voxels[time], plane, place)
        # A copy, since the memory of ITK goes with its image.
        yield Slice(frame, np.array(grey, dtype=np.float32, order="C"))


def write_like(
    path: Path, planes: Mapping[int, NDArray[np.uint8]], plane: Plane, out: Path
) -> None:
    """Write label planes (frame -> (H, W)) as NIfTI, in the space of the file they are of.

    The frames of one time point; voxels of others are 0. Raises UnreadableError.
    """
    volume = _open(path)
    labels = label_volume(planes, plane, volume.shape, volume.turn)
    image = nib.Nifti1Image(labels, volume.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, out)


def _open(path: Path) -> _Volume:
    try:
        return _Volume(path)
    except Exception as error:
        raise as_unreadable(error, "reading the header") from error


def _reader_of(path: Path) -> Any:
    """Return ITK's reader of a file, of this one format and no other."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    # The reading processes are the parallelism.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd(path) else "MetaImageIO")
    reader.SetFileName(str(path))
    return reader


def _check_deflated(text: VolumeText) -> None:
    """Raise what is wrong with coded voxels: decompressing tells, and the sum at their end."""
    inflater = zlib.decompressobj(_ANY_HEADER)
    done = 0
    with text.data.open("rb") as file:
        file.seek(text.offset)
        block = b""
        while not inflater.eof:
            block = inflater.unconsumed_tail or file.read(_BLOCK)
            if not block:
                raise UnreadableError("truncated", "its coded voxels do not end")
            done += len(inflater.decompress(block, _BLOCK))
            if done > text.bytes:
                raise UnreadableError("corrupt", "its coded voxels are more than it declares")
        file_end = file.tell()
    coded = file_end - text.offset - len(inflater.unused_data)
    if text.coded is not None and not coded <= text.coded <= text.stored:
        raise UnreadableError("corrupt", f"has {coded} bytes of coded voxels, not {text.coded}")
    if done < text.bytes:
        raise UnreadableError("truncated", f"ends after {done} of {text.bytes} bytes of voxels")
