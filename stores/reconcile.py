"""What is found against what is stored: which slice has which row, which is new, which is gone."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores.slices import of_modalities, where, with_column

Kind = Literal["moved", "added", "changed", "retried", "withdrawn"]
KINDS: tuple[Kind, ...] = ("moved", "added", "changed", "retried", "withdrawn")
# Reasons that can pass by themselves: the slice is tried again, in a new row, so many times.
TRANSIENT = frozenset({"no-permission", "vanished", "time-limit"})
RETRIES = 2
_NEW = "it is new"
# What is asked of a slice that was found, to settle which row it has.
_ASKED = ["path", "frame", "series", "modality"]
# Digests of files that are kept while a collection is reconciled.
_REMEMBERED = 2**16

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
    """A new slice table, and what changed on the way to it.

    added: slices that are new and nothing else, as a table: Python's take ten times the room.
    """

    slices: pa.Table
    same: int
    added: pa.Table
    told: tuple[Change, ...] = ()

    @property
    def changes(self) -> Iterator[Change]:
        """Yield what changed."""
        yield from self.told
        for batch in self.added.select(["path", "frame", "row"]).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield Change("added", **row, why=_NEW)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many slices came into the table which way."""
        counts = Counter(change.kind for change in self.told)
        counts["added"] += self.added.num_rows
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

    opened: pa.Array
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
    known = replace(known, hash_file=functools.lru_cache(_REMEMBERED)(known.hash_file))
    live = pc.invert(stored["withdrawn"]).to_numpy()
    same, row = _as_before(where(stored, pa.array(live)), found, known)
    kept, rest = _numbered(where(found, pa.array(same)), row[same]), where(found, pa.array(~same))
    left = stored.filter(~np.isin(stored["row"].to_numpy(), row[same]))
    new = _merely_new(left, rest, known)
    # The others one by one, as Python's, which take ten times the room: of most collections, a few.
    asked = rest.filter(~new).select(_ASKED)
    asked = asked.append_column("opened", pc.is_in(asked["path"], known.opened))
    settling, others = _Settling(left, known), asked.to_pylist()
    fresh, keep = new.copy(), settling.settle(others)
    fresh[~new] = [row is None for row in keep]
    numbers = known.boundary - 1 + np.cumsum(fresh)
    numbers[~fresh] = [row for row in keep if row is not None]
    rest = _numbered(rest, numbers)
    gone = left.filter(~np.isin(left["row"].to_numpy(), numbers))
    gone = with_column(gone, "withdrawn", pa.array(np.ones(len(gone), bool)))
    slices = pa.concat_tables([kept, rest, gone])
    rows = slices["row"].to_numpy()
    if (np.diff(rows) < 0).any():
        slices = slices.take(np.argsort(rows))
    changes = settling.changes(others, numbers[~new].tolist())
    same_rows = len(kept) + len(others) - len(settling.verdicts)
    return Reconciled(slices, same_rows, rest.filter(new), changes)


def _numbered(found: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Return found slices with their rows."""
    return with_column(found, "row", pa.array(rows))


def _as_before(
    live: pa.Table, found: pa.Table, known: Known
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which found slices nothing speaks against being the live ones of their names.

    And the rows those have; whatever elsewhere.
    """
    nothing = np.zeros(found.num_rows, bool), np.zeros(found.num_rows, np.int64)
    if not live.num_rows:
        return nothing
    paths = pc.unique(live["path"])
    ours, theirs = _codes(live, paths), _codes(found, paths)
    order = np.argsort(ours)
    at = order[np.minimum(np.searchsorted(ours, theirs, sorter=order), len(ours) - 1)]
    rows, before = live["row"].to_numpy()[at], live.select(["modality", "series"]).take(at)
    same = ours[at] == theirs
    same &= pc.equal(found["modality"], before["modality"]).to_numpy()
    failed = [row for row, reason in known.failed.items() if reason in TRANSIENT]
    same &= ~np.isin(rows, [*known.spent, *failed])
    of_joined = of_modalities(found, known.joined).to_numpy()
    opened = pc.is_in(found["path"], known.opened).to_numpy()
    for place in np.flatnonzero(same & opened):
        path = found["path"][place].as_py()
        same[place] = _is_as_made(int(rows[place]), path, known, joined=bool(of_joined[place]))
    if of_joined.any():
        same &= pc.equal(found["series"], before["series"]).to_numpy()
        same &= ~of_joined | _in_whole_series(live, found, same)
    return same, rows


def _is_as_made(row: int, path: str, known: Known, *, joined: bool) -> bool:
    """Return whether a file that was opened is what a row was made from, or what it will be."""
    made_from = known.digest_of(row)
    if made_from is None:  # never embedded, and so as it is now; or it could not be read
        return row not in known.failed and not joined
    return made_from == known.hash_file(path)


def _merely_new(left: pa.Table, rest: pa.Table, known: Known) -> NDArray[np.bool_]:
    """Return which of the slices left over have to do with none of the rows left over.

    Neither by name nor by content, nor by a joined series.
    """
    paths = pc.unique(left["path"])
    new = ~np.isin(_codes(rest, paths), _codes(left, paths))
    contents = set(filter(None, map(known.digest_of, left["row"].to_numpy().tolist())))
    for place in np.flatnonzero(new) if contents else ():
        new[place] = known.hash_file(rest["path"][place].as_py()) not in contents
    met = pa.concat_tables([some.select(["series"]) for some in (left, rest.filter(~new))])
    joined = pc.and_(
        pc.is_in(rest["series"], pc.unique(met["series"])), of_modalities(rest, known.joined)
    )
    return np.asarray(new & ~joined.to_numpy())


def _codes(slices: pa.Table, paths: pa.Array) -> NDArray[np.int64]:
    """Return a number for the name of each slice; below zero where its path is none of those."""
    path = pc.fill_null(pc.index_in(slices["path"], paths), -1).to_numpy().astype(np.int64)
    return np.asarray(path << 32 | slices["frame"].to_numpy())


def _in_whole_series(live: pa.Table, found: pa.Table, same: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which found slices are of a series that has all its slices, and no other."""
    names = pc.unique(found["series"])
    series = pc.index_in(found["series"], names).to_numpy()
    there = pc.index_in(live["series"], names).drop_null().to_numpy()
    many, as_they_were, before = (
        np.bincount(which, minlength=len(names)) for which in (series, series[same], there)
    )
    return np.asarray(((many == as_they_were) & (many == before))[series])


class _Settling:
    """The rows that stand, against the slices that are found; see `reconcile`."""

    def __init__(self, stored: pa.Table, known: Known) -> None:
        rows = stored.select([*_ASKED, "row", "patient", "withdrawn"]).to_pylist()
        self.stored: list[Row] = sorted(rows, key=lambda row: not row["withdrawn"])  # live ones win
        self.known = known
        self.by_name: dict[Name, Row] = {_name(row): row for row in self.stored}
        self.rows: dict[Name, int] = {}  # of the found slices that keep one
        self.verdicts: dict[Name, tuple[Kind, str]] = {}  # of those that are not as they were

    def settle(self, found: list[Row]) -> list[int | None]:
        """Return which row each slice keeps; None where it needs a fresh one."""
        for slice_ in found:
            row = self.by_name.get(_name(slice_))
            verdict = self._differs(slice_, row) if row else ("added", _NEW)
            if verdict is not None:
                self.verdicts[_name(slice_)] = verdict
            elif row is not None:
                self.rows[_name(slice_)] = row["row"]
        self._follow(found)
        self._tear(found)
        return [self.rows.get(_name(slice_)) for slice_ in found]

    def changes(self, found: list[Row], rows: list[int]) -> tuple[Change, ...]:
        """Return what became of the slices, now that all have rows, and of the rows left over."""
        now = {_name(slice_): row for slice_, row in zip(found, rows, strict=True)}
        verdicts = ((name, self.verdicts.get(name)) for name in now)
        told = [Change(said[0], *name, now[name], said[1]) for name, said in verdicts if said]
        replaced = {(c.path, c.frame): c.row for c in told if c.kind != "moved"}
        held = set(rows)
        for row in self.stored:
            if row["withdrawn"] or row["row"] in held:
                continue
            why = "it is no longer found"
            if row["patient"] in self.known.withdrawn:
                why = "its patient was withdrawn"
            elif _name(row) in replaced:
                why = f"row {replaced[_name(row)]} takes its place"
            told.append(Change("withdrawn", *_name(row), row["row"], why))
        return tuple(told)

    def _differs(self, slice_: Row, row: Row | None) -> tuple[Kind, str] | None:
        """Return why a found slice is not what the row of its name was made from; None if it is."""
        if row is None:
            return "added", _NEW
        number, opened = row["row"], slice_["opened"]
        if slice_["modality"] != row["modality"]:  # its intensities are read by another rule now
            return "changed", f"its modality was {row['modality']}, now {slice_['modality']}"
        if number in self.known.spent:
            return "added", f"its row {number} was withdrawn before it was embedded, or purged"
        reason, path = self.known.failed.get(number), slice_["path"]
        if reason in TRANSIENT and (opened or self._tries(_name(row)) <= RETRIES):
            return "retried", f"it could not be read before ({reason})"
        joined = self.known.joined(slice_["modality"])
        if not opened or _is_as_made(number, path, self.known, joined=joined):
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
            content = self.known.hash_file(slice_["path"])
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


def _name(row: Row) -> Name:
    return row["path"], row["frame"]
