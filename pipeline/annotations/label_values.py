"""From the text of label columns to classes, zeros and ones, under a stated policy.

Nothing is guessed: an uncertain finding is refused until the config says what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.config.tasks import Kind, Task
from stores.errors import LabelError

# pyarrow's own spellings of a missing value in CSV, and pandas' in a cast float column.
EMPTY = ("", "#N/A", "NA", "N/A", "n/a", "NULL", "null", "NaN", "nan")
# What zeros and ones are written as.
FINDING: dict[str | None, str | None] = {"0": "0", "1": "1", "false": "0", "true": "1"}
UNCERTAIN = "-1"

Counts = NDArray[np.int64]


# --- policies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelValues:
    """What the label rows say once the policies for uncertain and missing values are applied.

    texts (rows, labels): None where left out; filled (rows,): how many uncertain or empty values
    count as 0 or 1.
    """

    texts: NDArray[Any]
    filled: Counts

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(rows,): which label rows say anything in any column."""
        return np.asarray(is_text(self.texts).any(axis=1))


def is_text(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where an array of text and None has text."""
    return np.asarray(values != None)  # noqa: E711  element by element


def apply_policies(table: LabelTable, task: Task) -> LabelValues:
    """Apply the policies for uncertain and missing values to the task's columns.

    -1 is uncertain where the other values of its column are 0 and 1, and in every multi-label
    column. Raises LabelError for an uncertain value where no policy says what it means, and for a
    multi-label value that is neither 0 nor 1.
    """
    columns = []
    filled = np.zeros(len(table.columns[task.labels[0]]), np.int64)
    for name in task.labels:
        raw = table.columns[name]
        is_empty = np.isin(raw.astype(np.str_), EMPTY)
        texts = raw.copy()
        texts[is_empty] = None
        if task.values == "number":
            _refuse_text(texts, name)
        elif len(task.labels) > 1 or _is_finding(texts[~is_empty]):
            texts = _finding(texts, name, table, task)
            filled += is_text(texts) & (is_empty | (raw == UNCERTAIN))
        # A finding's empty cells are zeros by now: what is still empty cannot be made one.
        if _missing(table, task) == "zero" and not is_text(texts[is_empty]).all():
            raise LabelError(
                f"Missing values can count as 0 only in a column of zeros and ones. Column "
                f"{name!r} has {len(set(texts[~is_empty]))} other values and "
                f'{int(is_empty.sum())} empty cells; set the task\'s missing to "leave-out".'
            )
        columns.append(texts)
    return LabelValues(np.stack(columns, axis=1), filled)


def _refuse_text(texts: Texts, name: str) -> None:
    for i, text in enumerate(texts):
        if text is not None and not _is_number(text):
            raise LabelError(
                f"A column of values: number must hold numbers. Column {name!r} has none in data "
                f"row {i + 1}; correct it, or leave values out for classes."
            )


def _is_finding(texts: Texts) -> bool:
    return all(text == UNCERTAIN or text.lower() in FINDING for text in texts)


def _missing(table: LabelTable, task: Task) -> str:
    return task.missing or table.settings.missing


def _finding(
    texts: Texts,
    name: str,
    table: LabelTable,
    task: Task,
) -> Texts:
    """Return a column of zeros and ones as "0", "1" and None."""
    policy = task.uncertain or table.settings.uncertain
    is_uncertain = texts == UNCERTAIN
    if policy == "refuse" and is_uncertain.any():
        raise LabelError(
            f"{int(is_uncertain.sum())} values of column {name!r} are -1 (uncertain), first in "
            f"data row {int(is_uncertain.argmax()) + 1}, and no policy says what that means. Set "
            'labels.uncertain, or the task\'s, to "zero", "one" or "leave-out".'
        )
    meaning = {
        **FINDING,
        UNCERTAIN: {"zero": "0", "one": "1"}.get(policy),
        None: "0" if _missing(table, task) == "zero" else None,
    }
    values = []
    for i, text in enumerate(texts):
        value = text and text.lower()
        if value not in meaning:
            raise LabelError(
                f"A multi-label value must be 0, 1, -1 or empty. Column {name!r} has another in "
                f"data row {i + 1}."
            )
        values.append(meaning[value])
    return np.array(values, dtype=object)


# --- classes -------------------------------------------------------------------------------


def encode(
    texts: NDArray[Any],
    label: NDArray[np.int64],
    task: Task,
) -> tuple[NDArray[Any], tuple[str, ...], Kind]:
    """Return y for each slice, whose label row is label (m,), the classes and the kind.

    Classes are those that occur, in order: numbers by value first, then text.
    """
    used, place = np.unique(label, return_inverse=True)
    present = texts[used]
    if task.values == "number":
        numbers = present[:, 0].astype(np.float64)
        return numbers[place], task.labels, "regression"
    if len(task.labels) > 1:
        bits = np.where(is_text(present), present, -1).astype(np.int8)
        return bits[place], task.labels, "multilabel"
    values = present[:, 0].tolist()
    classes = sorted(set(values), key=_numbers_first)
    if len(classes) < 2:
        raise LabelError(
            f"The labels {list(task.labels)} must have at least two values among the slices with "
            f"features. Got {len(classes)} instead."
        )
    number = {name: i for i, name in enumerate(classes)}
    y = np.array([number[value] for value in values], dtype=np.int64)
    kind: Kind = "binary" if len(classes) == 2 else "multiclass"
    return y[place], tuple(classes), kind


def _numbers_first(name: str) -> tuple[bool, float, str]:
    """Return what a class is sorted by: numbers by value, and text after them."""
    if _is_number(name):
        return (False, float(name), name)
    return (True, 0.0, name)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
