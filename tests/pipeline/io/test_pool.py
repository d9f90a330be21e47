"""Reading processes: order, crashes, time limits, memory, and their end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.io.idle import IDLE
from pipeline.io.pool import Result, WorkerPool
from pipeline.io.process import FileTask
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.types import Failure, Slice
from tests import phantoms
from tests.pipeline.io.samples import GREY
from tests.waiting import until


@pytest.fixture(autouse=True)
def none_idle() -> None:
    """A test counts, and kills, the processes of its own pools alone."""
    IDLE.close()


@pytest.fixture
def no_slots(monkeypatch) -> None:
    """No room for pixels in shared memory: all of them come by the socket."""
    monkeypatch.setattr("pipeline.io.pool._SLOT_BYTES", 2**10)
    monkeypatch.setattr("pipeline.io.pool._LEAST_SLOT_BYTES", 2**10)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for k in range(12):
        phantoms.write_png(tmp_path / f"{k:02d}.png", np.full((16, 16), k, np.uint8))
    (tmp_path / "03.png").write_bytes(b"nothing of worth")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_requests_come_back_in_order_and_nothing_shifts(mixed, workers):
    requests = [Request(f"{k:02d}.png", (0,)) for k in range(12)] + [Request("gone.png", (0, 5))]
    reads = list(read_files(mixed, requests, workers=workers))
    for k, read in enumerate(reads[:12]):
        if k == 3:
            assert read.item == Failure(0, "not-an-image", "no known image format")
        else:
            assert read.item.pixels[0, 0] == k
            assert len(read.pixel_digest) == 64
        assert len(read.file_digest) == 64
    assert [(read.item.frame, read.item.reason) for read in reads[12:]] == [
        (0, "vanished"),
        (5, "vanished"),
    ]
    assert reads[12].file_digest is None


def _reading_children() -> set[int]:
    children = set()
    for task in Path("/proc/self/task").iterdir():
        children |= set(map(int, (task / "children").read_text().split()))
    return {
        pid
        for pid in children
        if b"pipeline.io.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def _is_asleep(task: str | int, process: str | int = "self") -> bool:
    """Return whether a thread waits for something; one that is only out of turn does not."""
    state = Path(f"/proc/{process}/task/{task}/stat").read_text().rpartition(") ")[2]
    return state.startswith("S")


def _workers_wait() -> bool:
    """Return whether there are workers, and all of them wait: for a task, or for their parent."""
    pids = _reading_children()
    # One that looks asleep may be about to wake: it is looked at again.
    return bool(pids) and all(_is_asleep(pid, pid) for _ in range(20) for pid in pids)


@contextmanager
def ended(pids: Iterable[int]) -> Iterator[None]:
    """Wait at the end of the block until the processes have ended; they need not be ours."""
    handles = [os.pidfd_open(pid) for pid in pids]
    yield
    for handle in handles:
        readable, _, _ = select.select([handle], [], [], 30)
        assert readable, "a process goes on"
        os.close(handle)


class WatchedPool(WorkerPool):
    """A pool that says when its thread comes round to listening again."""

    def __init__(self, *args) -> None:
        self.listens = threading.Event()
        super().__init__(*args)

    def _listen(self) -> int:
        self.listens.set()
        return super()._listen()

    def next_within(self, seconds: float) -> Result:
        if not self.in_hand:
            self.in_hand += self.results.get(timeout=seconds)
        return self.in_hand.popleft()


def test_a_file_that_crashes_its_worker_is_one_failed_file(mixed):
    requests = (Request(f"{k:02d}.png", (0,)) for k in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11))
    with closing(read_files(mixed, requests, workers=1)) as reads:
        first = next(reads)
        # Whatever the worker is at: a crash, as a decoder's would be.
        for pid in _reading_children():
            os.kill(pid, signal.SIGSEGV)
        rest = list(reads)
    reads = [first, *rest]
    assert len(reads) == 11
    failed = [read.item for read in reads if isinstance(read.item, Failure)]
    assert len(failed) <= 1
    assert all(item.reason == "corrupt" for item in failed)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_worker_killed_within_a_file_is_replaced_once(tmp_path, monkeypatch, kills):
    """What had come stands, another goes on with the rest, and nothing shifts."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**21)
    voxels = np.random.default_rng(0).integers(0, 3000, (120, 512, 512), np.int16)
    np.save(tmp_path / "long.npy", voxels)
    phantoms.write_png(tmp_path / "a.png", GREY)
    requests = [Request("long.npy", tuple(range(120))), Request("a.png", (0,))]
    items, killed = [], set()
    with closing(read_files(tmp_path, requests, workers=1)) as reads:
        for k, read in enumerate(reads):
            items.append(read.item)
            if k in (1, 40)[:kills]:
                killed |= (alive := _reading_children())
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
    assert len(killed) == kills
    assert [item.frame for item in items] == [*range(120), 0]
    bad = [item for item in items if isinstance(item, Failure)]
    assert len(bad) == 0 if kills == 1 else 40 < len(bad) < 80
    assert {item.reason for item in bad} <= {"killed"}
    assert isinstance(items[120], Slice)
    for item in items[: 120 - len(bad)]:
        np.testing.assert_array_equal(item.pixels, voxels[item.frame])


def test_long_files_do_not_fill_the_memory(tmp_path, monkeypatch, no_slots):
    """Three workers with 192 MB each to send, and a caller who takes his time."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**24)
    long = np.lib.format.open_memmap(tmp_path / "long.npy", "w+", np.float32, (48, 512, 512))
    long[:] = np.random.default_rng(0).random((512, 512), np.float32)
    request = Request("long.npy", tuple(range(48)))
    tracemalloc.start()
    try:
        with closing(read_files(tmp_path, [request] * 4, workers=3)) as reads:
            for k, read in enumerate(reads):
                assert isinstance(read.item, Slice)
                if k == 10:
                    until(lambda: tracemalloc.get_traced_memory()[0] > 2**24)
                    until(_workers_wait)  # they have sent what they may
                    assert 2**24 < tracemalloc.get_traced_memory()[0] < 2**24 + 5 * 2**20
        assert k == 4 * 48 - 1
        assert tracemalloc.get_traced_memory()[1] < 2**24 + 6 * 2**20
    finally:
        tracemalloc.stop()


def test_readers_whose_pixels_find_no_slot_are_listened_to_at_once(tmp_path, no_slots):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((40, 64, 64), np.float32))
    pool = WorkerPool(tmp_path, "axial", 1, 60.0, at_once=64)
    pauses: list[float] = []
    pool.stop.wait = pauses.append
    try:
        pool.submit(FileTask("a.npy", tuple(range(40))))
        for _ in range(41):  # its end among them
            pool.release(pool.next_result())
        assert len(pauses) <= 1  # once the worker was ready
    finally:
        pool.close()


def test_the_end_of_a_file_wakes_readers_that_wait_for_room(tmp_path, monkeypatch, no_slots):
    """A slow file behind a short one, and a third that has filled all room in the meantime."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**20)
    phantoms.write_png(tmp_path / "short.png", GREY)
    slow = nib.Nifti1Image(np.zeros((256, 256, 400), np.float32), np.eye(4))
    nib.save(slow, tmp_path / "slow.nii.gz")
    np.save(tmp_path / "long.npy", np.random.default_rng(0).random((8, 512, 512), np.float32))
    pool = WatchedPool(tmp_path, "axial", 2, 60.0)
    try:
        for name in ("short.png", "slow.nii.gz", "long.npy"):
            pool.submit(FileTask(name, tuple(range(8)) if name == "long.npy" else (0,)))
        came = [pool.next_within(30)]
        while pool.bytes_waiting < 2**20:
            pool.listens.clear()
            assert pool.listens.wait(30)
        while len(came) < (1 + 1 + 8) + 3:  # the slices, and the end of each file
            pool.listens.clear()
            pool.release(came[-1])
            pool.listens.wait(0.2)  # with one more in the queue; where it was not woken, it waits
            came.append(pool.next_within(10))
        assert [task.path for task in came if isinstance(task, FileTask)] == [
            "short.png",
            "slow.nii.gz",
            "long.npy",
        ]
    finally:
        pool.close()


def test_a_file_that_never_ends_is_stopped_by_its_time_limit(tmp_path):
    # A file that takes many times the limit: to the reader, no different from no end.
    pages = Image.fromarray(np.zeros((1200, 1200), np.uint8))
    pages.save(tmp_path / "slow.tif")
    phantoms.write_png(tmp_path / "a.png", GREY)
    frames = (0,) * 3000
    requests = [Request("slow.tif", frames), Request("a.png", (0,))]
    *slow, fast = read_files(tmp_path, requests, workers=1, time_limit_s=2.0)
    assert [read.item.frame for read in slow] == list(frames)
    failed = [k for k, read in enumerate(slow) if isinstance(read.item, Failure)]
    # What came in time stands; the rest fails, and the next file is read.
    assert failed == list(range(failed[0], len(frames)))
    assert {slow[k].item.reason for k in failed} == {"time-limit"}
    assert {slow[k].file_digest for k in failed} == {None}
    assert isinstance(fast.item, Slice)


def test_a_file_that_takes_too_long_to_open_fails_as_a_whole(tmp_path):
    # The time it takes to import what reads the file is beyond the limit.
    pages = [Image.fromarray(np.zeros((600, 600), np.uint8)) for _ in range(150)]
    pages[0].save(tmp_path / "slow.tif", save_all=True, append_images=pages[1:])
    reads = read_files(
        tmp_path, [Request("slow.tif", tuple(range(150)))], workers=1, time_limit_s=0.005
    )
    items = [read.item for read in reads]
    assert [item.frame for item in items] == list(range(150))
    assert {item.reason for item in items} == {"time-limit"}


def test_a_slow_caller_is_not_a_slow_file(mixed):
    # More files than are read ahead, so that the worker must wait for the caller.
    requests = [Request("00.png", (0,))] * 200
    items = []
    for k, read in enumerate(read_files(mixed, requests, workers=1, time_limit_s=1.0)):
        time.sleep(1.2 if k == 100 else 0)
        items.append(read.item)
    assert len(items) == 200
    assert all(isinstance(item, Slice) for item in items)


def test_a_worker_that_died_idle_costs_no_file(mixed):
    with closing(read_files(mixed, [Request("00.png", (0,))] * 200, workers=1)) as reads:
        first = next(reads)
        until(_workers_wait)  # the files ahead are read
        pids = _reading_children()
        with ended(pids):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        items = [read.item for read in (first, *reads)]
    assert len(items) == 200
    assert all(isinstance(item, Slice) for item in items)


def test_closing_early_leaves_no_process_and_no_thread(mixed):
    requests = (Request(f"{k % 12:02d}.png", (0,)) for k in range(10_000))
    reads = read_files(mixed, requests, workers=2)
    next(reads)
    assert _reading_children()
    reads.close()
    IDLE.close()  # those that were at no file
    assert not _reading_children()
    assert not [t for t in threading.enumerate() if t.name == "radprobe-read"]


def test_requests_are_taken_by_and_by(mixed):
    taken = []

    def requests():
        for k in range(1000):
            taken.append(k)
            yield Request("00.png", (0,))

    reads = read_files(mixed, requests(), workers=1)
    next(reads)
    assert len(taken) < 100  # they are taken by this thread, and by no other
    reads.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent_and_never_import_torch(mixed, ending):
    script = """
import json, signal, sys
from pathlib import Path
from pipeline.io.reader import read_files
from pipeline.io.types import Request

requests = (Request("00.png", (0,)) for _ in range(10**6))
reads = read_files(Path(sys.argv[1]), requests, workers=2)
next(reads)
tasks = Path("/proc/self/task").iterdir()
pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
print(json.dumps([pids, "libtorch" in maps, "torch" in sys.modules]), flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", script, str(mixed)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as parent:
        pids, torch_there, torch_here = json.loads(parent.stdout.readline())
        assert pids
        with ended(map(int, pids)):
            parent.send_signal(ending)
    assert not torch_there
    assert not torch_here


def test_a_worker_that_cannot_start_is_an_error_not_a_bad_file(mixed, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="reading process"):
        list(read_files(mixed, [Request("00.png", (0,))], workers=1))


def test_a_worker_starts_without_what_it_may_never_need():
    code = "import sys, pipeline.io.worker; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pyarrow", "torch", "zarr", "pydicom", "nibabel", "PIL", "h5py", "imagecodecs"}
    assert not heavy & set(done.stdout.split())


def test_workers_and_this_process_read_the_same(tmp_path):
    path = phantoms.write_enhanced(tmp_path / "a", phantoms.volume(4), [1.0, 2.0, 0.5, 3.0])
    request = Request(path.name, (3, 0))
    here, there = (list(read_files(tmp_path, [request], workers=w)) for w in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert (a.file_digest, a.pixel_digest) == (b.file_digest, b.pixel_digest)
        np.testing.assert_array_equal(a.item.pixels, b.item.pixels)
        assert (a.item.frame, a.item.voi) == (b.item.frame, b.item.voi)


def test_a_worker_that_waits_for_its_parent_is_not_waited_for(tmp_path, monkeypatch):
    """It takes no message while nobody takes its pixels: a long one would be sent for ever."""
    for name in ("_SLOT_BYTES", "_LEAST_SLOT_BYTES", "_AHEAD_BYTES"):
        monkeypatch.setattr(f"pipeline.io.pool.{name}", 2**22)
    IDLE.close()
    large = np.random.default_rng(0).normal(size=(700, 700, 30)).astype(np.float32)
    nib.save(nib.Nifti1Image(large, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 50, 1000), np.int16), np.eye(4)), tmp_path / "b.nii")
    requests = [Request("a.nii", tuple(range(30))), Request("b.nii", tuple(range(50_000)))]
    held = []
    with closing(read_files(tmp_path, requests, workers=1)) as reads:
        for _ in range(30):
            held.append(next(reads))
            time.sleep(0.02)  # the worker has the next, and no room for it
        assert next(reads).item.frame == 0
    IDLE.close()
