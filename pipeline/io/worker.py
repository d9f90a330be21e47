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

from pipeline.io.decode import read_frames, read_headers
from pipeline.io.formats.limits import MAX_FILE_BYTES, as_unreadable
from pipeline.io.slots import SlotWriter
from pipeline.io.types import FrameRead
from pipeline.io.wire import Inbox, send, send_pixels
from pipeline.types import Failure

# Address space of one process: a file at the limit, as stored and once turned, and the libraries.
_MEMORY = 3 * MAX_FILE_BYTES


def main(fd: int, slots_fd: int | None = None) -> None:
    """Do tasks from the connection `fd` until it ends; pixels go by the memory `slots_fd`."""
    _protect()
    slots = None if slots_fd is None else SlotWriter(slots_fd)
    wire = socket.socket(fileno=fd)
    # Before the silence: what fails so far is told on the parent's terminal.
    send(wire, {"ready": True})
    _silence()
    inbox = Inbox(wire)
    try:
        while True:
            _answer(wire, slots, inbox.receive())
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


def _answer(wire: socket.socket, slots: SlotWriter | None, task: dict[str, Any]) -> None:
    """Do one task: send its slices one by one, and with the last how it ended."""
    path = Path(os.fsdecode(bytes.fromhex(task["path"])))
    limit = _TimeLimit(float(task["limit"]))
    try:
        if task["frames"] is None:
            send(wire, {"end": True} | _headers(path, task, limit))
        else:
            _send_slices(wire, slots, path, task, limit)
    except ImportError as error:  # of this installation, which the parent raises
        send(wire, {"end": True, "fault": str(error)})


def _headers(path: Path, task: dict[str, Any], limit: _TimeLimit) -> dict[str, Any]:
    """Return the headers of a file, or why it has none, as the end of a task tells it."""
    with limit.running():
        try:
            headers = read_headers(path, task["plane"], task["tags"])
            return {"headers": [dataclasses.asdict(header) for header in headers]}
        except Exception as error:
            known = as_unreadable(error, "reading the file")
            return {"reason": known.reason, "detail": known.detail}


def _send_slices(
    wire: socket.socket,
    slots: SlotWriter | None,
    path: Path,
    task: dict[str, Any],
    limit: _TimeLimit,
) -> None:
    """Read the frames of a task and send each as soon as it is there."""
    stamp = task["stamp"] and tuple(task["stamp"])
    count = len(task["frames"])
    reads = read_frames(path, task["frames"], task["plane"], stamp)
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
