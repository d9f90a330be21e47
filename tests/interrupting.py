"""Interruptions at each moment of some work, one after the other."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupted_at(line: int, of: str, work: Callable[[], object]) -> bool:
    """Run something, and interrupt it at the nth of the lines that it runs; return whether it was.

    of: the folder, or file, whose lines count.
    """
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if of not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    tracing = sys.gettrace()
    # Also where a shell has the tests in its background, which has them pass over it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(tracing)
        signal.signal(signal.SIGINT, handler)
    return left <= 0
