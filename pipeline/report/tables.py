"""The results as tables: for the page, and as Markdown and LaTeX for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.sources import Source
from pipeline.report.wording import (
    METRICS,
    RANDOM,
    count,
    interval,
    method_title,
    setting_text,
    spread,
)
from pipeline.results import Metric, Result, Segmented


@dataclass(frozen=True)
class Line:
    """One score: which, on what, and its metrics by name."""

    store: str
    task: str
    label: str
    method: str
    setting: str
    tested: str
    metrics: dict[str, Metric]


def lines_of(sources: Sequence[Source]) -> list[Line]:
    """Return a line a setting of each answer, and one a label where it has several."""
    return [
        Line(
            source.name,
            result.task,
            label,
            result.head if isinstance(result, Segmented) else method_title(result.method),
            setting_text(score.setting),
            _tested(result),
            metrics,
        )
        for source in sources
        for result in source.answers
        for score in result.scores
        for label, metrics in {"": score.metrics, **score.labels}.items()
    ]


def _tested(result: Result | Segmented) -> str:
    test = result.counts["test"]
    if result.level == "patient":
        return count(test.units, "patient")
    return f"{count(test.units, result.level)} of {count(test.patients, 'patient')}"


def columns_of(lines: Sequence[Line]) -> list[str]:
    """Return the metrics that any line has, in the order tables show them."""
    return [name for name in METRICS if any(name in line.metrics for line in lines)]


def markdown(lines: Sequence[Line], *, random: bool) -> str:
    """Return the lines as a Markdown table."""
    head, rows = _cells(lines)
    stamp = f"**{RANDOM}**: not of DINOv2.\n\n" if random else ""
    return f"{stamp}{markdown_table(head, rows)}\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a Markdown table, without a last line break."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_TEX |= {"²": r"$^2$"}


def latex(lines: Sequence[Line], *, random: bool) -> str:
    """Return the lines as a LaTeX table (booktabs), intervals small beside their values."""
    head, _ = _cells(lines)
    shown, several = columns_of(lines), _several(lines)
    stamp = f"{RANDOM}: not of DINOv2. " if random else ""
    out = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}\n\\centering",
        f"\\caption{{{stamp}Scores with 95\\,\\% intervals by a bootstrap over patients.}}",
        f"\\begin{{tabular}}{{{'l' * (len(head) - len(shown))}{'r' * len(shown)}}}\n\\toprule",
        " & ".join(map(tex, head)) + r" \\" + "\n\\midrule",
    ]
    for line in lines:
        numbers = [_tex_number(line.metrics.get(name)) for name in shown]
        out.append(" & ".join([*map(tex, _words(line, several)), *numbers]) + r" \\")
    return "\n".join([*out, "\\bottomrule\n\\end{tabular}\n\\end{table}"]) + "\n"


def tex(text: str) -> str:
    """Return words as LaTeX shows them."""
    return "".join(_TEX.get(c, c) for c in text)


def _tex_number(metric: Metric | None) -> str:
    if metric is None:
        return "--"
    ends = spread(metric)
    return f"{metric.value:.3f}" + (
        f" {{\\footnotesize [{ends[0]:.2f}, {ends[1]:.2f}]}}" if ends else ""
    )


def _cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    shown, several = columns_of(lines), _several(lines)
    head = [*(["Store"] if several else []), "Task", "Label", "Method", "Setting", "Tested on"]
    rows = [
        _words(line, several)
        + [interval(line.metrics[name]) if name in line.metrics else "" for name in shown]
        for line in lines
    ]
    return head + [METRICS[name] for name in shown], rows


def _several(lines: Sequence[Line]) -> bool:
    return len({line.store for line in lines}) > 1


def _words(line: Line, several: bool) -> list[str]:
    words = [line.task, line.label, line.method, line.setting, line.tested]
    return [line.store, *words] if several else words
