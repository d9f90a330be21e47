"""A config's collection against its store: what is new there, and what is gone.

`extract` acts on a look (`update_tables`), `plan` and `explain` only report it (`look`). All three
take the same look, so that a plan cannot say another thing than a run then does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.label_file import read_labels
from pipeline.annotations.mask_matching import join
from pipeline.annotations.patients import note_patients
from pipeline.config.root import Config
from pipeline.extraction.discover import READER_VERSION, Discovery, Open, discover
from pipeline.extraction.kept_out import KeptOut
from pipeline.extraction.recipes import seen_by_volume
from pipeline.extraction.selection import Selection
from pipeline.io.detached import content_digest
from pipeline.shared.paths import collection_file, unescape_path
from pipeline.shared.pseudonyms import (
    Names,
    hide_path,
    load_key,
    relabelled,
    reveal_path,
)
from stores import FeatureStore
from stores.errors import (
    LabelError,
    StaleTablesError,
    UnreadableError,
)
from stores.reconcile import NOT_FOUND, Known, Reconciled, reconcile
from stores.slices import SLICE_SCHEMA, of_modalities, where
from stores.withdrawn import NOBODY, Withdrawn

log = logging.getLogger(__name__)

# Digests of files that are remembered while a collection is looked at.
_REMEMBERED = 2**16
# Why a slice of the store is not wanted now.
EXCLUDED = "data.include and data.exclude leave it out"
UNWANTED = "data.leave_out or data.only leaves it out"

# --- what there is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """A collection as it is now against the tables of its store, and the tables that follow.

    reconciled: the slices with their rows and real paths, and what changed. slices, files
    (SLICE_SCHEMA, FILE_SCHEMA): the tables that the store is to have, with paths as it shows them.
    unchanged: the store has these tables already. unmasked, flagged: how many slices were left out,
    as `data.only` and `data.leave_out` ask; of_withdrawn: and how many for their patients, who are
    `withdrawn`. notes: what of the config had no effect. names: by which patients are called here.
    """

    reconciled: Reconciled
    slices: pa.Table
    files: pa.Table
    unchanged: bool
    unmasked: int
    names: Names
    flagged: int = 0
    of_withdrawn: int = 0
    withdrawn: Withdrawn = NOBODY
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many slices came into the table which way, and how many were left out."""
        counts = self.reconciled.counts
        if self.unmasked:
            counts["unmasked"] = self.unmasked
        if self.flagged:
            counts["left out by their flags"] = self.flagged
        if self.of_withdrawn:
            counts["of withdrawn patients"] = self.of_withdrawn
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
        # The version is that of the tables before the look: what another writes meanwhile shows.
        this_look, version = _look(config, store, rehash, workers, open_files)
        if this_look.unchanged:
            return this_look
        try:
            store.write_tables(
                this_look.slices, this_look.files, withdrawn=this_look.withdrawn, seen=version
            )
            # Behind the tables: a note of rows that are not there yet would be of nobody.
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
        names=Names(config.store, config.data.paths, key),
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
    is_guide = not rehash and rules_of(tables.files) == rules
    discovery = discover(
        config.data,
        key,
        known=stored if is_guide else None,
        plane=config.preprocess.plane,
        workers=workers,
        elsewhere=open_files,
    )

    # A digest of an earlier look says nothing where every file is to be hashed again.
    files_before = stored.files.slice(0, 0) if rehash else stored.files
    opened = _opened(discovery.files, files_before)
    hash_file = functools.lru_cache(_REMEMBERED)(functools.partial(_sha256, config.data.root))
    # Slices are left out before rows are given, so that none takes a row that must not have one:
    # those of a patient who was withdrawn by name, then those that are not wanted.
    kept_out = KeptOut(config, Names(config.store, config.data.paths, key), hash_file)
    as_before = functools.partial(_as_before, stored.slices, opened)
    of_patients, withdrawn = kept_out.without(discovery.slices, tables.withdrawn, as_before)
    candidates, notes = _without_flags(of_patients, config.data.leave_out)
    slices = _selected(config, candidates, stored.slices, key)
    reconciled = reconcile(
        stored.slices,
        slices,
        _known(config, store, withdrawn, stored.slices, opened, of_patients, kept_out),
    )

    show = functools.partial(hide_path, key) if config.data.paths == "hide" else reveal
    new_slices = relabelled(reconciled.slices, show)
    # The rules travel with the file table, for the next look.
    new_files = relabelled(discovery.files, show).replace_schema_metadata({_RULES: rules})
    unchanged = (
        new_slices.equals(tables.slices)
        and new_files.equals(tables.files, check_metadata=True)
        and withdrawn == tables.withdrawn
    )
    this_look = Look(
        reconciled,
        new_slices,
        new_files,
        unchanged,
        unmasked=len(candidates) - len(slices),
        names=Names(config.store, config.data.paths, key),
        flagged=len(of_patients) - len(candidates),
        of_withdrawn=len(discovery.slices) - len(of_patients),
        withdrawn=withdrawn,
        notes=(*discovery.notes, *notes),
    )
    return this_look, tables.seen


# Where the file table's metadata has the rules by which its files were read.
_RULES = b"rules"


def _discovery_rules(config: Config) -> bytes:
    """Return what decides, beside a file's bytes, which slices it has and what is said of them."""
    data = config.data
    rules = [READER_VERSION, config.preprocess.plane, data.modality, data.patient, data.tags]
    if data.roots:  # whose names stand before ids; where they lie does not matter
        rules.append("roots")
    if data.study is not None:
        rules.append({"study": data.study})
    return json.dumps(rules, sort_keys=True).encode()


def rules_of(files: pa.Table) -> bytes | None:
    """Return the rules by which the files of a table were read; None where it does not say."""
    metadata: dict[bytes, bytes] = files.schema.metadata or {}
    return metadata.get(_RULES)


def _as_before(stored: pa.Table, opened: pa.Array) -> pa.Array:
    """Return the paths of live slices whose files nothing speaks against being as they were."""
    paths = where(stored, pc.invert(stored["withdrawn"]))["path"].combine_chunks()
    return paths.filter(pc.invert(pc.is_in(paths, opened)))


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
    config: Config,
    store: FeatureStore,
    withdrawn: Withdrawn,
    stored: pa.Table,
    opened: pa.Array,
    discovered: pa.Table,
    kept_out: KeptOut,
) -> Known:
    """Return what the store knows of its rows beside its tables, as `reconcile` asks it.

    stored: the store's slices with real paths; opened: paths of files that are not as last seen;
    discovered: all slices that the config might want.
    """
    last_row = stored["row"][-1].as_py() if len(stored) else -1
    # Receipts are read after the folder, which takes long: what was committed meanwhile counts.
    return Known(
        opened=opened,
        digest_of=_FileDigests(store).of,
        hash_file=kept_out.hash_file,
        # A committed part is never written again: new slices begin a part of their own.
        boundary=store.layout.next_boundary(last_row + 1),
        failed=store.failures(),
        spent=store.spent(),
        withdrawn=withdrawn.patients,
        barred=kept_out.rows_of(stored, withdrawn),
        joined=seen_by_volume(config),
        why_gone=_WhyGone(config, discovered).of,
    )


class _WhyGone:
    """Why a slice of the store is no longer wanted, or there; its tables are read when asked."""

    def __init__(self, config: Config, discovered: pa.Table) -> None:
        self._config = config
        self._discovered = discovered
        self._selection = Selection(config.data)
        self._names: set[tuple[str, int]] | None = None

    def of(self, path: str, frame: int) -> str:
        """Return why, by its real path."""
        if not self._selection.wants(unescape_path(path)):
            return EXCLUDED
        if self._names is None:
            columns = (self._discovered[name].to_pylist() for name in ("path", "frame"))
            self._names = set(zip(*columns, strict=True))
        # What is there and wanted by its path was left out for its flags, or has no mask.
        return UNWANTED if (path, frame) in self._names else NOT_FOUND


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
    by_volume = of_modalities(slices, seen_by_volume(config)).to_numpy()
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
