"""How far a training is, told to whoever listens: set where a command begins, told where it trains.

Between the two lie heads of any kind, which need not know that somebody watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# How many epochs are done, of how many.
Listener = Callable[[int, int], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening_to_epochs(listener: Listener | None) -> Iterator[None]:
    """Have the epochs of whatever trains within told to a listener; None hears nothing."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def report_epoch(done: int, of: int) -> None:
    """Say that so many epochs are done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(done, of)
