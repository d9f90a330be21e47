"""A BIDS folder as a table of labels: a row an image, with what the folder's own tables say of it.

participants.tsv says it of a subject, sub-01_sessions.tsv of a session, ..._scans.tsv of a file.
What is said nearest to the file counts. phenotype/TOOL.tsv has the measures of a tool by subject,
or by subject and session: its column is TOOL.column, or column alone where no other table has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
_PHENOTYPE = "phenotype"
# Keys -> what the columns of a table say of it.
_Rows = dict[tuple[str, ...], dict[str, str]]


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

    there: all that the tables of subjects, sessions and files have. measures: what each tool's
    have.
    """

    root: Path
    wanted: Sequence[str]
    there: set[str] = field(default_factory=set)
    measures: dict[str, set[str]] = field(default_factory=dict)
    _read: dict[str, _Rows] = field(default_factory=dict)
    _tools: dict[str, list[str]] = field(default_factory=dict)

    def of(self, path: str, image: BidsName) -> dict[str, str]:
        """Return what the tables say of an image, by column."""
        subject = image.folder
        folder = f"{subject}/{image.session}" if image.session else subject
        labels = "_".join(filter(None, [image.subject, image.session]))
        above = f"{image.dataset}/" if image.dataset else ""
        sources = [*self._of_tools(f"{above}{_PHENOTYPE}", image)]
        for table, key, value in (
            (f"{above}participants.tsv", _PARTICIPANT, image.subject),
            (f"{subject}/{image.subject}_sessions.tsv", _SESSION, image.session),
            (f"{folder}/{labels}_scans.tsv", _SCAN, path.removeprefix(f"{folder}/")),
        ):
            sources.append(self._rows(table, [key]).get((value,), {}))
        # From far to near: an empty cell takes nothing from what stands farther away.
        cells: dict[str, str] = {}
        for row in sources:
            cells |= {name: text for name, text in row.items() if text or name not in cells}
        return cells

    def _of_tools(self, folder: str, image: BidsName) -> Iterator[dict[str, str]]:
        """Yield what each tool measured of a subject, first at no session, then at the image's."""
        if folder not in self._tools:
            self._tools[folder] = sorted(path.stem for path in (self.root / folder).glob("*.tsv"))
        for tool in self._tools[folder]:
            rows = self._rows(f"{folder}/{tool}.tsv", [_PARTICIPANT, _SESSION], tool)
            for session in dict.fromkeys(["", image.session]):
                yield rows.get((image.subject, session), {})

    def check_columns(self) -> None:
        """Raise LabelError where a column stands in no table, or in those of several tools."""
        qualified = [f"{tool}.{name}" for tool, names in self.measures.items() for name in names]
        every = sorted({*self.there, *qualified})
        for name in self.wanted:
            if places_of(name, every):
                continue
            meant = [
                each for each in sorted(qualified) if places_of(name, [each.partition(".")[2]])
            ]
            if len(meant) > 1:
                raise LabelError(
                    f"The column {name!r} stands in several tables of the BIDS folder "
                    f"{str(self.root)!r}. Say which is meant: {' or '.join(meant)}."
                )
            if not meant:
                raise LabelError(
                    f"The BIDS folder {str(self.root)!r} has no column {name!r} in "
                    "participants.tsv, nor in tables of sessions, scans or phenotype. "
                    f"{hint(name, self.wanted, every)}"
                )

    def notes(self, images: Iterable[BidsName]) -> tuple[str, ...]:
        """Return who of participants.tsv has no image, and who has one and no row there."""
        with_image = {(image.dataset, image.subject) for image in images}
        notes = []
        for dataset in sorted({dataset for dataset, _ in with_image}):
            table = f"{dataset}/participants.tsv" if dataset else "participants.tsv"
            named = {subject for subject, *_ in self._read.get(table, ())}
            imaged = {subject for of_set, subject in with_image if of_set == dataset}
            if not named:
                continue
            for without, what in ((named - imaged, "no image"), (imaged - named, "no row there")):
                if without:
                    have = "has" if len(without) == 1 else "have"
                    notes.append(f"{table}: {count(len(without), 'subject')} {have} {what}")
        return tuple(notes)

    def _rows(self, table: str, keys: Sequence[str], tool: str = "") -> _Rows:
        """Return what a table says of what its keys name; nothing where there is none."""
        if table not in self._read:
            path = self.root / table
            self._read[table] = self._rows_of(path, keys, tool) if path.is_file() else {}
        return self._read[table]

    def _rows_of(self, path: Path, keys: Sequence[str], tool: str) -> _Rows:
        header = header_of(path)
        if tool:
            self.measures.setdefault(tool, set()).update(header)
        else:
            self.there.update(header)
        columns: dict[str, str] = {}
        for name in self.wanted:
            of_tool = name.removeprefix(f"{tool}.") if tool else name
            if places_of(of_tool, header):
                columns[name] = of_tool
        # A subject has no session in a table without that column.
        there = [key for key in keys if key == keys[0] or places_of(key, header)]
        texts = read_table(path, [*dict.fromkeys([*there, *columns.values()])]).columns
        rows: _Rows = {}
        for values in zip(*texts.values(), strict=True):
            row = dict(zip(texts, map(_cell_text, values), strict=True))
            named = tuple(_with_key(key, row.get(key, "")) for key in keys)
            cells = {name: row[column] for name, column in columns.items()}
            if rows.setdefault(named, cells) != cells:
                raise LabelError(
                    f"{str(path)!r} has two rows of one {' and '.join(there)} with other values. "
                    "Keep one of them."
                )
        return rows


def _with_key(column: str, text: str) -> str:
    """Return a subject or session as its folder is called, where a table has the label alone."""
    beginning = {_PARTICIPANT: "sub-", _SESSION: "ses-"}.get(column, "")
    return text if not text or text.startswith(beginning) else beginning + text


def _cell_text(cell: str) -> str:
    """Return what a cell says: n/a, in every BIDS table, is nothing."""
    text = cell.strip()
    return "" if text == "n/a" else text
