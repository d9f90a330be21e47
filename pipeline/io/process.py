"""One reading process, as its parent sees it. Private to the pool."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.io.types import FrameRead
from pipeline.io.wire import send
from pipeline.shared.paths import unescape_path
from pipeline.types import Plane
from stores.errors import Reason

# One thread a worker: the workers are the parallelism. And memory that glibc keeps from slice to
# slice, where by default it asks the kernel for each picture anew (a third of the time, measured).
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}


@dataclass
class Job:
    """One file to read: `frames` None asks for headers only, and the values of `tags`.

    reads: what came and waits for the jobs before; count: how many came in all. again: whether its
    process was killed once, and another goes on with what had not come.
    """

    path: str
    frames: tuple[int, ...] | None
    tags: tuple[str, ...] = ()
    reads: deque[FrameRead] = field(default_factory=deque)
    count: int = 0
    again: bool = False
    end: dict[str, Any] | None = None


class Worker:
    """One reading process and the connection to it."""

    def __init__(self) -> None:
        self.wire, theirs = socket.socketpair()
        with theirs:
            package = str(Path(__file__).absolute().parents[2])
            known = os.environ.get("PYTHONPATH")
            path = package if not known else package + os.pathsep + known
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.io.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C reaches the parent, which closes its workers
            )
        self.ready = False
        self.files = 0
        self.job: Job | None = None

    def start(self, root: Path, job: Job, plane: Plane, time_limit_s: float) -> None:
        """Hand the process its next file, from the first frame that has not come."""
        path = os.fsencode(root / unescape_path(job.path)).hex()
        task = {
            "path": path,
            "frames": None if job.frames is None else job.frames[job.count :],
            "tags": job.tags,
            "plane": plane,
            "limit": time_limit_s,
        }
        self.job = job
        self.files += 1
        try:
            send(self.wire, task)
        except OSError:
            return  # it died idle; the closed connection is noticed when it is listened to

    def close(self) -> int:
        """End the process at once and return its exit code."""
        self.wire.close()
        self.process.kill()
        return self.process.wait()


def cause_of_death(code: int, time_limit_s: float) -> tuple[Reason, str]:
    """Return why a file failed whose process ended with an exit code."""
    if code == -signal.SIGKILL:
        return "too-large", "the reading process was killed, as when memory runs out"
    if code == -signal.SIGALRM:
        return "time-limit", f"took longer than {time_limit_s:g} s"
    return "corrupt", f"the decoder crashed (exit code {code})"
