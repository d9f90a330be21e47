"""Masks: read from real files, joined to slices, through the geometry of the images and back."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional

from pipeline.annotations.mask_paths import MaskPaths, Sources
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.preprocessing.prepare import fit_aspect
from pipeline.segmentation.dicom_writer import segmentation
from pipeline.segmentation.geometry import shown, to_input, to_slice
from pipeline.segmentation.mask_writer import UnitLabels, write_unit
from pipeline.segmentation.masks import StoredMasks, update_masks
from stores._disk import write_checked
from stores.errors import ConfigError, CorruptStoreError, LabelError, StaleTablesError
from stores.features import FeatureStore
from stores.purge import purge, withdraw
from stores.slices import SliceRow
from stores.verify import verify
from tests.phantoms import volume, write_nifti_of_series, write_png, write_series
from tests.pipeline.collection import write_csv
from tests.pipeline.tokens import config_of, token_store

FRAME = {"FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.3333"}
sides = st.integers(5, 60)


def labels_of(shape: tuple[int, ...], c: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, c, shape).astype(np.uint8)


def kept_of(root: Path, by: dict[str, Any], **more: Any) -> StoredMasks:
    """Return the masks of a store over root/images, which is made where there is none."""
    config = config_of(root, masks={"organs": by}, **more)
    return update_masks(config, token_store(config), config.masks["organs"])


def write_xray(root: Path, name: str, shape: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return write_png(root / "images" / name, pixels)


# --- geometry ------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["square", "pad", "crop"])
@given(height=sides, width=sides, size=sides)
def test_labels_go_the_way_of_the_image(aspect: Any, height: int, width: int, size: int) -> None:
    labels = labels_of((height, width), 250)
    square = fit_aspect(torch.from_numpy(labels).float()[None], aspect)
    expected = functional.interpolate(square[None], (size, size), mode="nearest-exact")[0, 0]
    found = to_input(labels, shown(height, width, aspect), size)
    # PyTorch computes places in float32, which can differ where one falls between two pixels.
    scale = np.array([side / size for side in square.shape[1:]])
    exact = (np.arange(size) + 0.5)[:, None] * scale % 1
    sure = (np.abs(exact - np.rint(exact)) > 1e-4).T
    both = sure[0][:, None] & sure[1][None]
    assert np.array_equal(found[both], expected.numpy()[both].astype(np.uint8))


@given(height=sides, width=sides, more=st.integers(0, 40))
def test_a_mask_comes_back_whole_where_the_input_is_no_smaller(
    height: int, width: int, more: int
) -> None:
    labels = labels_of((height, width))
    for aspect in ("square", "pad"):
        shows = shown(height, width, aspect)  # type: ignore[arg-type]
        size = max(height, width) + more
        assert np.array_equal(to_slice(to_input(labels, shows, size), shows, labels.shape), labels)


def test_what_the_input_does_not_show_comes_back_as_background() -> None:
    labels = np.ones((20, 40), np.uint8)
    shows = shown(20, 40, "square", (slice(5, 15), slice(10, 30)))
    back = to_slice(to_input(labels, shows, 64), shows, (20, 40))
    assert back[5:15, 10:30].all()
    assert back.sum() == 10 * 20


# --- files of one structure ----------------------------------------------------------------


def write_halves(root: Path) -> NDArray[np.uint8]:
    """Write an X-ray, its left and its right lung in files of their own; return both as labels."""
    write_xray(root, "p1.png")
    both = np.zeros((40, 30), np.uint8)
    both[5:20, 3:12], both[8:25, 16:28] = 1, 2
    for value, name in ((1, "left"), (2, "right")):
        (root / "masks" / name).mkdir(exist_ok=True)
        write_png(root / "masks" / name / "p1.png", (both == value).astype(np.uint8) * 255)
    return both


APART = {"files": {"**": ["left/{name}", "right/{name}"]}, "values": ["left lung", "right lung"]}


def test_structures_in_files_of_their_own_become_one_mask(tmp_path: Path) -> None:
    both = write_halves(tmp_path)
    kept = kept_of(tmp_path, APART)
    assert kept.classes == ("background", "left lung", "right lung")
    assert np.array_equal(kept.labels(0), both)
    again = kept_of(tmp_path, APART)
    assert again.digest == kept.digest
    write_png(tmp_path / "masks/right/p1.png", np.zeros((40, 30), np.uint8))  # one of both changes
    assert np.array_equal(kept_of(tmp_path, APART).labels(0), np.where(both == 2, 0, both))


def paths_of(masks: Masks, root: Path, image: str) -> Sources:
    """Return the mask files that patterns name for one image, which need not be there."""
    (sources,) = MaskPaths(masks, root).sources([image])
    return sources


@pytest.mark.parametrize(
    ("files", "mask"),
    [
        ({"re:(?P<who>p\\d+)_(?P<view>pa|lat)\\.png": "{who}/{view}/lung.png"}, "p1/pa/lung.png"),
        ({"**": "{stem}_*_seg.png"}, "p1_pa_reader2_seg.png"),
        ({"**": "**/{stem}[1].png"}, "deep/down/p1_pa[1].png"),
        ({"re:(p\\d+)": "nothing", "p?_*": "by/*/{name}"}, "by/anna/p1_pa.png"),
    ],
)
def test_patterns_have_expressions_and_wildcards(
    tmp_path: Path, files: dict[str, str | tuple[str, ...]], mask: str
) -> None:
    (tmp_path / mask).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mask).touch()
    masks = Masks(files=files, values="lung")
    assert paths_of(masks, tmp_path, "p1_pa.png") == (mask,)
    assert paths_of(masks, tmp_path / "elsewhere", "p1_pa.png") == ()


def test_a_pattern_of_two_files_and_an_expression_that_is_none(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="fits 2 files of one image"):
        paths_of(Masks(files={"**": "?.png"}, values="lung"), tmp_path, "p1.png")
    with pytest.raises(ValidationError, match="must be a regular expression: "):
        Masks(files={"re:(": "x"}, values="lung")
    with pytest.raises(ConfigError, match="by these alone: {path}, {folder}, {name}, {stem}, {a}"):
        paths_of(Masks(files={"re:(?P<a>.*)": "{b}"}, values="lung"), tmp_path, "p1.png")


def test_structures_by_columns_of_a_table(tmp_path: Path) -> None:
    both = write_halves(tmp_path)
    table = write_csv(tmp_path / "t.csv", path=["p1.png"], l=["left/p1.png"], r=["right/p1.png"])
    by = {"by": "table", "column": ["l", "r"], "values": APART["values"]}
    kept = kept_of(tmp_path, by, labels={"file": table})
    assert np.array_equal(kept.labels(0), both)


def test_half_a_mask_is_no_mask(tmp_path: Path) -> None:
    write_halves(tmp_path)
    (tmp_path / "masks/right/p1.png").unlink()
    with pytest.raises(LabelError, match="no such file of right lung"):
        kept_of(tmp_path, APART)
    shutil.copy(tmp_path / "masks/left/p1.png", tmp_path / "masks/right/p1.png")
    with pytest.raises(LabelError, match="has structures that overlap"):
        kept_of(tmp_path, APART)
    (tmp_path / "masks/left/p1.png").unlink()
    (tmp_path / "masks/right/p1.png").unlink()
    with pytest.raises(LabelError, match="No slice"):
        kept_of(tmp_path, APART)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": "lung"}, "lists of equal length"),
        ({"values": ["left lung"]}, "lists of equal length"),
        ({"files": {"**": "both/{name}"}}, "lists of equal length"),
        ({"values": ["left lung", "background"]}, "the background has no file"),
    ],
)
def test_as_many_files_as_structures(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Masks.model_validate(APART | changes)


# --- files of one image --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bits", "255", "palette", "grey colours", "npy", "16 bit"])
def test_a_two_valued_mask_of_any_kind_is_the_one_structure(tmp_path: Path, mode: str) -> None:
    write_xray(tmp_path, "p1.png")
    lung = labels_of((40, 30), 2)
    path = tmp_path / "masks" / ("p1.npy" if mode == "npy" else "p1.png")
    picture = Image.fromarray(lung * 255)
    if mode == "npy":
        np.save(path, lung.astype(bool))
    elif mode == "palette":
        picture = Image.fromarray(lung)
        picture.putpalette([255, 0, 0, 0, 0, 0] + [9] * 762)  # bright where nothing is
        picture.convert("P").save(path)
    else:
        modes = {"bits": "1", "255": "L", "grey colours": "RGB"}
        picture.convert(modes.get(mode, "I;16")).save(path)
    kept = kept_of(tmp_path, {"files": {"**": f"{{stem}}{path.suffix}"}, "values": "lung"})
    assert kept.classes == ("background", "lung")
    assert np.array_equal(kept.labels(0), lung)


def test_values_are_named_and_may_share_a_name(tmp_path: Path) -> None:
    write_xray(tmp_path, "p1.png")
    values = labels_of((40, 30), 4)
    write_png(tmp_path / "masks" / "p1.png", values)
    names = {1: "lung", 2: "heart", 3: "lung"}
    kept = kept_of(tmp_path, {"files": {"**": "{name}"}, "values": names})
    assert kept.classes == ("background", "lung", "heart")
    assert np.array_equal(kept.labels(0), np.array([0, 1, 2, 1], np.uint8)[values])
    quoted = {str(value): name for value, name in names.items()}
    again = kept_of(tmp_path, {"files": {"**": "{name}"}, "values": quoted})
    assert again.digest == kept.digest
    # Labels are kept by the order of names: in another, what is kept is of none of them.
    turned = {2: "heart", 1: "lung", 3: "lung"}
    kept = kept_of(tmp_path, {"files": {"**": "{name}"}, "values": turned})
    assert kept.classes == ("background", "heart", "lung")
    assert np.array_equal(kept.labels(0), np.array([0, 2, 1, 2], np.uint8)[values])


def test_masks_join_by_a_column_of_the_table(tmp_path: Path) -> None:
    for i in (1, 2):
        write_xray(tmp_path, f"p{i}.png", seed=i)
    write_png(tmp_path / "masks" / "other.png", labels_of((40, 30), 2))
    (tmp_path / "labels.csv").write_text("path,mask\np2.png,other.png\np1.png,\n")
    labels = {"file": tmp_path / "labels.csv", "key": "path"}
    by = {"by": "table", "column": "mask", "values": "lung"}
    assert kept_of(tmp_path, by, labels=labels).rows.tolist() == [1]


def test_bad_masks_are_named_and_counted_and_the_others_kept(tmp_path: Path) -> None:
    for i in range(1, 6):
        write_xray(tmp_path, f"p{i}.png", seed=i)
    good = labels_of((40, 30), 2)
    write_png(tmp_path / "masks" / "p1.png", good)
    write_png(tmp_path / "masks" / "p2.png", good[:30])
    write_png(tmp_path / "masks" / "p3.png", good + 5)
    Image.fromarray(good).save(tmp_path / "masks" / "p4.png", format="JPEG")
    (tmp_path / "masks" / "p5.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    by = {"files": {"**": "{name}"}, "values": {1: "lung"}}
    kept = kept_of(tmp_path, by)
    assert kept.rows.tolist() == [0]
    assert np.array_equal(kept.labels(0), good)
    details = [bad.detail for bad in kept.unusable]
    assert len(details) == 4
    size = "is 30 x 30 pixels, its image 40 x 30: save it at the size of its image"
    assert details[0] == size
    assert "holds the value 5, which `values` does not name" in details[1]
    # Paths are hidden as the images' are.
    assert all(".png" not in bad.source for bad in kept.unusable)


def test_no_usable_mask_is_an_error_that_says_why(tmp_path: Path) -> None:
    write_xray(tmp_path, "p1.png")
    with pytest.raises(LabelError, match="No slice of .* has a mask"):
        kept_of(tmp_path, {"files": {"**": "{name}"}, "values": "lung"})
    write_png(tmp_path / "masks" / "p1.png", labels_of((10, 12), 2))
    with pytest.raises(LabelError, match="is 10 x 12 pixels, its image 40 x 30"):
        kept_of(tmp_path, {"files": {"**": "{name}"}, "values": "lung"})


# --- volumes -------------------------------------------------------------------------------


def write_ct(root: Path, **more: Any) -> tuple[list[Path], NDArray[np.uint8]]:
    """Write a CT series of p1 and return its files, and labels (z, H, W) as they are shown."""
    voxels = volume()
    (root / "masks").mkdir(parents=True)
    return write_series(root / "images" / "p1", voxels, **FRAME, **more), labels_of(voxels.shape)


VALUES = {1: "liver", 2: "spleen"}


def test_a_mask_of_several_volumes_in_one_place_is_not_guessed(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((8, 9, 3, 2), np.uint8)
    labels[2:5, 3:6, :, 0] = 1
    affine = np.diag([-1.0, -1, 4, 1])
    by = {"files": {"**": "{name}"}, "values": {1: "lung"}}
    nib.save(nib.Nifti1Image(labels.astype(np.int16), affine), tmp_path / "images" / "v.nii")
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "masks" / "v.nii")
    with pytest.raises(LabelError, match="has 2 planes at each place: save one volume"):
        kept_of(tmp_path, by)
    nib.save(nib.Nifti1Image(labels[..., 0], affine), tmp_path / "masks" / "v.nii")
    kept = kept_of(tmp_path, by)  # the same of each time point
    assert [int(kept.labels(row).sum()) for row in range(6)] == [9] * 6


SERIES = {"files": {"**": "ct.nii.gz"}, "values": VALUES}


def planes_of(kept: StoredMasks) -> NDArray[np.uint8]:
    return np.stack([kept.labels(row) for row in kept.rows])


@pytest.mark.parametrize("turn", ["LPS", "RAS", "PSR", "IRA"])
def test_a_nifti_mask_finds_the_slices_of_a_series(tmp_path: Path, turn: str) -> None:
    _, labels = write_ct(tmp_path)
    path = write_nifti_of_series(tmp_path / "masks" / "ct.nii.gz", labels)
    image = nib.load(path)
    way = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(turn)
    )
    nib.save(image.as_reoriented(way), path)
    assert np.array_equal(planes_of(kept_of(tmp_path, SERIES)), labels)


def image_of_series(labels: NDArray[np.uint8]) -> sitk.Image:
    """Return the labels of an axial `write_series` as ITK writes them."""
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30.0, -40.0, 100.0))
    return image


@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd", "ct.nrrd", "ct.nhdr"])
def test_a_mask_of_itk_finds_the_slices_of_a_series_and_is_read_again(
    tmp_path: Path, name: str
) -> None:
    _, labels = write_ct(tmp_path)
    by = {"files": {"**": name}, "values": VALUES}
    turned = sitk.DICOMOrient(image_of_series(labels), "PIR")
    sitk.WriteImage(turned, tmp_path / "masks" / name)
    assert np.array_equal(planes_of(kept_of(tmp_path, by)), labels)
    labels[0] = 2 - labels[0]
    # Of a header and a file of voxels, only the latter changes.
    sitk.WriteImage(image_of_series(labels), tmp_path / "masks" / name)
    assert np.array_equal(planes_of(kept_of(tmp_path, by)), labels)


def test_predictions_for_an_image_of_itk_lie_where_it_does(tmp_path: Path) -> None:
    labels = labels_of((6, 20, 24))
    turned = sitk.DICOMOrient(image_of_series(labels), "PIR")
    sitk.WriteImage(turned, tmp_path / "v.mha")
    slices = [SliceRow(i, "v.mha", i, "", "CT") for i in range(6)]
    unit = UnitLabels(tmp_path, slices, list(labels), "axial", ("background", "a", "b"))
    (written,) = write_unit(unit, tmp_path / "out")
    assert written.name == "v.nii.gz"
    again = sitk.Resample(
        sitk.ReadImage(written), turned, sitk.Transform(), sitk.sitkNearestNeighbor
    )
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(turned))


def test_gzipped_segmentations_and_images_of_dicom(tmp_path: Path) -> None:
    files, labels = write_ct(tmp_path)
    datasets = [pydicom.dcmread(file) for file in files]
    found = segmentation(datasets, list(labels), ("background", "liver", "spleen"))
    found.save_as(tmp_path / "seg.dcm")
    zipped = gzip.compress((tmp_path / "seg.dcm").read_bytes())
    (tmp_path / "masks" / "any.dcm.gz").write_bytes(zipped)
    for file in files:
        file.with_suffix(".dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    how = {"values": {"liver": "liver", 2: "spleen"}, "by": "uid"}
    kept = kept_of(tmp_path, how)
    assert np.array_equal(planes_of(kept), labels)
    by_place = [f"p1/{file.with_suffix('.dcm.gz').name}" for file in files]
    slices = [SliceRow(i, path, 0, "", "CT") for i, path in enumerate(by_place)]
    unit = UnitLabels(tmp_path / "images", slices, list(labels), "axial", kept.classes)
    assert len(write_unit(unit, tmp_path / "out")) == 2


def test_a_series_in_no_folder_is_named_by_its_first_file(tmp_path: Path) -> None:
    files, labels = write_ct(tmp_path)
    slices = [SliceRow(i, file.name, 0, "", "CT") for i, file in enumerate(files)]
    classes = ("background", "liver", "spleen")
    unit = UnitLabels(files[0].parent, slices, list(labels), "axial", classes)
    written = [path.name for path in write_unit(unit, tmp_path / "out")]
    assert written == [f"{files[0].name}.nii.gz", f"{files[0].name}.seg.dcm"]


def test_a_series_that_is_stored_turned_gets_its_mask_turned(tmp_path: Path) -> None:
    labels = labels_of(volume().shape)
    (tmp_path / "masks").mkdir()
    write_nifti_of_series(tmp_path / "masks" / "ct.nii.gz", labels)
    depth, height, width = labels.shape
    corner = (-30.0 + (width - 1) * 0.7, -40.0 + (height - 1) * 0.8)
    positions = [(*corner, 100.0 + 2.5 * k) for k in range(depth)]
    write_series(
        tmp_path / "images" / "p1",
        volume()[:, ::-1, ::-1].copy(),
        positions=positions,
        orientation=(-1, 0, 0, 0, -1, 0),
        **FRAME,
    )
    assert np.array_equal(planes_of(kept_of(tmp_path, SERIES)), labels)


@pytest.mark.parametrize(
    ("shift", "said"),
    [((5.0, 0.0, 0.0), "5.0 mm across from its image"), ((0.0, 0.0, 40.0), "has no plane at")],
)
def test_a_mask_that_lies_elsewhere_is_refused(
    tmp_path: Path, shift: tuple[float, float, float], said: str
) -> None:
    _, labels = write_ct(tmp_path)
    start = tuple(np.array([-30.0, -40.0, 100.0]) + shift)
    write_nifti_of_series(tmp_path / "masks" / "ct.nii.gz", labels, start=start)
    with pytest.raises(LabelError, match=said):
        kept_of(tmp_path, SERIES)


def test_an_array_without_places_joins_in_order_and_only_whole(tmp_path: Path) -> None:
    _, labels = write_ct(tmp_path)
    by = {"files": {"**": "ct.npy"}, "values": VALUES}
    np.save(tmp_path / "masks" / "ct.npy", labels)
    assert np.array_equal(planes_of(kept_of(tmp_path, by)), labels)
    np.save(tmp_path / "masks" / "ct.npy", labels[:-1])
    with pytest.raises(LabelError, match="has 5 planes, its image 6 slices"):
        kept_of(tmp_path, by)


@pytest.mark.parametrize("by", ["uid", "path"])
def test_a_dicom_segmentation_joins_by_what_it_says_it_is_of(tmp_path: Path, by: str) -> None:
    files, labels = write_ct(tmp_path)
    labels[2] = 0  # a slice without any frame
    datasets = [pydicom.dcmread(file) for file in files]
    found = segmentation(datasets, list(labels), ("background", "liver", "spleen"))
    found.save_as(tmp_path / "masks" / "any.dcm")
    # One of two segments is asked for by its label, the other by its number.
    how: dict[str, Any] = {"values": {"liver": "liver", 2: "spleen"}, "by": by}
    if by == "path":
        how["files"] = {"**": "any.dcm"}
    assert np.array_equal(planes_of(kept_of(tmp_path, how)), labels)


def test_slices_that_do_not_lie_evenly_become_no_nifti(tmp_path: Path) -> None:
    files, labels = write_ct(tmp_path)
    gap = [i for i in range(len(files)) if i != 2]
    for name, which in (("whole", [*range(len(files))]), ("gap", gap)):
        slices = [SliceRow(i, f"p1/{files[i].name}", 0, "", "CT") for i in which]
        planes = [labels[i] for i in which]
        classes = ("background", "liver", "spleen")
        unit = UnitLabels(tmp_path / "images", slices, planes, "axial", classes)
        written = write_unit(unit, tmp_path / name)
        kinds = sorted("".join(path.suffixes) for path in written)
        assert kinds == ([".nii.gz", ".seg.dcm"] if name == "whole" else [".seg.dcm"])


# --- kept beside the store -----------------------------------------------------------------


def test_only_a_mask_that_changed_is_read_again(tmp_path: Path) -> None:
    for i in (1, 2):
        write_xray(tmp_path, f"p{i}.png", seed=i)
        write_png(tmp_path / "masks" / f"p{i}.png", labels_of((40, 30), 2, i))
    by = {"files": {"**": "{name}"}, "values": "lung"}
    first = kept_of(tmp_path, by)
    before = sorted((tmp_path / "store" / "masks").iterdir())
    assert kept_of(tmp_path, by).digest == first.digest
    assert sorted((tmp_path / "store" / "masks").iterdir()) == before
    other = labels_of((40, 30), 2, 7)
    write_png(tmp_path / "masks" / "p2.png", np.pad(other, 0))
    second = kept_of(tmp_path, by)
    assert second.digest != first.digest
    assert np.array_equal(second.labels(1), other)
    assert np.array_equal(second.labels(0), first.labels(0))
    (tmp_path / "masks" / "p2.png").unlink()
    assert kept_of(tmp_path, by).rows.tolist() == [0]
    assert verify(tmp_path / "store").sound


def test_a_damaged_pack_is_told_and_made_anew_when_it_is_gone(tmp_path: Path) -> None:
    write_xray(tmp_path, "p1.png")
    write_png(tmp_path / "masks" / "p1.png", labels_of((40, 30), 2))
    by = {"files": {"**": "{name}"}, "values": "lung"}
    kept = kept_of(tmp_path, by)
    (pack,) = (tmp_path / "store" / "masks").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 0xFF
    pack.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="mask of row 0"):
        kept_of(tmp_path, by).labels(0)
    assert not verify(tmp_path / "store").sound
    shutil.rmtree(tmp_path / "store" / "masks")
    assert np.array_equal(kept_of(tmp_path, by).labels(0), labels_of((40, 30), 2))
    assert kept.rows.tolist() == [0]


def test_a_purge_takes_the_masks_too(tmp_path: Path) -> None:
    write_xray(tmp_path, "p1.png")
    write_png(tmp_path / "masks" / "p1.png", labels_of((40, 30), 2))
    config = config_of(tmp_path, masks={"lungs": {"files": {"**": "{name}"}, "values": "lung"}})
    store = token_store(config)
    update_masks(config, store, config.masks["lungs"])
    patient = store.slices()["patient"][0].as_py()
    withdraw(store, patient)
    purge(store, patient)
    assert not list((tmp_path / "store" / "masks").iterdir())


def two_lungs(root: Path) -> Config:
    """Write two X-rays, of two patients, with their masks."""
    for i, name in enumerate(("p1.png", "p2.png")):
        write_xray(root, name, seed=i)
        write_png(root / "masks" / name, labels_of((40, 30), 2))
    return lungs_config(root)


def lungs_config(root: Path) -> Config:
    return config_of(root, masks={"lungs": {"files": {"**": "{name}"}, "values": "lung"}})


@pytest.fixture(scope="module")
def kept_lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two X-rays, their masks, and a store that has both."""
    root = tmp_path_factory.mktemp("lungs")
    config = two_lungs(root)
    update_masks(config, token_store(config), config.masks["lungs"])
    return root


def test_no_mask_of_a_withdrawn_slice_is_kept(tmp_path: Path) -> None:
    config = two_lungs(tmp_path)
    store = token_store(config)
    withdraw(store, store.slices()["patient"][0].as_py())
    assert update_masks(config, store, config.masks["lungs"]).rows.tolist() == [1]


def test_masks_that_were_read_before_a_purge_do_not_come_back_by_it(tmp_path: Path) -> None:
    config = two_lungs(tmp_path)
    store = token_store(config)
    patient = store.slices()["patient"][0].as_py()

    def purge_meanwhile(done: int, of: int) -> None:
        if done == of:
            withdraw(store, patient)
            purge(store, patient)

    with pytest.raises(StaleTablesError, match="A patient was withdrawn"):
        update_masks(config, FeatureStore.open(store.path), config.masks["lungs"], purge_meanwhile)
    assert not [path for path in (store.path / "masks").rglob("*") if path.is_file()]
    assert update_masks(config, store, config.masks["lungs"]).rows.tolist() == [1]


def altered(index: Path, column: str, value: Any) -> None:
    """Give a column of a table of masks another value, as whoever makes a store can."""
    table = pq.read_table(index)
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    values = pa.array([value] * len(table), field.type)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(place, field, values), sink)
    write_checked(index, sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("pack", "../../outside"),
        ("pack", None),
        ("offset", None),
        ("offset", -8),
        ("length", -1),
        ("height", None),
        ("height", 2**30),
        ("width", -40),
        ("classes", None),
        ("classes", [None]),
        ("source", None),
        ("shown_height", None),
        ("sha256", None),
    ],
)
def test_odd_rows_of_a_strangers_masks_are_read_anew(
    kept_lungs: Path, tmp_path: Path, column: str, value: Any
) -> None:
    config = lungs_config(shutil.copytree(kept_lungs, tmp_path, dirs_exist_ok=True))
    store = FeatureStore.open(config.store)
    calm = update_masks(config, store, config.masks["lungs"])
    digest = calm.digest
    (index,) = (store.path / "masks").glob("*.parquet")
    (pack,) = (store.path / "masks").glob("*.pack")
    (tmp_path / "outside.pack").write_bytes(pack.read_bytes())
    altered(index, column, value)
    again = update_masks(config, store, config.masks["lungs"])
    assert again.digest == digest
    assert again.present(again.rows).any()
    assert np.array_equal(again.labels(0), labels_of((40, 30), 2))
    assert verify(store.path).sound


def test_label_values_of_no_class_are_damage(tmp_path: Path) -> None:
    config = two_lungs(tmp_path)
    lungs = config.masks["lungs"]
    kept = update_masks(config, token_store(config), lungs)
    fewer = StoredMasks(kept._folder, kept._table, lungs.model_copy(update={"values": {}}))
    fewer.classes = ("background",)
    assert fewer.present(fewer.rows).shape == (2, 1)
    with pytest.raises(CorruptStoreError, match="a value of no class"):
        fewer.labels(0)


def test_odd_files_among_the_masks_are_no_wait_without_end(tmp_path: Path) -> None:
    config = two_lungs(tmp_path)
    store = token_store(config)
    (store.path / "masks").mkdir()
    (store.path / "masks/odd.parquet").write_bytes(b"PAR1")
    os.mkfifo(store.path / "masks/pipe.parquet")
    assert update_masks(config, store, config.masks["lungs"]).rows.tolist() == [0, 1]


# --- settings ------------------------------------------------------------------------------


def test_settings_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match="joined by path need `files`"):
        Masks(values="lung")
    with pytest.raises(ValueError, match="joined by uid take no `files`"):
        Masks(values="lung", by="uid", files={"**": "{name}"})
    with pytest.raises(ValueError, match="each value once. Got 1 twice"):
        Masks(values={1: "lung", "1": "heart"}, files={"**": "{name}"})
    with pytest.raises(ValueError, match="1 to 255 structures"):
        Masks(values={0: "background"}, files={"**": "{name}"})
