"""Reading processes that a bad file may hang or crash. Private to `read` and `discover`.

Each worker reads one file at a time and sends its slices one by one. What ends a worker (its timer,
a crash of a decoder) fails the slices of that file that had not come, and a new worker takes its
place; where it was killed from outside, as when memory runs out, the new one goes on with the file
once. Answers come out in the order of the tasks. A thread listens to the workers while the caller
is busy; once so many bytes wait for the caller, it listens to nobody but the one whose slices are
next, when those are wanted: neither long files nor many workers fill the memory.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pipeline.io.process import Job, Worker, cause_of_death
from pipeline.io.types import FrameRead, Request
from pipeline.io.wire import receive, receive_pixels
from pipeline.types import Failure, Header, Plane, Slice, Voi
from stores.errors import UnreadableError

# Pixels that may wait for the caller before the workers do.
_AHEAD_BYTES = 2**28
_AHEAD_FILES = 64  # a worker
# Files after which a worker makes room for a fresh one: C decoders leak.
_FILES_A_WORKER = 2000


def read_in_workers(
    root: Path, requests: Iterable[Request | None], plane: Plane, workers: int, time_limit_s: float
) -> Generator[FrameRead]:
    """Yield a FrameRead for each frame asked, in order (see `pipeline.io.reader.read_files`)."""
    jobs = (None if r is None else Job(r.path, r.frames) for r in requests)
    with contextlib.closing(_run(root, jobs, plane, workers, time_limit_s)) as done:
        for read in done:
            if isinstance(read, FrameRead):
                yield read


def headers_in_workers(
    root: Path,
    paths: Iterable[str],
    plane: Plane,
    tags: tuple[str, ...],
    workers: int,
    time_limit_s: float,
) -> Iterator[list[Header] | UnreadableError]:
    """Yield the headers of each file, or why it has none, in order."""
    jobs = (Job(path, None, tags) for path in paths)
    with contextlib.closing(_run(root, jobs, plane, workers, time_limit_s)) as done:
        for job in done:
            end = job.end or {} if isinstance(job, Job) else {}
            if "reason" in end:
                yield UnreadableError(end["reason"], end["detail"])
            else:
                yield [_header(values) for values in end["headers"]]


def _header(values: dict[str, Any]) -> Header:
    """Return a Header from its JSON, whose tuples came as lists."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Header(**fields)


def _run(
    root: Path, jobs: Iterable[Job | None], plane: Plane, workers: int, time_limit_s: float
) -> Generator[FrameRead | Job]:
    """Yield what was read and then its job, done; workers and thread end with this generator.

    The jobs are taken from their iterator here, in the caller's thread, as room comes up,
    unless it is None that comes.
    """
    pool = _Pool(root, plane, workers, time_limit_s)
    upcoming = iter(jobs)
    job: Job | None = None
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
        self.done: queue.SimpleQueue[FrameRead | Job | BaseException] = queue.SimpleQueue()
        self.given: deque[Job] = deque()  # not begun yet
        self.begun: deque[Job] = deque()  # in order; what comes of the first is handed out
        self.orphans: deque[Job] = deque()  # of these, those whose worker was killed
        self.workers: list[Worker] = []
        self.held_files = 0
        self.held_bytes = 0
        self.lock = threading.Lock()  # of held_bytes
        self.stop = threading.Event()
        self.bell, self.heard = socket.socketpair()  # wakes the thread from its wait
        self.thread = threading.Thread(target=self._work, name="radprobe-read", daemon=True)
        self.thread.start()

    def room(self) -> bool:
        """Return whether another file may be begun: what is held for the caller is bounded."""
        few = self.held_files < _AHEAD_FILES * self.width and not self._full()
        return few or not self.held_files

    def _full(self) -> bool:
        return self.held_bytes >= _AHEAD_BYTES

    def give(self, job: Job) -> None:
        """Take on a job."""
        self.held_files += 1
        self.given.append(job)
        self.bell.send(b"!")

    def taken(self, done: FrameRead | Job) -> None:
        """Note that the caller is through with a job, or with one of its slices."""
        with self.lock:
            waiting = self._full()
            if isinstance(done, Job):
                self.held_files -= 1
            else:
                self.held_bytes -= _size(done)
        if waiting:  # the thread waits for the queue to be empty, which may be now
            self.bell.send(b"!")

    def close(self) -> None:
        """End the workers, whatever they are at, and the thread."""
        self.stop.set()
        self.bell.send(b"!")
        self.thread.join()
        self.bell.close()
        self.heard.close()

    def _work(self) -> None:
        """Work until told to stop, in the thread; put what was read into `done` in order."""
        try:
            while not self.stop.is_set():
                self._feed()
                self._listen()
                self._hand_out()
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.done.put(error)
        finally:
            for worker in self.workers:
                worker.close()

    def _feed(self) -> None:
        """Give idle workers their next files."""
        while (self.orphans or self.given) and (worker := self._idle()) is not None:
            if self.orphans:
                job = self.orphans.popleft()
            else:
                job = self.given.popleft()
                self.begun.append(job)
            worker.start(self.root, job, self.plane, self.time_limit_s)

    def _idle(self) -> Worker | None:
        for worker in list(self.workers):
            if worker.job is None and worker.ready:
                if worker.files < _FILES_A_WORKER and worker.process.poll() is None:
                    return worker
                self._replace(worker)
        if len(self.workers) < self.width:
            self.workers.append(Worker())
        return None

    def _listen(self) -> None:
        """Take the messages that have come, waiting for the first."""
        by_wire = {worker.wire: worker for worker in self.workers if self._may_speak(worker)}
        for wire in wait([*by_wire, self.heard]):
            if wire is self.heard:
                self.heard.recv(4096)
                continue
            worker = by_wire[wire]  # type: ignore[index]
            try:
                self._take(worker, receive(worker.wire))
            except (EOFError, OSError):
                self._bury(worker)

    def _may_speak(self, worker: Worker) -> bool:
        if worker.job is None:
            return not worker.ready
        return not self._full() or (worker.job is self.begun[0] and self.done.empty())

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        job = worker.job
        if job is None:
            worker.ready = True
        elif "fault" in message:
            raise ImportError(message["fault"])
        elif "end" in message:
            job.end, worker.job = message, None
        else:
            read = _frame_read(worker.wire, message)
            job.reads.append(read)
            job.count += 1
            with self.lock:
                self.held_bytes += _size(read)

    def _hand_out(self) -> None:
        """Pass on what has come of the first job, and of those behind it that it held up."""
        while self.begun:
            job = self.begun[0]
            while job.reads:
                self.done.put(job.reads.popleft())
            if job.end is None:
                return
            self.done.put(self.begun.popleft())

    def _bury(self, worker: Worker) -> None:
        """Replace a dead worker; what it left unread fails, or is begun again by another."""
        code = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(
                f"A reading process ended with exit code {code} before its first file; "
                f"`{sys.executable} -m pipeline.io.worker` must be able to start."
            )
        job = worker.job
        if job is not None and code == -signal.SIGKILL and not job.again:
            job.again = True
            self.orphans.append(job)
        elif job is not None:
            reason, detail = cause_of_death(code, self.time_limit_s)
            missing = (job.frames or ())[job.count :]
            job.reads += [FrameRead(Failure(frame, reason, detail)) for frame in missing]
            job.end = {"reason": reason, "detail": detail}
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        worker.close()
        self.workers.remove(worker)


def _frame_read(wire: socket.socket, message: dict[str, Any]) -> FrameRead:
    """Return what a worker's message tells, and the pixels behind it. Raises EOFError, OSError."""
    item: Slice | Failure
    if "reason" in message:
        item = Failure(message["frame"], message["reason"], message["detail"])
    else:
        voi = message["voi"]
        voi = voi and Voi(**{**voi, "table": tuple(voi["table"])})
        item = Slice(message["frame"], receive_pixels(wire, message), voi)
    return FrameRead(item, message["file"], message["pixels"], message["seconds"])


def _size(read: FrameRead) -> int:
    return read.item.pixels.nbytes if isinstance(read.item, Slice) else 0
