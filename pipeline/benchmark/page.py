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
from pipeline.benchmark.published import Published
from pipeline.benchmark.run import Outcome, cost
from pipeline.benchmark.settings import FROM_SCRATCH, Benchmark, absent
from pipeline.preprocessing.perturb import VIEWS
from pipeline.report.page import asset, scripts, template
from pipeline.report.style import inline_svg, save
from pipeline.report.tables import markdown_table, tex
from pipeline.report.wording import METRICS, RANDOM, count, ends_text, interval, units_alone
from pipeline.shared.spreadsheets import quoted
from stores._disk import write_atomic, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = METRICS | {"dice": "Dice"}
# What backbones are compared by, beside what they cost.
_SCORE = "mean score"


@dataclass(frozen=True)
class PageLayout:
    """A table as the paper lays it out: a line a backbone, a column a question of one setting.

    cells: a line's entries, None where there is no answer.
    """

    setting: str
    questions: tuple[Question, ...]
    lines: tuple[tuple[str, tuple[Entry | None, ...]], ...]

    def best(self, column: int) -> float:
        """Return the greatest value of a column."""
        entries = [of_backbone[column] for _, of_backbone in self.lines]
        return max(entry.metric.value for entry in entries if entry is not None)

    def positive(self, column: int) -> str:
        """Return which of two classes a column calls positive, and how many carry it; "" for none.

        As the first backbone's first seed has them.
        """
        entries = [of_backbone[column] for _, of_backbone in self.lines]
        return next((entry.positive for entry in entries if entry is not None), "")

    @property
    def has_published(self) -> bool:
        """Whether any entry has a published figure."""
        for _, of_backbone in self.lines:
            if any(entry and entry.published for entry in of_backbone):
                return True
        return False


def write_benchmark(settings: Benchmark, outcomes: Sequence[Outcome]) -> tuple[Gathered, Path]:
    """Write what the answers say under `settings.out`; return it, and the page."""
    gathered = gather(outcomes)
    layouts = _layouts(gathered)
    out = settings.out
    costs = _costs(gathered, outcomes)
    figures = _there(critical_differences(gathered.ranking), cost_against_score(costs, _SCORE))
    on_telephone = _there(
        critical_differences(gathered.ranking, narrow=True),
        cost_against_score(costs, _SCORE, narrow=True),
    )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        # The table first: it has every number, should a figure or page fail.
        _write_tidy(out, gathered.tidy)
        for name, figure in figures.items():
            for suffix in (".svg", ".png"):
                save(figure, out / f"{name}{suffix}")
    networks = "; ".join(_networks(outcomes))
    text = _markdown(layouts, networks, random=gathered.random)
    text += _across(gathered) + _steady(gathered)
    write_atomic(out / "results.md", text.encode())
    text = _latex(layouts, networks, random=gathered.random)
    write_atomic(out / "results.tex", text.encode())
    page = out / "benchmark.html"
    text = _render(settings, gathered, outcomes, layouts, figures, on_telephone)
    write_atomic(page, text.encode())
    return gathered, page


def _there(ranks: Figure | None, cost: Figure | None) -> dict[str, Figure]:
    """Return the figures that there are, by name."""
    drawn = {"ranks": ranks, "cost": cost}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _write_tidy(out: Path, table: pa.Table) -> None:
    """Write the table as Parquet and as CSV, each whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomic(out / "results.parquet", sink.getvalue().to_pybytes())
    sink = pa.BufferOutputStream()
    csv.write_csv(quoted(table), sink)
    write_atomic(out / "results.csv", sink.getvalue().to_pybytes())


def _layouts(gathered: Gathered) -> list[PageLayout]:
    """Return a table a setting, in the order of the questions."""
    layouts = []
    scores = gathered.scores
    for setting in dict.fromkeys(question.setting for question in scores):
        questions = tuple(question for question in scores if question.setting == setting)
        lines = []
        asked_once = any(FROM_SCRATCH in scores[question] for question in questions)
        for name in (FROM_SCRATCH,) if asked_once else gathered.backbones:
            entries = tuple(scores[question].get(name) for question in questions)
            lines.append((name, entries))
        layouts.append(PageLayout(setting, questions, tuple(lines)))
    return layouts


def _costs(gathered: Gathered, outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """Return each backbone's seconds a slice, and its mean score over what all answered."""
    shared = []
    for question, entries in gathered.scores.items():
        # A mean over fewer questions would be of easier, or harder, ones.
        if question.ranked and entries.keys() == {*gathered.backbones}:
            shared.append(entries)
    points: dict[str, tuple[float, float]] = {}
    stores = {(o.cell.backbone, o.cell.config.store) for o in outcomes if o.answers}
    for name in gathered.backbones:
        costs = [cost(store) for backbone, store in stores if backbone == name]
        known = [seconds for seconds in costs if seconds]
        if known and shared:
            score = float(np.mean([entries[name].metric.value for entries in shared]))
            points[name] = (float(np.mean(known)), score)
    return points


# --- words -------------------------------------------------------------------------------------


def column_name(question: Question) -> str:
    """Return what a column is called."""
    task = "" if question.task == question.dataset else f" {question.task}"
    shots = "" if question.shots is None else f", {count(question.shots, 'patient')}"
    return f"{question.dataset}{task}{shots}"


def _with_positive(name: str, positive: str) -> str:
    return f"{name}, positive: {positive}" if positive else name


def entry_text(entry: Entry | None) -> str:
    """Return an entry with its interval, and what was published."""
    if entry is None:
        return ""
    text = interval(entry.metric)
    if entry.published:
        text += f" ({published_text(entry)})"
    return text


def published_text(entry: Entry) -> str:
    """Return what was published of an entry, and what was measured so here, if otherwise."""
    assert entry.published is not None
    text = f"published {entry.published.value:.3f}"
    if entry.of_ours is None or entry.of_ours == entry.metric.value:
        return text
    return f"{text}, here so measured {entry.of_ours:.3f}"


def _grid(layout: PageLayout) -> list[list[str]]:
    """Return a table's cells: its head, then a row a backbone."""
    head = [layout.setting]
    for i, question in enumerate(layout.questions):
        metric = NAMES.get(question.metric, question.metric)
        positive = layout.positive(i)
        head.append(_with_positive(f"{column_name(question)}, {metric}", positive))
    lines = [[name, *map(entry_text, entries)] for name, entries in layout.lines]
    return [head, *lines]


def _markdown(layouts: Sequence[PageLayout], networks: str, *, random: bool) -> str:
    grids = [_grid(layout) for layout in layouts]
    tables = [markdown_table(head, lines) for head, *lines in grids]
    stamp = f"**{RANDOM}**: untrained networks made these numbers.\n\n" if random else ""
    return stamp + "\n\n".join([*tables, networks]) + "\n"


def _across(gathered: Gathered) -> str:
    """Return how answers hold between data sets, as a Markdown table; "" where there is no pair."""
    if not gathered.across:
        return ""
    head = ["fitted on", "tested on", "setting", "backbone", "metric"]
    head += ["fitted there", "fitted on what tests", "difference"]
    lines = [
        [
            each.fitted,
            _with_positive(column_name(each.question), each.positive),
            each.question.setting,
            each.backbone,
            NAMES.get(each.question.metric, each.question.metric),
            interval(each.away),
            "" if each.home is None else interval(each.home),
            "" if each.difference is None else interval(each.difference),
        ]
        for each in gathered.across
    ]
    return "\n" + markdown_table(head, lines) + "\n"


def _steady(gathered: Gathered) -> str:
    """Return how answers hold on views, as a Markdown table; "" where no view was taken."""
    if not gathered.steady:
        return ""
    head = ["seen as", "setting", "backbone", "task", "metric"]
    head += ["as it is", "seen so", "difference", "ICC of predictions", "ICC of features"]
    lines = [
        [
            VIEWS[each.view],
            each.question.setting,
            each.backbone,
            _with_positive(column_name(each.question), each.positive),
            NAMES.get(each.question.metric, each.question.metric),
            interval(each.plain),
            interval(each.seen),
            interval(each.difference),
            f"{each.icc_scores:.3f}",
            "" if each.icc_features is None else f"{each.icc_features:.3f}",
        ]
        for each in gathered.steady
    ]
    return "\n" + markdown_table(head, lines) + "\n"


def _latex(layouts: Sequence[PageLayout], networks: str, *, random: bool) -> str:
    """Return a LaTeX table (booktabs) a setting."""
    stamp = f"{RANDOM}: untrained networks made these numbers. " if random else ""
    out = ["% needs \\usepackage{booktabs}"]
    for layout in layouts:
        rows = []
        for row in _grid(layout):
            rows.append([tex(cell) for cell in row])
        head, *lines = rows
        out += [
            "\\begin{table}\n\\centering",
            f"\\caption{{{stamp}{head[0]}, with 95\\,\\% intervals over patients. "
            f"{tex(networks)}.}}",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule",
            " & ".join(["", *head[1:]]) + " \\\\\n\\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            "\\bottomrule\n\\end{tabular}\n\\end{table}",
        ]
    return "\n".join(out) + "\n"


# --- the page ------------------------------------------------------------------------------------


def _render(
    settings: Benchmark,
    gathered: Gathered,
    outcomes: Sequence[Outcome],
    layouts: Sequence[PageLayout],
    figures: dict[str, Figure],
    on_telephone: dict[str, Figure],
) -> str:
    ranking = gathered.ranking
    return template("pipeline.benchmark", "benchmark.html").render(
        settings=settings,
        gathered=gathered,
        layouts=layouts,
        overall=dict(zip(ranking.names, ranking.mean_ranks, strict=False)),
        failed=[outcome for outcome in outcomes if outcome.fault],
        absent=absent(settings),
        missing=[o for o in outcomes if not o.fault and not o.answers],
        answered=sum(bool(outcome.answers) for outcome in outcomes),
        cells=len(outcomes),
        notes=_notes(outcomes),
        networks=_networks(outcomes),
        seen=_published_in(gathered),
        NAMES=NAMES,
        VIEWS=VIEWS,
        column_name=column_name,
        published_text=published_text,
        units_alone=units_alone,
        count=count,
        svg=lambda key, label: Markup(inline_svg(figures[key], key, label, on_telephone[key])),
        figures=figures,
        ends=ends_text,
        style=Markup(asset("pipeline.report", "page.css")),
        script=Markup(scripts("common.js")),
    )


def _networks(outcomes: Sequence[Outcome]) -> list[str]:
    """Return each backbone of the tables with the network that its answers came from."""
    networks: dict[str, None] = {}
    for outcome in outcomes:
        for answer in outcome.answers:
            network = answer.provenance.network_in_words
            networks[f"{outcome.cell.backbone}: {network}"] = None
    return list(networks)


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the answers' notes, each with where it comes from, and once: seeds repeat them."""
    notes: dict[str, None] = {}
    for outcome in outcomes:
        cell = outcome.cell
        where = f"{cell.dataset}, {cell.backbone}, {cell.setting}"
        for answer in outcome.answers:
            notes |= dict.fromkeys(f"{where}: {note}" for note in answer.notes)
    return list(notes)


def _published_in(gathered: Gathered) -> list[Published]:
    """Return the published figures of the tables, by data set and backbone, few shots first."""
    figures: set[Published] = set()
    for entries in gathered.scores.values():
        figures |= {entry.published for entry in entries.values() if entry.published}
    # None is all patients: it comes after any number of them.
    return sorted(figures, key=lambda p: (p.dataset, p.backbone, p.shots or 10**9))
