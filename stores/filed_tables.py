"""Tables that were computed from a store and filed in it, each with its checksum beside it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from stores._disk import read_checked
from stores.errors import CorruptStoreError

# A table has a row a unit, a slice or a mask, so that documents' bound is too small for it.
_MOST_BYTES = 2**33


def read_filed_table(path: Path) -> pa.Table:
    """Read a Parquet file, held against the checksum beside it.

    Raises FileNotFoundError, and CorruptStoreError where it does not fit, or is no table of whole
    text: whoever made the store may have made the checksum too.
    """
    import pyarrow.parquet as pq  # where a table is read: an answer on file needs none

    data = read_checked(path, _MOST_BYTES)
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"{path} is no table: {error}") from None
    return table
