"""PNG, JPEG, TIFF, BMP, NumPy and MATLAB files."""

from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from pipeline.io.decode import read_headers, read_slices
from stores.errors import UnreadableError
from tests import phantoms
from tests.pipeline.io.samples import GREY, one, reason_of


def test_png_of_8_and_16_bit_and_tiff(tmp_path):
    np.testing.assert_array_equal(one(phantoms.write_png(tmp_path / "a.png", GREY)), GREY)
    np.testing.assert_array_equal(one(phantoms.write_png(tmp_path / "a.tif", GREY)), GREY)
    eight = (GREY % 251).astype(np.uint8)
    np.testing.assert_array_equal(one(phantoms.write_png(tmp_path / "b.png", eight)), eight)
    np.testing.assert_array_equal(
        one(phantoms.write_png(tmp_path / "c.png", GREY > 100)), (GREY > 100) * 255.0
    )
    real = GREY.astype(np.float32) / 7
    np.testing.assert_array_equal(one(phantoms.write_png(tmp_path / "d.tiff", real)), real)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_white_is_zero_is_turned(tmp_path, dtype):
    pixels = (GREY % 200).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    raw = (tmp_path / "a.tif").read_bytes()
    # Tag 262 (photometric), type short, count 1, value 1: black is zero. Make it 0: white is.
    tag = struct.pack("<HHII", 262, 3, 1, 1)
    assert raw.count(tag) == 1
    (tmp_path / "b.tif").write_bytes(raw.replace(tag, struct.pack("<HHII", 262, 3, 1, 0)))
    np.testing.assert_array_equal(one(tmp_path / "b.tif"), np.iinfo(dtype).max - pixels)


def test_palette_is_looked_up_and_alpha_is_padding(tmp_path):
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:2] = 204
    path = phantoms.write_png(tmp_path / "p.png", rgb, "P")
    np.testing.assert_allclose(one(path)[0], 204, atol=1)
    np.testing.assert_allclose(one(path)[3], 0, atol=1)
    rgba = np.dstack([rgb, np.full((4, 4), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    pixels = one(phantoms.write_png(tmp_path / "a.png", rgba))
    assert np.isnan(pixels[0, 0])
    assert np.isnan(pixels).sum() == 1


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray((GREY % 200).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    image.save(tmp_path / "r.png", exif=exif)
    header = read_headers(tmp_path / "r.png")[0]
    assert (header.height, header.width) == (24, 20)
    np.testing.assert_array_equal(one(tmp_path / "r.png"), np.rot90(GREY % 200, -1))


def test_tiff_pages_are_frames(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), k, np.uint8)) for k in range(3)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    assert len(read_headers(tmp_path / "p.tif")) == 3
    assert [item.pixels[0, 0] for item in read_slices(tmp_path / "p.tif", [2, 0])] == [2, 0]


def test_bigtiff(tmp_path):
    path = phantoms.write_bigtiff(tmp_path / "big.tif", GREY)
    np.testing.assert_array_equal(one(path), GREY)
    path.write_bytes(path.read_bytes()[:-100])
    assert reason_of(path) in ("truncated", "corrupt")
    # Which Pillow does not read: it says so by name, and nobody takes it for a damaged file.
    assert reason_of(phantoms.write_bigtiff(path, GREY, ">")) == "unsupported"


def test_webp(tmp_path):
    grey = (GREY % 251).astype(np.uint8)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_allclose(one(tmp_path / "a.webp"), grey, atol=0.01)
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[0] = 0
    rgba = np.dstack([grey, grey, grey, alpha])
    Image.fromarray(rgba).save(tmp_path / "b.webp", lossless=True, exact=True)
    assert np.isnan(one(tmp_path / "b.webp")[0]).all()
    data = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    assert reason_of(tmp_path / "cut.webp") in ("truncated", "corrupt")


def test_numpy_arrays(tmp_path):
    voxels = phantoms.volume()
    np.save(tmp_path / "v.npy", voxels)
    assert len(read_headers(tmp_path / "v.npy")) == len(voxels)
    np.testing.assert_array_equal(one(tmp_path / "v.npy", 3), voxels[3])
    np.save(tmp_path / "s.npy", voxels[0])
    np.testing.assert_array_equal(one(tmp_path / "s.npy"), voxels[0])
    np.save(tmp_path / "c.npy", np.full((9, 8, 3), 7, np.uint8))
    np.testing.assert_allclose(one(tmp_path / "c.npy"), np.full((9, 8), 7.0), rtol=1e-6)


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([object()]), allow_pickle=True)
    assert reason_of(tmp_path / "evil.npy") in ("corrupt", "unsupported")


def test_matlab_of_both_makings(tmp_path):
    voxels = phantoms.volume()
    scipy.io.savemat(tmp_path / "a.mat", {"small": np.ones((1, 1)), "img": voxels[0]})
    np.testing.assert_array_equal(one(tmp_path / "a.mat"), voxels[0])
    scipy.io.savemat(tmp_path / "v.mat", {"img": voxels.transpose(1, 2, 0)}, do_compression=True)
    np.testing.assert_array_equal(one(tmp_path / "v.mat", 4), voxels[4])
    scipy.io.savemat(tmp_path / "t5.mat", {"cjdata": {"image": voxels[0], "PID": "1007"}})
    np.testing.assert_array_equal(one(tmp_path / "t5.mat"), voxels[0])
    with h5py.File(tmp_path / "t73.mat", "w", userblock_size=512) as file:
        file["cjdata/image"] = voxels[0].T  # MATLAB's axes are reversed in HDF5
        file["cjdata/PID"] = np.array([[ord(c)] for c in "1007"], np.uint16)
    with (tmp_path / "t73.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")
    np.testing.assert_array_equal(one(tmp_path / "t73.mat"), voxels[0])
    assert read_headers(tmp_path / "t73.mat")[0].patient == "1007"
    assert read_headers(tmp_path / "t5.mat")[0].patient == "1007"


@pytest.mark.parametrize(
    "pid",
    [
        {"shape": (10**9,), "chunks": (1024,)},  # 2 GB, by its header
        {"shape": (4,), "external": [("other.bin", 0, 8)]},
    ],
)
def test_a_patient_id_in_matlab_is_not_trusted(tmp_path, pid):
    (tmp_path / "other.bin").write_bytes(b"s\0e\0c\0r\0")
    with h5py.File(tmp_path / "t.mat", "w", userblock_size=512) as file:
        file["cjdata/image"] = phantoms.volume()[0]
        file.create_dataset("cjdata/PID", dtype=np.uint16, **pid)
    with pytest.raises(UnreadableError) as refused:
        read_headers(tmp_path / "t.mat")
    assert refused.value.reason == "unsupported"
