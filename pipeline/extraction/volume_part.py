"""One part filled with what a 3D network says of volumes: all rows of a volume have its vector.

Whatever is no volume for it is an unreadable row, with the reason: nothing is guessed, and a volume
that lacks a slice is none. A volume that lies in two parts is read for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.extraction.part import FillContext, PartInFlight, note_digests
from pipeline.inference.telemetry import clock
from pipeline.io.decode import read_headers
from pipeline.io.formats.limits import as_unreadable
from pipeline.io.formats.reorientation import axes_of
from pipeline.io.types import FrameRead
from pipeline.preprocessing.content import check_finite
from pipeline.preprocessing.volume_range import Name, Volumes, by_series
from pipeline.recipe import Preprocess
from pipeline.types import Failure, Plane, Slice
from stores.errors import UnreadableError
from stores.features import OK
from stores.slices import SliceRow, slice_rows

if TYPE_CHECKING:
    from pipeline.inference.volumes import VolumeForward
    from pipeline.preprocessing.volume_input import Volume

# Voxels of the largest volume that is held in memory: 2 GiB of float32, and as much once more while
# it is turned. A chest CT of 1,000 slices of 512 x 512 has half of it.
MOST_VOXELS = 2**29
_SORT_OUT = "leave out what is too much of it by data.exclude, or convert its series anew"
_NO_GAPS = "complete it, or resample it to equal distances, and extract again"
# Flags of a series that is no box of voxels at equal distances (see `io.formats.series`): what each
# says, and what to do.
UNEVEN = {
    "no-orientation": (
        "its header has no orientation: which way is up, and which plane is cut, is not known",
        "write it into the file (in NIfTI the qform or sform), and extract again",
    ),
    "no-position": (
        "its file does not say where its slices lie",
        "convert it to NIfTI or DICOM with positions, and extract again",
    ),
    "missing-position": ("slices are missing between others", _NO_GAPS),
    "variable-spacing": ("its slices do not lie at equal distances", _NO_GAPS),
    "gantry-tilt": ("its slices shift within their plane (the gantry was tilted)", _NO_GAPS),
    "duplicate-position": ("several of its slices lie at one place", _SORT_OUT),
    "time-points-unclear": ("places come up several times, with no word of when", _SORT_OUT),
    "localizer": ("it is a localizer: slices that lie across each other", _SORT_OUT),
}
COPY = "copy"
# By the axis of the normal, sagittal, coronal, axial.
_PLANES: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")


class WholeVolumes(Volumes):
    """The volumes that slices are of, all of which are read for their pixels, not for a range."""

    def __init__(self, preprocess: Preprocess, slices: pa.Table) -> None:
        """slices: live ones by row, all of each volume, with VOLUME_COLUMNS."""
        super().__init__(preprocess, slices, lambda rows: {})
        named = slices.filter(pc.is_valid(slices["series"]))
        self._slices = named
        self._places = by_series(named)

    def take(self, slices: Iterable[SliceRow]) -> dict[Name, list[SliceRow]]:
        """Return the volumes of some slices, with all their slices."""
        volumes: dict[Name, list[SliceRow]] = {}
        for slice_ in slices:
            if not slice_.series:  # a file that names none is a volume of its own
                volumes[f"row {slice_.row}", slice_.modality] = [slice_]
                continue
            name = (slice_.series, slice_.modality)
            if name not in volumes:
                rows = slice_rows(self._slices.take(pa.array(self._places[slice_.series])))
                volumes[name] = [row for row in rows if row.modality == slice_.modality]
        return volumes


@dataclass
class VolumeFiller:
    """Fills one part with vectors of volumes."""

    job: PartInFlight
    context: FillContext[VolumeForward]

    def fill(self, reads: Iterator[FrameRead]) -> Iterator[None]:
        """Take a read for each slice of each volume of the part; yield after each volume."""
        self.job.arrays = self.context.store.empty_part()
        here = {slice_.row for slice_ in self.job.slices}
        for slices in self.job.survey.values():
            rows = [slice_.row for slice_ in slices if slice_.row in here]
            self._fill_volume(slices, rows, reads)
            yield

    def _fill_volume(
        self, slices: Sequence[SliceRow], rows: Sequence[int], reads: Iterator[FrameRead]
    ) -> None:
        fault = _fault_of(slices, self.context.forward.recipe.preprocess)
        pixels: dict[int, NDArray[Any]] = {}
        for slice_ in slices:
            with clock(self.job.seconds, "wait"):
                read = next(reads)
            self.job.seconds["read"] += read.seconds
            own = self._take(slice_, read, slice_.row in rows)
            if isinstance(own, UnreadableError):
                fault = fault or _no_volume("a slice of it cannot be read")
            elif fault is None and COPY not in slice_.flags:
                pixels[slice_.row] = own
            elif fault is not None:
                pixels.clear()  # nothing of it is used
        failed = {failure["row"] for failure in self.job.failures}
        left = [row for row in rows if row not in failed]
        if fault is None:
            try:
                vector = self._vector(slices, pixels)
            except UnreadableError as error:
                fault = error
        if fault is None:
            for row in left:
                self.job.put(row, status=OK, volume=vector)
        else:
            for row in left:
                self._fail(row, fault)
        self.context.progress.advance(len(left))

    def _take(
        self, slice_: SliceRow, read: FrameRead, is_here: bool
    ) -> NDArray[Any] | UnreadableError:
        """Return the pixels of a slice, or why there are none; note both for rows of the part."""
        if is_here:
            note_digests(self.job, slice_.row, read)
        try:
            if isinstance(read.item, Failure):
                raise UnreadableError(read.item.reason, read.item.detail)
            check_finite(read.item)
        except UnreadableError as error:
            if is_here:
                self._fail(slice_.row, error)
                self.context.progress.advance(1)
            return error
        assert isinstance(read.item, Slice)
        return read.item.pixels

    def _fail(self, row: int, error: UnreadableError) -> None:
        self.job.fail(row, error.reason, error.detail)
        self.context.limit.count()

    def _vector(self, slices: Sequence[SliceRow], pixels: dict[int, NDArray[Any]]) -> NDArray[Any]:
        """Return (d,) what the network says. Raises UnreadableError for what is no volume."""
        with clock(self.job.seconds, "preprocess"):
            volume = self._volume(slices, pixels)
        pixels.clear()
        return self.context.forward.vector(volume, self.job.seconds)

    def _volume(self, slices: Sequence[SliceRow], pixels: dict[int, NDArray[Any]]) -> Volume:
        from pipeline.preprocessing.volume_input import stacked  # with torch

        placed = [slice_ for slice_ in slices if slice_.row in pixels]
        placed.sort(key=lambda slice_: slice_.position_mm or 0.0)
        if len({pixels[slice_.row].shape for slice_ in placed}) > 1:
            raise _no_volume("its slices are of several sizes")
        first = placed[0]
        positions = [slice_.position_mm or 0.0 for slice_ in placed]
        in_plane = None
        if first.spacing_y_mm is not None and first.spacing_x_mm is not None:
            in_plane = (first.spacing_y_mm, first.spacing_x_mm)
        return stacked(
            [pixels[slice_.row] for slice_ in placed],
            self.context.plane_of(first),
            in_plane,
            float(np.median(np.diff(positions))),
            is_ct=first.modality == "CT",
        )


def _fault_of(slices: Sequence[SliceRow], preprocess: Preprocess) -> UnreadableError | None:
    """Return why slices are no volume that a 3D network takes, as their table says."""
    how = preprocess.volume
    assert how is not None
    originals = [slice_ for slice_ in slices if COPY not in slice_.flags]
    first = originals[0] if originals else slices[0]
    if len(originals) < 2:
        return _no_volume("it has one slice")
    flags = {flag for slice_ in originals for flag in slice_.flags}
    odd = {flag: texts for flag, texts in UNEVEN.items() if flag in flags}
    if odd:
        why = "; ".join(f"{reason} ({flag})" for flag, (reason, _) in odd.items())
        remedies = dict.fromkeys(remedy for _, remedy in odd.values())
        return _no_volume(f"{why}; {'; '.join(remedies)}")
    if any(slice_.position_mm is None for slice_ in originals):
        return _no_volume("its slices have no positions")
    if how.spacing_mm is not None and None in (first.spacing_y_mm, first.spacing_x_mm):
        return _no_volume("its voxels have no size in mm, and it is to be resampled")
    voxels = len(originals) * first.height * first.width
    if voxels > MOST_VOXELS:
        return UnreadableError(
            "too-large", f"{voxels:,} voxels, and at most {MOST_VOXELS:,} are held in memory"
        )
    return None


def _no_volume(why: str) -> UnreadableError:
    return UnreadableError("not-a-volume", why)


def plane_of(path: Path, frame: int, plane: Plane) -> Plane:
    """Return which plane a slice of a file lies in; plane: that files of voxels are cut along.

    Raises UnreadableError where the file does not tell.
    """
    try:
        headers = read_headers(path, plane)
    except Exception as error:  # whatever a library says of a file that changed since it was read
        raise as_unreadable(error, "reading how a volume lies") from None
    for header in headers:
        if header.frame != frame:
            continue
        axes = None if header.axes is None else axes_of(header.axes)
        if axes is not None:
            return _PLANES[int(np.abs(axes[2]).argmax())]
        if header.axes is None and header.position_mm is not None:
            return plane
        raise _no_volume("its file does not say how it lies")
    raise UnreadableError("vanished", "its file has no such slice any more")
