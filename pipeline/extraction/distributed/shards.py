"""Processes that share a store and know of each other by claims alone: shards.

Any number of them, started at any time on any machine that sees the folder. One looks at the
collection for all. Each begins at a stretch of its own of what is missing and goes on round the
ring; what dead ones leave is taken over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.config.root import Config
from pipeline.extraction.distributed.tasks import EmbedResult, Work, embed_locally
from pipeline.extraction.embed import BadLimit, Progress
from pipeline.extraction.sync import Look, update_tables
from stores import FeatureStore, PartRange
from stores._disk import read_file, write_atomic
from stores.claims import STALE_AFTER_S, Claim, owner, stems, try_claim
from stores.errors import ConfigError, CorruptStoreError, as_corrupt
from stores.features import RUNS

log = logging.getLogger(__name__)

_LOOK = "look"
_SHARD = "shard-"
# How often a process that looks gives a sign of life; a claim without one lapses (STALE_AFTER_S).
_BEAT_S = 60.0
# How often the folder is asked what other processes do. Claims and receipts are files, which may be
# made on another host: nothing else tells of them.
_POLL_S = 0.5
_WAIT_S = 2.0
# How long parts that others have claimed are waited for while none of them is done: a dead owner on
# another host is known for dead before that.
LOST_S = STALE_AFTER_S + 60.0


@dataclass(frozen=True)
class Shard:
    """One of `of` processes that share a store: number 1 to `of`. Raises ConfigError."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(
                f"A shard is I/N with I from 1 to N. Got {self.number}/{self.of} instead."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `I/N` names."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None:
            raise ConfigError(f"A shard is I/N, such as 3/8. Got {text!r} instead.")
        return cls(int(match[1]), int(match[2]))

    def ring(self, parts: Sequence[PartRange]) -> list[PartRange]:
        """Return the parts from this shard's stretch on, round to its beginning."""
        begin = (self.number - 1) * len(parts) // self.of
        return [*parts[begin:], *parts[:begin]]


@contextlib.contextmanager
def alone(store: FeatureStore, shard: Shard) -> Iterator[None]:
    """Say where another living process has the same number: two begin at the same parts then."""
    stem = f"{_SHARD}{shard.number}-of-{shard.of}"
    claim = try_claim(store.claims, stem)
    if claim is None:
        log.warning(
            "Shard %d/%d is at work already: %s. Both begin at the same parts. A part has one "
            "writer, so nothing is done twice; give each process a number of its own.",
            shard.number,
            shard.of,
            owner(store.claims, stem),
        )
        yield
        return
    try:
        with _beating(claim):
            yield
    finally:
        # Nobody else asks for what shards that were killed have left.
        for left in stems(store.claims):
            if left.startswith(_SHARD) and (of_dead := try_claim(store.claims, left)):
                of_dead.release()


# --- one look for all ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LookRecord:
    """How often the collection was looked at for shards, and by which rules the last time.

    It lies in the store (`runs/look.json`), so that every shard learns of a look that another took.
    """

    count: int = 0
    rules: str = ""

    @classmethod
    def read(cls, store: FeatureStore) -> LookRecord:
        """Return what the store's note says; nothing was looked at where there is none."""
        try:
            with as_corrupt(RUNS):
                note = json.loads(read_file(store.path / RUNS / "look.json"))
                return cls(int(note["count"]), str(note["rules"]))
        except (FileNotFoundError, CorruptStoreError):
            return cls()

    def write(self, store: FeatureStore) -> None:
        """Replace the store's note."""
        folder = store.path / RUNS
        folder.mkdir(exist_ok=True)
        write_atomic(folder / "look.json", json.dumps(vars(self)).encode())


def look_once(
    config: Config,
    store: FeatureStore,
    before: LookRecord,
    prepare: Callable[[], None],
    *,
    rehash: bool,
    workers: int,
) -> Look | None:
    """Bring the store's tables up to the collection, in this process or in another.

    before: the note when this process started: a later look, whoever took it, will do. prepare:
    called before a look of this process. Returns the look of this process, None where another
    took it.
    """
    while LookRecord.read(store).count == before.count:
        claim = try_claim(store.claims, _LOOK)
        if claim is None:
            time.sleep(_POLL_S)
            continue
        with _beating(claim):
            # Asked again under the claim: whoever held it before may have just looked.
            if LookRecord.read(store).count != before.count:
                return None
            prepare()
            store.sweep()
            this_look = update_tables(config, store, rehash=rehash, workers=workers)
            # The note comes after the tables: a crash between the two leaves tables that are right
            # and a look that another shard takes again. The other way round, the other shards
            # would go by a look that never reached the tables.
            LookRecord(before.count + 1, rules_of(config)).write(store)
            return this_look
    return None


def rules_of(config: Config) -> str:
    """Return a digest of what decides which slices a collection has."""
    text = config.data.model_dump_json() + config.preprocess.plane
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _beating(claim: Claim) -> Iterator[None]:
    """Show signs of life while the caller is busy, then give the claim back."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_S):
            claim.beat()

    thread = threading.Thread(target=beat, name="radprobe-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        claim.release()


# --- the ring ------------------------------------------------------------------------------------


def embed_ring(
    work: Work, store: FeatureStore, shard: Shard, progress: Progress, limit: BadLimit
) -> EmbedResult:
    """Embed what is missing, from the shard's stretch on, until all is done by somebody.

    What others have claimed is waited for, since they may die: it is taken over then. Returns what
    was added, with the parts of others for which nothing happened in LOST_S, and the parts that
    failed.
    """
    result = EmbedResult()
    left = store.missing()
    has_warned = False
    progressed_at = time.monotonic()
    while left:
        # Looked at anew in each round: a claim of a process that died meanwhile is not among them.
        holders = store.holders()
        free = [part for part in left if part.index not in holders]
        if free:
            more = embed_locally(work, store, shard.ring(free), progress, limit)
            result = result.then(more)
        elif time.monotonic() - progressed_at > LOST_S:
            break
        else:
            if not has_warned:
                waited_for = ", ".join(f"{i} ({holders[i].name})" for i in sorted(holders))
                log.warning("Waiting for parts that others are at work on: %s.", waited_for)
                has_warned = True
            time.sleep(_WAIT_S)
        before = len(left)
        left = [part for part in store.without_receipt(left) if part.index not in result.failed]
        if len(left) < before:
            progressed_at = time.monotonic()
    elsewhere = [f"part {part.index}: {store.owner(part)}" for part in left]
    return replace(result, embedded=replace(result.embedded, elsewhere=elsewhere))
