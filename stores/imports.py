"""Features that others computed: HDF5 and npy into a store of their own, marked as imported.

Nothing of a foreign file is believed: no size before memory is asked, no object, no identifier.
What is said of a bad file names the column and the row, and never what stands there.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stores._disk import file_sha256, temporary_name
from stores._types import Values
from stores.contents import OK, ArraySpec
from stores.errors import ConfigError, StoreError, UnreadableError
from stores.export import SEAL, seal_of
from stores.features import FeatureStore, check_free
from stores.folder import LocalFolder, linked_place
from stores.hdf5 import member
from stores.inside import is_below
from stores.layout import default_part_rows
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

if TYPE_CHECKING:
    import h5py

Columns = dict[str, list[Any]]
# Returns what stands for an identifier of a kind: hide(kind, raw).
Hide = Callable[[str, str], str]

_IDENTITIES = ("path", "patient", "study", "series", "instance")
# Columns of whole numbers, and of others.
_WHOLE = ("frame", "height", "width")
_NUMBERS = ("position_mm", "spacing_y_mm", "spacing_x_mm")
# The rows and their withdrawal are the new store's own.
_NEW = ("row", "withdrawn")
_PSEUDONYM = re.compile(r"[0-9a-f]{16}(\.[0-9]+)?")
_CODE = re.compile(r"[A-Za-z0-9_]{1,16}")
_FLAG = re.compile(r"[a-z][a-z-]{0,40}")
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
# A file that says it holds so many times its own size, and more than this, is not believed.
_MOST_BYTES = 2**30
_MOST_RATIO = 1000


@dataclass(frozen=True)
class Foreign:
    """Features (n, d) of another tool, and what is known of each row: columns by name.

    sealed: radprobe wrote the columns, and nobody has changed them since. name: of the file, as the
    store is to tell it.
    """

    source: Path
    features: Values
    columns: Columns
    sealed: bool
    name: str


def read_foreign(source: Path, table: Path | None = None) -> Foreign:
    """Read `features` of an HDF5 file, or a .npy; table: a Parquet or CSV with a row a row.

    Without a table, the columns are those of the HDF5 file, or of a .parquet beside the .npy that
    radprobe exported with it. Raises ConfigError where the features are not (n, d), or where the
    columns are not n long or not what they must be.
    """
    if not source.is_file():
        raise ConfigError(f"There is no file {str(source)!r} to import. Check the path.")
    features, columns, seal = _read_npy(source) if _is_npy(source) else _read_h5(source)
    if table is not None:
        columns, seal = _read_columns(table)
    elif _is_npy(source):
        columns, seal = _exported_columns(source.with_suffix(".parquet"))
    if features.ndim == 3 and len(features) == 1:  # (1, n, d), as some MIL tools write it
        features = features[0]
    lengths = {len(features), *map(len, columns.values())} if features.ndim else set()
    if features.ndim != 2 or len(lengths) != 1 or not features.size:
        raise ConfigError(
            f"{source} must hold features (n, d) and columns of n values each. Got features "
            f"{features.shape} and columns of {sorted(len(v) for v in columns.values())} values."
        )
    of = f"The table {table}" if table is not None else str(source)
    # By the cells as they are in the file: a seal vouches for no others.
    sealed = seal is not None and seal == seal_of(columns)
    columns = {name: _checked(name, values, of) for name, values in columns.items()}
    columns.setdefault("path", [source.name] * len(features))
    columns.setdefault("frame", list(range(len(features))))
    return Foreign(source, features, columns, sealed, source.name)


def import_features(
    path: Path,
    recipe_text: str,
    blocks: int,
    dtype: str,
    foreign: Foreign,
    key_check: str | None = None,
) -> FeatureStore:
    """Make a store whose `cls` (n, blocks, d) are foreign features; receipts say where from.

    Made aside and renamed: where this raises, there is no store. Raises ConfigError for features
    that are not finite, or that the recipe's dtype cannot hold; OccupiedError where the path holds
    anything.
    """
    check_free(path)
    place = linked_place(path)
    aside = place.with_name(temporary_name(place.name))
    try:
        _fill(aside, recipe_text, blocks, dtype, foreign, key_check)
        LocalFolder(path).adopt(aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return FeatureStore.open(path)


def _fill(
    path: Path,
    recipe_text: str,
    blocks: int,
    dtype: str,
    foreign: Foreign,
    key_check: str | None,
) -> None:
    """Make a store and commit all its parts."""
    width = foreign.features.shape[1]
    row_shape = (blocks, width // blocks)
    part_rows = default_part_rows(width * np.dtype(dtype).itemsize)
    specs = {"cls": ArraySpec(row_shape, dtype)}
    store = FeatureStore.create(path, recipe_text, specs, part_rows, key_check)
    store.write_tables(_slices(foreign), FILE_SCHEMA.empty_table())
    origin = {"file": foreign.name, "sha256": file_sha256(foreign.source)}
    for part in store.missing():
        of_part = np.asarray(foreign.features[part.span])  # fewer in the last part
        _refuse_not_finite(foreign.source, part.start, of_part)
        values = of_part.reshape(-1, *row_shape)
        arrays = store.empty_part()
        with _naming_file(foreign.source), np.errstate(over="ignore"):
            arrays["cls"][: len(values)] = values
            arrays["status"][: len(values)] = OK
            with store.reclaim(part) as claim:
                store.write(part, claim, arrays, {"imported": origin, "failures": []})


def _refuse_not_finite(source: Path, start: int, values: Values) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0]) + start
        raise ConfigError(
            f"The features of {source} must be finite. Got NaN or an infinity in {int(bad.sum())} "
            f"rows, first in row {first}: leave those rows out."
        )


@contextlib.contextmanager
def _naming_file(source: Path) -> Iterator[None]:
    """Name the file that the store refuses."""
    try:
        yield
    except StoreError as error:
        raise ConfigError(f"{source} cannot be imported: {error}") from error


def _slices(foreign: Foreign) -> pa.Table:
    n = len(foreign.features)
    columns = dict(foreign.columns)
    columns["row"] = list(range(n))
    columns["withdrawn"] = [False] * n
    nothing = [None] * n
    arrays = {}
    for field in SLICE_SCHEMA:
        arrays[field.name] = pa.array(columns.get(field.name, nothing), field.type)
    return pa.table(arrays, schema=SLICE_SCHEMA)


# --- files -------------------------------------------------------------------------------------


def _is_npy(source: Path) -> bool:
    return source.suffix == ".npy"


def _read_npy(source: Path) -> tuple[Values, Columns, str | None]:
    """Return the array of a .npy, mapped: of a file that says it is larger, nothing is read."""
    try:
        features = np.lib.format.open_memmap(source, "r")
    except (ValueError, OSError, EOFError, OverflowError, MemoryError) as error:
        objects = "Python objects" in str(error) or "pickle" in str(error)
        why = (
            "it holds Python objects, and radprobe loads no pickles"
            if objects
            else "it is no whole .npy file: cut, empty or of another kind"
        )
        raise ConfigError(
            f"{source} cannot be imported: {why}. Save features (n, d) of plain numbers by "
            "`numpy.save`."
        ) from None
    _refuse_other_numbers(source, features.dtype)
    return features, {}, None


def _exported_columns(exported: Path) -> tuple[Columns, str | None]:
    """Return the columns of the table that was exported with a .npy; none where there is none.

    A table of another tool that happens to lie there is not taken: `--table` names it.
    """
    if not exported.is_file():
        return {}, None
    columns, seal = _read_columns(exported)
    return (columns, seal) if seal is not None else ({}, None)


def _read_h5(source: Path) -> tuple[Values, Columns, str | None]:
    """Return the features and columns of an HDF5 file, and the seal on them, if any."""
    import h5py

    try:
        with h5py.File(source) as file:
            features = np.asarray(_dataset(source, file, "features"))
            columns: Columns = {}
            n = features.shape[-2] if features.ndim > 1 else 0
            for name in _column_names(file):
                columns[name] = _h5_column(source, file, name, n)
            seal = file.attrs.get(SEAL)
    except UnreadableError as error:
        raise ConfigError(
            f"{source} cannot be imported: {error.detail}. Write the features and their columns "
            "into one file."
        ) from None
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{source} cannot be imported: it is no whole HDF5 file (.npy files end in .npy). "
            f"HDF5 says {type(error).__name__}."
        ) from None
    return features, columns, seal if isinstance(seal, str) else None


def _column_names(file: h5py.File) -> list[str]:
    return [name for name in SLICE_SCHEMA.names if name in file and name not in _NEW]


def _dataset(source: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of numbers that can be in the file. Raises ConfigError."""
    import h5py

    dataset = member(file, name)
    if dataset is None:
        raise ConfigError(f"{source} must have a dataset `{name}`. It has {len(file)} others.")
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ConfigError(
            f"`{name}` of {source} must be a dataset (n, d). Got a group or a scalar."
        )
    _refuse_other_numbers(source, dataset.dtype)
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    on_disk = source.stat().st_size
    if size > max(_MOST_BYTES, _MOST_RATIO * on_disk):
        raise ConfigError(
            f"`{name}` of {source} says it has {dataset.shape} numbers, {size / 2**30:.0f} GiB, in "
            f"a file of {on_disk} bytes: it is cut, or no features. Write it again."
        )
    return dataset


def _refuse_other_numbers(source: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise ConfigError(
            f"The features of {source} must be real numbers. Got {dtype} instead: text, objects, "
            "truth values and complex numbers are none."
        )


def _h5_column(source: Path, file: h5py.File, name: str, n: int) -> list[Any]:
    """Return a column of an HDF5 file as Python has it; text is decoded later."""
    import h5py

    column = member(file, name)
    if not isinstance(column, h5py.Dataset) or column.shape != (n,):
        shape = getattr(column, "shape", "a group")
        raise ConfigError(f"`{name}` of {source} must have {n} values, one a row. Got {shape}.")
    if column.dtype.kind not in "SOfiu" or (
        column.dtype.kind == "O" and h5py.check_string_dtype(column.dtype) is None
    ):
        raise ConfigError(f"`{name}` of {source} must be text or numbers. Got {column.dtype}.")
    values: list[Any] = column[:].tolist()
    return values


def _read_columns(table: Path) -> tuple[Columns, str | None]:
    """Return the columns of a Parquet or CSV, of the latter as text, and the seal on them."""
    try:
        read = _read_csv(table) if table.suffix.lower() == ".csv" else pq.read_table(table)
    except (pa.ArrowException, OSError, ValueError):
        # Arrow's own words quote the rows that it cannot read.
        raise ConfigError(
            f"The table {str(table)!r} cannot be read: it must be a CSV with a header, or a "
            "Parquet, whole and in UTF-8."
        ) from None
    columns = {}
    for name in SLICE_SCHEMA.names:
        if name in read.column_names and name not in _NEW:
            columns[name] = read[name].to_pylist()
    seal = (read.schema.metadata or {}).get(SEAL.encode())
    return columns, None if seal is None else seal.decode("ascii", "replace")


def _read_csv(table: Path) -> pa.Table:
    from pyarrow import csv

    # As text: 007 is an id, and 7 another.
    as_text = {name: pa.string() for name in SLICE_SCHEMA.names}
    return csv.read_csv(table, convert_options=csv.ConvertOptions(column_types=as_text))


# --- what may stand in a column ----------------------------------------------------------------


def _checked(name: str, values: list[Any], of: str) -> list[Any]:
    """Return the values of a column as the slice table has them; None for nothing.

    Raises ConfigError naming the column and the first row that is not what it must be, and not what
    stands there: it may be a name.
    """
    checks: dict[str, tuple[Callable[[Any], Any], str]] = {
        **dict.fromkeys(_IDENTITIES, (_text, "text or a whole number")),
        **dict.fromkeys(_WHOLE, (_small_number, "a whole number, of 32 bits")),
        **dict.fromkeys(_NUMBERS, (_number, "a number")),
        "path": (_path, "a path relative to the collection, without `..`"),
        "modality": (_code, "a DICOM code such as CT"),
        "flags": (_flags, "a list of words such as missing-position"),
        "tags": (_tags, "a map of DICOM keywords to texts"),
    }
    check, expected = checks[name]
    checked = []
    for row, value in enumerate(values):
        try:
            checked.append(None if _is_nothing(value) else check(value))
        except (ValueError, TypeError, OverflowError):
            raise ConfigError(
                f"{of}: column {name!r} must hold {expected}. Data row {row + 1} holds something "
                "else."
            ) from None
    return checked


def _is_nothing(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or value in ("", b"")


def _text(value: Any) -> str:
    """Return an id as text: 007 stays 007, and 7.0 is 7."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    if isinstance(value, float):
        value = _whole_number(value)
    return str(value)


def _path(value: Any) -> str:
    text = _text(value).replace("\\", "/").removeprefix("./")
    if not is_below(text):
        raise ValueError
    return text


def _whole_number(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _small_number(value: Any) -> int:
    """Return a whole number that its column of the slice table can hold."""
    number = _whole_number(value)
    if abs(number) >= 2**31:
        raise ValueError
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
        raise TypeError
    return float(value)


def _code(value: Any) -> str:
    text = _text(value)
    if not _CODE.fullmatch(text):
        raise ValueError
    return text


def _flags(value: Any) -> list[str]:
    words = value.split() if isinstance(value, str) else list(value)
    if not all(isinstance(word, str) and _FLAG.fullmatch(word) for word in words):
        raise ValueError
    return words


def _tags(value: Any) -> list[tuple[str, str]]:
    pairs = value.items() if isinstance(value, Mapping) else value
    tags = []
    for keyword, text in pairs:
        if not _KEYWORD.fullmatch(keyword):
            raise ValueError
        tags.append((keyword, _text(text)))
    return tags


# --- identifiers -------------------------------------------------------------------------------


def hide_identities(foreign: Foreign, hide: Hide) -> Foreign:
    """Return the same with identifiers replaced by hide(kind, raw).

    A pseudonym that radprobe sealed stays as it is; everything else is hidden, every path with it,
    and the name of the file: others name files of features after patients.
    """
    hidden: Columns = {}
    for kind in _IDENTITIES:
        if kind in foreign.columns:
            values = foreign.columns[kind]
            hidden[kind] = [_hidden(kind, value, hide, foreign.sealed) for value in values]
    if "tags" in foreign.columns:
        tags = foreign.columns["tags"]
        hidden["tags"] = [_hidden_tags(pairs, hide, foreign.sealed) for pairs in tags]
    name = hide("path", foreign.source.name)
    return replace(foreign, columns=foreign.columns | hidden, name=name)


def _hidden(kind: str, value: str | None, hide: Hide, sealed: bool) -> str | None:
    if value is None:
        return None
    if sealed and kind != "path" and _PSEUDONYM.fullmatch(value):
        return value
    return hide(kind, value)


def _hidden_tags(
    pairs: Sequence[tuple[str, str]] | None, hide: Hide, sealed: bool
) -> list[tuple[str, str | None]] | None:
    if pairs is None:
        return None
    return [(keyword, _hidden(f"tag:{keyword}", text, hide, sealed)) for keyword, text in pairs]
