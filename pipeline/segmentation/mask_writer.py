"""Label values back in the space of the images: NIfTI, DICOM segmentations, PNG.

The names of all files are those of the images. None of this is kept in a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from pipeline.io.formats import nifti
from pipeline.io.formats.inflate import open_inflated
from pipeline.io.sniff import sniff
from pipeline.segmentation.geometry import Labels
from pipeline.shared.paths import collection_file, unescape_path
from pipeline.types import Plane
from stores.slices import SliceRow

_VOLUME_SUFFIXES = (".nii", ".hdr", ".img", ".mha", ".mhd", ".nrrd", ".nhdr")


@dataclass(frozen=True)
class UnitLabels:
    """The label values of one volume or image. planes: (H, W) of each slice, as it is shown.

    slices: rows of the slice table, with real paths under root; plane: the cut they are shown in;
    classes: names by label value.
    """

    root: Path
    slices: Sequence[SliceRow]
    planes: Sequence[Labels]
    plane: Plane
    classes: Sequence[str]

    @property
    def files(self) -> list[Path]:
        """The file of each slice. Raises UnreadableError where one lies outside the root.

        What is written is named by these, and so stays below its folder too.
        """
        return [collection_file(self.root, row.path) for row in self.slices]

    @property
    def frames(self) -> list[int]:
        """The frame of each slice in its file."""
        return [row.frame for row in self.slices]


def write_unit(unit: UnitLabels, out: Path) -> list[Path]:
    """Write a unit under `out`; return the files.

    What came from a file of a volume becomes NIfTI in the space of that file; DICOM becomes a DICOM
    segmentation, and NIfTI where the slices lie evenly in space; other images become PNG of label
    values.
    """
    match sniff(unit.files[0]):
        case "nifti" | "itk" as name:
            return _write_nifti(unit, out, name)
        case "dicom":
            return _write_dicom(unit, out)
        case _:
            return _write_pictures(unit, out)


def _write_nifti(unit: UnitLabels, out: Path, form: str) -> list[Path]:
    """Write labels as NIfTI in the space of a volume's file, which is of this format."""
    name = unescape_path(unit.slices[0].path).removesuffix(".gz")
    stem, dot, suffix = name.rpartition(".")
    path = _place(out, stem if dot + suffix in _VOLUME_SUFFIXES else name, ".nii.gz")
    frames = dict(zip(unit.frames, unit.planes, strict=True))
    if form == "nifti":
        nifti.write_like(unit.files[0], frames, unit.plane, path)
    else:
        # ITK takes a quarter of a second to import, and most collections need none of it.
        from pipeline.io.formats import itk_volume

        itk_volume.write_like(unit.files[0], frames, unit.plane, path)
    return [path]


def _write_pictures(unit: UnitLabels, out: Path) -> list[Path]:
    written = []
    for row, labels in zip(unit.slices, unit.planes, strict=True):
        name = unescape_path(row.path)
        stem, _, _ = name.rpartition(".")
        suffix = f".{row.frame}.png" if len(unit.slices) > 1 else ".png"
        path = _place(out, stem or name, suffix)
        Image.fromarray(labels).save(path)
        written.append(path)
    return written


def _write_dicom(unit: UnitLabels, out: Path) -> list[Path]:
    # highdicom takes a second to import, and most collections need none of it.
    from pipeline.segmentation.dicom_writer import affine_of, segmentation

    files = unit.files
    opened = {file: _dataset(file) for file in dict.fromkeys(files)}
    datasets = [opened[file] for file in files]
    name = _dicom_name(unit)
    written = []
    affine = affine_of(datasets, unit.frames, unit.planes[0].shape)
    if affine is not None:
        stack = np.stack(unit.planes)  # (z, H, W)
        voxels = stack.transpose(2, 1, 0)
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        written.append(_place(out, name, ".nii.gz"))
        nib.save(image, written[-1])
    # highdicom takes images of a single frame: a file each.
    if len(opened) == len(unit.slices) and not any(unit.frames):
        written.append(_place(out, name, ".seg.dcm"))
        segmentation(datasets, unit.planes, unit.classes).save_as(written[-1])
    return written


def _dataset(path: Path) -> Dataset:
    with open_inflated(path) as file:
        return pydicom.dcmread(file)


def _dicom_name(unit: UnitLabels) -> str:
    """Return the folder of a series of files, or the file of a single one without its suffix."""
    first = unescape_path(unit.slices[0].path)
    if len(set(unit.files)) > 1:
        return str(Path(first).parent)
    return first.removesuffix(".gz").removesuffix(".dcm")


def _place(out: Path, name: str, suffix: str) -> Path:
    """Return a path under `out`, whose folder is there afterwards."""
    path = out / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
