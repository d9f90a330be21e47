"""Where regions come from: structures of masks, or boxes of a table; what each covers of a slice.

Dims: n slices, h, w patch grid, H, W pixels.
"""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.boxes import BoxRow, read_boxes
from pipeline.annotations.label_join import matched
from pipeline.annotations.mask_matching import headers_of
from pipeline.config.regions import Boxes, RegionChoice
from pipeline.config.root import Config
from pipeline.io.formats.reorientation import shown_axes
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.coverage import coverage
from pipeline.segmentation.masks import StoredMasks, update_masks
from pipeline.segmentation.placement import placement_of
from pipeline.shared.pseudonyms import Names
from stores._disk import sha256
from stores.errors import LabelError, UnreadableError
from stores.features import FeatureStore
from stores.slices import SliceRow, is_withdrawn, slice_rows, where

Grid = tuple[int, int]
# Rows and columns (top, bottom, left, right) of a slice, the ends behind the last.
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Covered:
    """What a region has of one slice: shares (h * w,) of its patches, pixels, those shown.

    box: the number of its box, None of a mask's structure.
    """

    structure: str
    box: int | None
    shares: NDArray[np.float32]
    pixels: int
    seen: int


class RegionSource(Protocol):
    """Some regions of a store. rows (n,) ascending: the slices that may show any.

    digests (n,): of all that says what is covered of each slice; faults: what cannot be used, a
    sentence each.
    """

    @property
    def rows(self) -> Rows:
        """The slices that may show regions."""

    @property
    def digests(self) -> list[str]:
        """What tells whether a slice's regions are as they were."""

    @property
    def structures(self) -> tuple[str, ...]:
        """What regions are of, by name."""

    @property
    def faults(self) -> list[str]:
        """What cannot be used."""

    @property
    def cut(self) -> list[int]:
        """Of boxes the data rows of those that end outside of their image or volume."""

    def covered(self, row: int, grid: Grid) -> Iterator[Covered]:
        """Yield what each region has of a slice."""

    def rectangle(self, row: int, structure: str, box: int | None) -> Rectangle:
        """Return the rectangle round what a region has of a slice, in its pixels."""


def region_source(
    config: Config,
    store: FeatureStore,
    choice: RegionChoice,
    progress: Callable[[int, int], None] | None = None,
) -> RegionSource:
    """Return the regions that a task chooses from, as they are now. Raises LabelError for none."""
    if choice.masks is not None:
        return MaskRegions(update_masks(config, store, config.masks[choice.masks], progress))
    assert choice.boxes is not None
    return BoxRegions.of(config, store, config.boxes[choice.boxes])


@dataclass(frozen=True)
class MaskRegions:
    """The structures of masks."""

    masks: StoredMasks

    @property
    def rows(self) -> Rows:
        """The slices that have a mask."""
        return self.masks.rows

    @property
    def digests(self) -> list[str]:
        """Of labels, and of their way to the network's input."""
        return self.masks.digests

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the label values, without the background."""
        return self.masks.classes[1:]

    @property
    def faults(self) -> list[str]:
        """The mask files that cannot be used, and why."""
        return [f"{mask.source} {mask.detail}" for mask in self.masks.unusable]

    @property
    def cut(self) -> list[int]:
        """None: a mask has the size of its image."""
        return []

    def covered(self, row: int, grid: Grid) -> Iterator[Covered]:
        """Yield what each structure that is there covers of a slice."""
        labels, shows = self.masks.labels(row), self.masks.shown(row)
        shares, pixels, seen = coverage(labels, shows, grid, len(self.masks.classes))
        for number in (np.flatnonzero(pixels[1:]) + 1).tolist():
            name = self.masks.classes[number]
            yield Covered(name, None, shares[number], int(pixels[number]), int(seen[number]))

    def rectangle(self, row: int, structure: str, box: int | None) -> Rectangle:
        """Return the rectangle round a structure in a slice."""
        is_there = self.masks.labels(row) == self.masks.classes.index(structure)
        y = np.flatnonzero(is_there.any(axis=1))
        x = np.flatnonzero(is_there.any(axis=0))
        return int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1


@dataclass(frozen=True)
class _InSlice:
    """A box in one slice: its row of the table, and the pixels whose middles are in it."""

    structure: str
    number: int
    rectangle: Rectangle


@dataclass(frozen=True)
class BoxRegions:
    """The boxes of a table: of each slice those that it goes through."""

    config: Config
    slices: dict[int, SliceRow]
    boxes: dict[int, list[_InSlice]]
    structures: tuple[str, ...]
    faults: list[str]
    cut: list[int]

    @classmethod
    def of(cls, config: Config, store: FeatureStore, settings: Boxes) -> BoxRegions:
        """Join the boxes of a table to a store's slices. Raises LabelError where none joins."""
        table = store.slices()
        names = Names(store.path, config.data.paths)
        live = names.revealed(where(table, pa.array(~is_withdrawn(table))))
        return cls.in_slices(config, live, settings)

    @classmethod
    def in_slices(cls, config: Config, slices: pa.Table, settings: Boxes) -> BoxRegions:
        """Join the boxes of a table to slices (SLICE_SCHEMA, real paths)."""
        table = read_boxes(settings)
        faults = list(table.faults)
        number_of = {key: i for i, key in enumerate(dict.fromkeys(b.key for b in table.boxes))}
        number = matched(slices["path"].to_numpy(zero_copy_only=False), number_of, climb=True)
        rows = slice_rows(slices)
        of_key: dict[str, list[SliceRow]] = {
            key: [rows[place] for place in np.flatnonzero(number == i).tolist()]
            for key, i in number_of.items()
        }
        boxes: defaultdict[int, list[_InSlice]] = defaultdict(list)
        cut = []
        for box in table.boxes:
            try:
                placed = _placed(box, of_key[box.key], settings, config)
            except ValueError as error:
                faults.append(f"data row {box.number}: {error}")
                continue
            if placed.is_cut:
                cut.append(box.number)
            for row, rectangle in placed.rectangles:
                boxes[row.row].append(_InSlice(box.structure, box.number, rectangle))
        if not boxes:
            raise LabelError(
                f"No box of {str(settings.file)!r} lies in a slice of the store. The first of "
                f"{len(faults)}: {faults[0] if faults else 'the table is empty'}."
            )
        known = {row.row: row for row in rows}
        return cls(config, known, dict(sorted(boxes.items())), table.structures, faults, cut)

    @functools.cached_property
    def rows(self) -> Rows:
        """The slices that a box goes through."""
        return np.array(list(self.boxes), np.int64)

    @functools.cached_property
    def digests(self) -> list[str]:
        """Of the boxes of each slice, and of its size."""
        digests = []
        for row, boxes in self.boxes.items():
            size = (self.slices[row].height, self.slices[row].width)
            each = [(box.structure, box.number, box.rectangle) for box in boxes]
            digests.append(sha256(json.dumps([size, each]).encode()))
        return digests

    def covered(self, row: int, grid: Grid) -> Iterator[Covered]:
        """Yield what each box covers of a slice; nothing where its image cannot be looked at."""
        of_slice = self.slices[row]
        try:
            placement = placement_of(of_slice, self.config.data.root, self.config.preprocess)
        except UnreadableError:
            return
        for box in self.boxes[row]:
            labels = np.zeros((of_slice.height, of_slice.width), np.uint8)
            top, bottom, left, right = box.rectangle
            labels[top:bottom, left:right] = 1
            shares, pixels, seen = coverage(labels, placement.shows, grid, 2)
            yield Covered(box.structure, box.number, shares[1], int(pixels[1]), int(seen[1]))

    def rectangle(self, row: int, structure: str, box: int | None) -> Rectangle:
        """Return what a box has of a slice."""
        (found,) = (each for each in self.boxes[row] if each.number == box)
        return found.rectangle


class _Axis(NamedTuple):
    """Where the middle of the first pixel along an axis lies, and of each one behind it."""

    first: float
    step: float

    def within(self, ends: tuple[float, float]) -> tuple[int, int]:
        """Return the first pixel whose middle is within ends, and the one behind; any there are."""
        # Rounded, so that ends that are meant to lie on a middle do.
        first, behind = (math.ceil(round((end - self.first) / self.step, 6)) for end in ends)
        return first, behind


class _Place(NamedTuple):
    """Where a slice lies, in the unit of boxes: its middle, and its pixels' across and down."""

    z: float
    x: _Axis
    y: _Axis


class _Placed(NamedTuple):
    """The slices that a box goes through, and which pixels of each have their middle in it.

    is_cut: whether it goes on outside of its image or volume.
    """

    rectangles: list[tuple[SliceRow, Rectangle]]
    is_cut: bool


def _placed(box: BoxRow, slices: list[SliceRow], settings: Boxes, config: Config) -> _Placed:
    """Place a box in the slices (n,) of its image or volume. Raises ValueError where it is in none.

    slices: in their order.
    """
    if not slices:
        raise ValueError("its image is not in the store")
    if len({row.series or row.path for row in slices}) > 1:
        raise ValueError("what it names has several series: name one")
    if box.z is None and len(slices) > 1:
        raise ValueError(f"its volume has {len(slices)} slices, and it says no z0 and z1")
    if settings.unit in ("LPS", "RAS"):
        box, places = _in_patient(box, slices, settings.unit, config)
    else:
        places = _in_volume(slices, in_mm=settings.unit == "mm")
    rectangles = []
    is_cut = box.z is not None and _goes_on(box.z, [place.z for place in places])
    for row, place in zip(slices, places, strict=True):
        if box.z is not None and not box.z[0] <= place.z < box.z[1]:
            continue
        left, right = place.x.within(box.x)
        top, bottom = place.y.within(box.y)
        is_cut = is_cut or min(left, top) < 0 or right > row.width or bottom > row.height
        left, right, top, bottom = (
            max(left, 0),
            min(right, row.width),
            max(top, 0),
            min(bottom, row.height),
        )
        if left < right and top < bottom:
            rectangles.append((row, (top, bottom, left, right)))
    if not rectangles:
        size = f"{slices[0].width} x {slices[0].height} pixels"
        volume = f" in {len(slices)} slices" if len(slices) > 1 else ""
        raise ValueError(
            f"no pixel has its middle in it, by x {box.x[0]:g} to {box.x[1]:g} and y "
            f"{box.y[0]:g} to {box.y[1]:g}"
            + (f" and z {box.z[0]:g} to {box.z[1]:g}" if box.z else "")
            + f" in {settings.unit}, of an image of {size}{volume}; `unit` says what a box is in"
        )
    return _Placed(rectangles, is_cut)


def _goes_on(ends: tuple[float, float], middles: list[float]) -> bool:
    """Return whether a box goes on beyond the slices with these middles, by a slice or more."""
    if len(middles) == 1:
        return False
    apart = float(np.median(np.abs(np.diff(middles))))
    first, behind = _Axis(min(middles), apart).within(ends)
    return first < 0 or behind > len(middles)


def _in_volume(slices: list[SliceRow], *, in_mm: bool) -> list[_Place]:
    """Return where slices lie, in voxels or mm from the outside of the first voxel.

    Raises ValueError where they do not say.
    """
    if not in_mm:
        return [_Place(z + 0.5, _Axis(0.5, 1.0), _Axis(0.5, 1.0)) for z in range(len(slices))]
    places = []
    for row, z in zip(slices, _depths(slices), strict=True):
        if not (row.spacing_x_mm and row.spacing_y_mm):
            raise ValueError("it is in mm, and its image names no spacing")
        across = _Axis(row.spacing_x_mm / 2, row.spacing_x_mm)
        places.append(_Place(z, across, _Axis(row.spacing_y_mm / 2, row.spacing_y_mm)))
    return places


def _depths(slices: list[SliceRow]) -> list[float]:
    """Return where the middle of each slice lies, in mm from the outside of the first."""
    positions = [row.position_mm for row in slices]
    if len(slices) == 1:
        return [0.0]
    if any(position is None for position in positions):
        raise ValueError("it is in mm, and slices of its volume name no place")
    places = np.array(positions, np.float64)
    apart = float(np.median(np.abs(np.diff(places))))
    return [float(away) + apart / 2 for away in np.abs(places - places[0])]


def _in_patient(
    box: BoxRow, slices: list[SliceRow], unit: str, config: Config
) -> tuple[BoxRow, list[_Place]]:
    """Return a box along the axes of its slices, and where these lie, by their files' headers.

    Raises ValueError where files do not say where slices lie, or these lie askew.
    """
    if box.z is None:
        raise ValueError("it is in coordinates of the patient, and says no z0 and z1")
    plane = config.preprocess.plane
    try:
        headers = headers_of(config.data.root, slices, plane)
    except UnreadableError as error:
        raise ValueError(f"its image cannot be read: {error.detail}") from None
    axes = shown_axes(headers[0], plane)
    places = []
    for header in headers:
        own = shown_axes(header, plane)
        if axes is None or own is None or not (own == axes).all():
            raise ValueError("its volume does not say how it lies, or lies askew in the patient")
        if header.position_mm is None or header.offset_mm is None or header.spacing_mm is None:
            raise ValueError("its image does not say where it lies in the patient")
        y, x = map(_Axis, header.offset_mm, header.spacing_mm)
        places.append(_Place(round(header.position_mm, 4), x, y))
    assert axes is not None
    ends = np.array([box.x, box.y, box.z])
    if unit == "RAS":
        ends[:2] = -ends[:2]
    across, down, along = ((min(own), max(own)) for own in (axes @ ends).tolist())
    return replace(box, x=across, y=down, z=along), places
