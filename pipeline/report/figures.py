"""Answers as figures: one for each kind of question a reader has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.heads import method_names
from pipeline.evaluation.result_files import predictions_path, read_predictions, read_thresholds
from pipeline.report import curves
from pipeline.report.curves import Curve
from pipeline.report.sources import Source
from pipeline.report.style import INK, LINES, MARKS, RULE, SERIES, SOFT, grid, legend, rows, style
from pipeline.report.wording import (
    HEADLINE,
    METRICS,
    count,
    key_of,
    method_title,
    metric_title,
    setting_text,
    spread,
)
from pipeline.results import Metric, Result

# More squares than these are too small for a number.
MOST_NUMBERS = 12
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A figure with its place on the page. about: what it shows, for the eye and for the ear.

    narrow: the same as wide as a telephone, where it has to be drawn otherwise there.
    """

    key: str
    title: str
    about: str
    figure: Figure
    narrow: Figure | None = None


@dataclass(frozen=True)
class Answer:
    """One result with its probabilities, in the setting that stands for it."""

    store: Path
    result: Result

    @cached_property
    def predicted(self) -> tuple[Truth, Floats, NDArray[np.int64] | None]:
        """The truth of n units, their probabilities (n, c), and their folds (n,) if any."""
        return read_predictions(self.store, self.result)

    @cached_property
    def thresholds(self) -> Floats:
        """(n, c): from which probability on each unit is called so; NaN where above one half."""
        return read_thresholds(self.store, self.result)

    @property
    def name(self) -> str:
        """The name in legends: the title of its method."""
        return method_title(self.result.method)

    @property
    def _number(self) -> int:
        return method_names().index(self.result.method)

    @property
    def colour(self) -> str:
        """The colour of its method, the same in every figure."""
        return SERIES[self._number % len(SERIES)]

    @property
    def line(self) -> Any:
        """The line style of its method, for eyes that confuse colours."""
        return LINES[self._number % len(LINES)]

    @property
    def mark(self) -> str:
        """The mark of its method."""
        return MARKS[self._number % len(MARKS)]

    @property
    def labels(self) -> dict[int, str]:
        """The columns that are ranked: the positive of two classes, or each."""
        names = self.result.classes
        if self.result.kind != "binary":
            return dict(enumerate(names))
        column = self.result.question.labels[0]
        return {1: column if names[1] == "1" else f"{column}: {names[1]}"}


@dataclass(frozen=True)
class Panel:
    """One small square of a figure."""

    title: str
    draw: Callable[[Axes], None]


KAPLAN_MEIER = (
    "The share of test units without the event, by time (Kaplan and Meier), in thirds by their "
    "predicted risk: of folds, by each model's own. Ticks: censored. Bands: 95 %, by a bootstrap "
    "over patients."
)
BAND = "Bands: 95 %, by a bootstrap over patients."
# Panel title -> what a reader must know; these stand together where a task has one label.
KINDS = {
    "ROC": "Sensitivity against false alarms on test units.",
    "Precision and recall": "Dotted: how common the label is among test units.",
    "Reliability": "How often what was predicted came true. A mark's area: its number of units.",
    "Confusion": "Rows: what is true. Columns: what was said, at the point that val chose. Shade: "
    "the share of the row.",
}


def task_figures(source: Source, task: str) -> Iterator[Drawn]:
    """Yield the figures of one task: curves, reliability, confusion, settings, subgroups.

    Of numbers a scatter in the place of the first three, of survival Kaplan and Meier's curves.
    """
    results = [r for (name, _), r in source.results.items() if name == task]
    answers = [Answer(source.store.path, r) for r in results if _has_predictions(source, r)]
    # The key becomes the name of a file and an id of the page: a task may be called anything.
    key = key_of(task)
    if answers and answers[0].result.kind == "regression":
        panels = [Panel(answer.name, partial(_draw_scatter, answer=answer)) for answer in answers]
        about = (
            "A dot a test unit; on the line the number is right. Below it, how far off in the mean."
        )
        yield Drawn(f"{key}-scatter", "Predicted by true", about, _figure(panels, ()))
    elif answers and answers[0].result.kind == "survival":
        panels = [Panel(answer.name, partial(_draw_survival, answer=answer)) for answer in answers]
        yield Drawn(f"{key}-survival", "Survival by risk", KAPLAN_MEIER, _figure(panels, ()))
    elif answers:
        yield from _of_predictions(key, answers)
    settings = _settings(results)
    if settings is not None:
        about = (
            "What more labelled patients, or more neighbours, bring. Bands: 95 %. A star: what "
            "val chose."
        )
        yield Drawn(f"{key}-settings", "By setting", about, settings)
    subgroups = _subgroups(results)
    if subgroups is not None:
        about = "The test units with each value of a column; intervals are 95 %."
        yield Drawn(f"{key}-subgroups", "Subgroups", about, subgroups)


def _has_predictions(source: Source, result: Result) -> bool:
    """Return whether a result has what it predicted on file; few-shot episodes do not."""
    return bool(result.scores) and predictions_path(source.store.path, result).is_file()


def _of_predictions(key: str, answers: Sequence[Answer]) -> Iterator[Drawn]:
    """Yield what probabilities show: in one figure where a label has it all, or one a kind."""
    roc = list(_curves(answers, curves.roc, ("1 - specificity", "sensitivity")))
    pr = list(_curves(answers, curves.precision_recall, ("recall", "precision")))
    # In the order of KINDS.
    panels_by_kind = [roc, pr, list(_reliability(answers)), list(_confusion(answers))]
    if len(roc) == len(pr) == 1:
        panels = []
        for title, of_kind in zip(KINDS, panels_by_kind, strict=True):
            panels += _titled(title, of_kind)
        about = " ".join([*KINDS.values(), BAND])
        yield Drawn(f"{key}-curves", "Curves", about, _figure(panels, answers))
        return
    for (title, about), panels in zip(KINDS.items(), panels_by_kind, strict=True):
        if panels:
            # Each matrix names its answer, so that figure has no legend.
            in_legend = answers if title != "Confusion" else ()
            short = f"{key}-{title.split()[0].lower()}"
            yield Drawn(short, title, about, _figure(panels, in_legend))


def _titled(title: str, panels: Sequence[Panel]) -> list[Panel]:
    """Return panels of one kind under its title; of several, each with its name too."""
    if len(panels) == 1:
        return [Panel(title, panels[0].draw)]
    return [Panel(f"{title}, {panel.title}", panel.draw) for panel in panels]


def _figure(panels: Sequence[Panel], answers: Sequence[Answer]) -> Figure:
    """Draw panels side by side under one legend of the answers."""
    with style():
        figure, axes = grid(len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            panel.draw(axis)
            axis.set_title(panel.title)
        handles = []
        names = []
        for answer in answers:
            handle = Line2D([], [], color=answer.colour, ls=answer.line, marker=answer.mark, ms=4)
            handles.append(handle)
            names.append(f"{answer.name} ({setting_text(answer.result.main_score.setting)})")
        legend(figure, handles, names)
    return figure


# --- curves ------------------------------------------------------------------------------------

CurveOf = Callable[[Truth, Floats, NDArray[np.int64] | None, int], Curve | None]
UNIT = {"xlim": (-0.03, 1.03), "ylim": (-0.03, 1.03), "xticks": (0, 0.5, 1), "yticks": (0, 0.5, 1)}


def _curves(answers: Sequence[Answer], of: CurveOf, names: tuple[str, str]) -> Iterator[Panel]:
    """Yield a panel a label, with a line an answer."""
    for label, title in answers[0].labels.items():
        lines = []
        for answer in answers:
            curve = of(*answer.predicted, label)
            if curve is not None:
                lines.append((answer, curve))
        if lines:
            # All answers have the same test units, so any one's truth has how common it is.
            truth = answers[0].predicted[0]
            share = float(truth.indicator[truth.known[:, label], label].mean())
            chance = None if of is curves.roc else share
            yield Panel(title, partial(_draw_curves, lines=lines, names=names, chance=chance))


def _draw_curves(
    axis: Axes, lines: Sequence[tuple[Answer, Curve]], names: tuple[str, str], chance: float | None
) -> None:
    """Draw lines and bands over chance: a level, or the diagonal."""
    if chance is None:
        axis.plot([0, 1], [0, 1], color=RULE, lw=0.8)
    else:
        axis.axhline(chance, color=SOFT, lw=0.8, ls=":")
    for answer, curve in lines:
        axis.fill_between(curves.GRID, curve.low, curve.high, color=answer.colour, alpha=0.13, lw=0)
        axis.plot(curve.x, curve.y, color=answer.colour, ls=answer.line)
    axis.set(xlabel=names[0], ylabel=names[1], **UNIT)


# --- numbers -----------------------------------------------------------------------------------


def _draw_scatter(axis: Axes, answer: Answer) -> None:
    """Draw what an answer predicts by what is true, on one scale, with how far it is off."""
    truth, predicted, _ = answer.predicted
    numbers = np.concatenate([truth.y, predicted[:, 0]])
    ends = [float(np.nanmin(numbers)), float(np.nanmax(numbers))]
    axis.plot(ends, ends, color=RULE, lw=0.8)
    axis.scatter(truth.y, predicted[:, 0], 8, color=answer.colour, marker=answer.mark, lw=0)
    mae = float(np.nanmean(np.abs(predicted[:, 0] - truth.y)))
    axis.set(xlabel=f"true (mean error {mae:.3g})", ylabel="predicted")


# --- survival ----------------------------------------------------------------------------------


def _draw_survival(axis: Axes, answer: Answer) -> None:
    """Draw how many of each group by risk are left without the event, with who is left at times."""
    truth, risk, fold = answer.predicted
    for number, group in enumerate(curves.survival_by_risk(truth, risk[:, 0], fold)):
        colour = SERIES[number % len(SERIES)]
        axis.fill_between(
            group.times, group.low, group.high, step="post", color=colour, alpha=0.13, lw=0
        )
        line = LINES[number % len(LINES)]
        name = f"{group.name} ({group.units}, {group.events} {answer.result.classes[0]})"
        axis.step(group.times, group.left, where="post", color=colour, ls=line, label=name)
        axis.plot(*group.censored, "|", color=colour, ms=4)
    axis.set(
        xlabel=answer.result.question.time,
        ylabel=f"without {answer.result.classes[0]}",
        ylim=(-0.03, 1.03),
    )
    axis.legend(loc="lower left", fontsize=6.5, frameon=False)


# --- reliability, confusion --------------------------------------------------------------------


def _reliability(answers: Sequence[Answer]) -> Iterator[Panel]:
    """Yield a panel a label that any answer has bins of, in the order of the answers."""
    labels: dict[str, None] = {}
    for answer in answers:
        labels |= dict.fromkeys(answer.result.main_score.reliability)
    for label in labels:
        title = label or next(iter(answers[0].labels.values()))
        if answers[0].result.kind == "multiclass":
            title = "likeliest class"
        yield Panel(title, partial(_draw_reliability, answers=answers, label=label))


def _draw_reliability(axis: Axes, answers: Sequence[Answer], label: str) -> None:
    """Draw each answer's bins: the mean prediction by how often it came true."""
    axis.plot([0, 1], [0, 1], color=RULE, lw=0.8)
    for answer in answers:
        bins = answer.result.main_score.reliability.get(label, ())
        x = [b.predicted for b in bins]
        y = [b.observed for b in bins]
        most = max((b.units for b in bins), default=1)
        axis.plot(x, y, color=answer.colour, ls=answer.line, lw=0.9)
        # Points squared: the fullest bin 40, and none so small that it is not seen.
        size = [6 + 34 * b.units / most for b in bins]
        axis.scatter(x, y, size, color=answer.colour, marker=answer.mark, lw=0)
    axis.set(xlabel="predicted", ylabel="came true", **UNIT)


def _confusion(answers: Sequence[Answer]) -> Iterator[Panel]:
    """Yield a matrix an answer; of several labels, one of each that its model could predict."""
    for answer in answers:
        truth, proba, _ = answer.predicted
        if answer.result.kind != "multilabel":
            if answer.result.kind == "binary":
                counts = curves.label_confusion(truth, proba, answer.thresholds, 1)
            else:
                counts = curves.confusion(truth, proba)
            draw = partial(_draw_matrix, counts=counts, classes=answer.result.classes)
            yield Panel(answer.name, draw)
            continue
        for label, name in answer.labels.items():
            if not np.isnan(proba[:, label]).any():
                counts = curves.label_confusion(truth, proba, answer.thresholds, label)
                draw = partial(_draw_matrix, counts=counts, classes=("no", "yes"))
                yield Panel(f"{answer.name}: {name}", draw)


def _draw_matrix(axis: Axes, counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw counts (c, c) as shaded squares, each with its number."""
    c = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for i, j in np.ndindex(c, c):
        # Never so dark that the number could not be read.
        shade = float(share[i, j]) * 0.55
        square = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=SERIES[0], alpha=shade, lw=0)
        axis.add_patch(square)
        if c <= MOST_NUMBERS:
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8)
    names = [name if len(name) <= 10 else f"{name[:9]}…" for name in classes]
    turned = max(map(len, names)) > 5
    axis.set_xticks(range(c), names, rotation=40 * turned, ha="right" if turned else "center")
    axis.set_yticks(range(c), names)
    axis.set(xlim=(-0.5, c - 0.5), ylim=(c - 0.5, -0.5), xlabel="said", ylabel="true")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


# --- settings, intervals -----------------------------------------------------------------------


def _settings(results: Sequence[Result]) -> Figure | None:
    """Draw the main metric by what was varied (shots, k, ...): a panel a result."""
    varied = []
    for result in results:
        key = _varied(result)
        if key is not None:
            varied.append((result, key))
    if not varied:
        return None
    with style():
        figure, axes = grid(len(varied))
        for axis, (result, key) in zip(axes, varied, strict=True):
            _draw_settings(axis, result, key)
    return figure


def _draw_settings(axis: Axes, result: Result, key: str) -> None:
    """Draw the main metric of a result's scores by the number that was varied."""
    name = headline(result)
    scores = [s for s in result.scores if name in s.metrics and key in s.setting]
    x = [score.setting[key] for score in scores]
    metrics = [score.metrics[name] for score in scores]
    low, high = zip(*map(_ends, metrics), strict=True)
    # For its colour and mark alone, which need no store.
    answer = Answer(Path(), result)
    axis.fill_between(x, low, high, color=answer.colour, alpha=0.13, lw=0)
    values = [metric.value for metric in metrics]
    axis.plot(x, values, color=answer.colour, marker=answer.mark, ms=3.5)
    chosen = result.main_score
    # Of shots none is chosen: the last stands for the answer.
    if result.chosen >= 0 and name in chosen.metrics and key in chosen.setting:
        at = chosen.setting[key], chosen.metrics[name].value
        axis.plot(*at, color=answer.colour, marker="*", ms=11)
    axis.set(title=method_title(result.method), xlabel=_AXES[key], xscale="log")
    # Ticks where something was computed, in the place of the decades of a logarithmic axis.
    axis.set_xticks(x, [f"{at:g}" for at in x])
    axis.minorticks_off()
    axis.set_ylabel(metric_title(name))


_AXES = {"shots": "labelled patients a class", "k": "neighbours k"}


def _varied(result: Result) -> str | None:
    """Return what differs between a result's scores, where it is one of _AXES."""
    scores = [s for s in result.scores if headline(result) in s.metrics]
    for key in _AXES:
        # What folds chose is of none of them: its setting is empty.
        values = [s.setting[key] for s in scores if key in s.setting]
        if len(set(values)) == len(values) > 1:
            return key
    return None


def _subgroups(results: Sequence[Result]) -> Figure | None:
    """Draw the main metric on all test units, then on those of each subgroup."""
    with_groups = [r for r in results if r.scores and r.main_score.subgroups]
    if not with_groups:
        return None
    name = headline(with_groups[0])
    scores = [r.main_score for r in with_groups]
    on_all = [(i, s.metrics[name]) for i, s in enumerate(scores) if name in s.metrics]
    lines = [("all", on_all)]
    groups: dict[str, None] = {}
    for score in scores:
        groups |= dict.fromkeys(score.subgroups)
    for group in groups:
        members = [(i, s.subgroups[group]) for i, s in enumerate(scores) if group in s.subgroups]
        marks = [(i, subgroup.metrics[name]) for i, subgroup in members if name in subgroup.metrics]
        # All methods have the same test units: any one's counts are those of the group.
        _, size = members[0]
        people = f"{count(size.units, 'unit')}, {count(size.patients, 'patient')}"
        if marks:
            lines.append((f"{group}  ({people})", marks))
    names = [method_title(r.method) for r in with_groups]
    return forest(lines, names, metric_title(name))


def overview(source: Source) -> Figure | None:
    """Draw every task's main metric by every method, with intervals."""
    lines: dict[str, list[tuple[int, Metric]]] = {}
    scored = [method for (_, method), result in source.results.items() if result.scores]
    methods = list(dict.fromkeys(scored))
    for (task, method), result in source.results.items():
        name = headline(result)
        if name == HEADLINE[0] and result.scores and name in result.main_score.metrics:
            # One setting stands for a result everywhere: most shots, the neighbours val chose.
            metric = result.main_score.metrics[name]
            lines.setdefault(task, []).append((methods.index(method), metric))
    names = [method_title(method) for method in methods]
    return forest(list(lines.items()), names, METRICS[HEADLINE[0]], chance=0.5) if lines else None


def forest(
    lines: Sequence[tuple[str, list[tuple[int, Metric]]]],
    series: Sequence[str],
    metric: str,
    chance: float | None = None,
) -> Figure:
    """Draw intervals: a row a line, a mark a series; a grey line at `chance`, or at the first."""
    step = 0.8 / max(len(series), 1)
    with style():
        height = 0.75 + len(lines) * max(0.26, 0.13 * len(series))
        figure, axis = rows(height)
        if chance is not None:
            axis.axvline(chance, color=SOFT, lw=0.8, ls=":")
        for row, (_, marks) in enumerate(lines):
            if row:
                axis.axhline(row - 0.5, color=RULE, lw=0.5)
            for i, value in marks:
                # Marks of one row lie above each other, around its middle.
                at = row + (i - (len(series) - 1) / 2) * step
                colour = SERIES[i % len(SERIES)]
                axis.plot(_ends(value), [at, at], color=colour, lw=1.2)
                axis.plot(value.value, at, color=colour, marker=MARKS[i % 8], ms=4)
        axis.set_yticks(range(len(lines)), [name for name, _ in lines], color=INK)
        axis.set(ylim=(len(lines) - 0.5, -0.5), xlabel=f"{metric}, 95 % interval")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        handles = [
            Line2D([], [], color=SERIES[i % len(SERIES)], marker=MARKS[i % 8], ms=4, lw=1.2)
            for i in range(len(series))
        ]
        legend(figure, handles, series)
    return figure


def _ends(metric: Metric) -> tuple[float, float]:
    """Return the ends of a metric's interval; without one, its value twice."""
    return spread(metric) or (metric.value, metric.value)


def headline(result: Result) -> str:
    """Return the metric that sums a result up."""
    known: set[str] = set()
    for score in result.scores:
        known |= score.metrics.keys()
    for name in HEADLINE:
        if name in known:
            return name
    # Of a metric that is not listed, the first by name; "" of a result without scores.
    return min(known, default="")
