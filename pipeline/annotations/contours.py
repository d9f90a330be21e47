"""DICOM RT structure sets as planes of label values: contours, drawn on the pixels of the images.

A pixel is of a structure where its centre lies within an odd number of the structure's contours on
that slice, so that an inner contour is a hole. Only the structures that are asked for are drawn:
others, such as the body's outline, lie over them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.annotations.mask_types import MaskFile, Values, tolerance_mm
from pipeline.io.formats.reorientation import Reorientation, axes_of
from pipeline.types import Header
from stores.errors import UnreadableError

# RT Structure Set Storage (PS3.6).
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
# Kinds of contours that enclose anything (PS3.3 C.8.8.6.3).
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# How far cosines of one volume's slices may differ.
_ASKEW = 1e-3

Polygon = NDArray[np.float64]  # (p, 2): x and y in pixels; the centre of the first is 0, 0


def inspect(dataset: Dataset) -> MaskFile:
    """Return which structures a structure set has, and the images it says it is of."""
    segments = {}
    for roi in dataset.get("StructureSetROISequence") or ():
        segments[int(roi.ROINumber)] = str(roi.get("ROIName", "")).strip()
    series = set()
    instances = set()
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for each in study.get("RTReferencedSeriesSequence") or ():
                series.add(str(each.get("SeriesInstanceUID", "")))
                instances |= _images_of(each)
    for _, contour in _contours(dataset):
        instances |= _images_of(contour)
    return MaskFile(
        [], segments, frozenset(series), frozenset(instances), sparse=True, is_drawn=True
    )


def planes(dataset: Dataset, images: Sequence[Header], wanted: Collection[int]) -> Iterator[Values]:
    """Yield the label values (H, W) of each image, as it is shown: numbers of structures.

    wanted: the numbers that are drawn. Raises UnreadableError where the images do not say where
    they lie, where contours lie between them or elsewhere, and where structures overlap.
    """
    polygons = _polygons(dataset, images, wanted)
    for place, image in enumerate(images):
        values = np.zeros((image.height, image.width), np.int64)
        for structure in sorted(wanted):
            inside = _inside(polygons[place, structure], values.shape)
            if values[inside].any():
                raise UnreadableError("unsupported", "has structures that overlap")
            values[inside] = structure
        yield values


def _polygons(
    dataset: Dataset, images: Sequence[Header], wanted: Collection[int]
) -> dict[tuple[int, int], list[Polygon]]:
    """Return the contours of the wanted structures, by the image's place and the structure."""
    axes = _shared_axes(images)
    positions = np.array([image.position_mm for image in images])
    tolerance = tolerance_mm(positions)
    polygons: dict[tuple[int, int], list[Polygon]] = defaultdict(list)
    elsewhere = 0
    for structure, contour in _contours(dataset):
        if structure not in wanted:
            continue
        along, down, normal = axes @ _points(contour).T
        away = np.abs(positions - np.median(normal))
        place = int(away.argmin())
        if np.abs(normal - positions[place]).max() > tolerance:
            if positions.min() - tolerance < normal.max() and normal.min() < positions.max():
                raise UnreadableError(
                    "unsupported",
                    f"has a contour at {normal.min():.1f} to {normal.max():.1f} mm, which lies on "
                    "none of its image's slices",
                )
            elsewhere += 1
            continue
        polygons[place, structure].append(_in_pixels(images[place], along, down))
    if elsewhere and not polygons:
        raise UnreadableError("unsupported", "has its contours elsewhere than its image lies")
    return polygons


def _in_pixels(image: Header, along: Polygon, down: Polygon) -> Polygon:
    assert image.offset_mm is not None
    assert image.spacing_mm is not None
    x = (along - image.offset_mm[1]) / image.spacing_mm[1]
    y = (down - image.offset_mm[0]) / image.spacing_mm[0]
    # Points on the centres of pixels, as many programs have them, lie there for all of them alike.
    polygon: Polygon = np.stack([x, y], axis=1).round(4)
    return polygon


def _shared_axes(images: Sequence[Header]) -> NDArray[np.float64]:
    """Return the axes (3, 3) that images are shown along. Raises UnreadableError for none."""
    of_images = []
    for image in images:
        axes = None if image.axes is None else axes_of(image.axes)
        if axes is None or None in (image.position_mm, image.offset_mm, image.spacing_mm):
            raise UnreadableError(
                "unsupported", "has contours, and its image does not say where it lies"
            )
        of_images.append(Reorientation.of(axes).axes(axes))
    if np.abs(np.array(of_images) - of_images[0]).max() > _ASKEW:
        raise UnreadableError("unsupported", "has contours, and its slices do not lie alike")
    return of_images[0]


def _inside(polygons: Sequence[Polygon], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return (H, W) which pixels' centres lie within an odd number of polygons.

    Of a centre on an edge that two polygons share, one of them has it.
    """
    height, width = shape
    # How often a row crosses an edge at or before a pixel, and after the one before it.
    crossings = np.zeros((height, width + 1), np.int64)
    for polygon in polygons:
        ends = np.roll(polygon, -1, axis=0)
        upper = np.where((polygon[:, 1] < ends[:, 1])[:, None], polygon, ends)
        lower = np.where((polygon[:, 1] < ends[:, 1])[:, None], ends, polygon)
        first = np.clip(np.ceil(upper[:, 1]), 0, height).astype(np.int64)
        last = np.clip(np.ceil(lower[:, 1]), 0, height).astype(np.int64)
        edges = np.repeat(np.arange(len(polygon)), last - first)
        rows = np.concatenate([np.arange(*span) for span in zip(first, last, strict=True)])
        share = (rows - upper[edges, 1]) / (lower[edges, 1] - upper[edges, 1])
        x = upper[edges, 0] + share * (lower[edges, 0] - upper[edges, 0])
        columns = np.clip(np.ceil(x), 0, width).astype(np.int64)
        np.add.at(crossings, (rows, columns), 1)
    inside: NDArray[np.bool_] = crossings.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


# --- the file ------------------------------------------------------------------------------


def _contours(dataset: Dataset) -> Iterator[tuple[int, Dataset]]:
    """Yield each contour that encloses anything, with the number of its structure."""
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            if contour.get("ContourGeometricType") in _CLOSED:
                yield int(roi.ReferencedROINumber), contour


def _points(contour: Dataset) -> NDArray[np.float64]:
    """Return the points (p, 3) of a contour: x, y, z in mm. Raises UnreadableError."""
    # As it stands in the file: pydicom makes an object of each number, and checks its every letter.
    stored: Any = contour.get_item("ContourData").value if "ContourData" in contour else ()
    if isinstance(stored, bytes):
        stored = stored.decode("ascii").strip("\0 ").split("\\")
    values = () if stored is None else stored
    numbers = np.array(values, np.float64)
    if len(numbers) < 9 or len(numbers) % 3 or not np.isfinite(numbers).all():
        raise UnreadableError("corrupt", "has a contour that is none: not three points or more")
    return numbers.reshape(-1, 3)


def _images_of(item: Dataset) -> set[str]:
    """Return the UIDs of the images that a contour, or a series, says it is of."""
    images = item.get("ContourImageSequence") or ()
    return {str(image.get("ReferencedSOPInstanceUID", "")) for image in images}
