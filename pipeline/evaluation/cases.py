"""A task over a store: its units, who stands where, and their features.

What costs time to know is made once, when it is first asked for, so that an answer that is on file
opens no array. Dims: n units, m slices, d features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.labels import (
    LabelTable,
    label_units,
    read_labels,
    texts_of,
    texts_of_slices,
)
from pipeline.annotations.levels import check_of_volumes
from pipeline.annotations.patients import note_patients
from pipeline.annotations.units import Units
from pipeline.config.base import HeadSettings
from pipeline.config.data import Labels, SplitChoice
from pipeline.config.regions import RegionFeatures
from pipeline.config.root import Config
from pipeline.config.tasks import COLUMNS, FeatureSet, Task
from pipeline.evaluation.covariates import ColumnTexts, Covariates, tells_all
from pipeline.evaluation.fit_store import FitStore
from pipeline.evaluation.leakage import (
    Copies,
    CopySearch,
    Links,
    WaysOut,
    describe_equal_pixels,
    describe_near_copies,
    refuse_copies,
)
from pipeline.evaluation.pooling import comparable_features, read_features, scaled
from pipeline.evaluation.splits import (
    PARTS,
    Parts,
    Split,
    check_column,
    extended_text,
    load_split,
    make_split,
    merged,
    split_new_patients,
    split_path,
    split_text,
)
from pipeline.evaluation.stratify import of_whole_units
from pipeline.recipe import recipe_of
from pipeline.results import Provenance
from pipeline.shared.arrays import Floats, allocate, batches
from pipeline.shared.pseudonyms import Names
from pipeline.shared.versions import versions_of
from stores._disk import write_checked
from stores.errors import LabelError
from stores.features import FeatureStore
from stores.withdrawn import Withdrawn

Texts = NDArray[np.str_]
# How copies are left out where no label says what is asked of them.
WITHOUT_IMAGES = "leave the images of the copies out by data.exclude and extract again"


@dataclass
class Cases:
    """A task over a store.

    shortcut_of: the task on whose split this one asks whether the features tell a shortcut.
    fit_store: the store whose features heads are fitted on, where it is another than `store`.
    notes: what results say of the cases, such as copies that are allowed. agreement: how far the
    test units' features agree with those in `fit_store`, once features were read.
    """

    config: Config
    store: FeatureStore
    table: LabelTable
    fingerprint: str
    name: str
    task: Task
    shortcut_of: Cases | None = None
    fit_store: FitStore | None = None
    notes: list[str] = field(default_factory=list, init=False)
    agreement: float | None = field(default=None, init=False)
    # Who was withdrawn before anything was read: an answer is not filed once others are.
    withdrawn: Withdrawn = field(init=False)
    # The features that were read last: they may fill the memory, so that no others are remembered.
    _last_read: tuple[FeatureSet, Floats] | None = field(default=None, init=False)
    _split_ensured: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.withdrawn = self.store.withdrawn

    # --- units ---------------------------------------------------------------------------

    @cached_property
    def units(self) -> Units:
        """The labels of the task, joined to the store's slices, in the order of their files."""
        return self._join_units()

    def _join_units(self) -> Units:
        # A method, for `super` to be asked: a cached property of `super` that is asked from one of
        # the same name leaves its own value on file, where what is made of it ends in an error.
        units = label_units(
            self.table,
            self.task,
            self._slices,
            self.store.status(),
            self._root,
            self._names,
            # Of a shortcut's two values neither is the finding: view, sex, site.
            either_way=self.shortcut_of is not None,
            withdrawn=self.withdrawn,
            reasons=self.store.failures,
        )
        if recipe_of(self.store).level == "volume":
            units = self._of_volumes(units)
        return units.in_order(order_of_files(units, self._slices))

    def _of_volumes(self, units: Units) -> Units:
        """Return units of volumes, whose rows share a vector. Raises ConfigError for images."""
        check_of_volumes(self.name, self.task.level)
        place = np.searchsorted(self._slices["row"].to_numpy(), units.rows)
        return units.one_a_volume(self._slices.select(["series"]).take(pa.array(place)))

    def column(self, name: str) -> Texts:
        """Return (n,) what a label column says of each unit; "" where nothing, or several."""
        return texts_of(
            self.table,
            name,
            self.units,
            self._slices,
            self._root,
            self._names,
        )

    @cached_property
    def _slices(self) -> pa.Table:
        """The slice table, with the real paths."""
        return self._names.revealed(self.store.slices())

    @property
    def _root(self) -> Path:
        return self.config.data.root

    @cached_property
    def _names(self) -> Names:
        return Names(self.store.path, self.config.data.paths)

    @cached_property
    def labels_digest(self) -> str:
        """The sha256 of the label columns that the task reads."""
        return self.table.digest(self.task)

    @property
    def depends_on(self) -> dict[str, str]:
        """What else an answer depends on: of slices as they are, nothing."""
        return {}

    # --- the split -----------------------------------------------------------------------

    @cached_property
    def split_column_digest(self) -> str | None:
        """The sha256 of the label column that patients are divided by, where they are."""
        column = self.config.split.column
        if column is None:
            return None
        text = "\0".join(self.table.columns[column])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _split_path(self) -> Path:
        return split_path(self.store.path, self.name, self.task, self.config.split)

    @property
    def is_split(self) -> bool:
        """Whether the split is on file."""
        if self.shortcut_of is not None:
            return self.shortcut_of.is_split
        return self._split_path.is_file()

    @cached_property
    def split(self) -> Split:
        """The split on file, which `ensure_split` makes. Raises FileNotFoundError where none is."""
        if self.shortcut_of is not None:
            return self.shortcut_of.split
        return load_split(self._split_path)

    @cached_property
    def folds(self) -> list[Parts]:
        """Unit numbers of train, val and test: once, or for each fold that tests in turn.

        Of the split that `ensure_split` has brought up to date. Raises LabelError for a part
        without units.
        """
        return self.split.parts_of(self.units.groups)

    def ensure_split(self) -> None:
        """File the split where there is none, and bring one on file up to date, once.

        The key of an answer holds who stands where, so that this comes before it is computed.
        Raises LabelError where patients cannot be dealt, where the split does not know some and may
        not take them in, where its column says otherwise by now, and where copies of an image stand
        on two sides. What is refused is not filed.
        """
        if self._split_ensured:
            return
        if self.shortcut_of is None:
            _ = self.units  # joined before others are kept from filing
            with self.store.filing(self.withdrawn):
                self._file_split()
                note_patients(self.store, self.table, self._slices, self._root, self._names)
        else:  # the other task's split counts as it is, unless that is refused
            self.shortcut_of.ensure_split()
            self._refuse_copies(self._copy_search().across(self._sides(self.split)))
        self._split_ensured = True

    def _file_split(self) -> None:
        """Deal a split, or add the patients that the one on file does not know, and file it."""
        path = self._split_path
        choice = self.config.split
        column = self._split_column()
        on_file = load_split(path) if path.is_file() else None
        if on_file is not None and column is not None:
            check_column(on_file, self.units, column, choice)
        split, addition = self._divided(on_file, column)
        # Last of all: nothing is left to be refused.
        if on_file is None:
            # Named by who is asked about: a crash before this line leaves nothing, and one after
            # it a split that the next run reads.
            path.parent.mkdir(exist_ok=True)
            write_checked(path, split_text(split, self.name, choice).encode())
        elif addition is not None:
            text = path.read_text("utf-8")
            write_checked(path, extended_text(text, addition).encode())
        # Read back: what is answered from is what is on file, whoever wrote it.
        self.split = load_split(path)

    def _divided(
        self,
        on_file: Split | None,
        column: Texts | None,
    ) -> tuple[Split, Split | None]:
        """Return the split with all patients in it, and what it adds to the one on file, if any.

        Raises LabelError, where copies stand on two sides too.
        """
        choice = self.config.split
        links = Links(self.pictured) if choice.group == "duplicates" else None
        search: CopySearch | None = None
        while True:
            linked = None if links is None else links.names_of(self.units.groups)
            if on_file is None:
                addition = None
                split = make_split(self.units, choice, column, keys=self.keys, linked=linked)
            else:
                keys = self.keys if choice.new == "deal" else None
                addition = split_new_patients(on_file, self.units, choice, keys=keys, linked=linked)
                split = on_file if addition is None else merged(on_file, addition)
            # New patients are on their sides by now, so that their copies are found as well.
            if search is None:
                search = self._copy_search()
            copies = search.across(self._sides(split))
            # Copies that were on one side by chance may be parted by the next deal, so that this
            # goes on until none are: each time at least two patients more are linked.
            if links is None or not links.add(copies):
                self._refuse_copies(copies)
                return split, addition

    @cached_property
    def keys(self) -> Texts:
        """(n,) the first file of each unit: what is drawn by it is the same in every store."""
        return self._name_units()

    def _name_units(self) -> Texts:
        return keys_of_units(self.units, self._slices)

    def _split_column(self) -> Texts | None:
        """Return what units are split by other than their labels: site, date or listed part."""
        return split_texts(
            self.config.split,
            self.table,
            self.units,
            self._slices,
            self._root,
            self._names,
        )

    def _sides(self, split: Split) -> NDArray[np.int64]:
        """Return the side of each of `pictured`; -1 where the split leaves it out: none leaks."""
        return split.sides_of(self.pictured.groups)

    @property
    def pictured(self) -> Units:
        """The images and volumes of the units, which may be copies of each other: they are those.

        Patients stand on sides, so that they are on the sides of the units.
        """
        return self.units

    def _copy_search(self) -> CopySearch:
        """Return the search for copies among the units, which reads their features once."""
        units = self.pictured
        digests = self.store.read("pixel_digest", units.rows)
        features = comparable_features(self.store, units, self.task.pool)
        return CopySearch.of(units, digests, features)

    def _refuse_copies(self, copies: Copies) -> None:
        """Refuse copies on two sides, or note those that are allowed. Raises LabelError."""
        allow = self.config.split.allow
        refused = copies
        if "duplicates" in allow:
            refused = replace(refused, equal=refused.equal.without_units())
            if len(copies.equal.units):
                self.notes.append(describe_equal_pixels(copies.equal))
        if "near-duplicates" in allow:
            refused = replace(refused, near=[])
            if copies.near:
                self.notes.append(describe_near_copies(copies.near, self.pictured))
        ways_out = WaysOut(
            split=self.config.split,
            is_filed=self.is_split,
            same_patient=self._same_patient,
            without=self._without_copies,
        )
        refuse_copies(refused, self.pictured, ways_out, self._named)

    @property
    def _same_patient(self) -> str:
        """How slices are said to be of one patient."""
        labels = self.config.labels
        if labels is None or labels.file.is_dir():
            root = ", root: COLUMN" if self.config.data.roots else ""
            return (
                f"a table that says so: `labels: {{file: ..., patient: COLUMN{root}, headers: "
                "ignore}`, a row a file"
            )
        if labels.patient is None:
            return (
                'the same id in a column that labels.patient names, with labels.headers: "ignore"'
            )
        return f"the same id in column {labels.patient!r}, which labels.patient names"

    @property
    def _without_copies(self) -> str:
        """How copies are left out."""
        return "leave the labels of the copies empty"

    def _named(self, row: int) -> str:
        """Return how a message names a slice: by its row, and its path where the store keeps it."""
        if self._names.paths == "hide":
            return f"row {row}"
        slices = self._slices
        place = int(np.searchsorted(slices["row"].to_numpy(), row))
        return f"row {row}: {slices['path'][place].as_py()}"

    # --- features ------------------------------------------------------------------------

    def features_of(self, head: HeadSettings) -> FeatureSet | RegionFeatures:
        """Return which features a head sees of the units."""
        if self.shortcut_of is not None:  # asked of the features alone
            return features_alone(head.features)
        return head.features

    def features(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) the units' features as a head sees them."""
        x = self.unscaled(head, parts)
        return scaled(x, parts["train"], head.scaling, head.components)

    def unscaled(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) what a head sees of the units before it is scaled for it.

        Features, and the task's columns beside them where it sees those.
        """
        covariates = self._encoded_covariates(head, parts)
        if covariates is None:
            return self.tokens(head, parts)
        if head.features == COLUMNS:
            return covariates
        return _side_by_side(self.tokens(head, parts), covariates, self.store.path)

    def tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) the units' features, before they are scaled for a head.

        The last ones read are remembered, and no others, nor those of the task that this one asks
        for a shortcut of.
        """
        if self.shortcut_of is not None:
            self.shortcut_of._last_read = None
        if self.fit_store is None:
            x = self._remembered(head.features)
        else:
            # Not remembered: which features stay depends on the units that are tested.
            x = read_features(self.store, self.units, head.features, self.task.pool)
            agreement = self.fit_store.replace_features(
                x,
                self.units,
                parts["test"],
                head.features,
                self.task.pool,
            )
            self._note_agreement(agreement)
        return x

    def _remembered(self, which: FeatureSet) -> Floats:
        """Return (n, d) the units' features in this store, read unless they were read last."""
        if self._last_read is not None and self._last_read[0] == which:
            return self._last_read[1]
        # Forgotten before others are read, so that memory never holds both.
        self._last_read = None
        x = read_features(self.store, self.units, which, self.task.pool)
        self._last_read = (which, x)
        return x

    def slices(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (m, d) the features of every slice of the units, as a head sees them."""
        x = self.unscaled_slices(head, parts)
        fit = slices_of(self.units, parts["train"])
        return scaled(x, fit, head.scaling, head.components)

    def unscaled_slices(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (m, d) what a head sees of every slice: its features, and its unit's columns."""
        covariates = self._encoded_covariates(head, parts)
        if covariates is None:
            return self.slice_tokens(head, parts)
        of_slices = covariates[self.units.unit]
        if head.features == COLUMNS:
            return of_slices
        return _side_by_side(self.slice_tokens(head, parts), of_slices, self.store.path)

    def slice_tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (m, d) the features of every slice, before they are scaled for a head."""
        # Forgotten first: the features of every slice are the most that memory is asked for.
        self._last_read = None
        units = self.units
        each_alone = units.each_slice()
        x = read_features(self.store, each_alone, head.features)
        if self.fit_store is not None:
            agreement = self.fit_store.replace_features(
                x,
                each_alone,
                slices_of(units, parts["test"]),
                head.features,
                "mean",
            )
            self._note_agreement(agreement)
        return x

    # --- columns beside them -------------------------------------------------------------

    def covariates(self, head: HeadSettings, parts: Parts) -> Covariates:
        """Return what train says of the columns that a head sees; none where it sees none.

        Raises LabelError where the task names none, and as `Covariate.fit` does.
        """
        if COLUMNS not in head.features or self.shortcut_of is not None:
            return Covariates()
        if not self.task.columns:
            raise LabelError(
                f"{self.name}: features are {head.features!r}, and the task names no columns. "
                "Write `columns: [age, sex]` into it, by their names in the label table."
            )
        if self.task.region is not None:
            raise LabelError(
                f"{self.name}: columns are joined to whole images, and its cases are regions, of "
                "which an image may have several. Take features "
                f"{features_alone(head.features)!r}, and `subgroups` for scores by a column's "
                "values."
            )
        return Covariates.fit(self.covariate_texts, parts["train"])

    @cached_property
    def covariate_texts(self) -> dict[str, Texts]:
        """(n,) what each of the task's columns says of the units; "" where nothing, or several."""
        return self.column_texts.of_units(self.units)

    @property
    def column_texts(self) -> ColumnTexts:
        """What the task's columns say of the store's slices."""
        columns = self.task.columns
        return ColumnTexts.of(self.table, columns, self._slices, self._root, self._names)

    def _encoded_covariates(self, head: HeadSettings, parts: Parts) -> Floats | None:
        """Return (n, k) the units' columns as numbers, and note what is missing; None for none."""
        covariates = self.covariates(head, parts)
        if not covariates.columns:
            return None
        notes = covariates.notes(self.covariate_texts)
        if self.units.kind in ("binary", "multiclass"):
            train = parts["train"]
            notes += [
                f"column {name!r} tells the class of every train unit alone: leave it out of "
                "columns if it is known no earlier than the label"
                for name, texts in self.covariate_texts.items()
                if tells_all(texts[train], self.units.y[train])
            ]
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
        return covariates.encode(self.covariate_texts)

    def _note_agreement(self, agreement: float | None) -> None:
        if agreement is not None:
            self.agreement = agreement

    # --- where an answer comes from ------------------------------------------------------

    def provenance(
        self,
        key: str,
        contract: int,
        labels: str,
        libraries: Sequence[str],
    ) -> Provenance:
        """Return what an answer under a key came from; labels: their digest, or that of masks."""
        recipe = recipe_of(self.store)
        return Provenance(
            key=key,
            contract=contract,
            recipe=recipe.digest,
            weights=recipe.weights,
            random=recipe.random,
            store=self.fingerprint,
            labels=labels,
            split=self.split.digest,
            versions=versions_of(libraries),
            network=recipe.network,
        )


def features_alone(which: FeatureSet) -> FeatureSet:
    """Return features without the columns beside them; of columns alone those that compare."""
    alone: FeatureSet = cast(FeatureSet, which.removesuffix(f"+{COLUMNS}"))
    return "cls" if alone == COLUMNS else alone


def _side_by_side(x: Floats, covariates: Floats, folder: Path) -> Floats:
    """Return features x (n, d) and columns (n, k) as (n, d + k), where many in a scratch file."""
    joined = allocate(len(x), x.shape[1] + covariates.shape[1], folder)
    for now in batches(len(x)):
        joined[now, : x.shape[1]] = x[now]
        joined[now, x.shape[1] :] = covariates[now]
    return joined


def keys_of_units(units: Units, slices: pa.Table) -> Texts:
    """Return (n,) the first file of each unit: of one collection, the same in every store.

    slices: SLICE_SCHEMA, with the real paths.
    """
    place = pa.array(units.places_in(slices))
    paths = slices["path"].take(place).to_pylist()
    frames = slices["frame"].take(place).to_pylist()
    of_slices = np.array([f"{path}\0{n}" for path, n in zip(paths, frames, strict=True)])
    by_key = np.argsort(of_slices, kind="stable")
    _, first = np.unique(units.unit[by_key], return_index=True)
    keys: Texts = of_slices[by_key[first]]
    return keys


def order_of_files(units: Units, slices: pa.Table) -> NDArray[np.int64]:
    """Return the numbers (n,) of units in the order of their first files, by path and frame.

    Whatever is drawn, fitted or summed unit by unit is then the same in every store of a
    collection: row numbers say how a store grew, and pseudonyms are of its key. slices:
    SLICE_SCHEMA, with the real paths.
    """
    import pyarrow.compute as pc  # where an answer is computed: one on file needs none

    place = units.places_in(slices)
    files = slices.select(["path", "frame"]).take(pa.array(place))
    by_file = pc.sort_indices(files, [("path", "ascending"), ("frame", "ascending")]).to_numpy()
    # Where the first slice of each unit stands among all of them.
    _, first = np.unique(units.unit[by_file], return_index=True)
    order: NDArray[np.int64] = np.argsort(first)
    return order


def split_texts(
    choice: SplitChoice,
    table: LabelTable,
    units: Units,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> Texts | None:
    """Return (n,) the site, the date or the listed part of each unit; None where chance says it.

    table: the labels; slices: SLICE_SCHEMA, with the real paths. "" where nothing says it. Raises
    LabelError for a list that names another part than there are, and as `of_whole_units` does.
    """
    column = _split_column(choice, table)
    if column is None:
        return None
    texts = texts_of_slices(*column, units, slices, root, names)
    return of_whole_units(texts, units, choice.kind)


def _split_column(choice: SplitChoice, table: LabelTable) -> tuple[LabelTable, str] | None:
    """Return the table and column that say where units stand; None where chance says it.

    table: the labels. Raises LabelError for a list that names another part than there are.
    """
    if choice.column is not None:
        return table, choice.column
    if choice.file is None:
        return None
    listed = Labels(file=choice.file, key="key", by=table.settings.by)
    parts = read_labels(listed, [], ["part"])
    odd = set(parts.columns["part"]) - set(PARTS)
    if odd:
        raise LabelError(
            f"The part of a split list must be train, val or test. Got {len(odd)} other values "
            f"in {str(choice.file)!r}."
        )
    return parts, "part"


def slices_of(units: Units, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places in `units.rows` of the slices of some units."""
    return np.flatnonzero(np.isin(units.unit, numbers))
