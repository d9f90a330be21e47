"""Which mask is of which slices, and which plane of it is of which slice.

A mask file is found by the image's path, by a column of the label table, or by the UIDs that a
DICOM segmentation names. Its planes then belong to slices by UID, by their place in the patient,
or, where nothing says where they lie, in order. What does not fit is told, never guessed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.annotations.labels import column_of, read_labels
from pipeline.annotations.mask_files import MaskFile, inspect
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.io.decode import read_headers
from pipeline.io.sniff import sniff
from pipeline.shared.paths import matcher, unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.types import Header, Plane
from stores.errors import ConfigError, UnreadableError

# How far a plane may lie from its slice: along the normal as a part of the distance of planes, in
# the plane in pixels; and how far spacings may differ.
_ALONG, _WITHIN, _SPACING = 0.1, 0.5, 0.01
_EXACT_MM = 0.1
_PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Slices:
    """Live slices of one series that share their mask files: numbers (m,) into the slice table.

    sources: the masks' paths under their root; one, or one a structure.
    """

    sources: tuple[str, ...]
    numbers: tuple[int, ...]


def join(config: Config, masks: Masks, slices: pa.Table, names: Names) -> list[Slices]:
    """Return which slices (SLICE_SCHEMA, real paths) have which mask files, in the table's order.

    A file that a table names, or whose image has another structure's, need not be there. Raises
    ConfigError, LabelError.
    """
    root = masks.root or config.data.root
    match masks.by:
        case "path":
            sources = _by_path(masks, root, slices)
        case "table":
            sources = _by_table(config, masks, slices, names)
        case "uid":
            sources = [(path,) if path else () for path in _by_uid(root, slices, names)]
    groups: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for number, (source, series, gone) in enumerate(
        zip(sources, *(slices[name].to_pylist() for name in ("series", "withdrawn")), strict=True)
    ):
        if source and not gone:
            groups.setdefault((source, series or f"{number}"), []).append(number)
    return [Slices(source, tuple(numbers)) for (source, _), numbers in groups.items()]


def _by_path(masks: Masks, root: Path, slices: pa.Table) -> list[tuple[str, ...]]:
    rules = [(matcher([glob]), masks.each(named)) for glob, named in masks.files.items()]
    known: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(slices["path"].to_pylist()):
        image = PurePosixPath(path)
        folder = "" if str(image.parent) == "." else str(image.parent)
        stem = image.name.removesuffix(".gz")
        stem = stem.rpartition(".")[0] or stem
        parts = {"path": path, "folder": folder, "name": image.name, "stem": stem}
        found = next((patterns for fits, patterns in rules if fits(path)), ())
        try:
            named = tuple(pattern.format(**parts) for pattern in found)
        except (KeyError, IndexError, ValueError):
            raise ConfigError(
                f"masks.files: {found!r} must name a path by {{path}}, {{folder}}, {{name}} or "
                "{stem}."
            ) from None
        there = any((root / unescape_path(each)).exists() for each in named)
        known[path] = named if there else ()
    return [known[path] for path in slices["path"].to_pylist()]


def _by_table(
    config: Config, masks: Masks, slices: pa.Table, names: Names
) -> list[tuple[str, ...]]:
    if config.labels is None:
        raise ConfigError("Masks joined by table need `labels`: the file that has the column.")
    assert masks.column is not None
    columns = masks.each(masks.column)
    table = read_labels(config.labels, [], columns)
    cells = [column_of(table, each, slices, config.data.root, names) for each in columns]
    return [named if any(named) else () for named in zip(*cells, strict=True)]


def _by_uid(root: Path, slices: pa.Table, names: Names) -> list[str]:
    instances: dict[str, str] = {}
    series: dict[str, str] = {}
    for path, file in _segmentations(root):
        instances |= {names.pseudonym("instance", each): path for each in file.instances}
        series |= {names.pseudonym("series", each): path for each in file.series}
    return [
        instances.get(instance or "") or series.get((of or "").partition(".")[0], "")
        for instance, of in zip(
            *(slices[name].to_pylist() for name in ("instance", "series")), strict=True
        )
    ]


def _segmentations(root: Path) -> list[tuple[str, MaskFile]]:
    """Return the DICOM segmentations under a folder, in the order of their paths."""
    found = []
    for folder, _, files in sorted(os.walk(root)):
        for file in sorted(files):
            path = Path(folder) / file
            try:
                if sniff(path) == "dicom":
                    found.append((path.relative_to(root).as_posix(), inspect(path, "axial")))
            except UnreadableError:  # an image, or nothing that is a mask
                continue
    return found


# --- planes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """Which plane each slice has (None: background), and the cut in which the mask is read."""

    planes: tuple[int | None, ...]
    plane: Plane


def match(path: Path, slices: Sequence[dict[str, object]], config: Config, names: Names) -> Matched:
    """Return the plane of a mask file for each slice (rows of the slice table, one series).

    Raises UnreadableError saying what does not fit.
    """
    own = config.preprocess.plane
    file = inspect(path, own)
    if file.instances:
        found = _by_instance(file, slices, names)
        if found is not None:
            return Matched(found, own)
    first = slices[0]
    if len(slices) == len(file.headers) == 1 and file.headers[0].position_mm is None:
        _check_shape(file.headers[0], first)
        return Matched((0,), own)
    images = _headers(config.data.root, slices, own)
    if any(header.position_mm is None for header in file.headers):
        return Matched(_in_order(file, slices), own)
    if any(header.position_mm is None for header in images):
        raise UnreadableError(
            "unsupported", "says where it lies in the patient, its image does not"
        )
    faults = []
    for plane in (own, *(each for each in _PLANES if each != own)):
        try:
            other = file if plane == own else inspect(path, plane)
            return Matched(_by_place(other, images), plane)
        except UnreadableError as error:
            faults.append(error)
    raise faults[0]


def _headers(root: Path, slices: Sequence[dict[str, object]], plane: Plane) -> list[Header]:
    @functools.cache
    def of_file(path: str) -> dict[int, Header]:
        return {each.frame: each for each in read_headers(root / unescape_path(path), plane)}

    return [of_file(str(each["path"]))[int(str(each["frame"]))] for each in slices]


def _by_instance(
    file: MaskFile, slices: Sequence[dict[str, object]], names: Names
) -> tuple[int | None, ...] | None:
    """Return the planes by the images' UIDs; None where UIDs do not tell the slices apart."""
    own = {each["instance"] for each in slices}
    if len(own) < len(slices) or None in own:
        return None
    known = {names.pseudonym("instance", h.instance): h for h in file.headers if h.instance}
    covered = {names.pseudonym("instance", each) for each in file.instances}
    if not own <= covered or len(known) < len(file.headers):
        return None
    found: list[int | None] = []
    for each in slices:
        header = known.get(str(each["instance"]))
        if header is not None:
            _check_shape(header, each)
        found.append(None if header is None else header.frame)
    return tuple(found)


def _in_order(file: MaskFile, slices: Sequence[dict[str, object]]) -> tuple[int | None, ...]:
    if len(file.headers) != len(slices):
        raise UnreadableError(
            "unsupported", f"has {len(file.headers)} planes, its image {len(slices)} slices"
        )
    for header, each in zip(file.headers, slices, strict=True):
        _check_shape(header, each)
    return tuple(range(len(slices)))


def _by_place(file: MaskFile, images: Sequence[Header]) -> tuple[int | None, ...]:
    """Return the plane that lies where each slice does."""
    at = np.array([header.position_mm for header in file.headers], np.float64)
    order = np.unique(at)
    apart = float(np.diff(order).min()) if len(order) > 1 else 0.0
    found: list[int | None] = []
    for image in images:
        assert image.position_mm is not None
        nearest = int(np.abs(at - image.position_mm).argmin())
        header = file.headers[nearest]
        if abs(at[nearest] - image.position_mm) > max(_EXACT_MM, _ALONG * apart):
            if not file.sparse:
                raise UnreadableError(
                    "unsupported",
                    f"has no plane at {image.position_mm:.1f} mm, where its image has a slice; its "
                    f"planes lie from {at.min():.1f} to {at.max():.1f} mm",
                )
            found.append(None)
            continue
        _check_sizes((header.height, header.width), (image.height, image.width))
        _check_within(header, image)
        found.append(header.frame)
    return tuple(found)


def _check_within(header: Header, image: Header) -> None:
    """Raise UnreadableError where a plane and its slice differ in spacing or lie apart."""
    if header.spacing_mm is None or image.spacing_mm is None:
        return
    one, two = np.array(header.spacing_mm), np.array(image.spacing_mm)
    if (np.abs(one - two) > _SPACING * two).any():
        raise UnreadableError(
            "unsupported", f"has pixels of {one.tolist()} mm, its image of {two.tolist()} mm"
        )
    if header.offset_mm is None or image.offset_mm is None:
        return
    shift = np.abs(np.array(header.offset_mm) - image.offset_mm)
    if (shift > _WITHIN * two).any():
        raise UnreadableError(
            "unsupported",
            f"lies {shift[0]:.1f} mm down and {shift[1]:.1f} mm across from its image: save it "
            "with the affine of the image",
        )


def _check_shape(header: Header, row: dict[str, object]) -> None:
    _check_sizes((header.height, header.width), (int(str(row["height"])), int(str(row["width"]))))


def _check_sizes(mask: tuple[int, int], image: tuple[int, int]) -> None:
    if mask != image:
        raise UnreadableError(
            "unsupported",
            f"is {mask[0]} x {mask[1]} pixels, its image {image[0]} x {image[1]}",
        )
