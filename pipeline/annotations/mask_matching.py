"""Which mask is of which slices, and which plane of it is of which slice.

A mask file is found by the image's path, by what BIDS calls the image, by a column of the label
table, or by the UIDs that a DICOM segmentation names. Its planes then belong to slices by UID, by
their place in the patient, or, where nothing says where they lie, in order. What does not fit is
refused, never guessed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.labels import column_of, read_labels
from pipeline.annotations.mask_files import inspect
from pipeline.annotations.mask_paths import Barren, MaskPaths, Sources, bids_masks
from pipeline.annotations.mask_types import MaskFile, tolerance_mm
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.io.decode import read_headers
from pipeline.io.sniff import sniff
from pipeline.shared.bids import MASKS
from pipeline.shared.folders import files_below
from pipeline.shared.paths import collection_file, unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from pipeline.types import Header, Plane
from stores.errors import ConfigError, UnreadableError
from stores.slices import SliceRow

log = logging.getLogger(__name__)

PlaneNumbers = tuple[int | None, ...]  # by slice; None: background
_PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# How far it may lie off in the plane, in pixels, and how far spacings may differ, as a part.
_WITHIN = 0.5
_SPACING = 0.01
# Of DICOM masks so many are opened before a collection is embedded, to see which images they name.
_OPENED_AHEAD = 500
# Of files that are not there so many are looked for by another suffix.
_LOOKED_FOR = 20


@dataclass(frozen=True)
class MaskedSlices:
    """Live slices of one series that share their mask files: numbers (m,) into the slice table.

    sources: the masks' paths under their root; one, or one a structure.
    """

    sources: Sources
    numbers: tuple[int, ...]


def join(config: Config, masks: Masks, slices: pa.Table, names: Names) -> list[MaskedSlices]:
    """Return which slices (SLICE_SCHEMA, real paths) have which mask files, in the table's order.

    A file that a table names, or whose image has another structure's, need not be there. Raises
    ConfigError, LabelError.
    """
    root = masks.root or config.data.root
    match masks.by:
        case "path":
            sources = MaskPaths(masks, root).sources(slices["path"].to_pylist())
        case "bids":
            sources = bids_masks(masks, root, slices["path"].to_pylist())
        case "table":
            sources = _by_table(config, masks, slices, names)
        case "uid":
            sources = _by_uid(config, root, slices, names)
    series = slices["series"].to_pylist()
    withdrawn = slices["withdrawn"].to_pylist()
    groups: dict[tuple[Sources, str], list[int]] = {}
    for number, source in enumerate(sources):
        if not source or withdrawn[number]:
            continue
        # A slice of no series is a group by itself.
        key = (source, series[number] or f"{number}")
        groups.setdefault(key, []).append(number)
    return [MaskedSlices(source, tuple(numbers)) for (source, _), numbers in groups.items()]


def unjoined(config: Config, masks: Masks) -> str:
    """Return why masks are not joined before a collection is embedded; "" where they are."""
    if masks.by != "uid":
        return ""
    n = len(files_below(masks.root or config.data.root))
    if n <= _OPENED_AHEAD:
        return ""
    return f"{n:,} files, too many to be opened now, say themselves which images they are of."


def absent_files(
    config: Config, masks: Masks, slices: pa.Table, groups: Sequence[MaskedSlices]
) -> list[str]:
    """Return the mask files that are looked for and are not there, under their root, each once.

    slices: as `join` has them, which gave groups. Of patterns, those of each image that they are
    of; of a table, those that it names.
    """
    root = masks.root or config.data.root
    sources: dict[str, None] = {}
    if masks.by == "path":
        sources |= dict.fromkeys(MaskPaths(masks, root).named(slices["path"].to_pylist()))
    for group in groups:
        sources |= dict.fromkeys(group.sources)
    return [each for each in sources if each and not (root / unescape_path(each)).exists()]


def why_none(config: Config, masks: Masks, slices: pa.Table) -> str:
    """Return why no slice (SLICE_SCHEMA, real paths) has a mask, and what to do; names no file."""
    root = masks.root or config.data.root
    if not root.is_dir():
        return f"there is no folder {str(root)!r}. Correct its root."
    paths = slices["path"].to_pylist()
    match masks.by:
        case "path":
            barren = MaskPaths(masks, root).barren(paths)
            each = [_of_pattern(pattern, root) for pattern in barren]
            if not each:
                globs = ", ".join(map(repr, masks.files))
                each = [f"masks.files: {globs} matches no image of {len(set(paths))}"]
            return f"{'; '.join(each)}. Correct files, or root, {str(root)!r}."
        case "bids":
            fitting = f" that fits {[*masks.files.values()]}" if masks.files else ""
            return (
                f"no file under {str(root)!r} is a mask ({', '.join(MASKS)}) of an image's subject "
                f"and session{fitting}. Correct root, or say in files which files are masks."
            )
        case "table":
            columns = ", ".join(map(repr, masks.each(masks.column or "")))
            return f"column {columns} of the labels names none. Correct column."
        case "uid":
            return (
                f"no DICOM segmentation or structure set under {str(root)!r} names an image of the "
                "collection. Correct root, or how masks are joined (by)."
            )


def _of_pattern(barren: Barren, root: Path) -> str:
    of_images = f"for none of {count(barren.images, 'image')} of {barren.images_glob!r}"
    suffixes = other_suffixes(root, barren.absent)
    there = f" (there are files of that name in {' and '.join(suffixes)})" if suffixes else ""
    return f"masks.files: {barren.pattern!r} is there {of_images}{there}"


def other_suffixes(root: Path, absent: Sequence[str]) -> list[str]:
    """Return the suffixes that files have which are otherwise called as absent ones are."""
    suffixes: set[str] = set()
    for name in absent[:_LOOKED_FOR]:
        path = root / unescape_path(name)
        stem = f"{path.name.removesuffix('.gz').rpartition('.')[0]}."
        if path.parent.is_dir():
            there = [each.name for each in path.parent.iterdir() if each.name.startswith(stem)]
            suffixes |= {f".{each.removeprefix(stem)}" for each in there}
    return sorted(suffixes)


def _by_table(config: Config, masks: Masks, slices: pa.Table, names: Names) -> list[Sources]:
    """Return the mask files of each slice that the label table names; () where it names none."""
    if config.labels is None:
        raise ConfigError("Masks joined by table need `labels`: the file that has the column.")
    assert masks.column is not None
    columns = masks.each(masks.column)
    table = read_labels(config.labels, [], columns)
    root = config.data.root
    cells = [column_of(table, column, slices, root, names) for column in columns]
    # A table whose paths are below the root of their row names masks below it as well.
    is_below = config.labels.root is not None and masks.root in (None, root)
    sources: list[Sources] = []
    for path, of_slice in zip(slices["path"].to_pylist(), zip(*cells, strict=True), strict=True):
        # A mask of several structures may lack some of them.
        named = of_slice if any(of_slice) else ()
        if is_below:
            named = tuple(config.data.id_of(path, cell) if cell else "" for cell in named)
        sources.append(named)
    return sources


def _by_uid(config: Config, root: Path, slices: pa.Table, names: Names) -> list[Sources]:
    """Return the DICOM segmentation, or structure set, of each slice: of its instance, or series.

    Where data.root has names, a folder of masks has the same.
    """
    by_instance: dict[str, str] = {}
    by_series: dict[str, str] = {}
    for path, file in _segmentations(root):
        for uid in file.instances:
            by_instance[names.pseudonym("instance", config.data.id_of(path, uid))] = path
        for uid in file.series:
            by_series[names.pseudonym("series", config.data.id_of(path, uid))] = path
    sources: list[Sources] = []
    instances = slices["instance"].to_pylist()
    series = slices["series"].to_pylist()
    for instance, name in zip(instances, series, strict=True):
        source = by_instance.get(instance or "")
        if not source:
            # A part of a series that was split bears its name and a number behind a dot.
            scanned, _, _ = (name or "").partition(".")
            source = by_series.get(scanned)
        sources.append((source,) if source else ())
    return sources


def _segmentations(root: Path) -> list[tuple[str, MaskFile]]:
    """Return the DICOM segmentations and structure sets under a folder, in order of their paths."""
    segmentations = []
    for path in files_below(root):
        file = root / unescape_path(path)
        try:
            if sniff(file) == "dicom":
                segmentations.append((path, inspect(file, "axial")))
        except UnreadableError:  # an image, or nothing that is a mask
            continue
    return segmentations


# --- planes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """Which plane each slice has (None: background), and the cut in which the mask is read.

    images: the slices themselves, where the mask is contours that are drawn on them.
    """

    planes: PlaneNumbers
    plane: Plane
    images: tuple[Header, ...] = ()


def match(path: Path, slices: Sequence[SliceRow], config: Config, names: Names) -> Matched:
    """Return the plane of a mask file for each slice (rows of the slice table, one series).

    What identifies an image comes before where it lies, and that before mere order. Raises
    UnreadableError saying what does not fit.
    """
    plane = config.preprocess.plane
    file = inspect(path, plane)
    if file.is_drawn:
        images = headers_of(config.data.root, slices, plane)
        return Matched(tuple(range(len(images))), plane, tuple(images))
    if file.instances:
        numbers = _by_instance(file, slices, config, names)
        if numbers is not None:
            return Matched(numbers, plane)
    if len(slices) == len(file.headers) == 1 and file.headers[0].position_mm is None:
        _check_shape(file.headers[0], slices[0])
        return Matched((0,), plane)
    # From here on the images' own headers are needed: their files are opened.
    images = headers_of(config.data.root, slices, plane)
    if any(header.position_mm is None for header in file.headers):
        return Matched(_in_order(file, slices), plane)
    if any(header.position_mm is None for header in images):
        raise UnreadableError(
            "unsupported", "says where it lies in the patient, its image does not"
        )
    return _in_any_cut(path, file, images, plane)


def _in_any_cut(path: Path, file: MaskFile, images: Sequence[Header], plane: Plane) -> Matched:
    """Return the planes by their place, in the cut of the images or else in another.

    A volume's mask may be stored along another axis than its image. Raises UnreadableError saying
    what does not fit in the cut of the images.
    """
    others = [each for each in _PLANES if each != plane]
    faults = []
    for cut in (plane, *others):
        try:
            cut_file = file if cut == plane else inspect(path, cut)
            return Matched(_by_place(cut_file, images), cut)
        except UnreadableError as error:
            faults.append(error)
    raise faults[0]


def headers_of(root: Path, slices: Sequence[SliceRow], plane: Plane) -> list[Header]:
    """Return the header of each slice, read from its file, each file once.

    Raises UnreadableError for one that is not there, or cannot be read.
    """

    @functools.cache
    def by_frame(path: str) -> dict[int, Header]:
        headers = read_headers(collection_file(root, path), plane)
        return {header.frame: header for header in headers}

    return [by_frame(row.path)[row.frame] for row in slices]


def _by_instance(
    file: MaskFile, slices: Sequence[SliceRow], config: Config, names: Names
) -> PlaneNumbers | None:
    """Return the planes by the images' UIDs; None where UIDs do not tell the slices apart."""
    wanted = {row.instance for row in slices}
    if len(wanted) < len(slices) or None in wanted:
        return None

    # The store knows instances by pseudonym alone.
    def known(uid: str) -> str:
        return names.pseudonym("instance", config.data.id_of(slices[0].path, uid))

    covered = set(map(known, file.instances))
    headers: dict[str | None, Header] = {}
    for header in file.headers:
        if header.instance:
            headers[known(header.instance)] = header
    if not wanted <= covered or len(headers) < len(file.headers):
        return None
    numbers: list[int | None] = []
    for row in slices:
        drawn_on = headers.get(row.instance)
        if drawn_on is None:
            numbers.append(None)
            continue
        _check_shape(drawn_on, row)
        numbers.append(drawn_on.frame)
    return tuple(numbers)


def _in_order(file: MaskFile, slices: Sequence[SliceRow]) -> PlaneNumbers:
    """Return the planes in their order; they must be as many as the slices, of the same sizes."""
    if len(file.headers) != len(slices):
        raise UnreadableError(
            "unsupported", f"has {len(file.headers)} planes, its image {len(slices)} slices"
        )
    for header, row in zip(file.headers, slices, strict=True):
        _check_shape(header, row)
    return tuple(range(len(slices)))


def _by_place(file: MaskFile, images: Sequence[Header]) -> PlaneNumbers:
    """Return the plane that lies where each slice does. Raises UnreadableError.

    Of several volumes in one place, such as time points, none is taken for the mask.
    """
    positions = np.array([header.position_mm for header in file.headers], np.float64)
    tolerance = tolerance_mm(positions)
    times = len(positions) // len(np.unique(positions))
    if times > 1 and not file.sparse:
        raise UnreadableError("unsupported", f"has {times} planes at each place: save one volume")
    numbers: list[int | None] = []
    for image in images:
        assert image.position_mm is not None
        away = np.abs(positions - image.position_mm)
        nearest = int(away.argmin())
        if away[nearest] <= tolerance:
            header = file.headers[nearest]
            _check_sizes((header.height, header.width), (image.height, image.width))
            _check_within(header, image)
            numbers.append(header.frame)
        elif file.sparse:
            numbers.append(None)
        else:
            raise UnreadableError(
                "unsupported",
                f"has no plane at {image.position_mm:.1f} mm, where its image has a slice; its "
                f"planes lie from {positions.min():.1f} to {positions.max():.1f} mm: save it with "
                "a plane for every slice, empty where nothing is drawn",
            )
    return tuple(numbers)


# --- what must fit -----------------------------------------------------------------------------


def _check_within(header: Header, image: Header) -> None:
    """Raise UnreadableError where a plane and its slice differ in spacing or lie apart."""
    if header.spacing_mm is None or image.spacing_mm is None:
        return
    mask_spacing = np.array(header.spacing_mm)
    image_spacing = np.array(image.spacing_mm)
    difference = np.abs(mask_spacing - image_spacing)
    if (difference > _SPACING * image_spacing).any():
        raise UnreadableError(
            "unsupported",
            f"has pixels of {mask_spacing.tolist()} mm, its image of {image_spacing.tolist()} mm",
        )
    if header.offset_mm is None or image.offset_mm is None:
        return
    shift = np.abs(np.array(header.offset_mm) - image.offset_mm)
    if (shift > _WITHIN * image_spacing).any():
        raise UnreadableError(
            "unsupported",
            f"lies {shift[0]:.1f} mm down and {shift[1]:.1f} mm across from its image: save it "
            "with the affine of the image",
        )


def _check_shape(header: Header, row: SliceRow) -> None:
    _check_sizes((header.height, header.width), (row.height, row.width))


def _check_sizes(mask: tuple[int, int], image: tuple[int, int]) -> None:
    if mask != image:
        raise UnreadableError(
            "unsupported",
            f"is {mask[0]} x {mask[1]} pixels, its image {image[0]} x {image[1]}: save "
            "it at the size of its image",
        )
