"""How far a store is, and who is at it: known from its folder alone, so from any machine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipeline.extraction.distributed.tasks import live_slices, noted_failures
from stores import FeatureStore
from stores.claims import Holder
from stores.slices import is_withdrawn

# The rate is that of the parts committed in this time.
RECENT_S = 900.0


@dataclass(frozen=True)
class Running:
    """A part at work: who holds it (`host:pid`), for how long, how long since a sign of life."""

    part: int
    by: str
    for_s: float
    silent_s: float


@dataclass(frozen=True)
class Writing:
    """The one writer of a store at a URL (`host:pid`): for how long, how long since a sign."""

    by: str
    for_s: float
    silent_s: float


@dataclass(frozen=True)
class Failed:
    """A part that failed in the last run that tried it, and why."""

    part: int
    reason: str


@dataclass(frozen=True)
class Status:
    """How far a store is.

    modalities: slices by modality, the commonest first. writer: of a store at a URL, where one is
    at it. slices_per_s: of late, by all that are at it; None where nobody is, and at a URL, where
    the times of commits are not kept. is_there: whether there is a store by now.
    """

    store: str
    slices: int
    slices_done: int
    parts: int
    parts_done: int
    running: list[Running]
    writer: Writing | None
    failed: list[Failed]
    slices_per_s: float | None
    seconds_left: float | None
    modalities: dict[str, int] = field(default_factory=dict)
    is_there: bool = True

    @classmethod
    def before(cls, store: Path) -> Status:
        """Return that of a store which no run has made yet."""
        return cls(str(store), 0, 0, 0, 0, [], None, [], None, None, is_there=False)


def status(path: Path) -> Status:
    """Return how far a store is. Raises StoreNotFoundError."""
    store = FeatureStore.open(path)
    slices = live_slices(store)
    # Claims first: a part that is committed between the two looks is done, not gone.
    holders = store.holders()
    committed = _commit_times(store, sorted(slices))
    done = sum(slices[index] for index in committed)
    unfinished = len(committed) < len(slices) and store.storage.dates_commits
    rate = _rate(committed, slices, time.time()) if unfinished else None
    left = slices.keys() - committed.keys()
    return Status(
        store=store.place,
        slices=slices.total(),
        slices_done=done,
        parts=len(slices),
        parts_done=len(committed),
        running=[_running(index, holders[index]) for index in sorted(holders) if index in left],
        writer=_writing(store),
        failed=[
            Failed(index, reason)
            for index, reason in noted_failures(store.path).items()
            if index in left
        ],
        slices_per_s=rate,
        seconds_left=(slices.total() - done) / rate if rate else None,
        modalities=_modalities(store),
    )


def _modalities(store: FeatureStore) -> dict[str, int]:
    """Return how many live slices each modality has, the commonest first."""
    table = store.slices(["modality", "withdrawn"])
    live = table.filter(pa.array(~is_withdrawn(table)))
    return dict(Counter(live["modality"].to_pylist()).most_common())


def _commit_times(store: FeatureStore, parts: list[int]) -> dict[int, float]:
    """Return when each committed part was committed, in seconds since the epoch."""
    times = {}
    for index in parts:
        stamp = store.receipts.believed(index)
        if stamp is not None:
            times[index] = stamp[0] / 1e9
    return times


def _running(part: int, holder: Holder) -> Running:
    return Running(part, holder.name, round(holder.for_s, 1), round(holder.silent_s, 1))


def _writing(store: FeatureStore) -> Writing | None:
    holder = store.writer()
    if holder is None:
        return None
    return Writing(holder.name, round(holder.for_s, 1), round(holder.silent_s, 1))


def _rate(committed: dict[int, float], slices: dict[int, int], now: float) -> float | None:
    """Return slices a second since the first of the parts that were committed of late."""
    recent = sorted(
        (when, slices[index]) for index, when in committed.items() if when > now - RECENT_S
    )
    if len(recent) < 2 or now <= recent[0][0]:
        return None
    # The first part tells when the others began; how long it took itself is not known.
    since = recent[0][0]
    return sum(n for _, n in recent[1:]) / (now - since)
