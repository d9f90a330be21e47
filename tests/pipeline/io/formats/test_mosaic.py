"""Pictures that tile a volume: Siemens' mosaics, whole or stripped, and United Imaging's grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.io.decode import read_headers, read_slices
from tests import phantoms
from tests.pipeline.io.samples import one, reason_of


def stripped(path: Path, tiles: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags: Any):
    """Write a mosaic without its private header."""
    phantoms.write_mosaic(path, tiles, counted=False)
    ds = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(ds, name, value)
    return phantoms.save(ds, path, syntax)


def assert_tiles(path: Path, tiles: np.ndarray, flags: tuple[str, ...]) -> None:
    headers = read_headers(path)
    assert len(headers) == len(tiles)
    assert {header.flags for header in headers} == {flags}
    for header, item in zip(headers, read_slices(path, range(len(tiles))), strict=True):
        assert (header.height, header.width) == item.pixels.shape
        np.testing.assert_array_equal(item.pixels, tiles[header.frame])


INFERRED = ("mosaic", "mosaic-inferred")


@pytest.mark.parametrize("count", [5, 7, 9, 10, 13])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize(
    "tags",
    [
        {"AcquisitionMatrix": [8, 0, 0, 6]},
        {"AcquisitionMatrix": [0, 10, 6, 0]},
        {"NumberOfPhaseEncodingSteps": 8},
    ],
    ids=["rows", "columns", "steps"],
)
def test_a_stripped_mosaic_is_split_by_the_matrix_of_its_tiles(tmp_path, count, syntax, tags):
    tiles = phantoms.volume(count, 8, 10) + 600
    if count == 5:  # two tiles a side would be a slice that was interpolated
        tiles = phantoms.volume(7, 8, 10) + 600
        tiles[6] = 5
    path = stripped(tmp_path / "a", tiles, syntax, **tags)
    assert_tiles(path, tiles, INFERRED)
    assert read_headers(path)[2].position_mm == 5 + 4 * 2


def test_a_blank_tile_before_the_last_is_a_slice(tmp_path):
    tiles = phantoms.volume(8, 8, 10) + 600
    tiles[6] = 0
    assert_tiles(stripped(tmp_path / "a", tiles, AcquisitionMatrix=[8, 0, 0, 8]), tiles, INFERRED)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"AcquisitionMatrix": [0, 0, 0, 0]},
        {"AcquisitionMatrix": [7, 0, 0, 7]},
        {"AcquisitionMatrix": [12, 0, 0, 12]},  # an interpolated slice
    ],
)
def test_a_mosaic_whose_tiles_nothing_tells_is_set_aside(tmp_path, tags):
    path = stripped(tmp_path / "a", phantoms.volume(7, 8, 10), **tags)
    assert reason_of(path) == "unsupported"


def test_an_interpolated_mosaic_is_not_cut_by_its_matrix(tmp_path):
    phantoms.write_mosaic(tmp_path / "a", phantoms.volume(7, 8, 10), counted=False)
    ds = pydicom.dcmread(tmp_path / "a")
    ds.AcquisitionMatrix = [4, 0, 0, 5]
    block = ds.private_block(0x0051, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0B, "LO", "4*5I")
    assert reason_of(phantoms.save(ds, tmp_path / "a")) == "unsupported"


def test_a_list_of_times_counts_the_tiles(tmp_path):
    tiles = phantoms.volume(7, 8, 10)
    phantoms.write_mosaic(tmp_path / "a", tiles, counted=False)
    ds = pydicom.dcmread(tmp_path / "a")
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x29, "FD", [float(k) for k in range(7)])
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        assert_tiles(phantoms.save(ds, tmp_path / "a", syntax), tiles, ("mosaic",))


def test_a_mosaic_is_one_by_its_count_where_its_word_was_taken_off(tmp_path):
    tiles = phantoms.volume(7, 8, 10)
    phantoms.write_mosaic(tmp_path / "a", tiles)
    ds = pydicom.dcmread(tmp_path / "a")
    ds.ImageType = ["DERIVED", "SECONDARY"]
    assert_tiles(phantoms.save(ds, tmp_path / "a"), tiles, ("mosaic",))
    # One image is no mosaic.
    ds[0x0019, 0x100A].value = 1
    assert len(read_headers(phantoms.save(ds, tmp_path / "a"))) == 1


@pytest.mark.parametrize("word", ["MONTAGE", "COLLAGE"])
def test_other_montages_are_set_aside(tmp_path, word):
    ds = phantoms.dicom(phantoms.volume(1)[0], ImageType=["DERIVED", "SECONDARY", word])
    assert reason_of(phantoms.save(ds, tmp_path / "a")) == "unsupported"


# --- United Imaging ------------------------------------------------------------------------------


def write_grid(path: Path, tiles: np.ndarray, *, count: bool = True, frames: bool = True) -> Path:
    n, height, width = tiles.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    picture = np.zeros((rows * height, columns * width), tiles.dtype)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, columns)
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    ds = phantoms.dicom(
        picture,
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"],
        ImageOrientationPatient=list(phantoms.AXIAL),
        PixelSpacing=[2.0, 3.0],
    )
    block = ds.private_block(0x0065, "Image Private Header", create=True)
    if count:
        block.add_new(0x50, "DS", str(n))
    if frames:
        items = []
        for k in range(n):
            item = Dataset()
            item.ImagePositionPatient = [1.0, 2.0, 4.5 * k]
            items.append(item)
        block.add_new(0x51, "SQ", items)
    return phantoms.save(ds, path)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12, 20])
def test_a_grid_is_split_into_its_slices_each_in_its_place(tmp_path, n):
    tiles = phantoms.volume(n, 8, 10)
    path = write_grid(tmp_path / "a", tiles)
    assert_tiles(path, tiles, ("mosaic",))
    headers = read_headers(path)
    assert [header.position_mm for header in headers] == [4.5 * k for k in range(n)]
    assert headers[0].offset_mm == (2, 1)
    assert headers[0].spacing_mm == (2, 3)


def test_a_grid_counts_its_headers_where_its_number_is_gone(tmp_path):
    tiles = phantoms.volume(6, 8, 10)
    assert_tiles(write_grid(tmp_path / "a", tiles, count=False), tiles, ("mosaic",))
    path = write_grid(tmp_path / "b", tiles, frames=False)
    assert_tiles(path, tiles, ("mosaic",))
    assert {header.position_mm for header in read_headers(path)} == {None}


def test_a_grid_of_unknown_or_impossible_number_is_set_aside(tmp_path):
    tiles = phantoms.volume(6, 8, 10)
    path = write_grid(tmp_path / "a", tiles, count=False, frames=False)
    assert reason_of(path) == "unsupported"
    ds = pydicom.dcmread(write_grid(tmp_path / "b", tiles))
    ds[0x0065, 0x1050].value = "7"
    assert reason_of(phantoms.save(ds, tmp_path / "b")) == "corrupt"
    assert one(write_grid(tmp_path / "c", tiles), 5).shape == (8, 10)
