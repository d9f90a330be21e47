"""What is found against what is stored: which slice has which row, which is new, which is gone."""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stores.slices import SLICE_SCHEMA

Kind = Literal["moved", "added", "changed", "retried", "withdrawn"]
KINDS: tuple[Kind, ...] = ("moved", "added", "changed", "retried", "withdrawn")
# Reasons that can pass by themselves: the slice is tried again, in a new row, so many times.
TRANSIENT = frozenset({"no-permission", "vanished", "time-limit"})
RETRIES = 2
_NEW = "it is new"

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
    their slices are not among the found. joined: whether the slices of one series stand or fall
    together, by their modality, because the features of each depend on all.
    """

    opened: AbstractSet[str]
    digest_of: Callable[[int], str | None]
    hash_file: Callable[[str], str | None]
    boundary: int
    failed: Mapping[int, str] = field(default_factory=dict)
    spent: AbstractSet[int] = frozenset()
    withdrawn: AbstractSet[str] = frozenset()
    joined: Callable[[str], bool] = lambda modality: False


def reconcile(stored: pa.Table, found: pa.Table, known: Known) -> Reconciled:
    """Give found slices their row numbers: known content keeps its row, the rest is appended.

    stored, found: SLICE_SCHEMA, found in extraction order without rows. A slice keeps its row by
    path and frame while its content is the same, or by content where a file was moved or renamed;
    one no longer found is withdrawn; one whose reading failed for a passing reason is tried again.
    A joined series of which a slice came, went or changed is appended anew as a whole.
    """
    if not stored.num_rows:
        return _all_new(found, known.boundary)
    live = stored.filter(pc.invert(stored["withdrawn"]))
    again = known.spent | {row for row, reason in known.failed.items() if reason in TRANSIENT}
    stands = again.isdisjoint(live["row"].to_pylist()) and _same(live, found)
    if stands and known.opened.isdisjoint(found["path"].to_pylist()):
        return Reconciled(stored, live.num_rows)
    return _Settling(stored.to_pylist(), known).settle(found.to_pylist())


def _all_new(found: pa.Table, first: int) -> Reconciled:
    """Number the slices of a store that has none yet, as a table: Python's take ten times room."""
    rows = np.arange(first, first + found.num_rows)
    place = found.schema.get_field_index("row")
    slices = found.set_column(place, SLICE_SCHEMA.field("row"), pa.array(rows))
    names = zip(found["path"].to_pylist(), found["frame"].to_pylist(), rows.tolist(), strict=True)
    return Reconciled(
        slices, 0, tuple(Change("added", path, frame, row, _NEW) for path, frame, row in names)
    )


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
        self.rows: dict[Name, int] = {}  # of the found slices that keep one
        self.verdicts: dict[Name, tuple[Kind, str]] = {}  # of those that are not as they were
        self.changes: list[Change] = []

    def settle(self, found: list[Row]) -> Reconciled:
        """Settle every found slice, then what is left over."""
        for slice_ in found:
            row = self.by_name.get(_name(slice_))
            verdict = self._differs(slice_, row) if row else ("added", _NEW)
            if verdict is not None:
                self.verdicts[_name(slice_)] = verdict
            elif row is not None:
                self.rows[_name(slice_)] = row["row"]
        self._follow(found)
        self._tear(found)
        table = self._number(found)
        gone = [row for row in self.stored if row["row"] not in table]
        self._withdraw(row for row in gone if not row["withdrawn"])
        table |= {row["row"]: {**row, "withdrawn": True} for row in gone}
        rows = sorted(table.values(), key=lambda row: row["row"])
        same = len(found) - len(self.verdicts)
        slices = pa.Table.from_pylist(rows, schema=SLICE_SCHEMA)
        return Reconciled(slices, same, tuple(self.changes))

    def _differs(self, slice_: Row, row: Row | None) -> tuple[Kind, str] | None:
        """Return why a found slice is not what the row of its name was made from; None if it is."""
        if row is None:
            return "added", _NEW
        number, opened = row["row"], slice_["path"] in self.known.opened
        if slice_["modality"] != row["modality"]:  # its intensities are read by another rule now
            return "changed", f"its modality was {row['modality']}, now {slice_['modality']}"
        if number in self.known.spent:
            return "added", f"its row {number} was withdrawn before it was embedded, or purged"
        reason, made_from = self.known.failed.get(number), self.known.digest_of(number)
        if reason in TRANSIENT and (opened or self._tries(_name(row)) <= RETRIES):
            return "retried", f"it could not be read before ({reason})"
        if not opened:
            return None
        unread = made_from is None and reason is None
        if unread and not self.known.joined(slice_["modality"]):  # never embedded: as it is now
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

    def _follow(self, found: list[Row]) -> None:
        """Find rows by content for slices that have none by name."""
        taken = set(self.rows.values())
        by_content: dict[Any, list[Row]] = defaultdict(list)
        for row in self.stored:
            content = self.known.digest_of(row["row"]) if row["row"] not in taken else None
            if content and self.known.failed.get(row["row"]) not in TRANSIENT:
                by_content[content, row["frame"], row["modality"]].append(row)
        for slice_ in found if by_content else ():
            if _name(slice_) in self.rows:
                continue
            content = self.hash_file(slice_["path"])
            same = by_content.get((content, slice_["frame"], slice_["modality"]))
            if same:
                row = same.pop()
                self.rows[_name(slice_)] = row["row"]
                self.verdicts[_name(slice_)] = "moved", f"it was {row['path']!r}"

    def _tear(self, found: list[Row]) -> None:
        """Take its rows from a joined series that is not exactly a live one."""
        live, here = defaultdict(set), defaultdict(list)
        for row in self.stored:
            if not row["withdrawn"]:
                live[row["series"]].add(row["row"])
        for slice_ in found:
            if self.known.joined(slice_["modality"]):
                here[slice_["series"]].append(_name(slice_))
        whole = set(map(frozenset, live.values()))
        for names in here.values():
            if frozenset(self.rows.get(name) for name in names) in whole:
                continue
            for name in names:
                if self.rows.pop(name, None) is not None:
                    self.verdicts[name] = "changed", "a slice of its series came, went or changed"

    def _number(self, found: list[Row]) -> dict[int, Row]:
        """Return the live rows: those that slices keep, and fresh ones for the others."""
        fresh = itertools.count(self.known.boundary)
        table = {}
        for slice_ in found:
            name = _name(slice_)
            row = self.rows[name] if name in self.rows else next(fresh)
            table[row] = {**slice_, "row": row, "withdrawn": False}
            if name in self.verdicts:
                kind, why = self.verdicts[name]
                self._tell(kind, slice_, row, why)
        return table

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
