"""Features in a scratch file: the same answers, the memory of a few rows, nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.methods import Method
from pipeline.evaluate import evaluate
from pipeline.evaluation.result_files import read_predictions
from pipeline.results import Result
from pipeline.shared import arrays
from stores.errors import UnwritableError
from tests.pipeline.collection import config_of, make_store, write_csv

N = 240
TASKS: dict[str, Any] = {
    "many": {"labels": ["sick", "old"]},
    "age": {"labels": ["age"], "values": "number"},
    "whole": {"labels": ["sick"], "level": "patient"},
}
ASKED: dict[str, list[Method]] = {
    "many": ["knn", "probe"],
    "age": ["probe", "linear"],
    "whole": ["fewshot", "attention", "efficiency"],
}
SETTINGS: dict[str, Any] = {
    "knn": {"k": [3, 5], "multilabel": "mlknn", "features": "cls+mean", "scaling": "l2"},
    "probe": {"low": -3, "high": 1, "steps": 3, "scaling": "standardise"},
    "fewshot": {"episodes": 30, "head": "simpleshot", "shots": [1, 2]},
    "linear": {"features": "cls+mean", "epochs": 3},
    "attention": {"epochs": 3},
    "efficiency": {"steps": 3, "shots": [4], "draws": 2},
}


def collection(root: Path) -> Path:
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 3
    cls = rng.standard_normal((N, 4, 12))
    sick, old = (rng.integers(0, 2, N // 3)[patient] for _ in range(2))
    cls[:, 3, 0] += 2 * sick
    cls[:, 3, 1] += 2 * old
    make_store(root / "store", cls, [{"patient": f"P{p}"} for p in patient])
    unknown = np.where(np.arange(N) % 10 < 3, "", old.astype(str))
    age = (40 + 10 * cls[:, 3, 2]).round(2)
    path = [f"f{i}.png" for i in range(N)]
    write_csv(root / "labels.csv", path=path, sick=sick, old=unknown, age=age)
    return root


def ask(root: Path) -> list[Result]:
    return [
        result
        for name, methods in ASKED.items()
        for result in evaluate(config_of(root, tasks={name: TASKS[name]}, **SETTINGS), methods)
    ]


def numbers(result: Result) -> dict[Any, float]:
    return {
        (str(score.setting), name): metric.value
        for score in result.scores
        for name, metric in score.metrics.items()
    }


def test_what_lies_in_a_scratch_file_is_answered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, scratch = (collection(tmp_path / name) for name in ("memory", "scratch"))
    plain = ask(memory)
    monkeypatch.setattr(arrays, "SHARE", 0.0)
    mapped = ask(scratch)
    for one, two in zip(plain, mapped, strict=True):
        assert any("were held in a scratch file" in note for note in two.notes) or not two.scores
        assert not any("scratch" in note for note in one.notes)
        assert numbers(one).keys() == numbers(two).keys()
        for key, value in numbers(one).items():
            assert numbers(two)[key] == pytest.approx(value, abs=1e-6), (one.task, one.method, key)
    pair = [(m.method, m.task) for m in mapped].index(("knn", "many"))
    neighbours = [read_predictions(root / "store", each[pair], 0)[1] for root, each in (
        (memory, plain), (scratch, mapped))]  # fmt: skip
    np.testing.assert_array_equal(*neighbours)
    assert not list((scratch / "store").rglob(".tmp-*"))


def test_a_scratch_file_is_no_memory_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "memory_bytes", lambda: 4 * 4 * 100)
    inside, outside = arrays.allocate(10, 10, tmp_path), arrays.allocate(11, 10, tmp_path)
    assert not isinstance(inside, np.memmap)
    assert isinstance(outside, np.memmap)
    outside[:] = np.arange(110).reshape(11, 10)
    copy = arrays.take_scaled(outside, np.array([3, 1]), np.ones(10))
    assert isinstance(copy, np.memmap)
    np.testing.assert_array_equal(copy, outside[[3, 1]] - 1)
    assert not isinstance(arrays.take_scaled(inside, np.array([3, 1])), np.memmap)
    np.testing.assert_allclose(arrays.mean(outside, np.array([0, 2])), outside[[0, 2]].mean(0))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays, "SHARE", 0.0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UnwritableError, match="the disk is full"):
        arrays.allocate(10, 10, tmp_path)
    assert list(tmp_path.iterdir()) == []
