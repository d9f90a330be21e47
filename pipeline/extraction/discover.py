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
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.extraction.walk import walk
from pipeline.io.decode import check_tags, read_headers
from pipeline.io.formats.limits import DICOMDIR, as_unreadable
from pipeline.io.formats.series import Place, volumes
from pipeline.io.pool import headers_in_workers
from pipeline.io.sniff import NO_FORMAT
from pipeline.shared.paths import matcher, unescape_path
from pipeline.shared.pseudonyms import pseudonym
from pipeline.types import Header, Plane
from stores.errors import ConfigError, UnreadableError
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, as_table, where, with_column

# Goes up when the reader sees other slices in the same file: `known` of another is no guide.
READER_VERSION = 3
_TIME_LIMIT_S = 60.0
_OTHER = "other"
IDENTIFIER_IN_PATH = "identifier-in-path"
_UNKNOWN_MODALITY = "OT"
# Files with such a name are meant to be images: unreadable, they are a finding, not furniture.
_IMAGE_SUFFIXES = (
    *(
        ".dcm",
        ".dicom",
        ".ima",
        ".nii",
        ".nii.gz",
        ".hdr",
        ".img",
        ".nrrd",
        ".nhdr",
        ".mha",
        ".mhd",
    ),
    *(".mgz", ".mgh", ".mnc", ".npy", ".npz", ".mat", ".png", ".jpg", ".jpeg", ".jpe", ".tif"),
    *(".tiff", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".jls"),
)

Row = dict[str, Any]
# A slice as its file tells of it, before its series is known: SLICE_SCHEMA with the series' own
# name and the file's own flags, and what tells its volume and its place there.
_PLACE_SCHEMA = pa.schema(
    [
        *SLICE_SCHEMA,
        ("telling", pa.list_(pa.string())),
        ("volume", pa.string()),
        ("order", pa.list_(pa.float64())),
        ("offset_mm", pa.list_(pa.float64())),
    ]
)
# Reasons that can pass by themselves: such files are opened again.
_PASSING = ("no-permission", "vanished", "time-limit")
# Files and slices that Python holds at once: there they take ten times the room of a table.
_AT_ONCE = 2**10

# Paths -> the headers of each file, or why it has none, in order.
Open = Callable[[Iterable[str]], Iterator[list[Header] | UnreadableError]]


@dataclass(frozen=True)
class Discovery:
    """What a folder holds: `files` (FILE_SCHEMA) and `slices` (SLICE_SCHEMA, `row` still null)."""

    files: pa.Table
    slices: pa.Table


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
    if not data.root.is_dir():
        raise ConfigError(
            f"data.root must be a folder that exists. Got {str(data.root)!r} instead."
        )
    files = _in_order(pa.concat_tables([FILE_SCHEMA.empty_table(), *walk(data)]))
    known = known or Discovery(FILE_SCHEMA.empty_table(), SLICE_SCHEMA.empty_table())
    live = where(known.slices, pc.invert(known.slices["withdrawn"]))
    before = known.files
    kept = _unchanged(files, before, live["path"])
    opener = _Opener(data, key, elsewhere or opened_by(data, plane, workers), progress)
    fresh = pc.and_(pc.is_null(files["reason"]), pc.invert(kept))
    places = opener.open(files["path"].filter(fresh))
    # A series that has gained, lost or changed a file is settled anew, from all its headers.
    stays = pc.is_in(live["path"], _one(files["path"].filter(kept)))
    touched = pc.is_in(
        _bases(live),
        pa.concat_arrays([_one(places["series"]), _one(_bases(live).filter(pc.invert(stays)))]),
    )
    again = pc.unique(live["path"].filter(pc.and_(stays, touched)))
    still = where(live, pc.and_(stays, pc.invert(touched))).cast(SLICE_SCHEMA)
    del known, live  # of a large collection, these tables are all there is in memory
    places = pa.concat_tables([places, opener.open(again)])
    slices = as_table(_settle(places), SLICE_SCHEMA)
    del places
    return _tables(files, pa.concat_tables([slices, still]), opener.refused, before)


# --- what is known ----------------------------------------------------------------------------


def _in_order(files: pa.Table) -> pa.Table:
    """Return files in the order of their paths, folder by folder: a slash stands before all."""
    keys = pc.replace_substring(files["path"], "/", "\0")
    return files.take(pc.sort_indices(keys))


def _unchanged(files: pa.Table, before: pa.Table, of_slices: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which files are as they were before, and have all their slices: bool, one a file.

    of_slices: the path of each slice there was.
    """
    then = before.take(pc.index_in(files["path"], _one(before["path"])))  # nulls where new
    same = [pc.equal(files[name], then[name]) for name in ("size", "mtime_ns")]
    same.append(pc.equal(then["slices"], _counts(files, of_slices)))
    # Whether a file may be opened, and what was lost to a time limit, can change by itself.
    same.append(pc.invert(pc.is_in(then["reason"], pa.array(_PASSING))))
    same.append(pc.is_null(files["reason"]))
    return pc.fill_null(functools.reduce(pc.and_, same), False)


def _counts(files: pa.Table, of_slices: pa.ChunkedArray) -> pa.Array:
    """Return how many slices each file has."""
    found = pc.index_in(of_slices, _one(files["path"])).drop_null().to_numpy()
    return pa.array(np.bincount(found, minlength=len(files)), pa.int32())


def _bases(slices: pa.Table) -> pa.ChunkedArray:
    """Return the pseudonyms of the slices' series, without the numbers of their volumes."""
    return pc.list_element(pc.split_pattern(slices["series"], ".", max_splits=1), 0)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# --- the slices --------------------------------------------------------------------------------


class _Opener:
    """Opens files for their headers and keeps those it could not: path -> why."""

    def __init__(
        self, data: Data, key: bytes, headers: Open, progress: Callable[[int], None] | None
    ) -> None:
        self.fill, self.key, self.tags, self.headers = _Filler(data), key, data.tags, headers
        self.progress = progress or (lambda count: None)
        self.opened = 0
        self.refused: dict[str, UnreadableError] = {}

    def open(self, paths: pa.ChunkedArray | pa.Array) -> pa.Table:
        """Return the slices of the files (_PLACE_SCHEMA), in order."""
        if not len(paths):
            return _PLACE_SCHEMA.empty_table()
        check_tags(self.tags)
        return as_table(self._places(paths), _PLACE_SCHEMA)

    def _places(self, paths: pa.ChunkedArray | pa.Array) -> Iterator[Row]:
        some = (paths.slice(start, _AT_ONCE) for start in range(0, len(paths), _AT_ONCE))
        # Headers are read ahead of the paths they belong to, by a bounded number of files.
        asked, told = itertools.tee(path for few in some for path in few.to_pylist())
        for path, headers in zip(told, self.headers(asked), strict=True):
            self.opened += 1
            self.progress(self.opened)
            if isinstance(headers, UnreadableError):
                self.refused[path] = headers
            else:
                yield from (_place(path, header, self.fill, self.key) for header in headers)


def opened_by(data: Data, plane: Plane, workers: int) -> Open:
    """Return what opens files by so many processes of this machine; 0: in this one."""

    def headers_here(path: str) -> list[Header] | UnreadableError:
        try:
            return read_headers(data.root / unescape_path(path), plane, data.tags)
        except Exception as error:
            return as_unreadable(error, "reading the header")

    if workers == 0:
        return lambda paths: map(headers_here, paths)
    return lambda paths: headers_in_workers(
        data.root, paths, plane, data.tags, workers, _TIME_LIMIT_S
    )


def _settle(places: pa.Table) -> Iterator[Row]:
    """Yield SLICE_SCHEMA rows: series by series, volume by volume, along the normal."""
    which = places["series"].combine_chunks().dictionary_encode().indices.to_numpy()
    if (np.diff(which) < 0).any():  # series that lie among each other
        places = places.take(np.argsort(which, kind="stable"))
    rows = itertools.chain.from_iterable(
        batch.to_pylist() for batch in places.to_batches(max_chunksize=_AT_ONCE)
    )
    for name, group in itertools.groupby(rows, key=lambda row: row["series"]):
        members = {(row["path"], row["frame"]): row for row in group}
        headers = [Place(row["path"], _header(row)) for row in members.values()]
        for number, volume in enumerate(volumes(headers), start=1):
            label = name if number == 1 else f"{name}.{number}"
            for place in volume:
                row = members[place.path, place.header.frame]
                flags = [*place.header.flags, *row["telling"]]
                yield {**row, "series": label, "flags": flags}


def _header(row: Row) -> Header:
    """Return what `volumes` asks of a place."""
    return Header(
        frame=row["frame"],
        modality=None,
        height=row["height"],
        width=row["width"],
        volume=row["volume"],
        order=tuple(row["order"]),
        position_mm=row["position_mm"],
        offset_mm=row["offset_mm"],
        flags=tuple(row["flags"]),
    )


class _Filler:
    """What the config says of files whose headers do not: modality and patient, by path."""

    def __init__(self, data: Data) -> None:
        self.modalities = [(matcher([glob]), code) for glob, code in data.modality.items()]
        self._patient = re.compile(data.patient) if data.patient else None

    def modality(self, path: str) -> str:
        named = (code for matches, code in self.modalities if matches(path))
        return next(named, _UNKNOWN_MODALITY)

    def patient(self, path: str) -> str | None:
        match = self._patient.search(path) if self._patient else None
        return match.group(1) if match else None


def modality_of(data: Data, path: str) -> str:
    """Return the modality that the config gives a file whose header names none."""
    return _Filler(data).modality(path)


def _telling(path: str, header: Header) -> list[str]:
    """Return a flag where a path names its own patient or a UID: such paths must be hidden."""
    raw = (header.patient, header.study, header.series, header.instance)
    named = any(each and len(each) > 3 and each in path for each in raw)
    return [IDENTIFIER_IN_PATH] if named else []


def _place(stored: str, header: Header, fill: _Filler, key: bytes) -> Row:
    """Return a slice as its file tells of it, by pseudonyms alone (_PLACE_SCHEMA).

    A file that names no series is one by itself.
    """
    path = unescape_path(stored)

    def hidden(kind: str, raw: str | None) -> str | None:
        return pseudonym(key, kind, raw) if raw else None

    return {
        "row": None,
        "path": stored,
        "frame": header.frame,
        "patient": hidden("patient", header.patient or fill.patient(path)),
        "study": hidden("study", header.study),
        "series": pseudonym(key, "series", header.series or stored),
        "instance": hidden("instance", header.instance),
        "position_mm": header.position_mm,
        "modality": header.modality or fill.modality(path),
        "height": header.height,
        "width": header.width,
        "spacing_y_mm": header.spacing_mm[0] if header.spacing_mm else None,
        "spacing_x_mm": header.spacing_mm[1] if header.spacing_mm else None,
        "flags": header.flags,
        "tags": [(tag, hidden(f"tag:{tag}", raw)) for tag, raw in header.tags.items()] or None,
        "withdrawn": False,
        "telling": _telling(path, header),
        "volume": header.volume,
        "order": header.order,
        "offset_mm": header.offset_mm,
    }


def _tables(
    files: pa.Table, slices: pa.Table, refused: dict[str, UnreadableError], before: pa.Table
) -> Discovery:
    """Return both tables; series come in the order of their first files."""
    paths = _one(files["path"])
    of_file = pc.index_in(slices["path"], paths).to_numpy()
    series = _one(_bases(slices)).dictionary_encode()
    which, first = series.indices.to_numpy(), np.full(len(series.dictionary), len(files))
    np.minimum.at(first, which, of_file)
    counts = _counts(files, slices["path"])
    told = {path: _told(path, error) for path, error in refused.items()}
    new = pa.table(
        {
            "path": pa.array(told, pa.string()),
            "reason": pa.array([reason for reason, _ in told.values()], pa.string()),
            "detail": pa.array([detail for _, detail in told.values()], pa.string()),
        }
    )
    # As it was: set aside then, set aside now.
    aside = before.filter(pc.is_valid(before["reason"])).select(new.column_names)
    aside = aside.filter(pc.invert(pc.is_in(aside["path"], _one(new["path"]))))
    said = pa.concat_tables([new, aside])
    said = said.take(pc.if_else(pc.equal(counts, 0), pc.index_in(paths, _one(said["path"])), None))
    listed = pc.is_null(files["reason"])
    for name in ("reason", "detail"):
        files = with_column(files, name, pc.if_else(listed, said[name], files[name]))
    order = np.argsort(first[which], kind="stable")
    if (np.diff(order) != 1).any():
        slices = slices.take(order)
    return Discovery(
        files=with_column(files, "slices", counts),
        slices=with_column(slices, "row", pa.nulls(len(slices), pa.int64())),
    )


def _told(path: str, error: UnreadableError) -> tuple[str, str]:
    """Return the reason and detail for the table; what nobody took for an image is `other`."""
    nothing = error.reason == "empty" or error.detail.startswith(NO_FORMAT)
    furniture = error.detail.startswith(DICOMDIR) or (nothing and not _named_as_image(path))
    return (_OTHER if furniture else error.reason), error.detail


def _named_as_image(path: str) -> bool:
    """Return whether a file's name promises an image: by its suffix, or as scanners number files.

    `IM0001`, `I10` and `1.2.840.113` are meant to be images; `README` and `.gitkeep` are not.
    """
    name = PurePosixPath(path).name.lower()
    return name.endswith(_IMAGE_SUFFIXES) or bool(re.fullmatch(r"[\d.]+|[^.]*\d[^.]*", name))
