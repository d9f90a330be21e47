"""Mutated files: every one is read or set aside with a reason, and none ends the run."""

from __future__ import annotations

import time

from pipeline.io.decode import read_headers, read_slices
from tests import fuzzing
from tests.waiting import PATIENCE_S


def test_seeds_are_read_as_they_are(tmp_path):
    whole = fuzzing.seeds(tmp_path)
    assert len(whole) >= 18
    for name in whole:
        path = tmp_path / name
        headers = read_headers(path)
        items = list(read_slices(path, [header.frame for header in headers]))
        for header, item in zip(headers, items, strict=True):
            assert item.pixels.shape == (header.height, header.width), name


def test_mutated_files_neither_crash_nor_hang_the_run(tmp_path):
    started = time.monotonic()
    found = fuzzing.run(tmp_path, 400, seed=1, workers=1, batch=400)
    assert found.total() == 400
    assert found["read"] > 40
    assert sum(n for outcome, n in found.items() if outcome != "read") > 40
    assert not [outcome for outcome in found if "time-limit" in outcome]
    assert time.monotonic() - started < PATIENCE_S
