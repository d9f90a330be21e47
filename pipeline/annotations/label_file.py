"""The label file: its columns as text, so that equal labels are equal in whatever it is written."""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.bids_table import read_bids_table
from pipeline.annotations.tables import hint, read_table
from pipeline.config.data import ROOT_COLUMN, Labels
from pipeline.config.regions import STRUCTURE
from pipeline.config.tasks import Task
from pipeline.shared import bids
from pipeline.shared.spreadsheets import unquoted_cell
from stores.errors import LabelError

# (n,) of str, or None
Texts = NDArray[Any]
Step = Callable[[str], str]

_WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
# Of a table that was written with decimal commas; 1,000 would be a thousand.
_WHOLE_BY_COMMA = re.compile(r"([+-]?\d+),0", re.ASCII)
DAY_FIRST = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?=$| )", re.ASCII)


@dataclass(frozen=True)
class LabelTable:
    """The columns of a label file that some tasks need, as text, with the settings they join by.

    comma: whether a comma in a number can only be a decimal one, since none separates cells.
    notes: what was read otherwise than as it stands. written: the cells as they stand of columns in
    which several spellings, such as 1 and 1.0, became one text. lists_files: as `TextTable` has it.
    """

    settings: Labels
    columns: dict[str, Texts]
    comma: bool = False
    notes: tuple[str, ...] = ()
    written: Mapping[str, Texts] = field(default_factory=dict)
    lists_files: bool = False

    def digest(self, task: Task) -> str:
        """Return the sha256 of what `task` depends on: another column's edit leaves it alone."""
        digest = hashlib.sha256()
        for name in _columns_of(self.settings, [task]):
            texts = self.columns[name]
            digest.update(f"{name}\0{len(texts)}\0".encode())
            digest.update("\0".join(texts).encode())
        return digest.hexdigest()


def read_labels(
    settings: Labels,
    tasks: Iterable[Task],
    more: Iterable[str] = (),
) -> LabelTable:
    """Read the columns that `tasks` need, and `more`.

    Raises LabelError for a missing file or column, and for a file that is no table.
    """
    # Which structure a region is of stands in no file.
    wanted = list(
        dict.fromkeys(c for c in (*_columns_of(settings, tasks), *more) if c != STRUCTURE)
    )
    of_paths = [name for name in wanted if name == ROOT_COLUMN or name.startswith(bids.COLUMN)]
    names = [name for name in wanted if name not in of_paths]
    if settings.root is not None:
        names = list(dict.fromkeys([*names, settings.root]))
    read = read_bids_table if settings.file.is_dir() else read_table
    table = read(settings.file, names)
    columns = {}
    written = {}
    for name in names:
        is_path = name == settings.key and settings.by == "path"
        is_id = name in (settings.key, settings.patient)
        # What names a file or a person is kept as it is written, but for what a spreadsheet adds.
        steps: list[Step] = [_stripped]
        if not is_path:
            steps += [_composed, _without_nought]
        if not is_id and table.comma:
            steps.append(_without_comma_nought)
        if not is_id and settings.dates == "day.month.year":
            steps.append(_day_in_order)
        columns[name] = _texts(table.columns[name], steps)
        if not is_id:
            as_it_stands = _texts(table.columns[name], [_stripped])
            if len(set(as_it_stands)) > len(set(columns[name])):
                written[name] = as_it_stands
    if settings.root is not None:
        _put_below_roots(columns, settings)
    for name in of_paths:
        of_rows = _roots_of_rows if name == ROOT_COLUMN else _entities_of_rows
        columns[name] = of_rows(columns, settings, name)
    return LabelTable(settings, columns, table.comma, table.notes, written, table.lists_files)


def of_each_structure(table: LabelTable, structures: Sequence[str]) -> LabelTable:
    """Return a table whose rows say it of every structure, which a column STRUCTURE then names.

    Of a table whose rows are of a structure each, that with the column by that name as well.
    """
    if table.settings.structure is not None:
        return replace(
            table, columns=table.columns | {STRUCTURE: table.columns[table.settings.structure]}
        )
    n = len(table.columns[table.settings.key])
    columns = {name: np.repeat(texts, len(structures)) for name, texts in table.columns.items()}
    written = {name: np.repeat(texts, len(structures)) for name, texts in table.written.items()}
    columns[STRUCTURE] = np.tile(np.array(structures, dtype=object), n)
    settings = table.settings.model_copy(update={"structure": STRUCTURE})
    return replace(table, settings=settings, columns=columns, written=written)


def _put_below_roots(columns: dict[str, Texts], settings: Labels) -> None:
    """Put the name of each row's root before its key and patient, as paths and ids have it."""
    assert settings.root is not None
    roots = columns[settings.root]
    for name in {settings.key, settings.patient or settings.key}:
        texts: Sequence[str] = columns[name].tolist()
        if name == settings.key and settings.by == "path":
            texts = [text.replace("\\", "/").removeprefix("./") for text in texts]
        pairs = zip(roots, texts, strict=True)
        below = [f"{root}/{text}" if text else "" for root, text in pairs]
        columns[name] = np.array(below, dtype=object)


def _roots_of_rows(columns: Mapping[str, Texts], settings: Labels, _: str) -> Texts:
    """Return (n,) the name of each row's root: its column's, or the first folder of its path."""
    if settings.root is not None:
        return columns[settings.root]
    firsts = [path.partition("/")[0] for path in _paths_of_rows(columns, settings)]
    return np.array(firsts, dtype=object)


def _entities_of_rows(columns: Mapping[str, Texts], settings: Labels, column: str) -> Texts:
    """Return (n,) an entity of BIDS that the paths of the rows have; "" for none.

    Raises LabelError where no path has it, and where rows are not of paths.
    """
    if settings.by != "path":
        raise LabelError(
            f"{column!r} is read from the paths of a label file's rows, and those of "
            f"{str(settings.file)!r} are joined by {settings.by}. Name images in them (labels.by: "
            "path), or leave labels out, so that a BIDS folder's own tables are read."
        )
    name = column.removeprefix(bids.COLUMN)
    there: dict[str, None] = {}
    values = []
    for path in _paths_of_rows(columns, settings):
        image = bids.parse_bids(path)
        values.append("" if image is None else image.value(name))
        there |= dict.fromkeys(image.names if image else ())
    if any(values):
        return np.array(values, dtype=object)
    if name == "subject":
        which = "A subject is a patient: splits keep each on one side, and results name none."
    else:
        which = hint(column, [column], [bids.COLUMN + each for each in there])
        which += f" There are: {', '.join(there)}." if there else ""
    raise LabelError(f"No path of {str(settings.file)!r} has {column!r}. {which}")


def _paths_of_rows(columns: Mapping[str, Texts], settings: Labels) -> list[str]:
    return [text.replace("\\", "/") for text in columns[settings.key]]


def _columns_of(settings: Labels, tasks: Iterable[Task]) -> list[str]:
    """Return the key, the columns of patient and structure if any, labels and subgroups, once."""
    names = [settings.key]
    names += [name for name in (settings.patient, settings.structure) if name]
    for task in tasks:
        names += task.truth_columns
        names += task.columns
        names += task.subgroups
    return list(dict.fromkeys(names))


# --- cells ---------------------------------------------------------------------------------


def _texts(cells: Sequence[str], steps: Sequence[Step]) -> Texts:
    """Return cells (n,) after each of the steps, of which each value is taken through once."""
    values = dict.fromkeys(cells, "")
    for cell in values:
        text = cell
        for step in steps:
            text = step(text)
        values[cell] = text
    return np.array([values[cell] for cell in cells], dtype=object)


def _stripped(cell: str) -> str:
    return unquoted_cell(cell.strip())


def _composed(text: str) -> str:
    """Return a text with each accent in one character with its letter, as most programs have it."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _without_nought(text: str) -> str:
    """Return a whole number without ".0", which a column with gaps gets where it is a number's.

    Minus nought, as a rounded float has it, is nought.
    """
    integer = _WHOLE.fullmatch(text)
    number = integer[1] if integer else text
    return "0" if number == "-0" else number


def _without_comma_nought(text: str) -> str:
    integer = _WHOLE_BY_COMMA.fullmatch(text)
    return integer[1] if integer else text


def _day_in_order(text: str) -> str:
    """Return a date, and a time behind it, with the year first; a day that is none stays."""
    written = DAY_FIRST.match(text)
    if written is None:
        return text
    day, _, month, year = written.groups()
    try:
        date = datetime.date(int(year), int(month), int(day))
    except ValueError:
        return text
    return date.isoformat() + text[written.end() :]
