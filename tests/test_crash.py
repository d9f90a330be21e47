"""A sample of the crash points that `benchmarks/crash.py` tries all of."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.crash_points import Point, points_of


def test_what_an_extraction_leaves_that_was_ended_is_mended_by_the_same_command() -> None:
    arguments = ["--of", "extract", "--sample", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.crash", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2


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
