"""A store that an earlier commit wrote is opened, verified, evaluated from and extended.

Through the command line and `pipeline.api` alone, as whoever has such a store would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import api
from pipeline.cli import app
from pipeline.evaluation.result_files import filed
from stores import FeatureStore

ARCHIVE = Path(__file__).with_name("store_3d192ce.tar.gz")
# sha256 of what the commit that wrote the store read from it: all rows of an array, in C order.
DIGESTS = {
    "cls": "e897f293140da3339ef56dee415aac749d5b01f670b94c43514455f7735a76a1",
    "mean": "f0cf2c6aad0129c906ca4b2016c64217d13863eba8272aa5fc6dd25d4d9fd9db",
    "patch": "5dee11104c4c0b81067e83435af2959f5e0d7f9f6b21af5e4c2cce744d72f397",
    "patch_scale": "82d47728078dcd3dd5cc429fad89e38b183a12390ae16823a1eac9d36faa9a88",
    "status": "4dbef6544e02e61edcfb414ee14a83bbdc9fe1fde985293ee6c795a9876308f7",
    "pixel_digest": "3109dc0de14950e150dcfa1553e6dc36484359c7ada3d516ea77168bded6a2ca",
}
HERE = "--device", "cpu", "--workers", "0"
PATHS = [
    *(f"ct/one/{number}.dcm" for number in range(3)),  # ct/one/3.dcm is torn, ct/two withdrawn
    *["mr.nii.gz"] * 3,
    *(f"p{number:02}.png" for number in range(12)),
]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Return the folder of the archive, its config with absolute paths."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("{folder}", str(tmp_path)))
    return tmp_path


def radprobe(*arguments: str | Path, code: int = 0) -> Any:
    """Run a command and return the JSON document that it prints."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def metrics(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the value of each metric, by method, setting and name."""
    return {
        f"{result['method']} {score['setting']} {name}": metric["value"]
        for result in results
        for score in result["scores"]
        for name, metric in score["metrics"].items()
    }


def digests(store: FeatureStore) -> dict[str, str]:
    # Rows that hold no features are NaN, and count too.
    contents = {name: np.ascontiguousarray(store.read(name)[:21]).tobytes() for name in DIGESTS}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_it_is_opened_to_the_same_numbers(before: Path) -> None:
    assert digests(api.FeatureStore.open(before / "store")) == DIGESTS
    x, slices = api.features(before / "store", blocks=2)
    assert x.shape == (18, 48)
    assert slices["path"].to_pylist() == PATHS  # as the key of the archive tells them


def test_it_is_sound(before: Path) -> None:
    assert radprobe("verify", before / "store")["sound"]
    lost = radprobe("failures", before / "store")
    assert [(each["path"], each["reason"]) for each in lost] == [
        ("cut.png", "truncated"),
        ("ct/one/3.dcm", "corrupt"),
    ]


def test_its_answers_are_read_and_asked_again_where_they_mean_another_thing(before: Path) -> None:
    old = [answer for _, answer in filed(before / "store")]
    assert sorted(answer.method for answer in old) == ["fewshot", "knn", "probe"]
    assert all(answer.scores for answer in old)
    results = radprobe("evaluate", before / "config.yaml")
    assert [(r["method"], r["cached"]) for r in results] == [
        ("knn", False), ("probe", False), ("fewshot", False),
    ]  # fmt: skip
    # On the same split, and a ranking is a ranking: what decides is another.
    split = {answer.provenance.split for answer in old}
    assert {result["provenance"]["split"] for result in results} == split
    assert results[0]["scores"][0]["metrics"]["auroc"]["value"] == 1.0
    (segmented,) = radprobe("segment", before / "config.yaml")
    assert not segmented["cached"]  # intervals of few patients are wider


def test_a_collection_that_has_not_changed_adds_nothing(before: Path) -> None:
    summary = radprobe("extract", before / "config.yaml", *HERE, code=1)
    assert (summary["slices"], summary["embedded"]) == (19, 0)


def test_it_takes_one_file_more(before: Path) -> None:
    results = radprobe("evaluate", before / "config.yaml")
    assert all(result["cached"] for result in radprobe("evaluate", before / "config.yaml"))
    shutil.copy(before / "later/p12.png", before / "data/p12.png")
    summary = radprobe("extract", before / "config.yaml", *HERE, code=1)
    assert (summary["slices"], summary["embedded"]) == (20, 1)
    assert radprobe("verify", before / "store")["sound"]
    store = api.FeatureStore.open(before / "store")
    assert digests(store) == DIGESTS
    x, slices = api.features(before / "store")
    assert slices["path"].to_pylist() == [*PATHS, "p12.png"]
    assert np.isfinite(x).all()
    # One slice more has no label, which the answers tell: they are computed anew, and equal.
    anew = radprobe("evaluate", before / "config.yaml")
    assert not any(result["cached"] for result in anew)
    assert metrics(anew) == pytest.approx(metrics(results), abs=1e-5, nan_ok=True)


def test_a_patient_who_was_withdrawn_stays_out(before: Path) -> None:
    shutil.copy(before / "data/ct/two/0.dcm", before / "data/ct/again.dcm")
    radprobe("extract", before / "config.yaml", *HERE, code=1)
    assert api.features(before / "store")[1]["path"].to_pylist() == PATHS


def test_new_features_equal_the_old_ones(before: Path) -> None:
    """The network, its weights and the preprocessing give what they gave: to rounding."""
    old, slices = api.features(before / "store", blocks=2)
    fresh = api.load_config(before / "config.yaml").model_copy(update={"store": before / "fresh"})
    api.extract(fresh, api.Speed(device="cpu", workers=0))
    new, again = api.features(before / "fresh", blocks=2)
    by_path = dict(zip(again["path"].to_pylist(), new, strict=True))
    for path, x in zip(slices["path"].to_pylist(), old, strict=True):
        if path != "mr.nii.gz":
            assert np.allclose(by_path[path], x, atol=4e-3), path
