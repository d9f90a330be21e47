"""Tables for spreadsheets, which take a cell that begins with `=` for a formula and run it.

A name from a file or a label table is quoted by an apostrophe, as spreadsheets do it themselves.
What reads labels takes such an apostrophe away again.
"""

from __future__ import annotations

import pyarrow as pa

# What a formula may begin with; a tab or a line end may stand before it.
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
QUOTE = "'"
_FORMULA = r"^[=+\-@\t\r\n]"


def quoted_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; a number stays one."""
    if not text.startswith(STARTS) or _is_number(text):
        return text
    return QUOTE + text


def unquoted_cell(text: str) -> str:
    """Return what `quoted_cell` was given."""
    return text[1:] if text[:1] == QUOTE and text[1:].startswith(STARTS) else text


def quoted(table: pa.Table) -> pa.Table:
    """Return a table whose texts, and names of columns, are no formulas."""
    import pyarrow.compute as pc  # all of Arrow's functions: who reads labels needs none

    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            is_formula = pc.match_substring_regex(column, _FORMULA)
            safe = pc.if_else(is_formula, pc.binary_join_element_wise(QUOTE, column, ""), column)
            table = table.set_column(place, table.schema.field(place), safe)
    return table.rename_columns([quoted_cell(name) for name in table.column_names])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text[:1] in "+-"
