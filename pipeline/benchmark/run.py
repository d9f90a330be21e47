"""Cells run one after the other, or read from file: what fails is named, and the rest goes on."""

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
from pipeline.extraction.same_store import check_store
from pipeline.results import Result, Segmented
from pipeline.segmentation.regions import update_regions
from stores import FeatureStore
from stores.errors import LabelError, RadprobeError, StoreNotFoundError, UnansweredError

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


def run(cells: Sequence[Cell], speed: Speed, report: Callable[[str], None]) -> list[Outcome]:
    """Embed each cell's store where slices are missing, then answer it, from file where it can be.

    report: called with a line a cell. A cell that fails is an Outcome with a fault; where its store
    could not be embedded, so are the others of that store.
    """
    # How many slices each store was given, or why it could not be: each is embedded once a run.
    stores: dict[Path, int | str] = {}
    outcomes = []
    for number, cell in enumerate(cells, start=1):
        place = f"[{number}/{len(cells)}]"
        started = time.perf_counter()
        embedded = 0
        for config in cell.needs:
            path = config.store
            if path not in stores:
                report(f"{place} {cell.dataset} by {cell.backbone}: {path.name}")
                stores[path] = _embed(cell.name, config, speed)
                embedded += _count(stores[path])
        done = [stores[config.store] for config in cell.needs]
        faults = [fault for fault in done if isinstance(fault, str)]
        outcome = Outcome(cell, fault=faults[0]) if faults else _answered(cell, speed)
        spent = time.perf_counter() - started
        outcome = replace(outcome, seconds=spent, embedded=embedded)
        outcomes.append(outcome)
        report(f"{place} {cell.name}: {in_words(outcome)}")
    return outcomes


def in_words(outcome: Outcome) -> str:
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
    """Return the cell's outcome, its fault where it could not be answered."""
    try:
        answers = answer(cell, speed)
    except UnansweredError as error:
        # One task that failed leaves the others answered, and the cell named as failed.
        return Outcome(cell, tuple(error.answers), fault=_fault(cell.name, error))
    except Exception as error:  # data too, as a store's fault is
        return Outcome(cell, fault=_fault(cell.name, error))
    return Outcome(cell, answers, computed=sum(not each.cached for each in answers))


def _fault(name: str, error: Exception) -> str:
    """Return an error in one line; where it is not one of ours, its trace is logged.

    A page has no paths: the lines that list the files of copies are for a console.
    """
    if isinstance(error, LabelError):
        lines = str(error).splitlines()
        return "\n".join(line for line in lines if not line.startswith("  "))
    if isinstance(error, RadprobeError):
        return str(error)
    log.debug("%s", name, exc_info=error)
    return f"{type(error).__name__}: {error}"


def answer(cell: Cell, speed: Speed) -> Answers:
    """Return the cell's answers, from file or computed."""
    if cell.method == "segment":
        return tuple(segment.segment(cell.config))
    methods = [cell.method]
    if cell.method in TUNED:
        by = tune.tune_masks if cell.of == "masks" else tune.tune
        return tuple(by(cell.config, methods, device=speed.device, workers=speed.workers))
    update_regions(cell.config)
    return tuple(evaluate.evaluate(cell.config, methods))


def on_file(cell: Cell) -> Answers:
    """Return those of the cell's answers that are on file; none where its store is not ready.

    None either where the store is not what the cell names: of another network, or other images.
    """
    try:
        for config in cell.needs:
            check_store(config)
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

    embed: slices that are missing; hours: to embed them, None where no pace is known; cells,
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
    return [_planned(of_store, filed, pace) for of_store in by_store(cells)]


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
        seconds = spent.setdefault((cell.dataset, cell.setting), [])
        seconds += [answer.seconds for answer in filed[cell.name]]
    return {key: sum(seconds) / len(seconds) for key, seconds in spent.items() if seconds}


def _planned(
    cells: Sequence[Cell], filed: dict[str, Answers], pace: dict[tuple[str, str], float]
) -> Planned:
    """Return the line of a store. cells: those of it; pace: seconds by data set and setting."""
    first = cells[0]
    todo = [cell for cell in cells if not filed[cell.name]]
    line = Planned(
        store=first.config.store.name,
        dataset=first.dataset,
        backbone=first.backbone,
        slices=0,
        embed=0,
        hours=None,
        cells=len(cells),
        answered=len(cells) - len(todo),
        head_hours=_head_hours(todo, pace),
        fault="",
    )
    try:
        planned = plan(first.config)
    except (RadprobeError, OSError) as error:  # the other stores are still to be planned
        return replace(line, fault=str(error))
    # Without a slice to embed, a pace that is not known does not matter.
    hours = planned.hours if planned.embed else 0.0
    return replace(line, slices=planned.slices, embed=planned.embed, hours=hours)


def _head_hours(todo: Sequence[Cell], pace: dict[tuple[str, str], float]) -> float | None:
    """Return the hours that the heads of cells take; None where any one's pace is not known."""
    hours = 0.0
    for cell in todo:
        seconds = pace.get((cell.dataset, cell.setting))
        if seconds is None:
            return None
        hours += seconds
    return hours / 3600


def cost(path: Path) -> float | None:
    """Return the seconds a slice took to embed, by the store's receipts."""
    try:
        return seconds_a_slice(FeatureStore.open(path))
    except StoreNotFoundError:
        return None
