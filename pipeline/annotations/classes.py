"""From the text of one label column to classes: which there are, in which order, which is positive.

Of two classes the second is the positive one, which sensitivity, F1 and average precision are of.
It is the one that the task names; else the one that the words say: of yes and no, abnormal and
normal, 1 and 0 the first of each pair, and what stands against a word for nothing found, such as
`covid` against `healthy`. Of two other words none is taken for positive by their alphabet: the task
says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.spellings import may_be_nothing, plain, quoted
from pipeline.annotations.texts import is_date, is_measured, is_number, is_text
from pipeline.config.tasks import Kind, Task
from stores.errors import LabelError

# More classes of numbers or dates than these are a column of measurements, which no one means as
# classes; as are more than half as many as there are units, from so many on.
MOST_NUMBERS = 20
SOME = 5

# Words that say that something is there, and that it is not, whatever it is.
_PRESENT = {"yes", "ja", "true", "positive", "positiv", "pos", "abnormal", "malignant"}
_PRESENT |= {"present", "diseased", "sick", "krank", "case", "cases"}
_ABSENT = {"0", "no", "nein", "false", "negative", "negativ", "neg", "normal", "benign"}
_ABSENT |= {"absent", "none", "healthy", "gesund", "control", "controls"}
_ABSENT |= {"no finding", "no findings"}
# Known as a pair alone: by itself each means something else too (1 and 2, f and m).
_PAIRS = {("0", "1"): "1", ("n", "y"): "y", ("j", "n"): "j", ("f", "t"): "t"}
# What YAML makes a truth of, and what zeros and ones are read from.
_TRUTHS = {
    **dict.fromkeys(("yes", "ja", "true", "on"), ("yes", "true", "on", "y", "1")),
    **dict.fromkeys(("no", "nein", "false", "off"), ("no", "false", "off", "n", "0")),
}


@dataclass(frozen=True)
class Classes:
    """Classes of one column in the order of their numbers; of two, the positive last.

    y (m,): the class of each slice.
    """

    y: NDArray[Any]
    names: tuple[str, ...]
    kind: Kind


# --- classes -------------------------------------------------------------------------------


def encode(
    texts: NDArray[Any],
    label: NDArray[np.int64],
    task: Task,
    units: int,
    *,
    either_way: bool = False,
    empty: Sequence[str] = (),
    lost: str = "",
) -> Classes:
    """Return the class of each slice, whose label row is label (m,), of texts (rows, labels).

    Classes are those that occur, in order: numbers by value first, then text. units: how many there
    are. either_way: of two words that say nothing the last is the positive, since whether features
    tell a shortcut is the same question either way. empty: notes on what was taken as no label.
    lost: what is said of units without features, where these have the values that lack.
    Raises LabelError for one value, for numbers or dates that nobody can mean as classes, and where
    nothing says which of two is positive.
    """
    used, place = np.unique(label, return_inverse=True)
    present = texts[used]
    if task.time is not None:
        return Classes(_watched(present, task, empty)[place], task.labels, "survival")
    if task.values == "number":
        numbers = present[:, 0].astype(np.float64)
        _refuse_one_value(np.unique(numbers).size, task, empty, lost)
        return Classes(numbers[place], task.labels, "regression")
    if len(task.labels) > 1:
        bits = np.where(is_text(present), present, -1).astype(np.int8)
        return Classes(bits[place], task.labels, "multilabel")
    values = present[:, 0].tolist()
    classes = sorted(set(values), key=_numbers_first)
    _refuse_one_value(len(classes), task, empty, lost)
    if task.values is None:
        _refuse_measurements(classes, task.labels[0], units, is_shortcut=either_way)
    kind: Kind = "binary" if len(classes) == 2 else "multiclass"
    if kind == "binary":
        classes = _positive_last(classes, Counter(values), task, either_way)
    elif task.positive is not None:
        raise LabelError(
            f"positive names one of two classes. The slices with features have {_listed(classes)} "
            f"in column {task.labels[0]!r}: leave positive out (each is scored against the rest), "
            "or make one against the rest a task of its own, whose column has 1 where it is "
            f"{task.positive!r} and 0 where it is another."
        )
    number = {name: i for i, name in enumerate(classes)}
    y = np.array([number[value] for value in values], dtype=np.int64)
    return Classes(y[place], tuple(classes), kind)


def _watched(texts: NDArray[Any], task: Task, empty: Sequence[str]) -> NDArray[np.float64]:
    """Return (rows, 2) how long each was watched, and whether its event was seen (1) or not (0).

    texts (rows, 2): of the event, of the time. Raises LabelError for a time below 0, for events
    that are not one of two, and where none was seen.
    """
    assert task.event is not None
    times = texts[:, 1].astype(np.float64)
    below = int((times < 0).sum())
    if below:
        raise LabelError(
            f"Nobody is watched for less than no time. Column {task.time!r} has {below} "
            f"number{'s' * (below > 1)} below 0 among the rows that join; correct them, or leave "
            "the cells empty."
        )
    names = sorted(set(texts[:, 0].tolist()), key=_numbers_first)
    # Where all have one value, nobody was censored, or none had the event.
    if len(names) == 1 and names != ["0"] and known_positive([names[0], "0"]) == names[0]:
        names.insert(0, "0")
    if len(names) != 2:
        raise LabelError(
            f"A column of events says of each whether it was seen: 1 or 0. Column {task.event!r} "
            f"has {_listed(names)} among the rows that join"
            f"{''.join(f'; {note}' for note in empty)}. Correct it; where nobody had the event "
            "there is nothing to be learnt."
        )
    _, seen = _positive_last(names, Counter(texts[:, 0].tolist()), task, either_way=False)
    return np.stack([times, texts[:, 0] == seen], axis=1).astype(np.float64)


def _refuse_one_value(values: int, task: Task, empty: Sequence[str], lost: str) -> None:
    """Raise LabelError for one value: nothing is to be told apart. empty, lost: as in `encode`."""
    if values < 2:
        remedy = lost or "Where an empty cell means no, write `missing: zero` into the task."
        raise LabelError(
            f"The labels {list(task.labels)} must have at least two values among the slices with "
            f"features. Got {values} instead{''.join(f'; {note}' for note in empty)}. {remedy}"
        )


def _numbers_first(name: str) -> tuple[bool, float, str, str]:
    """Return what a class is sorted by: numbers by value, and text after them, in any case."""
    value = float(name) if is_number(name) else 0.0
    return (not is_number(name), value, name.casefold(), name)


def _listed(classes: Sequence[str]) -> str:
    """Return the names of few classes; many may be free text, which messages keep to themselves."""
    if len(classes) > SOME:
        return f"{len(classes)} classes"
    return ", ".join(repr(name) for name in classes)


def _refuse_measurements(
    classes: Sequence[str],
    column: str,
    units: int,
    *,
    is_shortcut: bool,
) -> None:
    """Raise LabelError for so many numbers, dates or texts that no class could be learnt.

    The values themselves stay out of the message: they may be dates of birth, or identifiers.
    """
    n = len(classes)
    is_mostly_one_each = n >= SOME and n > units / 2
    dates = sum(map(is_date, classes))
    numbers = sum(map(is_measured, classes))
    if max(dates, numbers) > n / 2:
        if n <= MOST_NUMBERS and not is_mostly_one_each:
            return
        what = "dates" if dates > n / 2 else "numbers"
    elif n > MOST_NUMBERS and is_mostly_one_each:
        what = "texts"
    else:
        return
    if is_shortcut:
        remedy = "A shortcut takes a column of few values: give it by group, such as age by decade."
    else:
        meant = {
            "numbers": "To predict the number, write `values: number` into the task",
            "dates": (
                "To divide patients by date, write `split: {kind: date, column: "
                f"{column}}}`; dates are not predicted"
            ),
            "texts": "Name a column of few values in the task's labels",
        }[what]
        remedy = f"{meant}; if they are classes all the same, write `values: classes`."
    raise LabelError(
        f"Column {column!r} holds {n} different {what} in {units} units, each of which would be a "
        f"class of its own. {remedy}"
    )


# A value of fewer rows may be anything, a name too, and stands in no message.
_FEWEST_SHOWN = 2


# --- the positive of two -------------------------------------------------------------------


def _positive_last(
    classes: Sequence[str],
    numbers: Mapping[str, int],
    task: Task,
    either_way: bool,
) -> list[str]:
    """Return two classes, the positive last. numbers: label rows of each."""
    positive = known_positive(classes)
    if task.positive is not None:
        positive = _named(classes, task)
    elif positive is None and either_way:
        positive = classes[-1]
    if positive is None:
        first, second = classes
        if min(numbers[first], numbers[second]) < _FEWEST_SHOWN:
            raise LabelError(
                f"Which class is positive must be known. Column {task.labels[0]!r} has two, of "
                f"{numbers[first]} and {numbers[second]} rows, and nothing says which of them is "
                "the finding. Write it into the task as `positive`, or correct the column."
            )
        raise LabelError(
            f"Which class is positive must be known. Column {task.labels[0]!r} has {first!r} "
            f"({numbers[first]} rows) and {second!r} ({numbers[second]} rows), and nothing says "
            f"which of them is the finding. Write `positive: {quoted(second)}`, or `positive: "
            f"{quoted(first)}`, into the task, beside {_column_key(task)}."
        )
    (other,) = [name for name in classes if name != positive]
    return [other, positive]


def _column_key(task: Task) -> str:
    """Return how a task of one column names it in a config."""
    name = quoted(task.labels[0])
    return f"`labels: [{name}]`" if task.event is None else f"`event: {name}`"


def known_positive(classes: Sequence[str]) -> str | None:
    """Return which of two classes their words say is positive; None where they do not say it.

    What may say that nothing is known, such as `unknown` against `no`, is no finding.
    """
    positive = _positive_by_words(classes)
    return None if positive in may_be_nothing(classes) else positive


def _positive_by_words(classes: Sequence[str]) -> str | None:
    words = {plain(name): name for name in classes}
    pair = _PAIRS.get(tuple(sorted(words)))  # type: ignore[arg-type]
    if pair is not None:
        return words[pair]
    present = [words[word] for word in words if word in _PRESENT]
    absent = [words[word] for word in words if word in _ABSENT]
    # One side is enough: what stands against `normal` is the finding, whatever it is called.
    if len(absent) == 1:
        (positive,) = [name for name in classes if name not in absent]
        return positive
    return present[0] if len(present) == 1 and not absent else None


def _named(classes: Sequence[str], task: Task) -> str:
    """Return the class that the task names as positive, in any case. Raises LabelError."""
    assert task.positive is not None
    wanted = plain(task.positive)
    matching = [name for name in classes if plain(name) == wanted]
    if not matching:
        alike = _TRUTHS.get(wanted, ())
        matching = [name for name in classes if plain(name) in alike]
    if not matching:
        raise LabelError(
            f"positive must be a class of column {task.labels[0]!r}. Got {task.positive!r} "
            f"instead; the slices with features have {_listed(classes)}."
        )
    return matching[0]
