"""What every registered head does: a new line of HEADS is tried here as it stands."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.base import HeadSettings
from pipeline.config.heads import HEADS, TUNED, declared, method_names
from pipeline.config.loading import load_config
from pipeline.config.tuning import DECLARED
from pipeline.evaluation.heads.contract import FitInput, Head, HeadState, Predicted
from stores.errors import ConfigError
from tests.fresh import said
from tests.pipeline.collection import make_store, thirds, units_of, write_csv
from tests.waiting import PATIENCE_S
from tests.warm import WarmProcess

N, D = 96, 20
# Settings that spare time, where the defaults are for more than N units.
SMALL: dict[str, dict[str, Any]] = {
    "knn": {"k": [3, 7]},
    "probe": {"low": -3, "high": 1, "steps": 3},
    "fewshot": {"episodes": 10, "shots": [1, 2]},
    "linear": {"epochs": 2},
    "attention": {"epochs": 2, "hidden": 8},
    "transformer": {"epochs": 2, "width": 8, "heads": 2},
    "efficiency": {"steps": 2, "shots": [2], "draws": 2},
    "mlp": {"epochs": 2, "hidden": 8},
    "cox": {"steps": 2},
}
# Each head with each kind of task that it can be asked about.
ASKED = [(name, kind) for name in HEADS for kind in declared(name).kinds]


def head_of(name: str) -> Head[Any, Any]:
    head = declared(name)
    assert isinstance(head, Head)
    return head


def question(kind: str) -> tuple[NDArray[np.float32], Units]:
    """Return the features of two slices of each of N units (2N, D), and the units."""
    rng = np.random.default_rng(0)
    y: NDArray[Any] = rng.integers(0, {"binary": 2, "multiclass": 3}.get(kind, 2), N)
    if kind == "multilabel":
        y = (rng.random((N, 2)) < 0.5).astype(np.int8)
    units = units_of(y)
    if kind == "regression":
        units = replace(units, y=rng.standard_normal(N), kind="regression", classes=("age",))
    if kind == "survival":
        y = np.stack([rng.exponential(9, N), rng.random(N) < 0.5], axis=1)
        units = replace(units, y=y, kind="survival", classes=("died",))
    x = rng.standard_normal((2 * N, D)).astype(np.float32)
    x[:, 0] += np.repeat(np.asarray(units.y).reshape(N, -1)[:, 0], 2)
    return x, replace(units, rows=np.arange(2 * N), unit=np.arange(2 * N) // 2)


def features(head: Head[Any, Any], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features that a head sees: of slices, or their means of units."""
    return x if head.sees == "slices" else x.reshape(N, 2, D).mean(axis=1)


def given_to(head: Head[Any, Any], x: NDArray[np.float32], units: Units) -> FitInput[Any]:
    parts = thirds(N)
    known: Any = {"train": parts["train"], "val": parts["val"]}
    settings = head.settings.model_validate(SMALL.get(head.name, {}))
    others = {name: declared(name).settings() for name in settings.built_on}
    return FitInput(x, units, known, settings, None, others)


def numbers(predicted: Predicted) -> list[Any]:
    """Return all that a head said, as what can be compared."""
    said = [(each.setting, each.proba.tobytes()) for each in predicted.predictions]
    return [said, [score.model_dump() for score in predicted.scores or ()], list(predicted.notes)]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_declares_itself_where_the_registry_says(name: str) -> None:
    head = head_of(name)
    assert HEADS[name].module == f"pipeline.evaluation.heads.{name}"
    assert head.name == name
    assert issubclass(head.settings, HeadSettings)
    assert head.settings().model_dump()
    assert head.contract >= 1
    assert HEADS[name].help.endswith(".")


def test_names_and_titles_are_told_apart() -> None:
    titles = [declared(name).title for name in method_names()]
    assert len(set(titles)) == len(set(method_names())) == len(titles)
    assert tuple(DECLARED) == TUNED
    assert all(DECLARED[name].name == name for name in TUNED)


@pytest.mark.parametrize(("name", "kind"), ASKED)
def test_a_head_predicts_every_test_unit_and_fits_none_of_them(name: str, kind: str) -> None:
    head = head_of(name)
    x, units = question(kind)
    x, test = features(head, x), thirds(N)["test"]
    unseen = x.copy()
    unseen[np.isin(units.unit, test) if head.sees == "slices" else test] = np.nan
    model = head.fit(given_to(head, unseen, units))
    predicted = head.predict(model, x, test)
    predictions = list(predicted.predictions)
    assert predictions or predicted.scores or predicted.notes
    for prediction in predictions:
        draws = prediction.draws or 1
        assert prediction.proba.shape == (draws * len(test), len(units.classes))
        assert prediction.proba.dtype == np.float64
        # A label that a small draw has no two sides of has no model: NaN, for all units or none.
        each = np.isnan(np.split(prediction.proba, draws)).mean(axis=1)
        assert np.isin(each, [0.0, 1.0] if kind == "multilabel" else [0.0]).all()
        if kind in ("binary", "multiclass"):
            np.testing.assert_allclose(prediction.proba.sum(axis=1), 1)
    if len({tuple(each.setting.items()) for each in predictions}) != len(predictions):
        pytest.fail("two predictions are of one setting")
    if head.folds == "all":  # those of several folds are joined: they have to be predictions
        assert predicted.scores is None
        assert all(each.draws is None for each in predictions)
    again = head.predict(head.fit(given_to(head, x, units)), x, test)
    assert numbers(again) == numbers(replace(predicted, predictions=predictions))


@pytest.mark.parametrize(("name", "kind"), ASKED)
def test_a_filed_head_says_of_other_units_what_the_fitted_one_says(name: str, kind: str) -> None:
    head = head_of(name)
    assert (head.to_state is None) == (head.from_state is None)
    if head.to_state is None or head.from_state is None:
        return
    x, units = question(kind)
    x, test = features(head, x), thirds(N)["test"]
    model = head.fit(given_to(head, x, units))
    state = head.to_state(model, x)
    expected = list(head.predict(model, x, test).predictions)
    assert (state is None) == (not expected)
    if state is None:
        return
    # As files hold it: arrays as they are, the rest as JSON.
    filed = HeadState(state.arrays, json.loads(json.dumps(state.about)))
    at = np.isin(units.unit, test)
    new = Units.unlabelled(
        units.ids[test], np.arange(at.sum()), np.searchsorted(test, units.unit[at])
    )
    predictions = head.from_state(filed)(x[at] if head.sees == "slices" else x[test], new)
    assert [each.setting for each in predictions] == [each.setting for each in expected]
    for one, other in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(one.proba, other.proba, atol=1e-6)
        assert (one.weights is None) == (other.weights is None)
        if one.weights is not None and other.weights is not None:
            np.testing.assert_allclose(one.weights.weight, other.weights.weight, atol=1e-6)
            np.testing.assert_allclose(np.bincount(one.weights.unit, one.weights.weight), 1)


def test_reading_a_config_imports_no_library_that_fits() -> None:
    code = (
        "import sys\n"
        "from pipeline.config.root import Config\n"
        "config = Config.model_validate({'data': {'root': 'x'}, 'store': 'y'})\n"
        "from pipeline.config.heads import HEADS\n"
        "print(all(getattr(config, name) for name in HEADS))\n"
        "from tests.fresh import LIBRARIES\n"
        "print(sorted(LIBRARIES & sys.modules.keys()))"
    )
    assert said(code).split("\n")[:2] == ["True", "[]"]


def test_asking_for_a_head_imports_that_head_alone() -> None:
    code = (
        "import sys\n"
        "from pipeline.config.heads import declared\n"
        "declared('knn')\n"
        "heads = {'probe', 'fewshot', 'linear', 'attention', 'transformer', 'efficiency'}\n"
        "print(sorted(h for h in heads if f'pipeline.evaluation.heads.{h}' in sys.modules))"
    )
    assert said(code).strip() == "[]"


# --- settings under a head's key ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("knn: {kk: [3]}", r"knn\.kk: unknown key. Did you mean 'k'"),
        ("knn: {k: [0]}", r"knn\.k\.0: must be greater than or equal to 1 \(got 0\)"),
        ("porbe: {}", "porbe: unknown key. Did you mean 'probe'"),
        ("linear: {scaling: whiten}", "linear: The linear grid takes parts of the features"),
    ],
)
def test_a_wrong_block_is_said_as_any_other(block: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{root: images}}\nstore: store\n{block}\n")
    with pytest.raises(ConfigError, match=says):
        load_config(path)


# --- a head more -------------------------------------------------------------------------------


def test_a_head_is_one_module_and_one_line(tmp_path: Path) -> None:
    """With its line in the registry, a head is a key, a command, an answer, and in the report."""
    rng = np.random.default_rng(0)
    sick = rng.integers(0, 2, 60)
    cls = rng.standard_normal((60, 1, 8))
    cls[:, 0, 0] += 3 * sick
    make_store(tmp_path / "store", cls, [{"patient": f"P{i}"} for i in range(60)])
    write_csv(tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(60)], sick=sick)
    config = {
        "data": {"root": str(tmp_path)},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": {"t": {"labels": ["sick"]}},
        "nearest_mean": {"temperature": 2.0},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    path, page = str(tmp_path / "c.yaml"), tmp_path / "page.html"
    commands = [
        ["nearest_mean", path, "--json"],
        ["nearest_mean", path],
        ["nearest_mean", path, "--json"],
        ["--help"],
        ["report", path, "--out", str(page)],
    ]
    code = (
        "import json, sys\n"
        "from pipeline.config.heads import HEADS, Registered\n"
        "HEADS['nearest_mean'] = Registered(\n"
        "    'tests.pipeline.evaluation.heads.nearest_mean',\n"
        "    'Take the class of the nearest mean.')\n"
        "from pipeline.benchmark.settings import Setting\n"
        "Setting(method='nearest_mean', options={'temperature': 3.0})\n"
        "from typer.testing import CliRunner\n"
        "from pipeline.cli import app\n"
        "runs = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps([(run.exit_code, run.output) for run in runs]))"
    )
    # The registry is read when the command line is imported: by a process of its own, by one.
    process = WarmProcess(code, json.dumps(commands), environment=os.environ)
    printed, complaints = process.communicate(PATIENCE_S)
    assert process.returncode == 0, complaints
    outputs = []
    for exit_code, output in json.loads(printed):
        assert exit_code == 0, output
        outputs.append(output)
    (result,) = json.loads(outputs[0])
    assert result["settings"]["temperature"] == 2.0
    assert result["scores"][0]["metrics"]["auroc"]["value"] > 0.9
    assert "Nearest class mean" in outputs[1]
    assert json.loads(outputs[2])[0]["cached"]
    assert "Take the class of the nearest mean." in outputs[3]
    assert "Nearest class mean" in page.read_text()
