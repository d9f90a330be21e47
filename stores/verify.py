"""Everything in a store held against everything that says what it should be.

Damage is what cannot be right: a checksum, a seal, a count that does not fit. A notice may be right
and is worth knowing: a norm far from the others, the same pixels twice, a file that is not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stores import manifest
from stores._disk import CHECKSUM, TEMPORARY, file_sha256, is_orphan, unseal
from stores.claims import CLAIMS, dead, exclusive
from stores.duplicates import find_twins
from stores.errors import CorruptStoreError
from stores.features import OK, RUNS, VOID, WITHDRAWN, FeatureStore
from stores.layout import PartRange
from stores.mirror import Mirror, located, occupied

Damage = Literal[
    "manifest", "kept-file", "receipt", "checksum", "status", "values", "table", "result"
]
Notice = Literal["zero", "outlier", "duplicate", "pending", "uncommitted", "orphan", "foreign"]
NOTICES: frozenset[str] = frozenset(Notice.__args__)  # type: ignore[attr-defined]
# A norm is an outlier so many robust standard deviations from the median of the logarithms.
OUTLIER = 10.0
_DERIVED = ("results", "splits", "masks", "segmentations", "tuned")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: what kind, where (a file of the store, or rows), what is wrong."""

    kind: Damage | Notice
    where: str
    detail: str
    part: int | None = None

    @property
    def damage(self) -> bool:
        """True where it cannot be right."""
        return self.kind not in NOTICES


@dataclass
class Report:
    """What a verification found, and how much it looked at."""

    findings: list[Finding] = field(default_factory=list)
    parts: int = 0
    rows: int = 0
    bytes: int = 0
    mended: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True where nothing is damaged."""
        return not any(finding.damage for finding in self.findings)


def verify(path: Path | str) -> Report:
    """Check every byte of a store that radprobe wrote. Raises StoreNotFoundError."""
    path, report = located(path), Report()
    mirror = Mirror.of(path)
    if mirror is not None:
        mirror.refresh(anew=True)
    try:
        store = FeatureStore.open(path)
        report.findings += _kept(path)
        store.slices(), store.files(), store.tables()
    except CorruptStoreError as error:
        report.findings.append(Finding("manifest", manifest.MANIFEST, str(error)))
        return report  # nothing else can be judged without it
    report.findings += _tables(store)
    _parts(store, report)
    report.findings += _files(store)
    if report.sound:
        report.findings += _twins(store)
    return report


def repair(path: Path | str) -> Report:
    """Mend what can be mended and queue damaged parts again; return what was found and done.

    Kept files come back from their copies; a damaged part loses its receipt, so that the next
    extract embeds it again; damaged results are removed, to be computed again.
    """
    path = located(path)
    with occupied(path):
        return _repair(path)


def _repair(path: Path) -> Report:
    mended: list[str] = []
    with exclusive(path / CLAIMS, "tables"):
        try:
            manifest.digests(path)
        except CorruptStoreError:
            manifest.rebuild(path)
            mended.append(f"{manifest.MANIFEST}: written anew from the copies")
        restored = manifest.settle(path)
        mended += [f"{name}: restored from its copy" for name in restored]
    mirror = Mirror.of(path)
    if mirror is not None and mended:
        mirror.restore([*restored, manifest.MANIFEST])
    report = verify(path)
    store = FeatureStore.open(path)
    for index in sorted({f.part for f in report.findings if f.damage and f.part is not None}):
        with store.own(store.layout.part(index)):
            store.remove(store.receipts.path(index))
        mended.append(f"part {index}: queued again, run `radprobe extract`")
    for finding in report.findings:
        if finding.kind == "result":
            store.remove(path / finding.where)
            store.remove(path / f"{finding.where}{CHECKSUM}")
            mended.append(f"{finding.where}: removed, run `radprobe evaluate`")
    mended += [f"{left.relative_to(path)}: orphan removed" for left in store.sweep()]
    report.mended = mended
    return report


# --- one check a function --------------------------------------------------------------------


def _kept(root: Path) -> Iterator[Finding]:
    """Check the files of the manifest and their copies."""
    for name, expected in manifest.digests(root).items():
        for where in (name, f"{manifest.COPIES}/{expected}"):
            path = root / where
            if not path.is_file():
                yield Finding("kept-file", where, "is missing")
            elif file_sha256(path) != expected:
                yield Finding("kept-file", where, "does not fit the manifest's sha256")


def _tables(store: FeatureStore) -> Iterator[Finding]:
    """Check the slice table against itself and the arrays, and name the parts still to come."""
    rows = store.slices()["row"].to_numpy()
    if rows.size and ((np.diff(rows) <= 0).any() or rows[0] < 0):
        yield Finding("table", "slices.parquet", "its rows are not ascending")
    n = store.layout.next_boundary(int(rows[-1]) + 1 if rows.size else 0)
    for name, array in store.arrays.items():
        if array.n != n:
            yield Finding(
                "table", f"features.zarr/{name}", f"has {array.n} rows; the slice table needs {n}"
            )
    pending = [p.index for p in store.missing() if not store.receipts.path(p.index).is_file()]
    if pending:
        yield Finding(
            "pending", "parts", f"{len(pending)} parts are not embedded yet (first: {pending[:5]})"
        )


def _parts(store: FeatureStore, report: Report) -> None:
    """Check every receipt, and the part it vouches for."""
    slices = store.slices()
    rows = slices["row"].to_numpy()
    live = rows[~slices["withdrawn"].to_numpy(zero_copy_only=False)]
    norms: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for path in sorted((store.path / "parts").glob("*.json")):
        if not path.stem.isdigit():
            continue  # listed as foreign
        part = store.layout.part(int(path.stem))
        report.findings += _part(store, part, report, rows, live, norms)
        report.parts += 1
    report.findings += _suspicious(norms)
    report.findings += _ranges(store)
    report.rows = len(live)


def _part(
    store: FeatureStore,
    part: PartRange,
    report: Report,
    rows: NDArray[np.int64],
    live: NDArray[np.int64],
    norms: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> list[Finding]:
    """Check one part; its norms are added to `norms` where it is whole."""
    with store.at_hand(part):
        found = list(_receipt(store, part, report))
        if not found:
            arrays = store.read_part(part)
            inside = (rows >= part.start) & (rows < part.stop)
            found = list(_values(part, arrays, rows[inside], live))
            norms.append(_norms(part, arrays))
    return found


def _receipt(store: FeatureStore, part: PartRange, report: Report) -> Iterator[Finding]:
    """Check a receipt and the chunk files it names."""
    path = store.receipts.path(part.index)
    where = path.relative_to(store.path).as_posix()
    try:
        receipt = unseal(path)
    except CorruptStoreError as error:
        yield Finding("receipt", where, str(error), part.index)
        return
    expected = {chunk.name for array in store.arrays.values() for chunk in array.chunks(part)}
    if (receipt["recipe"], receipt["part"]) != (store.digest, part.index):
        yield Finding("receipt", where, "is of another recipe or part", part.index)
    elif receipt["chunks"].keys() != expected or part.stop > store.arrays["status"].n:
        yield Finding("receipt", where, "does not name the chunks of its part", part.index)
    for name, entry in receipt["chunks"].items():
        chunk = store.path / "features.zarr" / name
        if not chunk.is_file():
            yield Finding("checksum", f"features.zarr/{name}", "is missing", part.index)
        elif chunk.stat().st_size != entry["bytes"] or file_sha256(chunk) != entry["sha256"]:
            yield Finding(
                "checksum",
                f"features.zarr/{name}",
                "is not what its receipt vouches for",
                part.index,
            )
        report.bytes += entry["bytes"]


def _values(
    part: PartRange,
    arrays: dict[str, NDArray[Any]],
    rows: NDArray[np.int64],
    live: NDArray[np.int64],
) -> Iterator[Finding]:
    """Check a part's status against the slice table and against its values."""
    status, where = arrays["status"], f"part {part.index}"
    known = np.zeros(len(status), bool)
    known[rows - part.start] = True
    living = np.isin(np.arange(part.start, part.stop), live)
    for wrong, what in (
        (status > WITHDRAWN, "have a status nobody writes"),
        (~known & (status != VOID), "hold something, and no slice has their number"),
        (living & np.isin(status, (VOID, WITHDRAWN)), "are live, and were never embedded"),
    ):
        if wrong.any():
            first = (np.flatnonzero(wrong)[:5] + part.start).tolist()
            detail = f"{wrong.sum()} rows {what} (first: {first})"
            yield Finding("status", where, detail, part.index)
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        finite = np.isfinite(values.reshape(len(values), -1))
        for wrong, what in (
            ((status == OK) & ~finite.all(1), "are ok, and not finite"),
            ((status != OK) & finite.any(1), "are not ok, and hold numbers"),
        ):
            if wrong.any():
                first = (np.flatnonzero(wrong)[:5] + part.start).tolist()
                yield Finding(
                    "values",
                    where,
                    f"{wrong.sum()} rows of {name} {what} (first: {first})",
                    part.index,
                )


def _ranges(store: FeatureStore) -> Iterator[Finding]:
    """Check that all parts of one volume were scaled by one range."""
    told: dict[int, list[float]] = {}
    for part in store.layout.parts(store.arrays["status"].n):
        for row, *ends in (store.receipt(part.index) or {}).get("ranges", ()):
            if told.setdefault(row, ends) != ends:
                detail = f"scales the volume of row {row} by {ends}; earlier parts by {told[row]}"
                yield Finding("values", f"part {part.index}", detail, part.index)


def _norms(
    part: PartRange, arrays: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ok rows of a part and the norm of all their features."""
    ok = np.flatnonzero(arrays["status"] == OK)
    squares = np.zeros(len(ok))
    for values in arrays.values():
        if values.dtype.kind == "f":
            flat = values.reshape(len(values), -1)[ok]
            squares += np.einsum("nd,nd->n", flat, flat, dtype=np.float64)
    return ok + part.start, np.sqrt(squares)


def _suspicious(
    norms: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> Iterator[Finding]:
    """Tell rows of nothing but zeros, and norms far from all others."""
    if not norms:
        return
    rows, norm = (np.concatenate(each) for each in zip(*norms, strict=True))
    if (norm == 0).any():
        zero = rows[norm == 0]
        yield Finding(
            "zero", "features", f"{len(zero)} rows are all zero (first: {zero[:5].tolist()})"
        )
    rows, logs = rows[norm > 0], np.log(norm[norm > 0])
    if len(logs) < 3:
        return
    deviation = np.abs(logs - np.median(logs))
    far = rows[deviation > OUTLIER * max(1.4826 * float(np.median(deviation)), 1e-3)]
    if len(far):
        detail = f"{len(far)} rows have norms far from all others (first: {far[:5].tolist()})"
        yield Finding("outlier", "features", detail)


def _files(store: FeatureStore) -> Iterator[Finding]:
    """Check results and splits by their checksums; name every file not accounted for."""
    kept = manifest.digests(store.path)
    known = {manifest.MANIFEST, *kept, *(f"{manifest.COPIES}/{digest}" for digest in kept.values())}
    for path in sorted((store.path / "parts").glob("*.json")):
        known.add(path.relative_to(store.path).as_posix())
        if path.stem.isdigit():
            part = store.layout.part(int(path.stem))
            for array in store.arrays.values():
                known |= {f"features.zarr/{chunk.name}" for chunk in array.chunks(part)}
    here = {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    if store.mirror is not None:
        here |= {name for name in store.mirror.objects if not name.startswith(f"{CLAIMS}/")}
    for where in sorted(here - known):
        yield from _unaccounted(store, store.path / where, where)


def _unaccounted(store: FeatureStore, path: Path, where: str) -> Iterator[Finding]:
    """Judge a file that neither the manifest nor a receipt names."""
    folder, array = path.parts[len(store.path.parts)], where.split("/")[1:3]
    if path.name.startswith(TEMPORARY):
        if is_orphan(path):
            yield Finding("orphan", where, "was left by a writer that is dead; --repair removes it")
    elif folder == RUNS:  # notes of runs, which nothing depends on
        return
    elif folder == CLAIMS:
        if dead(path):
            yield Finding("orphan", where, "is the claim of a writer that is dead")
    elif folder in _DERIVED:
        yield from _derived(store, path, where)
    elif (
        folder == "features.zarr" and array[:1] and array[0] in store.arrays and array[1:] == ["c"]
    ):
        yield Finding("uncommitted", where, "belongs to a part without a receipt")
    else:
        yield Finding("foreign", where, "is not a file of radprobe's; it is left alone")


def _derived(store: FeatureStore, path: Path, where: str) -> Iterator[Finding]:
    """Check a result, a split or a network against the checksum beside it."""
    if store.mirror is not None and not path.is_file():  # a network: not kept here
        store.mirror.bring_all([where])
        yield from _derived(store, path, where)
        path.unlink()
        return
    there = store.mirror.objects if store.mirror else {}
    if path.name.endswith(CHECKSUM):
        of = path.with_name(path.name.removesuffix(CHECKSUM))
        if not of.is_file() and where.removesuffix(CHECKSUM) not in there:
            yield Finding("orphan", where, "is the checksum of a file that is gone")
        return
    checksum = path.with_name(path.name + CHECKSUM)
    if not checksum.is_file():
        yield Finding("foreign", where, "has no checksum beside it")
    elif checksum.read_bytes() != f"{file_sha256(path)}  {path.name}\n".encode():
        yield Finding("result", where, "does not fit the checksum beside it")


def _twins(store: FeatureStore) -> Iterator[Finding]:
    """Tell slices with the same pixels: across train and test they are leakage."""
    twins = find_twins(store)
    if twins:
        across = [each.rows for each in twins if each.patients > 1]
        slices = sum(len(each.rows) for each in twins)
        yield Finding(
            "duplicate",
            "pixel_digest",
            f"{slices} slices share their pixels, in {len(twins)} groups; {len(across)} groups are "
            f"of more than one patient (first: {[list(rows[:4]) for rows in across[:3]]})",
        )
