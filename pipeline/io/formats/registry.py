"""The file formats, by name. To add one: its module (see `contract.FormatReader`), and a line here.

Recognised by content, never by suffix. Formats are tried in the order of this table; those that
only resemble come last.
"""

from __future__ import annotations

from pipeline.io.formats.bare_dicom import is_bare_dicom
from pipeline.io.formats.contract import Format
from pipeline.io.formats.itk_text import data_files as itk_data_files
from pipeline.io.formats.meta_text import is_meta_image
from pipeline.io.formats.nrrd_text import MAGIC as NRRD
from pipeline.io.formats.pair import data_files as pair_data_files
from pipeline.io.formats.pair import is_analyze

# Bytes of a file's start that are looked at: more than the last signature needs.
START_BYTES = 540

_HDF5 = b"\x89HDF\r\n\x1a\n"

FORMATS: dict[str, Format] = {
    # First: a DICOM preamble may hold another format's magic (dual TIFF files).
    "dicom": Format(
        "pipeline.io.formats.dicom",
        signatures=((128, b"DICM"),),
        resembles=is_bare_dicom,
        gzipped=True,
    ),
    "nifti": Format(
        "pipeline.io.formats.nifti",
        signatures=((344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0"), (4, b"ni2\0")),
        resembles=is_analyze,
        gzipped=True,
        data_files=pair_data_files,
    ),
    "raster": Format(
        "pipeline.io.formats.raster",
        signatures=(
            (0, b"\x89PNG\r\n\x1a\n"),
            (0, b"\xff\xd8\xff"),  # JPEG
            (0, b"II*\0"),  # TIFF in either byte order
            (0, b"MM\0*"),
            (0, b"II+\0"),  # BigTIFF, which Pillow reads in this byte order alone
            (0, b"BM"),
            (8, b"WEBP"),
        ),
    ),
    "array": Format(
        "pipeline.io.formats.arrays",
        signatures=(
            (0, b"\x93NUMPY"),
            (0, b"MATLAB 5.0 MAT"),
            (0, b"MATLAB 7.3 MAT"),
            (0, _HDF5),
            (512, _HDF5),  # behind MATLAB's own 512 bytes
        ),
    ),
    "itk": Format(
        "pipeline.io.formats.itk_volume",
        signatures=((0, NRRD),),
        resembles=is_meta_image,
        data_files=itk_data_files,
    ),
}


def recognise(start: bytes) -> str | None:
    """Return the name of a file's format by its first bytes (START_BYTES), None where unknown."""
    for name, known in FORMATS.items():
        if known.has_signature(start):
            return name
    for name, known in FORMATS.items():
        if known.resembles is not None and known.resembles(start):
            return name
    return None
