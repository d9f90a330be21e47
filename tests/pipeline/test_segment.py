"""Segmentation from masks and cached tokens to scores, answers on file and predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Config, load_config
from pipeline.segment import segment, write_predictions
from pipeline.segmentation.scores import (
    PAPER_DICE,
    PAPER_JACCARD,
    Measured,
    confusion,
    measure,
    of_the_paper,
    summarise,
)
from stores.errors import ConfigError, LabelError, OccupiedError
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
    joint, labels = summarise(Measured.of(units), groups, ("background", "x", "y", "z"))
    own = np.stack([values["dice"] for values, _ in units])
    assert joint["dice"].value == pytest.approx(own.mean())
    assert labels["y"]["dice"].value == pytest.approx(own[:, 1].mean())
    assert joint["dice"].low is not None
    assert joint["dice"].high is not None
    assert joint["dice"].low < joint["dice"].value < joint["dice"].high


# --- the flow ------------------------------------------------------------------------------


def write_volumes(root: Path) -> Config:
    """Write a NIfTI volume of each of six patients, bright where the mask is; return the config."""
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
    organ: dict[str, Any] = {"files": {"**": "{name}"}, "values": "organ"}
    heads = {"near": {"method": "knn", "k": [1], "shots": [1]}}
    return config_of(root, masks={"organ": organ}, segment=heads)


def test_volumes_are_segmented_filed_and_written_in_their_own_space(tmp_path: Path) -> None:
    config = write_volumes(tmp_path)
    token_store(config)
    (answer,) = segment(config)
    few, whole = answer.scores
    assert few.setting["patients"] == 1
    assert answer.level == "volume"
    assert answer.counts["test"].patients == 2
    assert whole.metrics["dice"].value > 0.5  # eight patches a side know the organ that well
    assert whole.metrics["dice_ceiling"].value == 1  # the input is larger than the slices
    assert answer.provenance.random
    assert segment(config)[0].cached
    written = write_predictions(config, tmp_path / "out")
    volumes = [path for path in written if path.name.endswith(".nii.gz")]
    assert len(volumes) == 2
    for path in volumes:
        found, image = nib.load(path), nib.load(tmp_path / "images" / path.name)
        assert np.allclose(found.affine, image.affine)
        mask = np.asarray(nib.load(tmp_path / "masks" / path.name).dataobj) > 0
        drawn = np.asarray(found.dataobj) > 0
        assert 2 * (drawn & mask).sum() / (drawn.sum() + mask.sum()) > 0.5
    with Image.open(next(path for path in written if path.suffix == ".png")) as picture:
        assert picture.size[0] > config.backbone.image_size
    with pytest.raises(OccupiedError):
        write_predictions(config, tmp_path / "out")


def test_a_changed_mask_is_answered_anew(tmp_path: Path) -> None:
    config = write_volumes(tmp_path)
    token_store(config)
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


def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    config = write_volumes(tmp_path)
    token_store(config)
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
