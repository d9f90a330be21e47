"""One reading process, as its parent sees it. Private to the pool."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.io.slots import SlotMemory
from pipeline.io.types import FileStamp, FrameRead
from pipeline.io.wire import Inbox, send
from pipeline.types import Failure, Plane
from stores.errors import Reason

# One thread a worker: the workers are the parallelism. And memory that glibc keeps from slice to
# slice, where by default it asks the kernel for each picture anew (a third of the time, measured).
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
# Of messages that a worker has not taken yet; a socket holds three times as much.
_TEXT_BYTES = 2**16
# Files after which a worker makes room for a fresh one: C decoders leak.
_FILES_A_WORKER = 2000


@dataclass
class FileTask:
    """One file to read: `frames` None asks for headers only, and the values of `tags`.

    reads: what came and waits for the tasks before; received: how many came in all. restarted:
    whether its process was killed once, and another goes on with what had not come. end: the
    worker's last message; None until then.
    """

    path: str
    frames: tuple[int, ...] | None
    tags: tuple[str, ...] = ()
    stamp: FileStamp | None = None
    reads: deque[FrameRead] = field(default_factory=deque)
    received: int = 0
    restarted: bool = False
    end: dict[str, Any] | None = None

    def frames_to_come(self) -> int:
        """Return how many frames have not come; headers count as one."""
        return 1 if self.frames is None else len(self.frames) - self.received

    def text_bytes(self) -> int:
        """Return how long the message is at the most that hands the task over."""
        numbers = 0 if self.frames is None else 8 * self.frames_to_come()
        return 256 + 6 * len(self.path) + 32 * len(self.tags) + numbers

    def fail(self, reason: Reason, detail: str) -> None:
        """End the task: each frame that has not come is a failure, and headers fail as a whole."""
        missing = (self.frames or ())[self.received :]
        self.reads += [FrameRead(Failure(frame, reason, detail)) for frame in missing]
        self.end = {"reason": reason, "detail": detail}


class Worker:
    """One reading process, the connection to it, and the memory that it has for pixels."""

    def __init__(self, slot_bytes: int) -> None:
        self.slots = slots = _slots(slot_bytes)
        self.wire, theirs = socket.socketpair()
        handed = [theirs.fileno()]
        if slots is not None:
            handed.append(slots.fd)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.io.worker", *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _python_path(), **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C reaches the parent, which closes its workers
            )
        if slots is not None:
            slots.close_file()  # it has its own
        self.inbox = Inbox(self.wire, slots)
        self.ready = False
        self.files = 0
        self.tasks: deque[FileTask] = deque()  # the file at work, and those that wait behind it

    def start(
        self, root: Path, tasks: Iterable[FileTask], plane: Plane, time_limit_s: float
    ) -> None:
        """Hand the process its next files, each from the first frame that has not come."""
        files = []
        for task in tasks:
            self.tasks.append(task)
            self.files += 1
            file = {
                "path": task.path,
                "frames": None if task.frames is None else task.frames[task.received :],
                "tags": task.tags,
                "stamp": task.stamp,
            }
            files.append(file)
        message = {
            # Absolute, as it may have started in another folder than this process is in now; and
            # any bytes, which JSON has no text for.
            "root": os.fsencode(root.absolute()).hex(),
            "plane": plane,
            "limit": time_limit_s,
            "files": files,
        }
        try:
            send(self.wire, message)
        except OSError:
            return  # it died idle; the closed connection is noticed when it is listened to

    def room(self, ahead: int) -> int:
        """Return how many frames may be handed over, where so many may be to come."""
        return min(ahead - self.frames_to_come(), _FILES_A_WORKER - self.files)

    def frames_to_come(self) -> int:
        """Return how many frames of the files before it have not come."""
        return sum(task.frames_to_come() for task in self.tasks)

    def text_room(self) -> int:
        """Return how long a message to it may be while it is at a file.

        It may wait then until its parent takes pixels from it: if its parent waited as well, until
        it takes a message, neither would ever go on. So much fits between them.
        """
        return _TEXT_BYTES - sum(task.text_bytes() for task in self.tasks)

    def is_usable(self) -> bool:
        """Return whether it starts or waits for a file, lives, and has not read too many."""
        has_room = not self.tasks and self.files < _FILES_A_WORKER
        return has_room and self.process.poll() is None

    def close(self) -> int:
        """End the process at once and return its exit code."""
        self.wire.close()
        self.process.kill()
        return self.process.wait()


def _slots(size: int) -> SlotMemory | None:
    """Return memory for a reading process; None where this system has none to share."""
    with contextlib.suppress(OSError):
        return SlotMemory(size)
    return None


def _python_path() -> str:
    """Return PYTHONPATH with this package in front, wherever the parent was started."""
    package = str(Path(__file__).absolute().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return package + os.pathsep + inherited if inherited else package


def cause_of_death(code: int, time_limit_s: float) -> tuple[Reason, str]:
    """Return why a file failed whose process ended with an exit code."""
    if code == -signal.SIGKILL:  # of itself, a file that takes too much meets its own limit
        return "killed", "the reading process was killed twice, as when memory runs out"
    if code == -signal.SIGALRM:
        return "time-limit", f"took longer than {time_limit_s:g} s"
    return "corrupt", f"the decoder crashed (exit code {code})"
