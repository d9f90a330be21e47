"""NIfTI volumes of any orientation, plain and gzipped."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from pipeline.config.data import Data
from pipeline.extraction.discover import discover
from pipeline.io.decode import read_headers, read_slices
from pipeline.io.detached import content_digest
from pipeline.io.formats import nifti
from pipeline.types import Failure, Slice
from stores.errors import UnreadableError
from tests import phantoms
from tests.pipeline.io.samples import one, reason_of


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
def test_orientation_of_the_file_does_not_matter(tmp_path, suffix, codes):
    ras = phantoms.volume(6, 7, 8).transpose(2, 1, 0).copy()
    image = nib.Nifti1Image(ras, np.diag([2.0, 3.0, 4.0, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    path = tmp_path / f"v.{suffix}"
    nib.save(image.as_reoriented(turn), path)
    np.testing.assert_array_equal(one(path, 2), ras[::-1, ::-1, 2].T)
    np.testing.assert_array_equal(one(path, 0, "coronal"), ras[::-1, -1, ::-1].T)
    np.testing.assert_array_equal(one(path, 1, "sagittal"), ras[1, ::-1, ::-1].T)
    for plane, count, spacing in (
        ("axial", 6, (3, 2)),
        ("coronal", 7, (4, 2)),
        ("sagittal", 8, (4, 3)),
    ):
        headers = read_headers(path, plane)
        assert len(headers) == count
        assert headers[0].spacing_mm == spacing
        steps = np.diff([header.position_mm for header in headers])
        assert (steps > 0).all()


def test_series_and_nifti_give_the_same_slices_at_the_same_places(tmp_path):
    voxels = phantoms.volume()
    files = phantoms.write_series(tmp_path / "series", voxels)
    volume = phantoms.write_nifti_of_series(tmp_path / "v.nii.gz", voxels)
    headers = [read_headers(file)[0] for file in files]
    ours = read_headers(volume)
    for k, (theirs, header) in enumerate(zip(headers, ours, strict=True)):
        np.testing.assert_array_equal(one(files[k]), one(volume, k))
        assert header.position_mm == pytest.approx(theirs.position_mm, abs=1e-4)
        assert header.offset_mm == pytest.approx(theirs.offset_mm, abs=1e-4)
        assert header.spacing_mm == pytest.approx(theirs.spacing_mm, abs=1e-6)


def test_nifti_scaling_four_dimensions_and_not_finite_values(tmp_path):
    data = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    data[0, 0, 0, 1], data[1, 0, 0, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "f.nii.gz")
    headers = read_headers(tmp_path / "f.nii.gz")
    assert [header.order for header in headers[::6]] == [(0.0,), (1.0,), (2.0,)]
    np.testing.assert_array_equal(one(tmp_path / "f.nii.gz", 6), data[::-1, ::-1, 0, 1].T)
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "s.nii")
    loaded = nib.load(tmp_path / "s.nii").get_fdata()
    np.testing.assert_allclose(one(tmp_path / "s.nii", 3), loaded[::-1, ::-1, 3].T, rtol=1e-6)


def test_big_endian_and_nifti_2(tmp_path):
    voxels = phantoms.volume(3).transpose(2, 1, 0)
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(voxels.astype(">i2"), np.eye(4), header), tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:4] == b"\0\0\1\\"
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), tmp_path / "two.nii.gz")
    for name in ("b.nii", "two.nii.gz"):
        np.testing.assert_array_equal(one(tmp_path / name, 1), voxels[::-1, ::-1, 1].T)


def test_oblique_and_unplaced_volumes_are_flagged(tmp_path):
    angle = np.radians(12)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nib.save(nib.Nifti1Image(phantoms.volume(4), affine), tmp_path / "o.nii")
    assert read_headers(tmp_path / "o.nii")[0].flags == ("oblique",)
    image = nib.Nifti1Image(phantoms.volume(4), None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(image, tmp_path / "u.nii")
    assert read_headers(tmp_path / "u.nii")[0].flags == ("no-orientation",)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "RAI", "PIR", "SLA"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_gzipped_slices_are_those_of_the_plain_file_in_any_order(tmp_path, axes, plane):
    voxels = np.random.default_rng(0).integers(-9, 999, (5, 6, 7, 3)).astype(np.int16)
    turn = nib.orientations.axcodes2ornt(axes)
    affine = nib.orientations.inv_ornt_aff(turn, voxels.shape[:3])
    for name in ("v.nii", "v.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / name)
    order = np.random.default_rng(1).permutation(len(read_headers(tmp_path / "v.nii", plane)))
    frames = [*order.tolist(), 1, 1, -1, 0]
    plain, zipped = (
        list(read_slices(tmp_path / name, frames, plane)) for name in ("v.nii", "v.nii.gz")
    )
    assert [item.frame for item in zipped] == frames
    assert [type(item) for item in zipped].count(Failure) == 1
    for expected, item in zip(plain, zipped, strict=True):
        if isinstance(expected, Slice):
            np.testing.assert_array_equal(item.pixels, expected.pixels)


def test_a_gzipped_volume_is_decompressed_twice_and_no_more(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(phantoms.volume(30, 40, 40), np.eye(4)), tmp_path / "v.nii.gz")
    read = []
    into = nifti._into
    monkeypatch.setattr(nifti, "_into", lambda *args: read.append(into(*args)) or read[-1])
    for plane in ("axial", "sagittal"):
        read.clear()
        count = len(read_headers(tmp_path / "v.nii.gz", plane))
        assert len(list(read_slices(tmp_path / "v.nii.gz", range(count), plane))) == count
        assert 30 * 40 * 40 * 2 * 2 <= sum(read) <= 30 * 40 * 40 * 2 * 2 + 2**10


def test_no_more_of_a_large_file_is_in_memory_than_a_slice_or_a_time_point(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 9, (64, 64, 64, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "long.nii.gz")
    frames = rng.integers(0, 4096, (110, 200, 200)).astype(np.uint16)
    plain = phantoms.save(phantoms.dicom(frames), tmp_path / "frames.dcm")
    coded = phantoms.transcode(plain, tmp_path / "coded.dcm", uid.RLELossless)
    pages = [Image.fromarray(page) for page in frames]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for path, plane in (
        (tmp_path / "pages.tif", "axial"),
        (tmp_path / "long.nii.gz", "axial"),
        (tmp_path / "long.nii.gz", "coronal"),
        (plain, "axial"),
        (coded, "axial"),
    ):
        headers = read_headers(path, plane)
        assert sum(header.height * header.width * 2 for header in headers) > 2**23
        asked = [header.frame for header in headers]
        del headers
        tracemalloc.start()
        for item in read_slices(path, asked, plane):
            assert isinstance(item, Slice)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**22, (path.name, plane)


def test_nothing_of_a_damaged_gzip_is_read(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 99, (64, 64, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")
    data = (tmp_path / "v.nii.gz").read_bytes()

    def reason(damaged: bytes) -> str:
        (tmp_path / "bad.nii.gz").write_bytes(damaged)
        with pytest.raises(UnreadableError) as caught:
            next(read_slices(tmp_path / "bad.nii.gz", [0]))
        return caught.value.reason

    for place in (len(data) // 2, len(data) - 1000, len(data) - 6):  # the last within its checksum
        flipped = bytearray(data)
        flipped[place] ^= 4
        assert reason(bytes(flipped)) == "corrupt", place
    assert reason(data[:-1]) == "truncated"
    short = nib.Nifti1Image(voxels, np.eye(4)).to_bytes()[:-1]
    assert reason(gzip.compress(short)) == "truncated"


# --- headers and voxels in two files -----------------------------------------------------------


def same_as_nifti(path: Path, image: nib.spatialimages.SpatialImage) -> None:
    """Hold a file's slices and headers against those of the same image in one NIfTI."""
    whole = nib.Nifti1Image(image.get_fdata().astype(np.float32), image.affine)
    nib.save(whole, path.with_name("whole.nii"))
    for plane in ("axial", "coronal", "sagittal"):
        ours = read_headers(path, plane)
        theirs = read_headers(path.with_name("whole.nii"), plane)
        for header, expected in zip(ours, theirs, strict=True):
            assert header.position_mm == pytest.approx(expected.position_mm, abs=1e-4)
            assert header.offset_mm == pytest.approx(expected.offset_mm, abs=1e-4)
            assert header.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-5)
        frames = range(len(ours))
        pictures = [item.pixels for item in read_slices(path, frames, plane)]
        for frame, pixels in enumerate(pictures):
            expected = one(path.with_name("whole.nii"), frame, plane)
            np.testing.assert_allclose(pixels, expected, rtol=1e-6)


AFFINE = np.array([[-0.7, 0.1, 0, 9], [0.1, 0.8, 0, -4], [0, 0, 2.5, 100], [0, 0, 0, 1.0]])
VOXELS = np.ascontiguousarray(phantoms.volume(4, 5, 6).T)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_pair_is_the_image_that_nibabel_reads(tmp_path, kind, zipped):
    image = kind(VOXELS, AFFINE)
    image.header.set_slope_inter(2, -1)
    nib.save(image, tmp_path / f"p.img{'.gz' * zipped}")
    header = tmp_path / f"p.hdr{'.gz' * zipped}"
    same_as_nifti(header, nib.load(header))
    assert read_headers(header)[0].flags == ("oblique",)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze_is_the_image_that_nibabel_reads(tmp_path, kind, order):
    voxels = VOXELS.astype(np.int16)
    header = kind.header_class(endianness=order)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(np.int16)
    header.set_zooms((0.7, 0.8, 2.5))
    if kind is not nib.AnalyzeImage:
        header["origin"][:3] = 2, 3, 1
        header["scl_slope"] = 0.5
    (tmp_path / "a.hdr").write_bytes(header.binaryblock)
    (tmp_path / "a.img").write_bytes(voxels.astype(f"{order}i2").tobytes("F"))
    same_as_nifti(tmp_path / "a.hdr", nib.load(tmp_path / "a.hdr"))
    assert read_headers(tmp_path / "a.hdr")[0].flags == ("no-orientation",)


def test_the_voxels_of_a_pair_are_no_image_and_without_them_there_is_none(tmp_path):
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "a.img")
    nib.save(nib.Nifti1Pair(VOXELS + 1, AFFINE), tmp_path / "b.img.gz")
    found = discover(Data(root=tmp_path), b"k" * 32, workers=0)
    reasons = dict(zip(*(found.files[n].to_pylist() for n in ("path", "reason")), strict=True))
    assert reasons == {"a.hdr": None, "a.img": "other", "b.hdr.gz": None, "b.img.gz": "other"}
    assert len(found.slices) == 8
    before = content_digest(tmp_path / "a.hdr"), content_digest(tmp_path / "b.hdr.gz")
    nib.save(nib.Nifti1Pair(VOXELS + 2, AFFINE), tmp_path / "a.img")
    nib.save(nib.Nifti1Pair(VOXELS + 2, AFFINE), tmp_path / "b.img.gz")
    after = content_digest(tmp_path / "a.hdr"), content_digest(tmp_path / "b.hdr.gz")
    assert not set(before) & set(after)
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-2])
    assert reason_of(tmp_path / "a.hdr") == "truncated"
    (tmp_path / "a.img").unlink()
    assert reason_of(tmp_path / "a.hdr") == "truncated"
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 5")
    assert reason_of(tmp_path / "envi.hdr") == "not-an-image"
