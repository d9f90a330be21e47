"""The demo collection: real files, the same every time, whose findings show in pixels alone."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.datasets.demo import VERSION, _publish, write_demo
from tests.waiting import until
from tests.warm import WarmProcess

FINDINGS = ["nodule", "effusion", "cardiomegaly"]
# Two X-rays each, a CT and an MR of every second: as many as tell a finding from chance.
PATIENTS = 30
IMAGES = 3 * PATIENTS

Floats = npt.NDArray[np.float64]
Label = dict[str, str]


@dataclass(frozen=True)
class XRay:
    """An X-ray as a person sees it: grey 0 black to 1 white, (H, W), its mask and its file."""

    label: Label
    path: Path
    grey: Floats
    mask: npt.NDArray[np.uint8]
    photometric: str


@dataclass(frozen=True)
class Series:
    """A CT: HU (n, H, W) from foot to head, headers alike, and its mask (X, Y, Z)."""

    label: Label
    hounsfield: Floats
    headers: list[pydicom.Dataset]
    mask: nib.Nifti1Image
    bytes: int


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo", PATIENTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("small") / "demo", patients=3)


@pytest.fixture(scope="module")
def labels(root: Path) -> list[Label]:
    return read_labels(root)


@pytest.fixture(scope="module")
def xrays(root: Path, labels: list[Label]) -> list[XRay]:
    return [read_xray(root, label) for label in labels if label["path"].startswith("cxr/")]


@pytest.fixture(scope="module")
def series(root: Path, labels: list[Label]) -> list[Series]:
    return [read_series(root, label) for label in labels if label["path"].startswith("ct/")]


@pytest.fixture(scope="module")
def brains(root: Path, labels: list[Label]) -> list[tuple[Label, Any, Any]]:
    """Label, volume and mask of every MR."""
    return [
        (label, nib.load(root / label["path"]), nib.load(root / "masks" / label["path"]))
        for label in labels
        if label["path"].startswith("mr/")
    ]


def read_labels(root: Path) -> list[Label]:
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_xray(root: Path, label: Label) -> XRay:
    path = root / label["path"]
    mask = np.asarray(Image.open(root / "masks" / "cxr" / f"{path.stem}.png"))
    if path.suffix == ".png":
        return XRay(label, path, np.asarray(Image.open(path)) / 65535, mask, "PNG")
    dataset = pydicom.dcmread(path)
    grey = dataset.pixel_array / 4095
    photometric = dataset.PhotometricInterpretation
    return XRay(label, path, 1 - grey if photometric == "MONOCHROME1" else grey, mask, photometric)


def read_series(root: Path, label: Label) -> Series:
    paths = sorted((root / label["path"]).iterdir())
    datasets: list[pydicom.Dataset] = [pydicom.dcmread(path) for path in paths]
    headers = sorted(datasets, key=lambda d: float(d.ImagePositionPatient[2]))
    hounsfield = [d.pixel_array * d.RescaleSlope + d.RescaleIntercept for d in headers]
    mask = nib.load(root / "masks" / f"{label['path']}.nii.gz")
    size = sum(path.stat().st_size for path in paths)
    return Series(label, np.array(hounsfield, np.float64), headers, mask, size)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


# --- the folder ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    again = write_demo(tmp_path / "again", patients=3)
    assert digests(again) == digests(small)


def test_another_seed_gives_other_images_and_names(small: Path, tmp_path: Path) -> None:
    other = digests(write_demo(tmp_path / "other", patients=3, seed=1))
    first = digests(small)
    assert set(first) & set(other) == {"demo.json", "labels.csv"}
    assert not set(first.values()) & set(other.values())


def test_a_finished_demo_is_left_alone(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert write_demo(small, patients=3) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_an_empty_folder_is_filled_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    write_demo(tmp_path / "demo", patients=1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert "synthetic" in json.loads((tmp_path / "demo" / "demo.json").read_text())["note"].lower()


def test_refuses_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"must be free.*without a readable demo.json"):
        write_demo(tmp_path, patients=3)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_refuses_a_file_and_another_demo(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="a file"):
        write_demo(tmp_path / "file", patients=3)
    with pytest.raises(FileExistsError, match=r"'seed': 0.*another root"):
        write_demo(small, patients=3, seed=7)


@pytest.mark.parametrize(("patients", "seed"), [(0, 0), (10_000, 0), (3, -1)])
def test_refuses_impossible_arguments(tmp_path: Path, patients: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        write_demo(tmp_path / "demo", patients, seed)


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    code = (
        "import sys, pathlib, pipeline.datasets.demo as d; d.write_demo(pathlib.Path(sys.argv[1]))"
    )
    writer = WarmProcess(code, str(root), environment=os.environ)
    try:
        until(lambda: any(tmp_path.rglob("*.dcm")), writer)
    finally:
        writer.kill()
        writer.communicate()
    assert not root.exists()
    assert write_demo(root, patients=1) == root


def test_the_slower_of_two_writers_yields(small: Path, tmp_path: Path) -> None:
    identity = {"version": VERSION, "patients": 3, "seed": 0}
    shutil.copytree(small, tmp_path / "root")
    shutil.copytree(small, tmp_path / "late")
    _publish(tmp_path / "late", tmp_path / "root", identity)
    with pytest.raises(OSError, match="not empty"):
        _publish(tmp_path / "late", tmp_path / "root", {**identity, "seed": 1})


# --- labels and masks -----------------------------------------------------------------------------


def test_labels_join_every_image_once(root: Path, labels: list[Label]) -> None:
    images = {
        path.relative_to(root).as_posix()
        for kind in ("cxr", "ct", "mr")
        for path in (root / kind).iterdir()
    }
    assert len(labels) == len(images) == IMAGES
    assert {label["path"] for label in labels} == images
    masks = {path.relative_to(root / "masks") for path in (root / "masks").rglob("*.*")}
    assert len(masks) == IMAGES


def test_only_the_findings_of_a_modality_are_filled_in(labels: list[Label]) -> None:
    filled = {"cxr": FINDINGS, "ct": ["mass"], "mr": ["tumour"]}
    for label in labels:
        kind = label["path"].split("/")[0]
        given = [name for name in [*FINDINGS, "mass", "tumour"] if label[name]]
        assert given == filled[kind]


def test_findings_are_common_and_independent(xrays: list[XRay], labels: list[Label]) -> None:
    table = np.array([[int(xray.label[name]) for name in FINDINGS] for xray in xrays])
    assert np.all((table.mean(0) >= 0.3) & (table.mean(0) <= 0.5))
    chance = 3 / np.sqrt(len(table))  # three standard errors of a correlation of zero
    assert np.all(np.abs(np.corrcoef(table.T)[np.triu_indices(3, 1)]) < chance)
    mass = [int(label["mass"]) for label in labels if label["mass"]]
    assert 0.3 <= np.mean(mass) <= 0.5
    tumours = [label["tumour"] for label in labels if label["tumour"]]
    assert {name: tumours.count(name) for name in set(tumours)} == {
        "none": PATIENTS // 6,
        "small": PATIENTS // 6,
        "large": PATIENTS // 6,
    }


def test_patients_have_several_images_of_their_own(labels: list[Label]) -> None:
    assert all(len(label["patient_id"]) == 7 for label in labels)
    owners = [label["patient_id"] for label in labels if label["nodule"]]
    assert len(set(owners)) == PATIENTS
    assert {owners.count(owner) for owner in owners} == {1, 2, 3}


# --- formats --------------------------------------------------------------------------------------


def test_xrays_are_twelve_bit_dicom_and_sixteen_bit_png(xrays: list[XRay]) -> None:
    kinds = [xray.photometric for xray in xrays]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "MONOCHROME1": 2 * PATIENTS // 3,
        "MONOCHROME2": 2 * PATIENTS // 3,
        "PNG": 2 * PATIENTS // 3,
    }
    for xray in xrays:
        assert xray.grey.shape == xray.mask.shape
        assert xray.grey.shape[0] != xray.grey.shape[1]
        assert all(320 <= side <= 420 for side in xray.grey.shape)
        assert set(np.unique(xray.mask)) == {0, 1, 2}
        if xray.photometric == "PNG":
            # Byte 24 of a PNG is its bit depth, byte 25 its colour type; 0 is grey.
            assert xray.path.read_bytes()[24:26] == bytes([16, 0])


def test_headers_name_the_made_up_patient(xrays: list[XRay], series: list[Series]) -> None:
    for label, dataset in [
        *((x.label, pydicom.dcmread(x.path)) for x in xrays if x.photometric != "PNG"),
        *((s.label, s.headers[0]) for s in series),
    ]:
        assert dataset.PatientID == label["patient_id"]
        assert "^" in dataset.PatientName
        assert len(dataset.PatientBirthDate) == len(dataset.StudyDate) == 8
        assert (dataset.BitsStored, dataset.BitsAllocated) == (12, 16)


def test_monochrome1_looks_like_the_others_once_inverted(xrays: list[XRay]) -> None:
    for xray in xrays:
        lungs, middle = xray.grey[xray.mask > 0], xray.grey[:, xray.grey.shape[1] // 2]
        assert lungs.mean() < middle.mean()
    one = next(xray for xray in xrays if xray.photometric == "MONOCHROME1")
    stored = pydicom.dcmread(one.path).pixel_array
    assert stored[one.mask > 0].mean() > stored[:, stored.shape[1] // 2].mean()


def test_ct_is_in_hounsfield_units(series: list[Series]) -> None:
    for ct in series:
        assert ct.hounsfield.shape[1:] == (256, 256)
        assert 7 <= len(ct.hounsfield) <= 9
        assert np.median(ct.hounsfield[:, :10, :10]) == pytest.approx(-1000, abs=8)
        lung = ct.hounsfield.transpose(2, 1, 0)[np.asarray(ct.mask.dataobj) == 1]
        assert -900 < np.median(lung) < -780
        assert 300 < ct.hounsfield.max() < 900


def test_ct_slices_are_ordered_by_their_headers_alone(series: list[Series], root: Path) -> None:
    orders = []
    for ct in series:
        z = np.array([dataset.ImagePositionPatient[2] for dataset in ct.headers], np.float64)
        np.testing.assert_allclose(np.diff(z), float(ct.headers[0].SliceThickness), atol=1e-3)
        assert len({dataset.SeriesInstanceUID for dataset in ct.headers}) == 1
        assert len({dataset.SOPInstanceUID for dataset in ct.headers}) == len(z)
        names = [Path(dataset.filename).name for dataset in ct.headers]
        assert names not in (sorted(names), sorted(names, reverse=True))
        orders.append(np.corrcoef(np.argsort(np.argsort(names)), z)[0, 1])
    assert abs(np.mean(orders)) < 0.25


def test_ct_masks_lie_on_their_slices(series: list[Series]) -> None:
    flip = np.diag([-1, -1, 1])  # DICOM's left and back to NIfTI's right and front
    for ct in series:
        assert ct.mask.shape == ct.hounsfield.shape[::-1]
        first, spacing = ct.headers[0], [float(v) for v in ct.headers[0].PixelSpacing]
        np.testing.assert_allclose(
            ct.mask.affine[:3, 3],
            flip @ np.array(first.ImagePositionPatient, np.float64),
            atol=1e-3,
        )
        voxel = [*spacing, float(first.SliceThickness)]
        np.testing.assert_allclose(ct.mask.affine[:3, :3], flip * voxel, atol=1e-4)
        found = set(np.unique(ct.mask.dataobj))
        assert found == ({0, 1, 2} if ct.label["mass"] == "1" else {0, 1})


def test_mr_is_nifti_in_ras_with_its_mask_in_place(brains: list[tuple[Label, Any, Any]]) -> None:
    for label, image, mask in brains:
        assert image.get_data_dtype() == np.int16
        assert image.shape == mask.shape == (192, 224, 8)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.affine, mask.affine)
        _, dy, dz = image.header.get_zooms()
        assert dz > 5 * dy
        assert set(np.unique(mask.dataobj)) == ({0, 1} if label["tumour"] == "none" else {0, 1, 2})
        centre = image.affine @ [95.5, 111.5, 3.5, 1]
        assert np.all(np.abs(centre[:3]) <= 20.01)


# --- no shortcut ----------------------------------------------------------------------------------


def chance_band(truth: npt.NDArray[np.int64]) -> float:
    """Three standard errors of the AUROC of a useless score (Mann and Whitney, 1947)."""
    positive = int(truth.sum())
    return float(3 * np.sqrt((len(truth) + 1) / (12 * positive * (len(truth) - positive))))


def crossed_auroc(features: Floats, truth: npt.NDArray[np.int64]) -> float:
    """AUROC of a logistic regression on (n, d) features, scored out of fold.

    Below 0.5 nothing was learnt either: with few rows, leaving a fold out tilts the others.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, truth, cv=folds, method="decision_function")
    return float(roc_auc_score(truth, scores))


def shared_cues(labels: list[Label]) -> Iterator[list[float]]:
    """What a row gives away without its image: place in the table, patient id, name."""
    for position, label in enumerate(labels):
        stem = Path(label["path"]).name.split(".")[0]
        yield [float(position), float(label["patient_id"][3:]), int(stem, 16) / 2**48]


@pytest.mark.parametrize("finding", FINDINGS)
def test_xray_findings_have_no_shortcut(xrays: list[XRay], finding: str) -> None:
    truth = np.array([int(xray.label[finding]) for xray in xrays])
    grey = np.array([xray.grey.mean() for xray in xrays])
    cues = [
        [*cue, *xray.grey.shape, xray.path.stat().st_size, xray.grey.mean()]
        + [float(xray.photometric == kind) for kind in ("MONOCHROME1", "PNG")]
        for xray, cue in zip(xrays, shared_cues([x.label for x in xrays]), strict=True)
    ]
    assert abs(roc_auc_score(truth, grey) - 0.5) < chance_band(truth)
    assert crossed_auroc(np.array(cues), truth) < 0.5 + chance_band(truth)


def test_ct_mass_has_no_shortcut(series: list[Series]) -> None:
    truth = np.array([int(ct.label["mass"]) for ct in series])
    grey = np.array([ct.hounsfield.mean() for ct in series])
    cues = [
        [*cue, len(ct.hounsfield), ct.bytes, float(ct.headers[0].PixelSpacing[0])]
        for ct, cue in zip(series, shared_cues([s.label for s in series]), strict=True)
    ]
    assert abs(roc_auc_score(truth, grey) - 0.5) < chance_band(truth)
    assert crossed_auroc(np.array(cues), truth) < 0.5 + chance_band(truth)


def test_mr_tumour_has_no_shortcut(root: Path, brains: list[tuple[Label, Any, Any]]) -> None:
    truth = np.array([int(label["tumour"] != "none") for label, _, _ in brains])
    grey = np.array([np.mean(image.dataobj) for _, image, _ in brains])
    cues = [
        [*cue, (root / label["path"]).stat().st_size, float(image.header.get_zooms()[2])]
        for (label, image, _), cue in zip(brains, shared_cues([b[0] for b in brains]), strict=True)
    ]
    assert abs(roc_auc_score(truth, grey) - 0.5) < chance_band(truth)
    assert crossed_auroc(np.array(cues), truth) < 0.5 + chance_band(truth)


# --- but visible ----------------------------------------------------------------------------------


def effusion_cue(xray: XRay) -> float:
    """How much brighter the lowest fifth of a lung is than all of it, on the brighter side."""
    contrast = []
    for lung in (xray.mask == 1, xray.mask == 2):
        lowest = np.array_split(np.nonzero(lung.any(1))[0], 5)[-1]
        bottom = np.median(xray.grey[lowest][lung[lowest]])
        contrast.append(bottom - np.median(xray.grey[lung]))
    return float(max(contrast) / xray.grey.std())


def nodule_cue(xray: XRay) -> float:
    """The brightest round spot of about 18 px inside the lungs."""
    blobs = -ndimage.gaussian_laplace(xray.grey / xray.grey.std(), 6)
    return float(blobs[ndimage.binary_erosion(xray.mask > 0, iterations=9)].max())


def cardiomegaly_cue(xray: XRay) -> float:
    """The widest gap between the lungs, above the diaphragm, over the width of both."""
    rows, columns = np.nonzero(xray.mask)
    top, bottom = np.quantile([rows.min(), rows.max()], [0.5, 0.8]).astype(int)
    gaps = [np.argmax(row == 2) - np.nonzero(row == 1)[0].max() for row in xray.mask[top:bottom]]
    return float(max(gaps) / np.ptp(columns))


@pytest.mark.parametrize(
    ("finding", "cue"),
    [("nodule", nodule_cue), ("effusion", effusion_cue), ("cardiomegaly", cardiomegaly_cue)],
)
def test_xray_findings_are_visible(xrays: list[XRay], finding: str, cue: Any) -> None:
    truth = [int(xray.label[finding]) for xray in xrays]
    assert roc_auc_score(truth, [cue(xray) for xray in xrays]) > 0.8


def test_ct_mass_is_visible(series: list[Series]) -> None:
    truth = [int(ct.label["mass"]) for ct in series]
    densest = []
    for ct in series:
        smooth = ndimage.gaussian_filter(ct.hounsfield, (0, 4, 4))
        inside = np.asarray(ct.mask.dataobj).transpose(2, 1, 0) > 0
        inside = ndimage.binary_erosion(inside, np.ones((1, 3, 3)), iterations=6)
        densest.append(smooth[inside].max())
    assert roc_auc_score(truth, densest) > 0.8


def test_mr_tumour_is_visible(brains: list[tuple[Label, Any, Any]]) -> None:
    bright = []
    for _, image, mask in brains:
        signal = np.asarray(image.dataobj)[np.asarray(mask.dataobj) > 0]
        bright.append(np.mean(signal > 1.25 * np.percentile(signal, 60)))
    classes = [label["tumour"] for label, _, _ in brains]
    assert roc_auc_score([name != "none" for name in classes], bright) > 0.8
    large = [value for name, value in zip(classes, bright, strict=True) if name == "large"]
    small = [value for name, value in zip(classes, bright, strict=True) if name == "small"]
    assert np.median(large) > np.median(small)
