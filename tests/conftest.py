"""What holds for all tests: each process computes on one thread, as two of them share two cores.

Small networks on several threads spend their time waiting for each other, the more so where the
cores are busy. Who sets OMP_NUM_THREADS otherwise has it so.
"""

from __future__ import annotations

import os

# Read when numpy and torch are first imported, and by the processes that tests start.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
