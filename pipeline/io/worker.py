"""The reading process behind `pipeline.io.pool`: `python -m pipeline.io.worker FD [SLOTS]`.

- A timer of the kernel ends the process when one file takes too long, even inside a C decoder.
- The end of the connection (the parent closed it, or died) ends the process.
"""

from __future__ import annotations

import contextlib
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

from pipeline.io.decode import read_headers, read_request
from pipeline.io.formats.limits import MAX_FILE_BYTES, as_unreadable
from pipeline.io.slots import SlotWriter
from pipeline.io.types import FrameRead, Request
from pipeline.io.wire import Inbox, send, send_pixels
from pipeline.shared.paths import collection_file
from pipeline.types import Failure, Plane

# Address space of one process: a file at the limit, as stored and once turned, and the libraries.
_MEMORY = 3 * MAX_FILE_BYTES


def main(fd: int, slots_fd: int | None = None) -> None:
    """Do tasks from the connection `fd` until it ends; pixels go by the memory `slots_fd`."""
    _protect()
    # pydicom would have it for downloads of its own samples: a third of the time of its import.
    sys.modules["requests"] = None  # type: ignore[assignment]
    slots = None if slots_fd is None else SlotWriter(slots_fd)
    wire = socket.socket(fileno=fd)
    # Before the silence: what fails so far is told on the parent's terminal.
    send(wire, {"ready": True})
    _silence()
    inbox = Inbox(wire)
    try:
        while True:
            message = inbox.receive()
            root = Path(os.fsdecode(bytes.fromhex(message["root"])))
            for file in message["files"]:
                limit = _TimeLimit(float(message["limit"]))
                _answer(wire, slots, root, file, message["plane"], limit)
    except (EOFError, OSError):
        return  # the parent closed the connection, or died


def _protect() -> None:
    """Leave Ctrl-C to the parent, end on the timer, and bound what a file can make this take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the patient's pixels


def _silence() -> None:
    """Drop all output: decoders print from C what they think of a file, where no logger reaches."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)


class _TimeLimit:
    """The seconds that decoding one file may take: beyond them the kernel ends this process.

    The clock runs within `running` only: a parent that is slow to listen costs a file nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the time run."""
        signal.setitimer(signal.ITIMER_REAL, max(self._left, 1e-3))
        started = time.monotonic()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._left -= time.monotonic() - started


def _answer(
    wire: socket.socket,
    slots: SlotWriter | None,
    root: Path,
    file: dict[str, Any],
    plane: Plane,
    limit: _TimeLimit,
) -> None:
    """Read one file: send its slices one by one, and with the last how it ended."""
    try:
        if file["frames"] is None:
            send(wire, {"end": True} | _headers(root, file, plane, limit))
        else:
            stamp = file["stamp"] and tuple(file["stamp"])
            request = Request(file["path"], tuple(file["frames"]), stamp)
            _send_slices(wire, slots, root, request, plane, limit)
    except ImportError as error:  # of this installation, which the parent raises
        send(wire, {"end": True, "fault": str(error)})


def _headers(root: Path, file: dict[str, Any], plane: Plane, limit: _TimeLimit) -> dict[str, Any]:
    """Return the headers of a file, or why it has none, as the end of a task tells it."""
    with limit.running():
        try:
            path = collection_file(root, file["path"])
            headers = read_headers(path, plane, file["tags"])
            return {"headers": [dataclasses.asdict(header) for header in headers]}
        except Exception as error:
            known = as_unreadable(error, "reading the file")
            return {"reason": known.reason, "detail": known.detail}


def _send_slices(
    wire: socket.socket,
    slots: SlotWriter | None,
    root: Path,
    request: Request,
    plane: Plane,
    limit: _TimeLimit,
) -> None:
    """Read the frames of a file and send each as soon as it is there."""
    count = len(request.frames)
    reads = read_request(root, request, plane)
    for number in range(1, count + 1):
        with limit.running():
            read = next(reads)
            if number == count:
                reads.close()
        _send(wire, slots, read, {"end": True} if number == count else {})
    if not count:
        send(wire, {"end": True})


def _send(
    wire: socket.socket, slots: SlotWriter | None, read: FrameRead, end: dict[str, Any]
) -> None:
    """Send one slice, or why there is none, and whether it ends its file."""
    message: dict[str, Any] = {
        "frame": read.item.frame,
        "file": read.file_digest,
        "pixels": read.pixel_digest,
        "seconds": read.seconds,
    }
    item = read.item
    if isinstance(item, Failure):
        send(wire, message | {"reason": item.reason, "detail": item.detail} | end)
        return
    message["voi"] = item.voi and dataclasses.asdict(item.voi)
    send_pixels(wire, message | end, np.ascontiguousarray(item.pixels), slots)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
