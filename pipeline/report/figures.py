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
from pipeline.evaluation.result_files import predictions_path, read_predictions
from pipeline.report import curves
from pipeline.report.curves import Curve
from pipeline.report.sources import Source
from pipeline.report.style import INK, LINES, MARKS, RULE, SERIES, SOFT, WIDTH, grid, legend, style
from pipeline.report.wording import HEADLINE, METRICS, count, method_title, setting_text, spread
from pipeline.results import Metric, Result

# More squares than these are too small for a number.
MOST_NUMBERS = 12
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A figure with its place on the page. about: what it shows, for the eye and for the ear."""

    key: str
    title: str
    about: str
    figure: Figure


@dataclass(frozen=True)
class Answer:
    """One result with its probabilities, in its last setting."""

    store: Path
    result: Result

    @cached_property
    def predicted(self) -> tuple[Truth, Floats, NDArray[np.int64] | None]:
        """Truth, probabilities (n, c) and folds."""
        return read_predictions(self.store, self.result, -1)

    @property
    def name(self) -> str:
        """How figures call it."""
        return method_title(self.result.method)

    @property
    def _number(self) -> int:
        return method_names().index(self.result.method)

    @property
    def colour(self) -> str:
        """Its method's colour, the same in every figure."""
        return SERIES[self._number % len(SERIES)]

    @property
    def line(self) -> Any:
        """Its method's line, for eyes that tell colours badly."""
        return LINES[self._number % len(LINES)]

    @property
    def mark(self) -> str:
        """Its method's mark."""
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


BAND = "Bands: 95 %, by a bootstrap over patients."
# Panel title -> what a reader must know; these stand together where a task has one label.
KINDS = {
    "ROC": "Sensitivity against false alarms on test units.",
    "Precision and recall": "Dotted: how common the label is among test units.",
    "Reliability": "How often what was predicted came true. A mark's area: its number of units.",
    "Confusion": "Rows: what is true. Columns: what was said. Shade: the share of the row.",
}


def task_figures(source: Source, task: str) -> Iterator[Drawn]:
    """Yield the figures of one task: curves, reliability, confusion, settings, subgroups."""
    results = [r for (name, _), r in source.results.items() if name == task]
    answers = [
        Answer(source.store.path, r)
        for r in results
        if r.scores and r.kind != "regression" and _predictions(source, r).is_file()
    ]
    key = "".join(c if c.isalnum() else "-" for c in task)
    if answers:
        roc = list(_curves(answers, curves.roc, ("1 - specificity", "sensitivity")))
        pr = list(_curves(answers, curves.precision_recall, ("recall", "precision")))
        kinds = [roc, pr, list(_reliability(answers)), list(_confusion(answers))]
        if len(roc) == len(pr) == 1:
            titled = [
                Panel(title if len(panels) == 1 else f"{title}, {panel.title}", panel.draw)
                for title, panels in zip(KINDS, kinds, strict=True)
                for panel in panels
            ]
            yield Drawn(
                f"{key}-curves",
                "Curves",
                " ".join([*KINDS.values(), BAND]),
                _figure(titled, answers),
            )
        else:
            for (title, about), panels in zip(KINDS.items(), kinds, strict=True):
                if panels:
                    short = f"{key}-{title.split()[0].lower()}"
                    yield Drawn(
                        short,
                        title,
                        about,
                        _figure(panels, answers if title != "Confusion" else ()),
                    )
    yield from _drawn(
        _settings(results), f"{key}-settings", "By setting",
        "What more labelled patients, or more neighbours, bring. Bands: 95 %.",
    )  # fmt: skip
    yield from _drawn(
        _subgroups(results), f"{key}-subgroups", "Subgroups",
        "The test units with each value of a column; intervals are 95 %.",
    )  # fmt: skip


def _predictions(source: Source, result: Result) -> Path:
    return predictions_path(source.store.path, result)


def _figure(panels: Sequence[Panel], answers: Sequence[Answer]) -> Figure:
    """Draw panels side by side under one legend of the answers."""
    with style():
        figure, axes = grid(len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            panel.draw(axis)
            axis.set_title(panel.title)
        handles = [Line2D([], [], color=a.colour, ls=a.line, marker=a.mark, ms=4) for a in answers]
        names = [f"{a.name} ({setting_text(a.result.scores[-1].setting)})" for a in answers]
        legend(figure, handles, names)
    return figure


def _drawn(figure: Figure | None, key: str, title: str, about: str) -> Iterator[Drawn]:
    if figure is not None:
        yield Drawn(key, title, about, figure)


# --- curves ------------------------------------------------------------------------------------

CurveOf = Callable[[Truth, Floats, NDArray[np.int64] | None, int], Curve | None]
UNIT = {"xlim": (-0.03, 1.03), "ylim": (-0.03, 1.03), "xticks": (0, 0.5, 1), "yticks": (0, 0.5, 1)}


def _curves(answers: Sequence[Answer], of: CurveOf, names: tuple[str, str]) -> Iterator[Panel]:
    """Yield a panel a label, with a line an answer."""
    for label, title in answers[0].labels.items():
        lines = [(a, c) for a in answers if (c := of(*a.predicted, label)) is not None]
        if lines:
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


# --- reliability, confusion --------------------------------------------------------------------


def _reliability(answers: Sequence[Answer]) -> Iterator[Panel]:
    labels = dict.fromkeys(label for a in answers for label in a.result.scores[-1].reliability)
    for label in labels:
        title = label or next(iter(answers[0].labels.values()))
        if answers[0].result.kind == "multiclass":
            title = "likeliest class"
        yield Panel(title, partial(_draw_reliability, answers=answers, label=label))


def _draw_reliability(axis: Axes, answers: Sequence[Answer], label: str) -> None:
    axis.plot([0, 1], [0, 1], color=RULE, lw=0.8)
    for answer in answers:
        bins = answer.result.scores[-1].reliability.get(label, ())
        x, y = [b.predicted for b in bins], [b.observed for b in bins]
        most = max((b.units for b in bins), default=1)
        axis.plot(x, y, color=answer.colour, ls=answer.line, lw=0.9)
        size = [6 + 34 * b.units / most for b in bins]
        axis.scatter(x, y, size, color=answer.colour, marker=answer.mark, lw=0)
    axis.set(xlabel="predicted", ylabel="came true", **UNIT)


def _confusion(answers: Sequence[Answer]) -> Iterator[Panel]:
    for answer in answers:
        truth, proba, _ = answer.predicted
        if answer.result.kind != "multilabel":
            counts, classes = curves.confusion(truth, proba), answer.result.classes
            yield Panel(answer.name, partial(_draw_matrix, counts=counts, classes=classes))
            continue
        for label, name in answer.labels.items():
            if not np.isnan(proba[:, label]).any():
                counts = curves.label_confusion(truth, proba, label)
                draw = partial(_draw_matrix, counts=counts, classes=("no", "yes"))
                yield Panel(f"{answer.name}: {name}", draw)


def _draw_matrix(axis: Axes, counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw counts (c, c) as shaded squares, each with its number."""
    c = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for i, j in np.ndindex(c, c):
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
    varied = [(r, key) for r in results if (key := _varied(r)) is not None]
    if not varied:
        return None
    with style():
        figure, axes = grid(len(varied))
        for axis, (result, key) in zip(axes, varied, strict=True):
            name, of = headline(result), Answer(Path(), result)
            points = [(s.setting[key], s.metrics[name]) for s in result.scores if name in s.metrics]
            x = [at for at, _ in points]
            low, high = zip(*(_ends(m) for _, m in points), strict=True)
            axis.fill_between(x, low, high, color=of.colour, alpha=0.13, lw=0)
            axis.plot(x, [m.value for _, m in points], color=of.colour, marker=of.mark, ms=3.5)
            axis.set(title=method_title(result.method), xlabel=_AXES[key], xscale="log")
            axis.set_xticks(x, [f"{at:g}" for at in x])
            axis.minorticks_off()
            axis.set_ylabel(METRICS.get(name, name))
    return figure


_AXES = {"shots": "labelled patients a class", "k": "neighbours k"}


def _varied(result: Result) -> str | None:
    """Return what differs between a result's scores, where it is one of _AXES."""
    scores = [s for s in result.scores if headline(result) in s.metrics]
    for key in _AXES:
        if len({s.setting.get(key) for s in scores}) == len(scores) > 1:
            return key
    return None


def _subgroups(results: Sequence[Result]) -> Figure | None:
    lines: list[tuple[str, list[tuple[int, Metric]]]] = []
    with_groups = [r for r in results if r.scores and r.scores[-1].subgroups]
    if not with_groups:
        return None
    name = headline(with_groups[0])
    wholes = [
        (i, r.scores[-1].metrics[name])
        for i, r in enumerate(with_groups)
        if name in r.scores[-1].metrics
    ]
    lines.append(("all", wholes))
    groups = list(dict.fromkeys(g for r in with_groups for g in r.scores[-1].subgroups))
    for group in groups:
        members = [(i, r.scores[-1].subgroups.get(group)) for i, r in enumerate(with_groups)]
        found = [(i, g.metrics[name]) for i, g in members if g is not None and name in g.metrics]
        size = next(g for _, g in members if g is not None)
        people = f"{count(size.units, 'unit')}, {count(size.patients, 'patient')}"
        if found:
            lines.append((f"{group}  ({people})", found))
    return forest(lines, [method_title(r.method) for r in with_groups], METRICS.get(name, name))


def overview(source: Source) -> Figure | None:
    """Draw every task's main metric by every method, with intervals."""
    lines: dict[str, list[tuple[int, Metric]]] = {}
    methods = list(dict.fromkeys(method for (_, method), r in source.results.items() if r.scores))
    for (task, method), result in source.results.items():
        name = headline(result)
        if name == HEADLINE[0] and result.scores and name in result.scores[-1].metrics:
            metric = result.scores[-1].metrics[name]
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
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axis = figure.add_subplot()
        if chance is not None:
            axis.axvline(chance, color=SOFT, lw=0.8, ls=":")
        for row, (_, marks) in enumerate(lines):
            if row:
                axis.axhline(row - 0.5, color=RULE, lw=0.5)
            for i, value in marks:
                at = row + (i - (len(series) - 1) / 2) * step
                axis.plot(_ends(value), [at, at], color=SERIES[i % len(SERIES)], lw=1.2)
                axis.plot(value.value, at, color=SERIES[i % len(SERIES)], marker=MARKS[i % 8], ms=4)
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
    return spread(metric) or (metric.value, metric.value)


def headline(result: Result) -> str:
    """Return the metric that sums a result up."""
    known = {name for score in result.scores for name in score.metrics}
    return next((name for name in HEADLINE if name in known), next(iter(sorted(known)), ""))
