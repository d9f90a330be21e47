"""Ctrl-C and SIGTERM: a process ends in order, however often it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

# How long a process that is told to end may take before the next signal ends it as `kill -9` does.
PATIENCE_S = 10.0
# What an interruption leaves, as those say who are at work, the outermost first.
_left: list[Callable[[], str]] = []
# As what the process ends, once it was told to.
_code: int | None = None


@contextlib.contextmanager
def leaving_behind(say: Callable[[], str]) -> Iterator[None]:
    """Have an interruption within this block told of in these words: those of the outermost."""
    _left.append(say)
    try:
        yield
    finally:
        _left.remove(say)


def left_behind() -> str:
    """Return what an interruption leaves now, in a sentence."""
    if _left:
        return _left[0]()
    return "What was committed is kept; the same command goes on from there."


def end_in_order(*numbers: int, say: Callable[[], None] = lambda: None) -> None:
    """From now on, have the first of these signals end the process by SystemExit, as 128 + number.

    say: called before, to tell of it.
    """
    global _code
    _code = None

    def end(number: int, frame: FrameType | None) -> NoReturn:
        global _code
        _code = 128 + number
        pass_over(*numbers)
        say()
        sys.exit(_code)

    for number in numbers:
        signal.signal(number, end)


def end_if_told() -> None:
    """Raise SystemExit where the process was told to end and something has gone on all the same.

    Compiled code that a signal breaks into, such as what reads weights, may tell of the SystemExit
    as of a fault of the file.
    """
    if _code is not None:
        sys.exit(_code)


def pass_over(*numbers: int) -> None:
    """Pass over these signals from now on: the process is on its way out.

    One more, of an impatient hand or of a scheduler that tells every process of a group, would
    break into what is given back, or into Python's own end, which tells of it as of a fault. After
    PATIENCE_S it ends the process at once, should the way out hang.
    """
    began = time.monotonic()

    def end_at_once(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > PATIENCE_S:
            os._exit(128 + number)

    for number in numbers:
        signal.signal(number, end_at_once)
