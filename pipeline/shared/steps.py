"""How far long work is, told to whoever listens: set where a command begins, told where it is done.

Between the two lie heads of any kind, which need not know that somebody watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# What is counted, such as epochs, how many are done, of how many.
Listener = Callable[[str, int, int], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening_to_steps(listener: Listener | None) -> Iterator[None]:
    """Report the steps of whatever works within to a listener; None hears nothing."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def titled(listener: Listener | None, title: str) -> Listener | None:
    """Return a listener that puts a title before what it hears."""
    return listener and (lambda what, done, of: listener(f"{title}, {what}", done, of))


def report_step(what: str, done: int, of: int) -> None:
    """Say that so many of something are done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, done, of)


def report_epoch(done: int, of: int) -> None:
    """Say that so many epochs are done."""
    report_step("epochs", done, of)
