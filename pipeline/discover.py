"""A folder to two tables: its slices, series after series, and its files, read or set aside.

- Files stand in the order of their paths; links to folders are followed once, so loops end.
- A file that has not changed since `known` is not opened, unless its series did.
- The order does not depend on the key, and only pseudonyms leave this module.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Data
from pipeline.formats.limits import as_unreadable
from pipeline.formats.series import Place, volumes
from pipeline.names import pseudonym
from pipeline.read import (
    DICOMDIR,
    NO_FORMAT,
    check_tags,
    read_headers,
    unescape_path,
)
from pipeline.reading.pool import headers_in_workers
from pipeline.types import Header, Plane
from pipeline.walk import matcher, walk
from stores.errors import ConfigError, UnreadableError
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

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
# Paths -> the headers of each file, or why it has none, in order.
Open = Callable[[Sequence[str]], Iterator[list[Header] | UnreadableError]]


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
    files = {row["path"]: row for row in sorted(walk(data), key=lambda r: r["path"].split("/"))}
    kept = _unchanged(files, known)
    opener = _Opener(data, elsewhere or opened_by(data, plane, workers), progress)
    fresh = [path for path in files if path not in kept and not files[path]["reason"]]
    places = opener.open(fresh)
    # A series that has gained, lost or changed a file is settled anew, from all its headers.
    touched = {pseudonym(key, "series", _series_of(place)) for place in places}
    touched |= _bases(row for row in _rows_of(known) if row["path"] not in kept)
    again = [path for path, rows in kept.items() if touched & _bases(rows)]
    places += opener.open(again)
    for path in again:
        del kept[path]
    slices = _as_table(_settle(places, data, key))
    del places  # before the tables are put in order: of a large collection, they are most of it
    if known is not None:
        live = known.slices.filter(pc.invert(known.slices["withdrawn"]))
        still = pc.is_in(live["path"], value_set=pa.array(list(kept), pa.string()))
        slices = pa.concat_tables([slices, live.filter(still).cast(SLICE_SCHEMA)])
    return _tables(files, slices, opener.refused, known)


# --- what is known ----------------------------------------------------------------------------


def _unchanged(files: dict[str, Row], known: Discovery | None) -> dict[str, list[Row]]:
    """Return the slices of the files that are as they were: path -> rows (none if set aside)."""
    if known is None:
        return {}
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in _rows_of(known):
        rows[row["path"]].append(row)
    kept = {}
    for before in known.files.to_pylist():
        now, path = files.get(before["path"]), before["path"]
        if now is None or now["reason"] or before["size"] is None:
            continue
        same = (now["size"], now["mtime_ns"]) == (before["size"], before["mtime_ns"])
        # Whether a file may be opened, and what was lost to a time limit, can change by itself.
        settled = before["reason"] not in ("no-permission", "vanished", "time-limit")
        if same and settled and before["slices"] == len(rows[path]):
            kept[path] = rows[path]
    return kept


def _rows_of(known: Discovery | None) -> list[Row]:
    if known is None:
        return []
    rows: list[Row] = known.slices.to_pylist()
    return [row for row in rows if not row["withdrawn"]]


# --- the slices --------------------------------------------------------------------------------


class _Opener:
    """Opens files for their headers and keeps those it could not: path -> why."""

    def __init__(self, data: Data, headers: Open, progress: Callable[[int], None] | None) -> None:
        self.data, self.headers = data, headers
        self.progress = progress or (lambda count: None)
        self.opened = 0
        self.refused: dict[str, UnreadableError] = {}

    def open(self, paths: list[str]) -> list[Place]:
        """Return the slices of the files, in order."""
        if not paths:
            return []
        check_tags(self.data.tags)
        places = []
        for path, headers in zip(paths, self.headers(paths), strict=True):
            self.opened += 1
            self.progress(self.opened)
            if isinstance(headers, UnreadableError):
                self.refused[path] = headers
            else:
                places += [Place(path, header) for header in headers]
        return places


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


def _as_table(rows: Iterator[Row]) -> pa.Table:
    """Return SLICE_SCHEMA rows as a table, some at a time: Python's take ten times the room."""
    pieces = iter(lambda: list(itertools.islice(rows, 4096)), [])
    batches = [pa.RecordBatch.from_pylist(some, schema=SLICE_SCHEMA) for some in pieces]
    return pa.Table.from_batches(batches, schema=SLICE_SCHEMA)


def _settle(places: list[Place], data: Data, key: bytes) -> Iterator[Row]:
    """Yield SLICE_SCHEMA rows: series by series, volume by volume, along the normal."""
    series: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        series[_series_of(place)].append(place)
    fill = _Filler(data)
    for raw, members in series.items():
        name = pseudonym(key, "series", raw)
        for number, volume in enumerate(volumes(members), start=1):
            label = name if number == 1 else f"{name}.{number}"
            yield from (_slice_row(place, label, fill, key) for place in volume)


def _series_of(place: Place) -> str:
    """Return the series' own identifier; a file that names none is a series by itself."""
    return place.header.series or place.path


def _bases(rows: Iterable[Row]) -> set[str]:
    """Return the pseudonyms of the rows' series, without the numbers of their volumes."""
    return {row["series"].partition(".")[0] for row in rows}


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


def _slice_row(place: Place, series: str, fill: _Filler, key: bytes) -> Row:
    header, path = place.header, unescape_path(place.path)

    def hidden(kind: str, raw: str | None) -> str | None:
        return pseudonym(key, kind, raw) if raw else None

    return {
        "row": None,
        "path": place.path,
        "frame": header.frame,
        "patient": hidden("patient", header.patient or fill.patient(path)),
        "study": hidden("study", header.study),
        "series": series,
        "instance": hidden("instance", header.instance),
        "position_mm": header.position_mm,
        "modality": header.modality or fill.modality(path),
        "height": header.height,
        "width": header.width,
        "spacing_y_mm": header.spacing_mm[0] if header.spacing_mm else None,
        "spacing_x_mm": header.spacing_mm[1] if header.spacing_mm else None,
        "flags": [*header.flags, *_telling(path, header)],
        "tags": [(tag, hidden(f"tag:{tag}", raw)) for tag, raw in header.tags.items()] or None,
        "withdrawn": False,
    }


def _tables(
    files: dict[str, Row],
    slices: pa.Table,
    refused: dict[str, UnreadableError],
    known: Discovery | None,
) -> Discovery:
    """Return both tables; series come in the order of their first files."""
    paths = pa.array(list(files), pa.string())
    of_file = pc.index_in(slices["path"], value_set=paths).to_numpy()
    bases = pc.list_element(pc.split_pattern(slices["series"], ".", max_splits=1), 0)
    series = bases.combine_chunks().dictionary_encode()
    which, first = series.indices.to_numpy(), np.full(len(series.dictionary), len(files))
    np.minimum.at(first, which, of_file)
    counts = np.bincount(of_file, minlength=len(files)).tolist()
    before = {row["path"]: row for row in known.files.to_pylist()} if known else {}
    for (path, row), count in zip(files.items(), counts, strict=True):
        row["slices"] = count
        if path in refused:
            row["reason"], row["detail"] = _told(path, refused[path])
        elif not count and not row["reason"]:  # as it was: set aside then, set aside now
            row["reason"], row["detail"] = before[path]["reason"], before[path]["detail"]
    place, unnumbered = SLICE_SCHEMA.get_field_index("row"), pa.nulls(len(slices), pa.int64())
    ordered = slices.take(np.argsort(first[which], kind="stable"))
    return Discovery(
        files=pa.Table.from_pylist(list(files.values()), schema=FILE_SCHEMA),
        slices=ordered.set_column(place, SLICE_SCHEMA.field("row"), unnumbered),
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
