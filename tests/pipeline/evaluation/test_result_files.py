"""Answers: found or computed under a split that is up to date, and filed answer last."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.heads import method_names
from pipeline.evaluate import evaluate
from pipeline.evaluation import result_files
from pipeline.evaluation.heads.fewshot import FewShotSettings
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import filed, read_predictions, result_path, write_table
from stores.errors import CorruptStoreError
from tests.pipeline.collection import config_of, make_store, write_csv

N = 60
Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a store of 30 patients, two images each, and their labels."""
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 2
    sick = rng.integers(0, 2, 30)[patient]
    cls = rng.standard_normal((N, 1, 8))
    cls[:, 0, 0] += 3 * sick
    (tmp_path / "store.key").write_text(bytes(range(32)).hex())
    make_store(tmp_path / "store", cls, [{"patient": f"P{p}"} for p in patient])
    write_csv(tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(N)], sick=sick)
    return tmp_path


def test_a_split_is_made_when_it_is_ensured_and_by_no_property(root: Path) -> None:
    (cases,) = cases_of(config_of(root, tasks={"t": {"labels": ["sick"]}}))
    assert not cases.is_split
    for name in ("split", "folds"):
        with pytest.raises(FileNotFoundError):
            getattr(cases, name)
    assert not list((root / "store/splits").iterdir())
    cases.ensure_split()
    (path,) = (root / "store/splits").glob("*.json")
    stamp = path.stat().st_mtime_ns
    cases.ensure_split()
    assert cases.is_split
    assert path.stat().st_mtime_ns == stamp
    assert sum(map(len, cases.folds[0].values())) == N


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


def without(name: str) -> Edit:
    return lambda table: table.drop_columns([name])


def text_in(name: str) -> Edit:
    def edit(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, name, pa.array(["\x1b[2J"] * len(table)))

    return edit


def no_numbers(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("proba:1")
    return table.set_column(place, "proba:1", pa.nulls(len(table), pa.float64()))


def other_setting(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("setting")
    return table.set_column(place, "setting", pa.array(["none"] * len(table)))


ODD_PREDICTIONS: list[Edit] = [
    *map(without, ("unit", "patient", "setting", "truth:1", "proba:1")),
    *map(text_in, ("truth:1", "proba:1", "fold")),
    no_numbers,
    other_setting,
    lambda table: table.append_column("patient", table["patient"]),
]


def test_predictions_that_are_not_as_an_answer_has_them_are_corrupt(root: Path) -> None:
    tasks = {"t": {"labels": ["sick"]}}
    config = config_of(root, tasks=tasks, split={"kind": "kfold", "folds": 3})
    (answer,) = evaluate(config, ["knn"])
    (cases,) = cases_of(config)
    path = result_path(cases, "knn").with_suffix(".parquet")
    sound = pq.read_table(path)
    for edit in ODD_PREDICTIONS:
        write_table(path, edit(sound))  # with a checksum that fits, as a stranger can
        with pytest.raises(CorruptStoreError):
            read_predictions(config.store, answer)


# Under which answers to `ASKED` are filed, of a store of this fingerprint, since the contracts that
# choose by log-loss, decide at an operating point, have intervals of folds and perfect scores, and
# count the units of all folds together, of units in the order of their files.
FINGERPRINT = "0" * 64
ASKED: dict[str, Any] = {
    "tasks": {"t": {"labels": ["sick"], "subgroups": ["sick"], "shortcuts": ["sick"]}},
    "knn": {"k": [3], "scaling": "l2"},
    "probe": {"steps": 5},
    "fewshot": {},
    "finetune": {},
    "lora": {"protocol": "paper"},
    "bitfit": {"start": "probe"},
    "norm": {},
    "frozen": {},
}
KEYS = {
    "knn": "3a36399a9df597bb",
    "probe": "01e2035084428dee",
    "fewshot": "c0018e50cad10de5",
    "linear": "e6bc853644afe481",
    # since it says how much each slice counted
    "attention": "52586fe5cacf48ab",
    "efficiency": "63f9f3134598d1f7",
    "transformer": "c65ce120c1e3388b",
    "mlp": "97a238a8ed2b1e9e",
    "cox": "73f0e00a53f05508",
    "finetune": "80ab7cd26f2fff65",
    # since `protocol: paper` trains again on train and val
    "lora": "fe9a46c8c5b98176",
    "bitfit": "687d2f34a0b58a31",
    "norm": "9d8713ff9076f100",
    "frozen": "3f674e72c2bbd9b1",
}
PAPER = "6cdf62a8448f603e"


def test_what_was_filed_before_is_found_still(root: Path) -> None:
    """A key is of method, contract, settings, task, labels, split and store, written as ever."""
    (cases,) = cases_of(config_of(root, **ASKED))
    cases.ensure_split()
    cases = replace(cases, fingerprint=FINGERPRINT)
    found = {name: result_path(cases, name).name for name in method_names()}
    assert found == {method: f"{method}-{key}.json" for method, key in KEYS.items()}
    draw = cases.config.model_copy(update={"fewshot": FewShotSettings(draw="paper")})
    assert result_path(replace(cases, config=draw), "fewshot").name == f"fewshot-{PAPER}.json"


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["provenance"].update(key="/../../../o"),
        lambda d: d["counts"].pop("test"),
        lambda d: d["counts"]["test"].update(positives={}),
        lambda d: d.update(classes=[]),
        lambda d: d.update(chosen=7),
        lambda d: d.update(scores=[]),  # beside predictions
        lambda d: d["scores"][0]["reliability"][""][0].update(units=0),
        lambda d: d["scores"][0]["reliability"][""][0].update(observed=math.nan),
        lambda d: d["counts"]["test"].update(units=-1),
    ],
)
def test_an_answer_of_a_stranger_is_left_out_and_computed_anew(
    root: Path, edit: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(root, tasks={"t": {"labels": ["sick"]}})
    (first,) = evaluate(config, ["knn"])
    ((path, _),) = filed(root / "store")
    document = json.loads(path.read_text())
    edit(document)
    path.with_name(f"{path.name}.sha256").unlink()
    path.write_text(json.dumps(document))
    assert not list(filed(root / "store"))
    assert re.search("no answer of radprobe's|not an answer of this version", caplog.text)
    (again,) = evaluate(config, ["knn"])
    assert not again.cached
    assert again.scores == first.scores


def test_an_answer_whose_process_was_killed_before_the_table_is_in_it_after_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(root, tasks={"t": {"labels": ["sick"]}})
    evaluate(config, ["knn"])
    with monkeypatch.context() as patch:
        patch.setattr(result_files, "write_tidy", lambda *_: None)
        evaluate(config, ["probe"])
    table = root / "store/results/results.parquet"
    assert set(pq.read_table(table)["method"].to_pylist()) == {"knn"}
    evaluate(config, ["probe"])
    assert set(pq.read_table(table)["method"].to_pylist()) == {"knn", "probe"}
