"""What every file format promises, tried on a file of each; a new format adds its SAMPLES line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from pipeline.io.decode import read_headers, read_slices
from pipeline.io.formats.contract import FormatReader
from pipeline.io.formats.registry import FORMATS, START_BYTES, recognise
from pipeline.io.sniff import sniff
from pipeline.types import Failure, Slice
from stores.errors import UnreadableError
from tests import phantoms

VOXELS = phantoms.volume(4, 20, 24)


def _array(path: Path) -> Path:
    np.save(path.with_suffix(".npy"), VOXELS)
    return path.with_suffix(".npy").rename(path)


def _pages(path: Path) -> Path:
    pages = [Image.fromarray((page % 256).astype(np.uint8)) for page in VOXELS]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])
    return path


def _nrrd(path: Path) -> Path:
    written = path.with_suffix(".nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), written)
    return written.rename(path)


# A file of each format with four frames, written at a path.
SAMPLES: dict[str, Callable[[Path], Path]] = {
    "dicom": lambda path: phantoms.write_enhanced(path, VOXELS, [1.0, 2.0, 0.5, 3.0]),
    "nifti": lambda path: phantoms.write_nifti_of_series(path.with_suffix(".nii"), VOXELS),
    "raster": _pages,
    "array": _array,
    "itk": _nrrd,
}
FRAMES = 4


@pytest.fixture(params=sorted(FORMATS))
def sample(request, tmp_path: Path) -> tuple[str, Path]:
    return request.param, SAMPLES[request.param](tmp_path / "sample")


def test_every_format_has_a_sample_here():
    assert set(SAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("function", ["read_headers", "read_slices"])
def test_a_reader_has_the_functions_of_the_contract(name, function):
    theirs = inspect.signature(getattr(FORMATS[name].reader(), function))
    ours = inspect.signature(getattr(FormatReader, function))
    assert [str(p) for p in theirs.parameters.values()] == [
        str(p) for p in list(ours.parameters.values())[1:]
    ]
    assert theirs.return_annotation == ours.return_annotation


def test_a_file_is_recognised_as_its_format_and_no_other(sample):
    name, path = sample
    start = path.read_bytes()[:START_BYTES]
    assert sniff(path) == recognise(start) == name
    assert [other for other, known in FORMATS.items() if known.has_signature(start)] == [name]


def test_signatures_lie_within_what_is_looked_at():
    for known in FORMATS.values():
        for place, magic in known.signatures:
            assert place + len(magic) <= START_BYTES


def test_headers_count_the_frames_and_tell_their_shapes(sample):
    _, path = sample
    headers = read_headers(path)
    assert [header.frame for header in headers] == list(range(FRAMES))
    for header, item in zip(headers, read_slices(path, range(FRAMES)), strict=True):
        assert isinstance(item, Slice)
        assert item.pixels.shape == (header.height, header.width)
        assert item.pixels.dtype == np.float32
        assert item.pixels.flags.c_contiguous


def test_frames_come_in_the_requested_order_and_one_too_many_is_a_failure(sample):
    _, path = sample
    order = [3, 0, 99, 0, -1, 2]
    items = list(read_slices(path, order))
    assert [item.frame for item in items] == order
    assert [type(item) for item in items] == [Slice, Slice, Failure, Slice, Failure, Slice]
    assert {item.reason for item in items if isinstance(item, Failure)} == {"corrupt"}
    np.testing.assert_array_equal(items[1].pixels, items[3].pixels)
    assert not np.array_equal(items[0].pixels, items[1].pixels, equal_nan=True)


def test_a_file_cut_short_has_a_reason(sample):
    _, path = sample
    data = path.read_bytes()
    for keep in (len(data) // 2, len(data) - len(data) // 4):
        path.write_bytes(data[:keep])
        try:
            reasons = {i.reason for i in read_slices(path, range(FRAMES)) if isinstance(i, Failure)}
        except UnreadableError as error:
            reasons = {error.reason}
        assert reasons, keep
        assert reasons <= {"truncated", "corrupt"}


def test_asking_for_a_format_imports_its_module_alone():
    modules = {known.module for known in FORMATS.values()}
    assert len(modules) == len(FORMATS)
    code = (
        "import sys\n"
        "from pipeline.io.formats.registry import FORMATS\n"
        "from pipeline.io import sniff\n"
        f"modules = {sorted(modules)!r}\n"
        "print([m for m in modules if m in sys.modules])\n"
        "FORMATS['raster'].reader()\n"
        "print([m for m in modules if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['pipeline.io.formats.raster']"]
