"""From the text of label columns to values: words, zeros and ones, numbers, by a stated policy.

Nothing is guessed: an uncertain finding is refused until the config says what it means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.classes import merged_spellings, written_otherwise
from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.annotations.texts import is_number, is_text
from pipeline.config.tasks import Task
from stores.errors import LabelError

# What zeros and ones are written as.
FINDING: dict[str | None, str | None] = {"0": "0", "1": "1", "false": "0", "true": "1"}
UNCERTAIN = "-1"

_BY_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)

Counts = NDArray[np.int64]


# --- policies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelValues:
    """What the label rows say once the policies for uncertain and missing values are applied.

    texts (rows, labels): None where left out; filled (rows,): how many uncertain or empty values
    count as 0 or 1. notes: what there is to say, such as spellings that are one value.
    """

    texts: NDArray[Any]
    filled: Counts
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(rows,): which label rows say anything in any column."""
        return np.asarray(is_text(self.texts).any(axis=1))


def apply_policies(table: LabelTable, task: Task) -> LabelValues:
    """Apply the policies for uncertain and missing values to the task's columns.

    -1 is uncertain where the other values of its column are 0 and 1, and in every multi-label
    column. Words that differ in case alone are one value. Raises LabelError for an uncertain value
    where no policy says what it means, and for a multi-label value that is neither 0 nor 1.
    """
    empty = ["", *_empty(table, task)]
    columns = []
    notes: list[str] = []
    filled = np.zeros(len(table.columns[task.labels[0]]), np.int64)
    for name in task.labels:
        raw = table.columns[name]
        written = table.written.get(name, raw)
        is_empty = np.isin(raw.astype(np.str_), empty)
        texts = raw.copy()
        texts[is_empty] = None
        if task.values == "number":
            texts = _with_points(texts, name) if table.comma else texts
            _refuse_text(texts, name)
        elif len(task.labels) > 1 or _is_finding(texts[~is_empty]):
            truths = [text and FINDING.get(text.lower(), text) for text in texts]
            notes += written_otherwise(written, np.array(truths, dtype=object))
            texts = _finding(texts, name, table, task)
            filled += is_text(texts) & (is_empty | (raw == UNCERTAIN))
        else:
            notes += written_otherwise(written, texts)
            texts, of_spelling = merged_spellings(texts)
            notes += of_spelling
        # A finding's empty cells are zeros by now: what is still empty cannot be made one.
        if _missing(table, task) == "zero" and not is_text(texts[is_empty]).all():
            raise LabelError(
                f"Missing values can count as 0 only in a column of zeros and ones. Column "
                f"{name!r} has {len(set(texts[~is_empty]))} other values and "
                f'{int(is_empty.sum())} empty cells; set the task\'s missing to "leave-out".'
            )
        columns.append(texts)
    return LabelValues(np.stack(columns, axis=1), filled, tuple(notes))


def _with_points(texts: Texts, name: str) -> Texts:
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
    points = {text: text.replace(",", ".") for text in with_comma}
    return np.array([points.get(text, text) for text in texts], dtype=object)


def _refuse_text(texts: Texts, name: str) -> None:
    for i, text in enumerate(texts):
        if text is not None and not is_number(text):
            raise LabelError(
                f"A column of values: number must hold finite numbers. Column {name!r} has another "
                f"in data row {i + 1}; correct it, leave the cell empty, or leave values out for "
                "classes."
            )


def _is_finding(texts: Texts) -> bool:
    return all(text == UNCERTAIN or text.lower() in FINDING for text in texts)


def _missing(table: LabelTable, task: Task) -> str:
    return task.missing or table.settings.missing


def _empty(table: LabelTable, task: Task) -> tuple[str, ...]:
    return table.settings.empty if task.empty is None else task.empty


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
