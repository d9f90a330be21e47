"""A model on the labels of another collection, and what it must not be held against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.printing import show_validation
from pipeline.config.root import Config
from pipeline.evaluation.known import patient_digest
from pipeline.fitted.fit import fit
from pipeline.fitted.model import Model
from pipeline.fitted.validate import validate
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError, LabelError, RecipeMismatchError
from tests.pipeline.collection import config_of, make_store, write_csv

N = 120


def collection(root: Path, seed: int, images: np.ndarray | None = None, d: int = 12) -> Path:
    """Write a store of 40 patients, 3 images each, whose features tell who is sick."""
    root.mkdir()
    rng = np.random.default_rng(seed)
    patient = np.arange(N) // 3
    sick = rng.integers(0, 2, 40)[patient]
    cls = rng.standard_normal((N, 4, d))
    cls[:, 3, 0] += 2 * sick
    pictures = images if images is not None else 1000 * seed + np.arange(N)
    make_store(root / "store", cls, [{"patient": f"{seed}-{p}"} for p in patient], images=pictures)
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        sick=["yes" if s else "no" for s in sick],
        grade=rng.integers(0, 3, N),
        sex=np.where(patient % 2, "f", "m"),
    )
    return root


def config(root: Path, **task: Any) -> Config:
    return config_of(root, tasks={"sick": {"labels": ["sick"], "subgroups": ["sex"]} | task})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collection(tmp_path_factory.mktemp("sites") / "home", 1)


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return fit(config(home), home / "model")


def test_a_model_is_held_against_other_labels(model: Model, tmp_path: Path) -> None:
    away = config(collection(tmp_path / "away", 2))
    validation = validate(model, away)
    assert validation.count.units == N
    assert validation.left_out == 0
    auroc = validation.score.metrics["auroc"]
    assert auroc.low is not None
    assert auroc.low < auroc.value
    assert auroc.value > 0.8
    assert validation.score.operating_points == {"": (model.record.thresholds["yes"],)}
    assert set(validation.score.subgroups) == {"sex=f", "sex=m"}
    slope = validation.calibration["yes"]["slope"]
    assert slope.low is not None
    assert slope.low > 0
    assert [each.threshold for each in validation.benefit["yes"]][:2] == [0.05, 0.1]
    # Of the same kind of features, nothing tells them apart.
    assert validation.unlike.value < 0.2
    assert 0.3 < validation.domain_auroc < 0.7
    assert any("another key" in note for note in validation.notes)


def test_a_labelled_image_that_is_not_there_is_told(model: Model, tmp_path: Path) -> None:
    away = config(collection(tmp_path / "away", 2))
    with (tmp_path / "away/labels.csv").open("a") as file:
        file.write("lost.png,yes,0,f\n")
    console = Console(width=200)
    with console.capture() as captured:
        show_validation(console, validate(model, away))
    assert "sick: left out 1 unmatched labels." in captured.get()


def test_what_the_model_has_learnt_from_is_refused_or_left_out(model: Model, home: Path) -> None:
    count = model.record.counts
    learnt = count["train"].units + count["val"].units
    patients = count["train"].patients + count["val"].patients
    with pytest.raises(LabelError, match=rf"{learnt} of the {N} units, of {patients} patients"):
        validate(model, config(home))
    validation = validate(model, config(home), leave_out_known=True)
    assert validation.left_out == learnt
    # What is left is the test side: the score is the answer's, to the last digit.
    assert validation.score.metrics == model.record.score.metrics


def test_probabilities_are_made_right_on_a_share_of_the_patients(
    model: Model, tmp_path: Path
) -> None:
    away = config(collection(tmp_path / "away", 5))
    plain = validate(model, away)
    assert plain.recalibration is None
    validation = validate(model, away, recalibrate=0.5)
    made = validation.recalibration
    assert made is not None
    assert (made.patients, made.units, validation.count.patients) == (20, 60, 20)
    assert any("made right on 20 of 40 patients" in note for note in validation.notes)
    # A slope of 1 is right: of the others, whom the calibration has not seen.
    before = validation.calibration["yes"]["slope"].value
    after = made.metrics["yes"]["slope"].value
    assert abs(np.log(after)) < abs(np.log(before))
    sigmoid = made.calibration.sigmoids["yes"]
    assert sigmoid.units == 60
    # The slope of what was made right is that of before, over the line's own.
    assert after == pytest.approx(before / sigmoid.slope, rel=1e-3)
    # The order stays, and the same patients are drawn each time.
    again = validate(model, away, recalibrate=0.5)
    assert again.score.metrics["auroc"] == validation.score.metrics["auroc"]
    assert again.recalibration == made
    for share, says in ((0.0, "Got 0 instead"), (1.0, "Got 1 instead"), (1.5, "Got 1.5")):
        with pytest.raises(ConfigError, match=says):
            validate(model, away, recalibrate=share)
    with pytest.raises(LabelError, match="cannot be made right on 4: .* 10 are needed"):
        validate(model, away, recalibrate=0.1)


def test_the_same_pixels_under_other_names_are_known(model: Model, tmp_path: Path) -> None:
    copied = config(collection(tmp_path / "copied", 3, images=1000 + np.arange(N)))
    with pytest.raises(LabelError, match="by their patients or pixels"):
        validate(model, copied)


def test_a_patient_known_by_one_image_is_left_out_with_all(model: Model, tmp_path: Path) -> None:
    """Another key names the patients otherwise; the first image of each is a copy."""
    images = 9000 + np.arange(N)
    images[::3] = 1000 + np.arange(0, N, 3)
    away = config(collection(tmp_path / "away", 3, images=images))
    count = model.record.counts
    learnt = count["train"].patients + count["val"].patients
    with pytest.raises(LabelError, match=rf"{3 * learnt} of the {N} units, of {learnt} patients"):
        validate(model, away)
    validation = validate(model, away, leave_out_known=True)
    assert validation.left_out == 3 * learnt
    assert validation.count.patients == 40 - learnt


def test_a_withdrawal_names_the_models_that_hold_the_patient(
    model: Model, home: Path, tmp_path: Path
) -> None:
    """Of the patients those of train and val are in the model, which lies beside the store."""
    folder = tmp_path / "home"
    shutil.copytree(home, folder)
    (folder / "no-model").mkdir()
    (folder / "no-model/model.json").write_text("{}")
    learnt = {digest.tobytes() for digest in model.training["patients"]}
    names = {f"1-{i}": Names(home / "store").pseudonym("patient", f"1-{i}") for i in range(40)}
    by_model: dict[bool, str] = {}
    for name, pseudonym in names.items():
        by_model[patient_digest(pseudonym).tobytes() in learnt] = name
    for is_learnt, name in by_model.items():
        command = ["withdraw", str(folder / "store"), "--patient", name]
        said = CliRunner().invoke(app, command, env={"COLUMNS": "1000"}).stdout
        assert "made before by `radprobe fit` still hold the patient" in said
        assert ("have learnt from the patient, to be fitted again" in said) == is_learnt
        done = json.loads(CliRunner().invoke(app, [*command, "--purge", "--json"]).stdout)
        assert done["models"] == [str(folder / "model")] * is_learnt
    assert len(by_model) == 2
    assert "fit" not in CliRunner().invoke(app, [*command, "--undo"]).stdout


def test_another_question_is_refused_with_both_values(model: Model, tmp_path: Path) -> None:
    away = collection(tmp_path / "away", 2)
    with pytest.raises(LabelError, match="multiclass here, binary in the model"):
        validate(model, config(away, labels=["grade"]))
    with pytest.raises(LabelError, match="level: patient here, image in the model"):
        validate(model, config(away, level="patient"))
    with pytest.raises(ConfigError, match="no task 'ill'. It has: sick"):
        validate(model, config(away), task="ill")
    wide = config(collection(tmp_path / "wide", 4, d=16))
    with pytest.raises(RecipeMismatchError, match="architecture.dim: 16 there, 12 in the model"):
        validate(model, wide)
