"""Messages between a reading process and its parent: JSON, and raw pixels behind it.

Nothing is pickled, so a decoder that a hostile file took over can send its parent wrong numbers
but no code.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("<I")


def send(
    wire: socket.socket, message: dict[str, Any], pixels: NDArray[np.float32] | None = None
) -> None:
    """Send a message, and the pixels whose shape it tells. Raises OSError once the end is gone."""
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


def receive_pixels(wire: socket.socket, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the pixels behind a message. Raises EOFError, or OSError."""
    pixels = np.empty(shape, dtype=np.float32)
    _fill(wire, pixels.data.cast("B"))
    return pixels


def _fill(wire: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = wire.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other end closed the connection")
        done += count
