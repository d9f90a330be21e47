"""A folder to two tables: its slices, series after series, and its files, read or set aside.

- Files stand in the order of their paths; links to folders are followed once, so loops end.
- A file that has not changed since `known` is not opened, unless its series did.
- The order does not depend on the key, and only pseudonyms leave this module.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.extraction.lone_slices import flag_lone_slices
from pipeline.extraction.selection import OTHER, Selection
from pipeline.extraction.walk import walk
from pipeline.io.decode import check_tags, read_headers, stored_pixels
from pipeline.io.formats.limits import NO_PICTURE, as_unreadable
from pipeline.io.formats.series import volumes
from pipeline.io.formats.stacks import Place
from pipeline.io.pool import headers_in_workers
from pipeline.io.sniff import ARCHIVE, NO_FORMAT
from pipeline.io.types import StoredPixels
from pipeline.shared.paths import matcher, unescape_path
from pipeline.shared.pseudonyms import pseudonym
from pipeline.types import Header, Plane
from stores.errors import ConfigError, UnreadableError
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, as_table, where, with_column

# Goes up when the reader sees other slices in the same file, or groups them otherwise: `known` of
# another is no guide.
READER_VERSION = 5
_TIME_LIMIT_S = 60.0
IDENTIFIER_IN_PATH = "identifier-in-path"
# What a slice's modality is where its file names none.
UNKNOWN_MODALITY = "OT"
# Files with such a name are meant to be images: unreadable, they are a finding, not furniture.
# fmt: off
IMAGE_SUFFIXES = (
    ".dcm", ".dicom", ".ima",
    ".nii", ".nii.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc",
    ".npy", ".npz", ".mat",
    ".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".gif", ".webp",
    ".jp2", ".j2k", ".jls",
)
# fmt: on
# fmt: off
_ARCHIVE_SUFFIXES = (
    ".zip", ".tar", ".tgz", ".tbz", ".txz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".lz4",
)
# fmt: on
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".xml", ".html", ".log", ".sql", ".parquet")

Row = dict[str, Any]
Matcher = Callable[[str], bool]
# A slice as its file describes it, before the rest of its series is known: SLICE_SCHEMA with the
# name of the series and the flags of the file, the flags of its path, and what tells its volume and
# its place there.
_PLACE_SCHEMA = pa.schema(
    [
        *SLICE_SCHEMA,
        ("path_flags", pa.list_(pa.string())),
        ("volume", pa.string()),
        ("axes", pa.list_(pa.float32())),
        ("echo_ms", pa.float64()),
        ("labels", pa.list_(pa.float32())),
        ("gradient", pa.list_(pa.float32())),
        ("order", pa.list_(pa.float64())),
        ("offset_mm", pa.list_(pa.float64())),
    ]
)
# Reasons that can pass by themselves: such files are opened again.
_PASSING = ("no-permission", "vanished", "time-limit", "killed")
# Files and slices that Python holds at once: there they take ten times the room of a table.
_AT_ONCE = 2**10

# The headers of a file, or why it has none.
Headers = list[Header] | UnreadableError
# Paths -> the headers of each file, in order.
Open = Callable[[Iterable[str]], Iterator[Headers]]


@dataclass(frozen=True)
class Discovery:
    """What a folder holds: `files` (FILE_SCHEMA) and `slices` (SLICE_SCHEMA, `row` still null).

    notes: sentences on what of the config had no effect.
    """

    files: pa.Table
    slices: pa.Table
    notes: tuple[str, ...] = ()


def discover(
    data: Data,
    key: bytes,
    *,
    known: Discovery | None = None,
    plane: Plane = "axial",
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    elsewhere: Open | None = None,
) -> Discovery:
    """Return what `data.root` holds.

    known: an earlier discovery by the same key, plane and `data`. workers: processes that open
    files, 0 for none; elsewhere: what opens them instead. progress: called with the number of files
    opened so far. Raises ConfigError where the root is no folder.
    """
    for name, folder in data.roots.items():
        # Of a disk that is not there, all slices would count as gone.
        if not folder.is_dir():
            raise ConfigError(
                f"data.root must be folders that exist. Got {str(folder)!r} for {name!r} instead."
            )
    if not data.root.is_dir():
        raise ConfigError(
            f"data.root must be a folder that exists. Got {str(data.root)!r} instead."
        )
    selection = Selection(data)
    folders = walk(data.root, selection)
    files = _in_order(pa.concat_tables([FILE_SCHEMA.empty_table(), *folders]))
    notes = selection.notes(files["path"])
    known = known or Discovery(FILE_SCHEMA.empty_table(), SLICE_SCHEMA.empty_table())
    files_before = known.files
    live = where(known.slices, pc.invert(known.slices["withdrawn"]))
    unchanged = _unchanged(files, files_before, live["path"])
    read = elsewhere or opened_by(data, plane, workers)
    opener = _Opener(data, key, read, progress)
    # Files that could not be looked at are not opened: they have their reason already.
    may_open = pc.is_null(files["reason"])
    to_open = pc.and_(may_open, pc.invert(unchanged))
    new = opener.open(files["path"].filter(to_open))
    # A series that has gained, lost or changed a file is grouped anew, from all its headers: the
    # unchanged files of such a series are opened as well.
    unchanged_paths = _one(files["path"].filter(unchanged))
    stays = pc.is_in(live["path"], unchanged_paths)
    touched = _touched(live, stays, new)
    to_reopen = live["path"].filter(pc.and_(stays, touched))
    reopened = opener.open(pc.unique(to_reopen))
    untouched = pc.and_(stays, pc.invert(touched))
    remaining = where(live, untouched).cast(SLICE_SCHEMA)
    places = pa.concat_tables([new, reopened])
    # Of a large collection, these tables are all there is in memory: none stays longer than needed.
    del known, live, unchanged_paths, new, to_reopen, reopened
    grouped = as_table(_grouped(places, data.root), SLICE_SCHEMA)
    del places
    # Of all slices, since those of other series, old ones too, decide on it.
    slices = flag_lone_slices(pa.concat_tables([grouped, remaining]))
    counts = _counts(files, slices["path"])
    files = _with_reasons(files, counts, opener.refused, files_before)
    return Discovery(
        files=with_column(files, "slices", counts),
        slices=_by_first_file(slices, files["path"]),
        notes=tuple(notes),
    )


# --- what is known ----------------------------------------------------------------------------


def _in_order(files: pa.Table) -> pa.Table:
    """Return files in the order of their paths, folder by folder: a slash stands before all."""
    keys = pc.replace_substring(files["path"], "/", "\0")
    return files.take(pc.sort_indices(keys))


def _unchanged(files: pa.Table, before: pa.Table, of_slices: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which files are as they were before, and have all their slices: bool, one a file.

    of_slices: the path of each slice there was.
    """
    places = pc.index_in(files["path"], _one(before["path"]))
    then = before.take(places)  # nulls where a file is new
    conditions = [
        pc.equal(files["size"], then["size"]),
        pc.equal(files["mtime_ns"], then["mtime_ns"]),
        pc.equal(then["slices"], _counts(files, of_slices)),
        # Whether a file may be opened, and what was lost to a time limit, can change by itself.
        pc.invert(pc.is_in(then["reason"], pa.array(_PASSING))),
        pc.is_null(files["reason"]),
    ]
    return pc.fill_null(functools.reduce(pc.and_, conditions), False)


def _touched(live: pa.Table, stays: pa.ChunkedArray, new: pa.Table) -> pa.ChunkedArray:
    """Return which known slices are of a series that has changed: bool, one a slice of `live`.

    stays: which of them are in unchanged files; new: the slices of files that were opened.
    """
    series = _series_names(live)
    lost = series.filter(pc.invert(stays))
    changed = pa.concat_arrays([_one(new["series"]), _one(lost)])
    return pc.is_in(series, changed)


def _counts(files: pa.Table, of_slices: pa.ChunkedArray) -> pa.Array:
    """Return how many slices each file has."""
    indices = pc.index_in(of_slices, _one(files["path"])).drop_null().to_numpy()
    return pa.array(np.bincount(indices, minlength=len(files)), pa.int32())


def _series_names(slices: pa.Table) -> pa.ChunkedArray:
    """Return the pseudonyms of the slices' series, without the numbers of their volumes."""
    return pc.list_element(pc.split_pattern(slices["series"], ".", max_splits=1), 0)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece, as look-ups take it."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# --- the slices --------------------------------------------------------------------------------


class _Opener:
    """Opens files for their headers, and notes those that it could not: path -> why."""

    def __init__(
        self, data: Data, key: bytes, headers: Open, progress: Callable[[int], None] | None
    ) -> None:
        self.refused: dict[str, UnreadableError] = {}
        self._fill = PathRules(data)
        self._key = key
        self._tags = data.tags
        self._headers = headers
        self._progress = progress or (lambda count: None)
        self._opened = 0

    def open(self, paths: pa.ChunkedArray | pa.Array) -> pa.Table:
        """Return the slices of the files (_PLACE_SCHEMA), in order."""
        if not len(paths):
            return _PLACE_SCHEMA.empty_table()
        check_tags(self._tags)
        return as_table(self._places(paths), _PLACE_SCHEMA)

    def _places(self, paths: pa.ChunkedArray | pa.Array) -> Iterator[Row]:
        # Headers are read ahead of the paths they belong to, by a bounded number of files.
        paths_ahead, paths_behind = itertools.tee(_some_at_a_time(paths))
        for path, headers in zip(paths_behind, self._headers(paths_ahead), strict=True):
            self._opened += 1
            self._progress(self._opened)
            if isinstance(headers, UnreadableError):
                self.refused[path] = headers
                continue
            for header in headers:
                yield _place(path, header, self._fill, self._key)


def _some_at_a_time(column: pa.ChunkedArray | pa.Array) -> Iterator[str]:
    """Yield the values of a column, of which Python has only some in memory."""
    for start in range(0, len(column), _AT_ONCE):
        yield from column.slice(start, _AT_ONCE).to_pylist()


def opened_by(data: Data, plane: Plane, workers: int) -> Open:
    """Return what opens files by so many processes of this machine; 0: in this one."""

    def headers_here(path: str) -> Headers:
        try:
            return read_headers(data.root / unescape_path(path), plane, data.tags)
        except Exception as error:
            return as_unreadable(error, "reading the header")

    if workers == 0:
        return lambda paths: map(headers_here, paths)
    return lambda paths: headers_in_workers(
        data.root, paths, plane, data.tags, workers, _TIME_LIMIT_S
    )


def _grouped(places: pa.Table, root: Path) -> Iterator[Row]:
    """Yield SLICE_SCHEMA rows: series by series, volume by volume, along the normal."""

    def pixels_of(place: Place) -> StoredPixels | None:
        return stored_pixels(root / unescape_path(place.path))

    series = places["series"].combine_chunks().dictionary_encode()
    which = series.indices.to_numpy()
    if (np.diff(which) < 0).any():  # series that lie among each other
        places = places.take(np.argsort(which, kind="stable"))
    rows = itertools.chain.from_iterable(
        batch.to_pylist() for batch in places.to_batches(max_chunksize=_AT_ONCE)
    )
    for name, group in itertools.groupby(rows, key=lambda row: row["series"]):
        # By address, since `volumes` knows no more of a slice.
        members = {(row["path"], row["frame"]): row for row in group}
        slices = [Place(row["path"], _header(row)) for row in members.values()]
        for number, volume in enumerate(volumes(slices, pixels_of), start=1):
            label = name if number == 1 else f"{name}.{number}"
            for place in volume:
                header = place.header
                row = members[place.path, header.frame]
                flags = [*header.flags, *row["path_flags"]]
                yield {**row, "series": label, "flags": flags}


def _header(row: Row) -> Header:
    """Return what `volumes` needs to know of a slice: whose it is by pseudonyms."""
    spacing = None
    if row["spacing_y_mm"] is not None and row["spacing_x_mm"] is not None:
        spacing = (row["spacing_y_mm"], row["spacing_x_mm"])
    return Header(
        frame=row["frame"],
        modality=None,
        height=row["height"],
        width=row["width"],
        patient=row["patient"],
        study=row["study"],
        instance=row["instance"],
        volume=row["volume"],
        axes=None if row["axes"] is None else tuple(row["axes"]),
        echo_ms=row["echo_ms"],
        labels=tuple(row["labels"]),
        gradient=tuple(row["gradient"]),
        order=tuple(row["order"]),
        position_mm=row["position_mm"],
        offset_mm=None if row["offset_mm"] is None else tuple(row["offset_mm"]),
        spacing_mm=spacing,
        flags=tuple(row["flags"]),
    )


# What a path may name where a header does not.
IdKind = Literal["patient", "study"]


class PathRules:
    """What the config says of files whose headers do not: modality, patient and study, by path."""

    def __init__(self, data: Data) -> None:
        self._modalities: list[tuple[Matcher, str]] = []
        for glob, code in data.modality.items():
            self._modalities.append((matcher([glob]), code))
        self._ids = {
            kind: re.compile(rule)
            for kind, rule in (("patient", data.patient), ("study", data.study))
            if rule
        }
        self._data = data

    def modality(self, path: str) -> str:
        """Return the modality of the first pattern that a path matches; OT where none does."""
        return self.names(path) or UNKNOWN_MODALITY

    def names(self, path: str) -> str | None:
        """Return the modality of the first pattern that a path matches, if any."""
        for matches, code in self._modalities:
            if matches(path):
                return code
        return None

    def patient(self, path: str) -> str | None:
        """Return the patient that a path names, if any."""
        return self.named(path, "patient")

    def named(self, path: str, kind: IdKind) -> str | None:
        """Return the patient or study that a path names, if any."""
        match = self._ids[kind].search(path) if kind in self._ids else None
        return match.group(1) if match else None

    def id_of(self, path: str, raw: str) -> str:
        """Return an identifier of a file as `Data.id_of` tells it from those of other roots."""
        return self._data.id_of(path, raw)


def modality_of(data: Data, path: str) -> str:
    """Return the modality that the config gives a file whose header names none."""
    return PathRules(data).modality(path)


def _path_flags(path: str, header: Header) -> list[str]:
    """Return a flag where a path names its own patient or a UID: such paths must be hidden."""
    for identifier in (header.patient, header.study, header.series, header.instance):
        # Shorter ones are in many a path by chance.
        if identifier and len(identifier) > 3 and identifier in path:
            return [IDENTIFIER_IN_PATH]
    return []


def _place(stored: str, header: Header, fill: PathRules, key: bytes) -> Row:
    """Return a slice as its file describes it, by pseudonyms alone (_PLACE_SCHEMA).

    A file that names no series is one by itself.
    """
    path = unescape_path(stored)

    def hidden(kind: str, raw: str | None) -> str | None:
        return pseudonym(key, kind, fill.id_of(path, raw)) if raw else None

    spacing_y, spacing_x = header.spacing_mm or (None, None)
    tags = []
    for tag, raw in header.tags.items():
        tags.append((tag, hidden(f"tag:{tag}", raw)))
    return {
        "row": None,
        "path": stored,
        "frame": header.frame,
        "patient": hidden("patient", header.patient or fill.patient(path)),
        "study": hidden("study", header.study or fill.named(path, "study")),
        "series": hidden("series", header.series) or pseudonym(key, "series", stored),
        "instance": hidden("instance", header.instance),
        "position_mm": header.position_mm,
        "modality": header.modality or fill.modality(path),
        "height": header.height,
        "width": header.width,
        "spacing_y_mm": spacing_y,
        "spacing_x_mm": spacing_x,
        "flags": header.flags,
        "tags": tags or None,
        "withdrawn": False,
        "path_flags": _path_flags(path, header),
        "volume": header.volume,
        "axes": header.axes,
        "echo_ms": header.echo_ms,
        "labels": header.labels,
        "gradient": header.gradient,
        "order": header.order,
        "offset_mm": header.offset_mm,
    }


# --- the tables --------------------------------------------------------------------------------


def _by_first_file(slices: pa.Table, paths: pa.ChunkedArray) -> pa.Table:
    """Return slices with their series in the order of their first files, `row` still null."""
    of_file = pc.index_in(slices["path"], _one(paths)).to_numpy()
    series = _one(_series_names(slices)).dictionary_encode()
    which = series.indices.to_numpy()
    first = np.full(len(series.dictionary), len(paths))
    np.minimum.at(first, which, of_file)
    order = np.argsort(first[which], kind="stable")
    if (np.diff(order) != 1).any():  # taking copies, which most collections do not need
        slices = slices.take(order)
    no_rows = pa.nulls(len(slices), pa.int64())
    return with_column(slices, "row", no_rows)


def _with_reasons(
    files: pa.Table, counts: pa.Array, refused: dict[str, UnreadableError], before: pa.Table
) -> pa.Table:
    """Return files with the reason and detail of those that have no slices.

    refused: of files that were opened. Others are set aside now if they were set aside before.
    """
    reasons = [_reason(path, error) for path, error in refused.items()]
    details = [error.detail for error in refused.values()]
    now = pa.table(
        {
            "path": pa.array(refused, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array(details, pa.string()),
        }
    )
    then = before.filter(pc.is_valid(before["reason"]))
    then = then.select(now.column_names)
    opened_now = pc.is_in(then["path"], _one(now["path"]))
    then = then.filter(pc.invert(opened_now))
    aside = pa.concat_tables([now, then])
    places = pc.index_in(_one(files["path"]), _one(aside["path"]))
    without_slices = pc.equal(counts, 0)
    by_file = aside.take(pc.if_else(without_slices, places, None))
    # What the walk already says of a file stands.
    listed = pc.is_null(files["reason"])
    for name in ("reason", "detail"):
        column = pc.if_else(listed, by_file[name], files[name])
        files = with_column(files, name, column)
    return files


def _reason(path: str, error: UnreadableError) -> str:
    """Return the reason for the table; what nobody took for an image is `other`."""
    if error.detail.startswith(NO_PICTURE):
        return OTHER
    no_image = error.reason == "empty" or error.detail.startswith((NO_FORMAT, ARCHIVE))
    return OTHER if no_image and not _named_as_image(path) else error.reason


def _named_as_image(path: str) -> bool:
    """Return whether a file's name promises an image: by its suffix, or as scanners number files.

    `IM0001`, `I10` and `1.2.840.113` are meant to be images; `README` and `.gitkeep` are not. An
    archive is, unless its name says that it holds something else (`labels.csv.zip`).
    """
    name = PurePosixPath(path).name.lower()
    packed, dot, suffix = name.rpartition(".")
    if dot + suffix in _ARCHIVE_SUFFIXES:
        return not packed.endswith(_TEXT_SUFFIXES)
    if suffix == "gz":
        name = packed
    if name.endswith(".tar"):
        return True
    return name.endswith(IMAGE_SUFFIXES) or bool(re.fullmatch(r"[\d.]+|[^.]*\d[^.]*", name))
