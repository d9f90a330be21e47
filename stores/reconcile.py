"""What is found against what is stored: which slice has which row, which is new, which is gone."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from stores.slices import SLICE_SCHEMA

Kind = Literal["moved", "added", "changed", "retried", "withdrawn"]
KINDS: tuple[Kind, ...] = ("moved", "added", "changed", "retried", "withdrawn")
# Reasons that can pass by themselves: the slice is tried again, in a new row, so many times.
TRANSIENT = frozenset({"no-permission", "vanished", "time-limit"})
RETRIES = 2

Row = dict[str, Any]
Name = tuple[str, int]  # path and frame


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one slice, in which row, and why."""

    kind: Kind
    path: str
    frame: int
    row: int
    why: str


@dataclass(frozen=True)
class Reconciled:
    """A new slice table, and what changed on the way to it."""

    slices: pa.Table
    same: int
    changes: tuple[Change, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Return how many slices came into the table which way."""
        counts = Counter(change.kind for change in self.changes)
        return {"same": self.same} | {kind: counts[kind] for kind in KINDS}


@dataclass(frozen=True)
class Known:
    """What the caller knows beside the tables.

    opened: found paths whose size or time differ from when they were last seen. digest_of: row ->
    sha256 of the file it was made from, None where there is none. hash_file: path -> sha256 now.
    failed: row -> reason, of committed rows that could not be read. spent: rows that hold nothing
    and never will. boundary: the first row of a fresh part. withdrawn: patients withdrawn by name;
    their slices are not among the found.
    """

    opened: AbstractSet[str]
    digest_of: Callable[[int], str | None]
    hash_file: Callable[[str], str | None]
    boundary: int
    failed: Mapping[int, str] = field(default_factory=dict)
    spent: AbstractSet[int] = frozenset()
    withdrawn: AbstractSet[str] = frozenset()


def reconcile(stored: pa.Table, found: pa.Table, known: Known) -> Reconciled:
    """Give found slices their row numbers: known content keeps its row, the rest is appended.

    stored, found: SLICE_SCHEMA, found in extraction order without rows. A slice keeps its row by
    path and frame while its content is the same, or by content where a file was moved or renamed;
    one no longer found is withdrawn; one whose reading failed for a passing reason is tried again.
    """
    live = stored.filter(pc.invert(stored["withdrawn"]))
    again = known.spent | {row for row, reason in known.failed.items() if reason in TRANSIENT}
    stands = again.isdisjoint(live["row"].to_pylist()) and _same(live, found)
    if stands and known.opened.isdisjoint(found["path"].to_pylist()):
        return Reconciled(stored, live.num_rows)
    return _Settling(stored.to_pylist(), known).settle(found.to_pylist())


def _same(live: pa.Table, found: pa.Table) -> bool:
    """Return whether two tables hold the same slices, in whatever order."""
    if live.num_rows != found.num_rows:
        return False
    by_name = [("path", "ascending"), ("frame", "ascending")]
    here, there = (t.drop_columns(["row", "withdrawn"]).sort_by(by_name) for t in (live, found))
    return bool(here.equals(there))


class _Settling:
    """The rows that stand, against the slices that are found; see `reconcile`."""

    def __init__(self, stored: list[Row], known: Known) -> None:
        self.stored = sorted(stored, key=lambda row: not row["withdrawn"])  # live rows win
        self.known = known
        self.hash_file = functools.cache(known.hash_file)
        self.by_name: dict[Name, Row] = {_name(row): row for row in self.stored}
        self.kept: dict[int, Row] = {}
        self.changes: list[Change] = []

    def settle(self, found: list[Row]) -> Reconciled:
        """Settle every found slice, then what is left over."""
        rest: list[tuple[Row, Kind, str]] = []
        for slice_ in found:
            row = self.by_name.get(_name(slice_))
            verdict: tuple[Kind, str] | None = ("added", "it is new")
            if row is not None:
                verdict = self._differs(slice_, row)
            if row is not None and verdict is None:
                self.kept[row["row"]] = slice_
            elif verdict is not None:
                rest.append((slice_, *verdict))
        same = len(self.kept)
        appended = self._append(rest)
        gone = [row for row in self.stored if row["row"] not in self.kept]
        self._withdraw(row for row in gone if not row["withdrawn"])
        rows = [
            *({**slice_, "row": row, "withdrawn": False} for row, slice_ in self.kept.items()),
            *appended,
            *({**row, "withdrawn": True} for row in gone),
        ]
        table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["row"]), schema=SLICE_SCHEMA)
        return Reconciled(table, same, tuple(self.changes))

    def _differs(self, slice_: Row, row: Row) -> tuple[Kind, str] | None:
        """Return why a found slice is not what the row of its name was made from; None if it is."""
        number, opened = row["row"], slice_["path"] in self.known.opened
        if slice_["modality"] != row["modality"]:  # its intensities are read by another rule now
            return "changed", f"its modality was {row['modality']}, now {slice_['modality']}"
        if number in self.known.spent:
            return "added", f"its row {number} was withdrawn before it was embedded, or purged"
        reason, made_from = self.known.failed.get(number), self.known.digest_of(number)
        if reason in TRANSIENT and (opened or self._tries(_name(row)) <= RETRIES):
            return "retried", f"it could not be read before ({reason})"
        if not opened or (made_from is None and reason is None):  # never embedded: take it as it is
            return None
        if made_from is not None and made_from == self.hash_file(slice_["path"]):
            return None
        return "changed", "the content of its file changed"

    def _tries(self, name: Name) -> int:
        """Return how often reading a slice has failed for a passing reason."""
        return self._failures[name]

    @functools.cached_property
    def _failures(self) -> Counter[Name]:
        failed = self.known.failed
        return Counter(_name(row) for row in self.stored if failed.get(row["row"]) in TRANSIENT)

    def _append(self, rest: list[tuple[Row, Kind, str]]) -> list[Row]:
        """Find rows by content for slices that have none by name; number the others anew."""
        by_content: dict[Any, list[Row]] = defaultdict(list)
        for row in self.stored:
            content = self.known.digest_of(row["row"]) if row["row"] not in self.kept else None
            if content and self.known.failed.get(row["row"]) not in TRANSIENT:
                by_content[content, row["frame"], row["modality"]].append(row)
        appended: list[Row] = []
        for slice_, kind, why in rest:
            content = self.hash_file(slice_["path"]) if by_content else None
            same = by_content.get((content, slice_["frame"], slice_["modality"]))
            if same:
                row = same.pop()
                self.kept[row["row"]] = slice_
                self._tell("moved", slice_, row["row"], f"it was {row['path']!r}")
            else:
                appended.append({**slice_, "row": self.known.boundary + len(appended)})
                self._tell(kind, slice_, appended[-1]["row"], why)
        return appended

    def _withdraw(self, gone: Iterable[Row]) -> None:
        replaced = {(c.path, c.frame): c.row for c in self.changes if c.kind != "moved"}
        for row in gone:
            why = "it is no longer found"
            if row["patient"] in self.known.withdrawn:
                why = "its patient was withdrawn"
            elif _name(row) in replaced:
                why = f"row {replaced[_name(row)]} takes its place"
            self._tell("withdrawn", row, row["row"], why)

    def _tell(self, kind: Kind, slice_: Row, row: int, why: str) -> None:
        self.changes.append(Change(kind, slice_["path"], slice_["frame"], row, why))


def _name(row: Row) -> Name:
    return row["path"], row["frame"]
