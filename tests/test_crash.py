"""A sample of the crash points that `benchmarks/crash.py` tries all of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.crash import done, forked
from benchmarks.crash_points import Point, Watch, points_of
from stores._disk import sync
from tests.waiting import PATIENCE_S
from tests.warm import WarmProcess


def test_what_a_command_leaves_that_was_ended_is_mended_by_the_same_command() -> None:
    arguments = ["--of", "extract", "evaluate", "--sample", "2"]
    code = "import runpy; runpy.run_module('benchmarks.crash', run_name='__main__')"
    process = WarmProcess(code, *arguments, environment=os.environ)
    points, complaints = process.communicate(PATIENCE_S)
    assert process.returncode == 0, points + complaints
    assert [line.split()[0] for line in points.splitlines()] == ["command", "extract", "evaluate"]


def test_every_call_is_a_point_and_every_piece_may_be_half_written() -> None:
    assert points_of({"write": 1, "bucket put": 1, "link": 1}) == [
        Point("write", 0, "killed"),
        Point("write", 0, "half"),
        Point("write", 0, "power cut"),
        Point("bucket put", 0, "killed"),
        Point("bucket put", 0, "half"),
        Point("link", 0, "killed"),
        Point("link", 0, "power cut"),
    ]


def test_a_power_cut_takes_names_back_until_their_folder_is_forced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    states = tmp_path / "states"
    (root / "inner").mkdir(parents=True)
    (root / "old").write_bytes(b"old")

    def work() -> dict[str, str]:
        watch = Watch(root, states)
        watch.start()
        with open(root / "new", "wb") as file:
            file.write(b"new")
            os.fsync(file.fileno())
        os.replace(root / "new", root / "old")
        (root / "inner/made").mkdir()
        sync(root)
        return watch.points

    points = done(forked(work))
    renamed = states / points["replace 0 power cut, names lost"]
    assert names_in(renamed) == {"old", "inner"}
    assert (renamed / "old").read_bytes() == b"old"
    assert (states / points["replace 0 killed"] / "old").read_bytes() == b"new"
    assert "inner/made" not in names_in(states / points["mkdir 0 power cut, names lost"])
    # Forced: the root, and not what is within a folder of it.
    forced = states / points["fsync 1 power cut, names lost"]
    assert (forced / "old").read_bytes() == b"new"
    assert names_in(forced) == {"old", "inner"}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_full_disk_refuses_what_needs_room_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")

    def work() -> list[str | None]:
        watch = Watch(root, cut=Point("write", 1, "full"))
        watch.start()
        (root / "first").write_bytes(b"first")
        refused = [refusal(lambda: (root / "second").write_bytes(b"second"))]
        refused.append(refusal(lambda: (root / "third").mkdir()))
        refused.append(refusal(lambda: (root / "old").unlink()))
        return refused

    assert done(forked(work)) == ["ENOSPC", "ENOSPC", None]
    assert (root / "first").read_bytes() == b"first"


def refusal(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None
