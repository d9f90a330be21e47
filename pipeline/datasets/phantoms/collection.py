"""The files of the synthetic collection: who is in it, what they have, how it is written.

`pipeline.datasets.demo` says where it lies.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from pipeline.datasets.phantoms import MAX_PATIENTS
from pipeline.datasets.phantoms.ct import ChestVolume, draw_chest_ct
from pipeline.datasets.phantoms.mr import Tumour, draw_brain_mr
from pipeline.datasets.phantoms.xray import ChestFindings, draw_chest_xray, draw_habitus

Pixels = npt.NDArray[np.uint16]
Kind = Literal["MONOCHROME1", "MONOCHROME2", "PNG", "CT", "MR"]

_PREVALENCE = 0.4
_FIRST_STUDY = date(2015, 1, 1)
_FIRST_BIRTH = date(1930, 1, 1)
# Made up, so that no real person is met by chance.
_SURNAMES = ("Brindlemoor", "Calderwythe", "Dunfeather", "Eversloane", "Fennimarsh", "Glimhollow")
_GIVEN_NAMES = ("Alder", "Briony", "Corwen", "Delphine", "Emrys", "Isolde", "Lorcan", "Tamsin")
_XRAY_KINDS: tuple[Kind, ...] = ("MONOCHROME1", "MONOCHROME2", "PNG")
_TUMOURS: tuple[Tumour, ...] = ("none", "small", "large")


@dataclass(frozen=True)
class Label:
    """One line of `labels.csv`; a finding that was not looked for is None, an empty cell."""

    path: str
    patient_id: str
    nodule: int | None = None
    effusion: int | None = None
    cardiomegaly: int | None = None
    mass: int | None = None
    tumour: Tumour | None = None


@dataclass(frozen=True)
class _Patient:
    """A made-up person; `number` seeds what their images have in common."""

    number: int
    id: str
    name: str
    sex: str
    birth: date


@dataclass(frozen=True)
class _Item:
    """One image or series to write."""

    kind: Kind
    patient: _Patient
    label: Label


# --- plan --------------------------------------------------------------------------------------


def _rng(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for each purpose, so that one drawing never shifts another."""
    return np.random.default_rng([seed, *stream])


def _plan(patients: int, seed: int) -> list[_Item]:
    """Decide on every file and label, in an order that says nothing; draws no pixel."""
    rng = _rng(seed, 0)
    people = _people(rng, patients)
    items = [
        *_xray_items(rng, people),
        *_ct_items(rng, people),
        *_mr_items(rng, people),
    ]
    return [items[i] for i in rng.permutation(len(items))]


def _people(rng: np.random.Generator, patients: int) -> list[_Patient]:
    """Make up patients with ids in no order."""
    ids = rng.choice(np.arange(1, MAX_PATIENTS + 1), patients, replace=False)
    return [_person(rng, number, code) for number, code in enumerate(ids)]


def _person(rng: np.random.Generator, number: int, code: int) -> _Patient:
    surname = rng.choice(_SURNAMES)
    given_name = rng.choice(_GIVEN_NAMES)
    sex = str(rng.choice(["F", "M", "O"]))
    age_days = int(rng.integers(0, 25_000))
    return _Patient(
        number=number,
        id=f"RP-{code:04d}",
        name=f"{surname}^{given_name}",
        sex=sex,
        birth=_FIRST_BIRTH + timedelta(days=age_days),
    )


def _xray_items(rng: np.random.Generator, people: Sequence[_Patient]) -> list[_Item]:
    """One to three X-rays a patient; format and each finding are drawn independently."""
    counts = rng.permutation(np.resize([1, 2, 3], len(people)))
    patients: list[_Patient] = []
    for person, count in zip(people, counts.tolist(), strict=True):
        patients += [person] * count
    # Each drawn by itself, so that neither the format nor another finding tells of a finding.
    kinds = _thirds(rng, len(patients))
    nodules = _flags(rng, len(patients))
    effusions = _flags(rng, len(patients))
    hearts = _flags(rng, len(patients))
    items = []
    for i, patient in enumerate(patients):
        kind = _XRAY_KINDS[kinds[i]]
        suffix = ".png" if kind == "PNG" else ".dcm"
        path = f"cxr/{_token(rng)}{suffix}"
        label = Label(path, patient.id, nodules[i], effusions[i], hearts[i])
        items.append(_Item(kind, patient, label))
    return items


def _ct_items(rng: np.random.Generator, people: Sequence[_Patient]) -> list[_Item]:
    """One CT series for half of the patients."""
    chosen = _half(rng, people)
    masses = _flags(rng, len(chosen))
    items = []
    for patient, mass in zip(chosen, masses, strict=True):
        label = Label(f"ct/{_token(rng)}", patient.id, mass=mass)
        items.append(_Item("CT", patient, label))
    return items


def _mr_items(rng: np.random.Generator, people: Sequence[_Patient]) -> list[_Item]:
    """One MR volume for half of the patients, a third each without and with either tumour."""
    chosen = _half(rng, people)
    tumours = _thirds(rng, len(chosen))
    items = []
    for patient, number in zip(chosen, tumours, strict=True):
        path = f"mr/{_token(rng)}.nii.gz"
        label = Label(path, patient.id, tumour=_TUMOURS[number])
        items.append(_Item("MR", patient, label))
    return items


def _half(rng: np.random.Generator, people: Sequence[_Patient]) -> list[_Patient]:
    """Half of the patients, at least one, in no order."""
    count = max(len(people) // 2, 1)
    return [people[i] for i in rng.permutation(len(people))[:count]]


def _thirds(rng: np.random.Generator, count: int) -> list[int]:
    """0, 1 or 2 for each of `count`, as equally often as can be, in no order."""
    numbers: list[int] = rng.permutation(np.resize(np.arange(3), count)).tolist()
    return numbers


def _flags(rng: np.random.Generator, count: int) -> list[int]:
    """0 or 1 for each of `count`, the ones at exactly the prevalence, rounded."""
    flags = np.arange(count) < round(_PREVALENCE * count)
    return [int(flag) for flag in rng.permutation(flags)]


def _token(rng: np.random.Generator) -> str:
    """A name without a meaning."""
    return rng.bytes(6).hex()


# --- files -------------------------------------------------------------------------------------


def write_collection(root: Path, patients: int, seed: int) -> None:
    """Write images, masks and labels of so many patients into a new folder."""
    items = _plan(patients, seed)
    for kind in ("cxr", "ct", "mr"):
        (root / kind).mkdir(parents=True)
        (root / "masks" / kind).mkdir(parents=True)
    for number, item in enumerate(items):
        # By its number, so that no file depends on those that were drawn before it.
        rng = _rng(seed, 1, number)
        match item.kind:
            case "CT":
                _write_ct(root, item, rng)
            case "MR":
                _write_mr(root, item, rng)
            case "MONOCHROME1" | "MONOCHROME2" | "PNG":
                _write_xray(root, item, rng, _rng(seed, 2, item.patient.number))
    _write_labels(root / "labels.csv", [item.label for item in items])


def _write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write the label table, a line an image or series."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Label)]
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(label) for label in labels)


def _write_xray(
    root: Path, item: _Item, rng: np.random.Generator, build: np.random.Generator
) -> None:
    """Write one X-ray, 12 bit DICOM or 16 bit PNG, and its mask of the lungs."""
    label = item.label
    findings = ChestFindings(bool(label.nodule), bool(label.effusion), bool(label.cardiomegaly))
    image, mask = draw_chest_xray(rng, draw_habitus(build), findings)
    path = root / label.path
    Image.fromarray(mask).save(root / "masks" / "cxr" / f"{path.stem}.png")
    if item.kind == "PNG":
        Image.fromarray(np.rint(image * 65_535).astype(np.uint16)).save(path)
        return
    # MONOCHROME1 shows its lowest value white, so the stored values run the other way.
    grey = 1 - image if item.kind == "MONOCHROME1" else image
    _save_dx(path, item, rng, np.rint(grey * 4095).astype(np.uint16))


def _save_dx(path: Path, item: _Item, rng: np.random.Generator, stored: Pixels) -> None:
    """Write stored values (H, W), 12 bit, as a digital X-ray."""
    inverse = item.kind == "MONOCHROME1"
    dataset = _header(item, rng, DigitalXRayImageStorageForPresentation)
    dataset.Modality = "DX"
    dataset.ViewPosition = "PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = [1.0, 1.0]
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.WindowCenter = 2048
    dataset.WindowWidth = 4096
    dataset.InstanceNumber = 1
    _describe_pixels(dataset, stored, "MONOCHROME1" if inverse else "MONOCHROME2")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _write_ct(root: Path, item: _Item, rng: np.random.Generator) -> None:
    """Write one CT series, a file a slice under names in no order, and its mask as one volume."""
    folder = root / item.label.path
    folder.mkdir()
    volume = draw_chest_ct(rng, bool(item.label.mass))
    # The middle of the first pixel, in mm: DICOM's x grows to the left, y to the back, z upwards.
    x = round(-(volume.hounsfield.shape[2] - 1) / 2 * volume.pixel_mm, 4)
    y = x - 150.0
    z = float(rng.integers(-900, -300))
    dataset = _ct_header(item, rng, volume)
    for k, hounsfield in enumerate(volume.hounsfield):
        # Names in no order: that of the slices is in their positions alone.
        name = _token(rng)
        dataset.SOPInstanceUID = _uid("instance", item, name)
        dataset.InstanceNumber = len(volume.hounsfield) - k  # scanners count from the head
        dataset.ImagePositionPatient = [x, y, round(z + k * volume.slice_mm, 4)]
        _save_ct_slice(folder / f"{name}.dcm", dataset, hounsfield)
    # NIfTI's x and y run the other way.
    affine = np.diag([-volume.pixel_mm, -volume.pixel_mm, volume.slice_mm, 1.0])
    affine[:3, 3] = -x, -y, z
    mask = volume.mask.transpose(2, 1, 0)
    _write_nifti(root / "masks" / "ct" / f"{folder.name}.nii.gz", mask, affine)


def _ct_header(item: _Item, rng: np.random.Generator, volume: ChestVolume) -> Dataset:
    """What the slices of one series have in common."""
    dataset = _header(item, rng, CTImageStorage)
    dataset.Modality = "CT"
    dataset.FrameOfReferenceUID = _uid("frame", item)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [volume.pixel_mm, volume.pixel_mm]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = volume.slice_mm
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = -1024
    dataset.RescaleType = "HU"
    # The window for soft tissue.
    dataset.WindowCenter = 40
    dataset.WindowWidth = 400
    dataset.KVP = 120
    return dataset


def _save_ct_slice(path: Path, dataset: Dataset, hounsfield: npt.NDArray[np.int16]) -> None:
    """Write one slice, compressed without loss: air is most of a CT."""
    stored = (hounsfield + 1024).astype(np.uint16)
    _describe_pixels(dataset, stored, "MONOCHROME2")
    dataset.file_meta = FileMetaDataset()  # the one of the slice before names that slice
    dataset.compress(
        JPEGLSLossless, stored, encoding_plugin="pyjpegls", generate_instance_uid=False
    )
    dataset.save_as(path, enforce_file_format=True)


def _header(item: _Item, rng: np.random.Generator, sop_class: UID) -> Dataset:
    """Patient and study of an image: made up, and there to be taken out again."""
    patient = item.patient
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = _uid("instance", item)
    dataset.StudyInstanceUID = _uid("study", item)
    dataset.SeriesInstanceUID = _uid("series", item)
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.PatientName = patient.name
    dataset.PatientID = patient.id
    dataset.PatientBirthDate = f"{patient.birth:%Y%m%d}"
    dataset.PatientSex = patient.sex
    study = _FIRST_STUDY + timedelta(days=int(rng.integers(0, 3_000)))
    dataset.StudyDate = f"{study:%Y%m%d}"
    dataset.StudyTime = "093000"
    dataset.AccessionNumber = rng.bytes(4).hex().upper()
    dataset.ReferringPhysicianName = "Nobody^Real"
    dataset.InstitutionName = "Hospital of Nowhere"
    dataset.BodyPartExamined = "CHEST"
    return dataset


def _uid(role: str, item: _Item, name: str = "") -> UID:
    """A DICOM identifier that the same item always gets."""
    return generate_uid(entropy_srcs=["radprobe demo", role, item.label.path, name])


def _describe_pixels(dataset: Dataset, stored: Pixels, photometric: str) -> None:
    """Say how stored values (H, W), 12 bit, are to be read."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0


def _write_mr(root: Path, item: _Item, rng: np.random.Generator) -> None:
    """Write one MR volume and its mask, axes to the right, the front and the top (RAS)."""
    volume = draw_brain_mr(rng, item.label.tumour or "none")
    affine = np.diag([*volume.voxel_mm, 1.0])
    centre = (np.array(volume.signal.shape) - 1) / 2
    # A patient never lies exactly in the middle of the scanner.
    shift = rng.uniform(-20, 20, 3).round(2)
    affine[:3, 3] = -centre * volume.voxel_mm + shift
    path = root / item.label.path
    _write_nifti(path, volume.signal, affine)
    _write_nifti(root / "masks" / "mr" / path.name, volume.mask, affine)


def _write_nifti(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Write voxels (X, Y, Z) with the affine to RAS mm; gzip without a time, for equal bytes."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
