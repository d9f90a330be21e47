"""A task over a store: its units, who stands where, and their features.

What costs time to know is made once, when it is first asked for, so that an answer that is on file
opens no array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.labels import LabelTable, label_units, read_labels, texts_of
from pipeline.annotations.units import Units
from pipeline.config.data import Labels
from pipeline.config.heads import Head
from pipeline.config.root import Config
from pipeline.config.tasks import FeatureSet, Part, Pool, Task
from pipeline.evaluation.leakage import Fitted, near_copies, refuse_duplicates, refuse_near, said_of
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.pooling import looks, pooled_features, read_features, scaled
from pipeline.evaluation.splits import (
    PARTS,
    Split,
    deal,
    extended_text,
    joined,
    load_split,
    split_path,
    split_text,
    with_new,
)
from pipeline.recipe import recipe_of
from pipeline.results import Provenance
from pipeline.shared.pseudonyms import Names
from stores._disk import write_checked
from stores.errors import ConfigError, LabelError
from stores.features import FeatureStore

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Parts = dict[Part, Rows]
# Test units whose features are held against those of the store that heads are fitted on.
MOST_AGREED = 1000


@dataclass
class Cases:
    """A task over a store."""

    config: Config
    store: FeatureStore
    table: LabelTable
    fingerprint: str
    name: str
    task: Task
    # The task that this one is asked beside, on the same split.
    beside: Cases | None = None
    # Where heads are fitted on the features of another store.
    fitted: Fitted | None = None
    notes: list[str] = field(default_factory=list, init=False)  # copies that are allowed
    # How far the test units' features agree with those in the store that heads are fitted on.
    agreement: float | None = field(default=None, init=False)
    _seen: tuple[FeatureSet, Floats] | None = field(default=None, init=False)

    @cached_property
    def units(self) -> Units:
        """The labels of the task, joined to the store's slices."""
        return label_units(self.table, self.task, self._slices, self.store.status(), *self._joining)

    @cached_property
    def _slices(self) -> pa.Table:
        return self._joining[1].revealed(self.store.slices())

    @cached_property
    def _joining(self) -> tuple[Path, Names]:
        data = self.config.data
        return data.root, Names(self.store.path, data.paths)

    def column(self, name: str) -> NDArray[np.str_]:
        """Return (n,) what a label column says of each unit; "" where nothing, or several."""
        return texts_of(self.table, name, self.units, self._slices, *self._joining)

    @property
    def is_split(self) -> bool:
        """Whether the split is on file."""
        if self.beside is not None:
            return self.beside.is_split
        return split_path(self.store.path, self.name, self.task, self.config.split).is_file()

    @cached_property
    def split(self) -> Split:
        """The split on file, or one made now and filed."""
        if self.beside is not None:
            return self.beside.split
        choice = self.config.split
        path = split_path(self.store.path, self.name, self.task, choice)
        try:
            return load_split(path)
        except FileNotFoundError:
            split = deal(self.units, choice, self._split_column())
            path.parent.mkdir(exist_ok=True)
            write_checked(path, split_text(split, self.name, choice).encode())
            return split

    def _split_column(self) -> NDArray[np.str_] | None:
        """Return what the units are split by beside their labels: site, date or listed part."""
        choice = self.config.split
        if choice.column is not None:
            return self.column(choice.column)
        if choice.file is None:
            return None
        listed = Labels(file=choice.file, key="key", by=self.table.settings.by)
        parts = read_labels(listed, [], ["part"])
        odd = set(parts.columns["part"]) - {*PARTS}
        if odd:
            raise LabelError(
                f"The part of a split list must be train, val or test. Got {sorted(odd)[:3]} "
                f"in {str(choice.file)!r} instead."
            )
        return texts_of(parts, "part", self.units, self._slices, *self._joining)

    @cached_property
    def turns(self) -> list[Parts]:
        """Unit numbers of train, val and test: once, or for each fold that tests in turn.

        Raises LabelError where a copy of an image stands on two sides, or what is all but one.
        """
        choice = self.config.split
        addition = None
        if self.beside is None:
            addition = with_new(self.split, self.units, choice)
        if addition is not None:
            path = split_path(self.store.path, self.name, self.task, choice)
            write_checked(path, extended_text(path.read_text("utf-8"), addition).encode())
            self.split = joined(self.split, addition)
        self._check_copies()
        return self.split.parts_of(self.units.groups)

    def _check_copies(self) -> None:
        """Refuse copies on two sides, or note those that are allowed."""
        units, allow = self.units, self.config.split.allow
        digests, side = (
            self.store.read("pixel_digest", units.rows),
            self.split.sides_of(units.groups),
        )
        if "duplicates" not in allow:
            refuse_duplicates(digests, units, side)
        near = near_copies(looks(self.store, units, self.task.pool), digests, units, side)
        if "near-duplicates" not in allow:
            refuse_near(near, units)
        elif near:
            self.notes.append(said_of(near, units))

    @cached_property
    def labels_digest(self) -> str:
        """The sha256 of the label columns that the task reads."""
        return self.table.digest(self.task)

    def provenance(
        self, key: str, contract: int, labels: str, libraries: Sequence[str]
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
            versions={name: version(name) for name in libraries},
        )

    def features(self, head: Head, parts: Parts) -> Floats:
        """Return (n, d) the units' features as a head sees them.

        The last ones read are kept, and no others, nor those of the task this is asked beside.
        """
        if self.beside is not None:
            self.beside._seen = None
        if self.fitted is not None:
            x = read_features(self.store, self.units, head.features, self.task.pool)
            self._refit(self.fitted, x, self.units, parts["test"], head.features, self.task.pool)
            return scaled(x, parts["train"], head.scaling, head.components)
        if self._seen is None or self._seen[0] != head.features:
            self._seen = None
            x = read_features(self.store, self.units, head.features, self.task.pool)
            self._seen = head.features, x
        return scaled(self._seen[1], parts["train"], head.scaling, head.components)

    def slices(self, head: Head, parts: Parts) -> Floats:
        """Return (m, d) the features of every slice of the units, as a head sees them."""
        self._seen, m = None, len(self.units.rows)
        alone = replace(self.units, unit=np.arange(m), ids=self.units.rows.astype(np.str_))
        fit = np.flatnonzero(np.isin(self.units.unit, parts["train"]))
        x = read_features(self.store, alone, head.features)
        if self.fitted is not None:
            tested = np.flatnonzero(np.isin(self.units.unit, parts["test"]))
            self._refit(self.fitted, x, alone, tested, head.features, "mean")
        return scaled(x, fit, head.scaling, head.components)

    def _refit(
        self,
        fitted: Fitted,
        x: Floats,
        units: Units,
        tested: Rows,
        which: FeatureSet,
        pool: Pool,
    ) -> None:
        """Put features of the other store in the place of x (n, d), but for the units tested.

        Of those, it is told how far they agree with the other store's: the median over the numbers
        of a feature of ICC(A,1), on MOST_AGREED units at most.
        """
        kept: NDArray[np.bool_] = np.zeros(len(x), np.bool_)
        kept[tested] = True
        chosen = tested[np.linspace(0, len(tested) - 1, min(len(tested), MOST_AGREED)).astype(int)]
        other, first = np.empty((len(chosen), x.shape[1]), np.float32), 0
        there = replace(units, rows=fitted.rows_of(units.rows))
        for found in pooled_features(fitted.store, there, which, pool):
            now = slice(first, first + len(found))
            own = (chosen >= now.start) & (chosen < now.stop)
            other[own] = found[chosen[own] - first]
            x[now][~kept[now]] = found[~kept[now]]
            first = now.stop
        if len(chosen) > 1:
            self.agreement = float(np.nanmedian(icc(np.stack([x[chosen], other], axis=1))))


def cases_of(config: Config) -> Iterator[Cases]:
    """Yield each task of the config over its store; one at a time, since they hold their features.

    Raises ConfigError where there is nothing to ask, StoreNotFoundError, or LabelError.
    """
    if config.labels is None or not config.tasks:
        raise ConfigError(
            "There is nothing to evaluate: the config must have `labels` (a file) and `tasks` (a "
            "name with its label columns)."
        )
    store = FeatureStore.open(config.store)
    tasks = _settled(config)
    extra = [name for task in tasks.values() for name in task.shortcuts]
    extra += [config.split.column] if config.split.column else []
    table = read_labels(config.labels, tasks.values(), extra)
    fingerprint = store.fingerprint()
    fitted = None if config.fit_on is None else Fitted.of(config.fit_on, store)
    for name, task in tasks.items():
        yield Cases(config, store, table, fingerprint, name, task, fitted=fitted)


def _settled(config: Config) -> dict[str, Task]:
    """Return the tasks with the labels' policies where they state none themselves."""
    assert config.labels is not None
    policies = {name: getattr(config.labels, name) for name in ("uncertain", "missing")}
    return {
        name: task.model_copy(
            update={key: getattr(task, key) or value for key, value in policies.items()}
        )
        for name, task in config.tasks.items()
    }
