"""DICOM files of every transfer syntax, orientation and making."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from pipeline.io.decode import read_headers, read_slices
from pipeline.io.formats import inflate
from pipeline.io.formats.dicom_geometry import orientation
from pipeline.io.formats.dicom_rules import DECODERS
from pipeline.io.formats.reorientation import Reorientation
from pipeline.types import Failure, Voi
from stores.errors import UnreadableError
from tests import phantoms
from tests.pipeline.io.samples import GREY, one, reason_of


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
    return values if axes is None else Reorientation.of(axes).apply(values)


@pytest.mark.filterwarnings("ignore")
def test_all_files_of_pydicom_are_set_aside_with_reason_or_equal_its_pixel_array():
    read = 0
    for path in sorted(PYDICOM.rglob("*")):
        if not path.is_file() or path.suffix in (".py", ".pyc", ".json"):
            continue
        why = reason_of(path)
        if why is not None:
            assert why == SET_ASIDE.get(path.name, "not-an-image"), path
            continue
        frames = [header.frame for header in read_headers(path)]
        items = list(read_slices(path, frames))
        if path.name in JPEG_12:
            continue
        with inflate.open_inflated(path) as file:
            ds = pydicom.dcmread(file, force=True)
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


@pytest.mark.parametrize(("high", "dtype"), [(15, np.uint16), (15, np.int16), (13, np.uint16)])
@pytest.mark.parametrize("is_said_wrongly", [False, True])
def test_values_may_begin_above_the_lowest_bit(tmp_path, high, dtype, is_said_wrongly):
    # A word of 16 bits, 12 of them stored, the last of them `high` (PS3.5 8.1.1 until 2014).
    lowest, highest = (-2048, 2047) if dtype == np.int16 else (0, 4095)
    values = np.array([[lowest, 1], [77, highest]], dtype)
    words = values if is_said_wrongly else values << (high - 11)
    ds = phantoms.dicom(words, BitsStored=12, HighBit=high, RescaleSlope=1, RescaleIntercept=-9)
    np.testing.assert_array_equal(one(phantoms.save(ds, tmp_path / "a")), values - np.float32(9))


@pytest.mark.parametrize("photometric", ["ARGB", "CMYK", "HSV"])
def test_colours_that_dicom_has_given_up_are_unsupported(tmp_path, photometric):
    ds = phantoms.dicom(np.zeros((4, 4, 4), np.uint8), PhotometricInterpretation=photometric)
    assert reason_of(phantoms.save(ds, tmp_path / "a")) == "unsupported"


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
    assert reason_of(tmp_path / "whole.dcm") is None
    for cut in (5, 8, 9, 30):
        (tmp_path / "cut.dcm").write_bytes(data[:-cut])
        assert reason_of(tmp_path / "cut.dcm") == "truncated", cut


def test_pixels_that_are_not_as_the_header_says_are_refused(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    ds = phantoms.dicom(colour, PhotometricInterpretation="YBR_FULL_422")
    assert reason_of(phantoms.save(ds, tmp_path / "three.dcm")) == "corrupt"
    plain = phantoms.save(phantoms.dicom(GREY), tmp_path / "plain.dcm")
    coded = phantoms.transcode(plain, tmp_path / "coded.dcm", uid.RLELossless)
    raw = coded.read_bytes().replace(uid.RLELossless.encode(), b"1.2.840.10008.1.2.1")
    (tmp_path / "pieces.dcm").write_bytes(raw)
    assert reason_of(tmp_path / "pieces.dcm") == "corrupt"


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
    assert reason_of(path) == "unsupported"


def test_siemens_file_of_nibabel_is_a_mosaic_of_48():
    source = Path(nib.__file__).parent / "nicom/tests/data/siemens_dwi_0.dcm.gz"
    if not source.exists():
        pytest.skip("nibabel is installed without its test data")
    headers = read_headers(source)
    assert len(headers) == 48
    assert one(source, 20).shape == (headers[0].height, headers[0].width) == (128, 128)


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


@pytest.mark.parametrize("modality", ["SM", "OT"])
def test_tiles_of_a_slide_are_told_by_their_class(tmp_path, modality):
    tiles = np.zeros((4, 16, 16), np.uint8)
    slide = {"SOPClassUID": uid.VLWholeSlideMicroscopyImageStorage, "Modality": modality}
    assert reason_of(phantoms.save(phantoms.dicom(tiles, **slide), tmp_path / "a")) == "unsupported"
    single = {"SOPClassUID": uid.VLMicroscopicImageStorage, "Modality": modality}
    assert reason_of(phantoms.save(phantoms.dicom(GREY, **single), tmp_path / "b")) is None


def with_syntax(path: Path, syntax: str) -> Path:
    """Write a DICOM whose file meta names any transfer syntax, as no library would."""
    data = phantoms.save(phantoms.dicom(GREY), path).read_bytes()
    plain = uid.ExplicitVRLittleEndian.encode() + b"\0"
    named = syntax.encode() + b"\0" * (len(syntax) % 2)
    place = data.index(plain)
    longer = len(named) - len(plain)
    group = data.index(b"\2\0\0\0UL\4\0") + 8
    length = int.from_bytes(data[group : group + 4], "little") + longer
    path.write_bytes(
        data[:group]
        + length.to_bytes(4, "little")
        + data[group + 4 : place - 2]
        + len(named).to_bytes(2, "little")
        + named
        + data[place + len(plain) :]
    )
    return path


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.10008.1.2.4.110", "unsupported"),  # JPEG XL
        ("1.2.840.10008.1.2.4.112", "unsupported"),
        ("1.2.840.113619.5.2", "unsupported"),  # GE's own
        ("1.3.46.670589.33.1.4.1", "unsupported"),  # Philips' own
        ("1.2.840.10008.1.2.9.99", "unsupported"),  # none yet
        ("1.2.840.10008.5.1.4.1.1.2", "corrupt"),  # CT Image Storage
        ("SECRETNAME", "corrupt"),
    ],
)
def test_a_syntax_that_nothing_is_known_of_is_unsupported_and_named(tmp_path, syntax, reason):
    with pytest.raises(UnreadableError) as refused:
        read_headers(with_syntax(tmp_path / "a", syntax))
    assert refused.value.reason == reason
    assert (syntax in refused.value.detail) == (reason == "unsupported")
    assert "SECRET" not in str(refused.value)


def test_gzipped_dicom_is_read_as_it_is(tmp_path):
    voxels = phantoms.volume(4)
    plain = phantoms.write_enhanced(tmp_path / "e.dcm", voxels, [1.0, 2.0, 0.5, 3.0])
    coded = phantoms.save(phantoms.dicom(GREY), tmp_path / "j.dcm", uid.RLELossless)
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(plain.read_bytes()[132:])
    for path in (plain, coded, bare):
        zipped = path.with_suffix(".dcm.gz")
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        assert read_headers(zipped) == read_headers(path)
        frames = [header.frame for header in read_headers(path)]
        pairs = zip(read_slices(zipped, frames), read_slices(path, frames), strict=True)
        for item, expected in pairs:
            np.testing.assert_array_equal(item.pixels, expected.pixels)


def test_gzipped_dicom_is_not_trusted(tmp_path, monkeypatch):
    whole = gzip.compress(phantoms.save(phantoms.dicom(GREY), tmp_path / "a").read_bytes())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for name, data, expected in (
        ("cut", whole[:-30], {"truncated"}),
        ("flipped", bytes(flipped), {"corrupt"}),
        # The sum at its end, and the size that it tells.
        ("sum", whole[:-8] + b"\1\2\3\4" + whole[-4:], {"corrupt"}),
        ("size", whole[:-4] + b"\xff\xff\xff\xff", {"corrupt"}),
    ):
        (tmp_path / name).write_bytes(data)
        assert reason_of(tmp_path / name) in expected, name
    monkeypatch.setattr(inflate, "_FREE_BYTES", 2**20)
    monkeypatch.setattr(inflate, "_IN_MEMORY", 2**18)
    large = phantoms.dicom(np.zeros((2000, 2000), np.uint8))  # 4 MB in 4 kB
    bomb = gzip.compress(phantoms.save(large, tmp_path / "b").read_bytes())
    (tmp_path / "bomb").write_bytes(bomb)
    assert reason_of(tmp_path / "bomb") == "too-large"
    noise = np.random.default_rng(0).integers(0, 255, (900, 900), np.uint8)
    (tmp_path / "big").write_bytes(
        gzip.compress(phantoms.save(phantoms.dicom(noise), tmp_path / "c").read_bytes())
    )
    np.testing.assert_array_equal(one(tmp_path / "big"), noise)  # by way of a file without a name


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE"])
def test_objects_that_are_no_picture_are_set_aside(tmp_path, modality):
    assert (
        reason_of(phantoms.save(phantoms.dicom(GREY, Modality=modality), tmp_path / "a"))
        == "unsupported"
    )
