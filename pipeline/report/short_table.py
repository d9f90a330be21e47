"""The short table of a paper: a line a task, on how many it was tested, and a score by each method.

As Markdown, LaTeX, CSV, and HTML that word processors open as a table.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.figures import headline
from pipeline.report.sources import Source
from pipeline.report.tables import MINUS, markdown_table, networks_of, tex, tex_row
from pipeline.report.wording import (
    RANDOM,
    few_text,
    interval,
    method_of,
    metric_title,
    positive_name,
)
from pipeline.results import Metric, Result, Segmented
from pipeline.shared.spreadsheets import quoted_cell

NAME = "short"
_HEAD = ("Task", "Cases", "Patients", "Positive", "Score")


@dataclass(frozen=True)
class ShortTable:
    """Cells under their heads, and the sentences that belong below them."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def short_table(sources: Sequence[Source]) -> ShortTable:
    """Return a line a task of each store, with the main score of each method that answered it.

    Cases, patients and positives are those of the test. Where methods of a task were tested on
    others, it has a line for each such set.
    """
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for source in sources:
        for result in source.answers:
            name, metric = _main(result)
            if metric is not None:
                line = (*_store(source, sources), *_tested(result), metric_title(name))
                lines.setdefault(line, {})[method_of(result)] = _score(metric)
    methods = dict.fromkeys(method for scores in lines.values() for method in scores)
    head = (*(("Store",) if len(sources) > 1 else ()), *_HEAD, *methods)
    rows = [(*line, *(scores.get(m, "") for m in methods)) for line, scores in lines.items()]
    random = any(source.recipe.random for source in sources)
    stamp = (f"{RANDOM}: not of a trained network.",) if random else ()
    intervals = "In brackets: 95 % intervals by a bootstrap over patients."
    return ShortTable(head, tuple(rows), (*stamp, intervals, networks_of(sources)))


def files_of(table: ShortTable) -> dict[str, str]:
    """Return the text of each file by its name: short.md, short.tex, short.csv, short.html."""
    texts = {"md": markdown(table), "tex": latex(table), "csv": as_csv(table), "html": page(table)}
    return {f"{NAME}.{suffix}": text for suffix, text in texts.items()}


def markdown(table: ShortTable) -> str:
    """Return a Markdown table, its notes below it."""
    return f"{markdown_table(table.head, table.rows)}\n\n{' '.join(table.notes)}\n"


def latex(table: ShortTable) -> str:
    """Return a LaTeX table (booktabs), its notes as the caption."""
    words = len(table.head) - len(_methods(table))
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}\n\\centering",
        f"\\caption{{{tex(' '.join(table.notes))}}}",
        f"\\begin{{tabular}}{{{'l' * words}{'r' * len(_methods(table))}}}\n\\toprule",
        f"{tex_row([tex(cell) for cell in table.head])}\n\\midrule",
        *(tex_row([tex(cell) for cell in row]) for row in table.rows),
        "\\bottomrule\n\\end{tabular}\n\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(table: ShortTable) -> str:
    """Return comma-separated cells, none of which a spreadsheet takes for a formula; no notes."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in (table.head, *table.rows):
        writer.writerow([quoted_cell(cell) for cell in row])
    return sink.getvalue()


def page(table: ShortTable) -> str:
    """Return an HTML page of the table alone, to be opened in a word processor or pasted there."""
    rows = [_html_row("th", table.head), *(_html_row("td", row) for row in table.rows)]
    body = "\n".join(rows)
    notes = html.escape(" ".join(table.notes))
    return (
        '<!doctype html>\n<meta charset="utf-8">\n<title>Scores</title>\n'
        f"<table>\n{body}\n</table>\n<p>{notes}</p>\n"
    )


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _methods(table: ShortTable) -> tuple[str, ...]:
    return table.head[table.head.index(_HEAD[-1]) + 1 :]


def _store(source: Source, sources: Sequence[Source]) -> tuple[str, ...]:
    return (source.name,) if len(sources) > 1 else ()


def _tested(result: Result | Segmented) -> tuple[str, str, str, str]:
    """Return the task, how many cases and patients tested it, and how many cases are positive."""
    test = result.counts["test"]
    name = positive_name(result)
    positive = f"{test.positives[name]} ({name})" if name else ""
    return result.task, str(test.units), f"{test.patients}{few_text(result)}", positive


def _score(metric: Metric) -> str:
    """Return a score as papers print it: a hyphen before a number looks like a formula's minus."""
    return interval(metric).replace("-", MINUS)


def _main(result: Result | Segmented) -> tuple[str, Metric | None]:
    """Return the metric that sums an answer up, and its value; None where it has none."""
    if not result.scores:
        return "", None
    if isinstance(result, Segmented):
        return "dice", result.scores[-1].metrics.get("dice")
    name = headline(result)
    return name, result.main_score.metrics.get(name)
