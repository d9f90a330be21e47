"""Where the time of a run went: one sentence on what held it up, and a trace for those who dig."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path

from pipeline.inference.speed import Speed, cores
from pipeline.recipe import Recipe

# A stage that takes less of the run than this is not worth a change, nor is a run so short.
_WORTH = 0.1
_SHORT_S = 5.0
# A process that computes for so much of the time is at its limit, since one thread runs at a time.
_AT_LIMIT = 0.8
# Processes that share a card at the most: each has the network, and a CUDA context, in its memory.
_MOST_A_CARD = 4
# Batches that a trace holds.
_TRACED = 20

Seconds = MutableMapping[str, float]  # stage -> how long it took


@contextlib.contextmanager
def clock(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the time spent inside to a stage's seconds."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started


def bottleneck(seconds: Mapping[str, float], slices: int, speed: Speed, recipe: Recipe) -> str:
    """Say what a run waited for most, and what to change.

    seconds: wait (for slices), survey, preprocess, forward and stall (for the writer) of `all`;
    read: of all readers together. speed: as chosen, nothing left open. Empty for a short run.
    """
    total = seconds.get("all", 0.0)
    if total < _SHORT_S:
        return ""
    # On a GPU preprocessing is queued with the network, and holds nothing up.
    lost = {
        "reading": seconds.get("wait", 0.0) + seconds.get("survey", 0.0),
        "writing": seconds.get("stall", 0.0),
        "preprocessing": seconds.get("preprocess", 0.0) if speed.device == "cpu" else 0.0,
    }
    worst = max(lost, key=lambda stage: lost[stage])
    time_lost = f"{lost[worst]:.1f} s of {total:.1f} s"
    if lost[worst] < _WORTH * total:
        percent = 100 * seconds.get("forward", 0.0) / total
        return (
            f"The network took {percent:.0f} % of the time, {slices / total:.1f} slices/s: "
            f"{_faster(speed, recipe)}"
        )
    if worst == "reading":
        rate = slices / max(seconds.get("read", 0.0), 1e-9)
        return (
            f"Reading held the network up for {time_lost}; a core decodes {rate:.0f} slices/s: "
            f"{_faster_reading(speed)} would help."
        )
    if worst == "writing":
        return (
            f"Writing held the network up for {time_lost}: a faster disk for the store would help."
        )
    return f"Preprocessing took {time_lost}: a GPU would do it in passing."


def processes_a_card(seconds: Mapping[str, float], workers: int) -> int:
    """Return how many processes are to share a card, by what one of them did alone with it.

    More than one where that one was at its limit while the card, the disk and the readers were not:
    as many as keep the busier of card and readers at work. seconds: as `bottleneck` has them; load,
    which is no part of it; processor: what all threads of the process computed after that.
    workers: its reading processes.
    """
    total = seconds.get("all", 0.0) - seconds.get("load", 0.0)
    is_at_limit = seconds.get("processor", 0.0) > _AT_LIMIT * total
    if total <= 0.0 or not is_at_limit or seconds.get("stall", 0.0) > _WORTH * total:
        return 1
    by_card = total / max(seconds.get("forward", 0.0), 1e-9)
    by_readers = workers * total / max(seconds.get("read", 0.0), 1e-9)
    return max(1, round(min(by_card, by_readers, _MOST_A_CARD)))


def _faster_reading(speed: Speed) -> str:
    """Say what would have files decoded faster."""
    if speed.workers is not None and speed.workers < cores():
        return f"more --workers (now {speed.workers}; this machine has {cores()} cores)"
    return "a faster disk, or a machine with more cores"


def _faster(speed: Speed, recipe: Recipe) -> str:
    """Say what would have the network run faster."""
    ways = ["a smaller network"]
    # Others have an input of their own.
    if recipe.sees != "volumes" and "image_size" not in recipe.architecture.settings:
        ways.append("a smaller backbone.image_size")
    if recipe.precision == "float32":
        ways.append("backbone.precision: bfloat16")
    *first, last = ways
    named = f"{', '.join(first)} or {last}" if first else last
    verb, each = ("are", "each with") if first else ("is", "with")
    others = f"{each} other features and so another store"
    if speed.device.startswith("cuda"):
        return f"faster {verb} {named}, {others}."
    return f"a GPU is faster. So {verb} {named}, {others}."


@contextlib.contextmanager
def tracing(path: Path | None) -> Iterator[Callable[[], None]]:
    """Write a trace of the first batches, where a path is given; yields what to call a batch."""
    if path is None:
        yield lambda: None
        return
    from torch import profiler

    def write(profile: profiler.profile) -> None:
        profile.export_chrome_trace(str(path))

    path.parent.mkdir(parents=True, exist_ok=True)
    schedule = profiler.schedule(wait=0, warmup=1, active=_TRACED, repeat=1)
    with profiler.profile(schedule=schedule, on_trace_ready=write) as profile:
        yield profile.step
