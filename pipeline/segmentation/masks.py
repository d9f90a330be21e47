"""The masks of a store's slices, kept beside its features: read once, checked on every use.

<store>/masks/<16 hex>.parquet    a row a slice that a mask file was found for: which file it was,
                                  what the input shows of the slice, where its labels lie, or why
                                  they cannot be used
<store>/masks/<16 hex>.pack       label values, each slice's a zlib stream, which has its checksum

The table is named by what was asked (the block `masks`, the geometry of the images). A mask file
that changed, and only that, is read again. Label values are indices into `Masks.classes`.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.annotations.mask_files import inspect, planes
from pipeline.annotations.mask_matching import Matched, Slices, join, match
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.io.decode import read_slices
from pipeline.preprocessing.content import body_box
from pipeline.segmentation.geometry import Labels, Shown, shown, to_input
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.types import Slice
from stores._disk import CHECKSUM, sha256, write_checked
from stores.errors import CorruptStoreError, LabelError, UnreadableError
from stores.features import FeatureStore

log = logging.getLogger(__name__)

# Goes up when the same files give other labels.
CONTRACT = 1
_PACK_BYTES = 2**26
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
        *((f"shown_{name}", pa.int32()) for name in Shown._fields),
        ("pack", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("classes", pa.list_(pa.uint8())),  # values there are
        ("sha256", pa.string()),  # of the label values
    ]
)
Row = dict[str, Any]
Sources = tuple[str, ...]


@dataclass(frozen=True)
class Bad:
    """A mask file that cannot be used, by its shown path, and how many slices it was of."""

    source: str
    reason: str
    detail: str
    slices: int


class Kept:
    """The masks of a store's slices, as `settle` leaves them.

    rows (n,) ascending: the slices that have a mask.
    """

    def __init__(self, folder: Path, table: pa.Table, masks: Masks) -> None:
        usable = table.filter(pa.compute.is_null(table["reason"])).sort_by("row")
        self.classes, self._folder = masks.classes, folder
        self._table, self._usable = table, usable
        self.rows: NDArray[np.int64] = usable["row"].to_numpy()
        self._packs: dict[str, NDArray[np.uint8]] = {}

    @property
    def bad(self) -> list[Bad]:
        """The mask files that cannot be used."""
        found: dict[tuple[str, str, str], int] = {}
        for row in self._table.filter(pa.compute.is_valid(self._table["reason"])).to_pylist():
            key = (", ".join(row["source"]), row["reason"], row["detail"])
            found[key] = found.get(key, 0) + 1
        return [Bad(*key, slices) for key, slices in found.items()]

    @cached_property
    def digest(self) -> str:
        """The sha256 of all labels and of the way they go through the images' geometry."""
        columns = [f"shown_{name}" for name in Shown._fields]
        columns += ["row", "height", "width", "sha256"]
        text = json.dumps([self.classes, *(self._usable[name].to_pylist() for name in columns)])
        return sha256(text.encode())

    def labels(self, row: int) -> Labels:
        """Return the label values (H, W) of a slice. Raises KeyError, CorruptStoreError."""
        place = self._place(row)
        shape = tuple(self._usable[name][place].as_py() for name in ("height", "width"))
        try:
            data = zlib.decompress(self._stream(place).tobytes())
            return np.frombuffer(data, np.uint8).reshape(shape)
        except (zlib.error, ValueError) as error:
            raise CorruptStoreError(
                f"The mask of row {row} in {self._folder} is damaged ({error}). Delete that "
                "folder: the next run reads the mask files again."
            ) from None

    def at_input(self, row: int, size: int) -> Labels:
        """Return the label values (size, size) as the network's input shows the slice."""
        return to_input(self.labels(row), self.shows(row), size)

    def shows(self, row: int) -> Shown:
        """Return what the network's input shows of a slice."""
        place = self._place(row)
        return Shown(*(self._usable[f"shown_{name}"][place].as_py() for name in Shown._fields))

    def present(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (n, c): which label values each slice holds."""
        found = np.zeros((len(rows), len(self.classes)), bool)
        held = self._usable["classes"].take(pa.array([self._place(int(row)) for row in rows]))
        for i, values in enumerate(held.to_pylist()):
            found[i, values] = True
        return found

    def _place(self, row: int) -> int:
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            raise KeyError(f"Row {row} has no mask.")
        return place

    def _stream(self, place: int) -> NDArray[np.uint8]:
        pack, offset, length = (
            self._usable[name][place].as_py() for name in ("pack", "offset", "length")
        )
        if pack not in self._packs:
            self._packs[pack] = np.memmap(self._folder / f"{pack}.pack", np.uint8, "r")
        return self._packs[pack][offset : offset + length]


def settle(
    config: Config,
    store: FeatureStore,
    masks: Masks,
    progress: Callable[[int, int], None] | None = None,
) -> Kept:
    """Bring some masks of a config, kept beside its store, up to their files, and return them.

    progress: called with how many mask files were looked at, of how many. Raises LabelError where
    no slice has a mask, ConfigError.
    """
    names = Names(store.path, config.data.paths)
    slices = names.revealed(store.slices())
    folder = store.path / "masks"
    index = folder / f"{_asked(config, masks)[:16]}.parquet"
    before = _read_index(index, folder)
    builder = _Builder(config, masks, folder, index, names, slices, before)
    groups = join(config, masks, slices, names)
    if not groups:
        raise LabelError(
            f"No slice of {str(store.path)!r} has a mask under {str(masks.root)!r}. Correct root, "
            "or how masks are joined (by)."
        )
    for i, group in enumerate(groups):
        builder.add(group)
        if progress:
            progress(i + 1, len(groups))
    kept = Kept(folder, builder.finish(), masks)
    if not len(kept.rows):
        bad = kept.bad[0]
        raise LabelError(
            f"None of the {len(kept.bad)} masks can be used. The first, {bad.source!r}: "
            f"{bad.detail}."
        )
    return kept


def _asked(config: Config, masks: Masks) -> str:
    """Return the sha256 of all but the files that the labels depend on."""
    asked = {
        "contract": CONTRACT,
        "masks": masks.model_dump(mode="json", exclude={"root", "tolerance"}),
        "geometry": config.preprocess.model_dump(mode="json", include={"plane", "aspect", "crop"}),
    }
    return sha256(json.dumps(asked, sort_keys=True).encode())


def _read_index(index: Path, folder: Path) -> dict[Sources, list[Row]]:
    """Return what is kept, by mask files; of packs that are gone, nothing."""
    if not index.is_file():
        return {}
    try:
        table = pq.read_table(index)
    except (pa.ArrowException, OSError) as error:
        log.warning("%s cannot be read, so all masks are read again: %s", index, error)
        return {}
    if not table.schema.equals(_SCHEMA):
        return {}
    found: dict[Sources, list[Row]] = {}
    sizes: dict[str, int] = {}
    for row in table.to_pylist():
        pack = row["pack"]
        if pack is not None and pack not in sizes:
            path = folder / f"{pack}.pack"
            sizes[pack] = path.stat().st_size if path.is_file() else 0
        if pack is None or row["offset"] + row["length"] <= sizes[pack]:
            found.setdefault(tuple(row["source"]), []).append(row)
    return found


class _Builder:
    """Reads mask files into packs, and keeps what needs no reading."""

    def __init__(
        self,
        config: Config,
        masks: Masks,
        folder: Path,
        index: Path,
        names: Names,
        slices: pa.Table,
        before: dict[Sources, list[Row]],
    ) -> None:
        self._config, self._masks, self._root = config, masks, masks.root or config.data.root
        self._folder, self._index, self._names = folder, index, names
        self._slices, self._before = slices, before
        self._done: list[Row] = []
        self._open: list[Row] = []  # of the pack that is being filled
        self._pack = bytearray()
        self._changed = False

    def add(self, group: Slices) -> None:
        """Keep or read the mask of the slices of one series."""
        rows = self._slices.take(pa.array(group.numbers)).to_pylist()
        source = tuple(self._names.shown(each) if each else "" for each in group.sources)
        paths = [self._root / unescape_path(each) for each in group.sources]
        about = [path.stat() if path.is_file() else None for path in paths]
        stamp: Row = {
            "size": [each and each.st_size for each in about],
            "mtime_ns": [each and each.st_mtime_ns for each in about],
        }
        own = {row["row"] for row in rows}
        kept = [row for row in self._before.get(source, ()) if row["row"] in own]
        if len(kept) == len(rows) and all(stamp.items() <= row.items() for row in kept):
            self._done += kept
            return
        self._changed = True
        base = dict.fromkeys(_SCHEMA.names) | {"source": list(source), **stamp}
        try:
            read = list(self._read(paths, rows))
        except UnreadableError as error:
            fault = {"reason": error.reason, "detail": error.detail}
            self._done += [{**base, "row": row["row"], **fault} for row in rows]
            return
        for row, labels, shows in read:
            self._put({**base, "row": row["row"]}, labels, shows)

    def _read(
        self, paths: Sequence[Path], rows: Sequence[Row]
    ) -> Iterator[tuple[Row, Labels, Shown]]:
        """Yield each slice with its labels and what the input shows of it."""
        found = [np.zeros((row["height"], row["width"]), np.uint8) for row in rows]
        for i, path in enumerate(paths):
            if not path.is_file():
                of = f" of {self._masks.classes[i + 1]}" if self._masks.apart else ""
                raise UnreadableError("vanished", f"there is no such file{of}")
            matched = match(path, rows, self._config, self._names)
            stack = _encoded(path, matched, self._masks, i)
            for labels, number in zip(found, matched.planes, strict=True):
                if number is not None:
                    if ((labels > 0) & (stack[number] > 0)).any():
                        raise UnreadableError("unsupported", "its structures overlap")
                    labels += stack[number]
        for row, labels in zip(rows, found, strict=True):
            yield row, labels, self._shows(row)

    def _shows(self, row: Row) -> Shown:
        preprocess, body = self._config.preprocess, None
        if preprocess.crop == "body":
            path = self._config.data.root / unescape_path(row["path"])
            item = next(iter(read_slices(path, [row["frame"]], preprocess.plane)))
            if not isinstance(item, Slice):
                raise UnreadableError(item.reason, f"its image: {item.detail}")
            body = body_box(item.pixels, row["modality"])
        return shown(row["height"], row["width"], preprocess.aspect, body)

    def _put(self, row: Row, labels: Labels, shows: Shown) -> None:
        data = np.ascontiguousarray(labels).tobytes()
        stream = zlib.compress(data, 1)
        row |= {"height": labels.shape[0], "width": labels.shape[1]}
        row |= {f"shown_{name}": value for name, value in shows._asdict().items()}
        row |= {"offset": len(self._pack), "length": len(stream)}
        row |= {"classes": np.unique(labels).tolist(), "sha256": sha256(data)}
        self._pack += stream
        self._open.append(row)
        if len(self._pack) >= _PACK_BYTES:
            self._close()

    def _close(self) -> None:
        """Write the pack, and the table that speaks of it."""
        self._folder.mkdir(exist_ok=True)
        if self._open:
            data = bytes(self._pack)
            name = sha256(data)[:16]
            write_checked(self._folder / f"{name}.pack", data)
            self._done += [{**row, "pack": name} for row in self._open]
            self._open, self._pack = [], bytearray()
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._done, schema=_SCHEMA), sink)
        write_checked(self._index, sink.getvalue().to_pybytes())

    def finish(self) -> pa.Table:
        """Return the table, filed; packs that no table speaks of are removed."""
        if self._changed or len(self._done) != sum(map(len, self._before.values())):
            self._close()
            self._sweep()
        return pa.Table.from_pylist(self._done, schema=_SCHEMA)

    def _sweep(self) -> None:
        spoken = {
            pack
            for index in self._folder.glob("*.parquet")
            for pack in pq.read_table(index, columns=["pack"])["pack"].to_pylist()
        }
        for path in self._folder.glob("*.pack"):
            if path.stem not in spoken:
                path.unlink(missing_ok=True)
                path.with_name(path.name + CHECKSUM).unlink(missing_ok=True)


# --- values ------------------------------------------------------------------------------------


def _encoded(path: Path, matched: Matched, masks: Masks, file: int) -> dict[int, Labels]:
    """Return the wanted planes of a mask's file as label values. Raises UnreadableError."""
    wanted = {number for number in matched.planes if number is not None}
    segments = inspect(path, matched.plane).segments
    code = _Code(masks, segments, file + 1)
    return {
        number: code.encode(values)
        for number, values in enumerate(planes(path, matched.plane))
        if number in wanted
    }


class _Code:
    """What the values of one mask file mean; only: the label value of a single structure."""

    def __init__(self, masks: Masks, segments: dict[int, str], only: int) -> None:
        self._only: int | None = None
        self._label = only
        self._named = isinstance(masks.values, dict)
        self._known = {0: 0}
        if isinstance(masks.values, dict):
            numbers = {label: number for number, label in segments.items()}
            for value, name in masks.values.items():
                number = numbers.get(value) if isinstance(value, str) else value
                if number is not None:
                    self._known[number] = masks.classes.index(name)

    def encode(self, values: NDArray[np.int64]) -> Labels:
        """Return label values (H, W) uint8."""
        found, inverse = np.unique(values, return_inverse=True)
        codes = np.array([self._code_of(int(value)) for value in found], np.uint8)
        return codes[inverse].reshape(values.shape)

    def _code_of(self, value: int) -> int:
        if self._named:
            if value not in self._known:
                raise UnreadableError(
                    "unsupported", f"holds the value {value}, which `values` does not name"
                )
            return self._known[value]
        if value and self._only not in (None, value):
            raise UnreadableError(
                "unsupported",
                f"holds the values {self._only} and {value}, but `values` names one structure",
            )
        self._only = value or self._only
        return self._label if value else 0
