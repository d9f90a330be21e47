"""Parts to embed, as addresses that cross processes and machines; what came of them, as data.

A part that fails does not stop the rest: it is found, named and left out. Only what would meet
every part alike (a config, the weights, a full disk, too many bad images) ends a run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.weights import Checkpoint
from pipeline.extraction.embed import (
    BadLimit,
    Embedded,
    EmbedSettings,
    Load,
    Progress,
    Speed,
    embed_missing,
    load_network,
)
from pipeline.recipe import Recipe
from pipeline.shared.private import INSTEAD
from pipeline.shared.pseudonyms import load_key, reveal_path
from stores import FeatureStore, PartRange
from stores._disk import read_file, write_atomic
from stores._process import me, name_of
from stores.errors import CorruptStoreError, RadprobeError, as_corrupt
from stores.features import RUNS

log = logging.getLogger(__name__)

# Parts that fail one after the other, none done in between, before a run gives up.
MAX_FAILURES_IN_A_ROW = 16
_FAILED = ".failed.json"


@dataclass(frozen=True)
class Work:
    """What a process needs to embed parts of a store: addresses alone, the same everywhere.

    backbone, weights: as `backbones.weights.find_weights` takes them; root: the collection's
    folder. stamp: of the weights file that was hashed for the store's recipe; empty where none was.
    """

    store: str
    backbone: str
    weights: str
    root: str
    speed: Speed
    stamp: str = ""

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights, and the stamp that saves a process from hashing them again."""
        return Checkpoint(self.backbone, self.weights, self.stamp)


@dataclass(frozen=True)
class EmbedResult:
    """What a run added to the store, and the parts that failed: number -> why."""

    embedded: Embedded = field(default_factory=Embedded)
    failed: dict[int, str] = field(default_factory=dict)

    def then(self, later: EmbedResult) -> EmbedResult:
        """Return what this run and a later one came to together."""
        return EmbedResult(add(self.embedded, later.embedded), self.failed | later.failed)


@dataclass(frozen=True)
class WorkerOutcome:
    """What became of some parts in one process; those not named have their receipts.

    claimed: parts that other processes are at. undone: the rest that has no receipt. error: what
    ended the work, if anything did.
    """

    claimed: tuple[int, ...] = ()
    undone: tuple[int, ...] = ()
    error: str | None = None


def embed(
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
    load: Load = load_network,
) -> Embedded:
    """Embed those of the parts that have no receipt, in their order; raises what goes wrong."""
    settings = EmbedSettings(
        checkpoint=work.checkpoint,
        root=Path(work.root),
        reveal=functools.partial(reveal_path, load_key(store.path)),
        limit=limit,
        speed=work.speed,
        progress=progress,
        load=load,
    )
    return embed_missing(store, settings, parts)


# --- in this process -------------------------------------------------------------------------


def embed_locally(
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
    load: Load = load_network,
) -> EmbedResult:
    """Embed the parts in this process; a part that fails is named and left out.

    Raises what would meet every part alike, which is also what fails for MAX_FAILURES_IN_A_ROW
    parts in a row.
    """
    return _LocalRun(work, store, progress, limit, load).embed(parts)


class _LocalRun:
    """One run in this process: parts together as long as that works, else one by one."""

    def __init__(
        self,
        work: Work,
        store: FeatureStore,
        progress: Progress,
        limit: BadLimit,
        load: Load,
    ) -> None:
        self._work = work
        self._store = store
        self._progress = progress
        self._limit = limit
        self._load = load
        self._embedded = Embedded()
        self._failed: dict[int, str] = {}
        self._failures_in_a_row = 0

    def embed(self, parts: Sequence[PartRange]) -> EmbedResult:
        """Embed the parts, or name those that fail."""
        left = list(parts)
        while left:
            try:
                self._embed(left)
                break
            except Exception as error:
                if _concerns_every_part(error):
                    raise
                log.info(
                    "Looking for the part that fails: %s", describe_error(error, self._work.root)
                )
            left = self._count_committed(left)
            self._embed_up_to_a_failure(left)
        return EmbedResult(self._embedded, self._failed)

    def _embed(self, parts: Sequence[PartRange]) -> None:
        more = embed(self._work, self._store, parts, self._progress, self._limit, self._load)
        self._embedded = add(self._embedded, more)

    def _count_committed(self, parts: list[PartRange]) -> list[PartRange]:
        """Count what a call committed before it failed; return the parts that are left.

        The call raised in the place of saying what it did: its receipts tell.
        """
        left = self._store.without_receipt(parts)
        committed = {part.index for part in parts} - {part.index for part in left}
        if committed:
            self._failures_in_a_row = 0
            more, _ = tally(self._store, committed, by=name_of(me()))
            self._embedded = add(self._embedded, more)
        return left

    def _embed_up_to_a_failure(self, left: list[PartRange]) -> None:
        """Embed parts one by one, up to one that fails, and take all of these off the list.

        Parts are done in order and claimed ahead: it is one of the first that are left.
        """
        while left:
            part = left.pop(0)
            try:
                self._embed([part])
                self._failures_in_a_row = 0
            except Exception as error:
                self._failures_in_a_row += 1
                if _concerns_every_part(error) or self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                    raise
                reason = describe_error(error, self._work.root)
                self._failed[part.index] = reason
                note_failure(self._store.path, part.index, reason)
                return


def tally(
    store: FeatureStore, indices: Iterable[int], by: str | None = None
) -> tuple[Embedded, int]:
    """Return what parts added and how many of their slices are unreadable, by their receipts.

    by: the process (`host:pid`) whose parts count; None for all.
    """
    rows = 0
    linked = 0
    unreadable = 0
    seconds: Counter[str] = Counter()
    for index in sorted(indices):
        receipt = store.receipt(index)
        if receipt is None or by not in (None, receipt.by):
            continue
        rows += receipt.embedded
        linked += len(receipt.links)
        unreadable += len(receipt.failures)
        seconds.update(receipt.seconds)
    return Embedded(rows, linked, [], dict(seconds)), unreadable


def live_slices(store: FeatureStore) -> Counter[int]:
    """Return how many live slices each part has that has any."""
    parts, counts = np.unique(store.live_rows() // store.layout.part_rows, return_counts=True)
    return Counter(dict(zip(parts.tolist(), counts.tolist(), strict=True)))


def _concerns_every_part(error: Exception) -> bool:
    """Return whether an error would meet every part alike."""
    return isinstance(error, RadprobeError) and not isinstance(error, CorruptStoreError)


def add(a: Embedded, b: Embedded) -> Embedded:
    """Return what two calls added together; what is elsewhere is as the later one saw it."""
    seconds = {
        name: round(a.seconds.get(name, 0) + b.seconds.get(name, 0), 3)
        for name in a.seconds | b.seconds
    }
    return Embedded(
        a.rows + b.rows, a.linked + b.linked, b.elsewhere, seconds, b.bottleneck or a.bottleneck
    )


# --- in a process that works for another -------------------------------------------------------

# The threads of a process share its network and its memory: one works at a time.
_TURN = threading.Lock()


class EndingError(Exception):
    """The process is asked to end: raised by the progress that `embed_parts` is given."""


def embed_parts(work: Work, indices: Sequence[int], progress: Progress) -> WorkerOutcome:
    """Embed those of the parts that have no receipt; every error is returned, none is raised.

    The store's tables and the network stay in the process for the next call. Where `progress`
    raises EndingError, claims are given back and what is undone is left without an error.
    """
    try:
        with _TURN:
            return _embed_parts(work, indices, progress)
    except Exception as failure:  # the store cannot be seen from here
        return WorkerOutcome(undone=tuple(indices), error=describe_error(failure, work.root))


def _embed_parts(work: Work, indices: Sequence[int], progress: Progress) -> WorkerOutcome:
    # A store that another took the place of, at the same path, has another recipe file.
    recipe_file = os.stat(Path(work.store, "recipe.json"))
    store = _open(work.store, recipe_file.st_mtime_ns, recipe_file.st_ino)
    parts = [store.layout.part(index) for index in indices]
    no_limit = BadLimit(seen=1, fraction=float("inf"))  # the run that gave the parts out has one
    error = None
    try:
        embed(work, store, parts, progress, no_limit, _cached_network)
    except EndingError:
        log.info("Ending: %s", work.store)
    except Exception as failure:
        error = describe_error(failure, work.root)
    # A part that another process commits between these two looks counts as undone: it goes out
    # again, and is found done then.
    left = {part.index for part in store.without_receipt(parts)}
    claimed = tuple(index for index in store.holders() if index in left)
    undone = tuple(index for index in indices if index in left and index not in claimed)
    return WorkerOutcome(claimed, undone, error)


@functools.lru_cache(maxsize=2)
def _open(path: str, *stamp: int) -> FeatureStore:
    """Open a store once; `stamp` tells it from another that took its place."""
    return FeatureStore.open(path)


def _cached_network(recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
    return _network_of(recipe.canonical(), checkpoint, speed)


@functools.lru_cache(maxsize=1)
def _network_of(recipe_text: str, checkpoint: Checkpoint, speed: Speed) -> Any:
    """Load a network once: it stays in the process for the tasks that follow."""
    return load_network(Recipe.from_text(recipe_text), checkpoint, speed)


# --- parts that failed -------------------------------------------------------------------------


def describe_error(error: BaseException, root: str) -> str:
    """Return an error in a line: its kind and words, without what may be a patient's file name."""
    words = re.sub(re.escape(root) + r"[^'\"\n]*", INSTEAD, str(error))
    first_line = next(iter(words.splitlines()), "")
    kind = type(error).__name__
    return f"{kind}: {first_line[:300]}" if first_line else kind


def note_failure(store: Path, index: int, reason: str) -> None:
    """Leave word in the store that a part failed, for `radprobe status`."""
    folder = store / RUNS
    folder.mkdir(exist_ok=True)
    note = {"part": index, "reason": reason, "time": time.time(), **me()}
    write_atomic(folder / f"{index:07d}{_FAILED}", json.dumps(note, indent=1).encode())


def noted_failures(store: Path) -> dict[int, str]:
    """Return the parts that failed in earlier runs, with why; some may have been done since."""
    failures = {}
    for path in sorted((store / RUNS).glob(f"[0-9]*{_FAILED}")):
        with contextlib.suppress(OSError, CorruptStoreError), as_corrupt(RUNS):
            note = json.loads(read_file(path))
            failures[int(note["part"])] = f"{note['reason']} ({note['host']})"
    return failures


def forget_failures(store: FeatureStore) -> None:
    """Drop the word of failures of parts that have been done since."""
    for path in (store.path / RUNS).glob(f"[0-9]*{_FAILED}"):
        index = path.name.removesuffix(_FAILED)
        if index.isdecimal() and store.receipt(int(index)) is not None:
            path.unlink(missing_ok=True)
