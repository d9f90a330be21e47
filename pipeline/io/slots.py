"""Shared memory in which a reading process leaves pixels, so that its parent need not copy them.

Each process has memory of its own, which its parent made and sealed: it cannot shrink beneath the
parent's hands. The process alone gives out slots, the first room that is large enough, so that no
more of the memory is ever touched than waits at a time; and its parent alone takes them back, each
once nothing refers to its pixels any more. So none is lost with a process that is killed: its
memory goes with the last pixels in it. Pixels for which there is no room travel by the socket.

    flags (2**12 bytes: 0 free, 1 taken) | pixels, seal | pixels, seal | ...

Behind the pixels of a slot stands a seal. Where it is broken, somebody wrote beyond their end, and
what comes of that process is not believed. A graphics card may read the memory by itself, once it
is pinned: then nobody copies pixels on their way there.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLAGS = 2**12
_SEAL = bytes.fromhex("b1ade5caa5ee1a11")
_ALIGNED = 64  # bytes: a line of a processor's cache
# Has a card read memory at an address, of so many bytes; returns what ends that.
Pin = Callable[[int, int], Callable[[], None]]
# Pixels may not be cut off, nor the memory be sealed otherwise.
_FIXED = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


class BrokenSlotError(Exception):
    """A process tells of a slot that it cannot have, or has written beyond one."""


class Slot:
    """Pixels in the memory of a reading process: free again once no array refers to this."""

    def __init__(self, memory: SlotMemory, number: int, at: int, pixels: dict[str, Any]) -> None:
        self._memory = memory
        self._number = number
        self.__array_interface__ = pixels | {"data": (memory.address + at, False), "version": 3}

    def __del__(self) -> None:
        """Let the process have it again; a copy of this in a forked process has no say in it."""
        if os.getpid() == self._memory.owner:
            self._memory.bytes[self._number] = 0


class SlotMemory:
    """The memory of one reading process, as its parent has it."""

    def __init__(self, size: int) -> None:
        """size: bytes of pixels that it holds. Raises OSError where a system has none to share."""
        self._unpin: Callable[[], None] | None = None  # once a card reads it
        self.owner = os.getpid()
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory without a name")
        self.fd = os.memfd_create("radprobe-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, _FLAGS + size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in _FIXED))
            self.bytes = mmap.mmap(self.fd, _FLAGS + size)
        except BaseException:
            os.close(self.fd)
            raise
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def pin(self, pin: Pin) -> None:
        """Let a card read the memory for as long as it is there."""
        if self._unpin is None:
            self._unpin = pin(self.address, len(self.bytes))

    def __del__(self) -> None:
        """Take the memory from the card before it is gone."""
        if self._unpin is not None and os.getpid() == self.owner:
            self._unpin()

    def close_file(self) -> None:
        """Close its file; the memory stays as long as pixels are in it."""
        os.close(self.fd)

    def pixels(
        self, number: object, at: object, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Return what the process left in a slot. Raises BrokenSlotError."""
        if type(number) is not int or type(at) is not int or not 0 <= number < _FLAGS:
            raise BrokenSlotError(f"slot {number!r}")
        end = at + math.prod(shape) * dtype.itemsize
        if not _FLAGS <= at <= end <= len(self.bytes) - len(_SEAL) or at % _ALIGNED:
            raise BrokenSlotError(f"a slot from byte {at} to {end} of {len(self.bytes)}")
        if self.bytes[end : end + len(_SEAL)] != _SEAL:
            raise BrokenSlotError("more pixels than their slot holds")
        slot = Slot(self, number, at, {"shape": shape, "typestr": dtype.str})
        return np.asarray(slot)


def is_in_slot(pixels: NDArray[Any]) -> bool:
    """Return whether pixels lie in a slot, as `SlotMemory.pixels` returned them."""
    return isinstance(pixels.base, Slot)


class SlotWriter:
    """The memory of this reading process."""

    def __init__(self, fd: int) -> None:
        self._bytes = mmap.mmap(fd, 0)
        self._taken: list[tuple[int, int, int]] = []  # start, end, number; by their start
        self._next = 0  # the number of the next slot

    def put(self, pixels: NDArray[Any]) -> dict[str, int] | None:
        """Leave pixels in a slot; return what tells the parent where, or None: there is no room."""
        self._taken = [slot for slot in self._taken if self._bytes[slot[2]]]
        size = pixels.nbytes + len(_SEAL)
        place, start = self._room(size)
        if start + size > len(self._bytes) or self._bytes[self._next]:
            return None
        number = self._next
        end = start + pixels.nbytes
        room = np.frombuffer(self._bytes, pixels.dtype, pixels.size, start)
        room[:] = pixels.ravel()
        self._bytes[end : start + size] = _SEAL
        self._bytes[number] = 1
        self._taken.insert(place, (start, start + size, number))
        self._next = (number + 1) % _FLAGS
        return {"slot": number, "at": start}

    def _room(self, size: int) -> tuple[int, int]:
        """Return where so many bytes are free: before which of the taken slots, and from where."""
        start = _FLAGS
        for place, (taken, end, _) in enumerate(self._taken):
            if start + size <= taken:
                return place, start
            start = -(-end // _ALIGNED) * _ALIGNED
        return len(self._taken), start
