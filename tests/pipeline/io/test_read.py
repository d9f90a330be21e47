"""Every kind of file a hospital or a data set hands over, read from real files."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import closing, contextmanager
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.io
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from pipeline.io.decode import read_frames, read_headers, read_slices
from pipeline.io.digests import narrow
from pipeline.io.formats import nifti
from pipeline.io.formats.dicom_geometry import Layout, orientation
from pipeline.io.formats.limits import check_size
from pipeline.io.pool import _Pool
from pipeline.io.process import Job
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.shared.paths import escape_path, unescape_path
from pipeline.types import Failure, Slice, Voi
from stores.errors import UnreadableError
from tests import phantoms

GREY = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24)


def one(path: Path, frame: int = 0, plane: str = "axial") -> np.ndarray:
    (item,) = read_slices(path, [frame], plane)
    assert isinstance(item, Slice), item
    assert item.frame == frame
    assert item.pixels.dtype == np.float32
    return item.pixels


def whole_file_reason(path: Path) -> str | None:
    """Return why a file is refused, at its header or at its first pixels; None if it is read."""
    try:
        headers = read_headers(path)
        (item,) = read_slices(path, [headers[0].frame])
    except UnreadableError as error:
        return error.reason
    return item.reason if isinstance(item, Failure) else None


# --- DICOM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
def test_transfer_syntaxes_give_the_stored_values(tmp_path, syntax, dtype):
    pixels = (phantoms.volume(1, 40, 48)[0] % 200 + (-50 if dtype == np.int16 else 0)).astype(dtype)
    path = phantoms.save(
        phantoms.dicom(pixels, RescaleSlope=2, RescaleIntercept=-7), tmp_path / "a", syntax
    )
    np.testing.assert_array_equal(one(path), pixels.astype(np.float32) * 2 - 7)


@pytest.mark.parametrize(
    "syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1], ids=lambda syntax: syntax.keyword
)
def test_lossless_jpeg_of_16_bits(tmp_path, syntax):
    pixels = phantoms.volume(1, 40, 48)[0].astype(np.uint16) % 4096
    plain = phantoms.save(phantoms.dicom(pixels), tmp_path / "plain")
    path = phantoms.transcode(plain, tmp_path / "coded", syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(one(path), pixels)


@pytest.mark.parametrize("signed", [0, 1])
def test_lossy_jpeg_of_12_bits(tmp_path, signed):
    ramp = (np.add.outer(np.arange(40), np.arange(48)) * 45).astype(np.uint16)
    pixels = np.stack([ramp, ramp[::-1]])
    path = phantoms.write_jpeg_12(tmp_path / "a", pixels, PixelRepresentation=signed)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit
    for frame in (0, 1):
        np.testing.assert_allclose(one(path, frame), pixels[frame], atol=4)


def test_lossy_jpeg_of_12_bits_as_others_decode_it():
    """The numbers are libjpeg's (through pylibjpeg-libjpeg 2.5): an inverse DCT may differ by 1."""
    (item,) = read_slices(PYDICOM / "test_files/JPGExtended.dcm", [0])
    assert item.pixels.shape == (1024, 256)
    assert item.pixels.mean() == pytest.approx(14.383, abs=0.02)
    reference = [[31, 28, 24, 21], [29, 27, 25, 23], [25, 26, 26, 27]]
    np.testing.assert_allclose(item.pixels[500:503, 100:104], reference, atol=1)
    # The same picture with a fault in its stream's header that strict decoders refuse.
    (other,) = read_slices(PYDICOM / "test_files/JPEG-lossy.dcm", [0])
    np.testing.assert_array_equal(other.pixels, item.pixels)


def test_jpeg_of_12_bits_cut_short_or_of_another_size_is_refused(tmp_path):
    pixels = np.full((2, 40, 48), 1000, np.uint16)
    path = phantoms.write_jpeg_12(tmp_path / "a", pixels, Rows=48, Columns=40)
    assert [item.reason for item in read_slices(path, [0, 1])] == ["corrupt", "corrupt"]
    path = phantoms.write_jpeg_12(tmp_path / "b", pixels, cut=20)
    assert [item.reason for item in read_slices(path, [0, 1])] == ["truncated", "truncated"]


def test_high_throughput_jpeg_2000(tmp_path):
    path = phantoms.write_htj2k(tmp_path / "a")
    np.testing.assert_array_equal(one(path), phantoms.htj2k_pixels())


PYDICOM = Path(pydicom.__file__).parent / "data"
# Files of pydicom with pixels that are set aside, and why; all others must be read.
SET_ASIDE = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "corrupt",  # pydicom cannot decode it either
    "MR_truncated.dcm": "truncated",
    "rtplan_truncated.dcm": "truncated",
    "badVR.dcm": "unsupported",  # a dose grid
    "rtdose.dcm": "unsupported",
    "rtdose_1frame.dcm": "unsupported",
    "rtdose_expb.dcm": "unsupported",
    "rtdose_expb_1frame.dcm": "unsupported",
    "rtdose_rle.dcm": "unsupported",
    "rtdose_rle_1frame.dcm": "unsupported",
    "liver_1frame.dcm": "unsupported",  # a segmentation
    "liver_expb_1frame.dcm": "unsupported",
    "meta_missing_tsyntax.dcm": "corrupt",  # pixels without rows and columns
    "nested_priv_SQ.dcm": "corrupt",
}

# Lossy JPEG of 12 bits, which pydicom's freely licensed plugins do not decode.
JPEG_12 = ("JPEG-lossy.dcm", "JPGExtended.dcm")


def stored_as_shown(ds: pydicom.Dataset, frame: int) -> np.ndarray:
    """Return what pydicom itself makes of a frame: modality values or luma, laid as shown."""
    values = pydicom.pixels.apply_modality_lut(ds.pixel_array, ds)
    values = values[frame] if int(ds.get("NumberOfFrames") or 1) > 1 else values
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        values = pydicom.pixels.apply_color_lut(values, ds)
    if values.ndim == 3:
        values = values[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    axes = orientation(ds, frame)
    values = values.astype(np.float32)
    return values if axes is None else Layout.of(axes).apply(values)


@pytest.mark.filterwarnings("ignore")
def test_all_files_of_pydicom_are_set_aside_with_reason_or_equal_its_pixel_array():
    read = 0
    for path in sorted(PYDICOM.rglob("*")):
        if not path.is_file() or path.suffix in (".py", ".pyc", ".json"):
            continue
        why = whole_file_reason(path)
        if why is not None:
            assert why == SET_ASIDE.get(path.name, "not-an-image"), path
            continue
        frames = [header.frame for header in read_headers(path)]
        items = list(read_slices(path, frames))
        if path.name in JPEG_12:
            continue
        ds = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in ds.file_meta:
            implicit, _ = ds.original_encoding
            ds.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            )
        for frame, item in zip(frames, items, strict=True):
            expected, pixels = stored_as_shown(ds, frame), item.pixels
            if ds.PhotometricInterpretation == "MONOCHROME1":
                expected = (pixels + expected).ravel()[0] - expected
            shown = np.isfinite(pixels)
            np.testing.assert_allclose(pixels[shown], expected[shown], rtol=1e-6, err_msg=str(path))
            if "PixelPaddingValue" not in ds:
                assert shown.all(), path
        read += 1
    assert read >= 90


def test_decoders_are_the_freely_licensed_ones():
    from pipeline.io.formats.dicom import DECODERS

    # pylibjpeg decodes JPEG and JPEG-LS only through the GPL package.
    assert {s for s, name in DECODERS.items() if name == "pylibjpeg"} == {
        uid.JPEG2000Lossless,
        uid.JPEG2000,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
    }


def test_without_preamble_and_without_meta(tmp_path):
    phantoms.save(phantoms.dicom(GREY), tmp_path / "full")
    (tmp_path / "no_preamble").write_bytes((tmp_path / "full").read_bytes()[132:])
    bare = phantoms.dicom(GREY)
    del bare.file_meta
    with io.BytesIO() as buffer:
        pydicom.dcmwrite(buffer, bare, implicit_vr=True, little_endian=True)
        (tmp_path / "bare").write_bytes(buffer.getvalue())
    for name in ("full", "no_preamble", "bare"):
        np.testing.assert_array_equal(one(tmp_path / name), GREY.astype(np.float32))


@pytest.mark.parametrize(("bits", "dtype"), [(12, np.uint16), (12, np.int16), (32, np.uint32)])
def test_stored_bits(tmp_path, bits, dtype):
    top = 2 ** min(bits - 1, 20)
    pixels = np.array([[0, 1], [top - 1, -top if dtype == np.int16 else top]], dtype=dtype)
    ds = phantoms.dicom(pixels, BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(one(phantoms.save(ds, tmp_path / "a")), pixels.astype(np.float32))


def test_modality_lut_sequence(tmp_path):
    ds = phantoms.dicom(np.array([[0, 1], [2, 3]], np.uint8), Modality="CR")
    ds.ModalityLUTSequence = [
        phantoms._item(LUTDescriptor=[4, 0, 16], ModalityLUTType="US", LUTData=[10, 200, 30, 4000])
    ]
    ds.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
    ds.ModalityLUTSequence[0]["LUTData"].VR = "US"
    np.testing.assert_array_equal(one(phantoms.save(ds, tmp_path / "a")), [[10, 200], [30, 4000]])


def test_padding_becomes_nan_also_where_its_sign_was_mixed_up(tmp_path):
    pixels = np.array([[-2000, 5], [-1999, 7]], np.int16)
    ds = phantoms.dicom(pixels, RescaleSlope=1, RescaleIntercept=0)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    np.testing.assert_array_equal(
        one(phantoms.save(ds, tmp_path / "a")), np.float32([[np.nan, 5], [-1999, 7]])
    )
    ds.add_new("PixelPaddingRangeLimit", "SS", -1999)
    np.testing.assert_array_equal(
        one(phantoms.save(ds, tmp_path / "b")), np.float32([[np.nan, 5], [np.nan, 7]])
    )


def test_monochrome1_pair_is_equal_and_its_window_turns_with_it(tmp_path):
    pixels = (GREY * 8).astype(np.uint16)
    tags = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}
    plain = phantoms.dicom(pixels, WindowCenter=1000, WindowWidth=400, **tags)
    turned = phantoms.dicom(
        4095 - pixels,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=4096 - 1000,
        WindowWidth=400,
        **tags,
    )
    (a,) = read_slices(phantoms.save(plain, tmp_path / "a"), [0])
    (b,) = read_slices(phantoms.save(turned, tmp_path / "b"), [0])
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert a.voi == b.voi


def test_hounsfield_units_are_never_turned(tmp_path):
    ds = phantoms.dicom(GREY, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(one(phantoms.save(ds, tmp_path / "a")), GREY.astype(np.float32))


def test_colour_becomes_luma(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    ds = phantoms.dicom(rgb, Modality="US")
    expected = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(one(phantoms.save(ds, tmp_path / "a")), expected, rtol=1e-6)


def test_ultrasound_multiframe_and_frames_beyond_the_end(tmp_path):
    clip = np.random.default_rng(1).integers(0, 255, (5, 8, 9), dtype=np.uint8)
    path = phantoms.save(phantoms.dicom(clip, Modality="US"), tmp_path / "a", uid.RLELossless)
    assert [header.frame for header in read_headers(path)] == [0, 1, 2, 3, 4]
    items = list(read_slices(path, [4, 99, 0]))
    np.testing.assert_array_equal(items[0].pixels, clip[4])
    assert isinstance(items[1], Failure)
    assert items[1].frame == 99
    np.testing.assert_array_equal(items[2].pixels, clip[0])


def test_a_frame_that_cannot_be_decoded_costs_no_other(tmp_path):
    frames = np.random.default_rng(0).integers(0, 4096, (5, 30, 40)).astype(np.uint16)
    plain = phantoms.save(phantoms.dicom(frames), tmp_path / "plain.dcm")
    coded = phantoms.transcode(plain, tmp_path / "coded.dcm", uid.RLELossless)
    ds = pydicom.dcmread(coded)
    streams = list(generate_frames(ds.PixelData, number_of_frames=5))
    streams[2] = b"\0" * len(streams[2])
    ds.PixelData = encapsulate(streams)
    ds.save_as(coded)
    order = [4, 2, 0, 2, 3, 1]
    items = list(read_slices(coded, order))
    assert [item.frame for item in items] == order
    for item in items:
        if item.frame == 2:
            assert isinstance(item, Failure)
        else:
            np.testing.assert_array_equal(item.pixels, frames[item.frame].astype(np.float32))
    for item in read_slices(plain, order):
        np.testing.assert_array_equal(item.pixels, frames[item.frame].astype(np.float32))


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGLSLossless])
@pytest.mark.parametrize("count", [1, 3])
def test_encapsulated_pixels_without_their_end_are_refused(tmp_path, syntax, count):
    frames = np.add.outer(np.arange(count), GREY // 4).astype(np.uint8)
    plain = phantoms.save(phantoms.dicom(frames[0] if count == 1 else frames), tmp_path / "p.dcm")
    data = phantoms.transcode(plain, tmp_path / "whole.dcm", syntax).read_bytes()
    assert whole_file_reason(tmp_path / "whole.dcm") is None
    for cut in (5, 8, 9, 30):
        (tmp_path / "cut.dcm").write_bytes(data[:-cut])
        assert whole_file_reason(tmp_path / "cut.dcm") == "truncated", cut


def test_pixels_that_are_not_as_the_header_says_are_refused(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    ds = phantoms.dicom(colour, PhotometricInterpretation="YBR_FULL_422")
    assert whole_file_reason(phantoms.save(ds, tmp_path / "three.dcm")) == "corrupt"
    plain = phantoms.save(phantoms.dicom(GREY), tmp_path / "plain.dcm")
    coded = phantoms.transcode(plain, tmp_path / "coded.dcm", uid.RLELossless)
    raw = coded.read_bytes().replace(uid.RLELossless.encode(), b"1.2.840.10008.1.2.1")
    (tmp_path / "pieces.dcm").write_bytes(raw)
    assert whole_file_reason(tmp_path / "pieces.dcm") == "corrupt"


def test_enhanced_multiframe_has_rescale_position_and_window_of_each_frame(tmp_path):
    voxels = phantoms.volume(4)
    slopes = [1.0, 2.0, 0.5, 3.0]
    path = phantoms.write_enhanced(tmp_path / "a", voxels, slopes)
    headers = read_headers(path)
    assert [header.position_mm for header in headers] == [50.0, 47.0, 44.0, 41.0]
    assert headers[0].spacing_mm == (1.5, 1.25)
    for frame, item in enumerate(read_slices(path, range(4))):
        expected = voxels[frame] * slopes[frame] + frame
        np.testing.assert_array_equal(item.pixels, expected.astype(np.float32))
        assert (item.voi.low, item.voi.high, item.voi.shape) == (
            10 * frame - 50,
            10 * frame + 50,
            "sigmoid",
        )


ORIENTATIONS = [
    (1, 0, 0, 0, 1, 0),  # axial, supine
    (-1, 0, 0, 0, -1, 0),  # axial, prone
    (1, 0, 0, 0, -1, 0),
    (0, 1, 0, 1, 0, 0),  # transposed
    (0, -1, 0, 1, 0, 0),
    (1, 0, 0, 0, 0, -1),  # coronal
    (0, 0, 1, -1, 0, 0),
    (0, 1, 0, 0, 0, -1),  # sagittal
    (0, 0, -1, 0, -1, 0),
    (0.8, 0.6, 0, -0.6, 0.8, 0),  # oblique
]


@pytest.mark.parametrize("cosines", ORIENTATIONS, ids=str)
def test_series_of_any_orientation_gives_the_slices_of_its_nifti(tmp_path, cosines):
    voxels = phantoms.volume(4, 5, 6)
    files = phantoms.write_series(tmp_path / "series", voxels, orientation=cosines, step=2.0)
    along, down = np.array(cosines[:3]), np.array(cosines[3:])
    start, step = np.array([-30.0, -40.0, 100.0]), 2.0 * np.cross(along, down)
    # What a converter writes: axes (column, row, slice), LPS turned to RAS.
    affine = np.eye(4)
    affine[:3] = np.stack([along * 0.7, down * 0.8, step, start], axis=1)
    affine[:2] *= -1
    image = nib.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine)
    nib.save(image, tmp_path / "v.nii")
    axis = int(np.abs(step).argmax())
    plane = ("sagittal", "coronal", "axial")[axis]
    theirs = sorted(((read_headers(f)[0], f) for f in files), key=lambda pair: pair[0].position_mm)
    ours = read_headers(tmp_path / "v.nii", plane)
    for header, (other, file) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one(tmp_path / "v.nii", header.frame, plane), one(file))
        assert (header.height, header.width) == (other.height, other.width)
        assert header.position_mm == pytest.approx(other.position_mm, abs=1e-4)
        assert header.offset_mm == pytest.approx(other.offset_mm, abs=1e-4)
        assert header.spacing_mm == pytest.approx(other.spacing_mm, abs=1e-5)


def test_mosaic_is_split_into_its_tiles(tmp_path):
    tiles = phantoms.volume(7, 8, 10)
    path = phantoms.write_mosaic(tmp_path / "a", tiles)
    headers = read_headers(path)
    assert len(headers) == 7
    assert (headers[0].height, headers[0].width) == (8, 10)
    assert [header.position_mm for header in headers] == [5.0 + 4 * k for k in range(7)]
    # 3 x 3 tiles of 8 rows at 2 mm: the corner of a tile lies 16 mm inside that of the mosaic.
    assert headers[0].offset_mm == (-100 + 16, -100 + 20)
    for k, item in enumerate(read_slices(path, range(7))):
        np.testing.assert_array_equal(item.pixels, tiles[k])


def test_mosaic_without_its_count_is_set_aside(tmp_path):
    path = phantoms.write_mosaic(tmp_path / "a", phantoms.volume(7, 8, 10), counted=False)
    assert whole_file_reason(path) == "unsupported"


def test_siemens_file_of_nibabel_is_a_mosaic_of_48(tmp_path):
    source = Path(nib.__file__).parent / "nicom/tests/data/siemens_dwi_0.dcm.gz"
    if not source.exists():
        pytest.skip("nibabel is installed without its test data")
    path = tmp_path / "dwi.dcm"
    path.write_bytes(gzip.decompress(source.read_bytes()))
    headers = read_headers(path)
    assert len(headers) == 48
    assert one(path, 20).shape == (headers[0].height, headers[0].width) == (128, 128)


@pytest.mark.parametrize(
    ("function", "low", "high", "shape"),
    [
        ("LINEAR", 40 - 200, 40 + 199, "linear"),
        ("LINEAR_EXACT", -160, 240, "linear"),
        ("SIGMOID", -160, 240, "sigmoid"),
    ],
)
def test_file_window(tmp_path, function, low, high, shape):
    ds = phantoms.dicom(GREY, WindowCenter=[40, 1], WindowWidth=[400, 2], VOILUTFunction=function)
    (item,) = read_slices(phantoms.save(ds, tmp_path / "a"), [0])
    assert (item.voi.low, item.voi.high, item.voi.shape) == (low, high, shape)


def test_voi_lut_comes_before_the_window(tmp_path):
    ds = phantoms.dicom(GREY, WindowCenter=40, WindowWidth=400)
    ds.VOILUTSequence = [phantoms._item(LUTDescriptor=[3, 100, 8], LUTData=[0, 51, 255])]
    ds.VOILUTSequence[0]["LUTDescriptor"].VR = "US"
    ds.VOILUTSequence[0]["LUTData"].VR = "US"
    (item,) = read_slices(phantoms.save(ds, tmp_path / "a"), [0])
    assert item.voi == Voi(100, 102, "table", (0.0, 0.2, 1.0))


def test_float_pixel_data(tmp_path):
    values = np.array([[0.5, -1e6], [3.25, 7e20]], np.float32)
    ds = phantoms.dicom(np.zeros((2, 2), np.uint32), Modality="MR")
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = values.tobytes()
    np.testing.assert_array_equal(one(phantoms.save(ds, tmp_path / "a")), values)


@pytest.mark.parametrize("modality", ["SR", "PR", "RTSTRUCT", "KO"])
def test_objects_without_pixels_are_set_aside(tmp_path, modality):
    ds = phantoms.dicom(GREY, Modality=modality)
    del ds.PixelData
    for syntax in (uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        with pytest.raises(UnreadableError) as caught:
            read_headers(phantoms.save(ds, tmp_path / "a", syntax))
        assert caught.value.reason == "not-an-image"


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE"])
def test_objects_that_are_no_picture_are_set_aside(tmp_path, modality):
    assert (
        whole_file_reason(phantoms.save(phantoms.dicom(GREY, Modality=modality), tmp_path / "a"))
        == "unsupported"
    )


# --- NIfTI ---------------------------------------------------------------------------------------


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
    for one, other in zip(plain, zipped, strict=True):
        if isinstance(one, Slice):
            np.testing.assert_array_equal(one.pixels, other.pixels)


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
    voxels = rng.integers(0, 9, (64, 64, 64, 40)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "long.nii.gz")
    frames = rng.integers(0, 4096, (900, 100, 100)).astype(np.uint16)
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
        assert sum(header.height * header.width * 2 for header in headers) > 2**24
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


# --- rasters and arrays --------------------------------------------------------------------------


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
    assert whole_file_reason(tmp_path / "evil.npy") in ("corrupt", "unsupported")


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


# --- bad input -----------------------------------------------------------------------------------


def test_bad_files_have_their_reasons(tmp_path):
    whole = phantoms.save(phantoms.dicom(GREY), tmp_path / "whole").read_bytes()
    png = phantoms.write_png(
        tmp_path / "w.png", phantoms.volume(1, 200, 200)[0].astype(np.uint8)
    ).read_bytes()
    volume = phantoms.write_nifti_of_series(tmp_path / "w.nii", phantoms.volume()).read_bytes()
    zipped = gzip.compress(np.random.default_rng(0).bytes(10) + volume)[:-40]
    cases = {
        "empty": (b"", "empty"),
        "text.dcm": (b"hello, I am a letter", "not-an-image"),
        "cut": (whole[:-100], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "cut.nii": (volume[:-10], "truncated"),
        "cut.nii.gz": (gzip.compress(volume)[:-40], "truncated"),
        "odd.gz": (zipped, "not-an-image"),
        "flipped.png": (png[:60] + b"\xff" * 40 + png[100:], "corrupt"),
    }
    for name, (data, expected) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert whole_file_reason(tmp_path / name) == expected, name
    assert whole_file_reason(tmp_path / "gone.dcm") == "vanished"
    assert whole_file_reason(tmp_path) == "not-an-image"


def test_suffixes_mean_nothing(tmp_path):
    path = phantoms.save(phantoms.dicom(GREY), tmp_path / "picture.png")
    np.testing.assert_array_equal(one(path), GREY)


def test_decompression_bombs_are_refused_before_anything_is_allocated(tmp_path):
    phantoms.png_bomb(tmp_path / "bomb.png")
    phantoms.save(phantoms.dicom(GREY, Rows=65535, Columns=65535), tmp_path / "bomb.dcm")
    phantoms.save(phantoms.dicom(GREY, NumberOfFrames=2_000_000_000), tmp_path / "frames.dcm")
    raw = phantoms.nifti_header((30000, 30000, 30000)) + b"\0" * 1000
    (tmp_path / "bomb.nii").write_bytes(raw)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(raw))
    # A small volume in front of many zeros: only the volume is decompressed.
    with gzip.open(tmp_path / "tail.nii.gz", "wb", compresslevel=1) as file:
        file.write(phantoms.nifti_header((8, 8, 8)) + b"\0" * 512)
        for _ in range(32):
            file.write(bytes(2**22))
    tracemalloc.start()
    for name in ("bomb.png", "bomb.dcm", "frames.dcm", "bomb.nii", "bomb.nii.gz"):
        assert whole_file_reason(tmp_path / name) == "too-large", name
    assert one(tmp_path / "tail.nii.gz").shape == (8, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_no_permission(tmp_path):
    path = phantoms.write_png(tmp_path / "a.png", GREY)
    path.chmod(0)
    with as_nobody(tmp_path):
        assert whole_file_reason(path) == "no-permission"


@pytest.mark.parametrize(
    ("shape", "stored", "coded"),
    [
        ((2**14, 2**14, 1), 2**30, False),  # one slice beyond the limit
        ((512, 512, 2**15), 2**34, False),  # the whole file beyond it
        ((1, 1, 10**6), 2**30, False),  # frames beyond it
        ((2**13, 2**13, 8), 10_000, True),  # much more than its bytes can hold
        ((0, 5, 1), 100, False),
    ],
)
def test_sizes_that_are_refused(shape, stored, coded):
    with pytest.raises(UnreadableError, match="declares"):
        check_size(*shape, 1, stored, coded=coded)
    assert check_size(512, 512, 300, 2, 2**28, coded=False) == 512 * 512 * 600


@contextmanager
def as_nobody(folder: Path):
    """Let root, who may read everything, be nobody for a while."""
    if os.geteuid():
        yield
        return
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_names_that_are_not_utf8_survive_the_table(tmp_path):
    for raw in (
        b"caf\xe9.png",
        b"back\\slash.png",
        b"\\xff.png",
        "naïve.png".encode(),
        b"\xff\\\xfe",
    ):
        name = os.fsdecode(raw)
        stored = escape_path(name)
        stored.encode("utf-8")
        assert unescape_path(stored) == name
        phantoms.write_png(tmp_path / "x.png", GREY).rename(tmp_path / name)
        (read,) = read_files(tmp_path, [Request(stored, (0,))], workers=0)
        assert isinstance(read.item, Slice)


def test_details_hold_nothing_of_the_patient(tmp_path):
    ds = phantoms.dicom(GREY)
    whole = phantoms.save(ds, tmp_path / "whole").read_bytes()
    at = whole.index(b"SECRETID")
    for name, data in (
        ("cut", whole[: at + 4]),
        ("vr", whole[: at - 4] + b"??" + whole[at - 2 :]),
        ("rows", whole.replace(b"SECRETID-4711", b"SECRETID-4711")[:-50]),
    ):
        (tmp_path / name).write_bytes(data)
        (read,) = read_frames(tmp_path / name, [0], "axial")
        assert isinstance(read.item, Slice) or "SECRET" not in str(read.item)


# --- reading processes ---------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for k in range(12):
        phantoms.write_png(tmp_path / f"{k:02d}.png", np.full((16, 16), k, np.uint8))
    (tmp_path / "03.png").write_bytes(b"nothing of worth")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_requests_come_back_in_order_and_nothing_shifts(mixed, workers):
    requests = [Request(f"{k:02d}.png", (0,)) for k in range(12)] + [Request("gone.png", (0, 5))]
    reads = list(read_files(mixed, requests, workers=workers))
    for k, read in enumerate(reads[:12]):
        if k == 3:
            assert read.item == Failure(0, "not-an-image", "no known image format")
        else:
            assert read.item.pixels[0, 0] == k
            assert len(read.pixel_digest) == 64
        assert len(read.file_digest) == 64
    assert [(read.item.frame, read.item.reason) for read in reads[12:]] == [
        (0, "vanished"),
        (5, "vanished"),
    ]
    assert reads[12].file_digest is None


def _reading_children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return {
        pid for pid in found if b"pipeline.io.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def test_a_file_that_crashes_its_worker_is_one_failed_file(mixed):
    requests = (Request(f"{k:02d}.png", (0,)) for k in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11))
    with closing(read_files(mixed, requests, workers=1)) as reads:
        first = next(reads)
        # Whatever the worker is at: a crash, as a decoder's would be.
        for pid in _reading_children():
            os.kill(pid, signal.SIGSEGV)
        rest = list(reads)
    reads = [first, *rest]
    assert len(reads) == 11
    failed = [read.item for read in reads if isinstance(read.item, Failure)]
    assert len(failed) <= 1
    assert all(item.reason == "corrupt" for item in failed)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_worker_killed_within_a_file_is_replaced_once(tmp_path, monkeypatch, kills):
    """What had come stands, another goes on with the rest, and nothing shifts."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**21)
    voxels = np.random.default_rng(0).integers(0, 3000, (120, 512, 512), np.int16)
    np.save(tmp_path / "long.npy", voxels)
    phantoms.write_png(tmp_path / "a.png", GREY)
    requests = [Request("long.npy", tuple(range(120))), Request("a.png", (0,))]
    items, killed = [], set()
    with closing(read_files(tmp_path, requests, workers=1)) as reads:
        for k, read in enumerate(reads):
            items.append(read.item)
            if k in (1, 40)[:kills]:
                killed |= (alive := _reading_children())
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
    assert len(killed) == kills
    assert [item.frame for item in items] == [*range(120), 0]
    bad = [item for item in items if isinstance(item, Failure)]
    assert len(bad) == 0 if kills == 1 else 40 < len(bad) < 80
    assert {item.reason for item in bad} <= {"too-large"}
    assert isinstance(items[120], Slice)
    for item in items[: 120 - len(bad)]:
        np.testing.assert_array_equal(item.pixels, voxels[item.frame])


def test_long_files_do_not_fill_the_memory(tmp_path, monkeypatch):
    """Three workers with 192 MB each to send, and a caller who takes his time."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**24)
    long = np.lib.format.open_memmap(tmp_path / "long.npy", "w+", np.float32, (48, 512, 512))
    long[:] = np.random.default_rng(0).random((512, 512), np.float32)
    request = Request("long.npy", tuple(range(48)))
    tracemalloc.start()
    try:
        with closing(read_files(tmp_path, [request] * 4, workers=3)) as reads:
            for k, read in enumerate(reads):
                assert isinstance(read.item, Slice)
                if k == 10:
                    time.sleep(1.5)  # time enough for the workers to send all of it
                    assert 2**24 < tracemalloc.get_traced_memory()[0] < 2**24 + 5 * 2**20
        assert k == 4 * 48 - 1
        assert tracemalloc.get_traced_memory()[1] < 2**24 + 6 * 2**20
    finally:
        tracemalloc.stop()


def test_the_end_of_a_file_wakes_readers_that_wait_for_room(tmp_path, monkeypatch):
    """A slow file behind a short one, and a third that has filled all room in the meantime."""
    monkeypatch.setattr("pipeline.io.pool._AHEAD_BYTES", 2**20)
    phantoms.write_png(tmp_path / "short.png", GREY)
    slow = nib.Nifti1Image(np.zeros((256, 256, 400), np.float32), np.eye(4))
    nib.save(slow, tmp_path / "slow.nii.gz")
    np.save(tmp_path / "long.npy", np.random.default_rng(0).random((8, 512, 512), np.float32))
    pool = _Pool(tmp_path, "axial", 2, 60.0)
    try:
        for name in ("short.png", "slow.nii.gz", "long.npy"):
            pool.give(Job(name, tuple(range(8)) if name == "long.npy" else (0,)))
        came = [pool.done.get(timeout=30)]
        while pool.held_bytes < 2**20:
            time.sleep(0.01)
        while len(came) < (1 + 1 + 8) + 3:  # the slices, and the end of each file
            pool.taken(came[-1])
            time.sleep(0.1)  # until the thread waits again, with one more in the queue
            came.append(pool.done.get(timeout=10))
        assert [job.path for job in came if isinstance(job, Job)] == [
            "short.png",
            "slow.nii.gz",
            "long.npy",
        ]
    finally:
        pool.close()


def test_a_slice_that_fails_behind_its_decoder_is_a_failed_slice(tmp_path, monkeypatch):
    seen = []

    def fails_once(pixels):
        seen.append(pixels)
        if len(seen) == 2:
            raise MemoryError
        return pixels

    monkeypatch.setattr("pipeline.io.digests.narrow", fails_once)
    np.save(tmp_path / "a.npy", np.ones((4, 5, 6), np.float32))
    items = [read.item for read in read_frames(tmp_path / "a.npy", (3, 1, 0, 2), "axial")]
    assert [item.frame for item in items] == [3, 1, 0, 2]
    assert [type(item) for item in items] == [Slice, Failure, Failure, Failure]


def test_a_file_that_never_ends_is_stopped_by_its_time_limit(tmp_path):
    # Many pages under a limit that none could keep: to the reader, no different from no end.
    pages = [Image.fromarray(np.zeros((600, 600), np.uint8)) for _ in range(150)]
    pages[0].save(tmp_path / "slow.tif", save_all=True, append_images=pages[1:])
    phantoms.write_png(tmp_path / "a.png", GREY)
    requests = [Request("slow.tif", tuple(range(150))), Request("a.png", (0,))]
    started = time.monotonic()
    *slow, fast = read_files(tmp_path, requests, workers=1, time_limit_s=0.05)
    assert time.monotonic() - started < 20
    assert {read.item.reason for read in slow} == {"time-limit"}
    assert [read.item.frame for read in slow] == list(range(150))
    assert {read.file_digest for read in slow} == {None}
    assert isinstance(fast.item, Slice)


def test_a_slow_caller_is_not_a_slow_file(mixed):
    # More files than are read ahead, so that the worker must wait for the caller.
    requests = [Request("00.png", (0,))] * 200
    items = []
    for k, read in enumerate(read_files(mixed, requests, workers=1, time_limit_s=0.3)):
        time.sleep(0.8 if k in (0, 100) else 0)
        items.append(read.item)
    assert len(items) == 200
    assert all(isinstance(item, Slice) for item in items)


def test_a_worker_that_died_idle_costs_no_file(mixed):
    with closing(read_files(mixed, [Request("00.png", (0,))] * 200, workers=1)) as reads:
        first = next(reads)
        time.sleep(0.5)  # the files ahead are read, the worker waits
        for pid in _reading_children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)  # until they are gone
        items = [read.item for read in (first, *reads)]
    assert len(items) == 200
    assert all(isinstance(item, Slice) for item in items)


def test_closing_early_leaves_no_process_and_no_thread(mixed):
    requests = (Request(f"{k % 12:02d}.png", (0,)) for k in range(10_000))
    reads = read_files(mixed, requests, workers=2)
    next(reads)
    assert _reading_children()
    reads.close()
    assert not _reading_children()
    assert not [t for t in threading.enumerate() if t.name == "radprobe-read"]


def test_requests_are_taken_by_and_by(mixed):
    taken = []

    def requests():
        for k in range(1000):
            taken.append(k)
            yield Request("00.png", (0,))

    reads = read_files(mixed, requests(), workers=1)
    next(reads)
    time.sleep(0.5)
    assert len(taken) < 100
    reads.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent_and_never_import_torch(mixed, ending):
    script = """
import json, sys, time
from pathlib import Path
from pipeline.io.decode import Request, read_files

requests = (Request("00.png", (0,)) for _ in range(10**6))
reads = read_files(Path(sys.argv[1]), requests, workers=2)
next(reads)
tasks = Path("/proc/self/task").iterdir()
pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
print(json.dumps([pids, "libtorch" in maps, "torch" in sys.modules]), flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(mixed)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as parent:
        pids, torch_there, torch_here = json.loads(parent.stdout.readline())
        parent.send_signal(ending)
    assert pids
    assert not torch_there
    assert not torch_here
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _zombie(pid: str) -> bool:
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_worker_that_cannot_start_is_an_error_not_a_bad_file(mixed, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="reading process"):
        list(read_files(mixed, [Request("00.png", (0,))], workers=1))


def test_a_worker_starts_without_what_it_may_never_need():
    code = "import sys, pipeline.io.worker; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pyarrow", "torch", "zarr", "pydicom", "nibabel", "PIL", "h5py", "imagecodecs"}
    assert not heavy & set(done.stdout.split())


def test_workers_and_this_process_read_the_same(tmp_path):
    path = phantoms.write_enhanced(tmp_path / "a", phantoms.volume(4), [1.0, 2.0, 0.5, 3.0])
    request = Request(path.name, (3, 0))
    here, there = (list(read_files(tmp_path, [request], workers=w)) for w in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert (a.file_digest, a.pixel_digest) == (b.file_digest, b.pixel_digest)
        np.testing.assert_array_equal(a.item.pixels, b.item.pixels)
        assert (a.item.frame, a.item.voi) == (b.item.frame, b.item.voi)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([-1, 255], np.int16),
        ([-32768, 32767], np.int16),
        ([0, 65535], np.uint16),
        ([-1, 32768], np.float32),
        ([0.5, 1], np.float32),
        ([np.nan, 1], np.float32),
        ([np.inf, 1], np.float32),
        ([3e38, -3e38], np.float32),
    ],
)
def test_pixels_travel_in_the_narrowest_type_that_holds_them(values, dtype):
    pixels = np.array([values], np.float32)
    assert narrow(pixels).dtype == dtype
    np.testing.assert_array_equal(narrow(pixels).astype(np.float32), pixels)
