"""Everything in a store held against everything that says what it should be.

Damage is what cannot be right: a checksum, a seal, a count that does not fit. A notice may be right
and is worth knowing: a norm far from the others, the same pixels twice, a file that is not ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stores import manifest
from stores._disk import (
    CHECKSUM,
    TEMPORARY,
    file_sha256,
    files_in,
    fits_checksum,
    is_orphan,
    unseal,
)
from stores._types import Bytes, Mask, Rows, Values
from stores.claims import dead, exclusive
from stores.contents import (
    CLAIMS,
    DERIVED,
    FEATURES,
    MANIFEST,
    OK,
    PARTS,
    RUNS,
    SLICES,
    VOID,
    WITHDRAWN,
    chunk_file,
    folder_of,
)
from stores.duplicates import Twins, find_twins
from stores.errors import CorruptStoreError
from stores.features import FeatureStore, check_there
from stores.inside import check_folders, inside, is_below
from stores.layout import PartRange
from stores.purge import drop_derived, drop_notes, files_naming, purged_rows, void_parts
from stores.receipt import ChunkRecord, Receipt, part_of, receipt_name
from stores.slices import end_of, row_numbers
from stores.storage import Storage, mend, storage_at

Damage = Literal[
    "manifest",
    "kept-file",
    "receipt",
    "checksum",
    "status",
    "values",
    "table",
    "result",
    "purged",
    "odd",
]
Notice = Literal[
    "zero", "outlier", "duplicate", "pending", "uncommitted", "orphan", "foreign", "withdrawn"
]
NOTICES: frozenset[str] = frozenset(Notice.__args__)  # type: ignore[attr-defined]
# A norm is an outlier so many robust standard deviations from the median of the logarithms.
OUTLIER = 10.0


@dataclass(frozen=True)
class _Norms:
    """The norms of all features of rows that are ok: (n,) both."""

    rows: Rows
    norms: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: what kind, where (a file of the store, or rows), what is wrong."""

    kind: Damage | Notice
    where: str
    detail: str
    part: int | None = None

    @property
    def damage(self) -> bool:
        """Whether it cannot be right."""
        return self.kind not in NOTICES


@dataclass
class Report:
    """What a verification found, and how much it looked at; twins: every picture that is twice."""

    findings: list[Finding] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)
    parts: int = 0
    rows: int = 0
    bytes: int = 0
    mended: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.damage for finding in self.findings)


def verify(path: Path | str) -> Report:
    """Check every byte of a store that radprobe wrote. Raises StoreNotFoundError."""
    storage = storage_at(path)
    storage.refresh(anew=True)  # a fetched file is checked as it is where the store is
    report = Report()
    try:
        store = FeatureStore.open(storage.folder)
        report.findings += _manifest_files(store.path)
        # Read for the errors alone: each must be decodable before it is judged by.
        store.tables()
        store.live_rows()
    except CorruptStoreError as error:
        report.findings.append(Finding("manifest", MANIFEST, str(error)))
        return report  # nothing else can be judged without it
    report.findings += _tables(store)
    try:
        _parts(store, report)
        report.findings += _files(store)
        report.findings += _files_of_purged(store)
    except CorruptStoreError as error:  # what lies there cannot even be listed
        report.findings.append(Finding("odd", store.place, str(error)))
    # Of a store with damage, equal digests say nothing.
    if report.sound:
        report.twins = find_twins(store)
        report.findings += _twin_findings(report.twins)
    return report


def repair(path: Path | str) -> Report:
    """Mend what can be mended and queue damaged parts again; return what was found and done.

    Files of the manifest come back from their copies; a damaged part loses its receipt, so that the
    next extract embeds it again; damaged results are removed, to be computed again. Raises
    StoreNotFoundError.
    """
    storage = storage_at(path)
    check_there(storage)
    # Before anything is written or removed: the store may be of a stranger.
    check_folders(storage.folder)
    # What another process has written by half would be taken for damage.
    with storage.occupied():
        mended = _mend_manifest(storage)
        report = verify(storage.folder)
        store = FeatureStore.open(storage.folder)
        mended += _queue_damaged(store, report)
        mended += _remove_damaged_results(store, report)
        mended += _finish_purges(store, report)
        mended += [f"{path.relative_to(store.path)}: orphan removed" for path in store.sweep()]
        report.mended = mended
        return report


def _mend_manifest(storage: Storage) -> list[str]:
    """Mend the manifest and the files it names; return what was done.

    This comes first: nothing else can be judged, or replaced, without them.
    """
    root = storage.folder
    done = []
    with exclusive(root / CLAIMS, "tables"):
        try:
            manifest.digests(root)
        except CorruptStoreError:
            manifest.rebuild(root)
            storage.restore([MANIFEST])
            done.append(f"{MANIFEST}: written anew from the copies")
        done += [f"{name}: restored from its copy" for name in mend(storage)]
    return done


def _queue_damaged(store: FeatureStore, report: Report) -> list[str]:
    """Take the receipts of damaged parts away; return what was done."""
    done = []
    damage = [finding for finding in report.findings if finding.damage]
    for index in sorted({each.part for each in damage if each.part is not None}):
        with store.reclaim(store.layout.part(index)):
            # Its chunks stay: without a receipt nobody reads them, and the next run writes over
            # them.
            store.storage.remove([receipt_name(index)])
        done.append(f"part {index}: queued again, run `radprobe extract`")
    return done


def _remove_damaged_results(store: FeatureStore, report: Report) -> list[str]:
    """Remove damaged results, and what none of them can be used without; return what was done."""
    done = []
    names = store.storage.names()
    for finding in report.findings:
        if finding.kind == "result":
            gone = _gone_with(finding.where, names)
            store.storage.remove([*gone, *(f"{name}{CHECKSUM}" for name in gone)])
            done.append(f"{finding.where}: removed, run the command that made it again")
        elif finding.kind == "orphan" and finding.where.endswith(CHECKSUM):
            gone = _gone_with(finding.where.removesuffix(CHECKSUM), names)
            store.storage.remove([*gone, *(f"{name}{CHECKSUM}" for name in gone)])
            done.append(f"{finding.where}: orphan removed")
    return done


def _gone_with(damaged: str, names: set[str]) -> list[str]:
    """Return a damaged file of a derived folder, and those that go with it.

    With a table of an answer goes the answer: while it is on file, nothing computes the table
    again. With a file of a tuned network go the others.
    """
    folder, _, file = damaged.rpartition("/")
    gone = [damaged]
    if "/" in folder:
        gone += [name for name in names if name.startswith(f"{folder}/")]
    for name in names:
        of_folder, _, other = name.rpartition("/")
        is_answer = of_folder == folder and other.endswith(".json")
        if is_answer and file.startswith(other.removesuffix("json")):
            gone.append(name)
    return sorted({name for name in gone if not name.endswith(CHECKSUM)})


def _finish_purges(store: FeatureStore, report: Report) -> list[str]:
    """Take out what is left of patients who were purged; return what was done."""
    left = [finding for finding in report.findings if finding.kind == "purged"]
    if not left:
        return []
    rows = purged_rows(store)
    # The features first: what is derived from them could be computed again.
    void_parts(store, rows)
    drop_derived(store, store.withdrawn.purged)
    drop_notes(store, store.withdrawn.purged, rows)
    return [f"{finding.where}: purged" for finding in left]


# --- one check a function --------------------------------------------------------------------


def _manifest_files(root: Path) -> Iterator[Finding]:
    """Check the files of the manifest and their copies."""
    for name, expected in manifest.digests(root).items():
        for where in (name, manifest.copy_name(expected)):
            path = inside(root, where)
            if not path.is_file():
                yield Finding("kept-file", where, "is missing")
            elif not manifest.has(path, expected):
                yield Finding("kept-file", where, "does not fit the manifest's sha256")


def _tables(store: FeatureStore) -> Iterator[Finding]:
    """Check the slice table against itself and the arrays, and name the parts still to come."""
    rows = row_numbers(store.slices())
    outside = sum(not is_below(path) for path in _paths(store))
    if outside:
        yield Finding("table", SLICES, f"{outside} of its paths lead out of the collection")
    n = store.layout.next_boundary(end_of(rows))
    for name, array in store.arrays.items():
        if array.n != n:
            detail = f"has {array.n} rows; the slice table needs {n}"
            yield Finding("table", f"{FEATURES}/{name}", detail)
    # A part with a receipt that is not believed is damaged, and told with the receipts.
    missing = [part.index for part in store.missing()]
    pending = [index for index in missing if not store.receipts.path(index).is_file()]
    if pending:
        detail = f"{len(pending)} parts are not embedded yet (first: {pending[:5]})"
        yield Finding("pending", PARTS, detail)


def _paths(store: FeatureStore) -> Iterator[str]:
    """Yield the paths of the slices as they are stored, but for those that were emptied."""
    for chunk in store.slices(["path"])["path"].chunks:
        yield from filter(None, chunk.unique().to_pylist())


def _parts(store: FeatureStore, report: Report) -> None:
    """Check every receipt, and the part it vouches for."""
    rows = row_numbers(store.slices())
    live = store.live_rows()
    purged = purged_rows(store)
    norms: list[_Norms] = []
    for path in files_in(store.path / PARTS, "*.json"):
        index = part_of(path.name)
        if index is None:
            continue  # listed as foreign
        part = store.layout.part(index)
        with store.fetched(part):
            findings = list(_receipt(store, part, report))
            arrays = None if findings else _read(store, part, findings)
            if arrays is not None:
                # Of the part alone, and once: a store has many parts.
                here = _RowsHere(part.within(rows), part.within(live), part.within(purged))
                findings += _status(part, arrays["status"], here)
                findings += _withdrawn(part, arrays, here)
                findings += _values(part, arrays)
                norms.append(_norms(part, arrays))
        report.findings += findings
        report.parts += 1
    report.findings += _suspicious(norms)
    report.findings += _ranges(store)
    report.rows = len(live)


def _read(
    store: FeatureStore, part: PartRange, findings: list[Finding]
) -> dict[str, Values] | None:
    """Return the arrays of a part; None, and a finding, where they are not as its shape says."""
    try:
        return store.read_part(part)
    except CorruptStoreError as error:
        findings.append(Finding("checksum", receipt_name(part.index), str(error), part.index))
        return None


def _receipt(store: FeatureStore, part: PartRange, report: Report) -> Iterator[Finding]:
    """Check a receipt and the chunk files it names."""
    where = receipt_name(part.index)
    try:
        receipt = Receipt.parse(unseal(store.path / where))
    except CorruptStoreError as error:
        yield Finding("receipt", where, str(error), part.index)
        return
    expected = set(store.chunk_files(part))
    if receipt.recipe != store.digest or receipt.part != part.index:
        yield Finding("receipt", where, "is of another recipe or part", part.index)
    elif receipt.digests().keys() != expected or part.stop > store.n_rows:
        yield Finding("receipt", where, "does not name the chunks of its part", part.index)
    for name, record in receipt.chunks.items():
        file = chunk_file(name)
        try:
            path = inside(store.path, file)
        except CorruptStoreError as error:
            yield Finding("checksum", file, str(error), part.index)
            continue
        if not path.is_file():
            yield Finding("checksum", file, "is missing", part.index)
        elif not _vouched_for(path, record):
            yield Finding("checksum", file, "is not what its receipt vouches for", part.index)
        report.bytes += record.bytes


def _vouched_for(path: Path, record: ChunkRecord) -> bool:
    """Return whether a chunk's file is what its receipt vouches for."""
    return path.stat().st_size == record.bytes and file_sha256(path) == record.sha256


@dataclass(frozen=True)
class _RowsHere:
    """The rows of the slice table that are in one part.

    live: those that are not withdrawn; purged: those whose entries a purge emptied.
    """

    all: Rows
    live: Rows
    purged: Rows


def _status(part: PartRange, status: Bytes, here: _RowsHere) -> Iterator[Finding]:
    """Check a part's status (part rows,) against the slice table."""
    known = np.zeros(len(status), bool)
    known[here.all - part.start] = True
    living = np.zeros(len(status), bool)
    living[here.live - part.start] = True
    empty = np.isin(status, (VOID, WITHDRAWN))
    checks = {
        "have a status nobody writes": status > WITHDRAWN,
        "hold something, and no slice has their number": ~known & (status != VOID),
        "are live, and were never embedded": living & empty,
    }
    for what, wrong in checks.items():
        if wrong.any():
            yield _wrong_rows("status", part, wrong, "rows", what)


def _withdrawn(part: PartRange, arrays: dict[str, Values], here: _RowsHere) -> Iterator[Finding]:
    """Tell the withdrawn rows of a part that hold anything; of purged ones, it is damage."""
    # A digest alone tells whose the slice was, too.
    digests = arrays["file_digest"].any(axis=1) | arrays["pixel_digest"].any(axis=1)
    filled = np.flatnonzero(digests | ~np.isin(arrays["status"], (VOID, WITHDRAWN))) + part.start
    of_purged = np.intersect1d(filled, here.purged)
    if len(of_purged):
        detail = (
            f"{len(of_purged)} rows of purged patients hold something (first: {_few(of_purged)})"
        )
        yield Finding("purged", f"part {part.index}", detail)
    # A file that vanished before it was read left none, and is no more than a status.
    holding = np.flatnonzero(digests | (arrays["status"] == OK)) + part.start
    others = np.union1d(here.live, here.purged)
    withdrawn = np.setdiff1d(np.intersect1d(holding, here.all), others)
    if len(withdrawn):
        detail = f"{len(withdrawn)} withdrawn rows hold numbers or digests until they are purged"
        yield Finding("withdrawn", f"part {part.index}", f"{detail} (first: {_few(withdrawn)})")


def _few(rows: Rows) -> list[int]:
    """Return the first rows, as they are told."""
    few: list[int] = rows[:5].tolist()
    return few


def _values(part: PartRange, arrays: dict[str, Values]) -> Iterator[Finding]:
    """Check a part's features against its status: numbers where it is ok, and nowhere else."""
    ok = arrays["status"] == OK
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        finite = np.isfinite(values.reshape(len(values), -1))
        checks = {
            "are ok, and not finite": ok & ~finite.all(1),
            "are not ok, and hold numbers": ~ok & finite.any(1),
        }
        for what, wrong in checks.items():
            if wrong.any():
                yield _wrong_rows("values", part, wrong, f"rows of {name}", what)


def _wrong_rows(kind: Damage, part: PartRange, wrong: Mask, rows: str, what: str) -> Finding:
    """Return what is wrong with the rows of a part for which a check (part rows,) failed."""
    places = np.flatnonzero(wrong)
    first = (places[:5] + part.start).tolist()
    detail = f"{len(places)} {rows} {what} (first: {first})"
    return Finding(kind, f"part {part.index}", detail, part.index)


def _ranges(store: FeatureStore) -> Iterator[Finding]:
    """Check that all parts of one volume were scaled by one range."""
    first_seen: dict[int, list[float]] = {}
    for part in store.parts():
        receipt = store.receipt(part.index)
        for volume in () if receipt is None else receipt.ranges:
            ends = [volume.low, volume.high]
            before = first_seen.setdefault(volume.row, ends)
            if before != ends:
                detail = (
                    f"scales the volume of row {volume.row} by {ends}; earlier parts by {before}"
                )
                yield Finding("values", f"part {part.index}", detail, part.index)


def _norms(part: PartRange, arrays: dict[str, Values]) -> _Norms:
    """Return the norm of all features of each ok row of a part."""
    ok = np.flatnonzero(arrays["status"] == OK)
    squares = np.zeros(len(ok))
    for values in arrays.values():
        if values.dtype.kind == "f":
            flat = values.reshape(len(values), -1)[ok]
            squares += np.einsum("nd,nd->n", flat, flat, dtype=np.float64)
    return _Norms(ok + part.start, np.sqrt(squares))


def _suspicious(of_parts: list[_Norms]) -> Iterator[Finding]:
    """Tell rows of nothing but zeros, and norms far from all others."""
    if not of_parts:
        return
    rows = np.concatenate([part.rows for part in of_parts])
    norms = np.concatenate([part.norms for part in of_parts])
    zero = rows[norms == 0]
    if len(zero):
        detail = f"{len(zero)} rows are all zero (first: {zero[:5].tolist()})"
        yield Finding("zero", "features", detail)
    rows = rows[norms > 0]
    logs = np.log(norms[norms > 0])
    if len(logs) < 3:
        return
    deviation = np.abs(logs - np.median(logs))
    # The median absolute deviation, times 1.4826, is the standard deviation of a normal sample.
    spread = max(1.4826 * float(np.median(deviation)), 1e-3)
    far = rows[deviation > OUTLIER * spread]
    if len(far):
        detail = f"{len(far)} rows have norms far from all others (first: {far[:5].tolist()})"
        yield Finding("outlier", "features", detail)


def _files(store: FeatureStore) -> Iterator[Finding]:
    """Check results and splits by their checksums; name every file not accounted for."""
    names = store.storage.names()
    for name in sorted(names - _accounted(store)):
        yield from _unaccounted(store, name, names)


def _files_of_purged(store: FeatureStore) -> Iterator[Finding]:
    """Name the files that tell of a patient who was purged."""
    for name in files_naming(store, store.withdrawn.purged):
        yield Finding("purged", name, "names a patient who was purged; --repair takes it out")


def _accounted(store: FeatureStore) -> set[str]:
    """Return the names of the files that the manifest or a receipt answers for."""
    names = manifest.names(store.path)
    for path in files_in(store.path / PARTS, "*.json"):
        index = part_of(path.name)
        if index is not None:
            names.add(f"{PARTS}/{path.name}")
            names.update(store.chunk_files(store.layout.part(index)))
    return names


def _unaccounted(store: FeatureStore, name: str, names: set[str]) -> Iterator[Finding]:
    """Judge a file that neither the manifest nor a receipt names. names: of all files."""
    path = store.path / name
    folder = folder_of(name)
    if path.name.startswith(TEMPORARY):
        if is_orphan(path):
            yield Finding("orphan", name, "was left by a writer that is dead; --repair removes it")
    elif folder == RUNS:  # notes of runs, which nothing depends on
        return
    elif folder == CLAIMS:
        if dead(path):
            yield Finding("orphan", name, "is the claim of a writer that is dead")
    elif folder in DERIVED:
        with store.storage.fetched([name]):  # a network: it is not kept here
            yield from _derived(path, name, names)
    elif _is_chunk(store, name):
        yield Finding("uncommitted", name, "belongs to a part without a receipt")
    else:
        yield Finding("foreign", name, "is not a file of radprobe's; it is left alone")


def _is_chunk(store: FeatureStore, name: str) -> bool:
    """Return whether a file lies where an array of the store has its chunks."""
    match name.split("/"):
        case [folder, array, "c", *_]:
            return folder == FEATURES and array in store.arrays
    return False


def _derived(path: Path, name: str, names: set[str]) -> Iterator[Finding]:
    """Check a result, a split or a network against the checksum beside it."""
    if name.endswith(CHECKSUM):
        if name.removesuffix(CHECKSUM) not in names:
            yield Finding("orphan", name, "is the checksum of a file that is gone")
        return
    fits = fits_checksum(path)
    if fits is None:
        yield Finding("foreign", name, "has no checksum beside it")
    elif not fits:
        yield Finding("result", name, "does not fit the checksum beside it")


def _twin_findings(twins: Sequence[Twins]) -> Iterator[Finding]:
    """Tell slices with the same pixels: across train and test they are leakage."""
    if twins:
        slices = sum(len(each.rows) for each in twins)
        pictures = "1 picture" if len(twins) == 1 else f"{len(twins)} pictures"
        yield Finding(
            "duplicate",
            "pixel_digest",
            f"{slices} slices have the pixels of another ({pictures}, whatever file, format or "
            f"modality they stand in): {sum(each.patients > 1 for each in twins)} of more than one "
            f"patient, {sum(each.nameless > 0 for each in twins)} with slices that name no patient",
        )
