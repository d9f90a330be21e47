"""The results as tables: for the page, and as Markdown and LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.report.sources import Source
from pipeline.report.wording import (
    METRICS,
    RANDOM,
    count,
    few_note,
    few_text,
    interval,
    method_title,
    point_text,
    positive_text,
    setting_text,
    spread,
)
from pipeline.results import Metric, Result, Segmented


@dataclass(frozen=True)
class Line:
    """One score: which, on what, and its metrics by name.

    positive: which of two classes is, and how many carry it; point: from which probability on.
    """

    store: str
    task: str
    label: str
    method: str
    setting: str
    tested: str
    positive: str
    point: str
    metrics: dict[str, Metric]


def lines_of(sources: Sequence[Source]) -> list[Line]:
    """Return a line a setting of each answer, and one a label where it has several."""
    lines: list[Line] = []
    for source in sources:
        for result in source.answers:
            lines += _lines_of_answer(source.name, result)
    return lines


def _lines_of_answer(store: str, result: Result | Segmented) -> Iterator[Line]:
    # A config names its heads of segmentation itself.
    method = result.head if isinstance(result, Segmented) else method_title(result.method)
    tested = _tested(result)
    for score in result.scores:
        setting = setting_text(score.setting)
        # The score over all labels comes first, and is of no label.
        for label, metrics in {"": score.metrics, **score.labels}.items():
            yield Line(
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
    few = few_text(result)
    if result.level == "patient":
        return count(test.units, "patient") + few
    return f"{count(test.units, result.level)} of {count(test.patients, 'patient')}{few}"


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
    """Return the lines as a Markdown table, and below it what the features are of."""
    head, rows = _cells(lines)
    stamp = f"**{RANDOM}**: not of DINOv2.\n\n" if random else ""
    below = f"\n{networks}\n" if networks else ""
    return f"{stamp}{markdown_table(head, rows)}\n{below}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a Markdown table, without a last line break."""
    rule = ["---"] * len(head)
    return "\n".join(_markdown_row(row) for row in [head, rule, *rows])


def _markdown_row(cells: Sequence[str]) -> str:
    # A bar within a cell would end it: names of tasks and columns are the user's.
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_TEX |= {"²": r"$^2$"}


def latex(lines: Sequence[Line], *, random: bool, networks: str = "") -> str:
    """Return the lines as a LaTeX table (booktabs), intervals small beside their values.

    networks: a sentence for the caption on what the features are of.
    """
    head, _ = _cells(lines)
    shown = columns_of(lines)
    several = _several(lines)
    stamp = f"{RANDOM}: not of DINOv2. " if random else ""
    intervals = "Scores with 95\\,\\% intervals by a bootstrap over patients."
    called = "Called from: the probability, chosen on validation, from which a case is positive."
    # Words to the left, numbers to the right.
    alignment = "l" * (len(head) - len(shown)) + "r" * len(shown)
    out = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}\n\\centering",
        f"\\caption{{{stamp}{intervals} {called}{' ' if networks else ''}{tex(networks)}}}",
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule",
        tex_row([tex(name) for name in head]) + "\n\\midrule",
    ]
    for line in lines:
        words = [tex(word) for word in _words(line, several)]
        numbers = [_tex_number(line.metrics.get(name)) for name in shown]
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


def _cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the head of the table and its rows: the words of a line, then its numbers."""
    shown = columns_of(lines)
    several = _several(lines)
    head = ["Task", "Label", "Method", "Setting", "Tested on", "Positive", "Called from"]
    head += [METRICS[name] for name in shown]
    if several:
        head.insert(0, "Store")
    rows = []
    for line in lines:
        numbers = [interval(line.metrics[name]) if name in line.metrics else "" for name in shown]
        rows.append(_words(line, several) + numbers)
    return head, rows


def _several(lines: Sequence[Line]) -> bool:
    return len({line.store for line in lines}) > 1


def _words(line: Line, several: bool) -> list[str]:
    words = [line.task, line.label, line.method, line.setting, line.tested]
    words += [line.positive, line.point]
    return [line.store, *words] if several else words
