"""Reading processes that a bad file may hang or crash. One thread of a caller has the pool.

Each worker reads one file at a time and sends its slices one by one. What ends a worker (its timer,
a crash of a decoder) fails the slices of that file that had not come, and a new worker takes its
place; where it was killed from outside, as when memory runs out, the new one goes on with the file
once. Results come out in the order of the tasks. A thread listens to the workers while the caller
is busy; once so many bytes wait for the caller, it listens to nobody but the one whose slices are
next, when those are wanted: neither long files nor many workers fill the memory. Workers that are
at no file when a pool is closed are left to the next one (`pipeline.io.idle`).
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, get_args

from pipeline.io.idle import IDLE
from pipeline.io.process import FileTask, Worker, cause_of_death
from pipeline.io.slots import Pin, is_in_slot
from pipeline.io.types import FrameRead
from pipeline.io.wire import MalformedError
from pipeline.types import Failure, Header, Plane, Slice, Voi
from stores.errors import Reason, UnreadableError

# Pixels that may lie in the memory of the workers, all together; and those that may wait for the
# caller beside them before the workers do.
_SLOT_BYTES = 2**28
_LEAST_SLOT_BYTES = 2**25  # of one worker: a large batch may wait for a card, and one be read
_AHEAD_BYTES = 2**27
_AHEAD_FILES = 64  # a worker
# Each look at what has come costs, and each waking of the caller. So messages gather until a look
# takes a quarter to a half of the results that the caller takes at once, and for each of these no
# longer than so many seconds. A worker has as many frames before it: it works meanwhile.
_AT_ONCE = range(16, 65)
_SHORTEST_S = 0.004
_PATIENCE_S = 0.003
_DIGEST_BYTES = 32
# Processes that may be killed from outside as they start before the run gives up.
_KILLED_STARTS = 5

# What comes of a task: its slices one by one, then the task itself, which tells how it ended.
Result = FrameRead | FileTask


def headers_in_workers(
    root: Path,
    paths: Iterable[str],
    plane: Plane,
    tags: tuple[str, ...],
    workers: int,
    time_limit_s: float,
) -> Iterator[list[Header] | UnreadableError]:
    """Yield the headers of each file, or why it has none, in order."""
    upcoming = iter(paths)
    with contextlib.closing(WorkerPool(root, plane, workers, time_limit_s)) as pool:
        while True:
            # Before the wait: these are read while the caller has the next headers.
            while pool.has_room() and (path := next(upcoming, None)) is not None:
                pool.submit(FileTask(path, None, tags))
            if not pool.in_flight:
                return
            result = pool.next_result()
            if isinstance(result, FileTask):
                yield _headers(result)
            pool.release(result)


def _headers(task: FileTask) -> list[Header] | UnreadableError:
    """Return what a finished task for headers brought."""
    assert task.end is not None
    if "reason" in task.end:
        return UnreadableError(task.end["reason"], task.end["detail"])
    return [_header(values) for values in task.end["headers"]]


def _header(values: dict[str, Any]) -> Header:
    """Return a Header from its JSON, whose tuples came as lists."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    return Header(**fields)


def start_reader(width: int) -> None:
    """Have a worker start for the next pool, unless one waits: its caller has something to do.

    width: workers of that pool; of none, nothing starts.
    """
    if width:
        IDLE.put(IDLE.take() or _new_worker(width))


def _new_worker(width: int) -> Worker:
    """Begin a worker, one of so many."""
    return Worker(max(_SLOT_BYTES // width, _LEAST_SLOT_BYTES))


class WorkerPool:
    """Workers, and the thread that assigns them files and collects what they send.

    The caller's thread submits tasks, and takes and releases results. The pool's own thread alone
    has the workers, and the tasks once they were submitted.
    """

    def __init__(
        self,
        root: Path,
        plane: Plane,
        workers: int,
        time_limit_s: float,
        pin: Pin | None = None,
        at_once: int = 1,
    ) -> None:
        """pin: has a card read the memory in which pixels lie.

        at_once: of how many results the caller makes something together, as of a batch.
        """
        self.pin = pin
        self.at_once = min(max(at_once, _AT_ONCE.start), _AT_ONCE.stop - 1)
        self.root = root
        self.plane = plane
        self.time_limit_s = time_limit_s
        self.width = workers
        self.results: queue.SimpleQueue[list[Result] | BaseException] = queue.SimpleQueue()
        self.in_hand: deque[Result] = deque()  # taken from `results` by the caller's thread
        self.submitted: deque[FileTask] = deque()  # not begun yet
        self.begun: deque[FileTask] = deque()  # in order; what comes of the first is published
        self.interrupted: deque[FileTask] = deque()  # of these, those whose worker was killed
        self.workers: list[Worker] = []
        self.killed_starts = 0  # workers killed one after another before they were ready
        self.in_flight = 0  # tasks submitted and not released
        self.bytes_waiting = 0  # pixels received and not released, but for those in slots
        self.lock = threading.Lock()  # of bytes_waiting
        self.stop = threading.Event()
        self.bell, self.heard = socket.socketpair()  # wakes the thread from its wait
        self.rung = False  # and not heard yet
        self.pause_s = _SHORTEST_S  # between two looks at what has come
        self.slots_full = False  # at the last look: pixels came by a socket
        self.selector = selectors.DefaultSelector()  # of `heard`, and of each worker's connection
        self.selector.register(self.heard, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._work, name="radprobe-read", daemon=True)
        self.thread.start()

    # --- for the caller's thread -----------------------------------------------------------

    def has_room(self) -> bool:
        """Return whether another file may be begun: what waits for the caller is bounded."""
        few = self.in_flight < _AHEAD_FILES * self.width and not self._is_full()
        return few or not self.in_flight

    def submit(self, task: FileTask) -> None:
        """Take on a task."""
        self.in_flight += 1
        # With others before it, the thread comes back for it once the workers have room.
        is_first = not self.submitted
        self.submitted.append(task)
        if is_first:
            self._wake()

    def next_result(self) -> Result:
        """Wait for the next result and return it. Raises what ended the pool's thread."""
        while not self.in_hand:
            results = self.results.get()
            if isinstance(results, BaseException):
                raise results
            self.in_hand += results
        return self.in_hand.popleft()

    def release(self, result: Result) -> None:
        """Note that the caller is through with a task, or with one of its slices."""
        if isinstance(result, FileTask):
            self.in_flight -= 1
            size = 0
        else:
            size = _size(result)
        was_full = self._is_full()
        if size:
            with self.lock:
                self.bytes_waiting -= size
        # A full pool's thread waits until no result is left, which may be so now, even where this
        # was the end of a file and made no room.
        if was_full:
            self._wake()

    def close(self) -> None:
        """End the thread, and the workers that are at a file; the others wait for the next pool."""
        self.stop.set()
        self._wake()
        self.thread.join()
        self.bell.close()
        self.heard.close()

    def _wake(self) -> None:
        if not self.rung:  # once is enough; the caller's thread alone rings
            self.rung = True
            self.bell.send(b"!")

    def _is_full(self) -> bool:
        return self.bytes_waiting >= _AHEAD_BYTES

    # --- in the pool's thread --------------------------------------------------------------

    def _work(self) -> None:
        """Listen, assign and publish until the pool is closed."""
        try:
            while not self.stop.is_set():
                messages = self._listen()
                self._assign()
                self._publish()
                if messages and not self._is_full():
                    self._gather(messages)
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.results.put(error)
        finally:
            for worker in self.workers:
                self._leave(worker)
            self.selector.close()

    def _assign(self) -> None:
        """Give workers their next files."""
        # Interrupted ones first: later results wait for theirs. They are in `begun` already.
        while self.interrupted:
            worker = self._idle_worker()
            if worker is None:
                return
            self._start(worker, [self.interrupted.popleft()])
        while self.submitted:
            worker = self._idle_worker()
            if worker is None:
                break
            self._start(worker, self._begin(worker.room(self.at_once), at_least=1))
        for worker in self.workers:
            room = worker.room(self.at_once)
            if worker.ready and room >= self.at_once // 2:
                self._start(worker, self._begin(room, at_least=0, text=worker.text_room()))

    def _begin(self, room: int, at_least: int, text: int | None = None) -> list[FileTask]:
        """Return the next tasks for one worker, which has room for so many frames.

        No more than its share of what is left: near the end, nobody waits for one who has several.
        text: bytes of the message that hands them over, to a worker that may not take it at once.
        """
        tasks: list[FileTask] = []
        share = max(at_least, len(self.submitted) // self.width)
        while len(tasks) < share and room > 0:
            if text is not None:
                text -= self.submitted[0].text_bytes()
                if text < 0:
                    break
            task = self.submitted.popleft()
            tasks.append(task)
            room -= task.frames_to_come()
        self.begun += tasks
        return tasks

    def _start(self, worker: Worker, tasks: list[FileTask]) -> None:
        if tasks:
            worker.start(self.root, tasks, self.plane, self.time_limit_s)

    def _idle_worker(self) -> Worker | None:
        """Return a worker that waits for a file; else begin another, if there may be one more."""
        for worker in list(self.workers):
            if worker.ready and not worker.tasks:
                if worker.is_usable():
                    return worker
                self._remove(worker)
        if len(self.workers) == self.width:
            return None
        worker = IDLE.take() or _new_worker(self.width)
        if self.pin is not None and worker.slots is not None:
            worker.slots.pin(self.pin)
        self.workers.append(worker)
        self.selector.register(worker.wire, selectors.EVENT_READ, worker)
        return worker if worker.ready else None  # it will say when it is

    def _gather(self, messages: int) -> None:
        """Pause, longer where the last look took few messages; not where few are to come."""
        few = self.at_once // 4
        if messages < few:
            self.pause_s = min(2 * self.pause_s, self.at_once * _PATIENCE_S)
        elif messages > 2 * few:
            self.pause_s = max(self.pause_s / 2, _SHORTEST_S)
        if self.slots_full:
            return  # workers wait until somebody listens
        if sum(worker.frames_to_come() for worker in self.workers) >= few:
            self.stop.wait(self.pause_s)

    def _listen(self) -> int:
        """Take the messages that have come, waiting for the first; return how many."""
        messages = 0
        self.slots_full = False
        for key in self._readable():
            if messages and self._is_full():
                break  # who has sent something else is listened to once there is room
            worker: Worker | None = key.data
            if worker is None:
                self.heard.recv(4096)
                self.rung = False  # before what was submitted is looked at: none is missed
                continue
            try:
                for message in worker.inbox.waiting():
                    messages += 1
                    self._take(worker, message)
            except MalformedError as error:
                if worker.tasks:
                    detail = f"its reading process sent {error}"
                    worker.tasks.popleft().fail("corrupt", detail)
                self._replace(worker)
            except (EOFError, OSError):
                self._replace_dead(worker)
        return messages

    def _readable(self) -> list[selectors.SelectorKey]:
        """Wait for a message, and return whose have come: of few where memory is full."""
        if not self._is_full():
            return [key for key, _ in self.selector.select()]
        keys = {self.selector.get_key(self.heard)}
        for worker in self.workers:
            # The caller waits for this one's slices, and nothing else can make room.
            is_next = worker.tasks and worker.tasks[0] is self.begun[0]
            if (is_next and self._caller_waits()) or not worker.ready:
                keys.add(self.selector.get_key(worker.wire))
        by_wire = {key.fileobj: key for key in keys}
        return [by_wire[wire] for wire in wait(by_wire)]  # type: ignore[arg-type]

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        """Note what a worker sent: that it is ready, a slice, or the end of its file.

        Raises MalformedError, EOFError, OSError.
        """
        if not worker.ready:
            worker.ready = True
            self.killed_starts = 0
            return
        if not worker.tasks:
            raise MalformedError("a message that nobody waits for")
        task = worker.tasks[0]
        if "fault" in message:
            raise ImportError(message["fault"])
        if "frame" in message:
            read = _frame_read(worker, task, message)
            task.reads.append(read)
            task.received += 1
            if size := _size(read):
                self.slots_full = True
                with self.lock:
                    self.bytes_waiting += size
        if "end" in message:
            task.end = message
            worker.tasks.popleft()

    def _publish(self) -> None:
        """Pass on what has come of the first task, and of those behind it that it held up."""
        results: list[Result] = []
        while self.begun:
            task = self.begun[0]
            results += task.reads
            task.reads.clear()
            if task.end is None:
                break
            results.append(self.begun.popleft())
        if results:
            self.results.put(results)

    def _caller_waits(self) -> bool:
        """Return whether the caller has no result left."""
        return self.results.empty() and not self.in_hand

    def _replace_dead(self, worker: Worker) -> None:
        """Remove a dead worker; its unread slices fail, or its file is begun again by another."""
        code = worker.process.wait()
        if not worker.ready and code == -signal.SIGKILL and self.killed_starts < _KILLED_STARTS:
            self.killed_starts += 1
            self._remove(worker)
            return
        if not worker.ready:
            raise RuntimeError(
                f"A reading process ended with exit code {code} before its first file; "
                f"`{sys.executable} -m pipeline.io.worker` must be able to start."
            )
        if worker.tasks:
            task = worker.tasks.popleft()
            # Killed from outside, most likely for the memory of others: once more, from the slice
            # that had not come. A second time, it is this file that takes too much.
            if code == -signal.SIGKILL and not task.restarted:
                task.restarted = True
                self.interrupted.append(task)
            else:
                task.fail(*cause_of_death(code, self.time_limit_s))
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Remove a worker; another one begins the files that waited for it."""
        self.interrupted += worker.tasks
        self._remove(worker)

    def _leave(self, worker: Worker) -> None:
        """Leave a worker to the next pool; end one that is at a file."""
        self.selector.unregister(worker.wire)
        IDLE.put(worker)

    def _remove(self, worker: Worker) -> None:
        self.selector.unregister(worker.wire)
        worker.close()
        self.workers.remove(worker)


def _frame_read(worker: Worker, task: FileTask, message: dict[str, Any]) -> FrameRead:
    """Return what a worker's message tells of the next slice of its file, and the pixels behind it.

    Raises MalformedError, EOFError, OSError.
    """
    try:
        item = _item(worker, message)
        file, pixels = map(_digest, (message["file"], message["pixels"]))
        if isinstance(item, Slice) and (file is None or pixels is None):
            raise ValueError("a slice without its digests")
        read = FrameRead(item, file, pixels, float(message["seconds"]))
        is_next = task.frames is not None and item.frame == task.frames[task.received]
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise MalformedError("a slice that is none") from None
    if not is_next:
        raise MalformedError("another slice than the next one")
    return read


def _item(worker: Worker, message: dict[str, Any]) -> Slice | Failure:
    """Return the slice of a message, or why there is none; of ill values, any of some errors."""
    frame = int(message["frame"])
    if "reason" in message:
        if message["reason"] not in get_args(Reason):
            raise ValueError("no reason of ours")
        return Failure(frame, message["reason"], str(message["detail"]))
    return Slice(frame, worker.inbox.receive_pixels(message), _voi(message["voi"]))


def _digest(value: str | None) -> str | None:
    """Return a SHA-256 in hexadecimal as it is; of anything else, ValueError or TypeError."""
    if value is not None and len(bytes.fromhex(value)) != _DIGEST_BYTES:
        raise ValueError("no digest")
    return value


def _voi(values: dict[str, Any] | None) -> Voi | None:
    """Return a Voi from its JSON, whose tuple came as a list."""
    if values is None:
        return None
    ends = float(values["low"]), float(values["high"])
    table = tuple(map(float, values["table"]))
    if values["shape"] not in ("linear", "sigmoid", "table"):
        raise ValueError("no shape of ours")
    return Voi(*ends, values["shape"], table)


def _size(read: FrameRead) -> int:
    """Return the bytes of a slice's pixels, if they lie in no slot; 0 for a failure."""
    if isinstance(read.item, Failure) or is_in_slot(read.item.pixels):
        return 0
    return read.item.pixels.nbytes
