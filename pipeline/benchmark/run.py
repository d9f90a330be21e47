"""Cells run one after the other, or told from file: what fails is named, and the rest goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import evaluate, segment, tune
from pipeline.benchmark.settings import Cell
from pipeline.config.heads import TUNED
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.extraction.plan import plan, seconds_a_slice
from pipeline.results import Result, Segmented
from stores import FeatureStore
from stores.errors import RadprobeError, StoreNotFoundError

log = logging.getLogger(__name__)

Answers = tuple[Result | Segmented, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: its answers, or why it has none; computed: how many were not on file.

    embedded: slices that its store was given first.
    """

    cell: Cell
    answers: Answers = ()
    computed: int = 0
    embedded: int = 0
    seconds: float = 0.0
    fault: str = ""


def run(cells: Sequence[Cell], speed: Speed, tell: Callable[[str], None]) -> list[Outcome]:
    """Embed each cell's store where slices are missing, then answer it, from file where it can be.

    tell: called with a line a cell. A cell that fails is an Outcome with a fault; where its store
    could not be embedded, so are the others of that store.
    """
    stores: dict[Path, int | str] = {}
    found = []
    for number, cell in enumerate(cells, start=1):
        started, embedded = time.perf_counter(), 0
        for config in cell.needs:
            path = config.store
            if path not in stores:
                tell(f"[{number}/{len(cells)}] {cell.dataset} by {cell.backbone}: {path.name}")
                stores[path] = _embed(cell.name, config, speed)
                embedded += _count(stores[path])
        faults = [done for each in cell.needs if isinstance(done := stores[each.store], str)]
        outcome = Outcome(cell, fault=faults[0]) if faults else _answered(cell, speed)
        spent = time.perf_counter() - started
        found.append(replace(outcome, seconds=spent, embedded=embedded))
        tell(f"[{number}/{len(cells)}] {cell.name}: {said(found[-1])}")
    return found


def said(outcome: Outcome) -> str:
    """Return what came of a cell in words."""
    if outcome.fault:
        return f"failed: {outcome.fault}"
    embedded = f"{outcome.embedded} slices embedded, " if outcome.embedded else ""
    if not outcome.computed:
        return f"{embedded}on file"
    return f"{embedded}{outcome.computed} of {len(outcome.answers)} answers computed"


def _count(done: int | str) -> int:
    return 0 if isinstance(done, str) else done


def _embed(name: str, config: Config, speed: Speed) -> int | str:
    """Return how many slices were embedded, or why they could not be."""
    try:
        summary = extract(config, speed)
    except Exception as error:  # a cell's fault is data; the others are still to run
        return _fault(name, error)
    if not summary.slices:
        return f"no image was found in {config.data.root}"
    return summary.embedded


def _answered(cell: Cell, speed: Speed) -> Outcome:
    try:
        answers = answer(cell, speed)
    except Exception as error:  # as above
        return Outcome(cell, fault=_fault(cell.name, error))
    return Outcome(cell, answers, computed=sum(not each.cached for each in answers))


def _fault(name: str, error: Exception) -> str:
    if isinstance(error, RadprobeError):
        return str(error)
    log.debug("%s", name, exc_info=error)
    return f"{type(error).__name__}: {error}"


def answer(cell: Cell, speed: Speed) -> Answers:
    """Return the cell's answers, from file or computed."""
    if cell.method == "segment":
        return tuple(segment.segment(cell.config))
    asked = [cell.method]
    if cell.method in TUNED:
        by = tune.tune_masks if cell.of == "masks" else tune.tune
        return tuple(by(cell.config, asked, device=speed.device, workers=speed.workers))
    return tuple(evaluate.evaluate(cell.config, asked))


def on_file(cell: Cell) -> Answers:
    """Return those of the cell's answers that are on file; none where they cannot be asked yet."""
    try:
        if cell.method == "segment":
            return tuple(segment.on_file(cell.config))
        if cell.of == "masks":
            return tuple(segment.on_file(cell.config, [cell.method]))
        return tuple(evaluate.on_file(cell.config, [cell.method]))
    except RadprobeError as error:
        log.debug("%s: %s", cell.name, error)
        return ()


# --- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A store of the plan, and its cells.

    embed: slices that are missing; hours: to embed them, None where nothing tells the pace; cells,
    answered: how many there are and how many are on file; head_hours: for the others, by what the
    same settings took elsewhere. fault: why it cannot be looked at.
    """

    store: str
    dataset: str
    backbone: str
    slices: int
    embed: int
    hours: float | None
    cells: int
    answered: int
    head_hours: float | None
    fault: str


def plan_of(cells: Sequence[Cell]) -> list[Planned]:
    """Return what is there and what is missing, a line a store."""
    filed = {cell.name: on_file(cell) for cell in cells}
    pace = _seconds_of(cells, filed)
    return [_planned(own, filed, pace) for own in by_store(cells)]


def by_store(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield the cells of each store."""
    stores: dict[Path, list[Cell]] = {}
    for cell in cells:
        stores.setdefault(cell.config.store, []).append(cell)
    yield from stores.values()


def _seconds_of(cells: Sequence[Cell], filed: dict[str, Answers]) -> dict[tuple[str, str], float]:
    """Return the mean seconds of an answer on file, by data set and setting."""
    spent: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        own = spent.setdefault((cell.dataset, cell.setting), [])
        own += [each.seconds for each in filed[cell.name]]
    return {key: sum(own) / len(own) for key, own in spent.items() if own}


def _planned(
    own: Sequence[Cell], filed: dict[str, Answers], pace: dict[tuple[str, str], float]
) -> Planned:
    first = own[0]
    todo = [cell for cell in own if not filed[cell.name]]
    known = [pace.get((cell.dataset, cell.setting)) for cell in todo]
    sure = [seconds for seconds in known if seconds is not None]
    heads = sum(sure) / 3600 if len(sure) == len(known) else None
    slices = embed = 0
    hours: float | None = None
    fault = ""
    try:
        planned = plan(first.config)
        slices, embed, hours = planned.slices, planned.embed, planned.hours
        hours = hours if embed else 0.0
    except (RadprobeError, OSError) as error:
        fault = str(error)
    return Planned(
        first.config.store.name,
        first.dataset,
        first.backbone,
        slices,
        embed,
        hours,
        len(own),
        len(own) - len(todo),
        heads,
        fault,
    )


def cost(path: Path) -> float | None:
    """Return the seconds a slice took to embed, by the store's receipts."""
    try:
        return seconds_a_slice(FeatureStore.open(path))
    except StoreNotFoundError:
        return None
