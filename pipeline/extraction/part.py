"""One part on its way: its slices as they are read, its arrays as they fill."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.progress import BadLimit, Progress
from pipeline.inference.telemetry import clock
from pipeline.io.types import FrameRead
from pipeline.preprocessing.content import check_finite
from pipeline.preprocessing.perturb import thickened
from pipeline.preprocessing.volume_range import Name, Ranges, Volumes
from pipeline.recipe import FileWindow, IntensityKind, Preprocess, intensity_kind
from pipeline.types import Failure, Plane, Slice
from stores import FeatureStore, PartRange
from stores.claims import Claim
from stores.duplicates import Originals
from stores.errors import UnreadableError
from stores.features import OK, UNREADABLE
from stores.slices import SliceRow

if TYPE_CHECKING:
    from pipeline.inference.forward import Forward, Values

# What runs the network: a `Forward`, or of volumes a `VolumeForward`.
F = TypeVar("F")


@dataclass(eq=False)
class PartInFlight:
    """One claimed part, from its claim to its commit.

    slices: in row order. survey: the volumes whose ranges are to be found first. neighbours: row ->
    those in its volume, where it is seen thicker. arrays: as they fill; none until the part is
    begun, since parts are claimed ahead. ranges: of the volumes that scale slices of this part.
    left_out: rows of volumes that could not be read for them. links: row -> the row with the same
    pixels. seconds: stage -> what it took. at_once: how many slices the network took at a time.
    """

    part: PartRange
    claim: Claim
    slices: list[SliceRow] = field(default_factory=list)
    survey: dict[Name, list[SliceRow]] = field(default_factory=dict)
    neighbours: dict[int, list[SliceRow]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    links: dict[int, int] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    at_once: int = 0

    def put(self, rows: int | Sequence[int], **values: Any) -> None:
        """Set values of one row, or of several (b, ...), array by array."""
        places = np.asarray(rows, np.int64) - self.part.start
        for name, value in values.items():
            self.arrays[name][places] = value

    def fail(self, row: int, reason: str, detail: str) -> None:
        """Mark one row as unreadable and note why."""
        self.put(row, status=UNREADABLE)
        self.failures.append({"row": row, "reason": reason, "detail": detail})


@dataclass(frozen=True)
class FillContext(Generic[F]):
    """What all parts of one run share.

    wait_for_commits: returns once all parts that were filled before are committed. plane_of: which
    plane a slice lies in, by its file.
    """

    store: FeatureStore
    forward: F
    batch_size: int
    progress: Progress
    limit: BadLimit
    originals: Originals
    volumes: Volumes
    wait_for_commits: Callable[[], None]
    plane_of: Callable[[SliceRow], Plane]


class _Taken(NamedTuple):
    """A slice that waits for its batch; file_digest, pixel_digest: in hex."""

    row: int
    item: Slice
    modality: str
    file_digest: str
    pixel_digest: str


@dataclass
class PartFiller:
    """Fills one part with features, in batches that start and end within it.

    Slices of known pixels take the features of the row that has them. They stay in the batch for
    the sake of the others, whose last bits may depend on its size; a batch of nothing else is not
    run.
    """

    job: PartInFlight
    context: FillContext[Forward]
    batch: list[_Taken] = field(default_factory=list)

    def fill(self, reads: Iterator[FrameRead]) -> Iterator[None]:
        """Take a read for each slice surveyed, and of the part; yield after volume and batch.

        reads: in the order in which `UpcomingParts` requested them. The features of the last
        batches may still be on their way when this ends.
        """
        self.job.arrays = self.context.store.empty_part()
        for name, slices in self.job.survey.items():
            self._survey(name, slices, reads)
            yield
        # Only now: a range is known once every slice of its volume was seen.
        self.job.ranges = self.context.volumes.ranges(self.job.slices)
        for slice_ in self.job.slices:
            self._take(slice_, self._next_read(slice_, reads))
            if len(self.batch) == self.context.batch_size:
                self._embed()
                yield
        if self.batch:  # the last of a part is smaller, and the next part begins one of its own
            self._embed()
            yield

    def _survey(self, name: Name, slices: Sequence[SliceRow], reads: Iterator[FrameRead]) -> None:
        """Find the range of a volume, from all its slices, of whichever parts they are."""
        with clock(self.job.seconds, "survey"):
            items = (read.item for read in reads)
            self.job.left_out += self.context.volumes.survey(name, slices, items)

    def _next_read(self, slice_: SliceRow, reads: Iterator[FrameRead]) -> FrameRead:
        """Return what was read of a slice, with its neighbours in it where it is seen thicker."""
        neighbours = self.job.neighbours.get(slice_.row, ())
        with clock(self.job.seconds, "wait"):
            read = next(reads)
            others = [next(reads) for _ in neighbours]
        if not others or isinstance(read.item, Failure):
            return read
        items: list[Slice] = []
        for neighbour, other in zip(neighbours, others, strict=True):
            if isinstance(other.item, Slice):
                items.append(other.item)
            else:
                self.job.left_out.append(neighbour.row)
        return replace(read, item=thickened(read.item, items))

    def _take(self, slice_: SliceRow, read: FrameRead) -> None:
        """Put a slice into the batch, or why it cannot be read into the part."""
        self.job.seconds["read"] += read.seconds
        try:
            self._take_pixels(slice_, read)
        except UnreadableError as error:
            note_digests(self.job, slice_.row, read)
            self.job.fail(slice_.row, error.reason, error.detail)
            self.context.limit.count()
            self.context.progress.advance(1)

    def _take_pixels(self, slice_: SliceRow, read: FrameRead) -> None:
        """Put a slice into the batch. Raises UnreadableError where there is nothing to embed."""
        if isinstance(read.item, Failure):
            raise UnreadableError(read.item.reason, read.item.detail)
        check_finite(read.item)
        item = self.context.volumes.ranged(slice_, read.item)
        assert read.file_digest is not None
        assert read.pixel_digest is not None
        digests = read.file_digest, read.pixel_digest
        self.batch.append(_Taken(slice_.row, item, slice_.modality, *digests))

    def _link_to_original(self, row: int, original: int, digest: bytes) -> None:
        """Link a row to an earlier one with the same pixels, where that has features.

        What is remembered may be of a part that was lost before its commit, or changed since.
        """
        originals = self.context.originals
        if self._is_here(original):
            digest_here = self.job.arrays["pixel_digest"][original - self.job.part.start]
            if bytes(digest_here) != digest:
                return
        elif not originals.holds(original, digest):
            # It may be of a part that is filled and not committed yet, by this very run.
            self.context.wait_for_commits()
            if not originals.holds(original, digest):
                return
        self.job.links[row] = original

    def _is_here(self, row: int) -> bool:
        return self.job.part.start <= row < self.job.part.stop

    def _embed(self) -> None:
        """Send the batch through the network; its features go into the part when they come."""
        rows, items, modalities, of_files, of_pixels = zip(*self.batch, strict=True)
        self.batch.clear()
        file_digests = digest_bytes(*of_files)
        pixel_digests = digest_bytes(*of_pixels)
        self.job.put(rows, file_digest=file_digests, pixel_digest=pixel_digests)
        digests = list(map(bytes, pixel_digests))
        originals = self.context.originals.find(rows, digests, modalities)
        for row, digest in zip(rows, digests, strict=True):
            if row in originals:
                self._link_to_original(row, originals[row], digest)
        deliver = functools.partial(self._deliver, rows)
        if self.job.links.keys() >= set(rows):
            self.context.forward.pass_by(deliver)
        else:
            self.context.forward.run(items, modalities, deliver, self.job.seconds)

    def _deliver(self, rows: tuple[int, ...], features: Values) -> None:
        """Put the features of a batch into the part."""
        if features:
            self.job.put(rows, status=OK, **features)
        # After the batch's own features: an original may be in the very same batch.
        self._copy_linked([row for row in rows if row in self.job.links])
        self.context.progress.advance(len(rows))

    def _copy_linked(self, rows: list[int]) -> None:
        """Give rows the features of their originals, of this part or of committed ones."""
        if not rows:
            return
        links = self.job.links
        here = [row for row in rows if self._is_here(links[row])]
        elsewhere = [row for row in rows if not self._is_here(links[row])]
        store = self.context.store
        originals = np.array([links[row] for row in elsewhere], np.int64)
        for name in self.context.forward.recipe.arrays:
            # Not `store.read`, which looks at every part: that those are committed is known.
            values = store.array(name).gather(originals, store.row_crcs)
            self.job.put(elsewhere, status=OK, **{name: values})
            for row in here:
                value = self.job.arrays[name][links[row] - self.job.part.start]
                self.job.put(row, status=OK, **{name: value})


def rule_number(preprocess: Preprocess, modality: str) -> int | None:
    """Return a number for the intensity rule of a modality.

    None where the file or the volume has a say too: equal pixels may then look different.
    """
    rule = preprocess.rule(modality)
    if isinstance(rule, FileWindow) or preprocess.by_volume(modality):
        return None
    return get_args(IntensityKind).index(intensity_kind(modality))


def note_digests(job: PartInFlight, row: int, read: FrameRead) -> None:
    """Note those digests of one row's file and pixels that are known."""
    if read.file_digest is not None:
        job.put(row, file_digest=digest_bytes(read.file_digest)[0])
    if read.pixel_digest is not None:
        job.put(row, pixel_digest=digest_bytes(read.pixel_digest)[0])


def digest_bytes(*digests: str) -> NDArray[np.uint8]:
    """Return SHA-256 digests in hex as the store's arrays have them, (b, 32)."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), -1)
