"""Boxes of a table: which image or volume each is in, what is in it, and where it ends.

No file of an image is opened. A row that is no box is counted and named by its number, and never
mended.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from pipeline.annotations.label_values import with_points
from pipeline.annotations.tables import read_table
from pipeline.config.regions import Boxes
from pipeline.shared.spreadsheets import unquoted_cell
from stores.errors import LabelError

# What is in a box, where no column says it.
BOX = "box"
# What messages call the file.
TABLE = "table of boxes"
# Across, down, and from slice to slice: where a box begins, and where it ends.
_PLANE = ("x0", "x1", "y0", "y1")
_DEPTH = ("z0", "z1")
Ends = tuple[float, float]


@dataclass(frozen=True)
class BoxRow:
    """A row of a table of boxes: its number from 1, and ends in voxels or mm; z None: one slice."""

    number: int
    key: str
    structure: str
    x: Ends
    y: Ends
    z: Ends | None


@dataclass(frozen=True)
class BoxTable:
    """The boxes of a table, those that are none as sentences, and what is in boxes, by name."""

    boxes: tuple[BoxRow, ...]
    faults: tuple[str, ...]
    structures: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def _read(settings: Boxes, changed: int) -> BoxTable:
    names = [settings.key, *_PLANE, *([settings.structure] if settings.structure else [])]
    table = read_table(settings.file, names, TABLE)
    columns = dict(table.columns)
    try:
        columns |= read_table(settings.file, _DEPTH, TABLE).columns
    except LabelError:  # images of one slice each need none
        columns |= {name: [""] * len(columns[settings.key]) for name in _DEPTH}
    if table.comma:
        columns |= {name: with_points(columns[name], name).tolist() for name in (*_PLANE, *_DEPTH)}
    boxes: dict[BoxRow, BoxRow] = {}
    faults = []
    for i in range(len(columns[settings.key])):
        cells = {name: unquoted_cell(values[i].strip()) for name, values in columns.items()}
        try:
            box = _box(settings, i + 1, cells)
            # Two cases of one box would count what it says twice.
            first = boxes.setdefault(replace(box, number=0), box)
            if first is not box:
                raise ValueError(f"it is the box of data row {first.number} once more")
        except ValueError as error:
            faults.append(f"data row {i + 1}: {error}")
    structures = sorted({box.structure for box in boxes})
    return BoxTable(tuple(boxes.values()), tuple(faults), tuple(structures))


def read_boxes(settings: Boxes) -> BoxTable:
    """Return the boxes of a table. Raises LabelError for a file or column that is not there."""
    try:
        changed = settings.file.stat().st_mtime_ns
    except OSError as error:
        raise LabelError(
            f"The table of boxes {str(settings.file)!r} cannot be read: {error.strerror}. Set "
            "`file` of these boxes to a CSV, .xlsx or Parquet."
        ) from None
    return _read(settings, changed)


def _box(settings: Boxes, number: int, cells: dict[str, str]) -> BoxRow:
    """Return a row as a box. Raises ValueError saying what is none in it."""
    structure = BOX if settings.structure is None else cells[settings.structure]
    if not structure or not cells[settings.key]:
        raise ValueError("it names no image" if structure else "it does not say what is in it")
    key = cells[settings.key].replace("\\", "/").removeprefix("./").rstrip("/")
    z = _ends(cells, "z") if any(cells[name] for name in _DEPTH) else None
    return BoxRow(number, key, structure, _ends(cells, "x"), _ends(cells, "y"), z)


def _ends(cells: dict[str, str], axis: str) -> Ends:
    names = (f"{axis}0", f"{axis}1")
    first, last = map(_number, names, (cells[name] for name in names))
    if first >= last:
        raise ValueError(f"{names[0]} {cells[names[0]]} must be below {names[1]} {cells[names[1]]}")
    return first, last


def _number(name: str, cell: str) -> float:
    """Return the number of a cell. Raises ValueError for any other."""
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} {cell!r} is no number")
    return number
