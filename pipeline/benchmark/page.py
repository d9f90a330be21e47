"""A benchmark written down: one tidy table, its tables as Markdown and LaTeX, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from pyarrow import csv

from pipeline.benchmark.collect import Entry, Gathered, Question, gather
from pipeline.benchmark.figures import cost_against_score, critical_differences
from pipeline.benchmark.run import Outcome, cost
from pipeline.benchmark.settings import Benchmark, absent
from pipeline.preprocessing.perturb import VIEWS
from pipeline.report.page import asset, template
from pipeline.report.style import inline_svg, save
from pipeline.report.tables import markdown_table, tex
from pipeline.report.wording import METRICS, RANDOM, count, interval
from stores._disk import write_atomic, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = METRICS | {"dice": "Dice"}


@dataclass(frozen=True)
class Layout:
    """A table as the paper lays it out: a line a backbone, a column a question of one setting.

    cells: a line's entries, None where there is no answer.
    """

    setting: str
    questions: tuple[Question, ...]
    lines: tuple[tuple[str, tuple[Entry | None, ...]], ...]

    def best(self, column: int) -> float:
        """Return the greatest value of a column."""
        known = [own[column] for _, own in self.lines]
        return max(entry.metric.value for entry in known if entry is not None)

    @property
    def has_published(self) -> bool:
        """Whether a published figure stands beside any entry."""
        return any(entry and entry.published for _, own in self.lines for entry in own)


def write_benchmark(asked: Benchmark, outcomes: Sequence[Outcome]) -> tuple[Gathered, Path]:
    """Write what the answers say under `asked.out`; return it, and the page."""
    found = gather(outcomes)
    layouts = _layouts(found)
    drawn = {
        "ranks": critical_differences(found.ranking),
        "cost": _costs(found, outcomes),
    }
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    with writing(asked.out):
        asked.out.mkdir(parents=True, exist_ok=True)
        _write_tidy(asked.out, found.tidy)
        for name, figure in figures.items():
            for suffix in (".svg", ".png"):
                save(figure, asked.out / f"{name}{suffix}")
    stamp = found.random
    text = _markdown(layouts, random=stamp) + _steady(found)
    write_atomic(asked.out / "results.md", text.encode())
    write_atomic(asked.out / "results.tex", _latex(layouts, random=stamp).encode())
    text = _render(asked, found, outcomes, layouts, figures)
    write_atomic(asked.out / "benchmark.html", text.encode())
    return found, asked.out / "benchmark.html"


def _write_tidy(out: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomic(out / "results.parquet", sink.getvalue().to_pybytes())
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    write_atomic(out / "results.csv", sink.getvalue().to_pybytes())


def _layouts(found: Gathered) -> list[Layout]:
    layouts = []
    for setting in dict.fromkeys(question.setting for question in found.scores):
        questions = tuple(question for question in found.scores if question.setting == setting)
        lines = tuple(
            (name, tuple(found.scores[question].get(name) for question in questions))
            for name in found.backbones
        )
        layouts.append(Layout(setting, questions, lines))
    return layouts


def _costs(found: Gathered, outcomes: Sequence[Outcome]) -> Figure | None:
    """Draw each backbone's cost against its mean score over what all backbones answered."""
    shared = [
        own for q, own in found.scores.items() if q.ranked and own.keys() == {*found.backbones}
    ]
    points: dict[str, tuple[float, float]] = {}
    stores = {(o.cell.backbone, o.cell.config.store) for o in outcomes if o.answers}
    for name in found.backbones:
        spent = [seconds for b, store in stores if b == name and (seconds := cost(store))]
        if spent and shared:
            score = float(np.mean([own[name].metric.value for own in shared]))
            points[name] = (float(np.mean(spent)), score)
    return cost_against_score(points, "mean score")


# --- words -------------------------------------------------------------------------------------


def column_name(question: Question) -> str:
    """Return what a column is called."""
    task = "" if question.task == question.dataset else f" {question.task}"
    shots = "" if question.shots is None else f", {count(question.shots, 'patient')}"
    return f"{question.dataset}{task}{shots}"


def entry_text(entry: Entry | None) -> str:
    """Return an entry with its interval, and what was published."""
    if entry is None:
        return ""
    seen = f" (published {entry.published.value:.3f})" if entry.published else ""
    return interval(entry.metric) + seen


def _grid(layout: Layout) -> list[list[str]]:
    head = [f"{column_name(q)}, {NAMES.get(q.metric, q.metric)}" for q in layout.questions]
    lines = [[name, *map(entry_text, own)] for name, own in layout.lines]
    return [[layout.setting, *head], *lines]


def _markdown(layouts: Sequence[Layout], *, random: bool) -> str:
    grids = [_grid(layout) for layout in layouts]
    tables = [markdown_table(head, lines) for head, *lines in grids]
    stamp = f"**{RANDOM}**: untrained networks made these numbers.\n\n" if random else ""
    return stamp + "\n\n".join(tables) + "\n"


def _steady(found: Gathered) -> str:
    if not found.steady:
        return ""
    head = ["seen as", "setting", "backbone", "task", "metric"]
    head += ["as it is", "seen so", "difference", "ICC of predictions", "ICC of features"]
    lines = [
        [
            VIEWS[each.view],
            each.question.setting,
            each.backbone,
            column_name(each.question),
            NAMES.get(each.question.metric, each.question.metric),
            interval(each.plain),
            interval(each.seen),
            interval(each.difference),
            f"{each.icc_scores:.3f}",
            "" if each.icc_features is None else f"{each.icc_features:.3f}",
        ]
        for each in found.steady
    ]
    return "\n" + markdown_table(head, lines) + "\n"


def _latex(layouts: Sequence[Layout], *, random: bool) -> str:
    stamp = f"{RANDOM}: untrained networks made these numbers. " if random else ""
    out = ["% needs \\usepackage{booktabs}"]
    for layout in layouts:
        head, *lines = [[tex(cell) for cell in row] for row in _grid(layout)]
        out += [
            "\\begin{table}\n\\centering",
            f"\\caption{{{stamp}{head[0]}, with 95\\,\\% intervals over patients.}}",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule",
            " & ".join(["", *head[1:]]) + " \\\\\n\\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            "\\bottomrule\n\\end{tabular}\n\\end{table}",
        ]
    return "\n".join(out) + "\n"


# --- the page ------------------------------------------------------------------------------------


def _render(
    asked: Benchmark,
    found: Gathered,
    outcomes: Sequence[Outcome],
    layouts: Sequence[Layout],
    figures: dict[str, Figure],
) -> str:
    notes = dict.fromkeys(
        f"{o.cell.dataset}, {o.cell.backbone}, {o.cell.setting}: {note}"
        for o in outcomes
        for answer in o.answers
        for note in answer.notes
    )
    return template("pipeline.benchmark", "benchmark.html").render(
        asked=asked,
        found=found,
        layouts=layouts,
        overall=dict(zip(found.ranking.names, found.ranking.mean_ranks, strict=False)),
        failed=[outcome for outcome in outcomes if outcome.fault],
        absent=absent(asked),
        missing=[o for o in outcomes if not o.fault and not o.answers],
        answered=sum(bool(outcome.answers) for outcome in outcomes),
        cells=len(outcomes),
        notes=list(notes),
        seen=sorted({e.published for own in found.scores.values() for e in own.values()
                     if e.published}, key=lambda p: (p.dataset, p.backbone, p.shots or 10**9)),
        NAMES=NAMES,
        VIEWS=VIEWS,
        column_name=column_name,
        count=count,
        svg=lambda key, label: Markup(inline_svg(figures[key], key, label)),
        figures=figures,
        style=Markup(asset("pipeline.report", "page.css")),
        script=Markup(asset("pipeline.benchmark", "benchmark.js")),
    )  # fmt: skip
