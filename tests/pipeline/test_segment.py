"""Segmentation from masks and cached tokens to scores, answers on file and predictions out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from pipeline.commands.common import err
from pipeline.commands.evaluation import _with_paths, app
from pipeline.commands.printing import _show_left_out
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS, SegmentationHead
from pipeline.evaluation import result_files
from pipeline.evaluation.result_files import write_tidy
from pipeline.results import Segmented
from pipeline.segment import segment
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.predictions import read_predicted, write_predictions
from pipeline.segmentation.scores import (
    PAPER_DICE,
    PAPER_JACCARD,
    UnitScores,
    confusion,
    measure,
    of_the_paper,
    summarise,
)
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError, CorruptStoreError, DeviceError, LabelError, OccupiedError
from tests.pipeline.tokens import config_of, token_store

C = 4


def random_labels(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, C, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(30, 25), (6, 20, 25)])
def test_overlap_equals_a_direct_statement(shape: tuple[int, ...]) -> None:
    predicted, mask = random_labels(shape, 0), random_labels(shape, 1)
    found = measure(predicted, mask, C, [1.0] * len(shape), 1.0)
    for i in range(1, C):
        one, two = predicted == i, mask == i
        both = (one & two).sum()
        assert found["dice"][i - 1] == pytest.approx(2 * both / (one.sum() + two.sum()))
        assert found["iou"][i - 1] == pytest.approx(both / (one | two).sum())


def test_distances_are_in_millimetres() -> None:
    mask = np.zeros((8, 20, 20), np.uint8)
    mask[2:5, 5:15, 5:15] = 1
    moved = np.roll(mask, 1, axis=0)
    found = measure(moved, mask, 2, (3.0, 1.0, 1.0), 0.5)
    assert found["hd95"][0] == pytest.approx(3.0)
    assert found["nsd"][0] < 1
    assert measure(moved, mask, 2, (3.0, 1.0, 1.0), 3.0)["nsd"][0] == pytest.approx(1.0)


def surface_distances(
    one: NDArray[np.bool_], two: NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the surface of each lies from the other's, said once more by SciPy.

    A surface is what is set and touches by a side what is not; beyond the array nothing is.
    """
    edges = [each & ~ndimage.binary_erosion(each) for each in (one, two)]
    away = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return away[1][edges[0]], away[0][edges[1]]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.4), (2.5, 0.8, 0.6), (1.0, 3.0, 1.5)])
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_a_direct_statement(spacing: tuple[float, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (24, 30) if len(spacing) == 2 else (10, 24, 20)
    predicted, mask = (
        np.digitize(ndimage.gaussian_filter(rng.normal(size=shape), 1.5), [-0.05, 0.05])
        for _ in "ab"
    )
    tolerance = 1.1
    found = measure(predicted.astype(np.uint8), mask.astype(np.uint8), 3, spacing, tolerance)
    for i in (1, 2):
        there, back = surface_distances(predicted == i, mask == i, spacing)
        hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
        near = (there <= tolerance).sum() + (back <= tolerance).sum()
        assert found["hd95"][i - 1] == pytest.approx(hd95, rel=1e-5)
        assert found["nsd"][i - 1] == pytest.approx(near / (len(there) + len(back)), rel=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI at calls of its own
@pytest.mark.parametrize("spacing", [(0.7, 0.4), (2.5, 0.8, 0.6)])
def test_scores_are_those_monai_gives_for_whole_arrays(spacing: tuple[float, ...]) -> None:
    shape = (24, 30) if len(spacing) == 2 else (10, 24, 20)
    predicted, mask = random_labels(shape, 5), random_labels(shape, 6)
    found = measure(predicted, mask, C, spacing, 1.0)
    y_pred, y = (
        torch.from_numpy(np.eye(C, dtype=bool)[each]).movedim(-1, 0)[None]
        for each in (predicted, mask)
    )
    own: dict[str, Any] = {"include_background": False}
    for name, value in {
        "dice": compute_dice(y_pred, y, **own),
        "iou": compute_iou(y_pred, y, **own),
        "hd95": compute_hausdorff_distance(y_pred, y, percentile=95, spacing=list(spacing), **own),
        "nsd": compute_surface_dice(y_pred, y, [1.0] * (C - 1), spacing=list(spacing), **own),
    }.items():
        np.testing.assert_allclose(found[name], value[0].numpy(), rtol=1e-5, err_msg=name)


def test_a_structure_that_is_nowhere_is_not_scored_and_a_missed_one_scores_0() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:5, 2:5] = 1
    found = measure(np.zeros_like(mask), mask, 3, (1.0, 1.0), 1.0)
    assert found["dice"][0] == 0
    assert np.isnan(found["hd95"][0])
    assert np.isnan(found["dice"][1])


def test_the_papers_jaccard_leaves_out_what_is_drawn_on_background() -> None:
    predicted, mask = random_labels((40, 40), 2), random_labels((40, 40), 3)
    found = of_the_paper(confusion(predicted, mask, C)[..., None].astype(float))
    on = mask > 0
    for i in range(1, C):
        one, two = predicted == i, mask == i
        assert found[PAPER_DICE][i - 1, 0] == pytest.approx(
            2 * (one & two).sum() / (one.sum() + two.sum())
        )
        assert found[PAPER_JACCARD][i - 1, 0] == pytest.approx(
            (one & two & on).sum() / ((one | two) & on).sum()
        )
    flooded = np.where(mask == 0, 1, mask).astype(np.uint8)  # wrong on background alone
    counts = confusion(flooded, mask, C)[..., None].astype(float)
    assert of_the_paper(counts)[PAPER_JACCARD][0, 0] == 1
    assert of_the_paper(counts)[PAPER_DICE][0, 0] < 1


def test_a_summary_is_the_mean_of_structures_and_its_interval_holds_it() -> None:
    units = []
    for seed in range(6):
        predicted, mask = random_labels((12, 12), seed), random_labels((12, 12), seed + 50)
        values = measure(predicted, mask, C, (1.0, 1.0), 1.0)
        units.append((values, confusion(predicted, mask, C)))
    groups = np.array(list("aabbcd"))
    joint, labels = summarise(UnitScores.of(units), groups, ("background", "x", "y", "z"))
    own = np.stack([values["dice"] for values, _ in units])
    assert joint["dice"].value == pytest.approx(own.mean())
    assert labels["y"]["dice"].value == pytest.approx(own[:, 1].mean())
    assert joint["dice"].low is not None
    assert joint["dice"].high is not None
    assert joint["dice"].low < joint["dice"].value < joint["dice"].high


def test_perfect_masks_have_the_interval_that_so_many_patients_allow() -> None:
    patients = np.arange(12).astype(str)
    values = {"dice": np.ones((12, 1)), "hd95": np.zeros((12, 1))}
    counts = np.ones((12, 2, 2), np.int64)
    joint, _ = summarise(UnitScores(values, counts), patients, ("background", "x"))
    assert (joint["dice"].value, joint["dice"].high) == (1, 1)
    assert joint["dice"].low == pytest.approx(0.757, abs=1e-3)  # Wilson's, of twelve of twelve
    # Nothing says how far other patients' surfaces lie.
    assert (joint["hd95"].value, joint["hd95"].low) == (0, None)


def test_fits_widen_an_interval_and_leave_the_value() -> None:
    rng = np.random.default_rng(0)
    patients, fits = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    dice = 0.5 + 0.1 * fits + 0.01 * rng.normal(size=80)
    measured = UnitScores({"dice": dice[:, None]}, np.ones((80, 2, 2), np.int64))
    groups, classes = patients.astype(str), ("background", "x")
    (alone, _), (both, _) = (summarise(measured, groups, classes, of) for of in (None, fits))
    assert alone["dice"].value == both["dice"].value == pytest.approx(dice.mean())
    wide, narrow = (m["dice"].high - m["dice"].low for m in (both, alone))  # type: ignore[operator]
    assert wide > 5 * narrow
    # of four fits that differ by 0.1 each, the mean of four draws has a deviation of 0.056
    assert wide == pytest.approx(2 * 1.96 * 0.056, rel=0.2)


# --- the flow ------------------------------------------------------------------------------


def write_volumes(root: Path) -> None:
    """Write a NIfTI volume of each of six patients, bright where the mask is."""
    for name in ("images", "masks"):
        (root / name).mkdir()
    affine = np.array([[0, -0.8, 0, 9], [0.7, 0, 0, -4], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
    for i in range(6):
        rng = np.random.default_rng(i)
        mask = np.zeros((48, 40, 3), np.uint8)
        x, y = rng.integers(4, 16, 2)
        mask[x : x + 20, y : y + 18] = 1
        voxels = (1000.0 * mask + rng.normal(0, 30, mask.shape)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, affine), root / "images" / f"p{i}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), root / "masks" / f"p{i}.nii.gz")


def volumes_config(root: Path) -> Config:
    organ: dict[str, Any] = {"files": {"**": "{name}"}, "values": "organ"}
    heads = {"near": {"method": "knn", "k": [1], "shots": [1, 99], "draws": 6}}
    return config_of(root, masks={"organ": organ}, segment=heads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with volumes, their masks, and their store."""
    root = tmp_path_factory.mktemp("made")
    write_volumes(root)
    token_store(volumes_config(root))
    return root


@pytest.fixture(scope="module")
def made_and_answered(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shutil.copytree(made, tmp_path_factory.mktemp("answered"), dirs_exist_ok=True)
    segment(volumes_config(root))
    return root


@pytest.fixture
def config(made: Path, tmp_path: Path) -> Config:
    """Return the config of a copy of `made`."""
    return volumes_config(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def answered(made_and_answered: Path, tmp_path: Path) -> Config:
    """Return the config of a copy of `made` that is answered."""
    return volumes_config(shutil.copytree(made_and_answered, tmp_path, dirs_exist_ok=True))


def test_volumes_are_segmented_filed_and_written_in_their_own_space(
    answered: Config, tmp_path: Path
) -> None:
    config = answered
    (answer,) = segment(config)
    few, whole = answer.scores
    assert few.setting == {"patients": 1, "draws": 6}
    assert whole.metrics["fit_seconds"].value > 0
    check_tables(config, answer)
    assert answer.level == "volume"
    tested = answer.counts["test"].patients
    assert tested
    assert whole.metrics["dice"].value > 0.5  # eight patches a side know the organ that well
    assert whole.metrics["dice_ceiling"].value == 1  # the input is larger than the slices
    assert answer.provenance.random
    assert segment(config)[0].cached
    written, failed = write_predictions(config, tmp_path / "out")
    assert failed == []
    volumes = [path for path in written if path.name.endswith(".nii.gz")]
    assert len(volumes) == tested
    dice = {}
    for path in volumes:
        found, image = nib.load(path), nib.load(tmp_path / "images" / path.name)
        assert np.allclose(found.affine, image.affine)
        mask = np.asarray(nib.load(tmp_path / "masks" / path.name).dataobj) > 0
        drawn = np.asarray(found.dataobj) > 0
        dice[path.name] = 2 * (drawn & mask).sum() / (drawn.sum() + mask.sum())
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    assert list(scores.columns)[:5] == ["masks", "head", "path", "structure", "dice"]
    assert dict(zip(scores["path"], scores["dice"], strict=True)) == pytest.approx(dice)
    assert scores["dice"].mean() == pytest.approx(whole.metrics["dice"].value)
    with Image.open(next(path for path in written if path.suffix == ".png")) as picture:
        assert picture.size[0] > config.backbone.image_size
    with pytest.raises(OccupiedError):
        write_predictions(config, tmp_path / "out")


def test_a_new_head_is_a_module_and_a_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a method of the config, is scored and filed, and says what it has seen."""
    module = "tests.pipeline.segmentation.largest_structure"
    monkeypatch.setitem(SEGMENTATION_HEADS, "largest", SegmentationHead(module, ("images",)))
    config = config.model_copy(update={"segment": {"all": Segment(method="largest")}})
    (answer,) = segment(config)
    assert (answer.head, answer.method) == ("all", "largest")
    assert "all pixels are of one structure" in answer.notes
    assert 0 < answer.scores[0].metrics["dice"].value < 0.6  # a mask is a fifth of its image
    rows = pq.read_table(config.store / "results/results.parquet").to_pylist()
    assert {row["features"] for row in rows} == {"image"}
    assert segment(config)[0].cached


def test_a_device_is_taken_and_is_no_part_of_an_answer(config: Config, tmp_path: Path) -> None:
    linear = {"method": "linear", "epochs": 1, "learning_rates": [0.1]}
    content = config.model_dump(mode="json") | {"segment": {"lin": linear}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    refused = CliRunner().invoke(app, ["segment", str(file), "--device", "cuda:99"])
    assert isinstance(refused.exception, DeviceError)
    done = CliRunner().invoke(app, ["segment", str(file), "--device", "cpu", "--json"])
    assert done.exit_code == 0
    (answer,) = json.loads(done.stdout)
    assert any(note.endswith("MB on cpu") for note in answer["notes"])
    (again,) = segment(load_config(file))
    assert again.cached
    assert again.provenance.key == answer["provenance"]["key"]


def test_what_is_not_defined_is_said(config: Config, tmp_path: Path) -> None:
    for i in range(6):  # a speck that no neighbour draws, and a structure that nobody has
        path = tmp_path / "masks" / f"p{i}.nii.gz"
        image = nib.load(path)
        mask = np.asarray(image.dataobj).copy()
        mask[0, 0, 0] = 2
        nib.save(nib.Nifti1Image(mask, image.affine), path)
    organ = config.masks["organ"].model_copy(update={"values": {1: "organ", 2: "speck", 3: "none"}})
    config = config.model_copy(update={"masks": {"organ": organ}})
    (answer,) = segment(config)
    times = f"{answer.counts['test'].units} of {answer.counts['test'].units} times"
    assert (
        f"speck: {times} only the mask or only the head had it, which counts 0 in Dice, IoU "
        "and NSD and is left out of HD95"
    ) in answer.notes
    assert (
        f"none: {times} neither the mask nor the head had it, which is not scored" in answer.notes
    )
    assert not any(note.startswith("organ") or "pixels" in note for note in answer.notes)
    labels = answer.scores[-1].labels
    assert labels["speck"]["dice"].value == labels["speck"]["nsd"].value == 0
    assert "hd95" not in labels["speck"]
    assert "none" not in labels
    # over all structures: of those that are defined
    assert answer.scores[-1].metrics["hd95"].value == labels["organ"]["hd95"].value
    assert answer.scores[-1].metrics["dice"].value == labels["organ"]["dice"].value / 2


def test_distances_of_images_without_spacing_are_said_to_be_in_pixels(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = np.zeros((40, 48), np.uint8)
        mask[10:30, 4 + 3 * i : 30] = 1
        grey = (150 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        for name, pixels in (("images", grey), ("masks", mask)):
            Image.fromarray(pixels).save(tmp_path / name / f"p{i}.png")
    config = config_of(
        tmp_path,
        masks={"organ": {"files": {"**": "{name}"}, "values": "organ"}},
        segment={"near": {"method": "knn", "k": [1]}},
        split={"folds": 3, "allow": ["near-duplicates"]},
    )
    token_store(config)
    (answer,) = segment(config)
    said = "HD95 and the tolerance of NSD are in pixels: the images name no spacing"
    assert said in answer.notes


def check_tables(config: Config, answer: Segmented) -> None:
    """Hold the tidy table and that of the units against an answer."""
    rows = pq.read_table(config.store / "results/results.parquet").to_pylist()
    assert {(r["task"], r["method"], r["kind"], r["features"], r["level"]) for r in rows} == {
        ("organ", "near", "segmentation", "patch", "volume")
    }
    told = {(r["setting"], r["metric"]): (r["value"], r["low"]) for r in rows}
    for score in answer.scores:
        for name, metric in score.metrics.items():
            assert told[json.dumps(score.setting), name] == (metric.value, metric.low)
    (path,) = (config.store / "segmentations").glob("*.units.parquet")
    units = pq.read_table(path).to_pandas()
    few = units[units.setting == json.dumps(answer.scores[0].setting)]
    assert len(few) == 6 * answer.counts["test"].units
    assert few.groupby("draw").dice.mean().nunique() > 1  # other patients, another head
    assert few.dice.mean() == pytest.approx(answer.scores[0].metrics["dice"].value)


def test_what_cannot_be_written_is_counted_and_named(answered: Config, tmp_path: Path) -> None:
    config = answered
    (answer,) = segment(config)
    cases = SegmentationCases.of(config, "organ")
    rows = sorted(read_predicted(cases, "near"))
    gone = next(unit for unit in cases.units if unit.rows[0] in rows)
    paths = Names(config.store, "hide").revealed(cases.store.slices())["path"].to_pylist()
    (tmp_path / "images" / paths[gone.rows[0]]).write_bytes(b"no volume any more")
    written, failed = write_predictions(config, tmp_path / "out")
    assert [each.row for each in failed] == [gone.rows[0]]
    assert paths[gone.rows[0]] not in failed[0].source  # paths are hidden
    assert sum(path.name.endswith(".nii.gz") for path in written) == answer.counts["test"].units - 1


def test_predicted_masks_that_lack_a_slice_are_corrupt(answered: Config, tmp_path: Path) -> None:
    config = answered
    segment(config)
    cases = SegmentationCases.of(config, "organ")
    path = cases.path("near").with_suffix(".masks.parquet")
    sound = pq.read_table(path)
    result_files.write_table(path, sound.slice(1))
    with pytest.raises(CorruptStoreError, match="has no masks of 1 rows that were scored"):
        read_predicted(cases, "near")
    units = cases.path("near").with_suffix(".units.parquet")
    table = pq.read_table(units)
    strange = pa.array([f"x{unit}" for unit in table["unit"].to_pylist()])
    result_files.write_table(units, table.set_column(0, "unit", strange))
    result_files.write_table(path, sound)
    with pytest.raises(CorruptStoreError, match="not as a store has it"):
        write_predictions(config, tmp_path / "out")


def test_heads_stand_side_by_side_in_the_tidy_table(answered: Config) -> None:
    config = answered
    (answer,) = segment(config)
    other = answer.model_copy(update={"head": "another"})
    write_tidy(config.store, [other])
    write_tidy(config.store, [answer])
    rows = pq.read_table(config.store / "results/results.parquet").to_pylist()
    number = sum(len(score.metrics) for score in answer.scores)
    assert [r["method"] for r in rows] == ["another"] * number + ["near"] * number


def test_a_changed_mask_is_answered_anew(answered: Config, tmp_path: Path) -> None:
    config = answered
    first = segment(config)[0]
    path = tmp_path / "masks" / "p0.nii.gz"
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    second = segment(config)[0]
    assert not second.cached
    assert second.provenance.labels != first.provenance.labels
    assert second.provenance.split == first.provenance.split
    mask[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    third = segment(config)[0]
    (example,) = third.tally.unmatched_label_examples
    assert example.startswith("~")
    with err.capture() as captured:
        _show_left_out(err, "lesion", third.tally)
    assert "`radprobe segment CONFIG --paths` tells which files" in captured.get()
    (revealed,) = _with_paths([third], config, reveal=True)
    (example,) = revealed.tally.unmatched_label_examples
    assert example.startswith("p0.nii.gz ")


def test_what_cannot_be_asked_is_said(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to segment"):
        segment(config.model_copy(update={"segment": {}}))
    nameless = config.model_copy(
        update={"data": config.data.model_copy(update={"patient": None})}
    ).model_copy(update={"store": tmp_path / "other"})
    token_store(nameless)
    with pytest.raises(LabelError, match="name no patient"):
        segment(nameless)


def test_the_demos_config_can_be_read() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "demo_segment.yaml")
    assert {name: own.classes[1] for name, own in config.masks.items()} == {
        "chest": "right lung",
        "ct": "lung",
        "mr": "brain",
    }
