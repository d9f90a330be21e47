"""A bounded queue of files to read: what both of its makings do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.io.read_queue import ReadQueue, open_read_queue
from pipeline.io.types import Request
from pipeline.types import Failure, Slice
from tests import phantoms


@pytest.fixture
def root(tmp_path: Path) -> Path:
    np.save(tmp_path / "volume.npy", phantoms.volume(4))
    phantoms.write_png(tmp_path / "a.png", np.full((16, 16), 7, np.uint8))
    return tmp_path


def put(reads: ReadQueue, requests: list[Request]) -> None:
    while requests and reads.has_room():
        reads.put(requests.pop(0))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_frames_come_out_in_the_order_of_the_requests(root, workers):
    requests = [
        Request("volume.npy", (2, 0, 9)),
        Request("gone.png", (0, 5)),
        Request("a.png", (0,)),
    ]
    wanted = [(frame, request.path) for request in requests for frame in request.frames]
    items = []
    with closing(open_read_queue(root, workers=workers)) as reads:
        while len(items) < len(wanted):
            put(reads, requests)
            assert reads.frames_left
            items.append(reads.get().item)
        assert not requests
        assert reads.frames_left == 0
        assert reads.has_room()
    assert [item.frame for item in items] == [frame for frame, _ in wanted]
    assert [type(item) for item in items] == [Slice, Slice, Failure, Failure, Failure, Slice]
    np.testing.assert_array_equal(items[0].pixels, phantoms.volume(4)[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_it_may_be_empty_in_between_and_closed_with_frames_left(root, workers):
    with closing(open_read_queue(root, workers=workers)) as reads:
        for _ in range(2):
            assert reads.frames_left == 0
            reads.put(Request("a.png", (0,)))
            assert isinstance(reads.get().item, Slice)
        reads.put(Request("volume.npy", (0, 1, 2)))
        assert reads.get().item.frame == 0
        assert reads.frames_left == 2


def test_without_processes_a_file_is_opened_when_its_frame_is_taken(root):
    with closing(open_read_queue(root, workers=0)) as reads:
        reads.put(Request("a.png", (0,)))
        assert not reads.has_room()
        (root / "a.png").unlink()
        assert reads.get().item.reason == "vanished"


def test_what_is_read_ahead_is_bounded_by_files(root):
    taken = 0
    with closing(open_read_queue(root, workers=1)) as reads:
        while reads.has_room():
            reads.put(Request("a.png", (0,)))
            taken += 1
            assert taken < 100
        for _ in range(taken):
            reads.get()
        assert reads.has_room()
