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
FINDING: dict[str | None, str | None] = {"0": "0", "1": "1", "false": "0", "true": "1"}
UNCERTAIN = "-1"


@dataclass(frozen=True)
class Settled:
    """What the label rows say once the policies are applied.

    texts (rows, labels): None where left out; labelled (rows,): any is not; filled (rows,): how
    many uncertain or empty values count as 0 or 1.
    """

    texts: NDArray[Any]
    filled: NDArray[np.int64]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which slices have a text in any label column (n,)."""
        return np.asarray((self.texts != None).any(axis=1))  # noqa: E711


def settle(table: LabelTable, task: Task) -> Settled:
    """Apply the policies for uncertain and missing values to the task's columns.

    -1 is uncertain where the other values of its column are 0 and 1, and in every multi-label
    column. Raises LabelError for an uncertain value where no policy says what it means, and for a
    multi-label value that is neither 0 nor 1.
    """
    columns, filled = [], np.zeros(len(table.columns[task.labels[0]]), np.int64)
    for name in task.labels:
        texts = table.columns[name].copy()
        empty = np.isin(texts.astype(np.str_), EMPTY)
        texts[empty] = None
        if task.values == "number":
            _refuse_text(texts, name)
        elif len(task.labels) > 1 or _is_finding(texts[~empty]):
            texts = _finding(texts, name, table, task)
            filled += (texts != None) & (empty | (table.columns[name] == UNCERTAIN))  # noqa: E711
        if _missing(table, task) == "zero" and (texts[empty] == None).any():  # noqa: E711
            raise LabelError(
                f"Missing values can count as 0 only in a column of zeros and ones. Column "
                f"{name!r} has {sorted(set(texts[~empty]))[:3]} and {int(empty.sum())} empty "
                'cells; set the task\'s missing to "leave-out".'
            )
        columns.append(texts)
    return Settled(np.stack(columns, axis=1), filled)


def _refuse_text(texts: Texts, name: str) -> None:
    for i, text in enumerate(texts):
        if text is not None and _order(text)[0]:
            raise LabelError(
                f"A column of values: number must hold numbers. Column {name!r} has {text!r} in "
                f"data row {i + 1}; correct it, or leave values out for classes."
            )


def _is_finding(texts: Texts) -> bool:
    return all(text == UNCERTAIN or text.lower() in FINDING for text in texts)


def _missing(table: LabelTable, task: Task) -> str:
    return task.missing or table.settings.missing


def _finding(texts: Texts, name: str, table: LabelTable, task: Task) -> Texts:
    """Return a column of zeros and ones as "0", "1" and None."""
    policy = task.uncertain or table.settings.uncertain
    uncertain = texts == UNCERTAIN
    if policy == "refuse" and uncertain.any():
        raise LabelError(
            f"{int(uncertain.sum())} values of column {name!r} are -1 (uncertain), first in data "
            f"row {int(uncertain.argmax()) + 1}, and no policy says what that means. Set "
            'labels.uncertain, or the task\'s, to "zero", "one" or "leave-out".'
        )
    unclear = {
        UNCERTAIN: {"zero": "0", "one": "1"}.get(policy),
        None: "0" if _missing(table, task) == "zero" else None,
    }
    meaning = FINDING | unclear
    lower = [text and text.lower() for text in texts]
    odd = next((text for text in lower if text not in meaning), None)
    if odd is not None:
        raise LabelError(
            f"A multi-label value must be 0, 1, -1 or empty. Got {odd!r} instead, in column "
            f"{name!r}."
        )
    return np.array([meaning[text] for text in lower], dtype=object)


def encode(
    texts: NDArray[Any], label: NDArray[np.int64], task: Task
) -> tuple[NDArray[Any], tuple[str, ...], Kind]:
    """Return y for each slice, whose label row is label (m,), the classes and the kind.

    Classes are those that occur, in order: numbers by value first, then text.
    """
    used, at = np.unique(label, return_inverse=True)
    present = texts[used]
    if task.values == "number":
        return present[:, 0].astype(np.float64)[at], task.labels, "regression"
    if len(task.labels) > 1:
        bits = np.where(present == None, -1, present).astype(np.int8)  # noqa: E711
        return bits[at], task.labels, "multilabel"
    firsts = present[:, 0].tolist()
    classes = sorted(set(firsts), key=_order)
    if len(classes) < 2:
        raise LabelError(
            f"The labels {list(task.labels)} must have at least two values among the slices with "
            f"features. Got only {classes} instead."
        )
    index = {name: i for i, name in enumerate(classes)}
    y = np.array([index[name] for name in firsts], dtype=np.int64)
    return y[at], tuple(classes), "binary" if len(classes) == 2 else "multiclass"


def _order(name: str) -> tuple[bool, float, str]:
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)
