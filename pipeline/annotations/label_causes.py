"""Why label rows join nothing, and what to do about it.

A message names no path of a store that hides them, nor a folder that may be a patient's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.label_join import TRIED, column_texts, names_there
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.inside import is_below

# Of rows that join nothing, so many are looked into for the cause.
_LOOKED_INTO = 1000
# What a cause begins with, where any is known.
LIKELIEST = "likeliest"
_ELSEWHERE = "files of that name lie in another folder: paths are relative to data.root"


def cause_of(
    table: LabelTable,
    lost: Sequence[int],
    keys: Sequence[str],
    slices: pa.Table,
    root: Path,
    names: Names,
) -> str:
    """Return the likeliest cause that rows join nothing, and of how many it would be the cause.

    lost: the rows, one a key; keys (rows,): as `label_keys` has them; slices: SLICE_SCHEMA, with
    the real paths.
    """
    some = lost[:_LOOKED_INTO]
    raw = [str(table.columns[table.settings.key][i]) for i in some]
    if not any(raw):
        return "their key is empty"
    if table.settings.by == "path":
        paths = set(column_texts(slices, "path"))
        causes = _causes_of_paths([keys[i] for i in some], paths, root)
    else:
        causes = _causes_of_ids(table.settings.by, raw, slices, names)
    if not causes:
        what = "path" if table.settings.by == "path" else table.settings.by
        return f"no image of the collection has that {what}, nor one like it"
    cause, n = causes.most_common(1)[0]
    if cause == _ELSEWHERE:
        is_lost = set(some)
        lost_keys = [key if i in is_lost else "" for i, key in enumerate(keys)]
        hint = prefix_hint(table, lost_keys, paths, root, names)
        cause += hint and f"; {hint}"
    return f"{LIKELIEST} (as for {n} of {len(some)}), {cause}"


def _without_suffix(path: PurePosixPath) -> str:
    """Return a path without its suffix; an empty one, as of a stranger's store, as it is."""
    return str(path.with_suffix("") if path.name else path)


def _causes_of_paths(lost: list[str], paths: set[str], root: Path) -> Counter[str]:
    there = [PurePosixPath(path) for path in paths]
    any_case = {str(path).casefold() for path in there}
    suffixes: dict[str, set[str]] = {}
    for path in there:
        suffixes.setdefault(_without_suffix(path), set()).add(path.suffix)
    by_name = {path.name for path in there}
    causes: Counter[str] = Counter()
    for key in filter(None, lost):
        path = PurePosixPath(key)
        stem = _without_suffix(path)
        if key.casefold() in any_case:
            causes["they differ from files of the collection in upper and lower case alone"] += 1
        elif key in suffixes:
            causes[f"they lack the suffix of a file, {_listed(suffixes[key])}"] += 1
        elif stem in suffixes:
            causes[f"they end in {path.suffix}, and the files in {_listed(suffixes[stem])}"] += 1
        elif path.name in by_name:
            causes[_ELSEWHERE] += 1
        elif is_below(key) and (root / unescape_path(key)).exists():
            causes[
                "they are on the disk, but no image was read there, or data.include and exclude "
                "leave them out"
            ] += 1
    return causes


def _listed(suffixes: set[str]) -> str:
    return " or ".join(sorted(suffix or "none" for suffix in suffixes))


def _causes_of_ids(by: str, raw: list[str], slices: pa.Table, names: Names) -> Counter[str]:
    causes: Counter[str] = Counter()
    for kind in ("patient", "study", "series"):
        there = set(column_texts(slices, kind))
        if kind == by:
            for text in raw:
                others = {text.upper(), text.lower()} - {text}
                if any(names.pseudonym(kind, other) in there for other in others):
                    causes["they differ from ids in upper and lower case alone"] += 1
            continue
        is_kind = sum(names.pseudonym(kind, text) in there for text in raw if text)
        if is_kind:
            causes[f"they are ids of another kind: set `by: {kind}` in labels"] += is_kind
    files = set(column_texts(slices, "path"))
    is_path = sum(text in files for text in raw if text)
    if is_path:
        causes["they are paths: set `by: path` in labels"] += is_path
    return causes


# --- paths that are relative to another folder ----------------------------------------------


def prefix_hint(
    table: LabelTable, keys: Sequence[str], paths: Iterable[str], root: Path, names: Names
) -> str:
    """Return by which beginning keys (one a row) and the paths of files differ; "" for none.

    And what to do about it. The beginning is named where the store keeps paths, or where it stands
    before files of several patients and so is no patient's name.
    """
    rows_of_prefix: dict[tuple[str, bool], list[int]] = {}
    example: dict[tuple[str, bool], tuple[str, str]] = {}
    by_name: dict[str, list[str]] = {}
    for path in names_there(np.array([*paths], dtype=object), climb=True):
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    # Each key once, as rows are counted everywhere.
    first_of_key = {key: row for row, key in reversed([*enumerate(keys)]) if key}
    some = sorted(first_of_key.values())[:TRIED]
    for row in some:
        key = keys[row]
        for path in by_name.get(key.rpartition("/")[2], ()):
            is_lacking = path.endswith(f"/{key}")
            if is_lacking or key.endswith(f"/{path}"):
                longer, shorter = (path, key) if is_lacking else (key, path)
                prefix = (longer.removesuffix(shorter), is_lacking)
                rows_of_prefix.setdefault(prefix, []).append(row)
                example.setdefault(prefix, (key, path))
    if not rows_of_prefix:
        return ""
    best = max(sorted(rows_of_prefix), key=lambda prefix: len(rows_of_prefix[prefix]))
    text, is_lacking = best
    rows = rows_of_prefix[best]
    would = f"{len(rows)} of {count(len(some), 'row')} would join"
    with_it = "with" if is_lacking else "without"
    remedy = _prefix_remedy(text, table.settings.key, root, is_lacking=is_lacking)
    if names.paths == "keep":
        key, path = example[best]
        return f"{with_it} the prefix {text!r} {would}: {key!r} is there as {path!r}. {remedy}"
    column = table.settings.patient
    patients = set() if column is None else {table.columns[column][row] for row in rows} - {""}
    if len(patients) > 1:
        return f"{with_it} the prefix {text!r} {would}. {remedy}"
    folders = count(text.count("/"), "folder that differs", "folders that differ")
    return f"{with_it} the {folders} in front {would}. {remedy}"


def _prefix_remedy(prefix: str, column: str, root: Path, *, is_lacking: bool) -> str:
    """Return what to do where paths begin in another folder; it names no folder of a path."""
    again = "and extract again: what is embedded stays"
    if is_lacking:
        return (
            f"Set data.root to the folder that column {column!r} begins in {again}; or write what "
            "is lacking before each path there"
        )
    if f"{root.as_posix()}/".endswith(f"/{prefix}"):
        return f"Set data.root to the folder above, in which column {column!r} begins, {again}"
    return f"Take it away from each path in column {column!r}: no key of the config does"
