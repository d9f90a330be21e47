"""What a reader must know before believing a number, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.splits import Split, load_split
from pipeline.report.figures import headline
from pipeline.report.sources import Inventory, Source
from pipeline.report.wording import count, interval, method_of, notes_once, spread
from pipeline.results import Result, Segmented
from pipeline.shared.few import FEW_PATIENTS
from stores._disk import files_in
from stores.duplicates import find_twins

# AUROC from which on the features predict a column so well that a score may rest on it.
SHORTCUT = 0.75
CHANCE = 0.5


@dataclass(frozen=True)
class ReportFinding:
    """One thing to know of a store.

    weight: `warn` may undo a result, `note` should be known, `clear` was looked for in vain.
    """

    kind: Literal["weights", "leakage", "shortcut", "chance", "stale", "data"]
    weight: Literal["warn", "note", "clear"]
    text: str


def findings(source: Source, stock: Inventory) -> list[ReportFinding]:
    """Return all findings, what may undo a result first and clear checks last."""
    every = [*_weights(source), *_leakage(source), *_shortcuts(source), *_answers(source)]
    every += _data(stock)
    # The sort is stable: within a weight the order stays that of the checks.
    return sorted(every, key=lambda finding: _ORDER.index(finding.weight))


_ORDER = ("warn", "note", "clear")


def _weights(source: Source) -> Iterator[ReportFinding]:
    if source.recipe.random:
        yield ReportFinding(
            "weights",
            "warn",
            "RANDOM WEIGHTS: an untrained network made these features. No number here says "
            "anything of a trained one; the page shows that the pipeline works.",
        )


def _leakage(source: Source) -> Iterator[ReportFinding]:
    """Say which pictures exist more than once, exactly or all but, and under whose names."""
    named = dict(zip(source.rows.tolist(), source.patients.tolist(), strict=True))
    twins = [[named[row] for row in each.rows] for each in find_twins(source.store)]
    people = [{*filter(None, names)} for names in twins]
    across = [names for names in people if len(names) > 1]
    # A slice of no known patient is nobody else, and may be anybody: that is another thing to say.
    unsure = [
        names
        for names, patients in zip(twins, people, strict=True)
        if "" in names and len(patients) < 2
    ]
    if not twins:
        yield ReportFinding("leakage", "clear", "No two slices have exactly the same pixels.")
    elif not across and not unsure:
        exist = count(len(twins), "picture exists", "pictures exist")
        text = f"{exist} more than once, each within one patient."
        yield ReportFinding("leakage", "note", text)
    if across:
        yield _copies(source, across)
    if unsure:
        yield ReportFinding("leakage", "warn", _unsure(source, len(unsure)))
    noted = notes_once([*source.results.values()])
    near = [f"{whose}: {note}" for whose, note in noted if "all but copies" in note]
    if near:
        yield ReportFinding("leakage", "warn", f"{'; '.join(near)}.")


def _unsure(source: Source, number: int) -> str:
    """Say of how many pictures a copy is of nobody knows whom."""
    exist = count(number, "picture exists", "pictures exist")
    text = f"{exist} more than once where a slice has no patient"
    if source.config is None or source.config.labels is None:
        return (
            f"{text} named here, so splits cannot be checked; report on the config, whose labels "
            "name patients."
        )
    return (
        f"{text}, in its header or in the labels, so splits cannot be checked for it. Name its "
        "patient in the labels, or leave such copies out (data.exclude); `radprobe verify` lists "
        "them."
    )


def _copies(source: Source, across: list[set[str]]) -> ReportFinding:
    """Say how many pictures stand under several patients, and on which splits' two sides."""
    torn = {}
    for path in files_in(source.store.path / "splits", "*.json"):
        if number := _on_two_sides(load_split(path), across):
            task = path.stem.rpartition("-")[0]  # the rest is the split's digest
            torn[task] = number
    if torn:
        where = "; ".join(f"{n} on two sides of the split of {task}" for task, n in torn.items())
    else:
        where = "no split on file has one on two sides"
    exist = count(len(across), "picture exists", "pictures exist")
    text = (
        f"{exist} under more than one patient: on two sides of a split, copies leak from train to "
        f"test, though its patients are apart. Checked: {where}."
    )
    return ReportFinding("leakage", "warn" if torn else "note", text)


def _on_two_sides(split: Split, across: list[set[str]]) -> int:
    """Return how many pictures have patients on more than one side of a split."""
    sides: dict[str, str] = {}
    for side, names in split.patients.items():
        sides |= dict.fromkeys(names, side)
    number = 0
    for people in across:
        # Patients that the split does not know take no part in its task.
        number += len({sides[person] for person in people if person in sides}) > 1
    return number


def _shortcuts(source: Source) -> Iterator[ReportFinding]:
    """Say how well the features predict each column that a task lists as a shortcut."""
    # Such a column is answered as the task `task/column`.
    shortcuts = [r for (task, _), r in source.results.items() if "/" in task and r.scores]
    for result in shortcuts:
        name = headline(result)
        metric = result.main_score.metrics.get(name)
        if metric is None or name != "auroc":
            continue
        task, _, column = result.task.partition("/")
        tells = f"The features tell {column} with an AUROC of {interval(metric)}"
        ends = spread(metric)
        if ends is None or ends[1] < SHORTCUT:
            yield ReportFinding("shortcut", "clear", f"{tells}; {task} hardly rests on it.")
        elif metric.value >= SHORTCUT and ends[0] > CHANCE:
            text = f"{tells}: what scores on {task} may rest on it. Compare within one {column}."
            yield ReportFinding("shortcut", "warn", text)
        else:
            text = f"{tells}: whether {task} rests on it, so few patients cannot tell."
            yield ReportFinding("shortcut", "note", text)
    if shortcuts or not source.results:
        return
    tasks = [] if source.config is None else [*source.config.tasks.values()]
    columns = dict.fromkeys(name for task in tasks for name in task.shortcuts)
    if columns:
        text = (
            f"No shortcut was looked for yet: `radprobe evaluate` asks whether the features tell "
            f"{', '.join(columns)}, which the config lists under shortcuts."
        )
    else:
        text = (
            "No shortcut was looked for: list columns such as view, site or scanner under "
            "shortcuts of a task, and a probe is asked whether the features tell them."
        )
    yield ReportFinding("shortcut", "note", text)


def _answers(source: Source) -> Iterator[ReportFinding]:
    """Say which answers are of an earlier store, near chance, or of few test patients."""
    scored = [r for r in source.results.values() if "/" not in r.task and r.scores]
    every: list[Result | Segmented] = [*scored, *source.segmented.values()]
    stale = [_query(r) for r in every if r.provenance.store != source.fingerprint]
    if stale:
        text = f"Computed before the store last changed: {'; '.join(stale)}. Evaluate again."
        yield ReportFinding("stale", "warn", text)
    unasked = [each for each in source.unfitting if not _is_asked(source, each)]
    if unasked:
        others = "; ".join(map(_query, unasked))
        text = f"Answers on file to what the config does not ask are not shown: {others}."
        yield ReportFinding("stale", "note", text)
    unfitting = [each for each in source.unfitting if _is_asked(source, each)]
    if unfitting:
        others = "; ".join(map(_query, unfitting))
        text = (
            f"Answers on file that do not fit {_what_counts(source)} are not shown, since they are "
            "of other labels, another split, other settings or an earlier state of the store: "
            f"{others}. Evaluate again to have them beside the others."
        )
        yield ReportFinding("stale", "warn" if not every else "note", text)
    ranking = [r for r in scored if "auroc" in r.main_score.metrics]
    vague = [r for r in ranking if _vague(r)]
    if vague:
        each = "; ".join(f"{_query(r)} {interval(r.main_score.metrics['auroc'])}" for r in vague)
        text = f"{len(vague)} of {len(ranking)} AUROCs cannot be told from chance: {each}."
        yield ReportFinding("chance", "note", text)
    # All answers to a task have the same test patients: it is named once.
    patients = {r.task: r.counts["test"].patients for r in every}
    few = {task: n for task, n in patients.items() if n < FEW_PATIENTS}
    if few:
        each = ", ".join(f"{task} {n}" for task, n in few.items())
        text = f"Tested on fewer than {FEW_PATIENTS} patients, so intervals say little: {each}."
        yield ReportFinding("chance", "note", text)


def _what_counts(source: Source) -> str:
    """Return what the answers on the page fit."""
    return "the config" if source.config else "the newest of their task"


def _is_asked(source: Source, answer: Result | Segmented) -> bool:
    """Return whether the config asks what was answered; without one, everything counts as asked."""
    config = source.config
    if config is None or not config.tasks:
        return True
    # A shortcut's task has its column behind the task's name.
    return answer.task.partition("/")[0] in config.tasks or answer.task in config.masks


def _vague(result: Result) -> bool:
    metric = result.main_score.metrics.get("auroc")
    ends = None if metric is None else spread(metric)
    return ends is not None and ends[0] <= CHANCE <= ends[1]


def _query(result: Result | Segmented) -> str:
    """Return what was answered, and by what, in words."""
    return f"{result.task} by {method_of(result)}"


def _data(stock: Inventory) -> Iterator[ReportFinding]:
    """Say what of the collection is not in the numbers, and what paths give away."""
    lost = dict.fromkeys(("file", "slice"), 0)
    for loss in stock.losses:
        lost[loss.what] += loss.count
    if any(lost.values()):
        each = " and ".join(count(n, what) for what, n in lost.items() if n)
        text = f"{each} could not be embedded; the reasons are listed below."
        yield ReportFinding("data", "note", text)
    if stock.waiting:
        text = f"{count(stock.waiting, 'slice')} wait to be embedded: run radprobe extract."
        yield ReportFinding("data", "warn", text)
    if named := stock.flags.get("identifier-in-path"):
        text = f"{count(named, 'slice')} have an identifier of their patient in their path."
        yield ReportFinding("data", "note", text)
