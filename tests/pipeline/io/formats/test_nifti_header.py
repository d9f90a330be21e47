"""NIfTI whose header is not as it should be, read as its other readers agree to."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.io.decode import read_headers, read_slices
from pipeline.io.formats import nifti
from pipeline.types import Failure
from tests import phantoms
from tests.pipeline.io.samples import one, reason_of

VOXELS = phantoms.volume(3, 10, 12).transpose(2, 1, 0).copy()
AFFINE = np.array([[-0.5, 0, 0, 9], [0, -0.25, 0, -7], [0, 0, 2, 5], [0, 0, 0, 1]])
# Where a field of NIfTI-1 stands, and how it is written.
FIELDS = {
    "dim": (40, "<8h"),
    "pixdim": (76, "<8f"),
    "vox_offset": (108, "<f"),
    "xyzt_units": (123, "<b"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quatern": (256, "<3f"),
    "qoffset": (268, "<3f"),
    "srow": (280, "<12f"),
}


def image() -> nib.Nifti1Image:
    """Return a volume that is placed by its qform alone."""
    made = nib.Nifti1Image(VOXELS, AFFINE)
    made.header.set_xyzt_units("mm")
    made.set_sform(None, 0)
    made.set_qform(AFFINE, 1)
    return made


def edited(path: Path, **fields: Any) -> Path:
    """Write that volume with other values of some fields; None in a list leaves its place alone."""
    raw = bytearray(image().to_bytes())
    for name, values in fields.items():
        place, form = FIELDS[name]
        several = values if isinstance(values, (list, tuple)) else [values]
        stored = list(struct.unpack_from(form, raw, place))
        for index, value in enumerate(several):
            stored[index] = stored[index] if value is None else value
        struct.pack_into(form, raw, place, *stored)
    path.write_bytes(raw)
    return path


def assert_as_good(path: Path, good: Path, flags: tuple[str, ...]) -> None:
    """Assert the same slices at the same places."""
    for header, other in zip(read_headers(path), read_headers(good), strict=True):
        assert header.position_mm == pytest.approx(other.position_mm, abs=1e-5)
        assert header.offset_mm == pytest.approx(other.offset_mm, abs=1e-5)
        assert header.spacing_mm == pytest.approx(other.spacing_mm)
        assert header.flags == flags
        np.testing.assert_array_equal(one(path, header.frame), one(good, header.frame))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = edited(tmp_path / "good.nii")
    assert [header.position_mm for header in read_headers(path)] == [5, 7, 9]
    assert read_headers(path)[0].spacing_mm == (0.25, 0.5)
    return path


@pytest.mark.parametrize("qfac", [0, 2, 0.5])
def test_a_qfac_that_is_not_minus_one_is_one(tmp_path, good, qfac):
    assert_as_good(edited(tmp_path / "a.nii", pixdim=[qfac]), good, ())


MENDED = ("mended-header",)


@pytest.mark.parametrize(
    "pixdim", [[None, -0.5], [None, None, -0.25], [None, None, None, -2], [None, -0.5, -0.25, -2]]
)
def test_a_negative_pixdim_is_a_length(tmp_path, good, pixdim):
    assert_as_good(edited(tmp_path / "a.nii", pixdim=pixdim), good, MENDED)


def test_a_pixdim_of_nought_is_no_spacing(tmp_path, good):
    for pixdim in ([None, 0], [None, float("nan")], [None, None, float("inf")]):
        headers = read_headers(edited(tmp_path / "a.nii", pixdim=pixdim))
        assert {header.spacing_mm for header in headers} == {None}
        assert headers[0].flags == MENDED
    headers = read_headers(edited(tmp_path / "a.nii", pixdim=[None, None, None, 0]))
    assert headers[0].spacing_mm == (0.25, 0.5)
    assert headers[0].flags == MENDED
    assert [header.position_mm for header in headers] == [5, 6, 7]


def test_a_picture_needs_no_third_spacing(tmp_path):
    flat = nib.Nifti1Image(VOXELS[..., :1], np.diag([0.5, 0.25, 1, 1]))
    flat.header["pixdim"][3] = 0
    flat.set_sform(None, 0)
    flat.set_qform(None, 0)
    (tmp_path / "a.nii").write_bytes(flat.to_bytes())
    (header,) = read_headers(tmp_path / "a.nii")
    assert header.spacing_mm == (0.25, 0.5)
    assert header.flags == ("no-orientation",)


def test_a_quaternion_that_is_too_long_is_a_half_turn(tmp_path, good):
    # The good one is 0, 0, 1, or as near to it as 32 bits are.
    assert_as_good(edited(tmp_path / "a.nii", quatern=[0, 0, 1 + 1e-6]), good, ())
    assert_as_good(edited(tmp_path / "a.nii", quatern=[0, 0, 1.001]), good, MENDED)


@pytest.mark.parametrize(
    "dim",
    [[4, 12, 10, 3, 0], [4, 12, 10, 3, -1], [5, 12, 10, 3, 1, 0], [7, 12, 10, 3, 0, 0, 0, 0]],
)
def test_axes_of_no_size_are_of_one(tmp_path, good, dim):
    assert_as_good(edited(tmp_path / "a.nii", dim=dim), good, MENDED)


@pytest.mark.parametrize("dim", [[3, 0], [3, -5], [0], [8], [-1]])
def test_a_file_without_a_first_axis_is_refused(tmp_path, dim):
    assert reason_of(edited(tmp_path / "a.nii", dim=dim)) == "corrupt"


def test_an_offset_of_nought_is_behind_the_header(tmp_path, good):
    assert_as_good(edited(tmp_path / "a.nii", vox_offset=0), good, ())


@pytest.mark.parametrize("offset", [16, 348, 351, -1, float("nan")])
def test_voxels_are_never_taken_from_the_header(tmp_path, offset):
    path = edited(tmp_path / "a.nii", vox_offset=offset)
    assert reason_of(path) == "corrupt"
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert reason_of(tmp_path / "b.nii.gz") == "corrupt"


def test_voxels_are_never_taken_from_the_header_of_nifti_2(tmp_path):
    raw = bytearray(nib.Nifti2Image(VOXELS, AFFINE).to_bytes())
    expected = np.arange(3)
    for offset, reason in ((0, None), (352, "corrupt"), (540, "corrupt"), (544, None)):
        struct.pack_into("<q", raw, 168, offset)
        (tmp_path / "a.nii").write_bytes(raw)
        assert reason_of(tmp_path / "a.nii") == reason, offset
    assert [header.frame for header in read_headers(tmp_path / "a.nii")] == expected.tolist()


@pytest.mark.parametrize(("unit", "length"), [(1, 1e-3), (3, 1e3), (2, 1), (0, 1), (2 + 8, 1)])
@pytest.mark.parametrize("by", ["qform", "sform"])
def test_lengths_in_metres_and_microns_are_told_in_millimetres(tmp_path, good, unit, length, by):
    affine = AFFINE.copy()
    affine[:3] *= length
    fields: dict[str, Any] = {"xyzt_units": unit}
    if by == "sform":
        fields |= {"sform_code": 2, "srow": affine[:3].ravel().tolist()}
    else:
        fields |= {
            "pixdim": [None, 0.5 * length, 0.25 * length, 2 * length],
            "qoffset": affine[:3, 3].tolist(),
        }
    path = edited(tmp_path / "a.nii", **fields)
    assert_as_good(path, good, ())
    # A mask written for it lies where it lies.
    nifti.write_like(path, {1: np.ones((10, 12), np.uint8)}, "axial", tmp_path / "m.nii")
    for header, other in zip(read_headers(tmp_path / "m.nii"), read_headers(good), strict=True):
        assert header.position_mm == pytest.approx(other.position_mm, abs=1e-5)
        assert header.spacing_mm == pytest.approx(other.spacing_mm)


@pytest.mark.parametrize("value", [0.0, float("nan"), 1.0])
def test_an_sform_without_a_matrix_gives_way_to_the_qform(tmp_path, good, value):
    path = edited(tmp_path / "a.nii", sform_code=1, srow=[value] * 12)
    assert_as_good(path, good, MENDED)


def test_without_any_matrix_the_spacings_are_left(tmp_path):
    path = edited(tmp_path / "a.nii", sform_code=1, srow=[0.0] * 12, qform_code=0)
    headers = read_headers(path)
    assert headers[0].spacing_mm == (0.25, 0.5)
    assert set(headers[0].flags) == {"no-orientation", "mended-header"}
    assert np.diff([header.position_mm for header in headers]).tolist() == [2, 2]


# --- bytes behind a gzipped volume ---------------------------------------------------------------


@pytest.mark.parametrize(
    "behind",
    [b"a few bytes", b"\0" * 512, b"\0", b"\x1f", b"x" * 100_000],
    ids=["text", "zeros", "zero", "half a magic", "much"],
)
def test_bytes_behind_a_gzipped_volume_are_left_aside_and_told(tmp_path, good, behind):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(good.read_bytes()) + behind)
    assert_as_good(path, good, ("trailing-bytes",))
    for plane in ("coronal", "sagittal"):
        np.testing.assert_array_equal(one(path, 2, plane), one(good, 2, plane))


@pytest.mark.parametrize("behind", [b"abc", b"\0" * 20, b"x" * 5000])
def test_bytes_behind_what_is_smaller_than_a_header_are_left_aside_too(tmp_path, behind):
    tiny = nib.Nifti1Image(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), np.eye(4))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(tiny.to_bytes()) + behind)
    assert {header.flags for header in read_headers(path)} == {("trailing-bytes",)}
    assert one(path, 2).shape == (3, 3)
    slices = phantoms.save(phantoms.dicom(VOXELS[0]), tmp_path / "plain")
    path = tmp_path / "a.dcm.gz"
    path.write_bytes(gzip.compress(slices.read_bytes()) + behind)
    np.testing.assert_array_equal(one(path), one(slices))


def test_streams_that_follow_each_other_are_one(tmp_path, good):
    data = good.read_bytes()
    path = tmp_path / "a.nii.gz"
    pieces = [gzip.compress(data[start : start + 400]) for start in range(0, len(data), 400)]
    path.write_bytes(b"".join(pieces))
    assert_as_good(path, good, ())
    path.write_bytes(b"".join(pieces) + b"more")
    assert_as_good(path, good, ("trailing-bytes",))
    # Voxels that the volume does not have are no bytes behind it.
    path.write_bytes(gzip.compress(data + b"more"))
    assert_as_good(path, good, ())


def test_what_is_damaged_stays_refused_whatever_follows(tmp_path, good):
    whole = bytearray(gzip.compress(good.read_bytes()))
    whole[len(whole) // 2] ^= 4
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bytes(whole) + b"a few bytes")
    assert reason_of(path) == "corrupt"
    sound = gzip.compress(good.read_bytes())
    path.write_bytes(sound[: len(sound) // 2])
    assert reason_of(path) == "truncated"
    assert all(not isinstance(item, Failure) for item in read_slices(good, [0, 1, 2]))
