"""Answers as tables on a console: with intervals, and with what they came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.table import Table

from pipeline.report.wording import method_title, setting_text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pipeline.evaluation.retest import Agreement
    from pipeline.evaluation.search import Hit
    from pipeline.results import Difference, Metric, Result, Score, Segmented

RANDOM = "RANDOM WEIGHTS: an untrained network made these numbers; they say nothing of DINOv2."
# The metrics a table shows; a result's file holds the others too.
HEADLINES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "auroc": "AUROC",
    "r2": "R2",
    "mae": "MAE",
}

# What a table of segmentations shows, beside which a result's file has IoU. Where images name no
# spacing, a note says that HD95 is in pixels. A ceiling is what resizing alone leaves of Dice.
SEGMENTATION = {
    "dice": "Dice",
    "hd95": "HD95, mm",
    "nsd": "NSD",
    "dice_ceiling": "ceiling",
    "paper_dice": "paper's Dice",
    "paper_jaccard": "Jaccard",
    "fit_seconds": "fit, s",
}


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in words:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print(out: Console, table: Table) -> None:
    """Print a table with all its cells whole, also where that is wider than the console."""
    wanted = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    table.width = wanted if wanted > out.width else None
    out.print(table, crop=False)


def show_results(out: Console, results: Sequence[Result]) -> None:
    """Print a table a method, classes and numbers apart: a line a task and setting, with intervals.

    The intervals are of 95 %.
    """
    if any(result.provenance.random for result in results):
        out.print(RANDOM, style="bold yellow")
    for method, is_number in dict.fromkeys((r.method, r.kind == "regression") for r in results):
        answers = [r for r in results if (r.method, r.kind == "regression") == (method, is_number)]
        features = ", ".join(dict.fromkeys(map(_features, answers)))
        stamp = ", RANDOM WEIGHTS" if answers[0].provenance.random else ""
        scores = [(result, score) for result in answers for score in result.scores]
        shown = [name for name in HEADLINES if any(name in score.metrics for _, score in scores)]
        title = f"{method_title(method)} on {features}{stamp}"
        table = _table(title, ("task", "tested on", "setting"), [HEADLINES[n] for n in shown])
        for result, score in scores:
            table.add_row(result.task, _tested_on(result), *_score(score, shown))
        if scores:  # else the notes say why there are none
            _print(out, table)
    for result in results:
        for note in result.notes:
            out.print(f"{result.task}, {result.method}: {note}.", highlight=False)
    _show_origin(out, results)


def _features(result: Result) -> str:
    scaling = result.settings["scaling"]
    return result.features if scaling == "none" else f"{result.features} ({scaling})"


def _tested_on(result: Result) -> str:
    test, level = result.counts["test"], result.level
    if level == "patient":
        return f"{test.units} patients"
    plural = {"image": "images", "series": "series", "study": "studies"}[level]
    return f"{test.units} {plural} of {test.patients} patients"


def _score(score: Score, metrics: Sequence[str]) -> Iterator[str]:
    """Yield the cells of one line: the setting, then each metric with its interval."""
    yield setting_text(score.setting)
    for name in metrics:
        metric = score.metrics.get(name)
        yield "" if metric is None else _number(metric)


def _number(metric: Metric, sign: str = "") -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:{sign}.3f}"
    return f"{metric.value:{sign}.3f} [{metric.low:{sign}.2f}, {metric.high:{sign}.2f}]"


def _show_origin(out: Console, results: Sequence[Result]) -> None:
    """Say what was left out of the tasks, and what the answers came from."""
    for task, tally in {result.task: result.tally for result in results}.items():
        left = {name: n for name, n in tally.model_dump().items() if isinstance(n, int) and n}
        filled = left.pop("filled_labels", 0)
        if filled:
            said = f"{task}: {filled} uncertain or empty values count as 0 or 1, as asked."
            out.print(said, highlight=False)
        if left:
            each = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in left.items())
            out.print(f"{task}: left out {each}.", highlight=False)
    _show_filed(out, results)


def show_tuned(out: Console, results: Sequence[Result | Segmented], store: Path) -> None:
    """Print what of each network was trained and moved, what that took, and where it is now."""
    words, numbers = ("task", "method"), ("trained", "head", "moved", "epoch", "seconds", "peak")
    table = _table("Tuned networks", words, numbers)
    for result in results:
        for each in result.tuned:
            table.add_row(
                result.task,
                method_title(result.method),
                f"{each.trained:,} of {each.parameters:,}",
                f"{each.head:,}",
                str(len(each.moved)),
                f"{each.epoch} of {len(each.history)}",
                f"{each.seconds:.1f}",
                f"{each.peak_bytes / 2**20:,.0f} MiB",
            )
    _print(out, table)
    for result in results:
        for each in result.tuned:
            lines = (f"  {name}: {n}" for name, n in _by_kind(each.moved).items())
            said = f"{result.task}, {result.method}: moved, of how many blocks each:"
            saved = f"  saved as {store / each.weights}: backbone.weights takes it."
            for line in (said, *lines, saved):
                out.print(line, highlight=False, markup=False, soft_wrap=True)


def _by_kind(names: Sequence[str]) -> Counter[str]:
    """Count parameters by their names without the numbers of blocks."""
    return Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)


def _show_filed(out: Console, answers: Sequence[Result] | Sequence[Segmented]) -> None:
    """Say how many answers were there already, and what the others took."""
    cached = sum(answer.cached for answer in answers)
    spent = sum(answer.seconds for answer in answers if not answer.cached)
    out.print(
        f"{cached} of {len(answers)} answers were on file; "
        f"{len(answers) - cached} computed in {spent:.1f} s.",
        highlight=False,
    )


def show_segmented(out: Console, answers: Sequence[Segmented]) -> None:
    """Print a table a task: a line a head and number of patients, below it one a structure."""
    if any(answer.provenance.random for answer in answers):
        out.print(RANDOM, style="bold yellow")
    for task in dict.fromkeys(answer.task for answer in answers):
        own = [answer for answer in answers if answer.task == task]
        stamp = ", RANDOM WEIGHTS" if own[0].provenance.random else ""
        title = f"{task}: {_segmented_on(own[0])}{stamp}"
        table = _table(title, ("head", "setting"), list(SEGMENTATION.values()))
        for answer in own:
            for score in answer.scores:
                setting = ", ".join(f"{key} = {value:.3g}" for key, value in score.setting.items())
                table.add_row(answer.head, setting, *_marks(score.metrics))
                for structure, metrics in score.labels.items():
                    table.add_row("", f"  {structure}", *_marks(metrics))
        _print(out, table)
        for note in dict.fromkeys(note for answer in own for note in answer.notes):
            out.print(f"{task}: {note}.", highlight=False)
        _show_left_out(out, task, own[0])
    _show_filed(out, answers)


def _segmented_on(answer: Segmented) -> str:
    test = answer.counts["test"]
    return f"{test.units} {answer.level}s of {test.patients} patients"


def _marks(metrics: Mapping[str, Metric]) -> Iterator[str]:
    """Yield the cells of the metrics that a table of segmentations shows."""
    for name in SEGMENTATION:
        metric = metrics.get(name)
        if metric is None:
            yield ""
        elif name == "dice":
            yield _number(metric)
        else:
            yield (
                f"{metric.value:.1f}" if name in ("hd95", "fit_seconds") else f"{metric.value:.3f}"
            )


def _show_left_out(out: Console, task: str, answer: Segmented) -> None:
    """Say which masks could not be used, and which slices have none."""
    tally = answer.tally
    if tally.unmatched_labels:
        first = "; ".join(tally.unmatched_label_examples)
        out.print(f"{task}: {tally.unmatched_labels} masks cannot be used: {first}.")
    if tally.unmatched_slices:
        said = f"{task}: {tally.unmatched_slices} slices with features have no mask of it."
        out.print(said, highlight=False)


def show_hits(out: Console, hits: Sequence[Hit], random: bool) -> None:
    """Print the neighbours of a search, nearest first."""
    if random:
        out.print(RANDOM, style="bold yellow")
    table = _table("Nearest", ("path", "modality", "patient"), ("row", "slices", "cosine"))
    for hit in hits:
        row, slices, cosine = str(hit.row), str(hit.slices), f"{hit.cosine:.4f}"
        table.add_row(hit.path, hit.modality, hit.patient or "", row, slices, cosine)
    _print(out, table)


def show_differences(out: Console, found: Sequence[tuple[Result, list[Difference]]]) -> None:
    """Print what the second store scores above the first, for the metrics that tables show."""
    if any(result.provenance.random for result, _ in found):
        out.print(RANDOM, style="bold yellow")
    words = ("task", "method", "label", "metric")
    table = _table("Second less first", words, ("difference", "p (DeLong)", "p (Holm)"))
    for result, differences in found:
        for d in differences:
            if d.metric in HEADLINES:
                p = ["" if value is None else f"{value:.3g}" for value in (d.p, d.p_holm)]
                name, number = HEADLINES[d.metric], _number(d.difference, "+")
                table.add_row(result.task, result.method, d.label, name, number, *p)
    _print(out, table)


def show_agreements(out: Console, found: Sequence[Agreement], random: bool) -> None:
    """Print how far pairs of scans agree."""
    if random:
        out.print(RANDOM, style="bold yellow")
    table = _table("Repeated scans", ("of",), ("pairs", "ICC", "5th pct", "cosine", "nearest"))
    for one in found:
        shown = ((one.icc, ".3f"), (one.icc_low, ".3f"), (one.cosine, ".4f"), (one.nearest, ".0%"))
        numbers = ("" if value is None else format(value, form) for value, form in shown)
        table.add_row(one.what, str(one.pairs), *numbers)
    _print(out, table)
