"""A config's collection against its store: which recipe, which store, what is new and what is gone.

`extract` acts on a look (`update_tables`), `plan` and `explain` only report it (`look`). All three
take the same look, so that a plan cannot say another thing than a run then does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.annotations.label_file import read_labels
from pipeline.annotations.mask_matching import join
from pipeline.annotations.patients import note_patients, patients_by_labels
from pipeline.backbones.weights import Weights, locate
from pipeline.config.root import Config
from pipeline.extraction.discover import READER_VERSION, Discovery, Open, discover
from pipeline.io.detached import content_digest
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.paths import collection_file
from pipeline.shared.pseudonyms import (
    HIDDEN,
    Names,
    hide_path,
    key_check,
    load_key,
    relabelled,
    reveal_path,
)
from stores import ArraySpec, FeatureStore
from stores.errors import (
    ConfigError,
    LabelError,
    OccupiedError,
    RecipeMismatchError,
    StaleTablesError,
    StoreNotFoundError,
    UnreadableError,
    WeightsError,
)
from stores.features import check_free, stored_key_check
from stores.layout import default_part_rows
from stores.reconcile import Known, Reconciled, reconcile
from stores.slices import SLICE_SCHEMA, Tables, of_modalities, where
from stores.withdrawn import Withdrawn

log = logging.getLogger(__name__)

DEMO_WEIGHTS = "random:0"
# Of the paths of a store that does not know its key yet, so many are tried by it.
_PATHS_TRIED = 1000
Difference = tuple[str, Any, Any]  # field, what the store has, what the config asks


# --- recipe and store ------------------------------------------------------------------------


def make_recipe(config: Config) -> tuple[Recipe, Path | None]:
    """Return the recipe of a config and its weights file (None for random weights).

    Reads the file whole, for its digest. Raises WeightsError where the weights are not to be had,
    and ConfigError for settings that do not fit the network.
    """
    weights = locate_weights(config)
    return recipe_with(config, weights), weights.file


def locate_weights(config: Config) -> Weights:
    """Find and hash the weights of a config; a demo alone may fall back to random ones.

    Raises WeightsError.
    """
    choice = config.backbone
    weights = choice.weights
    # A demo store of random weights keeps them: weights that are to be had by now would make
    # another recipe, and the next run of the same config would be refused.
    if config.demo is not None and weights is None and _has_random_weights(config.store):
        weights = DEMO_WEIGHTS
    try:
        return locate(choice.name, weights, treatment=choice.treatment)
    except WeightsError as error:
        if config.demo is None or weights is not None:
            raise
        log.warning("RANDOM WEIGHTS: the demo goes on with an untrained network. %s", error)
    return locate(choice.name, DEMO_WEIGHTS, treatment=choice.treatment)


def recipe_with(config: Config, weights: Weights) -> Recipe:
    """Return the recipe of a config whose weights were found.

    Raises ConfigError for settings that do not fit the network.
    """
    choice = config.backbone
    try:
        return Recipe(
            architecture=weights.architecture,
            weights=weights.identity,
            image_size=choice.image_size,
            blocks=config.outputs.blocks,
            outputs=config.outputs.keep,
            dtype=config.outputs.dtype,
            precision=choice.precision,
            patch=config.outputs.patch,
            preprocess=config.preprocess,
        )
    except ValidationError as error:  # what a config cannot know before its network is known
        faults = [str(fault["ctx"]["error"]) for fault in error.errors() if "ctx" in fault]
        raise ConfigError("\n".join(faults) or str(error)) from None


def open_store(
    config: Config, recipe: Recipe, before_creating: Callable[[], object] | None = None
) -> FeatureStore:
    """Open the config's store, or create it where there is none.

    before_creating: called where there is none; where it raises, none is made.

    Raises RecipeMismatchError naming each field that differs, with both values.
    """
    try:
        store = FeatureStore.open(config.store)
    except StoreNotFoundError:
        check_free(config.store)  # before anything else is found wrong: the place comes first
        if before_creating is not None:
            before_creating()
        store = create_store(config, recipe)
    _check_key(store)
    check_recipe(store, recipe)
    return store


def check_recipe(store: FeatureStore, recipe: Recipe) -> None:
    """Raise RecipeMismatchError, naming each field that differs, where a store is of another."""
    fields = differences(store, recipe)
    if fields:
        lines = [
            f"  {name}: the store has {have!r}, the config asks {want!r}"
            for name, have, want in fields
        ]
        raise RecipeMismatchError(
            f"The store {store.place} was made by another recipe:\n"
            + "\n".join(lines)
            + "\nTwo recipes never share a store: name another store, or undo the change."
        )


def create_store(config: Config, recipe: Recipe) -> FeatureStore:
    """Create the config's store, or open the one that another process created meanwhile."""
    arrays = feature_arrays(recipe)
    part_rows = part_rows_of(config, recipe)
    try:
        check_free(config.store)
        # The key comes before the store: a crash between the two leaves a key alone, which the next
        # run takes; a store without its key could never be joined to labels again.
        check = key_check(load_key(config.store))
        return FeatureStore.create(config.store, recipe.canonical(), arrays, part_rows, check)
    except OccupiedError as error:
        try:
            return FeatureStore.open(config.store)
        except StoreNotFoundError:  # something else lies there
            raise error from None


def _check_key(store: FeatureStore) -> None:
    """Raise ConfigError where the key is another store's; have the store know it from now on."""
    key = load_key(store.path)
    if stored_key_check(store.path) is not None:
        return
    # Made before keys were checked: hidden paths tell whose they are.
    paths = store.slices(["path"])["path"].slice(0, _PATHS_TRIED).to_pylist()
    hidden = [path for path in paths if path.startswith(HIDDEN)]
    if hidden and not any(reveal_path(key, path) != path for path in hidden):
        raise ConfigError(
            f"The key beside the store {store.place} reveals none of its paths: it is another "
            "store's. Put back the one that was."
        )
    store.keep_key_check(key_check(key))


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
        have = Recipe.from_text(store.recipe_text).model_dump(mode="json")
    return list(_leaves(have, recipe.model_dump(mode="json")))


def recipe_differences(have: Recipe, want: Recipe) -> list[Difference]:
    """Return each field in which two recipes differ, with both values."""
    return list(_leaves(have.model_dump(mode="json"), want.model_dump(mode="json")))


def _leaves(have: Any, want: Any, name: str = "") -> Iterator[Difference]:
    """Yield the leaves in which two JSON values differ, named by their path: `preprocess.plane`."""
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
    """A collection as it is now against the tables of its store, and the tables that follow.

    reconciled: the slices with their rows and real paths, and what changed. slices, files
    (SLICE_SCHEMA, FILE_SCHEMA): the tables that the store is to have, with paths as it shows them.
    unchanged: the store has these tables already. unmasked, flagged: how many slices were left out,
    as `data.only` and `data.leave_out` ask. notes: what of the config had no effect.
    """

    reconciled: Reconciled
    slices: pa.Table
    files: pa.Table
    unchanged: bool
    unmasked: int
    flagged: int = 0
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many slices came into the table which way, and how many were left out."""
        counts = self.reconciled.counts
        if self.unmasked:
            counts["unmasked"] = self.unmasked
        if self.flagged:
            counts["left out by their flags"] = self.flagged
        return counts


def look(config: Config, store: FeatureStore | None, *, rehash: bool = False) -> Look:
    """Look at the collection and write nothing.

    store: None where there is none yet. rehash: open every file, whatever its size and time say.
    """
    if store is None:
        return _first_look(config)
    return _look(config, store, rehash)[0]


def update_tables(
    config: Config,
    store: FeatureStore,
    *,
    rehash: bool = False,
    workers: int = 1,
    open_files: Open | None = None,
) -> Look:
    """Look at the collection and bring the store's tables up to it; return the look.

    rehash: open every file, whatever its size and time say. workers: processes that open files, 0
    for none. open_files: what opens them instead, such as a cluster.

    Where another process does the same at the same moment, one of the two looks again, so that
    rows are numbered once.
    """
    while True:
        this_look, version = _look(config, store, rehash, workers, open_files)
        if this_look.unchanged:
            return this_look
        try:
            store.write_tables(this_look.slices, this_look.files, seen=version)
            _note_patients(config, store)
            return this_look
        except StaleTablesError:
            log.info("Another process has brought %s up to date; looking again.", store.path)


def _note_patients(config: Config, store: FeatureStore) -> None:
    """Leave word in the store of whom the label file names, where there is one by now."""
    if config.labels is None or config.labels.patient is None:
        return
    names = Names(store.path, config.data.paths)
    # What is wrong with labels is for those to say who need them.
    with contextlib.suppress(LabelError, StaleTablesError), store.filing(store.withdrawn):
        table = read_labels(config.labels, [])
        slices = names.revealed(store.slice_file.read())  # not to be kept in memory
        note_patients(store, table, slices, config.data.root, names)
    store.publish()


def _first_look(config: Config) -> Look:
    """Look at a collection that has no store: every slice is new."""
    # The order of slices does not depend on the key, and nobody sees these pseudonyms.
    key = bytes(32)
    stored = SLICE_SCHEMA.empty_table()
    discovery = discover(config.data, key, plane=config.preprocess.plane)
    candidates, notes = _without_flags(discovery.slices, config.data.leave_out)
    slices = _selected(config, candidates, stored, key)
    nothing = Known(pa.array([], pa.string()), lambda row: None, lambda path: None, boundary=0)
    reconciled = reconcile(stored, slices, nothing)
    return Look(
        reconciled,
        reconciled.slices,
        discovery.files,
        unchanged=False,
        unmasked=len(candidates) - len(slices),
        flagged=len(discovery.slices) - len(candidates),
        notes=(*discovery.notes, *notes),
    )


def _look(
    config: Config,
    store: FeatureStore,
    rehash: bool,
    workers: int = 1,
    open_files: Open | None = None,
) -> tuple[Look, str]:
    """Return a look, and the version of the tables that it is held against."""
    # The tables come first, before the folder: `write_tables` refuses a look at tables that were
    # replaced since, so whatever another process numbers from here on is never numbered twice.
    tables = store.tables()
    key = load_key(store.path)
    # The disk knows files by their real paths, the store by the paths it may show.
    reveal = functools.partial(reveal_path, key)
    stored = Discovery(
        files=relabelled(tables.files, reveal), slices=relabelled(tables.slices, reveal)
    )

    rules = _discovery_rules(config)
    # Files that were read by other rules tell nothing of what these rules find in them.
    is_guide = not rehash and _rules_of(tables.files) == rules
    discovery = discover(
        config.data,
        key,
        known=stored if is_guide else None,
        plane=config.preprocess.plane,
        workers=workers,
        elsewhere=open_files,
    )

    # Slices are left out before rows are given, so that none takes a row that must not have one:
    # those of a patient who was withdrawn by name, then those that are not wanted.
    of_patients = _without_patients(config, discovery.slices, tables.withdrawn, key)
    candidates, notes = _without_flags(of_patients, config.data.leave_out)
    slices = _selected(config, candidates, stored.slices, key)
    # A digest of an earlier look says nothing where every file is to be hashed again.
    files_before = stored.files.slice(0, 0) if rehash else stored.files
    opened = _opened(discovery.files, files_before)
    reconciled = reconcile(
        stored.slices, slices, _known(config, store, tables, stored.slices, opened)
    )

    show = functools.partial(hide_path, key) if config.data.paths == "hide" else reveal
    new_slices = relabelled(reconciled.slices, show)
    # The rules travel with the file table, for the next look.
    new_files = relabelled(discovery.files, show).replace_schema_metadata({_RULES: rules})
    unchanged = new_slices.equals(tables.slices) and new_files.equals(
        tables.files, check_metadata=True
    )
    this_look = Look(
        reconciled,
        new_slices,
        new_files,
        unchanged,
        unmasked=len(candidates) - len(slices),
        flagged=len(of_patients) - len(candidates),
        notes=(*discovery.notes, *notes),
    )
    return this_look, tables.seen


# Where the file table's metadata has the rules by which its files were read.
_RULES = b"rules"


def _discovery_rules(config: Config) -> bytes:
    """Return what decides, beside a file's bytes, which slices it has and what is said of them."""
    data = config.data
    rules = [READER_VERSION, config.preprocess.plane, data.modality, data.patient, data.tags]
    return json.dumps(rules, sort_keys=True).encode()


def _rules_of(files: pa.Table) -> bytes | None:
    """Return the rules by which the files of a table were read; None where it does not say."""
    metadata: dict[bytes, bytes] = files.schema.metadata or {}
    return metadata.get(_RULES)


def _without_patients(
    config: Config, slices: pa.Table, withdrawn: Withdrawn, key: bytes
) -> pa.Table:
    """Return the slices (real paths) that are of none of the patients who were withdrawn by name.

    By their headers or the path rule, by the label file, and by the files that a label file gave to
    one of them when they were withdrawn.
    """
    if not withdrawn.patients:
        return slices
    names = Names(config.store, config.data.paths, key)
    patients = pa.array(sorted(withdrawn.patients))
    by_labels = pa.array(_patients_by_labels(config, slices, names), pa.string())
    theirs = pc.is_in(slices["patient"], patients).to_numpy()
    theirs = theirs | pc.is_in(by_labels, patients).to_numpy(zero_copy_only=False)
    if withdrawn.files:
        hashes = withdrawn.all_files
        paths = pc.unique(slices["path"]).to_pylist()
        files = [path for path in paths if names.pseudonym("file", path) in hashes]
        theirs = theirs | pc.is_in(slices["path"], pa.array(files, pa.string())).to_numpy()
    return where(slices, pa.array(~theirs))


def _patients_by_labels(config: Config, slices: pa.Table, names: Names) -> NDArray[np.object_]:
    """Return (m,) whom the label file gives each slice to, None for nobody."""
    if config.labels is not None and config.labels.patient is not None:
        try:
            table = read_labels(config.labels, [])
            return patients_by_labels(table, slices, config.data.root, names)
        except LabelError as error:
            log.warning(
                "Later images of withdrawn patients are kept out by their headers and paths alone, "
                "since labels cannot be asked: %s",
                error,
            )
    return np.full(len(slices), None, dtype=object)


def _without_flags(slices: pa.Table, unwanted: tuple[str, ...]) -> tuple[pa.Table, list[str]]:
    """Return the slices that have none of the flags, and a sentence for each flag that none has."""
    if not unwanted:
        return slices, []
    lists = slices["flags"].combine_chunks()
    flags = pc.list_flatten(lists)
    owners = pc.list_parent_indices(lists).filter(pc.is_in(flags, pa.array(unwanted)))
    wanted = np.ones(len(slices), bool)
    wanted[owners.to_numpy()] = False
    there = set(pc.unique(flags).to_pylist())
    notes = []
    for flag in unwanted:
        if flag not in there:
            others = f"There are: {', '.join(sorted(there))}." if there else "There are none."
            notes.append(f"data.leave_out: no slice has the flag {flag!r}. {others}")
    return where(slices, pa.array(wanted)), notes


def _known(
    config: Config, store: FeatureStore, tables: Tables, stored: pa.Table, opened: pa.Array
) -> Known:
    """Return what the store knows of its rows beside its tables, as `reconcile` asks it.

    stored: the store's slices with real paths; opened: paths of files that are not as last seen.
    """
    root = config.data.root
    last_row = stored["row"][-1].as_py() if len(stored) else -1
    # Receipts are read after the folder, which takes long: what was committed meanwhile counts.
    return Known(
        opened=opened,
        digest_of=_FileDigests(store).of,
        hash_file=lambda path: _sha256(root, path),
        # A committed part is never written again: new slices begin a part of their own.
        boundary=store.layout.next_boundary(last_row + 1),
        failed=store.failures(),
        spent=store.spent(),
        withdrawn=tables.withdrawn.patients,
        joined=config.preprocess.by_volume,
    )


def _selected(config: Config, slices: pa.Table, stored: pa.Table, key: bytes) -> pa.Table:
    """Return the slices (real paths) that `data.only` wants, and those stored before.

    A mask that is gone withdraws nothing. A series that is seen as a volume is wanted as a whole,
    so that its features are those of a store of all. Raises ConfigError, and LabelError where there
    is nothing to embed.
    """
    if config.data.only == "all":
        return slices
    wanted = _masked(config, slices, key)
    live = stored.filter(pc.invert(stored["withdrawn"]))
    wanted |= pc.is_in(slices["path"], value_set=live["path"].combine_chunks()).to_numpy()
    # Last, when all single slices are known: one of them brings the whole of its series.
    by_volume = of_modalities(slices, config.preprocess.by_volume).to_numpy()
    series = slices["series"].filter(pa.array(wanted)).combine_chunks()
    wanted |= by_volume & pc.is_in(slices["series"], series).to_numpy()
    if len(slices) and not wanted.any():
        raise LabelError(
            f"None of the {len(slices)} slices has a mask, and data.only is masked: correct where "
            "`masks` says they are, or leave data.only out."
        )
    return slices.filter(pa.array(wanted))


def _masked(config: Config, slices: pa.Table, key: bytes) -> NDArray[np.bool_]:
    """Return (n,) which slices have a mask of any of the config's mask sets."""
    names = Names(config.store, config.data.paths, key)
    has_mask = np.zeros(len(slices), bool)
    for masks in config.masks.values():
        for group in join(config, masks, slices, names):
            has_mask[list(group.numbers)] = True
    return has_mask


def _opened(files: pa.Table, before: pa.Table) -> pa.Array:
    """Return the paths of the files whose size or time are not those they were last seen with."""
    places = pc.index_in(files["path"], before["path"].combine_chunks())
    last_seen = before.select(["size", "mtime_ns"]).take(places)  # nulls where a file is new
    same_size = pc.equal(files["size"], last_seen["size"])
    same_time = pc.equal(files["mtime_ns"], last_seen["mtime_ns"])
    same = pc.fill_null(pc.and_(same_size, same_time), False)
    return files["path"].filter(pc.invert(same)).combine_chunks()


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


def _sha256(root: Path, stored: str) -> str | None:
    """Return the sha256 of an image's bytes, as hex; None where they cannot be read."""
    try:
        return content_digest(collection_file(root, stored))
    except (OSError, UnreadableError):
        return None
