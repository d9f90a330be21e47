"""Contours of RT structure sets: drawn on their slices, they are the masks they were made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from pipeline.annotations.mask_files import inspect, planes
from pipeline.io.decode import read_headers
from stores.errors import LabelError, UnreadableError
from tests.phantoms import AXIAL, volume, write_series, write_structures
from tests.pipeline.annotations.test_masks import FRAME, kept_of, planes_of

REAL = os.environ.get("RADPROBE_REAL_DATA")
Polygons = dict[int, list[NDArray[np.float64]]]


def box(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def outlines(mask: NDArray[np.bool_]) -> Polygons:
    """Return the outlines of a mask (z, H, W), of its holes too, between its pixels and others."""
    polygons: Polygons = {}
    for place, plane in enumerate(mask):
        padded = np.pad(plane.astype(float), 1)
        lines = contourpy.contour_generator(z=padded).lines(0.5)
        if lines:
            polygons[place] = [line[:-1] - 1 for line in lines]
    return polygons


def ct(root: Path, **more: Any) -> list[Path]:
    """Write a CT series of p1 and return its files in the order of its slices."""
    (root / "masks").mkdir()
    return write_series(root / "images/p1", volume(), **FRAME, **more)


def blobs(seed: int) -> NDArray[np.bool_]:
    """Return a mask (6, 20, 24) of odd shapes with holes."""
    noise = np.random.default_rng(seed).standard_normal((6, 20, 24))
    mask: NDArray[np.bool_] = ndimage.gaussian_filter(noise, (0, 1.5, 1.5)) > 0.05
    return mask


def test_contours_become_the_mask_that_they_were_made_of(tmp_path: Path) -> None:
    files = ct(tmp_path)
    tumour = blobs(0)
    tumour[3] = False  # a slice without a contour is background
    organ = blobs(1) & ~tumour
    body = np.ones_like(tumour)
    structures = {"GTV-1": outlines(tumour), "Liver": outlines(organ), "BODY": outlines(body)}
    write_structures(tmp_path / "masks/rt.dcm", files, structures)
    values = {"GTV-1": "tumour", "Liver": "liver"}
    kept = kept_of(tmp_path, {"by": "uid", "values": values})
    assert np.array_equal(planes_of(kept), tumour + 2 * organ)
    by_path = kept_of(tmp_path, {"files": {"**": "rt.dcm"}, "values": values})
    assert by_path.digest == kept.digest


def test_a_series_stored_turned_is_drawn_as_it_is_shown(tmp_path: Path) -> None:
    mask = blobs(2)
    straight = ct(tmp_path)
    path = write_structures(tmp_path / "masks/rt.dcm", straight, {"a": outlines(mask)})
    turned = write_series(
        tmp_path / "turned",
        volume()[:, ::-1, ::-1].copy(),
        positions=[(-30.0 + 23 * 0.7, -40.0 + 19 * 0.8, 100.0 + 2.5 * k) for k in range(6)],
        orientation=tuple(-value for value in AXIAL),
    )
    images = [read_headers(file)[0] for file in turned]
    drawn = list(planes(path, "axial", images, [1]))
    assert np.array_equal(np.stack(drawn), mask)


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        ([box(0.5, 0.5, 4.5, 3.5)], 12),
        ([box(0.5, 0.5, 4.5, 3.5)[::-1]], 12),  # the other way round
        ([box(0.5, 0.5, 5.5, 5.5), box(1.5, 1.5, 3.5, 3.5)], 21),  # a hole
        ([box(-9, -9, 99, 99)], 20 * 24),  # beyond the image
        ([box(0, 0, 2, 2), box(2, 0, 4, 2)], 8),  # a shared edge through centres: once each
        ([np.array([[1.0, 1.0], [1.2, 1.1], [1.1, 1.2]])], 0),  # between centres
    ],
)
def test_centres_within_contours(
    tmp_path: Path, polygons: list[NDArray[np.float64]], expected: int
) -> None:
    files = ct(tmp_path)
    path = write_structures(tmp_path / "rt.dcm", files, {"a": {2: polygons}})
    images = [read_headers(file)[0] for file in files]
    drawn = np.stack([*planes(path, "axial", images, [1])])
    assert drawn.sum() == drawn[2].sum() == expected


def test_a_contour_of_more_than_64_kb_is_read(tmp_path: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    circle = 8 + 5.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    files = ct(tmp_path)
    structures = {"a": {0: [circle]}}
    # Of explicit syntax it is written as UN, whose cells pydicom leaves as bytes.
    with pytest.warns(UserWarning, match="64 kByte"):
        path = write_structures(tmp_path / "rt.dcm", files, structures, ExplicitVRLittleEndian)
    images = [read_headers(file)[0] for file in files]
    drawn = next(planes(path, "axial", images, [1]))
    y, x = np.mgrid[:20, :24]
    assert np.array_equal(drawn == 1, np.hypot(y - 8, x - 8) < 5.3)


@pytest.mark.parametrize(
    ("move", "why"),
    [
        ({"step": 2.0}, "which lies on none of its image's slices"),
        ({"positions": [(0.0, 0.0, 900.0 + k) for k in range(6)]}, "elsewhere than its image lies"),
    ],
)
def test_contours_that_lie_on_no_slice_are_refused(
    tmp_path: Path, move: dict[str, Any], why: str
) -> None:
    files = ct(tmp_path)
    path = write_structures(tmp_path / "rt.dcm", files, {"a": outlines(blobs(0))})
    others = write_series(tmp_path / "other", volume(), **move)
    images = [read_headers(file)[0] for file in others]
    with pytest.raises(UnreadableError, match=why):
        list(planes(path, "axial", images, [1]))


def test_what_is_refused_of_structures(tmp_path: Path) -> None:
    files = ct(tmp_path)
    mask = blobs(0)
    rt = tmp_path / "masks/rt.dcm"
    write_structures(rt, files, {"a": outlines(mask), "b": outlines(mask)})
    with pytest.raises(
        LabelError, match=r"has 2 structures \('a', 'b'\), and none of 'GTV', 'CTV'"
    ):
        kept_of(tmp_path, {"by": "uid", "values": {"GTV": "tumour", "CTV": "tumour"}})
    with pytest.raises(LabelError, match="has structures that overlap"):
        kept_of(tmp_path, {"by": "uid", "values": {"a": "a", "b": "b"}})
    assert inspect(rt, "axial").segments == {1: "a", 2: "b"}
    write_structures(rt, files, {"a": {0: [box(0, 0, 1, 1)[:2]]}})
    with pytest.raises(LabelError, match="not three points or more"):
        kept_of(tmp_path, {"by": "uid", "values": "a"})


@pytest.mark.skipif(REAL is None, reason="RADPROBE_REAL_DATA is not set")
def test_a_real_series_gives_its_mask_again(tmp_path: Path) -> None:
    assert REAL is not None
    files = sorted(
        (Path(REAL) / "dicom_ct_philips").iterdir(),
        key=lambda file: pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient[2],
    )
    files = files[::4]
    voxels = np.stack([pydicom.dcmread(file).pixel_array for file in files]).astype(float)
    mask = ndimage.gaussian_filter(voxels, (0, 3, 3)) > voxels.mean()
    assert 0.05 < mask.mean() < 0.95
    path = write_structures(tmp_path / "rt.dcm", files, {"dense": outlines(mask)})
    images = [read_headers(file)[0] for file in files]
    drawn = np.stack([*planes(path, "axial", images, [1])]) > 0
    dice = 2 * (drawn & mask).sum() / (drawn.sum() + mask.sum())
    assert dice == 1
