"""The reading process behind `pipeline.io.pool`: `python -m pipeline.io.worker FD`.

- A timer of the kernel ends the process when one file takes too long, even inside a C decoder.
- The end of the connection (the parent closed it, or died) ends the process.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.io.decode import read_frames, read_headers
from pipeline.io.formats.limits import MAX_FILE_BYTES, as_unreadable
from pipeline.io.types import FrameRead
from pipeline.io.wire import receive, send
from pipeline.types import Failure

# Address space of one process: a file at the limit, as stored and once turned, and the libraries.
_MEMORY = 3 * MAX_FILE_BYTES


def main(fd: int) -> None:
    """Answer tasks from the connection `fd` until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the patient's pixels
    wire = socket.socket(fileno=fd)
    send(wire, {"ready": True})
    # Decoders print what they think of a file, from C, where no logger reaches.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        while True:
            _answer(wire, receive(wire))
    except (EOFError, OSError):
        return  # the parent closed the connection, or died


def _answer(wire: socket.socket, task: dict[str, Any]) -> None:
    """Do one task: its slices one by one, then how it ended."""
    path = Path(os.fsdecode(bytes.fromhex(task["path"])))
    end: dict[str, Any] = {"end": True}
    left = float(task["limit"])
    if task["frames"] is None:
        steps = _headers(path, task, end)
    else:
        steps = read_frames(path, task["frames"], task["plane"])
    while True:
        # The timer runs while decoding only: a parent that is slow to listen costs nothing.
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
        started = time.monotonic()
        try:
            read = next(steps, None)
        except ImportError as error:
            end["fault"] = str(error)
            read = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        left -= time.monotonic() - started
        if read is None:
            break
        _send(wire, read)
    send(wire, end)


def _headers(path: Path, task: dict[str, Any], end: dict[str, Any]) -> Iterator[FrameRead]:
    """Put the headers of a file, or why it has none, into the end of the task; yield nothing."""
    try:
        headers = read_headers(path, task["plane"], task["tags"])
        end["headers"] = [dataclasses.asdict(header) for header in headers]
    except Exception as error:
        known = as_unreadable(error, "reading the file")
        end |= {"reason": known.reason, "detail": known.detail}
    yield from ()


def _send(wire: socket.socket, read: FrameRead) -> None:
    message: dict[str, Any] = {
        "frame": read.item.frame,
        "file": read.file_digest,
        "pixels": read.pixel_digest,
        "seconds": read.seconds,
    }
    if isinstance(read.item, Failure):
        send(wire, message | {"reason": read.item.reason, "detail": read.item.detail})
        return
    message["voi"] = read.item.voi and dataclasses.asdict(read.item.voi)
    send(wire, message, np.ascontiguousarray(read.item.pixels))


if __name__ == "__main__":
    main(int(sys.argv[1]))
