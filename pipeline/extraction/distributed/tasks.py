"""Parts to embed, as addresses that cross processes and machines; what came of them, as data.

A part that fails does not stop the rest: it is found, named and left out. Only what is wrong with
the whole (a config, the weights, a full disk, too many bad images) ends a run.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbones.weights import locate
from pipeline.extraction.embed import (
    BadLimit,
    Embedded,
    Load,
    Progress,
    Speed,
    embed_missing,
    load_network,
)
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.pseudonyms import load_key, reveal_path
from stores import FeatureStore, PartRange
from stores._disk import write_atomic
from stores._process import me, name_of
from stores.errors import CorruptStoreError, RadprobeError, WeightsError
from stores.features import RUNS

if TYPE_CHECKING:
    from pipeline.backbones.load import Backbone

log = logging.getLogger(__name__)

# Parts that fail one after the other, none done in between, before a run gives up.
HOPELESS = 16
_FAILED = ".failed.json"


@dataclass(frozen=True)
class Work:
    """What a process needs to embed parts of a store: addresses alone, the same everywhere.

    backbone, weights: as `pipeline.backbones.weights.locate` takes them; root: the collection's
    folder.
    """

    store: str
    backbone: str
    weights: str
    root: str
    speed: Speed


@dataclass(frozen=True)
class Outcome:
    """What became of some parts in one process; those not named have their receipts.

    held: parts that other processes hold. undone: the rest that has no receipt. error: what ended
    the work, if anything did.
    """

    held: tuple[int, ...] = ()
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
    return embed_missing(
        store,
        recipe_of(store),
        work.backbone,
        work.weights,
        Path(work.root),
        functools.partial(reveal_path, load_key(store.path)),
        work.speed,
        progress,
        limit,
        parts,
        load,
    )


# --- here ------------------------------------------------------------------------------------


def embed_here(
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
) -> tuple[Embedded, dict[int, str]]:
    """Embed the parts in this process; return what was added, and the parts that failed with why.

    Raises what is wrong with the whole, which is also what fails for HOPELESS parts in a row.
    """
    done, failed, fails = Embedded(), dict[int, str](), 0
    left = list(parts)
    while left:
        try:
            return add(done, embed(work, store, left, progress, limit)), failed
        except Exception as error:
            if _of_the_whole(error):
                raise
            log.info("Looking for the part that fails: %s", told(error, work.root))
        before, left = left, store.without_receipt(left)
        if len(left) < len(before):
            fails = 0
            news = {part.index for part in before} - {part.index for part in left}
            done = add(done, tally(store, news, name_of(me()))[0])
        # Parts are done in order and claimed ahead: it is one of the first that are left.
        while left:
            part = left.pop(0)
            try:
                done = add(done, embed(work, store, [part], progress, limit))
                fails = 0
            except Exception as error:
                fails += 1
                if _of_the_whole(error) or fails == HOPELESS:
                    raise
                failed[part.index] = told(error, work.root)
                note_failure(store.path, part.index, failed[part.index])
                break
    return done, failed


def tally(
    store: FeatureStore, indices: Iterable[int], by: str | None = None
) -> tuple[Embedded, int]:
    """Return what parts added and how many of their slices are unreadable, by their receipts.

    by: the process (`host:pid`) whose parts count; None for all.
    """
    rows = linked = bad = 0
    seconds: Counter[str] = Counter()
    for index in sorted(indices):
        receipt = store.receipt(index)
        if receipt is None or by not in (None, receipt.by):
            continue
        rows += receipt.embedded
        linked += len(receipt.links)
        bad += len(receipt.failures)
        seconds.update(receipt.seconds)
    return Embedded(rows, linked, [], dict(seconds)), bad


def live_slices(store: FeatureStore) -> Counter[int]:
    """Return how many live slices each part has that has any."""
    parts, counts = np.unique(store.live_rows() // store.layout.part_rows, return_counts=True)
    return Counter(dict(zip(parts.tolist(), counts.tolist(), strict=True)))


def _of_the_whole(error: Exception) -> bool:
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


def embed_parts(work: Work, indices: Sequence[int], progress: Progress) -> Outcome:
    """Embed those of the parts that have no receipt; every error is returned, none is raised.

    The store's tables and the network stay in the process for the next call. Where `progress`
    raises EndingError, claims are given back and what is undone is left without an error.
    """
    error = None
    no_limit = BadLimit(seen=1, fraction=float("inf"))  # the run that gave the parts out has one
    try:
        with _TURN:
            about = os.stat(Path(work.store, "recipe.json"))
            store = _open(work.store, about.st_mtime_ns, about.st_ino)
            parts = [store.layout.part(index) for index in indices]
            try:
                embed(work, store, parts, progress, no_limit, _kept_network)
            except EndingError:
                log.info("Ending: %s", work.store)
            except Exception as failure:
                error = told(failure, work.root)
            left = store.without_receipt(parts)
            held = tuple(index for index in store.holders() if index in {p.index for p in left})
    except Exception as failure:  # the store cannot be seen from here
        return Outcome(undone=tuple(indices), error=told(failure, work.root))
    undone = tuple(part.index for part in left if part.index not in held)
    return Outcome(held, undone, error)


@functools.lru_cache(maxsize=2)
def _open(path: str, *stamp: int) -> FeatureStore:
    """Open a store once; `stamp` tells it from another that took its place."""
    return FeatureStore.open(path)


def _kept_network(name: str, weights: Path | str, recipe: Recipe, speed: Speed) -> Backbone:
    return _checked_network(name, str(weights), recipe.canonical(), speed)


@functools.lru_cache(maxsize=1)
def _checked_network(name: str, weights: str, recipe_text: str, speed: Speed) -> Backbone:
    """Load a network, sure that its weights are the store's: each machine has files of its own."""
    recipe = Recipe.model_validate_json(recipe_text)
    found = locate(name, weights)
    if found.identity != recipe.weights:
        raise WeightsError(
            f"The weights {weights!r} are {found.identity} on this machine; the store was made by "
            f"{recipe.weights}. Every machine needs the same file there."
        )
    return load_network(name, weights, recipe, speed)


# --- parts that failed -------------------------------------------------------------------------


def told(error: BaseException, root: str) -> str:
    """Return an error in a line: its kind and words, without what may be a patient's file name."""
    words = re.sub(re.escape(root) + r"[^'\"\n]*", "<a file of the collection>", str(error))
    first = next(iter(words.splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__


def note_failure(store: Path, index: int, reason: str) -> None:
    """Leave word in the store that a part failed, for `radprobe status`."""
    folder = store / RUNS
    folder.mkdir(exist_ok=True)
    note = {"part": index, "reason": reason, "time": time.time(), **me()}
    write_atomic(folder / f"{index:07d}{_FAILED}", json.dumps(note, indent=1).encode())


def noted_failures(store: Path) -> dict[int, str]:
    """Return the parts that failed in earlier runs, with why; some may have been done since."""
    found = {}
    for path in sorted((store / RUNS).glob(f"[0-9]*{_FAILED}")):
        note = json.loads(path.read_text(encoding="utf-8"))
        found[int(note["part"])] = f"{note['reason']} ({note['host']})"
    return found


def forget_failures(store: FeatureStore) -> None:
    """Drop the word of failures of parts that have been done since."""
    for path in (store.path / RUNS).glob(f"[0-9]*{_FAILED}"):
        if store.receipt(int(path.name.removesuffix(_FAILED))) is not None:
            path.unlink(missing_ok=True)
