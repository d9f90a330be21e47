"""The parts of a run ahead of their turn: claimed one by one, their files requested in order."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.extraction.part import PartInFlight
from pipeline.extraction.stamps import slices_and_stamps
from pipeline.extraction.volume_part import WholeVolumes
from pipeline.io.types import Request
from pipeline.preprocessing.volume_range import Ranges, Volumes
from pipeline.recipe import Preprocess
from stores import FeatureStore, PartRange
from stores.slices import SliceRow
from stores.uninterrupted import uninterrupted

# Parts that are claimed and requested before their turn, so that the readers go on while one is
# embedded. Few: what is claimed here is out of reach for other processes.
PARTS_AHEAD = 2


class UpcomingParts:
    """Parts without a receipt, in order: the next to be filled, and what is to be read for them.

    waiting: claimed and not begun, at most PARTS_AHEAD. Whoever has them releases their claims.
    slices: of all parts, as the table was when the run began.
    """

    def __init__(
        self,
        store: FeatureStore,
        parts: Sequence[PartRange],
        preprocess: Preprocess,
        reveal: Callable[[str], str],
    ) -> None:
        """reveal: stored path -> path, both relative to the collection."""
        self.slices, self._stamps = slices_and_stamps(store, parts, preprocess)
        known = functools.partial(_known_ranges, store)
        if preprocess.volume is None:
            self.volumes = Volumes(preprocess, self.slices.joined, known)
        else:
            self.volumes = WholeVolumes(preprocess, self.slices.joined)
        self.waiting: deque[PartInFlight] = deque()
        self._store = store
        self._preprocess = preprocess
        self._reveal = reveal
        self._unclaimed = iter(parts)
        self._requests: Iterator[Request] = iter(())  # of the part that was claimed last

    def next_request(self) -> Request | None:
        """Return the next file to be read; None where enough parts wait, or none is left.

        A part is claimed here, when its first file is to be read and no sooner: other processes
        may have nothing to do.
        """
        while (request := next(self._requests, None)) is None:
            if len(self.waiting) >= PARTS_AHEAD or not self._claim_next():
                return None
        return request

    def _claim_next(self) -> bool:
        """Claim the next part that nobody has done or is at; return whether there was one."""
        for part in self._unclaimed:
            # Looked at first: where many share a store, most parts are done when their turn comes.
            # And a part may have lost all its slices since it was given out.
            if not self.slices.counts[part.index]:
                continue
            if self._store.receipts.believed(part.index) is not None:
                continue
            # The claims of those that wait are given back, whatever fails or breaks in behind this.
            with uninterrupted():
                claim = self._store.claim(part)
                if claim is None:  # another process has it
                    continue
                claimed = PartInFlight(part, claim)
                self.waiting.append(claimed)
            self._prepare(claimed)
            self._requests = self._requests_of(claimed)
            return True
        return False

    def _prepare(self, claimed: PartInFlight) -> None:
        """Look up a part's slices, and what else is to be read for them."""
        claimed.slices = self.slices.of(claimed.part)
        claimed.survey = self.volumes.take(claimed.slices)
        claimed.neighbours = self.slices.neighbours(claimed.slices, self._preprocess.thickens)

    def _requests_of(self, claimed: PartInFlight) -> Iterator[Request]:
        """Yield what to read for a part, in the order in which it is filled; a file at a time."""
        # Volumes come before the part's own slices, which are scaled by their ranges.
        surveyed: list[SliceRow] = []
        for volume in claimed.survey.values():
            surveyed += volume
        yield from self._by_file(surveyed)
        if self._preprocess.volume is not None:
            return  # all slices of the part are in these
        slices: list[SliceRow] = []
        for slice_ in claimed.slices:
            slices.append(slice_)
            slices += claimed.neighbours.get(slice_.row, ())
        yield from self._by_file(slices)

    def _by_file(self, slices: Iterable[SliceRow]) -> Iterator[Request]:
        """Yield one request for each run of slices that are of the same file."""
        files: list[tuple[str, tuple[int, ...]]] = []
        for path, group in itertools.groupby(slices, key=lambda slice_: slice_.path):
            files.append((path, tuple(slice_.frame for slice_ in group)))
        stamps = self._stamps.of([path for path, _ in files])
        for (path, frames), stamp in zip(files, stamps, strict=True):
            yield Request(self._reveal(path), frames, stamp)


def _known_ranges(store: FeatureStore, rows: Iterable[int]) -> Ranges:
    """Return the ranges of volumes that the receipts of some rows' parts tell."""
    ranges: Ranges = {}
    for index in sorted({row // store.layout.part_rows for row in rows}):
        receipt = store.receipt(index)
        for volume in () if receipt is None else receipt.ranges:
            ranges[volume.row] = (volume.low, volume.high)
    return ranges
