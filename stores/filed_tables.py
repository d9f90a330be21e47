"""Tables that were computed from a store and filed in it, each with its checksum beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from stores._disk import MOST_TABLE_BYTES, read_checked
from stores.errors import CorruptStoreError
from stores.parquet_file import ParquetFile

# Whether a type is that of a column, such as `pyarrow.types.is_string`.
Kind = Callable[[pa.DataType], bool]


def read_filed_table(path: Path, kinds: Mapping[str, Kind] = MappingProxyType({})) -> pa.Table:
    """Read a Parquet file, held against the checksum beside it.

    kinds: what must hold of the types of columns that it has, and that are null nowhere.

    Raises FileNotFoundError, and CorruptStoreError where it does not fit, or is no table of whole
    text with these columns: whoever made the store may have made the checksum too.
    """
    data = read_checked(path, MOST_TABLE_BYTES)
    try:
        table = ParquetFile(data).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"{path} is no table: {error}") from None
    for name, is_kind in kinds.items():
        places = table.schema.get_all_field_indices(name)
        fits = len(places) == 1 and is_kind(table.column(places[0]).type)
        if not fits or table.column(places[0]).null_count:
            raise CorruptStoreError(
                f"{path} has no column {name!r} as radprobe writes it. Remove the file and run the "
                "command that made it again."
            )
    return table
