"""Survival end to end: Cox on a phantom whose hazard is known, filed, asked, validated, shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.annotations.units import Truth
from pipeline.cli import app
from pipeline.config.tasks import Task
from pipeline.evaluate import evaluate
from pipeline.evaluation.heads.contract import FitInput
from pipeline.evaluation.heads.cox import HEAD, CoxSettings, fit, partial_likelihood, predict
from pipeline.evaluation.result_files import read_predictions
from stores.errors import LabelError
from tests.pipeline.collection import config_of, make_store, thirds, units_of, write_csv

N = 240
TASK = {"time": "days", "event": "died"}
# The log of the hazard is so many times the first and the second feature.
TRUE = np.array([1.0, -0.6])


def hazards(n: int = N, seed: int = 0) -> tuple[np.ndarray[Any, Any], Truth]:
    """Return features (n, 8) and the survival that they say, a third of it censored."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8)).astype(np.float32)
    happens = rng.exponential(300 * np.exp(-x[:, :2] @ TRUE))
    until = rng.exponential(600, n)
    y = np.stack([np.ceil(np.minimum(happens, until)), happens <= until], axis=1)
    return x, Truth(y, np.arange(n).astype(np.str_), ("died",), "survival")


def collection(root: Path, seed: int = 0) -> Path:
    """Write a store of N patients, an image each, and a label file with their survival."""
    x, truth = hazards(seed=seed)
    root.mkdir(exist_ok=True)
    make_store(
        root / "store",
        np.repeat(x[:, None], 4, axis=1),
        [{"patient": f"P{seed}-{i}"} for i in range(N)],
        images=np.arange(N) + 1 + seed * N,
    )
    time, event = truth.y.T
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        days=["" if i == 7 else int(t) for i, t in enumerate(time)],
        died=["dead" if e else "alive" for e in event],
        sex=np.arange(N) % 2,
    )
    config = {
        "data": {"root": "."},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": {"death": {**TASK, "positive": "dead", "subgroups": ["sex"]}},
        "cox": {"steps": 2},
    }
    (root / "c.yaml").write_text(yaml.safe_dump(config))
    return root


def test_the_known_hazard_comes_back() -> None:
    x, truth = hazards(2000)
    units = replace(
        units_of(np.zeros(2000, int) + 1), y=truth.y, kind="survival", classes=("died",)
    )
    parts = {name: rows for name, rows in thirds(2000).items() if name != "test"}
    model = fit(FitInput(x, units, parts, CoxSettings(steps=2)))
    assert model.coef is not None
    np.testing.assert_allclose(model.coef[:2], TRUE, atol=0.08)
    np.testing.assert_allclose(model.coef[2:], 0, atol=0.08)
    (said,) = predict(model, x, np.arange(2000)).predictions
    assert np.corrcoef(said.proba[:, 0], x[:, :2] @ TRUE)[0, 1] > 0.99


def test_the_partial_likelihood_by_hand() -> None:
    # Of three the first had the event when all were watched, the second of two that were left.
    y = np.array([[1.0, 1], [2, 1], [3, 0]])
    truth = Truth(y, np.array(["a", "b", "c"]), ("died",), "survival")
    hazard = np.array([2.0, 1, 3])
    by_hand = np.log(2 / 6) + np.log(1 / 4)
    assert partial_likelihood(truth, np.log(hazard)) == pytest.approx(by_hand)
    tied = replace(truth, y=np.array([[1.0, 1], [1, 1], [3, 0]]))
    assert partial_likelihood(tied, np.log(hazard)) == pytest.approx(np.log(2 / 6) + np.log(1 / 6))


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
def test_evaluate_asks_cox_of_survival_alone(tmp_path: Path, kind: str) -> None:
    root = collection(tmp_path)
    tasks = {
        "death": {**TASK, "positive": "dead", "subgroups": ["sex"]},
        "sex": {"labels": ["sex"]},
    }
    few: dict[str, Any] = {"probe": {"steps": 2}, "fewshot": {"episodes": 5}}
    split = {"kind": kind, "folds": 3}
    config = config_of(root, tasks=tasks, split=split, cox={"steps": 2}, **few)
    answers = evaluate(config)
    assert [(each.task, each.method) for each in answers] == [
        ("death", "cox"), ("sex", "knn"), ("sex", "probe"), ("sex", "fewshot")
    ]  # fmt: skip
    cox = answers[0]
    assert (cox.kind, cox.classes) == ("survival", ("died",))
    assert "1 row with only one of 'died' and 'days' left out" in cox.notes
    assert cox.tally.unlabelled_units == 1
    metrics = cox.main_score.metrics
    assert metrics.keys() == {"c_harrell", "c_uno"}
    assert all(0.65 < each.value < 0.85 for each in metrics.values())
    assert cox.main_score.subgroups.keys() == {"sex=0", "sex=1"}
    # What is on file scores the same, and each side has its share of the events.
    truth, risk, fold = read_predictions(root / "store", cox)
    from pipeline.evaluation.metrics.metrics import score

    again, _ = score(truth, risk, fold)
    assert again == metrics
    if kind == "holdout":  # each side has at least half of its share of the events
        events = sum(part.positives["died"] for part in cox.counts.values())
        assert all(cox.counts[part].positives["died"] >= events / 6 for part in ("val", "test"))
    assert evaluate(config)[0].cached
    # Another head says why it is not asked.
    probe, _ = evaluate(config, ["probe"])
    assert probe.scores == ()
    assert "Linear probe is not asked about survival: cox can be" in probe.notes


def test_a_model_says_risks_and_is_validated(tmp_path: Path) -> None:
    root = collection(tmp_path)
    elsewhere = str(collection(tmp_path / "elsewhere", seed=1) / "c.yaml")
    config, model = str(root / "c.yaml"), str(root / "model")
    run = CliRunner()
    for words in (
        ["fit", config, "--out", model],
        ["predict", model, config, "--out", str(root / "said.csv")],
        ["validate", model, elsewhere],
        ["report", config, "--out", str(root / "page.html"), "--figures", str(root / "figures")],
    ):
        done = run.invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
    table = pacsv.read_csv(root / "said.csv")
    assert {"risk", "unlike_p"} <= set(table.column_names)
    assert "decision" not in table.column_names
    x, _ = hazards()
    by_path = dict(zip(table["path"].to_pylist(), table["risk"].to_pylist(), strict=True))
    risk = np.array([by_path[f"f{i}.png"] for i in range(N)])
    assert np.corrcoef(risk, x[:, :2] @ TRUE)[0, 1] > 0.9
    page = (root / "page.html").read_text()
    assert "Survival by risk" in page
    assert "Harrell" in page
    assert list((root / "figures").glob("*survival.svg"))
    assert "higher is sooner" in (root / "model/card.md").read_text()


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        (
            "days",
            "-3",
            "Nobody is watched for less than no time. Column 'days' has 1 number below 0",
        ),
        ("days", "soon", "A column of time must hold finite numbers. Column 'days'.*between dates"),
        (
            "died",
            "maybe",
            "says of each whether it was seen.*3 classes|has 'alive', 'dead', 'maybe'",
        ),
    ],
)
def test_odd_cells_are_refused(tmp_path: Path, column: str, cell: str, says: str) -> None:
    root = collection(tmp_path)
    lines = (root / "labels.csv").read_text().splitlines()
    cells = lines[1].split(",")
    cells[lines[0].split(",").index(column)] = cell
    (root / "labels.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    with pytest.raises(LabelError, match=says):
        evaluate(config_of(root, tasks={"death": {**TASK, "positive": "dead"}}), ["cox"])


@pytest.mark.parametrize(
    "task",
    [
        {"time": "days"},
        {"event": "died"},
        {"time": "died", "event": "died"},
        {"time": "days", "event": "died", "labels": ["sex"]},
        {"time": "days", "event": "died", "values": "number"},
    ],
)
def test_a_task_of_survival_names_two_columns_and_no_label(task: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A task of survival"):
        Task.model_validate(task)
    assert Task.model_validate(TASK).labels == ("died",)


@pytest.mark.parametrize(
    ("events", "days", "says"),
    [
        ("0", "1", "Column 'died' has '0' among.*nobody had the event"),
        ("12", "1", "beside `event: died`"),
        ("01", "20240131", "Column 'days' has another in data row 1 and 5 more.*between dates"),
    ],
)
def test_no_event_and_no_time_are_refused(
    tmp_path: Path, events: str, days: str, says: str
) -> None:
    make_store(tmp_path / "store", np.zeros((6, 4, 2)), [{"patient": f"P{i}"} for i in range(6)])
    died = [events[i % len(events)] for i in range(6)]
    write_csv(
        tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(6)], days=[days] * 6, died=died
    )
    with pytest.raises(LabelError, match=says):
        evaluate(config_of(tmp_path, tasks={"death": TASK}), ["cox"])


def test_nobody_with_the_event_is_said(tmp_path: Path) -> None:
    x, truth = hazards(60)
    units = replace(units_of(np.ones(60, int)), y=truth.y * [1, 0], kind="survival", classes=("d",))
    parts = {name: rows for name, rows in thirds(60).items() if name != "test"}
    model = fit(FitInput(x, units, parts, CoxSettings()))
    predicted = predict(model, x, np.arange(3))
    assert not list(predicted.predictions)
    assert predicted.notes == ("no train unit has the event",)
    assert HEAD.to_state is not None
    assert HEAD.to_state(model, x) is None
