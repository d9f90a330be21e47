"""The reading process behind `pipeline.reading.pool`: `python -m pipeline.reading.worker FD`.

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

from pipeline.formats.limits import MAX_FILE_BYTES, as_unreadable
from pipeline.read import file_digest, read_headers, read_slices
from pipeline.reading.wire import receive, send
from pipeline.types import Failure, Slice

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
    """Do one task: its items one by one, then how it ended."""
    end: dict[str, Any] = {"end": True, "sha256": None}
    left = float(task["limit"])
    steps = _steps(task, end)
    while True:
        # The timer runs while decoding only: a parent that is slow to listen costs nothing.
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
        started = time.monotonic()
        try:
            item = next(steps, None)
        except ImportError as error:
            end["fault"] = str(error)
            item = None
        except Exception as error:
            known = as_unreadable(error, "reading the file")
            end |= {"reason": known.reason, "detail": known.detail}
            item = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        left -= time.monotonic() - started
        if item is None:
            break
        _send(wire, item)
    send(wire, end)


def _steps(task: dict[str, Any], end: dict[str, Any]) -> Iterator[Slice | Failure]:
    path = Path(os.fsdecode(bytes.fromhex(task["path"])))
    if task["frames"] is None:
        headers = read_headers(path, task["plane"], task["tags"])
        end["headers"] = [dataclasses.asdict(header) for header in headers]
        return
    end["sha256"] = file_digest(path)
    yield from read_slices(path, task["frames"], task["plane"])


def _send(wire: socket.socket, item: Slice | Failure) -> None:
    if isinstance(item, Failure):
        send(wire, dataclasses.asdict(item))
        return
    pixels = np.ascontiguousarray(item.pixels)
    voi = item.voi and dataclasses.asdict(item.voi)
    send(wire, {"frame": item.frame, "shape": pixels.shape, "voi": voi}, pixels)


if __name__ == "__main__":
    main(int(sys.argv[1]))
