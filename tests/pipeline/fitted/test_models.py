"""From an answer to a model: what it says of stores and folders, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.evaluation.slice_weights import SLICE_WEIGHTS, most_heeded, read_slice_weights
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted import units as units_module
from pipeline.fitted.calibration import Sigmoid
from pipeline.fitted.card import card_text
from pipeline.fitted.estimator import Estimator
from pipeline.fitted.fit import fit
from pipeline.fitted.folder import CARD, RECORD
from pipeline.fitted.model import Model
from pipeline.fitted.predict import LEARNT, predict, predictions, watch
from pipeline.fitted.sources import FolderOptions, NoImagesError, open_source
from pipeline.report.cases import task_cases
from pipeline.report.mattered import heeded_slices
from pipeline.report.sources import Source
from pipeline.shared.interruption import left_behind
from pipeline.shared.table_files import table_writer
from stores._disk import seal, unseal
from stores.errors import (
    ConfigError,
    ModelError,
    OccupiedError,
    RadprobeError,
    RecipeMismatchError,
)
from stores.features import VOID, FeatureStore
from tests.fresh import said
from tests.phantoms import dicom, save, write_png
from tests.pipeline.collection import config_of, make_store, write_csv
from tests.pipeline.models import write_tiny_folder

N = 120
HERE = Speed(device="cpu", workers=0)
TASKS: dict[str, dict[str, Any]] = {
    "binary": {"labels": ["sick"]},
    "several": {"labels": ["grade"]},
    "labels": {"labels": ["a", "b"]},
    "number": {"labels": ["age"], "values": "number"},
    "patient": {"labels": ["sick"], "level": "patient"},
}
SMALL: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 2, "features": "cls+mean"},
    "attention": {"epochs": 2, "hidden": 4},
    "transformer": {"epochs": 2, "width": 8, "heads": 2},
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of 40 patients, 3 images each, and labels."""
    root = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 3
    sick = rng.integers(0, 2, 40)[patient]
    a, b, grade = (rng.integers(0, high, N) for high in (2, 2, 3))
    cls = rng.standard_normal((N, 4, 12))
    cls[:, 3, 0] += 2 * sick
    cls[:, 3, 1] += 2 * a
    cls[:, 3, 2] += grade
    make_store(
        root / "store",
        cls,
        [{"patient": f"MUELLER-{p}"} for p in patient],
        images=np.arange(N),
    )
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        sick=["yes" if s else "no" for s in sick],
        grade=grade,
        a=a,
        b=b,
        age=cls[:, 3, 0] + 50,
    )
    return root


def config(root: Path, task: str, **more: Any) -> Config:
    return config_of(root, tasks={task: TASKS[task]}, **SMALL, **more)


def answered(root: Path, config: Config, method: str) -> dict[str, np.ndarray]:
    """Return what `evaluate` filed of each test unit, by its name."""
    (result,) = evaluate(config, [method])
    _, proba, _ = read_predictions(root / "store", result)
    return dict(zip(predicted_units(root / "store", result), proba, strict=True))


@pytest.fixture(scope="module")
def probe(collection: Path) -> Model:
    return fit(config(collection, "binary"), collection / "probe")


@pytest.fixture(scope="module")
def knn(collection: Path) -> Model:
    return fit(config(collection, "patient"), collection / "knn", method="knn")


@pytest.fixture
def copy(probe: Model, tmp_path: Path) -> Path:
    """Return a copy of a model's folder, to be damaged."""
    return Path(shutil.copytree(probe.path, tmp_path / "copy"))


def numbers(table: Any) -> np.ndarray:
    names = [name for name in table.column_names if name.startswith(("proba:", "value"))]
    return np.stack([table[name].to_numpy() for name in names], axis=1)


# --- a model says what its answer says ---------------------------------------------------------


# What a head's file says of every kind of question is tried where all heads are.
@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("probe", "binary"),
        ("probe", "several"),
        ("probe", "number"),
        ("probe", "patient"),
        ("knn", "labels"),
        ("linear", "binary"),
        ("attention", "patient"),
        ("transformer", "patient"),
    ],
)
def test_a_model_says_of_the_test_units_what_the_answer_says(
    collection: Path, tmp_path: Path, method: str, task: str
) -> None:
    settings = config(collection, task)
    model = fit(settings, tmp_path / "model", method=method)
    table = predictions(Model.load(model.path), collection / "store")
    of_model = dict(zip(table["unit"].to_pylist(), numbers(table), strict=True))
    expected = answered(collection, settings, method)
    assert expected
    for unit, proba in expected.items():
        np.testing.assert_allclose(of_model[unit], proba, atol=1e-6)
    assert model.record.difference <= 1e-6


def test_how_much_each_slice_counted_is_filed_and_predicted_alike(
    collection: Path, tmp_path: Path
) -> None:
    settings = config(collection, "patient")
    model = fit(settings, tmp_path / "model", method="attention")
    (result,) = evaluate(settings, ["attention"])
    store = FeatureStore.open(settings.store)
    filed = read_slice_weights(store, result)
    assert filed is not None
    assert filed.schema == SLICE_WEIGHTS
    tested = result.counts["test"].units
    assert filed.num_rows == 3 * tested
    assert sum(filed["weight"].to_pylist()) == pytest.approx(tested)
    # As the store has them, and as the files are called to whoever has the key.
    assert {path.startswith("f") for path in filed["path"].to_pylist()} == {True}
    predict(model, collection / "store", tmp_path / "said.csv")
    said = pacsv.read_csv(tmp_path / "said.slices.csv")
    assert said.column_names == SLICE_WEIGHTS.names
    assert said.num_rows == N
    of_model = {each["row"]: each["weight"] for each in said.to_pylist()}
    # A head whose parameters were others when it was filed.
    older = Model.load(model.path)
    older._arrays["classify.weight"] = older._arrays.pop("content.weight")
    with pytest.raises(ModelError, match="was written by another radprobe"):
        _ = older.predictor
    for each in filed.to_pylist():
        assert of_model[each["row"]] == pytest.approx(each["weight"], abs=1e-6)
    heeded = most_heeded(filed, 2)
    assert len(heeded) == tested
    for slices in heeded.values():
        assert slices[0][1] >= slices[1][1]
    source = Source("here", store, settings)
    title = "Slices that mattered: Attention over slices"
    (shown,) = (group for group in heeded_slices(source)["patient"] if group.title == title)
    assert len(shown.units) == min(6, tested)
    assert {row for row, _ in shown.units[0][2]} <= set(filed["row"].to_pylist())
    (group,) = (each for each in task_cases(source, None, {})["patient"] if each.title == title)
    assert [case.row for case in group.cases] == [slices[0][0] for _, _, slices in shown.units]
    assert "pooled by" not in card_text(model.record)
    said = r"weight 0\.\d\d; probability of 'yes' [\d.e-]+, truly (yes|no)"
    assert re.fullmatch(said, group.cases[0].about)
    assert [len(case.neighbours) for case in group.cases] == [2] * len(group.cases)


def test_a_small_val_is_calibrated_by_models_that_have_not_seen_the_patient(
    collection: Path, probe: Model, tmp_path: Path
) -> None:
    several = fit(config(collection, "several"), tmp_path / "model", method="knn")
    for model in (probe, several):
        counts = model.record.counts
        units = counts["train"].units + counts["val"].units
        made = model.record.calibration
        assert made is not None
        assert made.fitted_on == "folds"
        one = made.temperature or made.sigmoids["yes"]
        assert one.units == units
        card = (model.path / CARD).read_text()
        assert f"{units} units of train and val, by cross-fitting" in card
    again = fit(config(collection, "several"), tmp_path / "again", method="knn")
    assert again.record == several.record


def test_no_calibration_is_learnt_of_patients_who_were_fitted_on(tmp_path: Path) -> None:
    """Features that tell patients apart, and nothing of who is sick."""
    rng = np.random.default_rng(3)
    patient = np.arange(N) // 3
    cls = np.repeat(rng.standard_normal((40, 12))[patient][:, None], 4, axis=1)
    cls += 0.01 * rng.standard_normal(cls.shape)
    make_store(
        tmp_path / "store", cls, [{"patient": f"p{p}"} for p in patient], images=np.arange(N)
    )
    sick = rng.permutation(40)[patient] % 2
    names = [f"f{i}.png" for i in range(N)]
    write_csv(tmp_path / "labels.csv", path=names, sick=sick)
    split = {"allow": ["near-duplicates"]}
    model = fit(config(tmp_path, "binary", split=split), tmp_path / "model", method="knn")
    made = model.record.calibration
    if made is None:
        assert any("cannot be told from one by chance" in note for note in model.record.notes)
        return
    (one,) = made.sigmoids.values()
    assert isinstance(one, Sigmoid)
    assert one.slope < 0.3


@pytest.mark.parametrize("scaling", ["standardise", "whiten"])
def test_features_are_scaled_as_the_train_units_said(
    collection: Path, tmp_path: Path, scaling: str
) -> None:
    settings = config(collection, "binary", probe={"steps": 5, "scaling": scaling})
    # Held against the answer's own predictions as it is fitted.
    model = fit(settings, tmp_path / "model")
    assert model.record.difference <= 1e-6
    assert set(numbers(predictions(model, collection / "store")).sum(axis=1).round(9)) == {1.0}


def test_of_folds_the_model_is_the_first_ones_and_says_so(collection: Path, tmp_path: Path) -> None:
    settings = config(collection, "binary", split={"kind": "kfold"})
    record = fit(settings, tmp_path / "model").record
    assert record.difference <= 1e-6
    assert any("the first of them" in note for note in record.notes)


def test_pieces_of_any_size_say_the_same(
    collection: Path, knn: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = knn
    whole = predictions(model, collection / "store")
    monkeypatch.setattr(units_module, "SLICES_AT_ONCE", 7)
    pieces = predictions(model, collection / "store")
    assert whole.drop(["proba:no", "proba:yes"]).equals(pieces.drop(["proba:no", "proba:yes"]))
    np.testing.assert_allclose(numbers(whole), numbers(pieces), atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_predictions_are_a_file(
    collection: Path, probe: Model, tmp_path: Path, suffix: str
) -> None:
    model = probe
    out = tmp_path / f"predictions{suffix}"
    tally = predict(model, collection / "store", out)
    assert tally.units == N == sum(tally.decided.values())
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = json.loads(out.read_text()) if suffix == ".json" else pq.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == [f"f{i}.png" for i in range(N)]
    expected = predictions(model, collection / "store")["proba:yes"].to_pylist()
    assert [float(row["proba:yes"]) for row in rows] == expected
    assert {row["decision"] for row in rows} == {"yes", "no"}
    assert all("RANDOM WEIGHTS" in row["notes"] for row in rows)


def test_predictions_say_where_they_are_called_and_what_was_learnt(
    collection: Path, probe: Model, tmp_path: Path
) -> None:
    table = predictions(probe, collection / "store")
    point = probe.record.thresholds["yes"]
    assert table["called_from:yes"].to_pylist() == [point] * N
    proba = table["proba:yes"].to_numpy()
    called = np.where(proba >= point, "yes", "no").tolist()
    assert table["decision"].to_pylist() == called
    counts = probe.record.counts
    learnt = counts["train"].units + counts["val"].units
    marked = [LEARNT in note for note in table["notes"].to_pylist()]
    assert 0 < sum(marked) == learnt < N
    command = ["predict", str(probe.path), str(collection / "store")]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "p.csv")])
    assert f"{called.count('no')} called no, {called.count('yes')} called yes." in done.stdout
    said = f"yes, the positive class, is called from a probability of {point:.4g} on"
    assert said in " ".join(done.stdout.split())
    assert f"{learnt} are of patients or images that the model has learnt from" in done.stdout


def test_no_cell_of_predictions_is_a_formula(tmp_path: Path) -> None:
    paths = ["=cmd|x", "+1.png", "-a", "@a", "a=b"]
    piece = pa.table({"path": paths, "proba:-": [0.5, -0.25, 1.0, 0.0, None]})
    with table_writer(tmp_path / "p.csv", piece.schema) as write:
        write(piece)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["'=cmd|x", "'+1.png", "'-a", "'@a", "a=b"]
    assert [row["proba:-"] for row in rows] == ["0.5", "-0.25", "1.0", "0.0", ""]


# --- what a model holds ------------------------------------------------------------------------


def test_a_model_names_no_patient_and_no_path(collection: Path, probe: Model, knn: Model) -> None:
    from stores import FeatureStore

    table = FeatureStore.open(collection / "store").slices()
    names = {*table["patient"].to_pylist(), *table["path"].to_pylist()}
    names |= {f"MUELLER-{p}" for p in range(40)}
    for model in (probe, knn):
        text = b"".join(path.read_bytes() for path in sorted(model.path.iterdir()))
        assert not [name for name in names if name.encode() in text]


def test_every_flipped_bit_is_refused(copy: Path) -> None:
    files = sorted(copy.iterdir())
    assert len(files) == 5
    rng = random.Random(0)
    for number in range(200):
        path = files[number % len(files)]
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match=r"altered|no model"):
            Model.load(copy)
        path.write_bytes(data)
    Model.load(copy)


def test_a_probe_is_asked_without_torch_or_scikit_learn(collection: Path, probe: Model) -> None:
    code = (
        "import sys\n"
        "from pipeline.api import load_model\n"
        f"model = load_model({str(probe.path)!r})\n"
        f"print(len(model.predict_proba({str(collection / 'store')!r})))\n"
        "from tests.fresh import WITH_TORCH\n"
        "print(sorted((WITH_TORCH | {'sklearn'}) & sys.modules.keys()))"
    )
    assert said(code).split("\n")[:2] == [str(N), "[]"]


def test_the_model_is_asked_in_scikit_learns_words(collection: Path, tmp_path: Path) -> None:
    from sklearn.metrics import auc, balanced_accuracy_score, roc_curve

    from pipeline import api

    settings = config(collection, "binary")
    model = api.fit(settings, tmp_path / "model")
    data = api.data(settings, "binary")
    assert data.X.shape == (N, model.n_features_in_)
    assert set(data.part) == {"train", "val", "test"}
    assert model.record.classes == ("no", "yes")
    assert model.classes_.tolist() == [0, 1]
    proba = model.predict_proba(data.X)
    assert proba.shape == (N, 2)
    np.testing.assert_allclose(proba, model.predict_proba(collection / "store"), atol=1e-6)
    assert (model.predict(data.X) == model.predict(str(collection / "store"))).all()
    assert (model.predict(data.X) == data.y)[data.part == "train"].mean() > 0.7
    # Without a word of which class is positive.
    test = data.part == "test"
    false, true, _ = roc_curve(data.y[test], proba[test, 1])
    assert auc(false, true) == pytest.approx(model.record.score.metrics["auroc"].value)
    accuracy = balanced_accuracy_score(data.y[test], model.predict(data.X[test]))
    expected = model.record.score.metrics["balanced_accuracy"].value
    assert accuracy == pytest.approx(expected)
    several = api.data(config(collection, "several"), "several")
    assert sorted({*several.y.tolist()}) == ["0", "1", "2"]
    batches = [(len(x), y.tolist()) for x, y in several.loader("train", "val", batch_size=8)]
    assert batches[0][0] == 8
    taught = np.isin(several.part, ["train", "val"])
    assert [each for _, y in batches for each in y] == several.y[taught].astype(int).tolist()
    with pytest.raises(ConfigError, match=r"test, train, val\. Got \['trian'\]"):
        several.loader("trian")
    with pytest.raises(ModelError, match=r"takes features \(n, 24\)"):
        model.predict_proba(data.X[:, :3])


# --- what is refused ---------------------------------------------------------------------------


def _truncated(model: Path) -> None:
    (model / "head.safetensors").write_bytes((model / "head.safetensors").read_bytes()[:40])


def _missing(model: Path) -> None:
    (model / "unlike.safetensors").unlink()


def _a_pipe(model: Path) -> None:
    (model / "unlike.safetensors").unlink()
    os.mkfifo(model / "unlike.safetensors")


def _swapped(model: Path) -> None:
    shutil.copy(model / "training.safetensors", model / "unlike.safetensors")


def _of_later_version(model: Path) -> None:
    document = unseal(model / RECORD)
    (model / RECORD).write_bytes(seal(document | {"format": 2}))


def _with_another_field(model: Path) -> None:
    document = unseal(model / RECORD)
    (model / RECORD).write_bytes(seal(document | {"colour": "red"}))


def _gone(model: Path) -> None:
    shutil.rmtree(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_truncated, "head.safetensors' was altered"),
        (_missing, "lacks its file 'unlike.safetensors'"),
        (_a_pipe, "'unlike.safetensors' of the model .* is no file"),
        (_swapped, "unlike.safetensors' was altered"),
        (_of_later_version, "of format 2, and this radprobe reads format 1"),
        (_with_another_field, "written by another radprobe: colour"),
        (_gone, "There is no model at"),
    ],
)
def test_a_damaged_model_is_refused(copy: Path, change: Callable[[Path], None], says: str) -> None:
    change(copy)
    with pytest.raises(ModelError, match=says):
        Model.load(copy)


def test_what_cannot_become_a_model_is_refused_before_anything_is_written(
    collection: Path, tmp_path: Path
) -> None:
    settings = config(collection, "binary")
    out = tmp_path / "model"
    cases: list[tuple[Config, dict[str, Any], str]] = [
        (settings, {"method": "fewshot"}, "A model can be made by .*probe.* Got 'fewshot'"),
        (settings, {"method": "xgboost"}, "Got 'xgboost'"),
        (settings, {"task": "nodule"}, "got 'nodule', the config has binary"),
        (
            config_of(collection, tasks={n: TASKS[n] for n in ("binary", "number")}),
            {},
            "none is named, the config has binary, number",
        ),
    ]
    for given, options, says in cases:
        with pytest.raises(ConfigError, match=says):
            fit(given, out, **options)
    assert not out.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(OccupiedError, match="a model replaces nothing"):
        fit(settings, tmp_path / "taken")


def test_features_of_another_network_are_refused_with_both_values(
    collection: Path, probe: Model, tmp_path: Path
) -> None:
    model = probe
    other = tmp_path / "other"
    make_store(other, np.zeros((4, 4, 16)), [{}] * 4)
    out = tmp_path / "p.csv"
    with pytest.raises(RecipeMismatchError, match=r"architecture.dim: 16 there, 12 in the model"):
        predict(model, other, out)
    with pytest.raises(ConfigError, match="There is nothing at"):
        predict(model, tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match=r"\.csv, \.parquet, \.json"):
        predict(model, collection / "store", tmp_path / "p.xlsx")
    assert not out.exists()


# --- folders of images -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 60 pictures of 30 patients, a config, its store and its model."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    lines = ["path,patient,look"]
    for i in range(60):
        bright = i // 2 % 2
        pixels = rng.integers(0, 200, (40, 40), np.uint8)
        pixels[: 20 if bright else 8] += np.uint8(50)
        write_png(root / f"data/{i:02d}.png", pixels)
        lines.append(f"{i:02d}.png,p{i // 2},{('dark', 'bright')[bright]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    network = write_tiny_folder(root / "tiny")
    settings = {
        "data": {"root": "data", "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{network}", "image_size": 28},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "patient"},
        "tasks": {"look": {"labels": ["look"], "positive": "bright"}},
        "probe": {"low": -3, "high": 1, "steps": 3},
    }
    (root / "my.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(root / "my.yaml")
    extract(config, HERE)
    fit(config, root / "model")
    return root


def test_new_images_elsewhere_are_answered_as_in_the_store(project: Path, tmp_path: Path) -> None:
    config = load_config(project / "my.yaml")
    store = project / "store"
    (result,) = evaluate(config, ["probe"])
    _, expected, _ = read_predictions(store, result)
    rows = predicted_units(store, result).astype(int)
    # Under other names, in another order, so that nothing but the pictures tells what they are.
    (tmp_path / "new").mkdir()
    for place, row in enumerate(rows[::-1]):
        shutil.copy(project / f"data/{row:02d}.png", tmp_path / f"new/scan{place:02d}.png")
    model = Model.load(project / "model")
    table = predictions(model, tmp_path / "new", FolderOptions(speed=HERE))
    assert table["path"].to_pylist() == [f"scan{i:02d}.png" for i in range(len(rows))]
    np.testing.assert_allclose(numbers(table)[::-1], expected, atol=1e-6)


def test_features_of_a_folder_stay_where_they_are_asked_to(project: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "data/00.png", new / "a.png")
    model = Model.load(project / "model")
    options = FolderOptions(store=tmp_path / "kept", speed=HERE)
    first = predictions(model, new, options)
    shutil.copy(project / "data/01.png", new / "b.png")
    both = predictions(model, new, options)
    assert both["path"].to_pylist() == ["a.png", "b.png"]
    # How many are asked at once is rounding.
    np.testing.assert_allclose(numbers(both)[:1], numbers(first), atol=1e-9)
    # Answered at once, the pictures gone.
    shutil.rmtree(new)
    again = predictions(model, tmp_path / "kept")
    np.testing.assert_allclose(numbers(again), numbers(both), atol=1e-9)


def test_an_interruption_says_whether_features_of_a_folder_are_kept(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def look(*_: object) -> None:
        said.append(left_behind())
        raise NoImagesError("none")

    monkeypatch.setattr("pipeline.fitted.sources._look", look)
    model = Model.load(project / "model")
    for store in (None, tmp_path / "kept"):
        with (
            pytest.raises(NoImagesError),
            open_source(model, tmp_path, FolderOptions(store=store, speed=HERE)),
        ):
            pass
    assert "is thrown away, since no --store says where to keep it" in said[0]
    assert "What was committed is kept" in said[1]


def test_a_bad_file_has_a_row_that_says_why(project: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "data/00.png", new / "a.png")
    data = (project / "data/01.png").read_bytes()
    (new / "b.png").write_bytes(data[: len(data) // 2])
    (new / "readme.txt").write_text("no image")
    model = Model.load(project / "model")
    out = tmp_path / "p.json"
    tally = predict(model, new, out, FolderOptions(speed=HERE))
    assert (tally.units, tally.unreadable) == (1, 1)
    rows = json.loads(out.read_text())
    assert [row["path"] for row in rows] == ["a.png", "b.png"]
    assert rows[1]["proba:dark"] is None
    assert "read" in rows[1]["notes"]


def test_no_file_that_is_set_aside_goes_without_a_word(project: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / ".git").mkdir(parents=True)
    shutil.copy(project / "data/00.png", new / "a.png")
    # Whose header is whole: that it is cut is known once its pixels are read.
    Image.fromarray(np.random.default_rng(0).integers(0, 200, (400, 400), np.uint8)).save(
        new / "half.jpg"
    )
    os.truncate(new / "half.jpg", (new / "half.jpg").stat().st_size // 2)
    (new / "patient7.dcm").write_bytes(b"")
    (new / "patient8.dcm").write_text("a letter")
    (new / "scans.zip").write_bytes(b"PK\3\4" + bytes(60))
    (new / "readme.txt").write_text("no image")
    (new / "started").write_bytes(b"")
    out = tmp_path / "p.csv"
    model = str(project / "model")
    kept = tmp_path / "kept"
    words = ["predict", model, str(new), "--store", str(kept), "--workers", "0", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    said = " ".join(done.output.split())
    assert "1 image units" in said
    assert "4 could not be read: their notes say why." in said
    assert (
        "Without a row, as no images by themselves: 2 files (no known image format 1; the file has "
        "no bytes 1)." in said
    )
    assert "Not searched: 1 folder (.git 1)." in said
    with out.open(newline="") as file:
        notes = {row["path"]: row["notes"] for row in csv.DictReader(file)}
    assert notes.keys() == {"a.png", "half.jpg", "patient7.dcm", "patient8.dcm", "scans.zip"}
    assert "cannot be read: empty (the file has no bytes)" in notes["patient7.dcm"]
    assert "cannot be read: not-an-image (no known image format)" in notes["patient8.dcm"]
    assert "cannot be read: unsupported (packed in an archive" in notes["scans.zip"]
    assert "no slice can be read: truncated" in notes["half.jpg"]
    # Asked about the store, without the folder, the model says the same.
    again = predictions(Model.load(project / "model"), kept)
    assert dict(zip(again["path"].to_pylist(), again["notes"].to_pylist(), strict=True)) == notes


def test_a_watched_folder_is_answered_as_images_arrive(project: Path, tmp_path: Path) -> None:
    model = Model.load(project / "model")
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "data/00.png", new / "a.png")
    options = FolderOptions(store=tmp_path / "kept", speed=HERE)
    out = tmp_path / "p.csv"
    tallies = watch(model, new, out, options, every_s=0.01)
    assert next(tallies).units == 1
    shutil.copy(project / "data/01.png", new / "b.png")
    assert next(tallies).units == 2
    assert len(out.read_text().splitlines()) == 3
    tallies.close()
    # Started again it goes on: what is embedded stays.
    assert next(watch(model, new, out, options, every_s=0.01)).units == 2
    with pytest.raises(ConfigError, match="To watch, name a folder"):
        next(watch(model, new, out, FolderOptions(), every_s=0.01))
    # Told at once, and not when the first image comes.
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"\.csv, \.parquet, \.json"):
        next(watch(model, tmp_path / "empty", tmp_path / "p.xlsx", options, every_s=0.01))


def test_a_tag_of_the_files_is_a_column_where_they_are(project: Path, tmp_path: Path) -> None:
    for i, number in enumerate(("A-17", "A-4")):
        pixels = np.full((40, 40), 100 * i, np.int16)
        save(dicom(pixels, AccessionNumber=number), tmp_path / f"new/{i}.dcm")
    model = Model.load(project / "model")
    out = tmp_path / "p.csv"
    predict(model, tmp_path / "new", out, FolderOptions(speed=HERE), tag="AccessionNumber")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["AccessionNumber"] for row in rows] == ["A-17", "A-4"]
    with pytest.raises(ConfigError, match="does not say where they"):
        predict(model, project / "store", out, tag="AccessionNumber")
    with pytest.raises(ConfigError):
        predict(model, tmp_path / "new", out, tag="NoSuchTag")


def test_a_folder_without_images_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/readme.txt").write_text("no image")
    model = Model.load(project / "model")
    options = FolderOptions(store=tmp_path / "kept", speed=HERE)
    with pytest.raises(ConfigError, match="holds no image"):
        predict(model, tmp_path / "new", tmp_path / "p.csv", options)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_of_other_modalities_is_refused_before_it_is_embedded(
    project: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((project / "my.yaml").read_text())
    settings["tasks"]["look"]["modality"] = ["DX"]
    settings["store"] = str(project / "store")
    for key in ("data", "labels"):
        name = "root" if key == "data" else "file"
        settings[key][name] = str(project / settings[key][name])
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    model = fit(load_config(tmp_path / "my.yaml"), tmp_path / "model")
    save(dicom(np.zeros((40, 40), np.int16)), tmp_path / "new/ct.dcm")
    with pytest.raises(ConfigError, match="no image of DX, .* It holds 1 CT"):
        predict(model, tmp_path / "new", tmp_path / "p.csv", FolderOptions(speed=HERE))


def test_other_weights_are_refused_with_both_values(project: Path, tmp_path: Path) -> None:
    other = write_tiny_folder(tmp_path / "other", seed=1)
    model = Model.load(project / "model")
    options = FolderOptions(weights=str(other), speed=HERE)
    with pytest.raises(RecipeMismatchError, match=r"weights: 'sha256:.*' there, 'sha256:.*' in"):
        predict(model, project / "data", tmp_path / "p.csv", options)


def test_noise_is_unlike_what_the_model_learnt_from(project: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for i in range(4):
        stripes = np.tile(np.uint8([0, 255]), (40, 20)).T if i % 2 else np.eye(40, dtype=np.uint8)
        write_png(new / f"odd{i}.png", np.ascontiguousarray(stripes * (i + 1)))
    model = Estimator(Model.load(project / "model"))
    odd = model.table(new, speed=HERE)["unlike_p"].to_numpy()
    usual = model.table(project / "data", speed=HERE)["unlike_p"].to_numpy()
    assert odd.max() < 0.05
    assert (usual <= 0.05).mean() < 0.15


def test_the_command_line_fits_and_predicts(project: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    run = CliRunner()
    made = run.invoke(app, ["fit", str(project / "my.yaml"), "--out", str(tmp_path / "m")])
    assert made.exit_code == 0, made.output
    assert "look: AUROC" in made.output
    assert "of 'bright' and" in made.output
    out = tmp_path / "p.csv"
    words = ["predict", str(tmp_path / "m"), str(project / "my.yaml"), "--out", str(out)]
    predicted = run.invoke(app, words)
    assert predicted.exit_code == 0, predicted.output
    assert "60 image units" in predicted.output
    assert len(out.read_text().splitlines()) == 61
    wrong = run.invoke(app, ["predict", str(project), str(project / "data"), "--out", str(out)])
    assert isinstance(wrong.exception, RadprobeError)


def test_an_image_that_is_not_in_the_store_is_searched_by(project: Path, tmp_path: Path) -> None:
    from pipeline.fitted.aside import search_anything

    config = load_config(project / "my.yaml")
    shutil.copy(project / "data/07.png", tmp_path / "scan [1].png")
    (hit,) = search_anything(config, str(tmp_path / "scan [1].png"), k=1, level="image", speed=HERE)
    assert hit.path == "07.png"
    assert hit.cosine == pytest.approx(1, abs=1e-5)
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.raises(ConfigError, match="nothing to search by"):
        search_anything(config, str(tmp_path / "readme.txt"), speed=HERE)
    with pytest.raises(ConfigError, match="bears that name"):
        search_anything(config, str(tmp_path / "gone.png"), speed=HERE)


def test_a_unit_of_which_slices_await_extraction_is_left_out(
    collection: Path, tmp_path: Path
) -> None:
    """Of some of its slices it would be answered otherwise."""
    model = fit(config(collection, "patient"), tmp_path / "model", method="probe")
    whole = FeatureStore.open(collection / "store")
    cls, status = whole.read("cls")[:N], whole.status()[:N]
    status[[1, 5]] = VOID  # of the first two patients
    patients = [{"patient": f"MUELLER-{i // 3}"} for i in range(N)]
    some = make_store(tmp_path / "store", cls, patients, status, np.arange(N))
    of_all = predictions(model, whole.path).slice(2)
    of_some = predictions(model, some.path)
    assert of_some["path"] == of_all["path"]
    assert of_some["slices"] == of_all["slices"]
    np.testing.assert_allclose(of_some["proba:yes"], of_all["proba:yes"], rtol=1e-9)
    out = tmp_path / "p.csv"
    assert predict(model, some.path, out).pending == 2
