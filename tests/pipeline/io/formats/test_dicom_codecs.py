"""DICOM whose compressed pixels are not quite as codecs have them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpeg2k_encode, jpegls_encode
from pydicom import uid
from pydicom.encaps import encapsulate

from pipeline.io.decode import read_slices
from tests import phantoms
from tests.pipeline.io.samples import one, reason_of

RAMP = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint16) * 20 + 24


def write(
    path: Path,
    streams: list[bytes],
    syntax: str,
    pixels: np.ndarray,
    overlay: int | None = None,
    **tags: Any,
) -> Path:
    """Write streams as the frames of a DICOM. overlay: the bit where it says it has one."""
    ds = phantoms.dicom(pixels, **tags)
    if overlay is not None:
        ds.add_new((0x6000, 0x0102), "US", overlay)  # OverlayBitPosition
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("padding", [b"\0", b"\0\0\0", b"\xff"], ids=["one", "three", "fill"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_a_jpeg_ls_may_be_padded_before_its_end(tmp_path, padding, dtype):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 250, (2, 32, 48)).astype(dtype)
    if dtype == np.int16:
        frames -= 100
    # As negative numbers are written, and as nothing reads them but by the header.
    unsigned = frames.view(np.uint16) & 0xFFF if dtype == np.int16 else frames
    streams = [bytes(jpegls_encode(np.ascontiguousarray(frame))) for frame in unsigned]
    padded = [stream[:-2] + padding + stream[-2:] for stream in streams]
    bits = 8 if dtype == np.uint8 else 12
    tags = {"BitsStored": bits, "HighBit": bits - 1}
    path = write(tmp_path / "a", padded, uid.JPEGLSLossless, frames, **tags)
    for frame in (1, 0):
        np.testing.assert_array_equal(one(path, frame), frames[frame].astype(np.float32))


@pytest.mark.parametrize("ramp", range(8))
def test_padding_of_a_jpeg_ls_is_told_from_its_last_pixels(tmp_path, ramp):
    pixels = RAMP[: 20 + ramp, :40] * ramp
    stream = bytes(jpegls_encode(pixels))
    for padding in (b"\0", b"\0\0"):
        padded = stream[:-2] + padding + stream[-2:]
        path = write(tmp_path / "a", [padded], uid.JPEGLSLossless, pixels)
        np.testing.assert_array_equal(one(path), pixels.astype(np.float32))


def test_a_damaged_jpeg_ls_or_one_of_another_size_is_refused(tmp_path):
    stream = bytes(jpegls_encode(RAMP))
    path = write(tmp_path / "a", [stream[:200] + b"\0" + stream[-2:]], uid.JPEGLSLossless, RAMP)
    assert reason_of(path) == "corrupt"
    path = write(tmp_path / "b", [stream[:-2] + b"\0\xff\xd9"], uid.JPEGLSLossless, RAMP[:9])
    assert reason_of(path) == "corrupt"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("precision", [12, 16])
def test_an_overlay_above_the_bits_of_a_jpeg_2000_is_no_part_of_its_values(
    tmp_path, signed, precision
):
    pixels = (RAMP % 2048).astype(np.int16) - (1000 if signed else 0)
    words = pixels.view(np.uint16) & 0xFFF
    if precision == 16:
        words = words.copy()
        words[4:9, 5:20] |= 0x1000
        words[6:12, 9:30] |= 0x8000
    stream = jpeg2k_encode(words, codecformat="j2k", reversible=True, bitspersample=precision)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    path = write(tmp_path / "a", [stream], uid.JPEG2000Lossless, words, **tags)
    np.testing.assert_array_equal(one(path), pixels.astype(np.float32))


def test_a_lossy_jpeg_2000_keeps_what_goes_a_little_beyond_its_bits(tmp_path):
    pixels = np.where(np.indices((64, 64)).sum(0) % 7 < 3, 4095, 0).astype(np.uint16)
    stream = jpeg2k_encode(pixels, level=45, codecformat="j2k", bitspersample=16)
    tags = {"BitsStored": 12, "HighBit": 11}
    path = write(tmp_path / "a", [stream], uid.JPEG2000, pixels, **tags)
    (item,) = read_slices(path, [0])
    assert item.pixels.max() > 4095  # else the test says nothing
    assert np.abs(item.pixels - pixels).max() < 2000  # none fell to the other end


def test_an_overlay_declared_in_a_lossy_jpeg_2000_is_taken_off(tmp_path):
    words = RAMP % 2048
    words[4:9, 5:20] |= 0x1000
    stream = jpeg2k_encode(words, codecformat="j2k", reversible=True, bitspersample=16)
    tags = {"BitsStored": 12, "HighBit": 11}
    for overlay, highest in ((None, 6143), (12, 2047), (0, 6143)):
        path = write(tmp_path / "a", [stream], uid.JPEG2000, words, overlay, **tags)
        assert one(path).max() <= highest
        assert (one(path).max() > 4095) == (overlay != 12)


@pytest.mark.parametrize("offsets", [[0, 0, 0], [4, 8, 12], [10**6, 0, 7], [0]])
def test_a_table_of_offsets_may_be_wrong_where_each_frame_is_in_one_piece(tmp_path, offsets):
    frames = np.stack([RAMP, RAMP + 7, RAMP[::-1]])
    streams = [jpeg2k_encode(frame, codecformat="j2k", reversible=True) for frame in frames]
    path = write(tmp_path / "a", streams, uid.JPEG2000Lossless, frames)
    whole = path.read_bytes()
    right = encapsulate(streams)
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    items = right[8 + int.from_bytes(right[4:8], "little") :]
    wrong = right[:4] + struct.pack("<I", len(table)) + table + items
    path.write_bytes(whole.replace(right, wrong))
    for frame in (2, 0, 1):
        np.testing.assert_array_equal(one(path, frame), frames[frame].astype(np.float32))
