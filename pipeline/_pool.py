"""Reading processes that a bad file may hang or crash. Private to `read` and `discover`.

Each worker reads one file at a time. What ends a worker (its timer, a crash of a decoder) fails
that one file, and a new worker takes its place. Answers come out in the order of the tasks, and a
thread runs the workers ahead of the caller, bounded in files and bytes.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pipeline._wire import receive, receive_pixels, send
from pipeline.read import FileRead, Request, unescape_path
from pipeline.types import Failure, Header, Plane, Slice, Voi
from stores.errors import Reason, UnreadableError

# Pixels that may wait for the caller before no further file is begun.
_AHEAD_BYTES = 2**28
_AHEAD_FILES = 64  # a worker
# Files after which a worker makes room for a fresh one: C decoders leak.
_FILES_A_WORKER = 2000
_POLL_S = 0.05
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
    """One file to read: `frames` None asks for headers only."""

    path: str
    frames: tuple[int, ...] | None
    items: list[Slice | Failure] = field(default_factory=list)
    end: dict[str, Any] | None = None
    size: int = 0


class _Worker:
    """One reading process and the connection to it."""

    def __init__(self) -> None:
        self.wire, theirs = socket.socketpair()
        with theirs:
            package = str(Path(__file__).absolute().parent.parent)
            known = os.environ.get("PYTHONPATH")
            path = package if not known else package + os.pathsep + known
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline._worker", str(theirs.fileno())],
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
        task = {"path": path, "frames": job.frames, "plane": plane, "limit": time_limit_s}
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
) -> Iterator[FileRead]:
    """Yield a FileRead for each request, in order (see `pipeline.read.read_files`)."""
    jobs = (_Job(request.path, request.frames) for request in requests)
    for job in _run(root, jobs, plane, workers, time_limit_s):
        end, frames = job.end or {}, job.frames or ()
        items = job.items
        if "reason" in end:
            missing = frames[len(items) :]
            items += [Failure(frame, end["reason"], end["detail"]) for frame in missing]
        yield FileRead(job.path, end.get("sha256"), tuple(items))


def headers_in_workers(
    root: Path, paths: Iterable[str], plane: Plane, workers: int, time_limit_s: float
) -> Iterator[list[Header] | UnreadableError]:
    """Yield the headers of each file, or why it has none, in order."""
    jobs = (_Job(path, None) for path in paths)
    for job in _run(root, jobs, plane, workers, time_limit_s):
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
) -> Iterator[_Job]:
    """Yield the jobs, done, in order; a thread runs the workers and ends with this generator."""
    pool = _Pool(root, jobs, plane, workers, time_limit_s)
    thread = threading.Thread(target=pool.run, name="radprobe-read", daemon=True)
    thread.start()
    try:
        while True:
            done = pool.done.get()
            if done is None:
                break
            if isinstance(done, BaseException):
                raise done
            yield done
            pool.taken(done)
    finally:
        pool.stop.set()
        thread.join()


class _Pool:
    """The loop that feeds workers and collects their answers, in a thread of its own."""

    def __init__(
        self, root: Path, jobs: Iterable[_Job], plane: Plane, workers: int, time_limit_s: float
    ) -> None:
        self.root, self.plane, self.time_limit_s = root, plane, time_limit_s
        self.jobs = iter(jobs)
        self.width = workers
        self.done: queue.SimpleQueue[_Job | BaseException | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.workers: list[_Worker] = []
        self.begun: deque[_Job] = deque()  # in order; the first is the next to hand out
        self.lock = threading.Lock()
        self.held_files = 0
        self.held_bytes = 0

    def run(self) -> None:
        """Work until the jobs end or the caller stops; put the jobs, then None, into `done`."""
        try:
            more = True
            while not self.stop.is_set() and (more or self.begun):
                more = more and self._feed()
                self._listen()
                while self.begun and self.begun[0].end is not None:
                    self.done.put(self.begun.popleft())
            self.done.put(None)
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.done.put(error)
        finally:
            for worker in self.workers:
                worker.close()

    def taken(self, job: _Job) -> None:
        """Note that the caller is through with a job: there is room for another."""
        with self.lock:
            self.held_files -= 1
            self.held_bytes -= job.size

    def _feed(self) -> bool:
        """Give idle workers their next files; return False once there are no more."""
        while self._room():
            worker = self._idle()
            if worker is None:
                return True
            job = next(self.jobs, None)
            if job is None:
                return False
            self.begun.append(job)
            with self.lock:
                self.held_files += 1
            worker.start(self.root, job, self.plane, self.time_limit_s)
        return True

    def _room(self) -> bool:
        with self.lock:
            few = self.held_files < _AHEAD_FILES * self.width and self.held_bytes < _AHEAD_BYTES
        return few or (not self.begun and self.held_files == 0)

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
        """Take the messages that have come, waiting a moment where there are none."""
        by_wire = {worker.wire: worker for worker in self.workers if worker.job or not worker.ready}
        if not by_wire:
            self.stop.wait(_POLL_S)
            return
        for wire in wait(list(by_wire), _POLL_S):
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
                f"`{sys.executable} -m pipeline._worker` must be able to start."
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
