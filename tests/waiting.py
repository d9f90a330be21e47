"""The one way in which tests wait for what another thread or process does: with a deadline."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.warm import WarmProcess

T = TypeVar("T")

PATIENCE_S = 240.0  # on a machine that is busy with much else


def until(
    condition: Callable[[], T],
    process: subprocess.Popen[Any] | WarmProcess | None = None,
    patience_s: float = PATIENCE_S,
    pause_s: float = 0.01,
) -> T:
    """Wait for a condition to return something true, and return it.

    process: one that must bring it about, and may not end before. pause_s: between two looks; what
    is dear to ask, such as a bucket, takes from the process the processor that it waits for.
    """
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if process is not None and process.poll() is not None and not (value := condition()):
            raise AssertionError(f"the process ended first, with exit code {process.returncode}")
        assert time.monotonic() < deadline, f"it did not come true in {patience_s:g} s"
        time.sleep(pause_s)
    return value
