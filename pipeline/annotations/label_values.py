"""From the text of label columns to values: words, zeros and ones, numbers, by a stated policy.

Nothing is guessed: an uncertain finding is refused until the config says what it means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.annotations.spellings import (
    UNCERTAIN,
    code_notes,
    doubt_notes,
    empty_notes,
    is_empty,
    merged_spellings,
    plain,
    refuse_two_notations,
    spelling_notes,
    truths,
)
from pipeline.annotations.texts import is_date, is_number, is_text
from pipeline.config.tasks import Task
from pipeline.shared.texts import count
from stores.errors import LabelError

_IN_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+", re.ASCII)
_BY_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)

Counts = NDArray[np.int64]


# --- policies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelValues:
    """What the label rows say once the policies for uncertain and missing values are applied.

    texts (rows, labels): None where left out; filled (rows,): how many uncertain or empty values
    count as 0 or 1. notes: what there is to say, such as spellings that are one value. empty: notes
    on what is written in cells that hold nothing.
    """

    texts: NDArray[Any]
    filled: Counts
    notes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(rows,): which label rows say anything in any column."""
        return np.asarray(is_text(self.texts).any(axis=1))


def apply_policies(table: LabelTable, task: Task, *, either_way: bool = False) -> LabelValues:
    """Apply the policies for uncertain and missing values to the task's columns.

    -1 is uncertain where the other values of its column are 0 and 1, and in every multi-label
    column. Spellings of one value are one. either_way: the column is asked about as a shortcut.
    Raises LabelError for an uncertain value where no policy says what it means, for a multi-label
    value that is neither 0 nor 1, and for values that may be one or two, or none.
    """
    columns = []
    notes: list[str] = []
    empty: list[str] = []
    filled = np.zeros(len(table.columns[task.labels[0]]), np.int64)
    for name in task.labels:
        raw = table.columns[name]
        nothing = is_empty(raw, _empty(table, task))
        empty += empty_notes(raw[nothing], name)
        texts = raw.copy()
        texts[nothing] = None
        ticked = _missing(table, task) == "zero"
        meaning = truths(raw[~nothing], several=len(task.labels) > 1, ticked=ticked)
        if task.values == "number":
            texts, of_numbers = _numbers(table, name, nothing)
            notes += of_numbers
        elif meaning:
            texts = np.array([text and meaning.get(plain(text), text) for text in texts], object)
            notes += spelling_notes(table.written.get(name, raw), texts)
            is_uncertain = np.array(
                [text is not None and plain(text) == UNCERTAIN for text in texts]
            )
            texts = _finding(texts, is_uncertain, name, table, task)
            filled += is_text(texts) & (nothing | is_uncertain)
        else:
            texts = merged_spellings(texts)
            notes += spelling_notes(table.written.get(name, raw), texts)
            notes += _doubts(texts[~nothing], raw[nothing], name, task, refuse=not either_way)
        # A finding's empty cells are zeros by now: what is still empty cannot be made one.
        if ticked and not is_text(texts[nothing]).all():
            raise LabelError(
                f"Missing values can count as 0 only in a column of zeros and ones. Column "
                f"{name!r} has {len(set(texts[~nothing]))} other values and "
                f'{int(nothing.sum())} empty cells; set the task\'s missing to "leave-out".'
            )
        columns.append(texts)
    if task.time is not None:
        nothing = is_empty(table.columns[task.time], _empty(table, task))
        texts, of_numbers = _numbers(table, task.time, nothing, of_time=True)
        notes += of_numbers
        columns.append(texts)
        notes += _half_known_notes(columns, task)
    return LabelValues(np.stack(columns, axis=1), filled, tuple(notes), tuple(empty))


def _numbers(
    table: LabelTable, name: str, nothing: NDArray[np.bool_], *, of_time: bool = False
) -> tuple[Texts, list[str]]:
    """Return a column of numbers as text, None where it says `nothing`, and notes on it.

    of_time: they say how long each was watched. Raises LabelError for a cell that is no number.
    """
    raw = table.columns[name]
    texts = raw.copy()
    texts[nothing] = None
    notes = []
    if table.comma:
        texts = with_points(texts.tolist(), name)
        notes = _thousands_notes(table.written.get(name, raw)[~nothing], name)
    _refuse_text(texts, name, of_time)
    return texts, notes + code_notes(texts[~nothing], name, sorted(set(raw[nothing]) - {""}))


def _half_known_notes(columns: list[Texts], task: Task) -> list[str]:
    """Leave out rows of which either the event or the time is not known, and return a note."""
    known = [is_text(texts) for texts in columns]
    half_known = known[0] != known[1]
    for texts in columns:
        texts[half_known] = None
    if not half_known.any():
        return []
    return [
        f"{count(int(half_known.sum()), 'row')} with only one of {task.event!r} and {task.time!r} "
        "left out"
    ]


def _doubts(
    texts: Texts,
    empty: Texts,
    name: str,
    task: Task,
    *,
    refuse: bool,
) -> list[str]:
    """Return notes on what may be no class of its own, unless the task says that it is.

    texts, empty: the cells that say something, in one spelling a value, and those that do not.
    Raises LabelError, if it is to be refused, where nobody can tell.
    """
    # Of two values one of which is named the positive, the other is what it stands against.
    is_pair = task.positive is not None and len(set(texts)) == 2
    if task.values == "classes" or is_pair:
        return []
    if refuse:
        refuse_two_notations(texts, name)
    return doubt_notes(texts, name, sorted(set(empty) - {""}), refuse=refuse)


def with_decimal_points(table: LabelTable, name: str) -> LabelTable:
    """Return a table in which the decimals of a column have points. Raises as `with_points`."""
    if not table.comma:
        return table
    return replace(
        table, columns={**table.columns, name: with_points(table.columns[name].tolist(), name)}
    )


def with_points(texts: Sequence[str | None], name: str) -> Texts:
    """Return numbers that have decimal commas with points, as all else reads them.

    Of a table in which no comma separates cells. Raises LabelError for a column with points as
    well: one of the two may part thousands from hundreds.
    """
    there = [text for text in texts if text is not None]
    with_comma = set(filter(_BY_COMMA.fullmatch, there))
    if with_comma and any("." in text and is_number(text) for text in there):
        raise LabelError(
            f"Decimals must be written in one way. Column {name!r} has numbers with a comma "
            "and others with a point; write all of them with a point."
        )
    return np.array(
        [text.replace(",", ".") if text in with_comma else text for text in texts], dtype=object
    )


def _thousands_notes(cells: Texts, name: str) -> list[str]:
    """Return a note where all decimals of a column (n,) may be thousands: 1.234 and 1,234.

    Of a table in which no comma separates cells.
    """
    broken = [cell for cell in cells.tolist() if "." in cell or "," in cell]
    if len(broken) < 2 or not all(map(_IN_THOUSANDS.fullmatch, broken)):
        return []
    return [
        f"all {len(broken)} decimals of column {name!r} have three digits: if their point or comma "
        "parts thousands, take it out"
    ]


def _refuse_text(texts: Texts, name: str, of_time: bool) -> None:
    others = [i + 1 for i, text in enumerate(texts) if text is not None and not is_number(text)]
    if of_time and not others:  # DICOM's dates are numbers of eight digits
        there = {i + 1: text for i, text in enumerate(texts) if text is not None}
        others = [*there] if all(map(is_date, there.values())) else []
    if others:
        also = f" and {len(others) - 1} more" if len(others) > 1 else ""
        kind = "time" if of_time else "values: number"
        otherwise = "or leave values out for classes"
        if of_time:
            otherwise = "or write how long it is between dates"
        raise LabelError(
            f"A column of {kind} must hold finite numbers. Column {name!r} has another in data row "
            f"{others[0]}{also}; correct it, leave the cell empty, {otherwise}."
        )


def _missing(table: LabelTable, task: Task) -> str:
    return task.missing or table.settings.missing


def _empty(table: LabelTable, task: Task) -> tuple[str, ...]:
    return table.settings.empty if task.empty is None else task.empty


def _finding(
    texts: Texts,
    is_uncertain: NDArray[np.bool_],
    name: str,
    table: LabelTable,
    task: Task,
) -> Texts:
    """Return a column of "0", "1", None and what is uncertain as "0", "1" and None."""
    policy = task.uncertain or table.settings.uncertain
    if policy == "refuse" and is_uncertain.any():
        raise LabelError(
            f"{int(is_uncertain.sum())} values of column {name!r} are -1 (uncertain), first in "
            f"data row {int(is_uncertain.argmax()) + 1}, and no policy says what that means. Set "
            'labels.uncertain, or the task\'s, to "zero", "one" or "leave-out".'
        )
    uncertain = {"zero": "0", "one": "1"}.get(policy)
    missing = "0" if _missing(table, task) == "zero" else None
    meaning = {"0": "0", "1": "1", None: missing}
    values = []
    for i, text in enumerate(texts):
        if is_uncertain[i]:
            values.append(uncertain)
        elif text in meaning:
            values.append(meaning[text])
        else:
            raise LabelError(
                f"A multi-label value must be 0, 1, -1 or empty. Column {name!r} has another in "
                f"data row {i + 1}. What is written where nothing is known stands in labels.empty."
            )
    return np.array(values, dtype=object)
