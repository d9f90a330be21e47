"""A task of two collections, A -> B: heads are fitted on train and val of A, tested on test of B.

Both stores are of one recipe, both tasks of one kind, level and classes, and nobody whom heads are
fitted on is among those they are tested on. A pair is asked as any task is: its units are those of
A, then those of B, its parts train and val of A and test of B. Where folds test in turn, the fold
of B is tested by what is fitted for the fold of A of the same number, from the first again where A
has fewer.

Dims: n units of both, d features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.base import HeadSettings
from pipeline.config.regions import RegionFeatures
from pipeline.config.tasks import FeatureSet, Kind, Level
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.fit_store import differences
from pipeline.evaluation.known import key_of, known_units, training_digests
from pipeline.evaluation.splits import Parts, Split
from pipeline.recipe import recipe_of
from pipeline.results import FittedOn
from pipeline.shared.arrays import Floats, Rows, allocate
from stores.errors import LabelError, RecipeMismatchError
from stores.features import FeatureStore

Texts = NDArray[np.str_]
# What stands in a recipe and changes no feature that heads read.
NOT_OF_FEATURES = ("outputs", "blocks", "patch")


def check_same_recipe(fitted: FeatureStore, tested: FeatureStore) -> None:
    """Raise RecipeMismatchError, with both values, where two stores' features are of two kinds."""
    names = differences(fitted, tested, but=NOT_OF_FEATURES)
    if not names:
        return
    lines = []
    for name in names:
        theirs = getattr(recipe_of(fitted), name)
        ours = getattr(recipe_of(tested), name)
        lines.append(f"  {name}: {theirs!r} there, {ours!r} here")
    raise RecipeMismatchError(
        f"Heads can be fitted on one collection and tested on another only where both are embedded "
        f"alike. Of {fitted.place}, and of {tested.place} here:\n" + "\n".join(lines)
    )


@dataclass
class PairedCases(Cases):
    """A task over a store, whose heads are fitted on the same task over another.

    fitted: there; tested: here. What a `Cases` has of one store is of the tested one.
    """

    fitted: Cases = field(kw_only=True)
    tested: Cases = field(kw_only=True)

    @classmethod
    def of(cls, fitted: Cases, tested: Cases) -> PairedCases:
        """Pair a task with the same of another collection. Its shortcuts are not asked."""
        return cls(
            config=tested.config,
            store=tested.store,
            table=tested.table,
            fingerprint=tested.fingerprint,
            # A name of its own: whatever shows answers shows it beside the task's.
            name=f"{tested.name} fitted on {names_apart(fitted.store.path, tested.store.path)[0]}",
            task=tested.task.model_copy(update={"shortcuts": ()}),
            fitted=fitted,
            tested=tested,
        )

    @property
    def names(self) -> tuple[str, str]:
        """What the collection is called that heads are fitted on, and that they are tested on."""
        return names_apart(self.fitted.store.path, self.store.path)

    @property
    def fitted_on(self) -> FittedOn:
        """The collection that heads are fitted on."""
        name, tested_on = self.names
        return FittedOn(
            name=name,
            tested_on=tested_on,
            task=self.tested.name,
            store=self.fitted.fingerprint,
            labels=self.fitted.labels_digest,
            split=self.fitted.split.digest,
        )

    # --- units ---------------------------------------------------------------------------

    @cached_property
    def units(self) -> Units:
        """Those of A, then those of B. Raises LabelError where they are asked other questions."""
        there = self.fitted.units
        here = self.tested.units
        self._refuse_other_question()
        notes = [*here.notes, *(f"{self.names[0]}: {note}" for note in there.notes)]
        return replace(
            here,
            y=np.concatenate([there.y, here.y]),
            groups=np.concatenate([there.groups, here.groups]),
            ids=np.concatenate([there.ids, here.ids]),
            rows=np.concatenate([there.rows, here.rows]),
            unit=np.concatenate([there.unit, here.unit + len(there.ids)]),
            notes=tuple(notes),
            along=np.concatenate([there.z, here.z]),
            seen=None,  # each store's are read by itself
        )

    def _refuse_other_question(self) -> None:
        there = self.fitted.units
        here = self.tested.units
        name = self.names[0]
        different = differing_questions(
            Question(here.kind, here.classes, self.task.level),
            Question(there.kind, there.classes, self.fitted.task.level),
            name,
        )
        # Of a model the record says it; here two configs may.
        for key in ("pool", "columns"):
            ours, theirs = getattr(self.task, key), getattr(self.fitted.task, key)
            if ours != theirs:
                different.append(f"{key}: {ours} here, {theirs} in {name}")
        if different:
            raise LabelError(
                f"{self.tested.name} is another question than in {name}: {'; '.join(different)}. "
                "Both must be the same."
            )

    def column(self, name: str) -> Texts:
        """Return (n,) what a label column of B says of each unit; "" of those of A."""
        of_fitted = np.full(len(self.fitted.units.ids), "")
        return np.concatenate([of_fitted, self.tested.column(name)])

    @cached_property
    def covariate_texts(self) -> dict[str, Texts]:
        """(n,) what each of the task's columns says of the units, first those of A."""
        there = self.fitted.covariate_texts
        here = self.tested.covariate_texts
        return {name: np.concatenate([there[name], here[name]]) for name in self.task.columns}

    @property
    def depends_on(self) -> dict[str, str]:
        """What else an answer depends on: of B; of A it stands beside it."""
        return self.tested.depends_on

    def features_of(self, head: HeadSettings) -> FeatureSet | RegionFeatures:
        """Return which features a head sees of the units."""
        return self.tested.features_of(head)

    # --- the splits ----------------------------------------------------------------------

    @property
    def is_split(self) -> bool:
        """Whether both splits are on file."""
        return self.fitted.is_split and self.tested.is_split

    @cached_property
    def split(self) -> Split:
        """The split of B on file."""
        return self.tested.split

    @cached_property
    def folds(self) -> list[Parts]:
        """Unit numbers of train and val, which are of A, and of test, which are of B."""
        there = self.fitted.folds
        n = len(self.fitted.units.ids)
        folds: list[Parts] = []
        for i, here in enumerate(self.tested.folds):
            of_fitted = there[i % len(there)]
            folds.append(
                {"train": of_fitted["train"], "val": of_fitted["val"], "test": here["test"] + n}
            )
        return folds

    def ensure_split(self) -> None:
        """File both splits, or bring them up to date, once.

        Raises LabelError as `Cases.ensure_split` does, and where patients or pixels that heads are
        fitted on are among those they are tested on.
        """
        self.fitted.ensure_split()
        self.tested.ensure_split()
        self.split = self.tested.split
        if self._split_ensured:
            return
        self._refuse_known()
        name = self.names[0]
        self.notes += self.tested.notes
        self.notes += [f"{name}: {note}" for note in self.fitted.notes]
        if key_of(self.fitted.store) != key_of(self.store):
            self.notes.append(
                f"the store has another key than {name}: patients that both have are known by "
                "their pixels alone"
            )
        self._split_ensured = True

    def _refuse_known(self) -> None:
        there = self.fitted
        learnt_from = np.unique(np.concatenate([_train_and_val(parts) for parts in there.folds]))
        training = training_digests(there.store, there.units, learnt_from)
        units = self.tested.units
        is_known = known_units(self.store, units, training)
        is_tested = np.zeros(len(units.ids), bool)
        for parts in self.tested.folds:
            is_tested[parts["test"]] = True
        known = is_known & is_tested
        if known.any():
            patients = len(np.unique(units.groups[known]))
            raise LabelError(
                f"{self.tested.name}: {int(known.sum())} of the {int(is_tested.sum())} test units, "
                f"of {patients} patients, are of patients whom heads are fitted on in "
                f"{self.names[0]}, by their patients or pixels: scores would be leaked. Leave them "
                "out of the labels of one of both."
            )

    # --- features ------------------------------------------------------------------------

    def tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) the features of the units of both stores, before they are scaled."""
        there = self.fitted.tokens(head, parts)
        here = self.tested.tokens(head, parts)
        return self._joined(there, here)

    def slice_tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return the features of every slice of both stores, before they are scaled."""
        there = self.fitted.slice_tokens(head, parts)
        here = self.tested.slice_tokens(head, parts)
        return self._joined(there, here)

    def _joined(self, there: Floats, here: Floats) -> Floats:
        joined = allocate(len(there) + len(here), there.shape[1], self.store.path)
        joined[: len(there)] = there
        joined[len(there) :] = here
        return joined


def names_apart(one: Path, other: Path) -> tuple[str, str]:
    """Return the last part of each of two paths in which they differ: a and b of a/store, b/store.

    A part of a path, since a "/" in the name of a task is of a shortcut.
    """
    for parts in zip(reversed(one.parts), reversed(other.parts), strict=False):
        if parts[0] != parts[1]:
            return parts
    return one.name, other.name


def _train_and_val(parts: Parts) -> Rows:
    return np.concatenate([parts["train"], parts["val"]])


@dataclass(frozen=True)
class Question:
    """What a head answers: two that differ in any of it cannot share one."""

    kind: Kind
    classes: tuple[str, ...]
    level: Level


def differing_questions(here: Question, there: Question, place: str) -> list[str]:
    """Return in what two questions differ, with both values; place: what `there` is called.

    The classes of a number are the name of its column, which may be another.
    """
    differences = []
    if here.kind != there.kind:
        differences.append(f"kind: {here.kind} here, {there.kind} in {place}")
    is_number = here.kind == there.kind == "regression"
    if here.classes != there.classes and not is_number:
        differences.append(f"classes: {list(here.classes)} here, {list(there.classes)} in {place}")
    if here.level != there.level:
        differences.append(f"level: {here.level} here, {there.level} in {place}")
    return differences
