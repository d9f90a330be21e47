"""Bad files, hostile files, and names."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipeline.io.decode import read_frames
from pipeline.io.digests import narrow
from pipeline.io.formats.limits import check_size
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.shared.paths import escape_path, unescape_path
from pipeline.types import Failure, Slice
from stores.errors import UnreadableError
from tests import phantoms
from tests.pipeline.io.samples import GREY, one, reason_of


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
        assert reason_of(tmp_path / name) == expected, name
    assert reason_of(tmp_path / "gone.dcm") == "vanished"
    assert reason_of(tmp_path) == "not-an-image"


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
        assert reason_of(tmp_path / name) == "too-large", name
    assert one(tmp_path / "tail.nii.gz").shape == (8, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_no_permission(tmp_path):
    path = phantoms.write_png(tmp_path / "a.png", GREY)
    path.chmod(0)
    with as_nobody(tmp_path):
        assert reason_of(path) == "no-permission"


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


def test_a_slice_that_fails_behind_its_decoder_is_a_failed_slice(tmp_path, monkeypatch):
    seen = []

    def fails_once(pixels):
        seen.append(pixels)
        if len(seen) == 2:
            raise MemoryError
        return pixels

    monkeypatch.setattr("pipeline.io.decode.narrow", fails_once)
    np.save(tmp_path / "a.npy", np.ones((4, 5, 6), np.float32))
    items = [read.item for read in read_frames(tmp_path / "a.npy", (3, 1, 0, 2), "axial")]
    assert [item.frame for item in items] == [3, 1, 0, 2]
    assert [type(item) for item in items] == [Slice, Failure, Failure, Failure]


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
