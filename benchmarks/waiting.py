"""Benchmarks whose threads wait as those of `radprobe extract` do."""

from __future__ import annotations

import os
import sys

from pipeline.inference.speed import sleep_while_waiting

POLICY = "OMP_WAIT_POLICY"


def start_asleep(module: str) -> None:
    """Begin a module's run anew with threads that sleep, unless the environment says how they wait.

    OpenMP looks as torch is imported, which a benchmark has done by now.
    """
    if POLICY not in os.environ:
        sleep_while_waiting()
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
