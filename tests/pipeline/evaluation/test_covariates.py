"""Columns of the label table beside features: what train says of them, and what never leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.api import data
from pipeline.cli import app
from pipeline.config.tasks import Task
from pipeline.config.tuning import Lora
from pipeline.evaluate import evaluate
from pipeline.evaluation.covariates import Covariate, Covariates, tells_all
from pipeline.evaluation.heads.linear import LinearSettings
from pipeline.evaluation.questions import cases_of
from pipeline.fitted.fit import fit
from pipeline.results import Result
from stores.errors import ConfigError, LabelError
from tests.pipeline.collection import config_of, make_store, write_csv

N = 120


def texts(*values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.str_)


# --- as numbers ------------------------------------------------------------------------------


def test_numbers_are_filled_and_scaled_as_train_says() -> None:
    column = Covariate.fit("age", texts(40, "", 60, 62))
    # The median stands for what is missing, in the mean and deviation too: 40, 60, 60, 62.
    assert (column.median, column.centre) == (60, 55.5)
    assert column.deviation == pytest.approx(np.std([40, 60, 60, 62]))
    encoded = column.encode(texts(55.5, "", 1000))
    np.testing.assert_allclose(
        encoded[:, 0], (np.array([55.5, 60, 1000]) - 55.5) / column.deviation, rtol=1e-6
    )
    assert column.note(texts(1, "", 2)) == (
        "column 'age': no one value of 1 of 3 units, for which the median of train stands"
    )
    assert "'age': -999 of 1 counts as a number; if it says nothing" in column.note(texts(40, -999))
    assert Covariate.fit("same", texts(5, 5)).encode(texts(5, 7)).tolist() == [[0], [2]]


def test_words_are_a_number_each_and_new_ones_none() -> None:
    column = Covariate.fit("sex", texts("m", "f", "", "m"))
    assert column.categories == ("f", "m")
    assert column.encode(texts("m", "f", "", "x")).tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]
    note = column.note(texts("m", "", "x"))
    assert "no one value of 1 of 3 units, for which no category stands" in note
    assert "a category that train has not of 1" in note


def test_columns_stand_one_after_the_other() -> None:
    both = Covariates.fit({"age": texts(1, 3), "sex": texts("m", "f")}, np.arange(2))
    assert both.width == 3
    assert both.encode({"age": texts(1), "sex": texts("m")}).tolist() == [[-1, 0, 1]]
    assert Covariates.model_validate_json(both.model_dump_json()) == both


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([*map(str, range(30)), "old"], "has 30 numbers and 1 words"),
        ([f"name{i}" for i in range(21)], "at most 20 words. Column 'c' has 21"),
        (["", ""], "says nothing of any train unit"),
    ],
)
def test_what_is_neither_numbers_nor_few_words_is_refused(values: list[str], says: str) -> None:
    with pytest.raises(LabelError, match=says) as refused:
        Covariate.fit("c", texts(*values))
    assert "name7" not in str(refused.value)


def test_a_word_among_numbers_is_refused_of_new_units_too() -> None:
    with pytest.raises(LabelError, match="holds words, where the train units have numbers"):
        Covariate.fit("age", texts(1, 2)).encode(texts("old"))


# --- end to end ------------------------------------------------------------------------------


def collection(root: Path, age: Any = None) -> Path:
    """Write a store whose features say half of `sick`, and labels whose age says the other half."""
    rng = np.random.default_rng(0)
    cls = rng.standard_normal((N, 4, 8))
    known = rng.normal(50, 10, N)
    sick = (cls[:, 3, 0] + (known - 50) / 10 > 0).astype(int)
    root.mkdir(exist_ok=True)
    if not (root / "store").exists():
        make_store(root / "store", cls, [{"patient": f"P{i}"} for i in range(N)])
    written = [f"{each:.1f}" for each in known]
    written[3] = ""
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        sick=sick,
        age=written if age is None else age,
        sex=np.array(["m", "f", "", "f"])[np.arange(N) % 4],
        ward=[f"w{i}" for i in range(N)],
    )
    task = {"labels": ["sick"], "columns": ["age", "sex"], "shortcuts": ["sex"]}
    config = {
        "data": {"root": "."},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": {"t": task},
        "probe": {"features": "cls+columns", "low": -3, "high": 1, "steps": 3},
    }
    (root / "c.yaml").write_text(yaml.safe_dump(config))
    return root


def ask(root: Path, features: str, **more: Any) -> Result:
    method = more.pop("method", "probe")
    task = {"labels": ["sick"], "columns": ["age", "sex"], **more.pop("task", {})}
    block = {
        "features": features,
        **({"low": -3, "high": 1, "steps": 3} if method == "probe" else {}),
    }
    config = config_of(root, **{"tasks": {"t": task}, method: block, **more})
    return evaluate(config, [method])[0]


def auroc(result: Result) -> float:
    return result.main_score.metrics["auroc"].value


def test_columns_beside_features_say_more_than_either(tmp_path: Path) -> None:
    root = collection(tmp_path)
    alone, columns, both = (ask(root, each) for each in ("cls", "columns", "cls+columns"))
    assert "tells the class" not in " ".join(both.notes)
    assert both.features == "cls+columns"
    assert auroc(both) > max(auroc(alone), auroc(columns)) + 0.05
    assert "column 'age': no one value of 1 of 120 units" in " ".join(both.notes)
    assert "column 'sex': no one value of 30 of 120 units" in " ".join(both.notes)
    assert not any(note.startswith("column") for note in alone.notes)
    assert ask(root, "cls+columns", method="knn").scores
    assert ask(root, "cls+columns", split={"kind": "kfold"}).scores


def test_a_column_that_is_the_label_is_noted() -> None:
    y = np.arange(20) % 2
    assert tells_all(texts(*y), y)
    assert tells_all(texts("", *y[1:]), y)
    assert not tells_all(texts(*y[:19], 0), y)
    assert not tells_all(texts(*range(20)), y)
    assert not tells_all(texts(*np.where(y, "seen", "")), y)


def test_nothing_of_test_is_in_the_numbers_of_train(tmp_path: Path) -> None:
    root = collection(tmp_path)
    config = config_of(
        root,
        tasks={"t": {"labels": ["sick"], "columns": ["age", "sex"]}},
        probe={"features": "columns", "low": -3, "high": 1, "steps": 3},
    )
    (cases,) = cases_of(config)
    cases.ensure_split()
    parts = cases.folds[0]
    before = cases.unscaled(cases.config.probe, parts)  # type: ignore[attr-defined]
    # Each slice has its unit's.
    of_slices = cases.unscaled_slices(cases.config.probe, parts)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(of_slices, before[cases.units.unit])
    fitted = np.concatenate([parts["train"], parts["val"]])
    rows = cases.units.rows[np.isin(cases.units.unit, parts["test"])]
    lines = (root / "labels.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for row in rows.tolist():
        cells[row + 1][2:4] = ["999", "other"]
    (root / "labels.csv").write_text("\n".join(map(",".join, cells)) + "\n")
    (cases,) = cases_of(config)
    cases.ensure_split()
    after = cases.unscaled(cases.config.probe, parts)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(after[fitted], before[fitted])
    assert (after[parts["test"]] != before[parts["test"]]).any()


def test_a_model_asks_for_its_columns(tmp_path: Path) -> None:
    root = collection(tmp_path)
    run = CliRunner()
    config, model, said = str(root / "c.yaml"), str(root / "model"), root / "said.csv"
    for words in (
        ["evaluate", config],  # a shortcut is asked of the features alone
        ["fit", config, "--out", model],
        ["predict", model, config, "--out", str(said)],
    ):
        done = run.invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
    record = json.loads((root / "model/model.json").read_text())
    assert [each["name"] for each in record["covariates"]["columns"]] == ["age", "sex"]
    table = pacsv.read_csv(said)
    notes = dict(zip(table["path"].to_pylist(), table["notes"].to_pylist(), strict=True))
    assert "no value of age: what is usual stands for it" in notes["f3.png"]
    assert "no value of sex" in notes["f2.png"]
    refused = run.invoke(
        app, ["predict", model, str(root / "store"), "--out", str(root / "no.csv")]
    )
    assert isinstance(refused.exception, ConfigError)
    assert "sees columns beside features: age, sex. Name a config" in str(refused.exception)
    without = yaml.safe_load((root / "c.yaml").read_text())
    (root / "labels.csv").write_text("path,sick\nf0.png,1\n")
    (root / "d.yaml").write_text(yaml.safe_dump(without | {"tasks": {}}))
    refused = run.invoke(
        app, ["predict", model, str(root / "d.yaml"), "--out", str(root / "no.csv")]
    )
    assert isinstance(refused.exception, LabelError)
    assert "no column 'age'" in str(refused.exception)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    root = collection(tmp_path)
    with pytest.raises(ValueError, match="must not be what is predicted. Got 'sick'"):
        Task(labels=("sick",), columns=("age", "sick"))
    with pytest.raises(ValueError, match="must not be what is predicted. Got 'days'"):
        Task.model_validate({"time": "days", "event": "died", "columns": ["days"]})
    with pytest.raises(ValueError, match="Columns must name each column once. Got 'age' 2 times"):
        Task(labels=("sick",), columns=("age", "age"))
    with pytest.raises(ValueError, match="Got 'region.structure' instead, which is of regions"):
        Task(labels=("sick",), columns=("region.structure",))
    with pytest.raises(LabelError, match=r"the task names no columns. Write `columns:"):
        ask(root, "cls+columns", task={"columns": []})
    with pytest.raises(LabelError, match="at most 20 words. Column 'ward' has"):
        ask(root, "cls+columns", task={"columns": ["ward"]})
    with pytest.raises(ValueError, match="of which columns are none"):
        LinearSettings(features="cls+columns")
    with pytest.raises(ValueError, match=r"tuned on images.*Got features 'cls\+columns'; leave"):
        Lora.model_validate({"features": "cls+columns"})
    config = config_of(root, tasks={"t": {"labels": ["sick"], "columns": ["age"]}})
    with pytest.raises(ConfigError, match="stand in no array"):
        data(config, "t", "cls+columns")
    alone = config.model_copy(
        update={"probe": config.probe.model_copy(update={"features": "columns"})}  # type: ignore[attr-defined]
    )
    with pytest.raises(ConfigError, match="A model is of images"):
        fit(alone, root / "model")


def test_decimal_commas_are_points(tmp_path: Path) -> None:
    root = collection(tmp_path)
    table = (root / "labels.csv").read_text().replace(",", ";").replace(".", ",")
    (root / "labels.csv").write_text(table.replace(",png", ".png"))
    assert ask(root, "columns").scores
