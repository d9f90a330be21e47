"""Messages between a reading process and its parent: JSON, and raw pixels behind it.

Nothing is pickled, so a decoder that a hostile file took over can send its parent wrong numbers
but no code; what is no message at all is a MalformedError. A socket, since shared memory gains
nothing where each slice is passed once: the two cost the same time (measured: benchmarks/flow.py),
and a socket holds a fast reader back by itself.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.io.formats.limits import MAX_FILE_BYTES

_LENGTH = struct.Struct("<I")
_PIXELS = frozenset({"uint8", "int16", "uint16", "float32"})
# The text of one message; a file of MAX_FRAMES frames has headers of some hundred bytes each.
_MAX_TEXT = 2**28
# What is taken from a socket at once: as many small messages as have come.
_READ_BYTES = 2**16


class MalformedError(Exception):
    """The other end sent what is no message."""


def send(wire: socket.socket, *messages: dict[str, Any]) -> None:
    """Send messages without pixels, together. Raises OSError once the other end is gone."""
    wire.sendall(b"".join(map(_framed, messages)))


def send_pixels(wire: socket.socket, message: dict[str, Any], pixels: NDArray[Any]) -> None:
    """Send a message and the pixels behind it. Raises OSError once the other end is gone."""
    described = {"dtype": pixels.dtype.name, "shape": pixels.shape}
    wire.sendall(_framed(message | described))
    wire.sendall(pixels.data.cast("B"))


def _framed(message: dict[str, Any]) -> bytes:
    text = json.dumps(message).encode()
    return _LENGTH.pack(len(text)) + text


class Inbox:
    """What comes in on a socket: many small messages are taken from it at once."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._come = bytearray()  # and not taken yet

    def receive(self) -> dict[str, Any]:
        """Wait for the next message and return it; its pixels, if it has any, come next.

        Raises EOFError or OSError once the other end is gone, MalformedError.
        """
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        if length > _MAX_TEXT:
            raise MalformedError(f"a message of {length} bytes")
        text = self._take(length)
        try:
            message = json.loads(text)
        except ValueError:
            raise MalformedError("a message that is no JSON") from None
        except RecursionError:
            raise MalformedError("a message nested too deep") from None
        if not isinstance(message, dict):
            raise MalformedError("a message without names")
        return message

    def receive_pixels(self, message: dict[str, Any]) -> NDArray[Any]:
        """Return the pixels behind a message. Raises EOFError, OSError, MalformedError."""
        pixels = _room_for(message)
        room = pixels.data.cast("B")
        here = min(len(self._come), len(room))
        room[:here] = self._come[:here]
        del self._come[:here]
        self._fill(room[here:])
        return pixels

    def waiting(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have come, waiting for the first and for the rest of the last.

        The pixels of each are to be received before the next is asked for.
        """
        yield self.receive()
        while self._come:
            yield self.receive()

    def _take(self, count: int) -> bytes:
        """Return the next bytes."""
        while len(self._come) < count:
            # No further than this message, once it has begun: what is read is handed out.
            more = self._wire.recv(count - len(self._come) if self._come else _READ_BYTES)
            if not more:
                raise EOFError("the other end closed the connection")
            self._come += more
        taken = bytes(self._come[:count])
        del self._come[:count]
        return taken

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self._wire.recv_into(view[done:], 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError("the other end closed the connection")
            done += count


def _room_for(message: dict[str, Any]) -> NDArray[Any]:
    """Return an array for the pixels that a message announces. Raises MalformedError."""
    shape: Any = message.get("shape")
    dtype: Any = message.get("dtype")
    if dtype not in _PIXELS:
        raise MalformedError(f"pixels of type {dtype!r}")
    sizes = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    if not sizes or math.prod(shape) > MAX_FILE_BYTES // np.dtype(dtype).itemsize:
        raise MalformedError(f"pixels of shape {shape!r}")
    return np.empty(shape, dtype)
