"""Features in and out under the user's recipe: a FAISS index, and stores made of foreign files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.config.loading import read_keys, validated
from pipeline.recipe import Recipe
from pipeline.shared.arrays import unit_length
from pipeline.shared.paths import escape_path
from pipeline.shared.pseudonyms import Names, drop_key, key_check, load_key
from pipeline.shared.spreadsheets import quoted
from stores import FeatureStore
from stores.errors import ConfigError, StoreError
from stores.export import (
    Selection,
    aside,
    batches,
    export_h5,
    export_npy,
    export_parquet,
    live_slices,
)
from stores.features import LEDGER, check_free
from stores.imports import hide_identities, import_features, read_foreign
from stores.leaving import leaving

FORMATS = ("h5", "npy", "parquet", "faiss")
# What a file of a name is; HDF5 where its name says nothing.
_SUFFIXES = {".npy": "npy", ".parquet": "parquet", ".faiss": "faiss", ".index": "faiss"}


def exported_array(path: Path) -> str:
    """Return the array that is exported where none is named: cls, or the only one of features."""
    features = FeatureStore.open(path).arrays.keys() - LEDGER
    return features.pop() if len(features) == 1 else "cls"


def export_store(
    path: Path,
    out: Path,
    to: str | None,
    array: str,
    blocks: int,
    *,
    per_study: bool = False,
) -> int:
    """Write a store's features as `to` says, or the file's name; return how many rows.

    Raises ConfigError.
    """
    if to is None:
        to = "h5" if per_study else _SUFFIXES.get(out.suffix.lower(), "h5")
    store = FeatureStore.open(path)
    which = Selection(array, blocks)
    if to not in FORMATS or (per_study and to != "h5"):
        raise ConfigError(
            f"An export is one of {', '.join(FORMATS)}, and h5 alone goes by study. Got {to!r}."
        )
    try:
        with leaving(store) as written:
            if to == "faiss":
                return export_faiss(store, out, which, written)
            if to == "h5":
                return export_h5(store, out, which, written, per_study=per_study)
            if to == "npy":
                return export_npy(store, out, which, written)
            return export_parquet(store, out, which, written)
    except StoreError:  # of which some are KeyErrors too: they say what to do already
        raise
    except (KeyError, ValueError) as error:
        raise ConfigError(str(error.args[0])) from error


def export_faiss(store: FeatureStore, out: Path, which: Selection, written: list[Path]) -> int:
    """Write an exact cosine index (FAISS, inner product of unit vectors) whose ids are the rows."""
    import faiss

    rows = live_slices(store)["row"].to_numpy()
    index = None
    done = 0
    for batch in batches(store, which, rows):
        # The inner product of unit vectors is their cosine.
        flat = unit_length(batch.reshape(len(batch), -1).astype(np.float32))
        if index is None:
            index = faiss.IndexIDMap2(faiss.IndexFlatIP(flat.shape[1]))
        index.add_with_ids(flat, rows[done : done + len(batch)])
        done += len(batch)
    if index is None:
        raise ConfigError(f"The store {store.place} holds no features. Run `radprobe extract`.")
    with aside(out, written) as path, path.open("xb") as disk:
        # FAISS makes the class when it is imported.
        faiss.write_index(index, faiss.PyCallbackIOWriter(disk.write))  # type: ignore[attr-defined]
    return len(rows)


def export_slices(path: Path, out: Path) -> int:
    """Write a store's slice table with the real paths, as CSV or Parquet; return how many rows.

    It needs the store's key, and the file names what the store hides. Raises ConfigError.
    """
    store = FeatureStore.open(path)
    with leaving(store) as written:
        slices = Names(store.path).revealed(store.slices())
        if out.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"A slice table is written as .csv or .parquet. Got {out.name!r}.")
        # Under another name until it is all there: a crash leaves no half of a table.
        with aside(out, written) as temporary:
            if out.suffix == ".parquet":
                pq.write_table(slices, temporary)
            else:
                # CSV has no lists and no maps: flags become words, tags are left out.
                flags = pc.binary_join(slices["flags"], " ")
                flat = slices.drop_columns(["tags", "flags"]).append_column("flags", flags)
                csv.write_csv(quoted(flat), temporary)
    return int(slices.num_rows)


def import_file(source: Path, out: Path, recipe: Path, table: Path | None = None) -> FeatureStore:
    """Make a store of an HDF5 or npy file of features by another tool.

    recipe: a JSON or YAML file with the fields of `Recipe`; the features become `cls`, whose last
    `blocks` stand side by side. Raises ConfigError where they do not fit it.
    """
    settings = _read_recipe(recipe)
    check_free(out)
    foreign = read_foreign(source, table)
    width = settings.blocks * settings.architecture.dim
    if foreign.features.shape[1] != width:
        raise ConfigError(
            f"{source} has features of {foreign.features.shape[1]} numbers; the recipe's "
            f"{settings.blocks} blocks of {settings.architecture.dim} make {width}. Mend the "
            "recipe."
        )
    names = Names(out)
    key_was_there = names.has_key

    def hide(kind: str, raw: str) -> str:
        return names.shown(escape_path(raw)) if kind == "path" else names.pseudonym(kind, raw)

    try:
        # Before anything is written: no identifier of a foreign table enters the store.
        foreign = hide_identities(foreign, hide)
        check = key_check(load_key(out))
        return import_features(
            out, settings.canonical(), settings.blocks, settings.dtype, foreign, check
        )
    except BaseException:
        if not key_was_there:
            drop_key(out)
        raise


def _read_recipe(path: Path) -> Recipe:
    fields = read_keys(path, "recipe")
    try:
        return validated(path, fields | {"outputs": ("cls",)}, Recipe)
    except ConfigError as error:
        raise ConfigError(f"The recipe cannot be used: {error}") from None
