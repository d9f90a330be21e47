"""Tables as people have them, read as columns of text: CSV of any separator, .xlsx, Parquet.

The first bytes say which of them a file is; its header says what separates its cells: whatever
finds the columns that are asked for. No message has a cell in it: the cells are patients'.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import difflib
import io
import re
import unicodedata
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from pipeline.shared.spreadsheets import unquoted_cell
from stores.errors import CorruptStoreError, LabelError
from stores.parquet_file import ParquetFile

# Commas first: where another separator finds no more columns, it is the separator.
SEPARATORS = (",", ";", "\t", "|")

# What files begin with.
_PARQUET = b"PAR1"
_ZIP = b"PK\x03\x04"
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

# Of the text of a file, what is read to see its header.
_HEAD = 2**18
# The longest cell: one that is longer is a quote that nobody closed.
_MOST_CELL = 2**24
# A time of day that says nothing: of a day that was written as a moment.
_MIDNIGHT = re.compile(r"[ T]00:00:00(\.0+)?$", re.ASCII)
_ZEROS_OF_SECOND = re.compile(r"(:\d{2})\.0+$", re.ASCII)


@dataclass(frozen=True)
class TextTable:
    """Some columns of a file: by the names that were asked for, the text of each cell as it stands.

    comma: whether numbers may have a decimal comma, since no comma separates cells. notes: what was
    read otherwise than a plain CSV is. lists_files: whether its rows are the files of a folder, of
    which those that were not embedded are no labels lost.
    """

    columns: dict[str, list[str]]
    comma: bool = False
    notes: tuple[str, ...] = ()
    lists_files: bool = False


def read_table(path: Path, names: Sequence[str], what: str = "label file") -> TextTable:
    """Return the columns of those names, in whichever case the file has them.

    what: messages call the file. Raises LabelError where there is no file or column, and where the
    file cannot be read: it says in which line, and why.
    """
    with _as_label_error(path, what):
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
        if start == _PARQUET or path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(path, names)
        if start == _ZIP:
            return _excel(path, names)
        if start == _OLD_EXCEL:
            raise _UnreadError(
                "it is an Excel file of before 2007 (.xls), or one with a password: save it as "
                ".xlsx without"
            )
        return _csv(path, names, _encoding(start))


def header_of(path: Path) -> list[str]:
    """Return the columns of a text whose cells tabs separate. Raises as `read_table` does."""
    with _as_label_error(path), path.open("rb") as file:
        encoding = _encoding(file.read(len(_ZIP)))
        file.seek(0)
        text = io.TextIOWrapper(file, encoding, errors="replace", newline="")
        _, header = next(_records(text, "\t"), (1, []))
    return header


@contextlib.contextmanager
def _as_label_error(path: Path, what: str = "label file") -> Iterator[None]:
    """Raise LabelError in the place of what a table cannot be read for."""
    try:
        yield
    except FileNotFoundError:
        raise LabelError(
            f"There is no {what} {str(path)!r}; set labels.file to a CSV, .xlsx or Parquet."
        ) from None
    except _ColumnError as error:
        raise LabelError(f"The {what} {str(path)!r} has {error}") from None
    except (_UnreadError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise LabelError(f"The {what} {str(path)!r} cannot be read: {why}.") from None


class _UnreadError(Exception):
    """Why a file is no table, in words without a cell of it."""


class _ColumnError(Exception):
    """Which column a table does not have, or has twice, and what to do."""


# --- columns -------------------------------------------------------------------------------


def _places(names: Sequence[str], there: Sequence[str]) -> list[int]:
    """Return where each name stands among the columns, in any case. Raises _ColumnError."""
    places = []
    for name in names:
        of_name = places_of(name, there)
        if len(of_name) > 1:
            raise _ColumnError(
                f"{len(of_name)} columns {name!r}, in one case or several. Rename all but one."
            )
        if not of_name:
            raise _ColumnError(f"no column {name!r}. {hint(name, names, there)}")
        places += of_name
    return places


def places_of(name: str, there: Sequence[str]) -> list[int]:
    """Return where columns are called so: to the letter, or else in another case."""
    for spelt in (str, _alike):
        wanted = spelt(name)
        places = [i for i, column in enumerate(there) if spelt(column) == wanted]
        if places:
            return places
    return []


def _alike(name: str) -> str:
    """Return a column's name as all its spellings have it."""
    plain = unquoted_cell(unicodedata.normalize("NFC", name).strip())
    return " ".join(plain.casefold().split())


def hint(name: str, names: Sequence[str], there: Sequence[str]) -> str:
    """Return which column may be meant by a name that is none of those that are there."""
    by_spelling = {_alike(column): column for column in there}
    near = difflib.get_close_matches(_alike(name), by_spelling, n=1)
    if near:
        return f"Did you mean {by_spelling[near[0]]!r}?"
    if any(places_of(other, there) for other in names):
        return f"It has {', '.join(there)}."
    # The first line may be data, and name a patient.
    return f"Its first line must name the columns; it has {len(there)} others."


# --- text ----------------------------------------------------------------------------------


def _encoding(start: bytes) -> str:
    """Return how a text is written, by its first bytes: as Excel's "Unicode text", or UTF-8."""
    if start.startswith(_UTF16):
        return "utf-16"
    # Without a mark, every other byte of a header in Latin letters is nought.
    if start[1:4:2] == b"\0\0":
        return "utf-16-le"
    if start[0:4:2] == b"\0\0":
        return "utf-16-be"
    return "utf-8-sig"


def _csv(path: Path, names: Sequence[str], encoding: str) -> TextTable:
    try:
        return _csv_in(path, names, encoding)
    except UnicodeDecodeError:
        note = _refuse_torn_text(path, encoding)
        table = _csv_in(path, names, "cp1252")
        return TextTable(table.columns, table.comma, (note, *table.notes))


def _refuse_torn_text(path: Path, encoding: str) -> str:
    """Return the note of a text in Windows' own encoding. Raises _UnreadError for any other.

    Excel's plain "CSV" is written in it, where letters have accents.
    """
    with _opened(path) as stream:
        data = stream.read()
    if b"\0" in data or encoding != "utf-8-sig":
        raise _UnreadError("it is no table of text, .xlsx or Parquet")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    # Letters that are whole in UTF-8 are no chance: such a text was torn, or two were put together.
    has_letters_of_utf8 = not data.decode("utf-8", "ignore").isascii()
    try:
        data.decode("cp1252")
        is_windows = not has_letters_of_utf8
    except UnicodeDecodeError:
        is_windows = False
    if not is_windows:
        raise _UnreadError(
            f"line {line} is no text in UTF-8. Save the table as CSV UTF-8, or as .xlsx"
        )
    return f"read as Windows-1252, since line {line} is not UTF-8: save it as CSV UTF-8 to be sure"


def _opened(path: Path) -> Any:
    """Return a stream of a file's bytes, which are unpacked where its name ends in .gz or .bz2."""
    # Python's own stream where it will do: text is read from it twice as fast.
    is_packed = path.suffix.lower() in (".gz", ".bz2", ".lz4", ".zst", ".br")
    return pa.input_stream(str(path)) if is_packed else path.open("rb")


def _csv_in(path: Path, names: Sequence[str], encoding: str) -> TextTable:
    with io.TextIOWrapper(_opened(path), encoding, newline="") as file:
        separator = _separator(file.read(_HEAD), names)
    with io.TextIOWrapper(_opened(path), encoding, newline="") as file:
        records = _records(file, separator)
        _, header = next(records, (1, []))
        places = _places(names, header)
        columns: list[list[str]] = [[] for _ in names]
        width = len(header)
        appends = [(column.append, place) for column, place in zip(columns, places, strict=True)]
        for line, record in records:
            if len(record) != width:
                raise _UnreadError(
                    f"line {line}: Expected {width} columns, got {len(record)}. Correct that "
                    f"row, or put cells with {_in_words(separator)} into quotes"
                )
            for append, place in appends:
                append(record[place])
    return TextTable(dict(zip(names, columns, strict=True)), comma=separator != ",")


def _records(file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not empty, and the line that it begins in. Raises _UnreadError."""
    csv.field_size_limit(_MOST_CELL)
    reader = csv.reader(file, delimiter=separator, strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error:  # whose words are for programmers
        raise _UnreadError(
            f"line {line}: a quoted cell is not closed, or text stands behind its closing quote. "
            "Close it, and double the quotes within it"
        ) from None


def _separator(head: str, names: Sequence[str]) -> str:
    """Return what separates the cells of a text: by it, most of the columns asked for are there."""
    best = SEPARATORS[0]
    most = (-1, -1)
    for separator in SEPARATORS:
        try:
            _, header = next(_records(io.StringIO(head, newline=""), separator), (1, []))
        except _UnreadError:
            continue
        there = sum(bool(places_of(name, header)) for name in names)
        if (there, len(header)) > most:
            most = (there, len(header))
            best = separator
    return best


def _in_words(separator: str) -> str:
    words = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    return words[separator]


# --- Excel ---------------------------------------------------------------------------------


def _excel(path: Path, names: Sequence[str]) -> TextTable:
    """Read the first sheet that has the columns; of none, the first that is not empty."""
    import openpyxl  # a quarter of a second, for those who bring a workbook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layout, which no label is in
        try:
            book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        except Exception:  # of a file within the archive: openpyxl says whichever went wrong first
            raise _UnreadError("it is an archive, but no whole Excel workbook (.xlsx)") from None
        try:
            return _sheet_of(names, book.worksheets)
        except (_ColumnError, _UnreadError):
            raise
        except Exception:  # in words that may have a cell in them
            raise _UnreadError("its workbook is torn") from None
        finally:
            book.close()


def _sheet_of(names: Sequence[str], sheets: Iterable[Any]) -> TextTable:
    headers: list[list[str]] = []
    for number, sheet in enumerate(sheets, 1):
        # The file is closed only once no rows are on their way out of it.
        with contextlib.closing(_filled_rows(sheet)) as rows:
            header = next(rows, [])
            if not all(places_of(name, header) for name in names):
                headers.append(header)
                continue
            places = _places(names, header)
            columns: list[list[str]] = [[] for _ in names]
            for row in rows:
                for place, column in zip(places, columns, strict=True):
                    column.append(row[place] if place < len(row) else "")
        notes = (f"read from sheet {number}, the first that has the columns",) if headers else ()
        return TextTable(dict(zip(names, columns, strict=True)), comma=True, notes=notes)
    # Refused in the words of the sheet that has most of them.
    by_most = max(
        headers, key=lambda header: sum(bool(places_of(n, header)) for n in names), default=[]
    )
    _places(names, by_most)
    raise AssertionError("a sheet that has all columns was passed over")


def _filled_rows(sheet: Any) -> Generator[list[str]]:
    """Yield the rows of a sheet that have anything in them, as text."""
    sheet.reset_dimensions()  # some programs write a size that is none
    for row in sheet.iter_rows():
        texts = [_excel_text(cell) for cell in row]
        if any(texts):
            yield texts


def _excel_text(cell: Any) -> str:
    """Return a cell of a workbook as a CSV of it would have it; a day as YYYY-MM-DD."""
    value = cell.value
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case datetime.datetime():
            return _as_day(value.isoformat(sep=" "))
        case float() if value.is_integer():
            return str(int(value))
        # A column that is shown as 00012 is a column of such ids.
        case int() if re.fullmatch("0+", cell.number_format):
            return str(value).zfill(len(cell.number_format))
    return str(value)


# --- Parquet -------------------------------------------------------------------------------


def _parquet(path: Path, names: Sequence[str]) -> TextTable:
    try:
        file = ParquetFile(pa.memory_map(str(path)).read_buffer())
        there = file.schema.names
        columns = [there[place] for place in _places(names, there)]
        table = file.read(list(dict.fromkeys(columns)))
        texts = [_parquet_texts(table.column(column)) for column in columns]
    except CorruptStoreError as error:  # what would take too much memory
        raise _UnreadError(str(error).removesuffix(".")) from None
    except pa.ArrowException:
        raise _UnreadError("it is no whole Parquet file, or a column of it is of lists") from None
    return TextTable(dict(zip(names, texts, strict=True)), comma=True)


def _parquet_texts(column: Any) -> list[str]:
    is_moment = pa.types.is_timestamp(column.type)
    if column.type != pa.string():  # a cast imports all of Arrow's functions
        column = column.cast(pa.string())
    texts = [value or "" for value in column.to_pylist()]
    return [_as_day(text) for text in texts] if is_moment else texts


def _as_day(moment: str) -> str:
    """Return a moment without the time of day where that is midnight, and without zeros behind."""
    text = moment.removesuffix("Z")
    return _ZEROS_OF_SECOND.sub(r"\1", _MIDNIGHT.sub("", text))
