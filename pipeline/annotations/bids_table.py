"""A BIDS folder as a table of labels: a row an image, with what the folder's own tables say of it.

participants.tsv says it of a subject, sub-01_sessions.tsv of a session, ..._scans.tsv of a file.
What is said nearest to the file counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.annotations.tables import TextTable, header_of, hint, places_of, read_table
from pipeline.shared.bids import ASIDE, BESIDE, MASKS, BidsName, parse_bids
from pipeline.shared.folders import files_below
from pipeline.shared.texts import count
from stores.errors import LabelError

# The column that a row's image is named by: its path.
KEY = "path"
_PARTICIPANT = "participant_id"
_SESSION = "session_id"
_SCAN = "filename"
# Key -> what the columns of a table say of it.
_Rows = dict[str, dict[str, str]]


def read_bids_table(root: Path, names: Sequence[str]) -> TextTable:
    """Return a row for each image of a folder of BIDS, or of folders of BIDS; names: its columns.

    A cell is empty where no table says anything. Raises LabelError for a column that no table has,
    and for a table that cannot be read or says two things of one subject, session or file.
    """
    images = dict(_images(files_below(root, but=ASIDE)))
    if not images:
        raise LabelError(
            f"The label file {str(root)!r} is a folder, and none of BIDS: it has no file such as "
            "sub-01/anat/sub-01_T1w.nii.gz. Set labels.file to a CSV, .xlsx or Parquet."
        )
    wanted = [name for name in names if name != KEY]
    tables = _Tables(root, wanted)
    columns: dict[str, list[str]] = {name: [] for name in names}
    for path, image in images.items():
        cells = tables.of(path, image) if wanted else {}
        for name, column in columns.items():
            column.append(path if name == KEY else cells.get(name, ""))
    tables.check_columns()
    notes = tables.notes(images.values()) if wanted else ()
    return TextTable(columns, notes=notes, lists_files=True)


def _images(paths: Iterable[str]) -> Iterable[tuple[str, BidsName]]:
    for path in paths:
        name = parse_bids(path)
        is_image = name and name.suffix not in ("", *MASKS) and name.extension not in BESIDE
        if name and is_image:
            yield path, name


@dataclass
class _Tables:
    """The tables of a folder of BIDS, each read once; wanted: columns, of which each has some.

    there: all that the tables have.
    """

    root: Path
    wanted: Sequence[str]
    there: set[str] = field(default_factory=set)
    _read: dict[str, _Rows] = field(default_factory=dict)

    def of(self, path: str, image: BidsName) -> dict[str, str]:
        """Return what the tables say of an image, by column."""
        subject = image.folder
        folder = f"{subject}/{image.session}" if image.session else subject
        labels = "_".join(filter(None, [image.subject, image.session]))
        above = f"{image.dataset}/" if image.dataset else ""
        from_far_to_near = [
            (f"{above}participants.tsv", _PARTICIPANT, image.subject),
            (f"{subject}/{image.subject}_sessions.tsv", _SESSION, image.session),
            (f"{folder}/{labels}_scans.tsv", _SCAN, path.removeprefix(f"{folder}/")),
        ]
        cells: dict[str, str] = {}
        for table, key, value in from_far_to_near:
            row = self._rows(table, key).get(value, {})
            cells |= {name: text for name, text in row.items() if text or name not in cells}
        return cells

    def check_columns(self) -> None:
        """Raise LabelError where a column stands in no table."""
        for name in self.wanted:
            if not places_of(name, sorted(self.there)):
                which = hint(name, self.wanted, sorted(self.there))
                raise LabelError(
                    f"The BIDS folder {str(self.root)!r} has no column {name!r} in "
                    f"participants.tsv, nor in tables of sessions or scans. {which}"
                )

    def notes(self, images: Iterable[BidsName]) -> tuple[str, ...]:
        """Return who of participants.tsv has no image, and who has one and no row there."""
        with_image = {(image.dataset, image.subject) for image in images}
        notes = []
        for dataset in sorted({dataset for dataset, _ in with_image}):
            table = f"{dataset}/participants.tsv" if dataset else "participants.tsv"
            named = set(self._read.get(table, ()))
            imaged = {subject for of_set, subject in with_image if of_set == dataset}
            if not named:
                continue
            for without, what in ((named - imaged, "no image"), (imaged - named, "no row there")):
                if without:
                    have = "has" if len(without) == 1 else "have"
                    notes.append(f"{table}: {count(len(without), 'subject')} {have} {what}")
        return tuple(notes)

    def _rows(self, table: str, key: str) -> _Rows:
        """Return what a table says of what `key` names; nothing where there is none."""
        if table not in self._read:
            path = self.root / table
            self._read[table] = self._rows_of(path, key) if path.is_file() else {}
        return self._read[table]

    def _rows_of(self, path: Path, key: str) -> _Rows:
        header = header_of(path)
        self.there.update(header)
        columns = read_table(path, [key, *(n for n in self.wanted if places_of(n, header))]).columns
        rows: _Rows = {}
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, map(_said, values), strict=True))
            name = _with_key(key, row[key])
            if rows.setdefault(name, row) != row:
                raise LabelError(
                    f"{str(path)!r} has two rows of one {key} with other values. Keep one of them."
                )
        return rows


def _with_key(column: str, text: str) -> str:
    """Return a subject or session as its folder is called, where a table has the label alone."""
    beginning = {_PARTICIPANT: "sub-", _SESSION: "ses-"}.get(column, "")
    return text if text.startswith(beginning) else beginning + text


def _said(cell: str) -> str:
    """Return what a cell says: n/a, in every BIDS table, is nothing."""
    text = cell.strip()
    return "" if text == "n/a" else text
