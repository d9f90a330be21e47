"""Texts of unknown origin, such as names of files, tasks and classes, as they may be shown."""

from __future__ import annotations

import re

# What moves a terminal's cursor, colours it, or turns the direction of its text; line ends stay.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# Of bytes: a file's name has 255, of which suffixes and a temporary name's beginning take some.
_MOST_BYTES = 180


def printable(text: str) -> str:
    r"""Return a text with its control characters written out: `\x1b` for an escape."""
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return a text that is printable and one line: `\n` for a line end."""
    return printable(text).replace("\n", "\\n")


def file_name(text: str) -> str:
    """Return a text as it may stand in a file's name: other characters are `_`, the end is cut."""
    safe = re.sub(r"[^\w.-]", "_", text)
    return safe.encode()[:_MOST_BYTES].decode("utf-8", "ignore")


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 slice, 1,204 slices."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def plain_number(value: float) -> str:
    """Return a number of settings as people write it: 100000, 0.0562."""
    return f"{value:.0f}" if value >= 1 and value == int(value) else f"{value:.3g}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
