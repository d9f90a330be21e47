"""Files read by worker processes, in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from pipeline.io.decode import _read_here
from pipeline.io.types import FrameRead, Request
from pipeline.types import Plane


def read_files(
    root: Path,
    requests: Iterable[Request | None],
    *,
    plane: Plane = "axial",
    workers: int = 1,
    time_limit_s: float = 60.0,
) -> Generator[FrameRead]:
    """Yield a FrameRead for each frame of each request, in order; never raises for a bad file.

    A None among the requests says that no more are to be begun for now: they are asked again when
    a read was taken, of which there must be one to come.
    Workers end with the generator: close it where it may be left early. workers: reading
    processes, ahead of the caller by a bounded number of files and bytes; 0 reads in this process,
    without protection from files that crash or never end. time_limit_s: decoding time of one file.
    """
    if workers == 0:
        return _read_here(root, requests, plane)
    from pipeline.io.pool import read_in_workers

    return read_in_workers(root, requests, plane, workers, time_limit_s)
