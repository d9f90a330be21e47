"""A benchmark's two figures: critical differences of ranks, and cost against score."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from pipeline.evaluation.metrics.ranking import Ranking
from pipeline.report.style import INK, MARKS, NARROW, RULE, SERIES, SOFT, WIDTH, legend, style


def critical_differences(ranking: Ranking, *, narrow: bool = False) -> Figure | None:
    """Draw mean ranks on a line (Demsar 2006), bars over those that Nemenyi's test joins.

    None where the ranks have no test: `Ranking.unable` has why. narrow: as wide as a telephone, all
    names to the right of the line.
    """
    if ranking.critical is None:
        return None
    s = len(ranking.names)
    with style():
        size = (NARROW, 1.1 + 0.44 * s) if narrow else (WIDTH, 1.1 + 0.22 * s)
        figure = Figure(figsize=size, layout="constrained")
        axis = figure.add_subplot()
        # Better half to the left, the others to the right, so that no two lines cross.
        half = 0 if narrow else (s + 1) // 2
        depth = [1.0 + i for i in range(half)] + [1.0 + i for i in reversed(range(s - half))]
        for i, (name, rank) in enumerate(zip(ranking.names, ranking.mean_ranks, strict=True)):
            left = i < half
            edge = 0.6 if left else s + 0.4
            axis.plot([rank, rank, edge], [0, depth[i], depth[i]], color=SOFT, lw=0.8)
            colour = SERIES[i % len(SERIES)]
            axis.plot(rank, 0, color=colour, marker="o", ms=5)
            text = f"{name}  {rank:.2f} " if left else f" {rank:.2f}  {name}"
            side = "right" if left else "left"
            axis.text(edge, depth[i], text, ha=side, va="center", color=INK)
        for number, (first, last) in enumerate(ranking.alike):
            reach = [ranking.mean_ranks[first] - 0.03, ranking.mean_ranks[last] + 0.03]
            # Bars that overlap lie above each other.
            height = 0.25 + 0.18 * number
            axis.plot(reach, [height, height], color=INK, lw=3, solid_capstyle="butt")
        # How long the critical difference is, under the line of ranks.
        axis.plot([1, 1 + ranking.critical], [-1.1, -1.1], color=INK, lw=1.2, marker="|", ms=7)
        text = f"critical difference {ranking.critical:.2f}"
        axis.text(1.08 + ranking.critical, -1.1, text, va="center", color=INK)
        # Names take as much room beside the line as it has itself, where all are on one side.
        ends = (0.6, 2 * s + 1.0) if narrow else (-0.6, s + 1.6)
        axis.set(xlim=ends, ylim=(max(depth) + 0.6, -1.6))
        axis.plot([1, s], [0, 0], color=INK, lw=0.8)
        for tick in range(1, s + 1):
            axis.plot([tick, tick], [-0.12, 0], color=INK, lw=0.8)
            axis.text(tick, -0.25, str(tick), ha="center", va="bottom", color=SOFT)
        axis.set_axis_off()
    return figure


def cost_against_score(
    points: Mapping[str, tuple[float, float]], metric: str, *, narrow: bool = False
) -> Figure | None:
    """Draw backbones by milliseconds a slice and mean score: name -> (seconds, score).

    narrow: as wide as a telephone, the names one below the other.
    """
    if not points:
        return None
    with style():
        figure = Figure(figsize=(NARROW if narrow else WIDTH * 0.62, 3.2), layout="constrained")
        axis = figure.add_subplot()
        handles = []
        for i, (seconds, score) in enumerate(points.values()):
            colour = SERIES[i % len(SERIES)]
            mark = MARKS[i % len(MARKS)]
            handles += axis.plot(1000 * seconds, score, color=colour, marker=mark, ms=7, ls="")
        spent = [seconds for seconds, _ in points.values()]
        if max(spent) > 5 * min(spent):  # decades, where there are any
            axis.set_xscale("log")
            # By figures, not by a formula: dollar signs are names here (see `style`).
            axis.xaxis.set_major_formatter(LogFormatter())
            axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axis.set(xlabel="ms a slice to embed, on the machine that did", ylabel=metric)
        axis.grid(color=RULE, lw=0.5)
        axis.margins(0.25)
        legend(figure, handles, list(points), columns=1 if narrow else 6)
    return figure
