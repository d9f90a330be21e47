"""A config's collection against its store: which recipe, which store, what is new and what is gone.

`extract` acts on what `settle` says, `plan` and `explain` only tell it (`look`): the same functions
look for all three, so that a plan cannot say another thing than a run then does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.backbones.weights import locate
from pipeline.config.root import Config
from pipeline.extraction.discover import READER_VERSION, Discovery, Open, discover
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import (
    Names,
    hide_path,
    load_key,
    pseudonym,
    relabelled,
    reveal_path,
)
from stores import ArraySpec, FeatureStore
from stores._disk import writing
from stores.errors import (
    ConfigError,
    LabelError,
    OccupiedError,
    RecipeMismatchError,
    StaleTablesError,
    StoreNotFoundError,
    WeightsError,
)
from stores.layout import default_part_rows
from stores.purge import patients_on
from stores.reconcile import Known, Reconciled, reconcile
from stores.slices import SLICE_SCHEMA, of_modalities, where
from stores.storage import storage_of

log = logging.getLogger(__name__)

DEMO_WEIGHTS = "random:0"
Difference = tuple[str, Any, Any]  # field, what the store has, what the config asks


# --- recipe and store ------------------------------------------------------------------------


def make_recipe(config: Config) -> tuple[Recipe, Path | None]:
    """Return the recipe of a config and its weights file (None for random weights).

    Only a demo config may fall back to random weights, and keeps them once its store has them.
    """
    choice = config.backbone
    weights = choice.weights
    if config.demo is not None and weights is None and _has_random_weights(config.store):
        weights = DEMO_WEIGHTS
    try:
        found = locate(choice.name, weights, treatment=choice.treatment)
    except WeightsError as error:
        if config.demo is None or weights is not None:
            raise
        log.warning("RANDOM WEIGHTS: the demo goes on with an untrained network. %s", error)
        found = locate(choice.name, DEMO_WEIGHTS, treatment=choice.treatment)
    try:
        recipe = Recipe(
            architecture=found.architecture,
            weights=found.identity,
            image_size=choice.image_size,
            blocks=config.outputs.blocks,
            outputs=config.outputs.keep,
            dtype=config.outputs.dtype,
            precision=choice.precision,
            patch=config.outputs.patch,
            preprocess=config.preprocess,
        )
    except ValidationError as error:  # what a config cannot know before its network is known
        said = [str(fault["ctx"]["error"]) for fault in error.errors() if "ctx" in fault]
        raise ConfigError("\n".join(said) or str(error)) from None
    return recipe, found.file


def open_store(config: Config, recipe: Recipe) -> FeatureStore:
    """Open the config's store, or create it where there is none.

    Raises RecipeMismatchError naming each field that differs, with both values.
    """
    try:
        store = FeatureStore.open(config.store)
    except StoreNotFoundError:
        store = _create(config, recipe)
    found = differences(store, recipe)
    if found:
        raise RecipeMismatchError(
            f"The store {store.place} was made by another recipe:\n"
            + "\n".join(
                f"  {name}: the store has {a!r}, the config asks {b!r}" for name, a, b in found
            )
            + "\nTwo recipes never share a store: name another store, or undo the change."
        )
    return store


def _create(config: Config, recipe: Recipe) -> FeatureStore:
    """Create the config's store, or open the one that another process created meanwhile."""
    with writing(config.store):  # before the store: without its key it cannot be joined
        load_key(config.store)
    arrays, part_rows = feature_arrays(recipe), part_rows_of(config, recipe)
    try:
        return FeatureStore.create(config.store, recipe.canonical(), arrays, part_rows)
    except OccupiedError as error:
        try:
            return FeatureStore.open(config.store)
        except StoreNotFoundError:
            raise error from None


def feature_arrays(recipe: Recipe) -> dict[str, ArraySpec]:
    """Return the feature arrays that a recipe fills: name -> shape of a row, dtype."""
    return {name: ArraySpec(shape, dtype) for name, (shape, dtype) in recipe.arrays.items()}


def part_rows_of(config: Config, recipe: Recipe) -> int:
    """Return the rows of a part that a new store would have."""
    row_bytes = sum(
        int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize
        for spec in feature_arrays(recipe).values()
    )
    return config.outputs.part_rows or default_part_rows(row_bytes)


def differences(store: FeatureStore, recipe: Recipe) -> list[Difference]:
    """Return each field in which a store's recipe is another one."""
    have = json.loads(store.recipe_text)
    with contextlib.suppress(ValidationError):  # of other fields, as another version makes it
        # What a recipe leaves out at its default is named with that default.
        have = Recipe.model_validate(have).model_dump(mode="json")
    return list(_leaves(have, recipe.model_dump(mode="json")))


def _leaves(have: Any, want: Any, name: str = "") -> Iterator[Difference]:
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted(have.keys() | want.keys()):
            yield from _leaves(have.get(key), want.get(key), f"{name}.{key}" if name else key)
    elif have != want:
        yield name, have, want


def _has_random_weights(path: Path) -> bool:
    try:
        return recipe_of(FeatureStore.open(path)).random
    except StoreNotFoundError:
        return False


# --- what there is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What was found, and what becomes of it: what is to be stored, and the changes.

    slices, files (SLICE_SCHEMA, FILE_SCHEMA): with paths as the store is to have them; those of
    `found` are the real ones. unmasked: how many slices were left out, as `data.only` asks.
    """

    found: Reconciled
    slices: pa.Table
    files: pa.Table
    settled: bool  # the store's tables say so already
    unmasked: int

    @property
    def counts(self) -> dict[str, int]:
        """How many slices came into the table which way, and how many were left out."""
        return self.found.counts | ({"unmasked": self.unmasked} if self.unmasked else {})


def look(config: Config, store: FeatureStore | None, *, rehash: bool = False) -> Look:
    """Look at the collection and write nothing.

    store: None where there is none yet. rehash: open every file, whatever its size and time say.
    """
    if store is None:
        # The order of slices does not depend on the key, and nobody sees these pseudonyms.
        key, stored = bytes(32), SLICE_SCHEMA.empty_table()
        fresh = discover(config.data, key, plane=config.preprocess.plane)
        known = Known(pa.array([], pa.string()), lambda row: None, lambda path: None, boundary=0)
        slices = _selected(config, fresh.slices, stored, key)
        found = reconcile(stored, slices, known)
        return Look(found, found.slices, fresh.files, False, len(fresh.slices) - len(slices))
    return _look(config, store, rehash)[0]


def settle(
    config: Config,
    store: FeatureStore,
    *,
    rehash: bool = False,
    workers: int = 1,
    elsewhere: Open | None = None,
) -> Look:
    """Look at the collection and bring the store's tables up to it.

    workers: processes that open files, 0 for none; elsewhere: what opens them instead.

    Where another process does the same at the same moment, one of the two looks again, so that
    rows are numbered once.
    """
    while True:
        found, seen = _look(config, store, rehash, workers, elsewhere)
        try:
            if not found.settled:
                store.write_tables(found.slices, found.files, seen=seen)
            return found
        except StaleTablesError:
            log.info("Another process has brought %s up to date; looking again.", store.path)


def _look(
    config: Config,
    store: FeatureStore,
    rehash: bool,
    workers: int = 1,
    elsewhere: Open | None = None,
) -> tuple[Look, str]:
    """Return what was found, and the moment of the tables it was held against."""
    data, plane, tables = config.data, config.preprocess.plane, store.tables()
    key = load_key(store.path)
    reveal = functools.partial(reveal_path, key)
    own = [READER_VERSION, plane, data.modality, data.patient, data.tags]
    rules = json.dumps(own, sort_keys=True)
    stored, seen_files = (relabelled(table, reveal) for table in (tables.slices, tables.files))
    before = None
    if not rehash and (tables.files.schema.metadata or {}).get(b"rules") == rules.encode():
        before = Discovery(seen_files, stored)
    discovery = discover(data, key, known=before, plane=plane, workers=workers, elsewhere=elsewhere)
    slices = discovery.slices
    if tables.patients:
        patients = pa.array(sorted(tables.patients))
        slices = where(slices, pc.invert(pc.is_in(slices["patient"], patients)))
    of_all, slices = len(slices), _selected(config, slices, stored, key)
    unmasked = of_all - len(slices)
    known = Known(
        opened=_opened(discovery.files, seen_files.slice(0, 0) if rehash else seen_files),
        digest_of=_FileDigests(store).of,
        hash_file=lambda path: _sha256(data.root / unescape_path(path)),
        boundary=store.layout.next_boundary(stored["row"][-1].as_py() + 1 if len(stored) else 0),
        failed=store.failures(),
        spent=store.spent(),
        withdrawn=tables.patients,
        joined=config.preprocess.by_volume,
    )
    found = reconcile(stored, slices, known)
    label = functools.partial(hide_path, key) if data.paths == "hide" else reveal
    slices, files = relabelled(found.slices, label), relabelled(discovery.files, label)
    files = files.replace_schema_metadata({b"rules": rules.encode()})
    settled = slices.equals(tables.slices) and files.equals(tables.files, check_metadata=True)
    return Look(found, slices, files, settled, unmasked), tables.seen


def _selected(config: Config, slices: pa.Table, stored: pa.Table, key: bytes) -> pa.Table:
    """Return the slices found (real paths) that `data.only` wants, and those stored before.

    A mask that is gone withdraws nothing. A series that is seen as a volume is wanted as a whole,
    so that its features are those of a store of all. Raises ConfigError, and LabelError where there
    is nothing to embed.
    """
    if config.data.only == "all":
        return slices
    from pipeline.annotations.mask_matching import join

    names = Names(config.store, config.data.paths, key)
    wanted = np.zeros(len(slices), bool)
    for masks in config.masks.values():
        for group in join(config, masks, slices, names):
            wanted[list(group.numbers)] = True
    live = stored.filter(pc.invert(stored["withdrawn"]))
    wanted |= pc.is_in(slices["path"], value_set=live["path"].combine_chunks()).to_numpy()
    by_volume = of_modalities(slices, config.preprocess.by_volume).to_numpy()
    series = slices["series"].filter(pa.array(wanted)).combine_chunks()
    wanted |= by_volume & pc.is_in(slices["series"], series).to_numpy()
    if len(slices) and not wanted.any():
        raise LabelError(
            f"None of the {len(slices)} slices has a mask, and data.only is masked: correct where "
            "`masks` says they are, or leave data.only out."
        )
    return slices.filter(pa.array(wanted))


def _opened(files: pa.Table, before: pa.Table) -> pa.Array:
    """Return the paths of the files whose size or time are not those they were last seen with."""
    names = ["size", "mtime_ns"]
    places = pc.index_in(files["path"], before["path"].combine_chunks())
    then = before.select(names).take(places)
    same = (pc.fill_null(pc.equal(files[name], then[name]), False) for name in names)
    return files["path"].filter(pc.invert(functools.reduce(pc.and_, same))).combine_chunks()


class _FileDigests:
    """The sha256 of the file each row was made from, read from the store once, if ever asked."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._digests: NDArray[np.uint8] | None = None

    def of(self, row: int) -> str | None:
        """Return a row's digest as hex; None where no file was read for it."""
        if self._digests is None:
            self._digests = self._store.read("file_digest")
        digest = self._digests[row]
        return bytes(digest).hex() if digest.any() else None


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


# --- a patient ------------------------------------------------------------------------------


def name_patient(path: Path, patient: str) -> str:
    """Return the pseudonym of a patient of a store, given by id or by pseudonym.

    Raises ConfigError where no slice is of that patient.
    """
    known = patients_on(path)
    for name in (pseudonym(load_key(path), "patient", patient), patient):
        if name in known:
            return name
    raise ConfigError(
        f"No slice of the store {storage_of(path).place!r} is of patient {patient!r}. Give the id "
        "as the images or the config's `patient` rule have it, or the pseudonym of the slice table."
    )
