"""The results as tables: for the page, and as Markdown and LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.report.sources import Source
from pipeline.report.wording import (
    METRICS,
    RANDOM,
    TableKind,
    few_note,
    few_text,
    interval,
    method_of,
    point_text,
    positive_text,
    setting_text,
    spread,
    table_kind,
    units_text,
)
from pipeline.results import Metric, Result, Segmented

# What stands above a table.
TITLES: dict[TableKind, str] = {
    "classes": "Classes",
    "numbers": "Numbers",
    "survival": "Survival",
    "masks": "Masks",
}
# Behind the setting that val chose, where there are several.
CHOSEN = "*"
# The heads of the columns of words, and where a line has them.
_WORDS = {
    "Store": "store",
    "Task": "task",
    "Label": "label",
    "Method": "method",
    "Setting": "setting",
    "Tested on": "tested",
    "Positive": "positive",
    "Called from": "point",
}


@dataclass(frozen=True)
class Line:
    """One score: which, on what, and its metrics by name.

    positive: which of two classes is, and how many carry it; point: from which probability on.
    """

    kind: TableKind
    store: str
    task: str
    label: str
    method: str
    setting: str
    tested: str
    positive: str
    point: str
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class ScoreTable:
    """Lines of one kind under the columns that any of them fills: heads of words, then metrics."""

    kind: TableKind
    lines: tuple[Line, ...]
    words: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the lines are of."""
        return TITLES[self.kind]

    def cells(self, line: Line) -> dict[str, str]:
        """Return the cells of a line that are words, by their heads."""
        return {head: getattr(line, _WORDS[head]) for head in self.words}


def tables_of(lines: Sequence[Line]) -> list[ScoreTable]:
    """Return a table of each kind that there are lines of: they have no metric in common."""
    several = len({line.store for line in lines}) > 1
    tables = []
    for kind in TITLES:
        of_kind = tuple(line for line in lines if line.kind == kind)
        if of_kind:
            words = [
                head
                for head, name in _WORDS.items()
                if (several if head == "Store" else any(getattr(each, name) for each in of_kind))
            ]
            tables.append(ScoreTable(kind, of_kind, tuple(words), tuple(columns_of(of_kind))))
    return tables


def lines_of(sources: Sequence[Source]) -> list[Line]:
    """Return a line a setting of each answer, and one a label where it has several."""
    lines: list[Line] = []
    for source in sources:
        for result in source.answers:
            lines += _lines_of_answer(source.name, result)
    return lines


def _lines_of_answer(store: str, result: Result | Segmented) -> Iterator[Line]:
    method = method_of(result)
    kind = table_kind(result)
    tested = _tested(result)
    for place, score in enumerate(result.scores):
        setting = setting_text(score.setting)
        if isinstance(result, Result) and len(result.scores) > 1 and place == result.chosen:
            setting = f"{setting} {CHOSEN}"
        # The score over all labels comes first, and is of no label.
        for label, metrics in {"": score.metrics, **score.labels}.items():
            yield Line(
                kind=kind,
                store=store,
                task=result.task,
                label=label,
                method=method,
                setting=setting,
                tested=tested,
                positive=positive_text(result, label),
                point=point_text(score, label),
                metrics=metrics,
            )


def _tested(result: Result | Segmented) -> str:
    test = result.counts["test"]
    return units_text(result.level, test.units, test.patients) + few_text(result)


def columns_of(lines: Sequence[Line]) -> list[str]:
    """Return the metrics that any line has, in the order tables show them."""
    present: set[str] = set()
    for line in lines:
        present |= line.metrics.keys()
    return [name for name in METRICS if name in present]


def networks_of(sources: Sequence[Source]) -> str:
    """Return what stands below a table: of which network each store is, and which scores of few."""
    sentences = [f"{source.name} is of {source.network}." for source in sources]
    answers: list[Result | Segmented] = []
    for source in sources:
        answers += source.answers
    few = few_note(answers)
    return " ".join([*sentences, few]) if few else " ".join(sentences)


def markdown(lines: Sequence[Line], *, random: bool, networks: str = "") -> str:
    """Return the lines as a Markdown table of each kind, and below what the features are of."""
    stamp = f"**{RANDOM}**: not of a trained network.\n\n" if random else ""
    below = f"\n{networks}\n" if networks else ""
    tables = tables_of(lines)
    texts = []
    for table in tables:
        title = f"{table.title}:\n\n" if len(tables) > 1 else ""
        rows = [
            [*table.cells(line).values(), *(_number(line, name) for name in table.metrics)]
            for line in table.lines
        ]
        texts.append(f"{title}{markdown_table(_head(table), rows)}\n")
    return stamp + "\n".join(texts) + below


def _head(table: ScoreTable) -> list[str]:
    return [*table.words, *(METRICS[name] for name in table.metrics)]


def _number(line: Line, name: str) -> str:
    metric = line.metrics.get(name)
    return "" if metric is None else interval(metric)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a Markdown table, without a last line break."""
    rule = ["---"] * len(head)
    return "\n".join(_markdown_row(row) for row in [head, rule, *rows])


def _markdown_row(cells: Sequence[str]) -> str:
    # A bar within a cell would end it: names of tasks and columns are the user's.
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


MINUS = "\N{MINUS SIGN}"
_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_TEX |= {"²": r"$^2$", MINUS: r"$-$"}


def latex(lines: Sequence[Line], *, random: bool, networks: str = "") -> str:
    """Return a LaTeX table (booktabs) of each kind of lines, intervals small beside their values.

    networks: a sentence for the caption on what the features are of.
    """
    stamp = f"{RANDOM}: not of a trained network. " if random else ""
    intervals = "Scores with 95\\,\\% intervals by a bootstrap over patients."
    called = " Called from: the probability, chosen on validation, from which a case is positive."
    below = f" {tex(networks)}" if networks else ""
    out = ["% needs \\usepackage{booktabs}"]
    for table in tables_of(lines):
        # Words to the left, numbers to the right.
        alignment = "l" * len(table.words) + "r" * len(table.metrics)
        caption = f"{stamp}{intervals}{called if 'Called from' in table.words else ''}{below}"
        out += [
            "\\begin{table}\n\\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{{alignment}}}\n\\toprule",
            tex_row([tex(name) for name in _head(table)]) + "\n\\midrule",
        ]
        for line in table.lines:
            words = [tex(word) for word in table.cells(line).values()]
            numbers = [_tex_number(line.metrics.get(name)) for name in table.metrics]
            out.append(tex_row([*words, *numbers]))
        out.append("\\bottomrule\n\\end{tabular}\n\\end{table}")
    return "\n".join(out) + "\n"


def tex_row(cells: Sequence[str]) -> str:
    """Return cells, which are LaTeX already, as a row of a table."""
    return " & ".join(cells) + r" \\"


def tex(text: str) -> str:
    """Return words as LaTeX shows them."""
    return "".join(_TEX.get(c, c) for c in text)


def _tex_number(metric: Metric | None) -> str:
    if metric is None:
        return "--"
    value = f"{metric.value:.3f}"
    ends = spread(metric)
    if ends is None:
        return value
    low, high = ends
    return f"{value} {{\\footnotesize [{low:.2f}, {high:.2f}]}}"
