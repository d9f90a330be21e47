"""What holds for all tests: each process computes on one thread, as two of them share two cores.

Small networks on several threads spend their time waiting for each other, the more so where the
cores are busy. Who sets OMP_NUM_THREADS otherwise has it so.

Their files lie in memory where there is enough of it. Stores force each of theirs to the disk, so
that tests would wait for the disk alone: tests/stores/test_odd.py takes 5 s in place of 185 beside
others who write. Who sets PYTEST_DEBUG_TEMPROOT, or gives --basetemp, has them there.

What one process has compiled, the hundreds behind it read (`__pycache__`, which git ignores), also
where PYTHONDONTWRITEBYTECODE is set, as in many a container: without, each compiles this project
anew, and pytest rewrites the asserts of every module of tests in each of its processes, each time.

Ctrl-C is heard by what the tests start, also where a shell runs them in the background, for which
it has Ctrl-C ignored.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests import warm

_IN_MEMORY = Path("/dev/shm")
# What all tests together leave there at once, and as much again (measured).
_ROOM_BYTES = 4 * 2**30

# Read when numpy and torch are first imported, and by the processes that tests start.
for name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",  # more are processes, which import torch for one test
):
    os.environ.setdefault(name, "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for the processes that are started
sys.dont_write_bytecode = False
# Nothing of the tests is remembered among what the user's own runs found.
os.environ.setdefault("RADPROBE_CACHE", f"{tempfile.gettempdir()}/radprobe-tests-{os.getuid()}")
if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The workers of pytest-xdist fork the processes that they start from one and the same.
warm.share()


def pytest_cmdline_main(config: pytest.Config) -> None:
    """Have the workers of pytest-xdist forked too, from the process that has the libraries."""
    workers = getattr(config.option, "tx", None) or []
    if "popen" in workers:
        warm.connect(warm.OF_TESTS).close()
        forked = f"popen//python={warm.interpreter()}"
        config.option.tx = [forked if worker == "popen" else worker for worker in workers]


def pytest_collection_finish() -> None:
    """Keep what was imported out of the search for garbage: it stays, and is a million objects."""
    gc.freeze()
