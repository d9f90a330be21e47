"""What the text of a label cell is: a number, a date, or words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Plain digits: Python's float takes "inf", "nan" and "1_000" as well.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# As measurements are typed: 045Y, 3,5, <10, 12 mm, 50%.
_MEASURE = re.compile(r"[<>=≤≥~]*\s*[+-]?\d[\d.,]*\s*[A-Za-z]{0,3}%?", re.ASCII)
_DATES = (
    re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([ T].*)?", re.ASCII),
    re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})( .*)?", re.ASCII),
    re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", re.ASCII),
    # DICOM's own, which is a number as well.
    re.compile(r"(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII),
)


def is_text(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where an array of text and None has text."""
    return np.asarray(values != None)  # noqa: E711  element by element


# What is beyond it is no measurement, and its square is no number any more.
_BEYOND_ALL = 1e100


def is_number(text: str) -> bool:
    """Return whether a text is a number of what can be measured: neither inf nor 1e300."""
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) < _BEYOND_ALL


def is_date(text: str) -> bool:
    """Return whether a text is a date or a time of day."""
    return any(pattern.fullmatch(text) for pattern in _DATES)


def is_measured(text: str) -> bool:
    """Return whether a text looks like a number, maybe with a unit or a decimal comma."""
    return _MEASURE.fullmatch(text) is not None
