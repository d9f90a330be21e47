"""Label values as DICOM segmentations, and where DICOM slices lie in space.

A segmentation names the patient and study of its images, as PACS want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from pipeline.io.formats.dicom_geometry import (
    floats,
    macro,
    orientation,
    pixel_spacing,
)
from pipeline.io.formats.reorientation import Reorientation
from pipeline.segmentation.geometry import Labels
from pipeline.shared.versions import version_of

Floats = NDArray[np.float64]
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
# DICOM's axes point left and back, NIfTI's right and front.
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


# --- where slices lie ----------------------------------------------------------------------------


def affine_of(
    datasets: Sequence[Dataset], frames: Sequence[int], shape: tuple[int, ...]
) -> Floats | None:
    """Return voxel (x, y, z) of the shown slices (H, W) -> mm (RAS).

    None where they lie nowhere, or not evenly, as where one between them cannot be read.
    """
    places = []
    for dataset, frame in zip(datasets, frames, strict=True):
        place = _place(dataset, frame, shape)
        if place is None:
            return None
        places.append(place)
    corners = np.array([corner for corner, _ in places])
    if not _even(corners):
        return None
    # Axes and spacing are those of the last slice: a series has one of each.
    _, axes = places[-1]
    affine = np.eye(4)
    affine[:3, :2] = axes[:, :2]
    gaps = len(corners) - 1
    affine[:3, 2] = (corners[-1] - corners[0]) / gaps if gaps else axes[:, 2]
    affine[:3, 3] = corners[0]
    placed: Floats = _TO_RAS @ affine
    return placed


def _place(dataset: Dataset, frame: int, shape: tuple[int, ...]) -> tuple[Floats, Floats] | None:
    """Return where the first pixel of a shown slice lies (3,), and its axes as columns (3, 3).

    In mm (LPS): along its rows and down its columns, each as long as a pixel, and its normal. None
    where the slice lies nowhere.
    """
    stored = orientation(dataset, frame)
    spacing = pixel_spacing(dataset, frame)
    position = floats(macro(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    if stored is None or spacing is None or position is None:
        return None
    turn = Reorientation.of(stored)
    height, width = shape[::-1] if turn.transpose else shape
    corner = np.array(position) + turn.shift(stored, (height, width), spacing)
    down, across = spacing[::-1] if turn.transpose else spacing
    rows, columns, normal = turn.axes(stored)
    return corner, np.stack([rows * across, columns * down, normal], axis=1)


def _even(corners: Floats) -> bool:
    """Return whether corners (n, 3) lie on a line at even distances."""
    even = np.linspace(corners[0], corners[-1], len(corners))
    tolerance = _EVEN * np.linalg.norm(even[-1] - even[0]) / max(len(corners) - 1, 1)
    return bool(np.abs(corners - even).max() <= tolerance)


# --- segmentations -------------------------------------------------------------------------------


def segmentation(
    datasets: Sequence[Dataset], planes: Sequence[Labels], classes: Sequence[str]
) -> hd.seg.Segmentation:
    """Return a DICOM segmentation of single-frame images, of shown planes (H, W).

    datasets: gain, empty, the elements that a segmentation must take over and that they lack.
    """
    affine = affine_of(datasets, [0] * len(datasets), planes[0].shape)
    thickness = 1.0 if affine is None else float(np.linalg.norm(affine[:3, 2]))
    stored = []
    for dataset, labels in zip(datasets, planes, strict=True):
        complete(dataset)
        if "SliceThickness" not in dataset:
            dataset.SliceThickness = thickness
        axes = orientation(dataset, 0)
        # As the image's own pixels are stored, not as they are shown.
        stored.append(labels if axes is None else Reorientation.of(axes).undo(labels))
    return hd.seg.Segmentation(
        datasets,
        np.stack(stored),
        hd.seg.SegmentationTypeValues.BINARY,
        _segments(classes),
        **new_series(),
        omit_empty_frames=False,
    )


def new_series() -> dict[str, Any]:
    """Return, as highdicom names it, the series of a new instance and who made it."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": 1000,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "radprobe",
        "manufacturer_model_name": "radprobe",
        "software_versions": version_of("radprobe"),
        "device_serial_number": "0",
    }


def complete(dataset: Dataset) -> None:
    """Give an image, empty, what it lacks of the elements that are taken over from it."""
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")


def _segments(classes: Sequence[str]) -> list[Any]:
    """Return the description of each structure, numbered by its label value."""
    algorithm = hd.AlgorithmIdentificationSequence(
        "radprobe", codes.DCM.ArtificialIntelligence, version_of("radprobe")
    )
    return [
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
