"""What a reader must know before believing a number, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.splits import load_split
from pipeline.report.figures import headline
from pipeline.report.sources import Inventory, Source
from pipeline.report.wording import count, interval, method_title, spread
from pipeline.results import Result, Segmented
from stores.duplicates import find_twins

# From here on a column is told so well by the features that a score may rest on it.
TELLING = 0.75
CHANCE = 0.5
# Fewer test patients make an interval that says little.
FEW_PATIENTS = 20


@dataclass(frozen=True)
class Finding:
    """One thing said of a store. weight: `warn` may undo a result, `note` should be known."""

    kind: Literal["weights", "leakage", "shortcut", "chance", "stale", "data"]
    weight: Literal["warn", "note", "clear"]
    text: str


def findings(source: Source, stock: Inventory) -> list[Finding]:
    """Return what was found, what may undo a result first; a clear check is said as well."""
    found = [*_weights(source), *_leakage(source), *_shortcuts(source), *_answers(source)]
    found += _data(stock)
    return sorted(found, key=lambda f: ("warn", "note", "clear").index(f.weight))


def _weights(source: Source) -> Iterator[Finding]:
    if source.recipe.random:
        yield Finding(
            "weights",
            "warn",
            "RANDOM WEIGHTS: an untrained network made these features. No number here says "
            "anything of DINOv2; the page shows that the pipeline works.",
        )


def _leakage(source: Source) -> Iterator[Finding]:
    named = dict(zip(source.rows.tolist(), source.patients.tolist(), strict=True))
    twins = [[named[row] or f"row {row}" for row in t.rows] for t in find_twins(source.store)]
    across = [people for people in twins if len({*people}) > 1]
    if not twins:
        yield Finding("leakage", "clear", "No two slices have exactly the same pixels.")
    elif not across:
        exist = count(len(twins), "picture exists", "pictures exist")
        text = f"{exist} more than once, each within one patient."
        yield Finding("leakage", "note", text)
    else:
        yield _copies(source, across)
    near = [(r, n) for r in source.results.values() for n in r.notes if "all but copies" in n]
    if near:
        each = "; ".join(f"{_asked(result)}: {note}" for result, note in near)
        yield Finding("leakage", "warn", f"{each}.")


def _copies(source: Source, across: list[list[str]]) -> Finding:
    """Say how many pictures stand under several patients, and on which splits' two sides."""
    torn = {}
    for path in sorted((source.store.path / "splits").glob("*.json")):
        by_side = load_split(path).patients
        sides = {name: side for side, names in by_side.items() for name in names}
        held = [{sides[person] for person in people if person in sides} for people in across]
        if number := sum(len(each) > 1 for each in held):
            torn[path.stem.rpartition("-")[0]] = number
    nameless = sum(any(person.startswith("row ") for person in people) for people in across)
    if torn:
        where = "; ".join(f"{n} on two sides of the split of {task}" for task, n in torn.items())
    elif nameless:
        where = (
            f"of {nameless} a slice has no patient named here, so splits cannot be checked; "
            "report on the config, whose labels name patients"
        )
    else:
        where = "no split on file has one on two sides"
    exist = count(len(across), "picture exists", "pictures exist")
    text = (
        f"{exist} under more than one patient: copies leak from "
        f"train to test however patients are divided. Checked: {where}."
    )
    return Finding("leakage", "warn" if torn or nameless else "note", text)


def _shortcuts(source: Source) -> Iterator[Finding]:
    """Say how well the features tell each column that was asked beside a task."""
    asked = [r for (task, _), r in source.results.items() if "/" in task and r.scores]
    for result in asked:
        name = headline(result)
        metric = result.scores[-1].metrics.get(name)
        if metric is None or name != "auroc":
            continue
        task, _, column = result.task.partition("/")
        tells = f"The features tell {column} with an AUROC of {interval(metric)}"
        ends = spread(metric)
        if ends is None or ends[1] < TELLING:
            yield Finding("shortcut", "clear", f"{tells}; {task} hardly rests on it.")
        elif metric.value >= TELLING and ends[0] > CHANCE:
            text = f"{tells}: what scores on {task} may rest on it. Compare within one {column}."
            yield Finding("shortcut", "warn", text)
        else:
            text = f"{tells}: whether {task} rests on it, so few patients cannot tell."
            yield Finding("shortcut", "note", text)
    if not asked and source.results:
        text = (
            "No shortcut was looked for: list columns such as view, site or scanner under "
            "shortcuts of a task, and a probe is asked whether the features tell them."
        )
        yield Finding("shortcut", "note", text)


def _answers(source: Source) -> Iterator[Finding]:
    asked = [r for r in source.results.values() if "/" not in r.task and r.scores]
    every: list[Result | Segmented] = [*asked, *source.segmented.values()]
    stale = [_asked(r) for r in every if r.provenance.store != source.fingerprint]
    if stale:
        text = f"Computed before the store last changed: {'; '.join(stale)}. Evaluate again."
        yield Finding("stale", "warn", text)
    vague = [(r, r.scores[-1].metrics["auroc"]) for r in asked if _vague(r)]
    if vague:
        each = "; ".join(f"{_asked(r)} {interval(metric)}" for r, metric in vague)
        text = f"{len(vague)} of {len(asked)} AUROCs cannot be told from chance: {each}."
        yield Finding("chance", "note", text)
    few = {r.task: r.counts["test"].patients for r in every}
    few = {task: n for task, n in few.items() if n < FEW_PATIENTS}
    if few:
        each = ", ".join(f"{task} {n}" for task, n in few.items())
        text = f"Tested on fewer than {FEW_PATIENTS} patients, so intervals say little: {each}."
        yield Finding("chance", "note", text)


def _vague(result: Result) -> bool:
    metric = result.scores[-1].metrics.get("auroc")
    ends = None if metric is None else spread(metric)
    return ends is not None and ends[0] <= CHANCE <= ends[1]


def _asked(result: Result | Segmented) -> str:
    by = result.head if isinstance(result, Segmented) else method_title(result.method)
    return f"{result.task} by {by}"


def _data(stock: Inventory) -> Iterator[Finding]:
    lost = {
        what: sum(x.count for x in stock.losses if x.what == what) for what in ("file", "slice")
    }
    if any(lost.values()):
        each = " and ".join(count(n, what) for what, n in lost.items() if n)
        yield Finding(
            "data", "note", f"{each} could not be embedded; the reasons are listed below."
        )
    if stock.waiting:
        text = f"{count(stock.waiting, 'slice')} wait to be embedded: run radprobe extract."
        yield Finding("data", "warn", text)
    if telling := stock.flags.get("identifier-in-path"):
        text = f"{count(telling, 'slice')} have an identifier of their patient in their path."
        yield Finding("data", "note", text)
