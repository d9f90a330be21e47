"""DICOM whose way to the modality's values is written badly, or in several ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.io.decode import read_headers
from tests import phantoms
from tests.pipeline.io.samples import GREY, one, reason_of

RAMP = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint16) * 20
EMPTY = "EMPTY"  # the element is there, without a value
COMMA = 9.99  # stands for a text that no writer of DICOM would let through


def write(path: Path, comma: str = "1,00", **scaling: Any) -> Path:
    """Write a CT of these slopes and intercepts and no others."""
    ds = phantoms.dicom(RAMP, **{k: v for k, v in scaling.items() if v is not EMPTY})
    for name in {"RescaleSlope", "RescaleIntercept"} - scaling.keys():
        if name in ds:
            delattr(ds, name)
    for name in [name for name, value in scaling.items() if value is EMPTY]:
        setattr(ds, name, None)
    phantoms.save(ds, path)
    raw = path.read_bytes()
    assert raw.count(b"9.99") == sum(value == COMMA for value in scaling.values())
    path.write_bytes(raw.replace(b"9.99", comma.encode()))
    return path


def flags(path: Path) -> tuple[str, ...]:
    return read_headers(path)[0].flags


@pytest.mark.parametrize(
    ("scaling", "slope", "intercept"),
    [
        ({"RescaleIntercept": -1024}, 1, -1024),
        ({"RescaleIntercept": -1024, "RescaleSlope": EMPTY}, 1, -1024),
        ({"RescaleIntercept": -1024, "RescaleSlope": 0}, 1, -1024),
        ({"RescaleIntercept": -1024, "RescaleSlope": COMMA}, 1, -1024),
        ({"RescaleSlope": 2}, 2, 0),
        ({"RescaleSlope": 2, "RescaleIntercept": EMPTY}, 2, 0),
        ({"RescaleSlope": 2, "RescaleIntercept": COMMA}, 2, 1),
        ({}, 1, 0),
        ({"RescaleSlope": EMPTY, "RescaleIntercept": EMPTY}, 1, 0),
    ],
    ids=str,
)
def test_slope_and_intercept_are_taken_each_by_itself_and_flagged(
    tmp_path, scaling, slope, intercept
):
    path = write(tmp_path / "a", **scaling)
    np.testing.assert_array_equal(one(path), RAMP.astype(np.float32) * slope + intercept)
    assert flags(path) == ("rescale-incomplete",)


@pytest.mark.parametrize(
    ("text", "slope"), [("0,50", 0.5), ("1,5 ", 1.5), ("2.50", 2.5), ("x,yz", 1)]
)
def test_a_decimal_comma_is_read_as_a_point(tmp_path, text, slope):
    path = write(tmp_path / "a", text, RescaleSlope=COMMA, RescaleIntercept=-10)
    np.testing.assert_array_equal(one(path), RAMP.astype(np.float32) * np.float32(slope) - 10)
    assert flags(path) == (() if text == "2.50" else ("rescale-incomplete",))


def test_commas_in_lengths_are_points_too(tmp_path):
    ds = phantoms.dicom(GREY, PixelSpacing=[9.99, 9.99])
    path = phantoms.save(ds, tmp_path / "a")
    path.write_bytes(path.read_bytes().replace(b"9.99", b"0,75"))
    assert read_headers(path)[0].spacing_mm == (0.75, 0.75)


def test_what_need_not_be_scaled_has_no_flag(tmp_path):
    assert flags(write(tmp_path / "a", RescaleSlope=1, RescaleIntercept=-1024)) == ()
    ds = phantoms.dicom(GREY, SOPClassUID=uid.MRImageStorage, Modality="MR")
    del ds.RescaleSlope, ds.RescaleIntercept
    assert flags(phantoms.save(ds, tmp_path / "b")) == ()


def test_a_frame_that_lacks_one_has_it_of_the_file(tmp_path):
    voxels = phantoms.volume(2)
    path = phantoms.write_enhanced(tmp_path / "a", voxels, [1.0, 2.0])
    import pydicom

    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence[0].RescaleSlope
    ds.RescaleSlope = 3
    del ds.RescaleIntercept
    ds.save_as(path)
    np.testing.assert_array_equal(one(path, 0), voxels[0].astype(np.float32))
    np.testing.assert_array_equal(one(path, 1), voxels[1].astype(np.float32) * 3 + 1)


# --- other scalings ------------------------------------------------------------------------------


def mapping(slope: float | None, intercept: float) -> Dataset:
    item = phantoms._item(RealWorldValueIntercept=float(intercept))
    if slope is not None:
        item.RealWorldValueSlope = float(slope)
    return item


@pytest.mark.parametrize(
    ("mappings", "expected"),
    [
        ([mapping(2, -7)], ()),
        ([mapping(1, 0), mapping(2, -7)], ()),
        ([mapping(2.5, -7)], ("real-world-values",)),
        ([mapping(2, 0)], ("real-world-values",)),
        ([mapping(None, 0)], ("real-world-values",)),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_real_world_values_that_differ_are_told_and_not_used(tmp_path, mappings, expected, shared):
    tags = {"RealWorldValueMappingSequence": mappings}
    if shared:
        tags = {"SharedFunctionalGroupsSequence": [phantoms._item(**tags)]}
    ds = phantoms.dicom(GREY, RescaleSlope=2, RescaleIntercept=-7, **tags)
    path = phantoms.save(ds, tmp_path / "a")
    np.testing.assert_array_equal(one(path), GREY * 2.0 - 7)
    assert flags(path) == expected


@pytest.mark.parametrize(("scale", "expected"), [(0.5, ()), (0.04, ("private-scaling",))])
@pytest.mark.parametrize("maker", ["Philips Medical Systems", "Another"])
def test_philips_own_scaling_is_told_where_it_differs(tmp_path, scale, expected, maker):
    ds = phantoms.dicom(GREY, RescaleSlope=2, RescaleIntercept=0, Manufacturer=maker)
    block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", scale)
    path = phantoms.save(ds, tmp_path / "a", uid.ImplicitVRLittleEndian)
    assert flags(path) == (expected if maker.startswith("Philips") else ())


# --- modality LUTs -------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [{}, {"ModalityLUTType": "US"}, {"LUTExplanation": "none"}])
def test_an_item_without_a_modality_lut_transforms_nothing(tmp_path, tags):
    items = [phantoms._item(**tags)]
    ds = phantoms.dicom(RAMP, ModalityLUTSequence=items, RescaleSlope=2, RescaleIntercept=1)
    path = phantoms.save(ds, tmp_path / "a")
    np.testing.assert_array_equal(one(path), RAMP * 2.0 + 1)
    assert flags(path) == ()


def lut(descriptor: list[int], data: bytes | list[int], vr: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    item.add_new("LUTData", vr, data)
    return item


@pytest.mark.parametrize(
    ("item", "dtype", "expected"),
    [
        (lut([4, 0, 12], [10, 200, 30, 4000], "US"), np.uint8, [10, 200, 4000, 4000]),
        (lut([4, 0, 16], np.array([1, 2, 3, 4], "<u2").tobytes(), "OW"), np.uint8, [1, 2, 4, 4]),
        (lut([4, 0, 8], bytes([5, 6, 7, 8]), "OW"), np.uint8, [5, 6, 8, 8]),
        (lut([4, -1, 16], [10, 200, 30, 4000], "US"), np.int16, [200, 30, 4000, 4000]),
        (lut([3, 2, 16], [10, 20, 30], "US"), np.uint8, [10, 10, 20, 30]),
    ],
    ids=["12 bits", "words", "packed", "signed", "clamped"],
)
def test_modality_luts_of_any_making(tmp_path, item, dtype, expected):
    pixels = np.array([[0, 1], [3, 200 if dtype == np.uint8 else 300]], dtype)
    ds = phantoms.dicom(pixels, Modality="CR", ModalityLUTSequence=[item])
    values = one(phantoms.save(ds, tmp_path / "a"))
    np.testing.assert_array_equal(values.ravel(), expected)


def test_a_modality_lut_cut_short_is_refused(tmp_path):
    item = lut([9, 0, 16], [10, 20, 30], "US")
    ds = phantoms.dicom(RAMP, Modality="CR", ModalityLUTSequence=[item])
    assert reason_of(phantoms.save(ds, tmp_path / "a")) == "corrupt"
