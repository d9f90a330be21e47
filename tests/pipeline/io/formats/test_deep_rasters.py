"""Pictures of 16 bits with colours or opacity, and arrays that are pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from pipeline.annotations.mask_files import planes as mask_planes
from pipeline.io.decode import read_headers, read_slices
from tests import phantoms
from tests.pipeline.io.samples import GREY, one, reason_of

DEEP = GREY * 100 + 7  # of more than 8 bits
COLOURS = np.stack([DEEP, DEEP // 2 + 1, 65535 - DEEP], axis=-1)
LUMA = COLOURS.astype(np.float64) @ [0.299, 0.587, 0.114]
SEEN = np.ones(GREY.shape, bool)
SEEN[2:5, 3:9] = False


def png(path: Path, samples: np.ndarray, kind: int, depth: int = 16, trns: bytes = b"") -> Path:
    """Write samples (H, W) or (H, W, channels) as PNG.

    kind: 0 grey, 2 RGB, 4 grey with opacity, 6 RGB with opacity.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    height, width = samples.shape[:2]
    if depth == 16:
        rows = samples.reshape(height, -1).astype(">u2").view(np.uint8)
    elif depth < 8:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        rows = samples.reshape(height, -1).astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + (chunk(b"tRNS", trns) if trns else b"")
    body += chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def assert_read(path: Path, expected: np.ndarray, seen: np.ndarray = SEEN | True) -> None:
    (header,) = read_headers(path)
    pixels = one(path)
    assert pixels.shape == (header.height, header.width)
    np.testing.assert_array_equal(np.isfinite(pixels), seen)
    np.testing.assert_allclose(pixels[seen], expected[seen], rtol=1e-6)


def test_a_png_keeps_the_16_bits_of_its_colours_and_its_opacity(tmp_path):
    opacity = np.where(SEEN, 65535, 0).astype(np.uint16)
    faint = np.where(SEEN, 1, 0).astype(np.uint16)  # seen, if hardly
    path = tmp_path / "a.png"
    assert_read(png(path, COLOURS, 2), LUMA)
    assert_read(png(path, np.dstack([COLOURS, opacity]), 6), LUMA, SEEN)
    assert_read(png(path, np.dstack([DEEP, opacity]), 4), DEEP, SEEN)
    assert_read(png(path, np.dstack([DEEP, faint]), 4), DEEP, SEEN)
    assert_read(png(path, np.dstack([DEEP, opacity * 0]), 4), DEEP)  # seen nowhere: no opacity


def test_the_transparent_level_of_a_png_is_padding_and_no_other_level_changes(tmp_path):
    grey = np.where(SEEN, DEEP, 999).astype(np.uint16)
    path = tmp_path / "a.png"
    assert_read(png(path, grey, 0, trns=struct.pack(">H", 999)), grey, grey != 999)
    assert_read(png(path, grey, 0, trns=struct.pack(">H", 5)), grey)
    colours = COLOURS.copy()
    colours[~SEEN] = (1, 2, 3)
    trns = struct.pack(">3H", 1, 2, 3)
    assert_read(png(path, colours, 2, trns=trns), LUMA, SEEN)
    eight = np.where(SEEN, DEEP % 256, 9)
    assert_read(png(path, eight, 0, 8, struct.pack(">H", 9)), eight, eight != 9)
    for depth in (1, 2, 4):
        few = GREY % 2**depth
        expected = few * (255 // (2**depth - 1))
        seen = few != 1
        assert_read(png(path, few, 0, depth, struct.pack(">H", 1)), expected, seen)


def test_of_a_transparent_level_only_as_many_bits_count_as_a_pixel_has(tmp_path):
    grey = GREY % 256
    path = png(tmp_path / "a.png", grey, 0, 8, struct.pack(">H", 256 + 7))
    assert_read(path, grey.astype(np.float64), grey != 7)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
def test_a_tiff_keeps_the_16_bits_of_its_colours(tmp_path, byte_order, planes):
    path = tmp_path / "a.tif"
    pages = [COLOURS.astype(np.uint16), (COLOURS // 3).astype(np.uint16)]
    path.write_bytes(tiff(pages, byte_order, planes))
    assert len(read_headers(path)) == 2
    np.testing.assert_allclose(one(path), LUMA, rtol=1e-6)
    third = (COLOURS // 3).astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(one(path, 1), third, rtol=1e-6)


@pytest.mark.parametrize(("extra", "is_opacity"), [(2, True), (1, True), (0, False)])
def test_the_opacity_of_a_tiff_is_padding(tmp_path, extra, is_opacity):
    opacity = np.where(SEEN, 65535, 0).astype(np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([np.dstack([COLOURS, opacity]).astype(np.uint16)], "<", 1, extra))
    assert_read(path, LUMA, SEEN if is_opacity else SEEN | True)


def tiff(
    pages: list[np.ndarray],
    byte_order: str = "<",
    planes: int = 1,
    extra: int | None = None,
    *,
    photometric: int = 2,
    orientation: int = 1,
    compressed: bool = False,
    palette: np.ndarray | None = None,
) -> bytes:
    """Return pages (H, W) or (H, W, channels) of any type as a TIFF, a strip a page or a plane."""
    head = struct.pack(byte_order + "2sHI", b"II" if byte_order == "<" else b"MM", 42, 8)
    out = bytearray(head)
    for number, page in enumerate(pages):
        height, width = page.shape[:2]
        values = page.reshape(height, width, -1).astype(page.dtype.newbyteorder(byte_order))
        channels = values.shape[2]
        strips = [values.tobytes()]
        if planes == 2:
            strips = [values[..., k].tobytes() for k in range(channels)]
        if compressed:
            strips = [zlib.compress(strip) for strip in strips]
        entries = [
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [8 * page.itemsize] * channels),
            (259, 3, [8 if compressed else 1]),
            (262, 3, [photometric]),
            (273, 4, [0] * len(strips)),
            (274, 3, [orientation]),
            (277, 3, [channels]),
            (278, 4, [height]),
            (279, 4, [len(strip) for strip in strips]),
            (284, 3, [planes]),
        ]
        if palette is not None:
            entries.append((320, 3, palette.ravel().tolist()))
        if extra is not None:
            entries.append((338, 3, [extra]))
        entries.append((339, 3, ["uif".index(page.dtype.kind) + 1] * channels))
        start = len(out) + 2 + 12 * len(entries) + 4
        places = [start + sum(map(len, strips[:k])) for k in range(len(strips))]
        entries[5] = (273, 4, places)
        behind = bytearray(b"".join(strips))
        table = bytearray(struct.pack(byte_order + "H", len(entries)))
        for tag, kind, numbers in entries:
            data = struct.pack(byte_order + f"{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
            if len(data) > 4:
                data_at = start + len(behind)
                behind += data
                data = struct.pack(byte_order + "I", data_at)
            table += struct.pack(byte_order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
        following = 0 if number == len(pages) - 1 else start + len(behind)
        out += table + struct.pack(byte_order + "I", following) + behind
    return bytes(out)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"], ids=lambda kind: kind
)
def test_a_tiff_keeps_its_numbers_whatever_their_type(tmp_path, kind, compressed, byte_order):
    values = (GREY.astype(np.float64) - 20) * 3
    if kind[0] == "u":
        values = GREY.astype(np.int64) * {"u1": 0.5, "u2": 100, "u4": 2**23}[kind]
    if kind == "i1":
        values = GREY % 256 - 128.0
    page = values.astype(kind)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([page, page[::-1]], byte_order, photometric=1, compressed=compressed))
    np.testing.assert_allclose(one(path), page.astype(np.float64), rtol=1e-6)
    np.testing.assert_allclose(one(path, 1), page[::-1].astype(np.float64), rtol=1e-6)
    colours = np.dstack([page, page, page])
    path.write_bytes(tiff([colours], byte_order, compressed=compressed))
    np.testing.assert_allclose(one(path), page.astype(np.float64), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("kind", "turned"), [("u2", 65535), ("i2", -1), ("u4", 2**32 - 1)])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_tiff_whose_white_is_zero_is_turned_whatever_its_type(tmp_path, kind, turned, byte_order):
    page = GREY.astype(kind)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([page], byte_order, photometric=0))
    np.testing.assert_allclose(one(path), turned - page.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_grey_tiff_may_have_opacity(tmp_path, kind, planes, extra):
    full = np.iinfo(kind).max
    grey = (GREY % 200 + 1).astype(kind)
    page = np.dstack([grey, np.where(SEEN, full, 0).astype(kind)])
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([page], "<", planes, extra, photometric=1))
    assert_read(path, grey.astype(np.float64), SEEN if extra else SEEN | True)


def test_a_grey_tiff_of_many_channels_is_unsupported(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([np.dstack([GREY] * 5).astype(np.uint8)], "<", 1, 0, photometric=1))
    assert reason_of(path) == "unsupported"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_mask_keeps_its_16_bits_in_any_picture(tmp_path, channels):
    opaque = np.full((*GREY.shape, 1), 65535)
    colours = np.dstack([DEEP] * (3 if channels > 2 else 1))
    samples = np.dstack([colours, opaque]) if channels % 2 == 0 else colours
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    photometric = 2 if channels > 2 else 1
    (tmp_path / "a.tif").write_bytes(tiff([samples.astype(np.uint16)], photometric=photometric))
    for path in (png(tmp_path / "a.png", samples, kind), tmp_path / "a.tif"):
        (values,) = mask_planes(path, "axial")
        np.testing.assert_array_equal(values, DEEP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compressed", [False, True])
def test_the_pages_of_a_tiff_are_turned_as_a_png_is(tmp_path, orientation, compressed):
    exif = Image.Exif()
    exif[0x0112] = orientation
    page = (GREY % 256).astype(np.uint8)
    Image.fromarray(page).save(tmp_path / "a.png", exif=exif)
    expected = one(tmp_path / "a.png")
    ramp = np.arange(256) * 257
    path = tmp_path / "a.tif"
    for values, more in (
        (page, {"photometric": 1}),
        (page.astype(np.uint16), {"photometric": 1}),
        (page.astype(np.float32), {"photometric": 1}),
        (np.dstack([page] * 3), {}),
        (np.dstack([page] * 3).astype(np.uint16), {}),
        (page, {"photometric": 3, "palette": np.stack([ramp] * 3)}),
    ):
        pages = [values, values]
        path.write_bytes(tiff(pages, orientation=orientation, compressed=compressed, **more))
        for header in read_headers(path):
            assert (header.height, header.width) == expected.shape
            np.testing.assert_allclose(one(path, header.frame), expected, atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_of_16_bits_is_turned_as_one_of_8(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    eight = (GREY % 256).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png", exif=exif)
    data = png(tmp_path / "b.png", np.dstack([eight] * 3).astype(np.uint16), 2).read_bytes()
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + block))
    end = data.index(b"IDAT") - 4
    (tmp_path / "b.png").write_bytes(data[:end] + chunk + data[end:])
    np.testing.assert_allclose(one(tmp_path / "b.png"), one(tmp_path / "a.png"), rtol=1e-6)
    assert read_headers(tmp_path / "b.png")[0].height == one(tmp_path / "b.png").shape[0]


def test_a_damaged_picture_of_16_bits_is_refused(tmp_path):
    path = png(tmp_path / "a.png", COLOURS, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reason_of(path) in ("corrupt", "truncated")
    whole = tiff([COLOURS.astype(np.uint16)])
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    assert reason_of(tmp_path / "a.tif") in ("corrupt", "truncated")


# --- arrays that are pictures --------------------------------------------------------------------


def test_a_last_axis_of_one_three_or_four_is_that_of_channels(tmp_path):
    path = tmp_path / "a.npy"
    for array, expected in (
        (GREY[..., None], GREY),
        (COLOURS, LUMA),
        (np.dstack([COLOURS, DEEP + 1]), LUMA),
        (np.dstack([GREY.astype(np.float32)] * 3 + [GREY * 0.0]), GREY),
    ):
        np.save(path, array)
        assert_read(path, expected)
    opacity = SEEN.astype(np.uint8) * 255
    np.save(path, np.dstack([np.full((*GREY.shape, 3), 200, np.uint8), opacity]))
    assert_read(path, np.full(GREY.shape, 200.0), SEEN)
    for few in (phantoms.volume(3, 20, 24), phantoms.volume(1, 20, 24), phantoms.volume(4, 4, 3)):
        np.save(path, few)
        assert len(read_headers(path)) == len(few)


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("name", ["reconstruction", "image"])
def test_hdf5_of_python_has_the_slices_of_the_same_npy(tmp_path, userblock, name):
    for voxels in (
        phantoms.volume(5),
        phantoms.volume(3),
        GREY,
        np.dstack([GREY] * 4),
        np.dstack([GREY]),
    ):
        with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
            file[name] = voxels
        np.save(tmp_path / "a.npy", voxels)
        frames = [header.frame for header in read_headers(tmp_path / "a.npy")]
        assert [header.frame for header in read_headers(tmp_path / "a.h5")] == frames
        ours = read_slices(tmp_path / "a.h5", frames)
        theirs = read_slices(tmp_path / "a.npy", frames)
        for item, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(item.pixels, expected.pixels)


@pytest.mark.parametrize("told", ["header", "attribute"])
def test_hdf5_of_matlab_has_its_axes_reversed(tmp_path, told):
    voxels = phantoms.volume(5)
    stored = voxels.transpose(0, 2, 1)  # (H, W, n) in MATLAB
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512 if told == "header" else 0) as file:
        file["scan"] = stored
        if told == "attribute":
            file["scan"].attrs["MATLAB_class"] = np.bytes_("int16")
    if told == "header":
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    for frame in range(5):
        np.testing.assert_array_equal(one(path, frame), voxels[frame])


def test_four_slices_of_matlab_are_no_colours(tmp_path):
    voxels = phantoms.volume(4)
    scipy.io.savemat(tmp_path / "a.mat", {"scan": voxels.transpose(1, 2, 0)})
    assert len(read_headers(tmp_path / "a.mat")) == 4
    np.testing.assert_array_equal(one(tmp_path / "a.mat", 3), voxels[3])
