"""How one value of a label column is written: its spellings, words for yes and no, words for none.

What is surely one value is made one, and that is said: `Yes` and `yes`, `01` and `1`, `0` and `no`
beside `1` and `yes`, words that differ in spaces or in what cannot be seen. What may be one value
or two, or a value or none at all, such as `unknown` beside `yes` and `no`, is refused until the
task says which: it would be a class, next to `no` even the positive one.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.texts import is_date, is_number
from pipeline.shared.texts import count
from stores.errors import LabelError

# What says that a finding is there, and that it is not, whatever it is called.
_ZEROS_AND_ONES = {"0": "0", "false": "0", "1": "1", "true": "1"}
_TRUTHS = {**_ZEROS_AND_ONES, "no": "0", "nein": "0", "yes": "1", "ja": "1"}
# One letter may stand for other things as well (f and m), where not all of a column are truths.
_LETTERS = {"n": "0", "f": "0", "y": "1", "j": "1", "t": "1"}
# What a table is ticked with, where an empty cell is a no.
_TICKS = dict.fromkeys(("x", "✓", "✔", "☒"), "1")
_SIGNS = {
    **dict.fromkeys(("negative", "negativ", "neg", "absent"), "0"),
    **dict.fromkeys(("positive", "positiv", "pos", "present"), "1"),
}
UNCERTAIN = "-1"

# Words and codes for a value that nobody knows, which may be meant as a class all the same.
_UNKNOWN = {
    *("unknown", "unk", "unkn", "unclear", "unsure", "uncertain", "undetermined", "indeterminate"),
    *("equivocal", "inconclusive", "missing", "unspecified", "not assessed", "not assessable"),
    *("not available", "not applicable", "not known", "not reported", "not recorded", "not done"),
    *("not evaluated", "not evaluable", "not specified", "not determined", "not stated"),
    *("no data", "no information", "n.a.", "n.a", "n. a.", "n/d", "nd", "tbd", "?", "??", "-"),
    *("--", ".", "unbekannt", "unklar", "unsicher", "keine angabe", "k.a.", "k. a.", "fehlt"),
}
_CODES = {"-1", "-9", "-99", "-999", "-9999", "9", "99", "999", "9999"}
# It says that nothing is there, unless one of these says so already.
_NONE = "none"
_NOTHING_THERE = {
    *("0", "false", "no", "nein", "negative", "negativ", "neg", "absent", "normal", "healthy"),
    *("gesund", "control", "controls", "no finding", "no findings"),
}

# A float tells apart all numbers of so many digits.
_DIGITS = 15


def plain(text: str) -> str:
    """Return what the spellings of a value have in common: 1 of 01, +1 and 1.00; yes of YES.

    They may differ in case, in spaces and in characters that cannot be seen, in whether an accent
    is one character with its letter, and numbers in how they are written.
    """
    if not text.isascii():
        text = "".join(c for c in text if unicodedata.category(c) != "Cf")
        text = unicodedata.normalize("NFC", text)
    words = " ".join(text.casefold().split())
    if len(words) <= _DIGITS and is_number(words):
        # Minus nought is nought.
        return f"{float(words) + 0.0:.{_DIGITS}g}"
    return words


# --- one value -----------------------------------------------------------------------------


def is_empty(texts: NDArray[Any], empty: Collection[str]) -> NDArray[np.bool_]:
    """Return (n,) which texts hold nothing: no character that is seen, or what `empty` lists."""
    nothing = {"", *map(plain, empty)}
    values = {text: plain(text) in nothing for text in set(texts)}
    return np.array([values[text] for text in texts], bool)


def empty_notes(texts: NDArray[Any], column: str) -> list[str]:
    """Return a note on what was taken as empty though something is written there."""
    written = Counter(text for text in texts.tolist() if text)
    if not written:
        return []
    return [f"{_with_rows(written)} of column {column!r} say nothing: labels.empty lists them"]


def merged_spellings(texts: NDArray[Any]) -> NDArray[Any]:
    """Return texts and None (n,) with one spelling of each value: the commonest.

    Of equals it is the shortest, 1 of 01 and 1, and of these the first by alphabet.
    """
    rows = Counter(text for text in texts.tolist() if text is not None)
    by_value: dict[str, list[str]] = {}
    for text in sorted(rows):
        by_value.setdefault(plain(text), []).append(text)
    if len(by_value) == len(rows):
        return texts
    spelling: dict[str | None, str | None] = {None: None}
    for alike in by_value.values():
        commonest = max(alike, key=lambda text: (rows[text], -len(text)))
        spelling |= dict.fromkeys(alike, commonest)
    return np.array([spelling[text] for text in texts.tolist()], dtype=object)


def spelling_notes(written: NDArray[Any], values: NDArray[Any]) -> list[str]:
    """Return a note on each value that is written in several ways, such as 1, 1.0 and TRUE.

    written, values (n,): cells as they stand, and what they were taken as; None where empty.
    """
    cells_of: dict[str, Counter[str]] = {}
    for cell, value in zip(written.tolist(), values.tolist(), strict=True):
        if value is not None and not is_date(value):
            cells_of.setdefault(value, Counter())[cell] += 1
    notes = []
    for value in sorted(cells_of, key=lambda value: (value.casefold(), value)):
        cells = cells_of[value]
        if len(cells) > 1:
            notes.append(f"{_with_rows(cells)} are one value, {value!r}{_difference(cells)}")
    return notes


def _difference(cells: Collection[str]) -> str:
    """Return how words differ that are one value; "" where their meaning is the same, as of 1.0."""
    if len({cell.casefold() for cell in cells}) == 1:
        return ": they differ in case alone"
    if len({plain(cell) for cell in cells}) == 1 and not is_number(plain(next(iter(cells)))):
        return ": they differ in spaces, or in what cannot be seen"
    return ""


def _with_rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{text!r} ({n} rows)" for text, n in sorted(rows.items()))


# --- yes and no ----------------------------------------------------------------------------


def truths(texts: NDArray[Any], *, several: bool, ticked: bool = False) -> dict[str, str]:
    """Return what the texts (n,) of a column of zeros and ones mean, "0" or "1", by `plain`.

    Nothing where it is none: it holds 0, 1, true and false, and -1 beside them; or yes and no in
    several notations, such as 0, no, 1 and yes. several: of a column of several labels, where each
    is one of zeros and ones. ticked: whether an empty cell is a no, so that a cross alone is a yes.
    """
    values = {plain(text) for text in set(texts)} - {UNCERTAIN}
    if ticked and values and values <= set(_TICKS):
        return _TICKS
    if several or values <= set(_ZEROS_AND_ONES):
        return _ZEROS_AND_ONES
    words = _TRUTHS | _LETTERS
    if not values <= set(words):
        return {}
    sides = Counter(words[value] for value in values)
    is_mixed = len(sides) == 2 and len(values) > 2
    return words if is_mixed else {}


def refuse_two_notations(texts: NDArray[Any], column: str) -> None:
    """Raise LabelError for two words of one meaning, such as 0 and no, beside other values.

    texts (n,): one spelling a value, without empty ones.
    """
    words = _TRUTHS | _SIGNS
    rows = Counter(texts.tolist())
    alike: dict[str, dict[str, int]] = {}
    for text, n in rows.items():
        if plain(text) in words:
            alike.setdefault(words[plain(text)], {})[text] = n
    # Of two values such as yes and ja the question is which of them is the finding.
    if len(rows) <= 2:
        return
    twice = [_with_rows(of_side) for of_side in alike.values() if len(of_side) > 1]
    if twice:
        raise LabelError(
            f"Values of one meaning must be written in one way. Column {column!r} has "
            f"{'; '.join(twice)} among {len(rows)} values, each of which would be a class of its "
            "own. Correct the column; if they are classes all the same, write `values: classes` "
            "into the task."
        )


# --- a value or none -----------------------------------------------------------------------


def may_be_nothing(texts: Collection[str]) -> list[str]:
    """Return which of the values of a column may say that nothing is known of the unit.

    Codes such as -9 do where the numbers beside it are not there; `none` does where another word
    says that nothing is there.
    """
    values = {plain(text): text for text in texts}
    doubtful = [text for value, text in values.items() if value in _UNKNOWN]
    if values.keys() & _NOTHING_THERE and _NONE in values:
        doubtful.append(values[_NONE])
    for code in _CODES & values.keys():
        neighbours = {str(int(code) - 1), str(int(code) + 1)}
        if not neighbours & values.keys():
            doubtful.append(values[code])
    return sorted(doubtful)


def doubt_notes(
    texts: NDArray[Any],
    column: str,
    empty: Collection[str],
    *,
    refuse: bool,
) -> list[str]:
    """Return a note on values that may be none, which are classes among many.

    texts (n,): one spelling a value, without empty ones. empty: what is written in empty cells.
    Raises LabelError, if such are to be refused, where they stand beside two values at most, or
    beside yes and no.
    """
    rows = Counter(texts.tolist())
    doubtful = {text: rows[text] for text in may_be_nothing(rows)}
    if not doubtful:
        return []
    others = {plain(text) for text in rows if text not in doubtful}
    sides = {_TRUTHS[value] for value in others & _TRUTHS.keys()}
    as_empty = f"`empty: [{', '.join(map(quoted, [*empty, *doubtful]))}]`"
    is_among_many = len(others) > 2 and len(sides) < 2
    if is_among_many or not refuse:
        return [
            f"{_with_rows(doubtful)} of column {column!r} count as classes; if nothing is known "
            f"there, write {as_empty} into the task"
        ]
    raise LabelError(
        f"Whether a value is a class must be known. Column {column!r} has {_with_rows(doubtful)} "
        f"beside {count(len(others), 'other value')}: either nothing is known there, or that is a "
        f"class of its own. If nothing is known, write {as_empty} into the task; if it is a class, "
        "write `values: classes`."
    )


def code_notes(texts: NDArray[Any], column: str, empty: Collection[str]) -> list[str]:
    """Return a note on numbers that may be codes for none, such as -999 of ages.

    texts (n,): numbers, without empty cells. empty: what is written in empty cells.
    """
    codes = codes_of(texts)
    if not codes:
        return []
    as_empty = f"`empty: [{', '.join(map(quoted, [*empty, *sorted(codes)]))}]`"
    return [
        f"{_with_rows(codes)} of column {column!r} count as numbers; if nothing is known there, "
        f"write {as_empty} into the task"
    ]


def codes_of(texts: NDArray[Any]) -> dict[str, int]:
    """Return which numbers (n,) may be codes for none, and of how many each.

    A code is negative where no other number is, or more than twice the greatest of the others.
    """
    rows = Counter(plain(text) for text in texts.tolist())
    others = [float(value) for value in rows if value not in _CODES]
    if not others or min(others) < 0:
        return {}
    return {
        code: rows[code] for code in _CODES & rows.keys() if not 0 <= float(code) <= 2 * max(others)
    }


def quoted(text: str) -> str:
    """Return a text as a config has it: in quotes where YAML would read another thing."""
    is_plain = text.replace("_", "a").isalnum() and text[:1].isalpha()
    is_truth = text.casefold() in (_TRUTHS | _LETTERS | {"on": "1", "off": "0", "null": ""})
    return text if is_plain and not is_truth else f'"{text}"'
