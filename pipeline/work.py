"""Parts to embed, as addresses that cross processes and machines; what came of them, as data.

A part that fails does not stop the rest: it is found, named and left out. Only what is wrong with
the whole (a config, the weights, a full disk, too many bad images) ends a run.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embed import BadLimit, Embedded, Load, Progress, Speed, embed_missing, load_network
from pipeline.names import load_key, reveal_path
from pipeline.types import Recipe
from pipeline.weights import locate
from stores import FeatureStore, PartRange
from stores._disk import write_atomic
from stores._process import me
from stores.errors import CorruptStoreError, RadprobeError, WeightsError

if TYPE_CHECKING:
    from pipeline.backbones import Backbone

log = logging.getLogger(__name__)

# In the store: what runs leave for each other and for `status`. No result depends on it.
RUNS = "runs"
_FAILED = ".failed.json"


@dataclass(frozen=True)
class Work:
    """What a process needs to embed parts of a store: addresses alone, the same everywhere.

    backbone, weights: as `pipeline.weights.locate` takes them; root: the collection's folder.
    """

    store: str
    backbone: str
    weights: str
    root: str
    speed: Speed


@dataclass(frozen=True)
class Outcome:
    """What became of some parts in one process.

    rows, linked, bad: slices embedded, linked, unreadable. held: parts that others hold, and who.
    undone: the other parts that have no receipt. error: what ended the work, if anything did.
    """

    rows: int = 0
    linked: int = 0
    bad: int = 0
    held: dict[int, str] = field(default_factory=dict)
    undone: tuple[int, ...] = ()
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


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
        Recipe.model_validate_json(store.recipe_text),
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

    Raises what is wrong with the whole.
    """
    done, failed = Embedded(), dict[int, str]()
    left = list(parts)
    while left:
        try:
            return add(done, embed(work, store, left, progress, limit)), failed
        except Exception as error:
            if _of_the_whole(error):
                raise
            log.info("Looking for the part that fails: %s", told(error, work.root))
        # Parts are done in order and claimed ahead: it is one of the first that are left.
        left = _left(store, left)
        while left:
            part = left.pop(0)
            try:
                done = add(done, embed(work, store, [part], progress, limit))
            except Exception as error:
                if _of_the_whole(error):
                    raise
                failed[part.index] = told(error, work.root)
                note_failure(store.path, part.index, failed[part.index])
                break
    return done, failed


def _left(store: FeatureStore, parts: Sequence[PartRange]) -> list[PartRange]:
    return [part for part in parts if store.receipt(part.index) is None]


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


def embed_parts(work: Work, indices: Sequence[int]) -> Outcome:
    """Embed those of the parts that have no receipt; every error is returned, none is raised.

    The store's tables and the network stay in the process for the next call.
    """
    rows = linked = 0
    seconds: dict[str, float] = {}
    error = None
    limit = BadLimit(seen=1, fraction=float("inf"))
    try:
        with _TURN:
            store = _open(work.store)
            parts = [store.layout.part(index) for index in indices]
            try:
                done = embed(work, store, parts, Progress(), limit, _kept_network)
                rows, linked, seconds = done.rows, done.linked, done.seconds
            except Exception as failure:
                error = told(failure, work.root)
            left = _left(store, parts)
            held = {part.index: owner for part in left if (owner := store.owner(part))}
    except Exception as failure:  # the store cannot be seen from here
        return Outcome(undone=tuple(indices), error=told(failure, work.root))
    undone = tuple(part.index for part in left if part.index not in held)
    return Outcome(rows, linked, limit.bad, held, undone, error, seconds)


@functools.lru_cache(maxsize=2)
def _open(path: str) -> FeatureStore:
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
    for path in sorted((store / RUNS).glob(f"*{_FAILED}")):
        note = json.loads(path.read_text(encoding="utf-8"))
        found[int(note["part"])] = f"{note['reason']} ({note['host']})"
    return found


def forget_failures(store: FeatureStore) -> None:
    """Drop the word of failures of parts that have been done since."""
    for path in (store.path / RUNS).glob(f"*{_FAILED}"):
        if store.receipt(int(path.name.removesuffix(_FAILED))) is not None:
            path.unlink(missing_ok=True)
