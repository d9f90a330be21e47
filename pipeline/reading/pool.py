"""Reading processes that a bad file may hang or crash. Private to `read` and `discover`.

Each worker reads one file at a time. What ends a worker (its timer, a crash of a decoder) fails
that one file, and a new worker takes its place. Answers come out in the order of the tasks. A
thread listens to the workers while the caller is busy, ahead of it by a bounded number of files.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pipeline.read import FileRead, Request, unescape_path
from pipeline.reading.wire import receive, receive_pixels, send
from pipeline.types import Failure, Header, Plane, Slice, Voi
from stores.errors import Reason, UnreadableError

# Pixels that may wait for the caller before no further file is begun.
_AHEAD_BYTES = 2**28
_AHEAD_FILES = 64  # a worker
# Files after which a worker makes room for a fresh one: C decoders leak.
_FILES_A_WORKER = 2000
# One thread a worker: the workers are the parallelism. And memory that glibc keeps from slice to
# slice, where by default it asks the kernel for each picture anew (a third of the time, measured).
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}


@dataclass
class _Job:
    """One file to read: `frames` None asks for headers only, and the values of `tags`."""

    path: str
    frames: tuple[int, ...] | None
    tags: tuple[str, ...] = ()
    items: list[Slice | Failure] = field(default_factory=list)
    end: dict[str, Any] | None = None
    size: int = 0


class _Worker:
    """One reading process and the connection to it."""

    def __init__(self) -> None:
        self.wire, theirs = socket.socketpair()
        with theirs:
            package = str(Path(__file__).absolute().parents[2])
            known = os.environ.get("PYTHONPATH")
            path = package if not known else package + os.pathsep + known
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.reading.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C reaches the parent, which closes its workers
            )
        self.ready = False
        self.files = 0
        self.job: _Job | None = None

    def start(self, root: Path, job: _Job, plane: Plane, time_limit_s: float) -> None:
        path = os.fsencode(root / unescape_path(job.path)).hex()
        task = {
            "path": path,
            "frames": job.frames,
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


def read_in_workers(
    root: Path, requests: Iterable[Request], plane: Plane, workers: int, time_limit_s: float
) -> Generator[FileRead]:
    """Yield a FileRead for each request, in order (see `pipeline.read.read_files`)."""
    jobs = (_Job(request.path, request.frames) for request in requests)
    with contextlib.closing(_run(root, jobs, plane, workers, time_limit_s)) as done:
        for job in done:
            end, frames = job.end or {}, job.frames or ()
            items = job.items
            if "reason" in end:
                missing = frames[len(items) :]
                items += [Failure(frame, end["reason"], end["detail"]) for frame in missing]
            yield FileRead(job.path, end.get("sha256"), tuple(items))


def headers_in_workers(
    root: Path,
    paths: Iterable[str],
    plane: Plane,
    tags: tuple[str, ...],
    workers: int,
    time_limit_s: float,
) -> Iterator[list[Header] | UnreadableError]:
    """Yield the headers of each file, or why it has none, in order."""
    jobs = (_Job(path, None, tags) for path in paths)
    with contextlib.closing(_run(root, jobs, plane, workers, time_limit_s)) as done:
        for job in done:
            end = job.end or {}
            if "reason" in end:
                yield UnreadableError(end["reason"], end["detail"])
            else:
                yield [_header(values) for values in end["headers"]]


def _header(values: dict[str, Any]) -> Header:
    """Return a Header from its JSON, whose tuples came as lists."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Header(**fields)


def _run(
    root: Path, jobs: Iterable[_Job], plane: Plane, workers: int, time_limit_s: float
) -> Generator[_Job]:
    """Yield the jobs, done, in order; workers and thread end with this generator.

    The jobs are taken from their iterator here, in the caller's thread, as room comes up.
    """
    pool = _Pool(root, plane, workers, time_limit_s)
    upcoming = iter(jobs)
    job: _Job | None = None
    try:
        while True:
            while pool.room() and (job := next(upcoming, None)) is not None:
                pool.give(job)
            if not pool.held_files:
                return
            done = pool.done.get()
            if isinstance(done, BaseException):
                raise done
            yield done
            pool.taken(done)
    finally:
        pool.close()


class _Pool:
    """Workers, and the thread that feeds them and collects their answers."""

    def __init__(self, root: Path, plane: Plane, workers: int, time_limit_s: float) -> None:
        self.root, self.plane, self.time_limit_s = root, plane, time_limit_s
        self.width = workers
        self.done: queue.SimpleQueue[_Job | BaseException] = queue.SimpleQueue()
        self.given: deque[_Job] = deque()  # not begun yet
        self.begun: deque[_Job] = deque()  # in order; the first is the next to hand out
        self.workers: list[_Worker] = []
        self.held_files = 0
        self.held_bytes = 0
        self.lock = threading.Lock()  # of held_bytes
        self.stop = threading.Event()
        self.bell, self.heard = socket.socketpair()  # wakes the thread from its wait
        self.thread = threading.Thread(target=self._work, name="radprobe-read", daemon=True)
        self.thread.start()

    def room(self) -> bool:
        """Return whether another file may be begun: what is held for the caller is bounded."""
        few = self.held_files < _AHEAD_FILES * self.width and self.held_bytes < _AHEAD_BYTES
        return few or not self.held_files

    def give(self, job: _Job) -> None:
        """Take on a job."""
        self.held_files += 1
        self.given.append(job)
        self.bell.send(b"!")

    def taken(self, job: _Job) -> None:
        """Note that the caller is through with a job."""
        self.held_files -= 1
        with self.lock:
            self.held_bytes -= job.size

    def close(self) -> None:
        """End the workers, whatever they are at, and the thread."""
        self.stop.set()
        self.bell.send(b"!")
        self.thread.join()
        self.bell.close()
        self.heard.close()

    def _work(self) -> None:
        """Work until told to stop, in the thread; put each job, done, into `done` in order."""
        try:
            while not self.stop.is_set():
                self._feed()
                self._listen()
                while self.begun and self.begun[0].end is not None:
                    self.done.put(self.begun.popleft())
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.done.put(error)
        finally:
            for worker in self.workers:
                worker.close()

    def _feed(self) -> None:
        """Give idle workers their next files."""
        while self.given and (worker := self._idle()) is not None:
            job = self.given.popleft()
            self.begun.append(job)
            worker.start(self.root, job, self.plane, self.time_limit_s)

    def _idle(self) -> _Worker | None:
        for worker in list(self.workers):
            if worker.job is None and worker.ready:
                if worker.files < _FILES_A_WORKER and worker.process.poll() is None:
                    return worker
                self._replace(worker)
        if len(self.workers) < self.width:
            self.workers.append(_Worker())
        return None

    def _listen(self) -> None:
        """Take the messages that have come, waiting for the first."""
        by_wire = {worker.wire: worker for worker in self.workers if worker.job or not worker.ready}
        for wire in wait([*by_wire, self.heard]):
            if wire is self.heard:
                self.heard.recv(4096)
                continue
            worker = by_wire[wire]  # type: ignore[index]
            try:
                self._take(worker, receive(worker.wire))
            except (EOFError, OSError):
                self._bury(worker)

    def _take(self, worker: _Worker, message: dict[str, Any]) -> None:
        job = worker.job
        if job is None:
            worker.ready = True
        elif "fault" in message:
            raise ImportError(message["fault"])
        elif "end" in message:
            job.end, worker.job = message, None
        elif "reason" in message:
            job.items.append(Failure(**message))
        else:
            pixels = receive_pixels(worker.wire, message["shape"])
            voi = message["voi"]
            voi = voi and Voi(**{**voi, "table": tuple(voi["table"])})
            job.items.append(Slice(message["frame"], pixels, voi))
            job.size += pixels.nbytes
            with self.lock:
                self.held_bytes += pixels.nbytes

    def _bury(self, worker: _Worker) -> None:
        """Fail the file that ended a worker, and let a new worker take its place."""
        code = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(
                f"A reading process ended with exit code {code} before its first file; "
                f"`{sys.executable} -m pipeline.reading.worker` must be able to start."
            )
        job = worker.job
        if job is not None:
            # What came before the end is dropped with its digest: a half-read file is a failed one.
            with self.lock:
                self.held_bytes -= job.size
            job.items, job.size = [], 0
            job.end = {"end": True, "sha256": None, **_cause(code, self.time_limit_s)}
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.close()
        self.workers.remove(worker)


def _cause(code: int, time_limit_s: float) -> dict[str, str]:
    reason: Reason = "corrupt"
    detail = f"the decoder crashed (exit code {code})"
    if code == -signal.SIGKILL:
        reason, detail = "too-large", "the reading process was killed, as when memory runs out"
    if code == -signal.SIGALRM:
        reason, detail = "time-limit", f"took longer than {time_limit_s:g} s"
    return {"reason": reason, "detail": detail}
