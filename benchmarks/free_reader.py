"""A reading process that costs nothing: it sends the same picture for every frame it is asked for.

What its parent passes on, beside several of these, is what one parent can: see `benchmarks.flow`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np

from pipeline.io import worker
from pipeline.io.types import FrameRead, Request
from pipeline.types import Plane, Slice

SIDE = 512

_pixels = np.random.default_rng(0).integers(0, 2**12, (SIDE, SIDE)).astype(np.int16)
_count = itertools.count()


def read_nothing(root: Path, request: Request, plane: Plane) -> Generator[FrameRead]:
    """Yield the picture for each frame, without a look at the file."""
    for frame in request.frames:
        # No two alike: equal pixels are embedded once.
        digest = hashlib.sha256(f"{os.getpid()} {next(_count)}".encode()).hexdigest()
        yield FrameRead(Slice(frame, _pixels), digest, digest)


if __name__ == "__main__":
    worker.read_request = read_nothing
    worker.main(*map(int, sys.argv[1:]))
