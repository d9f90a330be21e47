"""What holds for all tests: each process computes on one thread, as two of them share two cores.

Small networks on several threads spend their time waiting for each other, the more so where the
cores are busy. Who sets OMP_NUM_THREADS otherwise has it so.
"""

from __future__ import annotations

import gc
import os
import tempfile

from tests import warm

# Read when numpy and torch are first imported, and by the processes that tests start.
for name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",  # more are processes, which import torch for one test
):
    os.environ.setdefault(name, "1")
# Nothing of the tests is remembered among what the user's own runs found.
os.environ.setdefault("RADPROBE_CACHE", f"{tempfile.gettempdir()}/radprobe-tests-{os.getuid()}")
# The workers of pytest-xdist fork the processes that they start from one and the same.
warm.share()


def pytest_collection_finish() -> None:
    """Keep what was imported out of the search for garbage: it stays, and is a million objects."""
    gc.freeze()
