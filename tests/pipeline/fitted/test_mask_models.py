"""Models that draw masks: the same masks as `segment --out`, in the images' own space."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.draw import TABLE, draw
from pipeline.fitted.estimator import Segmenter
from pipeline.fitted.fit_masks import fit_masks
from pipeline.fitted.kinds import fit_model, load_model
from pipeline.fitted.mask_model import MaskModel
from pipeline.fitted.model import Model
from pipeline.fitted.predict import LEARNT
from pipeline.fitted.sources import FolderOptions
from pipeline.fitted.validate_masks import validate_masks
from pipeline.segment import segment
from pipeline.segmentation.predictions import write_predictions
from stores.errors import (
    ConfigError,
    LabelError,
    ModelError,
    OccupiedError,
    RecipeMismatchError,
    StoreNotFoundError,
)
from tests.fresh import said
from tests.phantoms import write_nifti_of_series, write_png, write_series
from tests.pipeline.models import write_tiny_folder

HERE = FolderOptions(speed=Speed(device="cpu", workers=0))
PATIENTS = 8
QUICK: dict[str, Any] = {
    "learning_rates": [0.1],
    "epochs": 2,
    "batch_size": 2,
    "refit": "none",
    "size": "small",
}
HEADS: dict[str, dict[str, Any]] = {
    "near": {"method": "knn", "k": [1, 3]},
    "linear": {"method": "linear", **QUICK},
    "linear-bn": {"method": "linear-bn", **QUICK},
    "decoder": {"method": "decoder", **QUICK},
    "image-decoder": {"method": "image-decoder", **QUICK},
    "unet": {"method": "unet", **QUICK},
    "transunet": {"method": "transunet", **QUICK, "epochs": 8, "loss": "dice-ce"},
}
AFFINE = np.array([[0, -0.8, 0, 9], [0.7, 0, 0, -4], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def mask_of(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a box of one structure, and beside it one of another, in (H, W) or (z, H, W)."""
    y, x = np.random.default_rng(seed).integers(2, 10, 2)
    mask = np.zeros(shape, np.uint8)
    mask[..., y : y + 20, x : x + 14] = 1
    mask[..., y + 4 : y + 18, x + 18 : x + 32] = 2
    return mask


def shades(mask: np.ndarray, seed: int, levels: tuple[int, int, int]) -> np.ndarray:
    """Return an image in which each structure has a level of its own, and noise."""
    noise = np.random.default_rng(seed).normal(0, 8, mask.shape)
    return np.array(levels)[mask] + noise


def write_images(root: Path, first: int = 0) -> None:
    """Write volumes as NIfTI, pictures, and series of DICOM, each with its mask."""
    for folder in ("nii", "png", "ct"):
        for kind in ("images", "masks"):
            (root / kind / folder).mkdir(parents=True)
    for i in range(first, first + PATIENTS):
        mask = mask_of(i, (3, 40, 48))
        voxels = shades(mask, i, (20, 200, 120)).astype(np.int16)
        for kind, values in (("images", voxels), ("masks", mask)):
            image = nib.Nifti1Image(values.transpose(2, 1, 0), AFFINE)
            nib.save(image, root / kind / f"nii/p{i}.nii.gz")
        mask = mask_of(100 + i, (44, 40))
        grey = np.clip(shades(mask, i, (30, 220, 130)), 0, 255).astype(np.uint8)
        write_png(root / f"images/png/q{i}.png", grey)
        write_png(root / f"masks/png/q{i}.png", mask)
        mask = mask_of(200 + i, (4, 40, 44))
        hu = shades(mask, i, (-900, 300, -100)).astype(np.int16)
        ids = {"PatientID": f"MUELLER-{i}", "PatientName": f"MUELLER^{i}"}
        ids |= {"StudyInstanceUID": f"1.2.3.{i}", "SeriesInstanceUID": f"1.2.3.{i}.1"}
        frame = {"FrameOfReferenceUID": f"1.2.3.{i}.2"}
        write_series(root / f"images/ct/r{i}", hu, **ids, **frame)
        write_nifti_of_series(root / f"masks/ct/r{i}.nii.gz", mask)


def write_project(root: Path, network: Path, first: int = 0) -> Config:
    """Write images, masks and a config, and embed them."""
    write_images(root, first)
    organs = {1: "liver", 2: "spleen"}
    by_path = {"nii": "nii/{name}", "png": "png/{name}", "ct": "{folder}.nii.gz"}
    masks = {}
    for name, path in by_path.items():
        masks[name] = {"root": "masks", "files": {f"{name}/**": path}, "values": organs}
    settings = {
        "data": {"root": "images", "modality": {"**": "DX"}, "patient": r"([pq]\d+)"},
        "backbone": {"name": f"hf:{network}", "image_size": 56},
        "outputs": {"keep": ["patch"], "patch": {"blocks": 5}},
        "store": "store",
        "split": {"folds": 4, "allow": ["near-duplicates"]},
        "masks": masks,
        "segment": HEADS,
    }
    (root / "my.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(root / "my.yaml")
    assert extract(config, HERE.speed).clean
    return config


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("network") / "tiny")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_project(root, network)
    return root


def config_of(project: Path, task: str, head: str) -> Config:
    config = load_config(project / "my.yaml")
    one = {"masks": {task: config.masks[task]}, "segment": {head: config.segment[head]}}
    return config.model_copy(update=one)


@pytest.fixture(scope="module")
def near(project: Path) -> MaskModel:
    config = load_config(project / "my.yaml")
    return fit_masks(config, project / "near", task="nii", method="knn", device="cpu")


def answered(config: Config, out: Path) -> dict[str, Path]:
    """Write the masks of the test units as `segment --out` does; return them by their path."""
    segment(config, device="cpu")
    written, failed = write_predictions(config, out)
    assert not failed
    (task,) = config.masks
    (head,) = config.segment
    root = out / task / head
    inside = [path for path in written if path.is_relative_to(root)]
    return {path.relative_to(root).as_posix(): path for path in inside}


def values_of(path: Path) -> np.ndarray:
    """Return the label values of a file of any form."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nib.load(path).dataobj)
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    with Image.open(path) as image:
        return np.asarray(image)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


# --- the same masks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("nii", "near"),
        ("png", "near"),
        ("ct", "near"),
        ("ct", "linear-bn"),
        ("png", "decoder"),
        ("png", "image-decoder"),
        ("png", "unet"),
        ("png", "transunet"),
    ],
)
def test_new_images_get_the_masks_that_the_answer_has(
    project: Path, tmp_path: Path, task: str, head: str
) -> None:
    config = config_of(project, task, head)
    made = fit_masks(config, tmp_path / "model", device="cpu")
    assert made.record.difference == 0
    expected = answered(config, tmp_path / "answered")
    # Copied elsewhere, without those that were learnt from.
    new = tmp_path / "new"
    for name in expected:
        source = project / "images" / name
        if task == "ct":
            folder = source.with_name(source.name.split(".")[0])
            shutil.copytree(folder, new / "ct" / folder.name, dirs_exist_ok=True)
        else:
            (new / task).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, new / name)
    model = load_model(tmp_path / "model")
    assert isinstance(model, MaskModel)
    out = tmp_path / "out"
    tally = draw(model, new, out, HERE)
    drawn = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    nifti = {name for name in expected if not name.endswith(".seg.dcm")}
    assert drawn == {*nifti, TABLE}
    assert tally.units == tally.files == len(nifti)
    assert any(values_of(out / name).any() for name in nifti)
    for name in nifti:
        assert np.array_equal(values_of(out / name), values_of(expected[name]))
        if name.endswith(".nii.gz"):
            assert np.allclose(nib.load(out / name).affine, nib.load(expected[name]).affine)
    for row in rows_of(out):
        values = values_of(out / row["files"])
        for value, name in ((1, "liver"), (2, "spleen")):
            assert int(row[f"pixels:{name}"]) == (values == value).sum()
            if task == "png":
                assert row[f"mm3:{name}"] == ""
            else:
                voxel = np.prod(nib.load(out / row["files"]).header.get_zooms())
                filled = voxel * int(row[f"pixels:{name}"])
                assert float(row[f"mm3:{name}"]) == pytest.approx(filled, rel=1e-5)
        assert "RANDOM" not in row["notes"]


def test_dicom_gets_the_segmentations_that_the_answer_has(project: Path, tmp_path: Path) -> None:
    config = config_of(project, "ct", "near")
    model = fit_masks(config, tmp_path / "model", device="cpu")
    expected = answered(config, tmp_path / "answered")
    segmented = sorted(name for name in expected if name.endswith(".seg.dcm"))
    for name in segmented:
        patient = Path(name).name.split(".")[0]
        shutil.copytree(project / "images/ct" / patient, tmp_path / "new/ct" / patient)
    write_png(tmp_path / "new/picture.png", np.eye(40, dtype=np.uint8) * 200)
    tally = draw(model, tmp_path / "new", tmp_path / "out", HERE, to="dicom-seg")
    assert (tally.units, tally.files, tally.unwritten) == (
        len(segmented) + 1,
        len(segmented),
        1,
    )
    for name in segmented:
        written = pydicom.dcmread(tmp_path / "out" / name)
        assert np.array_equal(written.pixel_array, values_of(expected[name]))
        patient = Path(name).name.split(".")[0].removeprefix("r")
        assert str(written.PatientID) == f"MUELLER-{patient}"
        assert written.StudyInstanceUID == f"1.2.3.{patient}"
        labels = [each.SegmentLabel for each in written.SegmentSequence]
        assert labels == ["liver", "spleen"]
    (bare,) = [row for row in rows_of(tmp_path / "out") if not row["files"]]
    assert bare["path"] == "picture.png"
    assert "no DICOM segmentation" in bare["notes"]


def test_a_config_is_drawn_on_from_its_store(
    project: Path, near: MaskModel, tmp_path: Path
) -> None:
    tally = draw(near, project / "my.yaml", tmp_path / "out", HERE)
    assert tally.units == 3 * PATIENTS
    counts = near.record.counts
    learnt = counts["train"].units + counts["val"].units
    marked = [row["path"] for row in rows_of(tmp_path / "out") if LEARNT in row["notes"]]
    assert 0 < len(marked) == tally.learnt == learnt < PATIENTS
    assert all(path.startswith("nii/") for path in marked)
    expected = answered(config_of(project, "nii", "near"), tmp_path / "answered")
    for name, path in expected.items():
        assert np.array_equal(values_of(tmp_path / "out" / name), values_of(path))
    with pytest.raises(ConfigError, match="does not say where they are"):
        draw(near, project / "store", tmp_path / "of-store", HERE)
    assert not (tmp_path / "of-store").exists()


def test_a_head_that_was_answered_before_is_fitted_to_the_same(
    project: Path, tmp_path: Path
) -> None:
    config = config_of(project, "png", "linear")
    (before,) = segment(config, device="cpu")
    model = fit_masks(config, tmp_path / "model", device="cpu")
    assert model.record.provenance.key == before.provenance.key
    assert model.record.difference == 0
    assert model.record.score == before.scores[-1]


def test_of_folds_the_model_is_the_first_ones_and_says_so(project: Path, tmp_path: Path) -> None:
    config = config_of(project, "png", "near")
    split = config.split.model_copy(update={"kind": "kfold"})
    config = config.model_copy(update={"split": split})
    model = fit_masks(config, tmp_path / "model", device="cpu")
    assert model.record.difference == 0
    assert any("this is the first of them" in note for note in model.record.notes)
    # Answered by now: fitted again, on the first fold alone.
    again = fit_masks(config, tmp_path / "again", device="cpu")
    assert again.record.difference == 0
    assert again.record.files == model.record.files


def test_two_images_of_one_name_have_two_masks(near: MaskModel, tmp_path: Path) -> None:
    pixels = np.arange(1600, dtype=np.uint8).reshape(40, 40)
    write_png(tmp_path / "new/scan.png", pixels)
    (tmp_path / "new/scan.bmp").parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.T).save(tmp_path / "new/scan.bmp")
    draw(near, tmp_path / "new", tmp_path / "out", HERE)
    assert len({row["files"] for row in rows_of(tmp_path / "out")}) == 2


def test_what_cannot_be_read_has_a_row_that_says_why(
    project: Path, near: MaskModel, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "images/png/q0.png", new / "a.png")
    data = (project / "images/png/q1.png").read_bytes()
    (new / "b.png").write_bytes(data[: len(data) // 2])
    (new / "c.dcm").write_bytes(b"")
    (new / "readme.txt").write_text("no image")
    tally = draw(near, new, tmp_path / "out", HERE)
    assert (tally.units, tally.unreadable) == (1, 2)
    assert tally.files_set_aside == {"no known image format": 1}
    notes = {row["path"]: row["notes"] for row in rows_of(tmp_path / "out")}
    assert notes.keys() == {"a.png", "b.png", "c.dcm"}
    assert "read: truncated" in notes["b.png"]
    assert notes["c.dcm"] == "cannot be read: empty (the file has no bytes)"


# --- what is refused -------------------------------------------------------------------------


def test_every_flipped_bit_is_refused_and_no_patient_is_named(
    project: Path, near: MaskModel, tmp_path: Path
) -> None:
    files = sorted(near.path.iterdir())
    assert [path.name for path in files] == [
        "card.md",
        "head.safetensors",
        "model.json",
        "training.safetensors",
        "unlike.safetensors",
    ]
    text = b"".join(path.read_bytes() for path in files)
    assert not [i for i in range(PATIENTS) if f"MUELLER-{i}".encode() in text]
    copy = Path(shutil.copytree(near.path, tmp_path / "copy"))
    rng = random.Random(0)
    for number in range(100):
        path = copy / files[number % len(files)].name
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match=r"altered|no model"):
            load_model(copy)
        path.write_bytes(data)
    load_model(copy)


def test_what_cannot_be_asked_is_said_before_anything_is_written(
    project: Path, near: MaskModel, network: Path, tmp_path: Path
) -> None:
    config = load_config(project / "my.yaml")
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="none is named, the config has ct, nii, png"):
        fit_masks(config, out, method="near")
    with pytest.raises(ConfigError, match="got 'lungs', the config has ct, nii, png"):
        fit_masks(config, out, task="lungs", method="near")
    with pytest.raises(ConfigError, match="got 'probe'. Name one by --method"):
        fit_model(config, out, task="nii", method="probe")
    with pytest.raises(ModelError, match=r"draws masks \(liver, spleen\)"):
        Model.load(near.path)
    with pytest.raises(OccupiedError, match="not empty"):
        draw(near, project / "images/png", project, HERE)
    other = write_tiny_folder(tmp_path / "other", seed=1)
    weights = FolderOptions(weights=str(other), speed=HERE.speed)
    with pytest.raises(RecipeMismatchError, match=r"weights: 'sha256:.*' there, 'sha256:.*' in"):
        draw(near, project / "images/png", out, weights)
    assert not out.exists()


def test_a_method_without_a_block_is_taken_with_its_defaults(project: Path, tmp_path: Path) -> None:
    config = load_config(project / "my.yaml").model_copy(update={"segment": {}})
    model = fit_model(config, tmp_path / "model", task="png", method="knn")
    assert isinstance(model, MaskModel)
    assert (model.record.name, model.record.method) == ("knn", "knn")


# --- elsewhere -------------------------------------------------------------------------------


def test_a_model_is_held_against_the_masks_of_another_collection(
    project: Path, near: MaskModel, network: Path, tmp_path: Path
) -> None:
    away = write_project(tmp_path / "away", network, first=50)
    validation = validate_masks(near, away, device="cpu")
    dice = validation.score.metrics["dice"]
    assert validation.count.units == validation.count.patients == PATIENTS
    assert validation.count.positives == {"liver": PATIENTS, "spleen": PATIENTS}
    assert dice.low is not None
    assert dice.high is not None
    assert 0.3 < dice.low < dice.value < dice.high
    assert set(validation.score.labels) == {"liver", "spleen"}
    assert validation.internal == near.record.score.metrics
    assert any("another key" in note for note in validation.notes)
    with pytest.raises(LabelError, match="scores would be leaked"):
        validate_masks(near, load_config(project / "my.yaml"), device="cpu")
    left = validate_masks(
        near, load_config(project / "my.yaml"), leave_out_known=True, device="cpu"
    )
    # What is left is the test side: the score is the answer's.
    metrics = dict(near.record.score.metrics)
    metrics.pop("fit_seconds")
    assert left.score.metrics == metrics
    assert left.left_out == PATIENTS - left.count.units
    named = {"liver": "spleen", "spleen": "liver"}
    swapped = {value: named[name] for value, name in away.masks["nii"].values.items()}  # type: ignore[union-attr,index]
    masks = {"nii": away.masks["nii"].model_copy(update={"values": swapped})}
    with pytest.raises(LabelError, match=r"\['background', 'spleen', 'liver'\] here"):
        validate_masks(near, away.model_copy(update={"masks": masks}), device="cpu")
    elsewhere = away.model_copy(update={"store": tmp_path / "nowhere"})
    with pytest.raises(StoreNotFoundError):
        validate_masks(near, elsewhere, device="cpu")


def test_the_command_line_fits_draws_and_validates(
    project: Path, network: Path, tmp_path: Path
) -> None:
    run = CliRunner()
    model = str(tmp_path / "model")
    words = ["fit", str(project / "my.yaml"), "--task", "png", "--method", "knn"]
    made = run.invoke(app, [*words, "--out", model])
    assert made.exit_code == 0, made.output
    assert "png: Dice" in made.output
    assert "liver" in (tmp_path / "model/card.md").read_text()
    drawn = run.invoke(
        app, ["predict", model, str(project / "images/png"), "--out", str(tmp_path / "out")]
    )
    assert drawn.exit_code == 0, drawn.output
    assert f"{PATIENTS} units were drawn on" in drawn.output
    refused = ["predict", model, str(project / "images/png"), "--out", str(tmp_path / "sr")]
    wrong = run.invoke(app, [*refused, "--to", "dicom-sr"])
    assert "files, dicom-seg. Got --to dicom-sr" in str(wrong.exception)
    held = run.invoke(
        app, ["validate", model, str(project / "my.yaml"), "--leave-out-known", "--json"]
    )
    assert held.exit_code == 0, held.output
    assert json.loads(held.stdout)["score"]["metrics"]["dice"]["value"] > 0
    shown = run.invoke(app, ["validate", model, str(project / "my.yaml"), "--leave-out-known"])
    assert "spleen" in shown.output


def test_python_loads_it_and_a_model_of_a_task_still_needs_no_torch(
    project: Path, near: MaskModel, tmp_path: Path
) -> None:
    from pipeline import api

    model = api.load_model(near.path)
    assert isinstance(model, Segmenter)
    assert model.classes_.tolist() == ["background", "liver", "spleen"]
    tally = model.predict(project / "images/png", tmp_path / "out", speed=HERE.speed)
    assert tally.units == PATIENTS
    code = (
        "import sys, pipeline.fitted.kinds\n"
        "from tests.fresh import WITH_TORCH\n"
        "print(WITH_TORCH & sys.modules.keys())"
    )
    assert said(code) == "set()\n"
