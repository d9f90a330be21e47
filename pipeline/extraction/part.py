"""One part on its way: its slices as they are read, its arrays as they fill."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.progress import BadLimit, Progress
from pipeline.inference.telemetry import clock
from pipeline.io.types import FrameRead
from pipeline.preprocessing.perturb import thickened
from pipeline.preprocessing.volume_range import Kept, Name, Volumes
from pipeline.recipe import FileWindow, IntensityKind, Preprocess, intensity_kind
from pipeline.types import Failure, Slice
from stores import FeatureStore, PartRange
from stores.claims import Claim
from stores.duplicates import Originals
from stores.errors import UnreadableError
from stores.features import OK, UNREADABLE

if TYPE_CHECKING:
    from pipeline.inference.forward import Forward, Values


@dataclass(eq=False)
class Job:
    """One claimed part: its slices in row order, its arrays as they fill.

    survey: the volumes whose ranges are to be found first. beside: row -> its neighbours in the
    volume, where it is seen thicker. left_out: the rows that either lacks. ranges: those that scale
    slices of this part. arrays: none until the part is begun, since parts are claimed ahead. links:
    row -> the row with the same pixels. most: how many slices the network took at once.
    """

    part: PartRange
    claim: Claim
    slices: list[dict[str, Any]]
    survey: dict[Name, list[dict[str, Any]]]
    beside: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    ranges: Kept = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    links: dict[int, int] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    most: int = 0

    def put(self, row: int, **values: Any) -> None:
        """Set values of one row, array by array."""
        for name, value in values.items():
            self.arrays[name][row - self.part.start] = value

    def fail(self, row: int, reason: str, detail: str) -> None:
        """Mark one row as unreadable and keep why."""
        self.put(row, status=UNREADABLE)
        self.failures.append({"row": row, "reason": reason, "detail": detail})

    @property
    def embedded(self) -> int:
        """How many slices went through the network, or will have."""
        return int((self.arrays["status"] == OK).sum()) - len(self.links)


@dataclass(frozen=True)
class Run:
    """What all parts of one run share. settle: waits until all parts before are committed."""

    store: FeatureStore
    forward: Forward
    batch_size: int
    progress: Progress
    limit: BadLimit
    originals: Originals
    volumes: Volumes
    settle: Callable[[], None]


@dataclass
class Filler:
    """Fills one part with features, in batches that start and end within it.

    Slices of known pixels take the features of the row that has them. They stay in the batch for
    the sake of the others, whose last bits may depend on its size; a batch of nothing else is not
    run.
    """

    job: Job
    run: Run
    batch: list[tuple[int, Slice, str]] = field(default_factory=list)  # row, pixels, modality

    def fill(self, reads: Iterator[FrameRead]) -> Iterator[None]:
        """Take a read for each slice surveyed, and of the part; yield after volume and batch.

        The features of the last batches may still be on their way then.
        """
        job, run = self.job, self.run
        job.arrays = run.store.empty_part()
        for name, slices in job.survey.items():
            with clock(job.seconds, "survey"):
                job.left_out += run.volumes.survey(name, slices, (read.item for read in reads))
            yield
        job.ranges = run.volumes.ranges(job.slices)
        for slice_ in job.slices:
            with clock(job.seconds, "wait"):
                read = next(reads)
                beside = job.beside.get(slice_["row"], ())
                others = [(each["row"], next(reads)) for each in beside]
            self._take(slice_, self._thickened(read, others))
            if len(self.batch) == run.batch_size:
                self._embed()
                yield
        if self.batch:
            self._embed()
            yield

    def _thickened(self, read: FrameRead, beside: list[tuple[int, FrameRead]]) -> FrameRead:
        """Return what was read with the pixels of its neighbours in it; of those that can be."""
        if not beside or isinstance(read.item, Failure):
            return read
        items = [other.item for _, other in beside if isinstance(other.item, Slice)]
        self.job.left_out += [row for row, other in beside if isinstance(other.item, Failure)]
        return replace(read, item=thickened(read.item, items))

    def _take(self, slice_: dict[str, Any], read: FrameRead) -> None:
        """Put a slice into the batch, or why it cannot be read into the part."""
        from pipeline.preprocessing.prepare import check

        row, modality, item = slice_["row"], slice_["modality"], read.item
        self.job.seconds["read"] += read.seconds
        if read.file_digest is not None:
            self.job.put(row, file_digest=_bytes(read.file_digest))
        try:
            if isinstance(item, Failure):
                raise UnreadableError(item.reason, item.detail)
            assert read.pixel_digest is not None
            self.job.put(row, pixel_digest=_bytes(read.pixel_digest))
            check(item)
            self.batch.append((row, self.run.volumes.ranged(slice_, item), modality))
            self._find_original(row, read.pixel_digest, modality)
        except UnreadableError as error:
            self.job.fail(row, error.reason, error.detail)
            self.run.limit.count()
            self.run.progress.advance(1)

    def _find_original(self, row: int, pixels: str, modality: str) -> None:
        """Link a row to an earlier one with the same pixels, where that has features.

        What is remembered may be of a part that was lost before its commit, or changed since.
        """
        digest, known = bytes.fromhex(pixels), self.run.originals
        original = known.find(digest, modality, row)
        if original is None or original == row:
            return
        if self._here(original):
            here = self.job.arrays["pixel_digest"][original - self.job.part.start]
            if bytes(here) != digest:
                return
        elif not known.holds(original, digest):
            self.run.settle()
            if not known.holds(original, digest):
                return
        self.job.links[row] = original

    def _here(self, row: int) -> bool:
        return self.job.part.start <= row < self.job.part.stop

    def _embed(self) -> None:
        """Send the batch through the network; its features go into the part when they come."""
        rows, items, modalities = zip(*self.batch, strict=True)
        self.batch.clear()
        deliver = functools.partial(self._deliver, rows)
        if self.job.links.keys() >= set(rows):
            self.run.forward.pass_by(deliver)
        else:
            self.run.forward.run(items, modalities, deliver, self.job.seconds)

    def _deliver(self, rows: tuple[int, ...], features: Values) -> None:
        """Put the features of a batch into the part."""
        for name, values in features.items():
            for row, value in zip(rows, values, strict=True):
                self.job.put(row, status=OK, **{name: value})
        self._link([row for row in rows if row in self.job.links])
        self.run.progress.advance(len(rows))

    def _link(self, rows: list[int]) -> None:
        """Give rows the features of their originals, of this part or of committed ones."""
        part, links = self.job.part, self.job.links
        if not rows:
            return
        far = [row for row in rows if not self._here(links[row])]
        originals = np.array([links[row] for row in far], np.int64)
        for name in self.run.forward.recipe.arrays:
            # Not `store.read`, which looks at every part: that those are committed is known.
            for row, value in zip(
                far,
                self.run.store.array(name).gather(originals, self.run.store.row_crcs),
                strict=True,
            ):
                self.job.put(row, status=OK, **{name: value})
            for row in rows:
                if self._here(links[row]):
                    value = self.job.arrays[name][links[row] - part.start]
                    self.job.put(row, status=OK, **{name: value})


def rule_number(preprocess: Preprocess, modality: str) -> int | None:
    """Return a number for the intensity rule of a modality.

    None where the file or the volume has a say too: equal pixels may then look different.
    """
    rule = preprocess.rule(modality)
    if isinstance(rule, FileWindow) or preprocess.by_volume(modality):
        return None
    return get_args(IntensityKind).index(intensity_kind(modality))


def _bytes(digest: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
