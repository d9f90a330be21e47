"""MetaImage and NRRD: the slices of the same volume in NIfTI, and headers not to be trusted."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.config.data import Data
from pipeline.extraction.discover import discover
from pipeline.io.decode import read_frames, read_headers, read_slices
from pipeline.io.detached import content_digest
from pipeline.io.formats import itk_volume
from pipeline.types import Failure, Slice
from stores.errors import UnreadableError
from tests import phantoms
from tests.pipeline.io.samples import one, reason_of

# Degrees about two axes, and which way the axes run: (x, y, z) of LPS.
TURNS = [(0, 0), (12, -7), (40, 3), (-95, 20), (178, -4)]
PLANES = ("axial", "coronal", "sagittal")
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-30 -40 100",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-30,-40,100)",
}
VOXELS = phantoms.volume(4, 5, 6)


def direction(turn: tuple[float, float]) -> np.ndarray:
    """Return (3, 3) axes turned about z and then about x."""
    about_z, about_x = np.radians(turn)
    z = [[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]]
    x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    return np.array(x) @ np.array(z)


def image_of(voxels: np.ndarray, turn: tuple[float, float] = (0, 0), **how) -> sitk.Image:
    """Return voxels (z, y, x) as an image of ITK that lies somewhere."""
    image = sitk.GetImageFromArray(voxels, **how)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30.0, -40.0, 100.0))
    image.SetDirection(direction(turn).ravel().tolist())
    return image


def meta(path: Path, data: bytes = VOXELS.tobytes(), **changes: str | None) -> Path:
    """Write a MetaImage by hand, with fields changed, or left out where they are None."""
    fields = {name: text for name, text in (META | changes).items() if text is not None}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last, as it must be
    lines = "".join(f"{name} = {text}\n" for name, text in fields.items())
    path.write_bytes(lines.encode() + (data if fields["ElementDataFile"] == "LOCAL" else b""))
    return path


def nrrd(path: Path, data: bytes = VOXELS.tobytes(), **changes: str | None) -> Path:
    """Write an NRRD by hand, with fields changed, or left out where they are None."""
    renamed = {name.replace("_", " "): text for name, text in changes.items()}
    fields = {name: text for name, text in (NRRD | renamed).items() if text is not None}
    lines = "".join(f"{name}: {text}\n" for name, text in fields.items())
    path.write_bytes(b"NRRD0005\n# by hand\n" + lines.encode() + b"\n" + data)
    return path


def same_slices(path: Path, other: Path, plane: str) -> None:
    """Hold two files' headers and slices against each other."""
    ours, theirs = read_headers(path, plane), read_headers(other, plane)
    assert len(ours) == len(theirs)
    for header, expected in zip(ours, theirs, strict=True):
        assert (header.height, header.width) == (expected.height, expected.width)
        assert header.position_mm == pytest.approx(expected.position_mm, abs=1e-3)
        assert header.offset_mm == pytest.approx(expected.offset_mm, abs=1e-3)
        assert header.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-5)
        assert header.flags == expected.flags
        assert (header.volume, header.order) == (expected.volume, expected.order)
    frames = range(len(ours))
    pairs = zip(read_slices(path, frames, plane), read_slices(other, frames, plane), strict=True)
    for item, expected in pairs:
        np.testing.assert_array_equal(item.pixels, expected.pixels)


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_volumes_give_the_slices_of_their_nifti_however_they_lie(tmp_path, turn):
    image = image_of(VOXELS, turn)
    sitk.WriteImage(image, tmp_path / "v.nii")
    for name in ("a.mha", "d.mhd", "a.nrrd", "d.nhdr"):
        for coded in (False, True):
            sitk.WriteImage(image, tmp_path / name, useCompression=coded)
            for plane in PLANES:
                same_slices(tmp_path / name, tmp_path / "v.nii", plane)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_types_keep_their_numbers(tmp_path, dtype):
    voxels = (VOXELS % 100).astype(dtype) - np.array(50 * (dtype[0] != "u"), dtype)
    for name in ("v.mha", "v.nrrd"):
        sitk.WriteImage(image_of(voxels), tmp_path / name)
        pixels = [item.pixels for item in read_slices(tmp_path / name, range(4))]
        np.testing.assert_array_equal(np.stack(pixels), voxels)


def test_both_byte_orders_and_text(tmp_path):
    swapped = VOXELS.astype(">i2").tobytes()
    text = " ".join(map(str, VOXELS.ravel())).encode() + b"\n"
    paths = [
        meta(tmp_path / "little.mha"),
        meta(tmp_path / "big.mha", swapped, BinaryDataByteOrderMSB="True"),
        meta(tmp_path / "text.mha", text, BinaryData="False"),
        nrrd(tmp_path / "little.nrrd"),
        nrrd(tmp_path / "big.nrrd", swapped, endian="big"),
        nrrd(tmp_path / "text.nrrd", text, encoding="ascii"),
        nrrd(tmp_path / "RAS.nrrd", space="RAS", space_origin="(30,40,100)",
             space_directions="(-0.7,0,0) (0,-0.8,0) (0,0,2.5)"),
    ]  # fmt: skip
    reference = phantoms.write_nifti_of_series(tmp_path / "v.nii", VOXELS)
    for path in paths:
        same_slices(path, reference, "axial")


def test_time_points_and_values_are_volumes_and_colour_is_luma(tmp_path):
    long = np.stack([VOXELS, VOXELS + 7, VOXELS * 2])
    sitk.WriteImage(sitk.GetImageFromArray(long, isVector=False), tmp_path / "t.nrrd")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(long.T), affine), tmp_path / "t.nii")
    several = np.moveaxis(long, 0, -1)
    data = several.tobytes()
    list_of = {"sizes": "3 6 5 4", "dimension": "4", "kinds": "list domain domain domain"}
    directions = "none (1,0,0) (0,1,0) (0,0,1)"
    nrrd(
        tmp_path / "list.nrrd", data, space_directions=directions, space_origin="(0,0,0)", **list_of
    )
    for name in ("t.nrrd", "list.nrrd"):
        headers = read_headers(tmp_path / name)
        assert [header.order for header in headers[::4]] == [(0.0,), (1.0,), (2.0,)]
        for frame, item in enumerate(read_slices(tmp_path / name, range(12))):
            np.testing.assert_array_equal(item.pixels, one(tmp_path / "t.nii", frame))
    rgb = (several % 256).astype(np.uint8)
    for name in ("c.mha", "c.nrrd"):
        sitk.WriteImage(image_of(rgb, isVector=True), tmp_path / name)
    structure = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours = np.ascontiguousarray(rgb.transpose(2, 1, 0, 3)).view(structure)[..., 0]
    lying = np.diag([-0.7, -0.8, 2.5, 1.0])
    lying[:3, 3] = 30, 40, 100
    nib.save(nib.Nifti1Image(colours, lying), tmp_path / "c.nii")
    for name in ("c.mha", "c.nrrd"):
        same_slices(tmp_path / name, tmp_path / "c.nii", "axial")


def test_directions_are_no_grey(tmp_path):
    field = np.zeros((4, 5, 6, 3), np.float32)
    for name in ("v.mha", "v.nrrd"):
        sitk.WriteImage(image_of(field, isVector=True), tmp_path / name)
        assert reason_of(tmp_path / name) == "unsupported"


@pytest.mark.parametrize(("unit", "per_mm"), [("m", 0.001), ("cm", 0.1), ("um", 1000), ("mm", 1)])
def test_lengths_of_an_nrrd_are_told_in_millimetres(tmp_path, unit, per_mm):
    def vector(*numbers: float) -> str:
        return f"({','.join(str(number * per_mm) for number in numbers)})"

    path = nrrd(
        tmp_path / "a.nrrd",
        space_units=" ".join([f'"{unit}"'] * 3),
        space_directions=" ".join([vector(2, 0, 0), vector(0, 3, 0), vector(0, 0, 5)]),
        space_origin=vector(10, 20, 30),
    )
    first, second = read_headers(path)[:2]
    assert first.spacing_mm == pytest.approx((3, 2))
    assert first.position_mm == pytest.approx(30)
    assert second.position_mm == pytest.approx(35)


def test_voxels_in_several_files_are_unsupported_and_said_to_be(tmp_path):
    names = "".join(f"{k}.raw\n" for k in range(len(VOXELS)))
    listed = nrrd(tmp_path / "a.nhdr", b"", data_file=f"LIST 2\n{names.rstrip()}")
    numbered = nrrd(tmp_path / "b.nhdr", b"", data_file="%d.raw 0 9 1")
    meta_listed = meta(tmp_path / "c.mhd", names.encode(), ElementDataFile="LIST")
    for path in (listed, numbered, meta_listed):
        with pytest.raises(UnreadableError, match="several files") as caught:
            read_headers(path)
        assert caught.value.reason == "unsupported"


def test_what_does_not_say_how_it_lies_is_flagged(tmp_path):
    plain = sitk.GetImageFromArray(VOXELS[0])
    sitk.WriteImage(plain, tmp_path / "flat.mha")
    without = {"space": None, "space_directions": None, "space_origin": None}
    paths = [
        tmp_path / "flat.mha",
        meta(tmp_path / "m.mha", TransformMatrix=None),
        nrrd(tmp_path / "n.nrrd", **without, spacings="1 1 1"),
        nrrd(tmp_path / "s.nrrd", space="scanner-xyz"),
    ]
    for path in paths:
        assert read_headers(path)[0].flags == ("no-orientation",), path.name
        np.testing.assert_array_equal(one(path), VOXELS[0])


HOSTILE = [
    ("meta", {"ElementDataFile": "/etc/passwd"}, "unsupported"),
    ("meta", {"ElementDataFile": "../secret.raw"}, "unsupported"),
    ("meta", {"ElementDataFile": "below/../../secret.raw"}, "unsupported"),
    ("meta", {"ElementDataFile": "..\\secret.raw"}, "unsupported"),
    ("meta", {"ElementDataFile": "LIST"}, "unsupported"),
    ("meta", {"ElementDataFile": "s%03d.raw 1 4 1"}, "unsupported"),
    ("meta", {"ElementDataFile": "nowhere.raw"}, "truncated"),
    ("meta", {"ElementDataFile": "pipe"}, "corrupt"),
    ("meta", {"ElementDataFile": "x.raw\nElementDataFile = /etc/passwd"}, "truncated"),
    ("meta", {"Comment": "a\nElementDataFile = /etc/passwd"}, "unsupported"),
    ("meta", {"Comment": "a\rElementDataFile = /etc/passwd"}, "corrupt"),
    ("meta", {"DimSize": "6 5 400"}, "truncated"),
    ("meta", {"DimSize": "60000 60000 60000"}, "too-large"),
    ("meta", {"DimSize": "6 5"}, "corrupt"),
    ("meta", {"DimSize": "6 5 -4"}, "corrupt"),
    ("meta", {"DimSize": "6 5 99999999999999999999"}, "corrupt"),
    ("meta", {"ElementSpacing": "0.7 -0.8 2.5"}, "corrupt"),
    ("meta", {"ElementSpacing": "0.7 0 2.5"}, "corrupt"),
    ("meta", {"ElementSpacing": "0.7 nan 2.5"}, "corrupt"),
    ("meta", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "corrupt"),
    ("meta", {"ElementType": "MET_OTHER"}, "unsupported"),
    ("meta", {"ElementNumberOfChannels": "9999999"}, "corrupt"),
    ("meta", {"NDims": "9"}, "unsupported"),
    ("meta", {"CompressedData": "True"}, "corrupt"),
    ("nrrd", {"data_file": "/etc/passwd"}, "unsupported"),
    ("nrrd", {"data_file": "../secret.raw"}, "unsupported"),
    ("nrrd", {"data_file": "-"}, "unsupported"),
    ("nrrd", {"data_file": "LIST"}, "unsupported"),
    ("nrrd", {"data_file": "s%03d.raw 1 4 1"}, "unsupported"),
    ("nrrd", {"data_file": "nowhere.raw"}, "truncated"),
    ("nrrd", {"sizes": "6 5 400"}, "truncated"),
    ("nrrd", {"sizes": "60000 60000 60000"}, "too-large"),
    ("nrrd", {"sizes": "6 5 0"}, "corrupt"),
    ("nrrd", {"type": "block"}, "unsupported"),
    ("nrrd", {"encoding": "bzip2"}, "unsupported"),
    ("nrrd", {"encoding": "gzip"}, "corrupt"),
    ("nrrd", {"dimension": "3\ndimension: 3"}, "corrupt"),
    ("nrrd", {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "reason"), HOSTILE, ids=str)
def test_hostile_headers_are_refused_before_itk_reads_a_voxel(
    tmp_path, monkeypatch, kind, changes, reason
):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(1000))
    os.mkfifo(folder / "pipe")

    def read(reader):
        raise AssertionError("ITK was asked for voxels")

    monkeypatch.setattr(itk_volume.sitk.ImageFileReader, "Execute", read)
    path = (meta if kind == "meta" else nrrd)(folder / f"v.{kind}", **changes)
    assert reason_of(path) == reason


def test_coded_voxels_that_are_damaged_or_too_many_are_refused(tmp_path):
    raw = VOXELS.tobytes()
    coded = zlib.compress(raw)
    zipped = gzip.compress(raw)
    flipped = bytearray(coded)
    flipped[len(coded) // 2] ^= 0xFF
    cases = {
        "whole": (coded, zipped, None),
        "cut": (coded[:-9], zipped[:-9], "truncated"),
        "short": (zlib.compress(raw[:-2]), gzip.compress(raw[:-2]), "truncated"),
        "bomb": (zlib.compress(bytes(2**24)), gzip.compress(bytes(2**24)), "corrupt"),
        "flipped": (bytes(flipped), zipped[:-6] + b"\0" + zipped[-5:], "corrupt"),
    }
    for name, (as_meta, as_nrrd, reason) in cases.items():
        size = str(len(as_meta))
        meta(tmp_path / name, as_meta, CompressedData="True", CompressedDataSize=size)
        assert reason_of(tmp_path / name) == reason, name
        nrrd(tmp_path / name, as_nrrd, encoding="gzip")
        assert reason_of(tmp_path / name) == reason, name
    for declared in ("4", "99999999999"):
        meta(tmp_path / "lie", coded, CompressedData="True", CompressedDataSize=declared)
        assert reason_of(tmp_path / "lie") == "corrupt"


# --- headers and voxels in files of their own ------------------------------------------------


def look(root: Path, known=None):
    return discover(Data(root=root), b"k" * 32, known=known, workers=0)


def write_pairs(root: Path) -> None:
    (root / "raw").write_bytes(VOXELS.tobytes())
    meta(root / "a.mhd", ElementDataFile="a.raw")
    nrrd(root / "b.nhdr", b"", data_file="b.raw")
    for name in ("a.raw", "b.raw"):
        # What begins like a DICOM, and like a BMP: voxels are no files of their own.
        (root / name).write_bytes(b"\x08\0\0\0\4\0\0\0BM" + VOXELS.tobytes()[10:])


def test_the_voxels_of_a_header_are_set_aside_and_no_finding(tmp_path):
    write_pairs(tmp_path)
    found = look(tmp_path)
    reasons = dict(
        zip(*(found.files[name].to_pylist() for name in ("path", "reason")), strict=True)
    )
    assert reasons == {
        "a.mhd": None,
        "b.nhdr": None,
        "a.raw": "other",
        "b.raw": "other",
        "raw": "other",
    }
    assert len(found.slices) == 8


def test_a_change_of_the_voxels_is_a_change_of_the_image(tmp_path):
    write_pairs(tmp_path)
    first = look(tmp_path)
    digests = [content_digest(tmp_path / name) for name in ("a.mhd", "b.nhdr")]
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes((VOXELS + 1).tobytes())
    second = look(tmp_path, first)
    for name in ("a.mhd", "b.nhdr"):
        rows = [next(r for r in t.files.to_pylist() if r["path"] == name) for t in (first, second)]
        assert rows[0]["mtime_ns"] != rows[1]["mtime_ns"]
        assert rows[0]["size"] == rows[1]["size"] > 240
    assert not set(digests) & {content_digest(tmp_path / name) for name in ("a.mhd", "b.nhdr")}


def test_equal_headers_of_other_voxels_are_other_images(tmp_path):
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        meta(tmp_path / name / "v.mhd", ElementDataFile="v.raw")
        (tmp_path / name / "v.raw").write_bytes((VOXELS + int(name[1])).tobytes())
    reads = [next(read_frames(tmp_path / name / "v.mhd", [0], "axial")) for name in ("p1", "p2")]
    assert reads[0].file_digest != reads[1].file_digest


def test_frames_beyond_the_end_are_failures(tmp_path):
    path = meta(tmp_path / "v.mha")
    items = list(read_slices(path, [3, 4, -1, 0]))
    assert [type(item) for item in items] == [Slice, Failure, Failure, Slice]


def test_no_name_of_the_header_is_told(tmp_path):
    path = meta(tmp_path / "v.mha", Name="SECRETNAME", ElementSpacing="SECRET")
    with pytest.raises(UnreadableError) as refused:
        read_headers(path)
    assert "SECRET" not in str(refused.value)
