"""What was discovered against what is stored: which slice has which row, what is new or gone.

Most slices of most collections are as they were, or are merely new: those are told apart by
columns. The others, a few, are looked at one by one.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stores._types import Mask, Rows
from stores.slices import (
    SliceRow,
    of_modalities,
    row_numbers,
    slice_rows,
    where,
    with_column,
)

Kind = Literal["moved", "added", "changed", "retried", "withdrawn"]
# Why a slice is withdrawn that nothing takes the place of.
NOT_FOUND = "it is no longer found"
PATIENT_WITHDRAWN = "its patient was withdrawn"
KINDS: tuple[Kind, ...] = ("moved", "added", "changed", "retried", "withdrawn")
# Reasons that can pass by themselves: the slice is tried again, in a new row, so many times.
TRANSIENT = frozenset({"no-permission", "vanished", "time-limit", "killed"})
RETRIES = 2
_NEW = "it is new"
# The columns by which a slice is matched to a row.
_COLUMNS = ["row", "path", "frame", "series", "modality", "patient", "withdrawn"]

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
    """A new slice table, and what changed on the way to it.

    same: how many slices are as they were. added: slices that are new and nothing else, as a
    table: Python's take ten times the room. others: every other change.
    """

    slices: pa.Table
    same: int
    added: pa.Table
    others: tuple[Change, ...] = ()

    @property
    def changes(self) -> Iterator[Change]:
        """What changed, slice by slice."""
        yield from self.others
        added = self.added.select(["path", "frame", "row"])
        for batch in added.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield Change("added", **row, why=_NEW)

    @property
    def counts(self) -> dict[str, int]:
        """How many slices came into the table which way."""
        counts = Counter(change.kind for change in self.others)
        counts["added"] += self.added.num_rows
        return {"same": self.same} | {kind: counts[kind] for kind in KINDS}


@dataclass(frozen=True)
class Known:
    """What the caller knows beside the tables.

    opened: discovered paths whose size or time differ from when they were last seen. digest_of: row
    -> sha256 of the file it was made from, None where there is none. hash_file: path -> sha256 now,
    remembered, since a path is asked for more than once. failed: row -> reason, of committed rows
    that could not be read. spent: rows that hold nothing and never will. boundary: the first row of
    a fresh part. withdrawn: patients withdrawn by name; their slices are not among the discovered.
    barred: rows of theirs, which no other slice takes for its content. joined: whether the slices
    of one series stand or fall together, by their modality, because the features of each depend on
    all. why_gone: of a slice (path, frame) that is not among the discovered, why.
    """

    opened: pa.Array
    digest_of: Callable[[int], str | None]
    hash_file: Callable[[str], str | None]
    boundary: int
    failed: Mapping[int, str] = field(default_factory=dict)
    spent: AbstractSet[int] = frozenset()
    withdrawn: AbstractSet[str] = frozenset()
    barred: AbstractSet[int] = frozenset()
    joined: Callable[[str], bool] = lambda modality: False
    why_gone: Callable[[str, int], str] = lambda path, frame: NOT_FOUND

    def to_retry(self) -> list[int]:
        """Return the rows that could not be read for a reason that can pass."""
        return [row for row, reason in self.failed.items() if reason in TRANSIENT]

    def is_as_made(self, row: int, path: str, *, joined: bool) -> bool:
        """Return whether a file that was opened is what a row was made from, or will be."""
        made_from = self.digest_of(row)
        if made_from is None:  # never embedded, and so as it is now; or it could not be read
            return row not in self.failed and not joined
        return made_from == self.hash_file(path)


def reconcile(stored: pa.Table, discovered: pa.Table, known: Known) -> Reconciled:
    """Give discovered slices their rows: known content keeps its row, the rest is appended.

    stored, discovered: SLICE_SCHEMA, the discovered in extraction order, their rows meaningless. A
    slice keeps its row by path and frame while its content is the same, or by content where a file
    was moved or renamed; one no longer discovered is withdrawn; one whose reading failed for a
    passing reason is tried again. A joined series of which a slice came, went or changed is
    appended anew as a whole.
    """
    # First what is as it was, by columns: nothing else may take those rows.
    unchanged = _unchanged(stored, discovered, known)
    same = where(discovered, pa.array(unchanged.mask))
    same = _with_rows(same, unchanged.rows)
    rest = where(discovered, pa.array(~unchanged.mask))
    left_over = _without_rows(stored, unchanged.rows)

    # Then what has to do with none of the rows left over, by columns too. What remains may be a
    # slice that moved, changed or failed, and is looked at one by one.
    new = _merely_new(left_over, rest, known)
    few = rest.filter(~new).select(_COLUMNS)
    opened = pc.is_in(few["path"], known.opened)
    opened_paths = few["path"].filter(opened).to_pylist()
    matching = _Matching(left_over, set(opened_paths), known)
    slices = slice_rows(few)
    matches = matching.match(slices)

    # Fresh rows last, and in the order of the discovered, so that a part reads files in order.
    rows = _fresh_rows(new, matches, known.boundary)
    rest = _with_rows(rest, rows)
    gone = _without_rows(left_over, rows)
    withdrawn = np.ones(len(gone), bool)
    gone = with_column(gone, "withdrawn", pa.array(withdrawn))
    changes = matching.changes(slices, rows[~new].tolist())
    return Reconciled(
        slices=_by_row(pa.concat_tables([same, rest, gone])),
        same=len(same) + len(slices) - len(matching.verdicts),
        added=rest.filter(new),
        others=changes,
    )


def _with_rows(slices: pa.Table, rows: Rows) -> pa.Table:
    """Return discovered slices with their rows (n,)."""
    return with_column(slices, "row", pa.array(rows))


def _without_rows(slices: pa.Table, rows: Rows) -> pa.Table:
    """Return the stored slices that have none of some rows."""
    among = np.isin(row_numbers(slices), rows)
    return slices.filter(~among)


def _fresh_rows(new: Mask, matches: Sequence[int | None], boundary: int) -> Rows:
    """Return (n,) the row of each slice: its match, or the next fresh one from the boundary on.

    new (n,): slices that have no match; matches: of the others in order, None for none.
    """
    fresh = new.copy()
    fresh[~new] = [row is None for row in matches]
    rows = boundary - 1 + np.cumsum(fresh)
    rows[~fresh] = [row for row in matches if row is not None]
    return rows


def _by_row(slices: pa.Table) -> pa.Table:
    rows = row_numbers(slices)
    ascending = (np.diff(rows) >= 0).all()
    # Mostly they are in order already, and a copy of the table is saved.
    return slices if ascending else slices.take(np.argsort(rows))


# --- by columns ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unchanged:
    """Which discovered slices are as they were: a mask (n,), and the rows of those it keeps."""

    mask: Mask
    rows: Rows


def _unchanged(stored: pa.Table, discovered: pa.Table, known: Known) -> _Unchanged:
    """Return which discovered slices nothing speaks against being the live ones of their names."""
    live = where(stored, pc.invert(stored["withdrawn"]))
    if not live.num_rows:
        none = np.zeros(discovered.num_rows, bool)
        return _Unchanged(none, np.zeros(0, np.int64))
    at = _places_by_name(live, discovered)
    same = at >= 0
    rows = row_numbers(live)[at]
    before = live.select(["modality", "series"])
    before = before.take(at % live.num_rows)  # of any slice where there is none of the name
    same &= pc.equal(discovered["modality"], before["modality"]).to_numpy()
    replaced = [*known.spent, *known.to_retry()]
    same &= ~np.isin(rows, replaced)
    joined = of_modalities(discovered, known.joined).to_numpy()
    # Only files that were opened are hashed: size and time of all others are as they were.
    opened = pc.is_in(discovered["path"], known.opened).to_numpy()
    for place in np.flatnonzero(same & opened).tolist():
        row = int(rows[place])
        path = discovered["path"][place].as_py()
        depends = bool(joined[place])
        same[place] = known.is_as_made(row, path, joined=depends)
    if joined.any():
        same &= pc.equal(discovered["series"], before["series"]).to_numpy()
        # Last, when it is known which slices are the same: one that is not takes its series along.
        complete = _in_complete_series(live, discovered, same)
        same &= complete | ~joined
    return _Unchanged(same, rows[same])


def _places_by_name(live: pa.Table, discovered: pa.Table) -> Rows:
    """Return (n,) where in `live` the slice of each discovered name is; -1 where none has it."""
    paths = pc.unique(live["path"])
    live_codes = _codes(live, paths)
    codes = _codes(discovered, paths)
    order = np.argsort(live_codes)
    nearest = np.searchsorted(live_codes, codes, sorter=order)
    nearest = np.minimum(nearest, len(live_codes) - 1)
    at = order[nearest]
    equal = live_codes[at] == codes
    return np.where(equal, at, -1)


def _merely_new(left_over: pa.Table, rest: pa.Table, known: Known) -> Mask:
    """Return (n,) which of the slices have to do with none of the rows left over.

    Neither by name nor by content, nor by a joined series.
    """
    paths = pc.unique(left_over["path"])
    known_name = np.isin(_codes(rest, paths), _codes(left_over, paths))
    new = ~known_name
    digests = map(known.digest_of, row_numbers(left_over).tolist())
    contents = set(filter(None, digests))
    if contents:  # else no file is hashed
        for place in np.flatnonzero(new).tolist():
            path = rest["path"][place].as_py()
            new[place] = known.hash_file(path) not in contents
    others = rest.filter(~new)
    met = [left_over.select(["series"]), others.select(["series"])]
    series = pc.unique(pa.concat_tables(met)["series"])
    in_met_series = pc.is_in(rest["series"], series)
    joined = pc.and_(in_met_series, of_modalities(rest, known.joined))
    return np.asarray(new & ~joined.to_numpy())


def _codes(slices: pa.Table, paths: pa.Array) -> Rows:
    """Return (n,) a number for each slice's name; below zero where its path is none of those."""
    number = pc.fill_null(pc.index_in(slices["path"], paths), -1)
    high = number.to_numpy().astype(np.int64) << 32
    return np.asarray(high | slices["frame"].to_numpy())


def _in_complete_series(live: pa.Table, discovered: pa.Table, same: Mask) -> Mask:
    """Return (n,) which slices are of a series that has all its slices, and no other."""
    names = pc.unique(discovered["series"])
    n = len(names)
    series = pc.index_in(discovered["series"], names).to_numpy()
    of_live = pc.index_in(live["series"], names).drop_null()
    now = np.bincount(series, minlength=n)
    unchanged = np.bincount(series[same], minlength=n)
    before = np.bincount(of_live.to_numpy(), minlength=n)
    complete = (now == unchanged) & (now == before)
    return np.asarray(complete[series])


# --- one by one ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of a slice that is not as it was, and why."""

    kind: Kind
    why: str


class _Matching:
    """Discovered slices, one by one, against the rows that are left over; see `reconcile`.

    rows: of the slices that have one, by name. verdicts: of those that are not as they were.
    """

    def __init__(self, left_over: pa.Table, opened: AbstractSet[str], known: Known) -> None:
        rows = slice_rows(left_over.select(_COLUMNS))
        # Live ones last: of two rows of a name, `_by_name` has the live one. By content, which
        # takes the last of several, the live one comes back before a withdrawn one.
        self._left_over = sorted(rows, key=lambda row: not row.withdrawn)
        self._by_name = {_name(row): row for row in self._left_over}
        self._opened = opened
        self._known = known
        self.rows: dict[Name, int] = {}
        self.verdicts: dict[Name, _Verdict] = {}

    def match(self, slices: Sequence[SliceRow]) -> list[int | None]:
        """Return which row each slice keeps; None where it needs a fresh one."""
        self._match_names(slices)
        # By content only then: a file that kept its name keeps its row, and a copy of it does not.
        self._match_contents(slices)
        # At last, since either may have left a joined series with some rows of before.
        self._tear_series(slices)
        return [self.rows.get(_name(slice_)) for slice_ in slices]

    def changes(self, slices: Sequence[SliceRow], rows: Sequence[int]) -> tuple[Change, ...]:
        """Return what became of the slices, now that all have rows, and of the rows left over."""
        changes = []
        successors: dict[Name, int] = {}
        for slice_, row in zip(slices, rows, strict=True):
            name = _name(slice_)
            verdict = self.verdicts.get(name)
            if verdict is None:
                continue
            changes.append(Change(verdict.kind, *name, row, verdict.why))
            if verdict.kind != "moved":
                successors[name] = row
        taken = set(rows)
        for stored in self._left_over:
            if stored.withdrawn or stored.row in taken:
                continue
            why = self._why_withdrawn(stored, successors)
            changes.append(Change("withdrawn", *_name(stored), stored.row, why))
        return tuple(changes)

    def _why_withdrawn(self, stored: SliceRow, successors: Mapping[Name, int]) -> str:
        if stored.patient in self._known.withdrawn:
            return PATIENT_WITHDRAWN
        if _name(stored) in successors:
            return f"row {successors[_name(stored)]} takes its place"
        return self._known.why_gone(*_name(stored))

    def _match_names(self, slices: Iterable[SliceRow]) -> None:
        for slice_ in slices:
            name = _name(slice_)
            stored = self._by_name.get(name)
            if stored is None:
                self.verdicts[name] = _Verdict("added", _NEW)
                continue
            verdict = self._differs(slice_, stored)
            if verdict is None:
                self.rows[name] = stored.row
            else:
                self.verdicts[name] = verdict

    def _differs(self, slice_: SliceRow, stored: SliceRow) -> _Verdict | None:
        """Return why a slice is not what the row of its name was made from; None if it is."""
        known = self._known
        row = stored.row
        if slice_.modality != stored.modality:  # its intensities are read by another rule now
            why = f"its modality was {stored.modality}, now {slice_.modality}"
            return _Verdict("changed", why)
        if row in known.spent:
            why = f"its row {row} was withdrawn before it was embedded, or purged"
            return _Verdict("added", why)
        opened = slice_.path in self._opened
        reason = known.failed.get(row)
        if reason in TRANSIENT:
            failures = self._failures[_name(stored)]
            if opened or failures <= RETRIES:
                return _Verdict("retried", f"it could not be read before ({reason})")
        joined = known.joined(slice_.modality)
        if not opened or known.is_as_made(row, slice_.path, joined=joined):
            return None
        return _Verdict("changed", "the content of its file changed")

    @functools.cached_property
    def _failures(self) -> Counter[Name]:
        """How often reading the slice of a name has failed for a passing reason."""
        to_retry = set(self._known.to_retry())
        failed = [stored for stored in self._left_over if stored.row in to_retry]
        return Counter(map(_name, failed))

    def _match_contents(self, slices: Iterable[SliceRow]) -> None:
        """Find rows by content for slices that have none by name."""
        by_content = self._untaken_by_content()
        if not by_content:
            return  # and no file is hashed
        for slice_ in slices:
            name = _name(slice_)
            if name in self.rows:
                continue
            content = self._known.hash_file(slice_.path)
            equal = by_content.get((content, slice_.frame, slice_.modality))
            if equal:
                stored = equal.pop()
                self.rows[name] = stored.row
                self.verdicts[name] = _Verdict("moved", f"it was {stored.path!r}")

    def _untaken_by_content(self) -> dict[Any, list[SliceRow]]:
        """Return the rows a slice may have, by content, frame and modality; failed ones aside."""
        not_these = {*self.rows.values(), *self._known.to_retry(), *self._known.barred}
        by_content: dict[Any, list[SliceRow]] = defaultdict(list)
        for stored in self._left_over:
            if stored.row in not_these:
                continue
            content = self._known.digest_of(stored.row)
            if content:
                by_content[content, stored.frame, stored.modality].append(stored)
        return by_content

    def _tear_series(self, slices: Iterable[SliceRow]) -> None:
        """Take its rows from a joined series that is not exactly a live one."""
        live: dict[str, set[int]] = defaultdict(set)
        for stored in self._left_over:
            if not stored.withdrawn:
                live[stored.series].add(stored.row)
        complete = {frozenset(rows) for rows in live.values()}
        here: dict[str, list[Name]] = defaultdict(list)
        for slice_ in slices:
            if self._known.joined(slice_.modality):
                here[slice_.series].append(_name(slice_))
        for names in here.values():
            rows = frozenset(self.rows.get(name) for name in names)
            if rows in complete:
                continue
            for name in names:
                if self.rows.pop(name, None) is not None:
                    why = "a slice of its series came, went or changed"
                    self.verdicts[name] = _Verdict("changed", why)


def _name(slice_: SliceRow) -> Name:
    return slice_.path, slice_.frame
