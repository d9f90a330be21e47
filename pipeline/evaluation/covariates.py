"""Columns of the label table beside features, such as age and sex: as numbers, by what train says.

Dims: n units, k numbers of a unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.label_values import with_decimal_points
from pipeline.annotations.labels import column_of, one_text_a_unit
from pipeline.annotations.spellings import codes_of
from pipeline.annotations.texts import is_number
from pipeline.annotations.units import Units
from pipeline.shared.arrays import Floats, Rows
from pipeline.shared.frozen import Frozen
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError

Texts = NDArray[np.str_]
# A column of more words than these names cases, and does not describe them.
MOST_CATEGORIES = 20
# How often each value must come on average for it to be no chance that all tell their class.
_OFTEN = 5


# --- what the table says ---------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnTexts:
    """What columns say of each slice of a store, by its row: "" for nothing."""

    by_row: Mapping[str, Texts]

    @classmethod
    def of(
        cls,
        table: LabelTable,
        columns: Sequence[str],
        slices: pa.Table,
        root: Path,
        names: Names,
    ) -> ColumnTexts:
        """Join columns of a label table to slices (SLICE_SCHEMA, with the real paths)."""
        rows = slices["row"].to_numpy()
        by_row = {}
        for column in columns:
            texts = column_of(with_decimal_points(table, column), column, slices, root, names)
            by_row[column] = np.full(int(rows.max(initial=-1)) + 1, "", texts.dtype)
            by_row[column][rows] = texts
        return cls(by_row)

    def of_units(self, units: Units) -> dict[str, Texts]:
        """Return (n,) what each column says of units; "" where nothing, or several things."""
        return {
            name: one_text_a_unit(texts[units.rows], units.unit)
            for name, texts in self.by_row.items()
        }


# --- what train says of it -------------------------------------------------------------------


class Covariate(Frozen):
    """A column as numbers. categories: those of train, of a column of words, each a number 0 or 1.

    Of a column of numbers None: median is what stands for one that is missing, after which centre
    is taken away and the rest divided by deviation.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float = 0.0
    centre: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(cls, name: str, texts: Texts) -> Covariate:
        """Return what the units of train (n,) say of a column.

        Raises LabelError where numbers and words are mixed, where there are too many words, and
        where nothing is known of anybody.
        """
        known = texts[texts != ""]
        if not len(known):
            raise LabelError(
                f"Column {name!r} says nothing of any train unit, so that it cannot stand beside "
                "features. Fill it in, or leave it out of the task's columns."
            )
        if not has_numbers(name, known):
            return cls(name=name, categories=tuple(sorted(set(known.tolist()))))
        numbers = known.astype(np.float64)
        median = float(np.median(numbers))
        filled = np.append(numbers, np.full(len(texts) - len(known), median))
        deviation = float(filled.std())
        return cls(
            name=name,
            median=median,
            centre=float(filled.mean()),
            deviation=deviation if deviation > 0 else 1.0,
        )

    @property
    def width(self) -> int:
        """How many numbers a unit has of it."""
        return 1 if self.categories is None else len(self.categories)

    def encode(self, texts: Texts) -> Floats:
        """Return (n, k) a column of units as numbers; a category that train had not is none.

        Raises LabelError for a word among numbers.
        """
        if self.categories is not None:
            is_one: NDArray[np.bool_] = texts[:, None] == np.array(self.categories)
            return is_one.astype(np.float32)
        known = texts != ""
        if known.any() and not has_numbers(self.name, texts[known]):
            raise LabelError(
                f"Column {self.name!r} holds words, where the train units have numbers. Correct it."
            )
        numbers = np.full(len(texts), self.median)
        numbers[known] = texts[known].astype(np.float64)
        return ((numbers - self.centre) / self.deviation).astype(np.float32)[:, None]

    def is_missing(self, texts: Texts) -> NDArray[np.bool_]:
        """(n,) of which units nothing is known that train knew."""
        known = texts != "" if self.categories is None else np.isin(texts, self.categories)
        return np.asarray(~known)

    def note(self, texts: Texts) -> str:
        """Return what is to be known of a column of units; "" for nothing."""
        missing = int((texts == "").sum())
        parts = []
        if missing:
            stands = "the median of train" if self.categories is None else "no category"
            parts.append(
                f"no one value of {missing} of {len(texts)} units, for which {stands} stands"
            )
        if self.categories is None:
            parts += [
                f"{code} of {n} counts as a number; if it says nothing, name it in labels.empty"
                for code, n in sorted(codes_of(texts[texts != ""]).items())
            ]
        else:
            unknown = int((~np.isin(texts, [*self.categories, ""])).sum())
            if unknown:
                parts.append(f"a category that train has not of {unknown}, for which none stands")
        return f"column {self.name!r}: {'; '.join(parts)}" if parts else ""


def tells_all(texts: Texts, y: NDArray[Any]) -> bool:
    """Return whether few values of a column (n,) tell the classes y (n,) of units without error.

    Such a column may be the label itself. Of values that hardly come twice it says nothing.
    """
    known = texts != ""
    values = np.unique(texts[known])
    if len(values) > MOST_CATEGORIES or known.sum() < _OFTEN * len(values):
        return False
    classes_of_value = [set(y[texts == value].tolist()) for value in values.tolist()]
    each_tells = all(len(classes) == 1 for classes in classes_of_value)
    return each_tells and len(set().union(*classes_of_value)) > 1


def has_numbers(name: str, known: Texts) -> bool:
    """Return whether a column is of numbers. Raises LabelError where that cannot be said.

    known: its texts that say something. The words themselves stay out of the message.
    """
    kinds = Counter(map(is_number, known.tolist()))
    words = len({text for text in known.tolist() if not is_number(text)})
    if kinds[True] and kinds[False] and kinds[True] + words > MOST_CATEGORIES:
        raise LabelError(
            f"A column beside features holds numbers, or few words. Column {name!r} has "
            f"{kinds[True]} numbers and {kinds[False]} words; correct it, or name in labels.empty "
            "what is written where nothing is known."
        )
    if not kinds[True] and words > MOST_CATEGORIES:
        raise LabelError(
            f"A column beside features holds numbers, or at most {MOST_CATEGORIES} words. Column "
            f"{name!r} has {words}; give its values by group."
        )
    return not kinds[False]


class Covariates(Frozen):
    """Columns as numbers, one after the other, as the units of train alone say."""

    columns: tuple[Covariate, ...] = ()

    @classmethod
    def fit(cls, texts: Mapping[str, Texts], fit: Rows) -> Covariates:
        """Return what the units `fit` say of columns, of which texts (n,) each has."""
        return cls(columns=tuple(Covariate.fit(name, each[fit]) for name, each in texts.items()))

    @property
    def width(self) -> int:
        """The k of the numbers."""
        return sum(column.width for column in self.columns)

    def encode(self, texts: Mapping[str, Texts]) -> Floats:
        """Return (n, k) the columns of units as numbers."""
        return np.concatenate([each.encode(texts[each.name]) for each in self.columns], axis=1)

    def notes(self, texts: Mapping[str, Texts]) -> list[str]:
        """Return what is to be known of the columns of units."""
        return [note for each in self.columns if (note := each.note(texts[each.name]))]
