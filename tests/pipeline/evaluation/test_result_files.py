"""Answers: found or computed under a split that is up to date, and filed so that a crash is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.cases import cases_of
from pipeline.evaluation.result_files import result_path
from tests.pipeline.collection import config_of, make_store, write_csv

N = 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a store of 30 patients, two images each, and their labels."""
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 2
    sick = rng.integers(0, 2, 30)[patient]
    cls = rng.standard_normal((N, 1, 8))
    cls[:, 0, 0] += 3 * sick
    make_store(tmp_path / "store", cls, [{"patient": f"P{p}"} for p in patient])
    write_csv(tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(N)], sick=sick)
    return tmp_path


def test_a_split_is_made_when_it_is_ensured_and_by_no_property(root: Path) -> None:
    (cases,) = cases_of(config_of(root, tasks={"t": {"labels": ["sick"]}}))
    assert not cases.is_split
    for name in ("split", "turns"):
        with pytest.raises(FileNotFoundError):
            getattr(cases, name)
    assert not (root / "store/splits").exists()
    cases.ensure_split()
    (path,) = (root / "store/splits").glob("*.json")
    stamp = path.stat().st_mtime_ns
    cases.ensure_split()
    assert cases.is_split
    assert path.stat().st_mtime_ns == stamp
    assert sum(map(len, cases.turns[0].values())) == N


def test_predictions_that_a_crash_left_without_an_answer_are_no_answer(root: Path) -> None:
    config = config_of(root, tasks={"t": {"labels": ["sick"]}})
    (first,) = evaluate(config, ["knn"])
    (cases,) = cases_of(config)
    path = result_path(cases, "knn")
    assert path.with_suffix(".parquet").is_file()
    path.unlink()
    (again,) = evaluate(config, ["knn"])
    assert not again.cached
    assert again.scores == first.scores
    assert path.is_file()
