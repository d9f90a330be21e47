"""Workers that wait for the next pool: who is kept, who is handed out, and their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.io.idle import IDLE
from pipeline.io.pool import start_reader
from pipeline.io.process import FileTask, Worker
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from tests import phantoms
from tests.pipeline.io.samples import GREY
from tests.waiting import until


@pytest.fixture(autouse=True)
def none_idle() -> Iterator[None]:
    IDLE.close()
    yield
    IDLE.close()


@pytest.fixture
def worker() -> Worker:
    worker = Worker(2**20)
    worker.inbox.receive()
    worker.ready = True
    return worker


def _read(root: Path) -> None:
    (read,) = read_files(root, [Request("a.png", (0,))], workers=1)
    assert (read.item.pixels == GREY).all()


def test_the_next_pool_reads_by_the_process_of_the_last(tmp_path, monkeypatch):
    for place in ("one", "two"):
        phantoms.write_png(tmp_path / place / "a.png", GREY)
    _read(tmp_path / "one")
    monkeypatch.setattr("pipeline.io.pool.Worker", None)  # a new one cannot begin
    _read(tmp_path / "two")


def test_one_that_starts_before_its_pool_is_the_one_that_reads(tmp_path, monkeypatch):
    phantoms.write_png(tmp_path / "a.png", GREY)
    start_reader(2)
    monkeypatch.setattr("pipeline.io.pool.Worker", None)
    start_reader(2)  # one is there
    _read(tmp_path)


def test_none_starts_for_who_reads_without() -> None:
    start_reader(0)
    assert IDLE.take() is None


def test_it_finds_files_from_another_folder_than_it_started_in(tmp_path, monkeypatch):
    phantoms.write_png(tmp_path / "here/a.png", GREY)
    _read(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.io.pool.Worker", None)
    _read(Path("here"))


def test_one_that_died_while_it_waited_is_not_handed_out(worker):
    IDLE.put(worker)
    os.kill(worker.process.pid, signal.SIGKILL)
    until(lambda: worker.process.poll() is not None)
    assert IDLE.take() is None


def test_one_that_is_at_a_file_is_ended(worker):
    worker.tasks.append(FileTask("a.png", (0,)))
    IDLE.put(worker)
    assert worker.process.returncode == -signal.SIGKILL
    assert IDLE.take() is None


def test_nobody_waits_for_ever(worker, monkeypatch):
    monkeypatch.setattr("pipeline.io.idle.KEEP_S", 0.01)
    IDLE.put(worker)
    until(lambda: worker.process.poll() is not None)
    assert IDLE.take() is None
