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
def steps_told_to(listener: Listener | None) -> Iterator[None]:
    """Have the steps of whatever works within told to a listener; None hears nothing."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def told_as(listener: Listener | None, title: str) -> Listener | None:
    """Return what tells steps to a listener, which knows more of them, behind a title."""
    return listener and (lambda what, done, of: listener(f"{title}, {what}", done, of))


def tell_step(what: str, done: int, of: int) -> None:
    """Say that so many of something are done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, done, of)


def tell_epoch(done: int, of: int) -> None:
    """Say that so many epochs are done."""
    tell_step("epochs", done, of)
