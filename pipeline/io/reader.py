"""Many files to slices, in the order of the requests."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from pathlib import Path

from pipeline.io.read_queue import open_read_queue
from pipeline.io.types import FrameRead, Request
from pipeline.types import Plane


def read_files(
    root: Path,
    requests: Iterable[Request],
    *,
    plane: Plane = "axial",
    workers: int = 1,
    time_limit_s: float = 60.0,
) -> Generator[FrameRead]:
    """Yield a FrameRead for each frame of each request, in order; never raises for a bad file.

    Requests are taken from their iterator as room comes up. The reading ends with the generator:
    close it where it may be left early. workers: reading processes, ahead of the caller by a
    bounded number of files and bytes; 0 reads in this process, without protection from files that
    crash or never end. time_limit_s: decoding time of one file.
    """
    upcoming = iter(requests)
    reads = open_read_queue(root, plane=plane, workers=workers, time_limit_s=time_limit_s)
    with contextlib.closing(reads):
        while True:
            # Before the wait: these are read while the caller has the next slice.
            while reads.has_room() and (request := next(upcoming, None)) is not None:
                if request.frames:
                    reads.put(request)
            if not reads.frames_left:
                return
            yield reads.get()
