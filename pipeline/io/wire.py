"""Messages between a reading process and its parent: JSON, and raw pixels.

Nothing is pickled, so a decoder that a hostile file took over can send its parent wrong numbers
but no code; what is no message at all is a MalformedError. Pixels lie in shared memory
(`pipeline.io.slots`) while there is room, and else come behind their message, where the socket
holds a fast reader back.
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
from pipeline.io.slots import BrokenSlotError, SlotMemory, SlotWriter

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


def send_pixels(
    wire: socket.socket, message: dict[str, Any], pixels: NDArray[Any], slots: SlotWriter | None
) -> None:
    """Send a message and its pixels. Raises OSError once the other end is gone."""
    message = message | {"dtype": pixels.dtype.name, "shape": pixels.shape}
    place = slots and slots.put(pixels)
    if place:
        wire.sendall(_framed(message | place))
        return
    wire.sendall(_framed(message))
    wire.sendall(pixels.data.cast("B"))


def _framed(message: dict[str, Any]) -> bytes:
    text = json.dumps(message).encode()
    return _LENGTH.pack(len(text)) + text


class Inbox:
    """What comes in on a socket: many small messages are taken from it at once.

    slots: the memory of the process at the other end, if it has any.
    """

    def __init__(self, wire: socket.socket, slots: SlotMemory | None = None) -> None:
        self._wire = wire
        self._slots = slots
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
        """Return the pixels of a message. Raises EOFError, OSError, MalformedError."""
        shape, dtype = _kind_of(message)
        if self._slots is not None and "slot" in message:
            try:
                return self._slots.pixels(message["slot"], message.get("at"), shape, dtype)
            except BrokenSlotError as error:
                raise MalformedError(str(error)) from None
        pixels = np.empty(shape, dtype)
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


def _kind_of(message: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the pixels that a message announces. Raises MalformedError."""
    shape: Any = message.get("shape")
    name: Any = message.get("dtype")
    if name not in _PIXELS:
        raise MalformedError(f"pixels of type {name!r}")
    dtype = np.dtype(name)
    sizes = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    if not sizes or math.prod(shape) > MAX_FILE_BYTES // dtype.itemsize:
        raise MalformedError(f"pixels of shape {shape!r}")
    return tuple(shape), dtype
