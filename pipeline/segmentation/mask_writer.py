"""Label values back in the space of the images: NIfTI, DICOM segmentations, PNG.

A DICOM segmentation names the patient and study of its images, as PACS want it; the names of all
files are those of the images. None of this is kept in a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.io.formats.dicom_geometry import (
    Reorientation,
    floats,
    macro,
    orientation,
    pixel_spacing,
)
from pipeline.io.sniff import sniff
from pipeline.shared.paths import unescape_path
from pipeline.types import Plane

Labels = NDArray[np.uint8]
Row = dict[str, Any]
# What a segmentation takes over from its images, which messy ones lack (type 2 in PS3.3).
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# How far a slice may lie from its place among evenly spaced ones, as a part of their distance.
_EVEN = 0.05
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_unit(
    root: Path,
    slices: Sequence[Row],
    planes: Sequence[Labels],
    plane: Plane,
    classes: Sequence[str],
    out: Path,
) -> list[Path]:
    """Write the labels (H, W) of the slices of one volume or image under `out`; return the files.

    slices: rows of the slice table, with real paths under root. What came from NIfTI becomes NIfTI
    in the space of its file; DICOM becomes a DICOM segmentation, and NIfTI where the slices lie
    evenly in space; other images become PNG of label values.
    """
    files = [root / unescape_path(row["path"]) for row in slices]
    kind = sniff(files[0])
    name = unescape_path(slices[0]["path"])
    if kind == "nifti":
        path = _place(out, name.removesuffix(".gz").removesuffix(".nii"), ".nii.gz")
        from pipeline.io.formats.nifti import write_like

        frames = {row["frame"]: labels for row, labels in zip(slices, planes, strict=True)}
        write_like(files[0], frames, plane, path)
        return [path]
    if kind == "dicom":
        several = len(set(files)) > 1
        name = str(Path(name).parent) if several else name.removesuffix(".dcm")
        return _write_dicom(files, slices, planes, classes, out, name)
    from PIL import Image

    written = []
    for row, labels in zip(slices, planes, strict=True):
        own = unescape_path(row["path"])
        stem = own.rpartition(".")[0] or own
        suffix = f".{row['frame']}.png" if len(slices) > 1 else ".png"
        written.append(_place(out, stem, suffix))
        Image.fromarray(labels).save(written[-1])
    return written


def _place(out: Path, name: str, suffix: str) -> Path:
    path = out / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- DICOM -------------------------------------------------------------------------------------


def _write_dicom(
    files: Sequence[Path],
    slices: Sequence[Row],
    planes: Sequence[Labels],
    classes: Sequence[str],
    out: Path,
    name: str,
) -> list[Path]:
    import pydicom

    opened = {file: pydicom.dcmread(file) for file in dict.fromkeys(files)}
    datasets = [opened[file] for file in files]
    frames = [int(row["frame"]) for row in slices]
    written = []
    affine = affine_of(datasets, frames, planes[0].shape)
    if affine is not None:
        import nibabel as nib

        written.append(_place(out, name, ".nii.gz"))
        voxels = np.stack(planes).transpose(2, 1, 0)
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, written[-1])
    if len(opened) == len(slices) and not any(frames):
        written.append(_place(out, name, ".seg.dcm"))
        segmentation(datasets, planes, classes).save_as(written[-1])
    return written


def affine_of(
    datasets: Sequence[Any], frames: Sequence[int], shape: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """Return voxel (x, y, z) of the shown slices -> mm (RAS).

    None where they lie nowhere, or not evenly, as where one between them cannot be read.
    """
    corners, axes, spacing = [], None, None
    for dataset, frame in zip(datasets, frames, strict=True):
        stored, spacing = orientation(dataset, frame), pixel_spacing(dataset, frame)
        found = floats(macro(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
        if stored is None or spacing is None or found is None:
            return None
        turn = Reorientation.of(stored)
        own = shape[::-1] if turn.transpose else shape
        corners.append(np.array(found) + turn.shift(stored, (own[0], own[1]), spacing))
        axes = turn.axes(stored)
        spacing = spacing[::-1] if turn.transpose else spacing
    assert axes is not None
    assert spacing is not None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    apart = len(corners) - 1
    even = np.linspace(corners[0], corners[-1], len(corners))
    if np.abs(corners - even).max() > _EVEN * np.linalg.norm(even[-1] - even[0]) / max(apart, 1):
        return None
    affine[:3, 2] = (corners[-1] - corners[0]) / apart if apart else axes[2]
    affine[:3, 3] = corners[0]
    placed: NDArray[np.float64] = _TO_RAS @ affine
    return placed


def segmentation(datasets: Sequence[Any], planes: Sequence[Labels], classes: Sequence[str]) -> Any:
    """Return a DICOM segmentation (highdicom) of single-frame images, shown planes (H, W)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    stored = []
    affine = affine_of(datasets, [0] * len(datasets), planes[0].shape)
    thickness = 1.0 if affine is None else float(np.linalg.norm(affine[:3, 2]))
    for dataset, labels in zip(datasets, planes, strict=True):
        for name in _MAY_BE_EMPTY:
            if name not in dataset:
                setattr(dataset, name, "")
        if "SliceThickness" not in dataset:
            dataset.SliceThickness = thickness
        axes = orientation(dataset, 0)
        stored.append(labels if axes is None else Reorientation.of(axes).undo(labels))
    algorithm = hd.AlgorithmIdentificationSequence(
        "radprobe", codes.DCM.ArtificialIntelligence, version("radprobe")
    )
    segments = [
        hd.seg.SegmentDescription(
            number,
            name,
            codes.SCT.AnatomicalStructure,
            codes.SCT.AnatomicalStructure,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, name in enumerate(classes[1:], start=1)
    ]
    return hd.seg.Segmentation(
        datasets,
        np.stack(stored),
        hd.seg.SegmentationTypeValues.BINARY,
        segments,
        series_instance_uid=generate_uid(),
        series_number=1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="radprobe",
        manufacturer_model_name="radprobe",
        software_versions=version("radprobe"),
        device_serial_number="0",
        omit_empty_frames=False,
    )
