"""Segmentations as figures: structures, what more patients bring, and predictions over images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.evaluation.result_files import read_units
from pipeline.report.figures import Drawn, forest
from pipeline.report.sources import Source
from pipeline.report.style import LINES, MARKS, NARROW, SERIES, WIDTH, grid, legend, style
from pipeline.report.wording import METRICS, key_of, spread
from pipeline.results import Metric, Score, Segmented
from pipeline.segmentation import pictures
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.predictions import read_predicted
from stores.errors import ConfigError, LabelError, UnreadableError, as_corrupt

log = logging.getLogger(__name__)

# Pixels of an overlay's side.
SIDE = 160
SHOWN = {1: ("only",), 2: ("worst", "best"), 3: ("worst", "median", "best")}
Labels = NDArray[np.uint8]
Cell = tuple[str, Any]  # what stands below a picture (S, S, 3), and the picture


def segmentation_figures(source: Source, task: str) -> Iterator[Drawn]:
    """Yield the figures of the masks of one name: structures, few-shot curves, overlays."""
    answers = [answer for (name, _), answer in source.segmented.items() if name == task]
    key = key_of(task) + "-segmented"
    yield Drawn(
        f"{key}-structures",
        "By structure",
        f"Dice of each test {answers[0].level} at its own resolution, all training patients; "
        "beside each head, the time it trained for. Intervals: 95 %, other test patients.",
        _structures(answers),
    )
    few = [answer for answer in answers if len(answer.scores) > 1]
    if few:
        yield Drawn(
            f"{key}-patients",
            "Few shots",
            "Dice by the number of training patients, over several draws of them; the last mark is "
            "all of them. Bands: 95 %, other draws and other test patients.",
            _few_shots(few),
        )
    drawn = _overlays(source, task)
    if drawn is not None:
        yield Drawn(
            f"{key}-overlays",
            "Overlays",
            f"The {answers[0].level}s of worst, median and best Dice over all heads, by the slice "
            "with most of the mask; below each, the Dice of the whole. Names may be burned into "
            "the pixels.",
            *drawn,
        )


def _by_structure(answer: Segmented, score: Score) -> dict[str, dict[str, Metric]]:
    """Return the metrics by structure, also where there is a single one."""
    return score.labels or {answer.classes[1]: score.metrics}


def _structures(answers: Sequence[Segmented]) -> Figure:
    """Draw Dice by structure: a mark a head, at its last score, of all training patients."""
    lines: dict[str, list[tuple[int, Metric]]] = {}
    for i, answer in enumerate(answers):
        for structure, metrics in _by_structure(answer, answer.scores[-1]).items():
            if "dice" in metrics:
                lines.setdefault(structure, []).append((i, metrics["dice"]))
    names = [f"{a.head}, {a.scores[-1].metrics['fit_seconds'].value:.0f} s" for a in answers]
    return forest(list(lines.items()), names, METRICS["dice"])


# --- few shots -----------------------------------------------------------------------------------


def _few_shots(answers: Sequence[Segmented]) -> Figure:
    """Draw a panel of the mean over structures, and one of each structure where there are more."""
    panels = ["", *answers[0].scores[-1].labels]
    with style():
        figure, axes = grid(len(panels))
        for axis, structure in zip(axes, panels, strict=True):
            for i, answer in enumerate(answers):
                _draw_line(axis, answer, structure, i)
            ticks = _numbers_of_patients(answers)
            axis.set(title=structure or "all", xlabel="training patients", xscale="log")
            axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
            axis.minorticks_off()
            axis.set_ylabel(METRICS["dice"])
        handles = [
            Line2D([], [], color=SERIES[i % 8], ls=LINES[i % 4], marker=MARKS[i % 8], ms=4)
            for i in range(len(answers))
        ]
        legend(figure, handles, [answer.head for answer in answers])
    return figure


def _numbers_of_patients(answers: Sequence[Segmented]) -> list[float]:
    numbers: set[float] = set()
    for answer in answers:
        numbers |= {_patients(answer, score) for score in answer.scores}
    return sorted(numbers)


def _draw_line(axis: Axes, answer: Segmented, structure: str, i: int) -> None:
    """Draw the Dice of a structure, or with "" the mean over all, by training patients."""
    x = []
    dice = []
    for score in answer.scores:
        metrics = score.labels.get(structure, {}) if structure else score.metrics
        if "dice" in metrics:
            x.append(_patients(answer, score))
            dice.append(metrics["dice"])
    # A score without an interval, of a single draw, has a band of no height.
    ends = np.array([spread(metric) or (metric.value, metric.value) for metric in dice])
    colour = SERIES[i % 8]
    axis.fill_between(x, ends[:, 0], ends[:, 1], color=colour, alpha=0.13, lw=0)
    values = [metric.value for metric in dice]
    axis.plot(x, values, color=colour, ls=LINES[i % 4], marker=MARKS[i % 8], ms=3.5)


def _patients(answer: Segmented, score: Score) -> float:
    """Return how many patients a score's head learned from before val was added to them."""
    return score.setting.get("patients", float(answer.counts["train"].patients))


# --- overlays ------------------------------------------------------------------------------------


def _overlays(source: Source, task: str) -> tuple[Figure, Figure] | None:
    """Draw three test units by every head; None where the config, files or answers are not here.

    A row a unit, and for a telephone a column a unit.
    """
    config = source.config
    if config is None or task not in config.masks:
        return None
    try:
        cases = SegmentationCases.of(config, task)
        heads = cases.heads_on_file()
        if not heads:
            return None
        dice = {head: _dice_of(cases, head) for head in heads}
        units = _worst_median_best(dice)
        rows = np.array([cases.row_with_most_mask(cases.units[unit]) for unit in units])
        images = cases.source.images(rows)
    except (LabelError, ConfigError, UnreadableError) as error:  # the rest of the page stands
        log.warning("%s has no overlays: %s", task, error)
        return None
    predicted = {head: read_predicted(cases, head) for head in heads}
    lines: list[list[Cell]] = []
    for unit, row, image in zip(units, rows.tolist(), images, strict=True):
        grey = pictures.grey_of(image)
        mask = cases.masks.at_input(row, cases.source.image_size)
        # The image bare, the mask on it, then what each head made of it.
        cells = [
            ("", pictures.painted(grey, np.zeros_like(mask))),
            ("", pictures.painted(grey, mask)),
        ]
        for head in heads:
            painted = pictures.painted(grey, predicted[head][row])
            cells.append((f"{dice[head][unit]:.3f}", painted))
        lines.append(cells)
    words = SHOWN[len(units)]
    names = [f"{word}\nrow {row}" for word, row in zip(words, rows.tolist(), strict=True)]
    titles = ["image", "mask", *heads]
    classes = cases.masks.classes[1:]
    columns = [*zip(*lines, strict=True)]
    return (
        _pictures(lines, names, titles, classes, WIDTH / max(len(titles), 5)),
        _pictures(columns, titles, names, classes, NARROW / 3),
    )


def _dice_of(cases: SegmentationCases, head: str) -> dict[int, float]:
    """Return the mean Dice over structures of each test unit, with all training patients."""
    table = read_units(cases.path(head))
    number = {unit: i for i, unit in enumerate(cases.task_cases.units.ids.tolist())}
    of_unit: dict[int, list[float]] = {}
    with as_corrupt(str(cases.path(head))):  # units of a stranger's table
        for unit, dice in zip(table["unit"].to_pylist(), table["dice"].to_pylist(), strict=True):
            if dice == dice:  # NaN: the structure is neither in the mask nor in the prediction
                of_unit.setdefault(number[unit], []).append(dice)
    return {unit: float(np.mean(each)) for unit, each in of_unit.items()}


def _worst_median_best(dice: dict[str, dict[int, float]]) -> list[int]:
    """Return the units of worst, median and best mean Dice over the heads that all scored them."""
    shared = set.intersection(*(set(of_head) for of_head in dice.values()))
    if not shared:
        raise LabelError("no test unit was scored by every head")
    ranked = sorted(shared, key=lambda unit: sum(of_head[unit] for of_head in dice.values()))
    places = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), max(SHOWN))).astype(int))
    return [ranked[i] for i in places]


def _pictures(
    lines: Sequence[Sequence[Cell]],
    names: Sequence[str],
    titles: Sequence[str],
    classes: Sequence[str],
    side: float,
) -> Figure:
    """Draw rows of pictures beside their names, under titles. side: of each, in inches."""
    with style():
        size = side * max(len(titles), 2), side * 1.2 * len(lines) + 0.4
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(lines), len(titles), squeeze=False)
        for name, cells, row in zip(names, lines, axes, strict=True):
            row[0].set_ylabel(name)
            for (below, picture), axis in zip(cells, row, strict=True):
                # Every pixel of three large overlays by head would be most of the page.
                step = max(1, len(picture) // SIDE)
                axis.imshow(picture[::step, ::step], interpolation="none")
                axis.set(xticks=[], yticks=[], xlabel=below)
                axis.spines[:].set_visible(False)
        for title, axis in zip(titles, axes[0], strict=True):
            axis.set_title(title)
        colours = pictures.COLOURS[np.arange(len(classes)) % len(pictures.COLOURS)] / 255
        legend(figure, [Patch(color=tuple(colour)) for colour in colours], list(classes))
    return figure
