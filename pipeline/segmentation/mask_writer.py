"""Label values back in the space of the images: NIfTI, DICOM segmentations, PNG.

The names of all files are those of the images. None of this is kept in a store.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

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

# What labels are written as: NIfTI of volumes and PNG of pictures, and DICOM segmentations.
MaskForm = Literal["files", "dicom-seg"]
MASK_FORMS: tuple[MaskForm, ...] = ("files", "dicom-seg")
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


def write_unit(unit: UnitLabels, out: Path, forms: Sequence[MaskForm] = MASK_FORMS) -> list[Path]:
    """Write a unit under `out` in each of some forms; return the files.

    What came from a file of a volume becomes NIfTI in the space of that file; DICOM becomes a DICOM
    segmentation, and NIfTI where the slices lie evenly in space; other images become PNG of label
    values, as DICOM does that can become neither. Nothing is written of what has no such form.
    """
    form = sniff(unit.files[0])
    if form == "dicom":
        return _write_dicom(unit, out, forms)
    if "files" not in forms:
        return []
    if form in ("nifti", "itk"):
        return _write_nifti(unit, out, form)
    return _write_pictures(unit, out)


def _write_nifti(unit: UnitLabels, out: Path, form: str) -> list[Path]:
    """Write labels as NIfTI in the space of a volume's file, which is of this format."""
    file = unescape_path(unit.slices[0].path)
    name = file.removesuffix(".gz")
    stem, dot, suffix = name.rpartition(".")
    path = place_for(out, stem if dot + suffix in _VOLUME_SUFFIXES else name, ".nii.gz", file)
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
    frames = Counter(row.path for row in unit.slices)
    for row, labels in zip(unit.slices, unit.planes, strict=True):
        name = unescape_path(row.path)
        suffix = f".{row.frame}.png" if frames[row.path] > 1 else ".png"
        path = place_for(out, _stem_of_picture(name), suffix, name)
        Image.fromarray(labels).save(path)
        written.append(path)
    return written


def _stem_of_picture(name: str) -> str:
    """Return a picture's path without its suffix; numbers behind a dot are a part of DICOM's."""
    path = PurePosixPath(name.removesuffix(".gz"))
    return str(path if path.suffix[1:].isdigit() else path.with_suffix(""))


def _write_dicom(unit: UnitLabels, out: Path, forms: Sequence[MaskForm]) -> list[Path]:
    # highdicom takes a second to import, and most collections need none of it.
    from pipeline.segmentation.dicom_writer import affine_of, segmentation

    files = unit.files
    opened = {file: read_dataset(file) for file in dict.fromkeys(files)}
    datasets = [opened[file] for file in files]
    first = unescape_path(unit.slices[0].path)
    name = dicom_name(first, is_alone=len(opened) == 1)
    written = []
    affine = None
    if "files" in forms:
        affine = affine_of(datasets, unit.frames, unit.planes[0].shape)
    if affine is not None:
        stack = np.stack(unit.planes)  # (z, H, W)
        voxels = stack.transpose(2, 1, 0)
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        written.append(place_for(out, name, ".nii.gz", first))
        nib.save(image, written[-1])
    # highdicom takes images of a single frame: a file each.
    is_single = len(opened) == len(unit.slices) and not any(unit.frames)
    if "dicom-seg" in forms and is_single:
        written.append(place_for(out, name, ".seg.dcm", first))
        segmentation(datasets, unit.planes, unit.classes).save_as(written[-1])
    if "files" in forms and not written:
        return _write_pictures(unit, out)
    return written


def read_dataset(path: Path, *, pixels: bool = True) -> Dataset:
    """Return a DICOM file, which may be gzipped. pixels: whether they are read as well."""
    with open_inflated(path) as file:
        return pydicom.dcmread(file, stop_before_pixels=not pixels)


def dicom_name(first: str, *, is_alone: bool) -> str:
    """Return what is written of DICOM is named by: the folder of its files, or one without suffix.

    first: the path of the first of them; is_alone: whether it is the only one. Files that lie in no
    folder go by the first.
    """
    folder = PurePosixPath(first).parent
    if not is_alone and folder.name:
        return str(folder)
    return first.removesuffix(".gz").removesuffix(".dcm")


def place_for(out: Path, name: str, suffix: str, full: str) -> Path:
    """Return a path under `out` that no file has, whose folder is there afterwards.

    full: the whole name of the image's first file, which is taken where another has the other name.
    """
    numbered = (f"{full}.{number}" for number in itertools.count(2))
    paths = (out / f"{each}{suffix}" for each in itertools.chain([name, full], numbered))
    # Two series may share a folder, two time points a file.
    path = next(path for path in paths if not path.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
