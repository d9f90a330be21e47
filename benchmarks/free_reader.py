"""A reading process that costs nothing: it sends the same picture for every frame it is asked for.

What its parent passes on, beside several of these, is what one parent can: see `benchmarks.flow`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys

import numpy as np

from pipeline.io.slots import SlotWriter
from pipeline.io.wire import Inbox, send, send_pixels

SIDE = 512


def main(fd: int, slots_fd: int) -> None:
    """Answer each task at once, as `pipeline.io.worker` does once it has read a file."""
    wire = socket.socket(fileno=fd)
    slots = SlotWriter(slots_fd)
    pixels = np.random.default_rng(0).integers(0, 2**12, (SIDE, SIDE)).astype(np.int16)
    send(wire, {"ready": True})
    inbox = Inbox(wire)
    count = 0
    while True:
        try:
            frames = inbox.receive()["frames"]
        except (EOFError, OSError):
            return
        for place, frame in enumerate(frames):
            count += 1
            # No two alike: equal pixels are embedded once.
            digest = hashlib.sha256(f"{os.getpid()} {count}".encode()).hexdigest()
            message = {"frame": frame, "file": digest, "pixels": digest, "seconds": 0.0}
            end = {"end": True} if place == len(frames) - 1 else {}
            send_pixels(wire, message | {"voi": None} | end, pixels, slots)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
