"""What an interruption must not come between: something is made, and somebody knows of it."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM until this block is over.

    Python tells its main thread alone of signals; in other threads nothing need be put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    # One that no Python code has set is let be: it could not be given back.
    before = {number: handler for number, handler in handlers.items() if handler is not None}
    try:
        for number in before:
            signal.signal(number, put_off)
        yield
    finally:
        # Ctrl-C last: it is put off until the other is given back, and heard.
        back = [functools.partial(signal.signal, *each) for each in reversed(before.items())]
        late = [functools.partial(signal.raise_signal, number) for number in sorted(came)[::-1]]
        _call_all([*back, *late])


def _call_all(calls: Sequence[Callable[[], object]]) -> None:
    """Call each, also where one before it is interrupted."""
    if calls:
        first, *others = calls
        try:
            first()
        finally:
            _call_all(others)
