"""Repeated scans: how far features and answers on file agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.evaluation.retest import retest
from stores.errors import LabelError
from tests.pipeline.collection import config_of, make_store, write_csv

PATIENTS, SLICES, D = 40, 3, 16


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    """Return a config over 40 patients of two scans of 3 slices, and their last block's CLS.

    The scans of a patient differ by noise; `sick` shows in the first number. The last slice of
    all cannot be read.
    """
    root = tmp_path_factory.mktemp("retest")
    rng = np.random.default_rng(0)
    own = rng.standard_normal((PATIENTS, D))
    own[:, 0] += 3 * (np.arange(PATIENTS) % 2)
    x = own[:, None, None] + 0.3 * rng.standard_normal((PATIENTS, 2, SLICES, D))
    cls = np.repeat(x.reshape(-1, 1, D), 4, axis=1).astype(np.float16)
    slices = [
        {"patient": f"P{p}", "series": f"S{p}{s}", "path": f"p{p:02}/{s}/{i}.dcm"}
        for p in range(PATIENTS)
        for s in "ab"
        for i in range(SLICES)
    ]
    status = np.ones(len(slices), np.uint8)
    status[-1] = 2
    make_store(root / "store", cls, slices, status)
    write_csv(
        root / "labels.csv",
        path=[f"p{p:02}" for p in range(PATIENTS)],
        sick=[p % 2 for p in range(PATIENTS)],
    )
    write_csv(
        root / "pairs.csv",
        first=[f"p{p:02}/a" for p in range(PATIENTS)],
        second=[f"p{p:02}/b/" for p in range(PATIENTS)],
    )
    tasks = {"sick": {"labels": ["sick"], "level": "series"}}
    return config_of(root, tasks=tasks), cls[:, -1].astype(np.float64)


def pairs_of(config: Any) -> Path:
    return Path(config.data.root / "pairs.csv")


def test_features_agree_as_computed_plainly(asked: Any) -> None:
    config, cls = asked
    known = np.arange(len(cls)) < len(cls) - 1
    means = np.array([cls[i : i + 3][known[i : i + 3]].mean(axis=0) for i in range(0, len(cls), 3)])
    x = means.reshape(PATIENTS, 2, D)
    features = retest(config, pairs_of(config))[0]
    assert features.what == "features (cls)"
    assert features.pairs == PATIENTS
    low, middle = np.quantile(icc(x), [0.05, 0.5])
    assert (features.icc, features.icc_low) == pytest.approx((middle, low), abs=1e-6)
    assert 0.9 < features.icc < 1
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    assert features.cosine == pytest.approx((unit[:, 0] * unit[:, 1]).sum(axis=1).mean(), abs=1e-6)
    assert features.nearest == 1


def test_scans_of_others_do_not_agree(asked: Any, tmp_path: Path) -> None:
    config, _ = asked
    turned = [(p + 1) % PATIENTS for p in range(PATIENTS)]
    pairs = write_csv(
        tmp_path / "pairs.csv",
        first=[f"p{p:02}/a" for p in range(PATIENTS)],
        second=[f"p{p:02}/b" for p in turned],
    )
    features = retest(config, pairs)[0]
    assert abs(features.icc) < 0.3
    assert features.nearest == 0


def test_answers_on_file_agree_as_their_predictions_do(asked: Any) -> None:
    config, _ = asked
    assert len(retest(config, pairs_of(config))) == 1
    results = {result.method: result for result in evaluate(config, ["knn", "probe"])}
    found = {one.what: one for one in retest(config, pairs_of(config))[1:]}
    assert found.keys() == {"sick by knn", "sick by probe"}
    for method, result in results.items():
        one = found[f"sick by {method}"]
        _, proba, _ = read_predictions(config.store, result, -1)
        units = predicted_units(config.store, result, -1)
        assert one.pairs == result.counts["test"].patients == len(units) / 2
        # The store's order: both series of a patient follow each other.
        want = float(np.nanmean(icc(proba.reshape(-1, 2, 2))))
        assert one.icc == pytest.approx(want, abs=1e-9)
        assert (one.icc_low, one.cosine, one.nearest) == (None, None, None)


def test_the_command_prints_what_was_found(asked: Any, tmp_path: Path) -> None:
    config, _ = asked
    file = tmp_path / "my.yaml"
    content = config.model_dump(mode="json", include={"data", "store", "labels", "tasks"})
    file.write_text(yaml.safe_dump(content))
    run = CliRunner().invoke(app, ["retest", str(file), str(pairs_of(config)), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)[0]["pairs"] == PATIENTS
    run = CliRunner().invoke(app, ["retest", str(file), str(pairs_of(config))])
    assert "features (cls)" in run.stdout
    assert "RANDOM WEIGHTS" in run.stdout


def test_pairs_that_are_not_there_are_named(asked: Any, tmp_path: Path) -> None:
    config, _ = asked
    pairs = write_csv(
        tmp_path / "pairs.csv",
        first=["p00/a", "p01/a", "p77/a"],
        second=["p00/b", "p01/a", "p77/b"],  # one with itself, one not there
    )
    with pytest.raises(LabelError, match=r"of which 1 have; 2 of its 5 scans are not in"):
        retest(config, pairs)
    write_csv(pairs, first=["p00/a"], secnd=["p00/b"])
    with pytest.raises(LabelError, match="no column 'second'. Did you mean 'secnd'"):
        retest(config, pairs)
