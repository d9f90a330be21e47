"""How figures look: small, quiet, safe for colour-blind eyes; and how they become inline SVG.

Figures are drawn in the colours of paper. Inline, each of these is replaced by the page's variable
of that meaning, so that a figure follows the page into the dark.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import AutoLocator, MaxNLocator
from matplotlib.transforms import Bbox

from pipeline.shared.texts import printable

INK = "#1f1e1c"
SOFT = "#6f6a61"
RULE = "#dad6cd"
# Okabe and Ito's palette (2008), its black last and grey, its yellow darker.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a900", "#7a7a7a")
LINES = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
# Inches: of a figure, of a square plot, and of what stands below and above one.
WIDTH = 9.4
# Of one that is drawn for a telephone.
NARROW = 3.7
SQUARE = 1.6
BELOW = 0.8
ABOVE = 0.3
COLUMNS = 4
# Letters of a line of a name beside narrow rows, and the height of such a line, in inches.
_LETTERS = 18
_LINE = 0.14
# Letters of one text in a figure.
_MOST_SHOWN = 60
# What the axes of a grid, and of rows, are called; the margin round what is saved, in inches.
_PANEL = "panel"
_ROWS = "rows"
_MARGIN = 0.04
_VARIABLES = {INK: "--ink", SOFT: "--soft", RULE: "--rule"}
_VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(SERIES)}

_STYLE: Any = {
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    # Words stay words, and equal figures have equal ids: a page written again is the same page.
    "svg.fonttype": "none",
    # A name with dollar signs is a name, and no formula.
    "text.parse_math": False,
    "svg.hashsalt": "radprobe",
}


def style() -> Any:
    """Return the context in which figures are made and saved."""
    return mpl.rc_context(rc=_STYLE)


def grid(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` square axes, COLUMNS a row: alike in every figure."""
    rows = -(-count // COLUMNS)
    of_row = BELOW + SQUARE + ABOVE
    height = of_row * rows
    figure = Figure(figsize=(WIDTH, height))
    axes = []
    for i in range(count):
        row, column = divmod(i, COLUMNS)
        # Inches from the lower left; the first row is the highest.
        left = (column + 1) * WIDTH / COLUMNS - SQUARE
        bottom = (rows - row - 1) * of_row + BELOW
        place = (left / WIDTH, bottom / height, SQUARE / WIDTH, SQUARE / height)
        axes.append(figure.add_axes(place, label=_PANEL))
    return figure, axes


def rows(height: float) -> tuple[Figure, Axes]:
    """Return a figure of a height, in inches, and its axes, whose names stand on the left."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot(label=_ROWS)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int = 6) -> None:
    """Put one legend above the figure; columns: names that stand side by side."""
    if len(handles):
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
        figure.legend(handles, names, **place, ncols=min(len(names), columns), handlelength=2.6)


def inline_svg(figure: Figure, key: str, label: str, narrow: Figure | None = None) -> str:
    """Return a figure for the page: one <svg> element, or one a panel where it is a `grid` of some.

    Panels stand side by side where there is room, and one below the other on a telephone, for which
    `rows` are drawn a second time. narrow: what is shown on a telephone in the place of a figure.
    """
    on_telephone = None if narrow is None else _saved(narrow, "svg")
    if [axis.get_label() for axis in figure.axes] == [_ROWS]:
        on_telephone = _narrow(figure)
    if on_telephone is not None:
        wide = _inline(_saved(figure, "svg"), key, label)
        small = _inline(on_telephone, f"{key}-narrow", label)
        return f'<div class="broad">{wide}</div><div class="narrow">{small}</div>'
    panels = [axis for axis in figure.axes if axis.get_label() == _PANEL]
    if len(panels) < 2:
        return _inline(_saved(figure, "svg"), key, label)
    parts: list[Axes | Legend] = [*figure.legends, *panels]
    each = []
    for i, part in enumerate(parts):
        for other in parts:
            other.set_visible(other is part)
        saved = _saved(figure, "svg", bbox_inches=_room_of(part, figure))
        name = f"{label} {part.get_title(loc='left')}" if isinstance(part, Axes) else "Legend"
        kind = "panel" if isinstance(part, Axes) else "key"
        each.append(f'<div class="{kind}">{_inline(saved, f"{key}-{i}", name)}</div>')
    for part in parts:
        part.set_visible(True)
    return f'<div class="panels">{"".join(each)}</div>'


def _narrow(figure: Figure) -> bytes:
    """Return rows as an SVG that is as wide as a telephone, their names in several lines."""
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    width, height = figure.get_size_inches()
    lines = [textwrap.fill(name, _LETTERS) for name in names]
    most = max((line.count("\n") for line in lines), default=0)
    axis.set_yticks(axis.get_yticks(), lines)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    figure.set_size_inches(NARROW, height + most * len(lines) * _LINE)
    # A legend is laid out as it is made: another stands in its place meanwhile.
    wide = [*figure.legends]
    for each in wide:
        figure.legends.remove(each)
        legend(figure, each.legend_handles, [text.get_text() for text in each.get_texts()], 1)
    saved = _saved(figure, "svg")
    figure.legends[:] = wide
    axis.set_yticks(axis.get_yticks(), names)
    axis.xaxis.set_major_locator(AutoLocator())
    figure.set_size_inches(width, height)
    return saved


def _room_of(part: Axes | Legend, figure: Figure) -> Bbox:
    """Return what a part takes, in inches: of a panel at least its place in the grid."""
    with _drawing(figure):
        drawn = part.get_tightbbox()
    assert drawn is not None
    taken = drawn.transformed(figure.dpi_scale_trans.inverted()).padded(_MARGIN)
    if isinstance(part, Legend):
        return taken
    square = part.get_position().transformed(figure.transFigure)
    square = square.transformed(figure.dpi_scale_trans.inverted())
    cell = Bbox.from_extents(
        square.x1 - WIDTH / COLUMNS, square.y0 - BELOW, square.x1, square.y1 + ABOVE
    )
    return Bbox.union([cell, taken])


def _inline(svg: bytes, key: str, label: str) -> str:
    """Return an SVG as an element of the page: no ids but its own, the page's colours."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    # Ids are of the whole page: each figure's have its key before them, and unused ones go.
    used = {*re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text)}

    def prefixed(match: re.Match[str]) -> str:
        return f' id="{key}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', prefixed, text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", text)
    # The family is the page's.
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = text.replace("#000000", "var(--ink)")
    # The size in points becomes a greatest width in CSS pixels, 96 an inch: it may shrink, but
    # on telephones.
    size = re.search(r' width="([\d.]+)pt"', text)
    assert size is not None
    width = float(size[1]) * 96 / 72
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    safe = printable(label).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    widths = f"--drawn:{width:.0f}px;max-width:{width:.0f}px"
    head = f'<svg role="img" aria-label="{safe}" style="{widths}" '
    return text.replace("<svg ", head, 1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as paper has it; the suffix says how (.svg, .png)."""
    path.write_bytes(_saved(figure, path.suffix[1:], facecolor="white", dpi=200))


def _drawable(text: str) -> str:
    """Return a text as a figure has it: of control characters their codes, of a long one less."""
    shown = printable(text)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[: _MOST_SHOWN - 3]}..."


@contextlib.contextmanager
def _drawing(figure: Figure) -> Iterator[None]:
    """Have a figure drawn as figures look, whatever its texts are."""
    for text in figure.findobj(Text):
        text.set_text(_drawable(text.get_text()))
    with style(), warnings.catch_warnings():
        # A name in another script than the font's is a name all the same: in an SVG it is text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Names that leave no room beside them overlap.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def _saved(figure: Figure, form: str, **more: Any) -> bytes:
    """Return a figure with all that is drawn, also beyond its edges, and no margin."""
    sink = io.BytesIO()
    # With its date, an equal figure would be another file.
    metadata = {"Date": None} if form == "svg" else None
    room: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": _MARGIN} | more
    with _drawing(figure):
        figure.savefig(sink, format=form, metadata=metadata, **room)
    if form != "svg":
        return sink.getvalue()
    # Names beside an axis are drawn anew with it, after those above were taken care of.
    return printable(sink.getvalue().decode()).encode()
