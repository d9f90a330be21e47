"""Messages between a reading process and its parent: JSON, and raw pixels behind it.

Nothing is pickled, so a decoder that a hostile file took over can send its parent wrong numbers
but no code. A socket, since shared memory gains nothing where each slice is passed once: the two
cost the same time (measured: benchmarks/read.py), and a socket holds a fast reader back by itself.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("<I")
_PIXELS = frozenset({"uint8", "int16", "uint16", "float32"})


def send(wire: socket.socket, message: dict[str, Any], pixels: NDArray[Any] | None = None) -> None:
    """Send a message, and the pixels whose type and shape it is to tell.

    Raises OSError once the other end is gone.
    """
    if pixels is not None:
        described = {"dtype": pixels.dtype.name, "shape": pixels.shape}
        message = message | described
    text = json.dumps(message).encode()
    wire.sendall(_LENGTH.pack(len(text)) + text)
    if pixels is not None:
        wire.sendall(pixels.data.cast("B"))


def receive(wire: socket.socket) -> dict[str, Any]:
    """Return the next message. Raises EOFError, or OSError, once the other end is gone."""
    head = bytearray(_LENGTH.size)
    _fill(wire, memoryview(head))
    text = bytearray(*_LENGTH.unpack(head))
    _fill(wire, memoryview(text))
    message: dict[str, Any] = json.loads(text)
    return message


def receive_pixels(wire: socket.socket, message: dict[str, Any]) -> NDArray[Any]:
    """Return the pixels behind a message. Raises EOFError, or OSError."""
    if message["dtype"] not in _PIXELS:
        raise EOFError(f"a reading process sent pixels of type {message['dtype']!r}")
    pixels = np.empty(message["shape"], dtype=message["dtype"])
    room = pixels.data.cast("B")
    _fill(wire, room)
    return pixels


def _fill(wire: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = wire.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other end closed the connection")
        done += count
