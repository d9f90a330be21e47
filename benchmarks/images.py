"""Collections of real files for the benchmarks: DICOM, gzipped NIfTI, PNG.

Of real images where RADPROBE_REAL_DATA names them, else of the demo's phantoms. No two slices have
the same pixels, since equal ones are embedded once.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

# NIfTI's and Pillow's libraries are imported by what writes such files: for DICOM they need not be
# there (benchmarks/gpu.txt).
if TYPE_CHECKING:
    from PIL.Image import Image

LARGE = 1024  # as NIH ChestX-ray14 has them


def write_images(folder: Path, kind: str, slices: int) -> Path:
    """Write so many slices of a kind; return the folder.

    kind: "dicom", "nifti.gz", "png" (X-rays of about 512 px, as they are) or "png-1024" (enlarged).
    """
    folder.mkdir(parents=True)
    if kind.startswith("png"):
        _write_png(folder, slices, large=kind == "png-1024")
    else:
        {"dicom": _write_dicom, "nifti.gz": _write_nifti}[kind](folder, slices)
    return folder


def _real() -> Path | None:
    name = os.environ.get("RADPROBE_REAL_DATA")
    return Path(name) if name else None


@cache
def _ct() -> NDArray[np.int16]:
    """Return a CT volume (n, H, W) of stored values."""
    if (real := _real()) is not None:
        files = sorted(path for path in (real / "dicom_ct_philips").rglob("*") if path.is_file())
        return np.stack([pydicom.dcmread(path).pixel_array for path in files]).astype(np.int16)
    # As noisy as a real one: what is read and decoded costs as much.
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(x**2 / 0.8 + y**2 / 0.5 < 1, 40, -1000)
    lungs = (np.abs(x) - 0.4) ** 2 / 0.07 + y**2 / 0.25 < 1
    volume = np.where(lungs, -800, body) + rng.normal(0, 20, (28, 512, 512))
    return volume.astype(np.int16)


def _slice(k: int) -> NDArray[np.int16]:
    """Return the k-th slice: those of the volume again and again, one pixel telling them apart."""
    pixels = _ct()[k % len(_ct())].copy()
    pixels[0, 0] = k % 2**15
    return pixels


def _write_dicom(folder: Path, slices: int) -> None:
    """Write a file a slice, with all the header of the real one where there is one."""
    dataset = _plain_header()
    if (real := _real()) is not None:
        files = (path for path in (real / "dicom_ct_philips").rglob("*") if path.is_file())
        dataset = pydicom.dcmread(next(files))
    for k in range(slices):
        dataset.PixelData = _slice(k).tobytes()
        dataset.ImagePositionPatient = [0, 0, float(k)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.8]
        dataset.SOPInstanceUID = f"1.2.3.{k + 1}"
        dataset.save_as(folder / f"{k:06d}", enforce_file_format=True)


def _plain_header() -> Dataset:
    """Return the header of a CT slice, for stored values of the phantom's shape."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.PatientID = "benchmark"
    dataset.StudyInstanceUID = "1.2.3.1"
    dataset.SeriesInstanceUID = "1.2.3.2"
    dataset.Rows, dataset.Columns = _ct().shape[1:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = 0
    return dataset


def _write_nifti(folder: Path, slices: int, depth: int = 96) -> None:
    import nibabel as nib

    for start in range(0, slices, depth):
        stop = min(start + depth, slices)
        voxels = np.stack([_slice(k) for k in range(start, stop)])
        image = nib.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), np.eye(4))
        nib.save(image, folder / f"{start:06d}.nii.gz")


def _write_png(folder: Path, slices: int, *, large: bool) -> None:
    from PIL import Image

    pictures = _xrays()
    if large:
        pictures = [one.resize((LARGE, LARGE), Image.Resampling.BICUBIC) for one in pictures]
    for k in range(slices):
        again, which = divmod(k, len(pictures))
        pixels = np.asarray(pictures[which]).copy()
        pixels[:8, :8], pixels[:8, 8:16] = again % 256, which  # the real set holds copies
        Image.fromarray(pixels).save(folder / f"{k:06d}.png")


@cache
def _xrays(count: int = 16) -> list[Image]:
    from PIL import Image

    if (real := _real()) is not None:
        files = sorted((real / "cxr/images").iterdir())[:count]
        return [Image.open(path).convert("L") for path in files]
    grey = np.clip((_ct()[:count].astype(np.int32) + 1024) // 8, 0, 255).astype(np.uint8)
    return [Image.fromarray(one) for one in grey]
