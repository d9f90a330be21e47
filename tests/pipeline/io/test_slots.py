"""Pixels in shared memory: bits, room, leaks, and processes that write where they may not."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.io.idle import IDLE
from pipeline.io.reader import read_files
from pipeline.io.slots import BrokenSlotError, SlotMemory, SlotWriter, is_in_slot
from pipeline.io.types import Request
from pipeline.io.wire import Inbox, MalformedError, send, send_pixels
from pipeline.types import Failure, Slice
from tests import phantoms
from tests.pipeline.io.samples import GREY

MIB = 2**20


@pytest.fixture(autouse=True)
def none_idle() -> Iterator[None]:
    IDLE.close()
    yield
    IDLE.close()


@pytest.fixture
def memory() -> Iterator[SlotMemory]:
    memory = SlotMemory(MIB)
    yield memory
    memory.close_file()


def _left(memory: SlotMemory) -> int:
    """Return how many slots are taken."""
    return sum(memory.bytes[:4096])


def _pixels(k: int, side: int = 200) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 255, (side, side), np.uint8)


def _come(memory: SlotMemory, place: dict[str, int], like: np.ndarray) -> np.ndarray:
    return memory.pixels(place["slot"], place["at"], like.shape, like.dtype)


def test_slots_are_given_out_again_in_whatever_order_they_come_back(memory):
    writer = SlotWriter(memory.fd)
    rng = np.random.default_rng(0)
    held: dict[int, np.ndarray] = {}
    refused = 0
    for k in range(1200):
        pixels = _pixels(k, int(rng.integers(1, 300)))
        place = writer.put(pixels)
        if place is None:
            refused += 1
            del held[rng.choice(list(held))]
            continue
        held[k] = _come(memory, place, pixels)
        for j in held:  # nothing was written over what is held
            if j % 7 == k % 7:
                np.testing.assert_array_equal(held[j][0], _pixels_row(j, held[j]))
        while len(held) > rng.integers(2, 40):
            del held[rng.choice(list(held))]
    assert refused
    assert _left(memory) == len(held)
    held.clear()
    assert not _left(memory)


def _pixels_row(k: int, like: np.ndarray) -> np.ndarray:
    return _pixels(k, like.shape[0])[0]


def test_a_view_keeps_its_slot(memory):
    writer = SlotWriter(memory.fd)
    pixels = _pixels(1)
    view = _come(memory, writer.put(pixels), pixels)[5:9].T
    assert _left(memory) == 1
    np.testing.assert_array_equal(view, pixels[5:9].T)
    del view
    assert not _left(memory)


def test_no_more_of_the_memory_is_touched_than_waits_at_a_time(memory):
    writer = SlotWriter(memory.fd)
    held: list[np.ndarray] = []
    ends: list[int] = []
    for k in range(100):
        pixels = _pixels(k, 100 + k % 2)
        place = writer.put(pixels)
        held = [*held[-2:], _come(memory, place, pixels)]
        ends.append(place["at"] + pixels.nbytes)
    assert max(ends) < 4096 + 5 * (101**2 + 100)


def test_what_has_no_room_is_refused(memory):
    writer = SlotWriter(memory.fd)
    assert writer.put(np.zeros(MIB, np.uint8)) is None
    pixels = np.zeros(MIB - 8, np.uint8)
    place = writer.put(pixels)
    assert _come(memory, place, pixels).size == MIB - 8
    assert writer.put(pixels) is not None  # nobody held it


@pytest.mark.parametrize(
    "place",
    [
        {"slot": -1, "at": 4096},
        {"slot": 4096, "at": 4096},
        {"slot": True, "at": 4096},
        {"slot": 0, "at": 0},
        {"slot": 0, "at": 4100},
        {"slot": 0, "at": 4096 + MIB},
        {"slot": 0, "at": -64},
        {"slot": 0, "at": 2**70},
        {"slot": 0, "at": "4096"},
        {"slot": 0},
    ],
    ids=str,
)
def test_a_slot_that_cannot_be_is_no_message(memory, place):
    SlotWriter(memory.fd).put(_pixels(1))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(theirs, {"dtype": "uint8", "shape": [200, 200], **place})
        inbox = Inbox(ours, memory)
        with pytest.raises(MalformedError):
            inbox.receive_pixels(inbox.receive())


def test_pixels_that_run_beyond_their_slot_are_not_believed(memory):
    place = SlotWriter(memory.fd).put(_pixels(1))
    with pytest.raises(BrokenSlotError, match="more pixels"):
        memory.pixels(place["slot"], place["at"], (200, 201), np.dtype(np.uint8))


def test_the_memory_cannot_shrink_beneath_its_parent(memory):
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)


@pytest.mark.parametrize(
    "message",
    [
        b"not json",
        b"[1, 2]",
        b'"text"',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_named(message):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(message).to_bytes(4, "little") + message)
        with pytest.raises(MalformedError):
            Inbox(ours).receive()


def test_a_message_without_end_takes_no_memory():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(MalformedError, match="4294967295 bytes"):
            Inbox(ours).receive()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("object", [2]), ("float64", [2]), ("uint8", [2**40]), ("uint8", [-1, 2]), ("uint8", "ab")],
)
def test_pixels_that_cannot_be_are_named(dtype, shape):
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MalformedError):
        Inbox(ours).receive_pixels({"dtype": dtype, "shape": shape})


def test_pixels_and_messages_come_in_turn_by_slot_and_by_socket(memory):
    ours, theirs = socket.socketpair()
    writer = SlotWriter(memory.fd)
    with ours, theirs:
        inbox = Inbox(ours, memory)
        for k in range(6):
            send_pixels(theirs, {"k": k}, _pixels(k, 20), writer if k % 2 else None)
        came = []
        while len(came) < 6:
            for message in inbox.waiting():
                came.append((message["k"], inbox.receive_pixels(message)))
    assert [k for k, _ in came] == list(range(6))
    for k, pixels in came:
        np.testing.assert_array_equal(pixels, _pixels(k, 20))
        assert is_in_slot(pixels) == bool(k % 2)


HOSTILE = """
import sys
from pipeline.io import slots, worker

put = slots.SlotWriter.put
files = 0

def hostile(self, pixels):
    global files
    files += 1
    place = put(self, pixels)
    if files == {which}:
        {deed}
    return place

slots.SlotWriter.put = hostile
worker.main(*map(int, sys.argv[1:]))
"""

BEYOND = "self._bytes[place['at'] + pixels.nbytes] ^= 255"
ELSEWHERE = "place['at'] += 64"
NEVER = "place['slot'] = 10**9"
ANOTHER = "place['frame'] = 7"
GARBAGE = "import os; os.write(int(sys.argv[1]), b'garbage')"
SHAPE = "place['shape'] = [2**20, 2**20]"
DIGEST = "place['pixels'] = 'no digest'"
NO_DIGEST = "place['file'] = None"
INFINITE = "place['frame'] = float('inf')"


@pytest.mark.parametrize(
    "deed", [BEYOND, ELSEWHERE, NEVER, ANOTHER, GARBAGE, SHAPE, DIGEST, NO_DIGEST, INFINITE]
)
def test_a_process_that_writes_what_it_may_not_costs_its_file_alone(tmp_path, monkeypatch, deed):
    for k in range(6):
        phantoms.write_png(tmp_path / f"{k}.png", np.full((40, 40), k, np.uint8))
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE.format(which=4, deed=deed))
    _start_instead(monkeypatch, script)
    requests = [Request(f"{k}.png", (0,)) for k in range(6)]
    items = [read.item for read in read_files(tmp_path, requests, workers=1)]
    # Each process is hostile at its fourth file: the next one begins behind it.
    failed = [k for k, item in enumerate(items) if isinstance(item, Failure)]
    assert failed == [3]
    for k in failed:
        assert items[k].reason == "corrupt"
        assert "its reading process sent" in items[k].detail
    for k in set(range(6)) - set(failed):
        assert (items[k].pixels == k).all()


def _start_instead(monkeypatch, script: Path) -> None:
    """Have reading processes start by a script that is handed the same files."""
    from pipeline.io import process

    popen = process.subprocess.Popen

    def start(command, **options):
        handed = command[command.index("pipeline.io.worker") + 1 :]
        return popen([sys.executable, str(script), *handed], **options)

    monkeypatch.setattr(process.subprocess, "Popen", start)


def test_no_slot_is_lost_with_readers_that_are_killed(tmp_path):
    """Killed at random moments, while the caller holds some of what came."""
    voxels = np.random.default_rng(0).integers(0, 3000, (24, 256, 256), np.int16)
    np.save(tmp_path / "a.npy", voxels)
    phantoms.write_png(tmp_path / "b.png", GREY)
    requests = [Request("a.npy", tuple(range(24))), Request("b.png", (0,))] * 10
    rng = np.random.default_rng(1)
    at = set(rng.choice(250, 8, replace=False).tolist())
    held: list[Slice] = []
    seen = 0
    with closing(read_files(tmp_path, requests, workers=2)) as reads:
        for k, read in enumerate(reads):
            if k in at:
                _kill_one(rng)
            if isinstance(read.item, Failure):
                assert read.item.reason == "killed"  # twice within one file
                continue
            seen += 1
            expected = voxels[read.item.frame] if k % 25 < 24 else GREY
            np.testing.assert_array_equal(read.item.pixels, expected)
            if rng.random() < 0.2:
                held.append(read.item)
        assert k == 249
    assert seen > 200
    held.clear()
    del read
    IDLE.close()
    gc.collect()
    assert "radprobe-slots" not in Path("/proc/self/maps").read_text()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if _is_of_slots(fd)]


def _is_of_slots(fd: Path) -> bool:
    try:
        return "radprobe-slots" in os.readlink(fd)
    except FileNotFoundError:  # of the listing itself
        return False


def _kill_one(rng: np.random.Generator) -> None:
    pids = _children()
    if pids:  # none where the one before was the last
        os.kill(int(rng.choice(pids)), signal.SIGKILL)


def _children() -> list[int]:
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    return pids


def test_a_forked_process_takes_no_slot_from_its_parent(tmp_path: Path) -> None:
    """Where it lets go of pixels, and where it ends, its parent has them all the same."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(40):
        phantoms.write_png(folder / f"{k:02}.png", _pixels(k))
    requests = [Request(path.name, (0,)) for path in sorted(folder.iterdir())]
    expected = [read.item.pixels for read in read_files(folder, requests, workers=0)]
    with closing(read_files(folder, requests, workers=1)) as reads:
        held = [next(reads).item.pixels for _ in range(10)]
        assert any(map(is_in_slot, held))
        child = os.fork()
        if not child:
            held.clear()
            gc.collect()
            assert IDLE.take() is None
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        held += [read.item.pixels for read in reads]
    for pixels, wanted in zip(held, expected, strict=True):
        np.testing.assert_array_equal(pixels, wanted)
