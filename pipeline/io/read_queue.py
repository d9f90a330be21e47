"""Files to read, put in one by one, while the frames of those before are taken out in order.

For a caller that decides late what is read next: it puts a request in when there is room, and is
never asked for one. What is read ahead is bounded by files and by bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.io.decode import read_request
from pipeline.io.pool import WorkerPool
from pipeline.io.process import FileTask
from pipeline.io.slots import Pin
from pipeline.io.types import FrameRead, Request
from pipeline.types import Plane


class ReadQueue(Protocol):
    """A bounded queue of requests, of which frames come out in the order of the requests.

    - One thread has it, puts in and takes out.
    - A frame comes out for each that was requested; what cannot be read comes as a Failure.
    - What is decoded ahead waits in bounded memory, and the rest waits for room.
    - `close` ends the reading at once; what was not taken out is lost.
    """

    frames_left: int  # requested and not taken out

    def has_room(self) -> bool:
        """Return whether another request may be put in now."""
        ...

    def put(self, request: Request) -> None:
        """Have a file read once its turn comes."""
        ...

    def get(self) -> FrameRead:
        """Wait for the next frame and return it; `frames_left` must not be 0."""
        ...

    def close(self) -> None:
        """End what reads."""
        ...


def open_read_queue(
    root: Path,
    *,
    plane: Plane = "axial",
    workers: int = 1,
    time_limit_s: float = 60.0,
    pin: Pin | None = None,
    at_once: int = 1,
) -> ReadQueue:
    """Return a queue whose files are read by so many processes; to be closed.

    workers: 0 reads in this process, a file when its first frame is taken out, without protection
    from files that crash or never end. time_limit_s: decoding time of one file. pin: has a card
    read the memory in which the processes leave pixels. at_once: of how many frames the caller
    makes a batch.
    """
    if workers == 0:
        return InlineReadQueue(root, plane)
    return PooledReadQueue(WorkerPool(root, plane, workers, time_limit_s, pin, at_once))


class InlineReadQueue:
    """Reads in the caller's thread, one file at a time."""

    def __init__(self, root: Path, plane: Plane) -> None:
        self.frames_left = 0
        self._root = root
        self._plane = plane
        self._reads: Iterator[FrameRead] = iter(())

    def has_room(self) -> bool:
        """Return whether the file before is read to its end."""
        return not self.frames_left

    def put(self, request: Request) -> None:
        """Note a file, which is opened when its first frame is taken out."""
        self.frames_left = len(request.frames)
        self._reads = read_request(self._root, request, self._plane)

    def get(self) -> FrameRead:
        """Read the next frame."""
        read = next(self._reads)
        self.frames_left -= 1
        return read

    def close(self) -> None:
        """Close the file that is open."""
        self._reads = iter(())


class PooledReadQueue:
    """Reads in processes that a bad file may hang or crash (`pipeline.io.pool`)."""

    def __init__(self, pool: WorkerPool) -> None:
        """pool: closed with this."""
        self.frames_left = 0
        self._pool = pool
        self._in_hand: FrameRead | None = None

    def has_room(self) -> bool:
        """Return whether another file may be begun."""
        self._release()
        return self._pool.has_room()

    def put(self, request: Request) -> None:
        """Hand a file to the processes."""
        self.frames_left += len(request.frames)
        self._pool.submit(FileTask(request.path, request.frames, stamp=request.stamp))

    def get(self) -> FrameRead:
        """Wait for the next frame."""
        self._release()
        result = self._pool.next_result()
        while not isinstance(result, FrameRead):
            self._pool.release(result)  # the end of a file, which makes room for another
            result = self._pool.next_result()
        self.frames_left -= 1
        self._in_hand = result
        return result

    def close(self) -> None:
        """End the reading, whatever the processes are at."""
        self._pool.close()
        self._in_hand = None

    def _release(self) -> None:
        """Count the frame before as gone: until its caller comes back, its pixels are in memory."""
        if self._in_hand is not None:
            self._pool.release(self._in_hand)
            self._in_hand = None
