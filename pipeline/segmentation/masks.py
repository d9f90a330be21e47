"""The masks of a store's slices, kept in the store's folder: read once, checked on every use.

<store>/masks/<16 hex>.parquet    a row a slice that a mask file was found for: which file it was,
                                  what the input shows of the slice, where its labels lie, or why
                                  they cannot be used
<store>/masks/<16 hex>.pack       label values, each slice's a zlib stream, which has its checksum

The table is named by the settings it depends on (the block `masks`, the geometry of the images). A
mask file that changed, and only that, is read again. Label values are indices into `Masks.classes`.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.annotations.mask_files import inspect, planes
from pipeline.annotations.mask_matching import MaskedSlices, Matched, join, match, why_none
from pipeline.annotations.mask_types import MaskFile
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.io.detached import ImageStat
from pipeline.io.formats.limits import MAX_SLICE_PIXELS
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.geometry import Labels, Placement, Shown, to_input
from pipeline.segmentation.placement import placement_of
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores._disk import CHECKSUM, files_in, sha256, write_checked
from stores.errors import CorruptStoreError, LabelError, UnreadableError
from stores.features import FeatureStore
from stores.filed_tables import read_filed_table
from stores.slices import SliceRow, is_withdrawn, slice_rows, where

log = logging.getLogger(__name__)

# Goes up when the same files give other labels.
CONTRACT = 1
_PACK_BYTES = 2**26
# Structures of a file that a message names.
_MOST_NAMES = 8
# What a pack is called.
_PACK = re.compile(r"[0-9a-f]{16}")
# Of the columns below, those that say what the network's input shows of a slice.
_SHOWN = {name: f"shown_{name}" for name in Shown._fields}
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        # of the mask's files, under masks.root; hidden as the images' paths are
        ("source", pa.list_(pa.string())),
        ("size", pa.list_(pa.int64())),
        ("mtime_ns", pa.list_(pa.int64())),
        ("reason", pa.string()),  # null where the labels can be used
        ("detail", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        *((column, pa.int32()) for column in _SHOWN.values()),
        ("pack", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("classes", pa.list_(pa.uint8())),  # values there are
        ("sha256", pa.string()),  # of the label values
    ]
)
MaskRow = dict[str, Any]  # of the table
Filing = AbstractContextManager[None]
Sources = tuple[str, ...]  # a mask's files, as the store shows their paths


# --- what is stored ------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnusableMask:
    """A mask file that cannot be used, by its shown path, and how many slices it was of."""

    source: str
    reason: str
    detail: str
    slices: int


class StoredMasks:
    """The masks of a store's slices, as `update_masks` leaves them.

    rows (n,) ascending: the slices that have a mask. classes: names by label value.
    """

    def __init__(self, folder: Path, table: pa.Table, masks: Masks) -> None:
        usable = table.filter(pa.compute.is_null(table["reason"])).sort_by("row")
        self.classes = masks.classes
        self.rows: Rows = usable["row"].to_numpy()
        self._folder = folder
        self._table = table
        self._usable = usable
        self._packs: dict[str, NDArray[np.uint8]] = {}

    @functools.cached_property
    def unusable(self) -> list[UnusableMask]:
        """The mask files that cannot be used."""
        has_reason = pa.compute.is_valid(self._table["reason"])
        counts: Counter[tuple[str, str, str]] = Counter()
        for row in self._table.filter(has_reason).to_pylist():
            source = ", ".join(row["source"])
            counts[source, row["reason"], row["detail"]] += 1
        unusable = []
        for (source, reason, detail), slices in counts.items():
            unusable.append(UnusableMask(source, reason, detail, slices))
        return unusable

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of all labels and of the way they go through the images' geometry."""
        columns = [*_SHOWN.values(), "row", "height", "width", "sha256"]
        values = [self._usable[name].to_pylist() for name in columns]
        return sha256(json.dumps([self.classes, *values]).encode())

    @functools.cached_property
    def digests(self) -> list[str]:
        """The sha256 of each slice's labels (n,) and of the way they go to the network's input."""
        columns = [*_SHOWN.values(), "height", "width", "sha256"]
        values = zip(*(self._usable[name].to_pylist() for name in columns), strict=True)
        return [sha256(json.dumps([self.classes, *of_slice]).encode()) for of_slice in values]

    def labels(self, row: int) -> Labels:
        """Return the label values (H, W) of a slice. Raises KeyError, CorruptStoreError."""
        place = self._place(row)
        shape = self._shape(place)
        try:
            data = inflate(self._stream(place).tobytes(), math.prod(shape))
            labels = np.frombuffer(data, np.uint8).reshape(shape)
            if labels.max(initial=0) >= len(self.classes):
                raise ValueError("it holds a value of no class")
            return labels
        except ValueError as error:
            raise CorruptStoreError(
                f"The mask of row {row} in {self._folder} is damaged ({error}). Delete that "
                "folder: the next run reads the mask files again."
            ) from None

    def at_input(self, row: int, size: int) -> Labels:
        """Return the label values (size, size) as the network's input shows the slice."""
        return to_input(self.labels(row), self.shown(row), size)

    def shown(self, row: int) -> Shown:
        """Return what the network's input shows of a slice."""
        place = self._place(row)
        return Shown(**{name: self._value(column, place) for name, column in _SHOWN.items()})

    def placement(self, row: int) -> Placement:
        """Return where the network's input lies in a slice."""
        return Placement(self._shape(self._place(row)), self.shown(row))

    def present(self, rows: Rows) -> NDArray[np.bool_]:
        """Return (n, c): which label values each slice holds."""
        places = pa.array([self._place(int(row)) for row in rows])
        values_of = self._usable["classes"].take(places).to_pylist()
        present = np.zeros((len(rows), 2**8), bool)
        for i, values in enumerate(values_of):
            present[i, values] = True
        return present[:, : len(self.classes)]

    def _place(self, row: int) -> int:
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            raise KeyError(f"Row {row} has no mask.")
        return place

    def _shape(self, place: int) -> tuple[int, int]:
        return self._value("height", place), self._value("width", place)

    def _value(self, column: str, place: int) -> Any:
        return self._usable[column][place].as_py()

    def _stream(self, place: int) -> NDArray[np.uint8]:
        """Return the compressed bytes of a slice's labels."""
        pack = self._value("pack", place)
        offset = self._value("offset", place)
        length = self._value("length", place)
        if pack not in self._packs:
            path = self._folder / f"{pack}.pack"
            self._packs[pack] = np.memmap(path, np.uint8, "r")
        data = self._packs[pack]
        return data[offset : offset + length]


def inflate(stream: bytes, size: int) -> bytes:
    """Return the bytes of a zlib stream, which must be so many. Raises ValueError.

    No more than that comes into memory, whatever the stream holds.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    # The stream ends with its checksum, which is compared where it is reached.
    if len(data) != size or not inflater.eof:
        raise ValueError(f"it does not hold {size} bytes")
    return data


# --- bringing it up to date ----------------------------------------------------------------------


def update_masks(
    config: Config,
    store: FeatureStore,
    masks: Masks,
    progress: Callable[[int, int], None] | None = None,
) -> StoredMasks:
    """Bring some masks of a config, kept in its store, up to their files, and return them.

    Of withdrawn slices none is kept. progress: called with how many mask files were looked at, of
    how many. Raises LabelError where no slice has a mask, ConfigError, and StaleTablesError where a
    patient was withdrawn meanwhile.
    """
    names = Names(store.path, config.data.paths)
    filing = functools.partial(store.filing, store.withdrawn)  # before anything else is read
    table = store.slices()
    slices = names.revealed(where(table, pa.array(~is_withdrawn(table))))
    groups = join(config, masks, slices, names)
    if not groups:
        why = why_none(config, masks, slices)
        raise LabelError(f"No slice of {str(store.path)!r} has a mask: {why}")
    folder = store.path / "masks"
    kept = _MaskTable(folder, f"{_settings_digest(config, masks)[:16]}.parquet", filing)
    reader = MaskReader(config, masks, names)
    for i, group in enumerate(groups):
        rows = slice_rows(slices.take(pa.array(group.numbers)))
        _update(kept, reader, names, group, rows)
        if progress:
            progress(i + 1, len(groups))
    stored = StoredMasks(folder, kept.finish(), masks)
    if not len(stored.rows):
        first = stored.unusable[0]
        raise LabelError(
            f"None of the {len(stored.unusable)} masks can be used. The first, {first.source!r}: "
            f"{first.detail}."
        )
    return stored


def _update(
    table: _MaskTable,
    reader: MaskReader,
    names: Names,
    group: MaskedSlices,
    slices: list[SliceRow],
) -> None:
    """Keep what is stored of the mask of some slices of one series, or read it."""
    paths = reader.paths(group)
    shown_paths = tuple(names.shown(source) if source else "" for source in group.sources)
    # As the files are before they are read: one that changes meanwhile is read again next time.
    mark = _MaskMark.of(shown_paths, paths)
    numbers = [row.row for row in slices]
    if table.keep(mark, numbers):
        return
    try:
        # All slices of the group before the first is stored: a mask that turns out to be unusable
        # at its last plane must not leave labels of the others.
        masks = [(labels, reader.shown(row)) for row, labels in reader.read(paths, slices)]
    except UnreadableError as error:
        table.add_unusable(mark, numbers, error)
        return
    for number, (labels, shows) in zip(numbers, masks, strict=True):
        table.add(mark, number, labels, shows)


def _settings_digest(config: Config, masks: Masks) -> str:
    """Return the sha256 of all but the files that the labels depend on."""
    settings = {
        "contract": CONTRACT,
        "masks": masks.model_dump(mode="json", exclude={"root", "tolerance"}),
        "classes": masks.classes,  # labels are kept by their order, which sorted keys lose
        "geometry": config.preprocess.model_dump(mode="json", include={"plane", "aspect", "crop"}),
    }
    return sha256(json.dumps(settings, sort_keys=True).encode())


# --- the table and its packs ---------------------------------------------------------------------


@dataclass(frozen=True)
class _MaskMark:
    """The files of a mask, and their sizes and times, by which a change is seen; None: no file."""

    sources: Sources
    size: list[int | None]
    mtime_ns: list[int | None]

    @classmethod
    def of(cls, sources: Sources, paths: Sequence[Path]) -> _MaskMark:
        """Return the mark of files as they are now."""
        sizes: list[int | None] = []
        times: list[int | None] = []
        for path in paths:
            stat = ImageStat.of(path) if path.is_file() else None
            sizes.append(stat.size if stat else None)
            times.append(stat.mtime_ns if stat else None)
        return cls(sources, sizes, times)

    def row(self, number: int, **values: Any) -> MaskRow:
        """Return a row of the table: a slice's number, this mark, and the given values."""
        row = dict.fromkeys(_SCHEMA.names) | values
        row["row"] = number
        row["source"] = list(self.sources)
        row["size"] = self.size
        row["mtime_ns"] = self.mtime_ns
        return row

    def fits(self, row: MaskRow) -> bool:
        """Return whether a row was made of the files as they are now."""
        return bool(row["size"] == self.size and row["mtime_ns"] == self.mtime_ns)


class _MaskTable:
    """The table of a store's masks while it is brought up to date, and the pack being filled.

    filing: within which it is written; a purge waits for that, and finds what was.
    """

    def __init__(self, folder: Path, name: str, filing: Callable[[], Filing]) -> None:
        self._folder = folder
        self._filing = filing
        self._index = folder / name
        self._before = _read_index(self._index, folder)
        self._rows: list[MaskRow] = []
        self._pack = bytearray()
        self._pack_rows: list[MaskRow] = []
        self._changed = False

    def keep(self, mark: _MaskMark, numbers: Sequence[int]) -> bool:
        """Take over what is stored of some slices; return False where it must be read."""
        wanted = set(numbers)
        stored = [row for row in self._before.get(mark.sources, ()) if row["row"] in wanted]
        if len(stored) == len(numbers) and all(mark.fits(row) for row in stored):
            self._rows += stored
            return True
        self._changed = True
        return False

    def add_unusable(self, mark: _MaskMark, numbers: Sequence[int], error: UnreadableError) -> None:
        """Note why the mask of some slices cannot be used."""
        for number in numbers:
            self._rows.append(mark.row(number, reason=error.reason, detail=error.detail))

    def add(self, mark: _MaskMark, number: int, labels: Labels, shows: Shown) -> None:
        """Put the labels (H, W) of a slice into the pack."""
        data = np.ascontiguousarray(labels).tobytes()
        stream = zlib.compress(data, 1)
        height, width = labels.shape
        row = mark.row(
            number,
            height=height,
            width=width,
            offset=len(self._pack),
            length=len(stream),
            classes=np.unique(labels).tolist(),
            sha256=sha256(data),
        )
        for name, value in shows._asdict().items():
            row[_SHOWN[name]] = value
        self._pack += stream
        self._pack_rows.append(row)
        if len(self._pack) >= _PACK_BYTES:
            with self._filing():
                self._write()

    def finish(self) -> pa.Table:
        """Return the table, on the disk as well; packs that no table names are removed."""
        if self._changed or len(self._rows) != sum(map(len, self._before.values())):
            with self._filing():
                self._write()
                # After the table: until it is written, the one before may name them.
                self._remove_unnamed()
        return pa.Table.from_pylist(self._rows, schema=_SCHEMA)

    def _write(self) -> None:
        """Write the pack, then the table: a kill in between leaves a pack that no table names.

        A table that is written before all masks are read is one of those so far, and the next run
        goes on from it.
        """
        self._folder.mkdir(exist_ok=True)
        if self._pack_rows:
            data = bytes(self._pack)
            # By its content: two processes that read the same masks write the same file.
            name = sha256(data)[:16]
            write_checked(self._folder / f"{name}.pack", data)
            for row in self._pack_rows:
                row["pack"] = name
            self._rows += self._pack_rows
            self._pack_rows = []
            self._pack = bytearray()
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA), sink)
        write_checked(self._index, sink.getvalue().to_pybytes())

    def _remove_unnamed(self) -> None:
        named: set[str | None] = set()
        for index in files_in(self._folder, "*.parquet"):
            for rows in _read_index(index, self._folder).values():
                named |= {row["pack"] for row in rows}
        for path in files_in(self._folder, "*.pack"):
            if path.stem not in named:
                path.unlink(missing_ok=True)
                path.with_name(path.name + CHECKSUM).unlink(missing_ok=True)


def _read_index(index: Path, folder: Path) -> dict[Sources, list[MaskRow]]:
    """Return the rows of a table by mask files; none of packs that are gone or too short.

    Nor those that are not as `_MaskTable` writes them: the store may be a stranger's.
    """
    if not index.is_file():
        return {}
    try:
        table = read_filed_table(index)
    except (FileNotFoundError, CorruptStoreError) as error:
        log.warning("%s cannot be read, so all masks are read again: %s", index, error)
        return {}
    if not table.schema.equals(_SCHEMA):
        return {}
    rows: dict[Sources, list[MaskRow]] = {}
    sizes: dict[str, int] = {}
    for row in table.to_pylist():
        if row["source"] is None or None in row["source"]:
            continue
        pack = row["pack"]
        if pack is not None:  # else a mask that cannot be used
            if not _PACK.fullmatch(pack) or not _is_written(row):
                continue
            if pack not in sizes:
                path = folder / f"{pack}.pack"
                is_file = path.is_file() and not path.is_symlink()
                sizes[pack] = path.stat().st_size if is_file else 0
            end = row["offset"] + row["length"]
            if end > sizes[pack]:
                continue
        elif row["reason"] is None:
            continue
        sources = tuple(row["source"])
        rows.setdefault(sources, []).append(row)
    return rows


def _is_written(row: MaskRow) -> bool:
    """Return whether all that is needed of a mask in a pack stands in its row, within bounds."""
    needed = ("offset", "length", "height", "width", *_SHOWN.values(), "classes", "sha256")
    if any(row[name] is None for name in needed) or None in row["classes"]:
        return False
    pixels: int = row["height"] * row["width"]
    lowest: int = min(row["offset"], row["length"], row["height"])
    return lowest >= 0 and 0 <= pixels <= MAX_SLICE_PIXELS


# --- reading mask files --------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskReader:
    """Reads the mask files of slices, as label values of `Masks.classes`."""

    config: Config
    masks: Masks
    names: Names

    def paths(self, group: MaskedSlices) -> list[Path]:
        """Return the mask files of some slices, whether they are there or not."""
        root = self.masks.root or self.config.data.root
        return [root / unescape_path(source) for source in group.sources]

    def read(
        self, paths: Sequence[Path], slices: Sequence[SliceRow]
    ) -> list[tuple[SliceRow, Labels]]:
        """Return each slice with its labels (H, W), all structures together.

        Raises UnreadableError where a file is missing, does not fit, or overlaps with another.
        """
        stack = [np.zeros((row.height, row.width), np.uint8) for row in slices]
        # Of several files each is of one structure: the label values count them, from 1.
        for label, path in enumerate(paths, start=1):
            if not path.is_file():
                of = f" of {self.masks.classes[label]}" if self.masks.apart else ""
                raise UnreadableError("vanished", f"there is no such file{of}")
            matched = match(path, slices, self.config, self.names)
            planes_of_file = _label_planes(path, matched, self.masks, label)
            for labels, number in zip(stack, matched.planes, strict=True):
                if number is not None:
                    _add_structure(labels, planes_of_file[number])
        return list(zip(slices, stack, strict=True))

    def shown(self, row: SliceRow) -> Shown:
        """Return what the network's input shows of a slice. Raises UnreadableError."""
        return placement_of(row, self.config.data.root, self.config.preprocess).shows


def _add_structure(labels: Labels, structure: Labels) -> None:
    """Add the labels of one more file to those of a slice, in place. Raises UnreadableError."""
    if ((labels > 0) & (structure > 0)).any():
        raise UnreadableError("unsupported", "has structures that overlap")
    labels += structure


def _label_planes(path: Path, matched: Matched, masks: Masks, label: int) -> dict[int, Labels]:
    """Return the wanted planes of a mask file as label values. Raises UnreadableError.

    label: what a file of a single structure becomes.
    """
    wanted = {number for number in matched.planes if number is not None}
    file = inspect(path, matched.plane)
    if isinstance(masks.values, dict):
        code: _NamedValues | _OneValue = _NamedValues(masks, file.segments)
    else:
        code = _OneValue(label)
    drawn = _structures_drawn(file, masks) if file.is_drawn else ()
    return {
        number: _encode(values, code.label_of)
        for number, values in enumerate(planes(path, matched.plane, matched.images, drawn))
        if number in wanted
    }


def _structures_drawn(file: MaskFile, masks: Masks) -> list[int]:
    """Return the numbers of the structures whose contours are masks; all, where one is meant.

    Raises UnreadableError where a file has none of those that are named.
    """
    if not isinstance(masks.values, dict):
        return [*file.segments]
    there = [
        number
        for number, name in file.segments.items()
        if name in masks.values or number in masks.values
    ]
    if not there:
        named = ", ".join(map(repr, masks.values))
        has = count(len(file.segments), "structure")
        names = f" ({_names(file.segments.values())})" if file.segments else ""
        raise UnreadableError("unsupported", f"has {has}{names}, and none of {named}")
    return there


def _names(labels: Collection[str]) -> str:
    """Return what structures are called, the first of many, as a message may have it."""
    shown = ", ".join(map(repr, list(labels)[:_MOST_NAMES]))
    more = len(labels) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _encode(values: NDArray[np.int64], label_of: Callable[[int], int]) -> Labels:
    """Return the label values (H, W) uint8 of a file's values."""
    # Each value is looked up once, however many pixels have it.
    distinct, inverse = np.unique(values, return_inverse=True)
    labels = np.array([label_of(int(value)) for value in distinct], np.uint8)
    of_pixels = labels[inverse]
    return of_pixels.reshape(values.shape)


class _NamedValues:
    """What the values of a mask file mean, where the settings name each of them."""

    def __init__(self, masks: Masks, segments: dict[int, str]) -> None:
        assert isinstance(masks.values, dict)
        self._values = masks.values
        self._segments = segments
        self._labels = {0: 0}
        numbers = {label: number for number, label in segments.items()}
        for value, name in masks.values.items():
            # A text is the label of a DICOM segment, which this file may not have.
            number = numbers.get(value) if isinstance(value, str) else value
            if number is not None:
                self._labels[number] = masks.classes.index(name)

    def label_of(self, value: int) -> int:
        """Return the label value of a file's value. Raises UnreadableError."""
        if value not in self._labels:
            segment = self._segments.get(value)
            what = f"the value {value}" if segment is None else f"the segment {segment!r} ({value})"
            named = ", ".join(repr(each) for each in self._values if each)
            raise UnreadableError(
                "unsupported", f"holds {what}, which `values` does not name: it names {named}"
            )
        return self._labels[value]


class _OneValue:
    """What the values of a mask file mean, where whatever is not 0 is one structure."""

    def __init__(self, label: int) -> None:
        self._label = label
        self._value: int | None = None

    def label_of(self, value: int) -> int:
        """Return the label value of a file's value. Raises UnreadableError at a second one."""
        if value and self._value not in (None, value):
            raise UnreadableError(
                "unsupported",
                f"holds the values {self._value} and {value}, but `values` names one structure: "
                f"name each, as in {{{self._value}: ..., {value}: ...}}",
            )
        self._value = value or self._value
        return self._label if value else 0
