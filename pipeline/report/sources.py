"""What a report is made from: stores, and the configs that bring their pictures and labels."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import segment
from pipeline.annotations.labels import LabelTable, label_units, read_labels, with_patients
from pipeline.annotations.levels import LEVELS
from pipeline.annotations.units import Units
from pipeline.config.heads import TUNED
from pipeline.config.loading import load_config
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tasks import Task
from pipeline.evaluate import fitting
from pipeline.evaluation.result_files import filed, filed_segmentations
from pipeline.extraction.same_store import check_store
from pipeline.extraction.selection import LEFT_OUT
from pipeline.recipe import Recipe, recipe_of
from pipeline.results import Result, Segmented
from pipeline.shared.pseudonyms import Names
from stores._disk import below
from stores.errors import ConfigError, LabelError
from stores.export import live_slices
from stores.features import FeatureStore

log = logging.getLogger(__name__)

A = TypeVar("A", Result, Segmented)
K = TypeVar("K")

EXAMPLES = 3


@dataclass(frozen=True)
class Source:
    """A store to report on, by the name it has on the page; with its config, if that was given."""

    name: str
    store: FeatureStore
    config: Config | None

    @property
    def title(self) -> str:
        """What the data are called: by the config, or as the store is."""
        return (self.config.title if self.config else "") or self.name

    @property
    def description(self) -> str:
        """What the config says of the data; "" for nothing."""
        return self.config.description if self.config else ""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the store's features were computed by."""
        return recipe_of(self.store)

    @property
    def network(self) -> str:
        """The network that the features are of, in words."""
        return self.recipe.network

    @cached_property
    def slices(self) -> pa.Table:
        """The slices that have features, by ascending row; their paths as the store has them."""
        return live_slices(self.store)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(n,) the rows of `slices`."""
        rows: NDArray[np.int64] = self.slices["row"].to_numpy()
        return rows

    @cached_property
    def results(self) -> dict[tuple[str, Method], Result]:
        """The answer to each task by each method: those that fit the config, or else the newest.

        Of the newest, those to one task are all of the same units, labels and split.
        """
        if self.config is None or not self.config.tasks:
            return _of_one_test(self._newest_results)
        return {(result.task, result.method): result for result in fitting(self.config)}

    @cached_property
    def segmented(self) -> dict[tuple[str, str], Segmented]:
        """The answer for each name of masks by each head: as `results` are chosen."""
        # Without the masks nothing can be held against them.
        if self.config is None or not self.config.masks or not self.config.data.root.is_dir():
            return _of_one_test(self._newest_segmented)
        heads = [*self.config.segment, *(m for m in self.config.methods if m in TUNED)]
        try:
            answers = segment.on_file(self.config, heads)
        except (LabelError, ConfigError) as error:  # the rest of the page stands
            log.warning("Whether answers are of these masks cannot be told: %s", error)
            return _of_one_test(self._newest_segmented)
        return {(answer.task, answer.head): answer for answer in answers}

    @cached_property
    def unfitting(self) -> list[Result | Segmented]:
        """The newest answers that are not shown: beside others they would say another thing."""
        others: list[Result | Segmented] = []
        others += [r for key, r in self._newest_results.items() if key not in self.results]
        others += [r for key, r in self._newest_segmented.items() if key not in self.segmented]
        return others

    @cached_property
    def _newest_results(self) -> dict[tuple[str, Method], Result]:
        newest: dict[tuple[str, Method], Result] = {}
        for _, result in filed(self.store.path):
            _put_last(newest, (result.task, result.method), result)
        return newest

    @cached_property
    def _newest_segmented(self) -> dict[tuple[str, str], Segmented]:
        newest: dict[tuple[str, str], Segmented] = {}
        for _, answer in filed_segmentations(self.store.path):
            _put_last(newest, (answer.task, answer.head), answer)
        return newest

    @property
    def answers(self) -> list[Result | Segmented]:
        """All answers, segmentations last."""
        return [*self.results.values(), *self.segmented.values()]

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the store's present state; an answer with another is of an earlier one."""
        return self.store.fingerprint()

    @cached_property
    def labelled(self) -> tuple[tuple[str, Task, Units, LabelTable], ...]:
        """Each task of the config with its units; those whose labels do not join are left out.

        And those of regions: a slice may hold several, and is none of them.
        """
        config = self.config
        if config is None or config.labels is None:
            return ()
        columns: list[str] = []
        for task in config.tasks.values():
            columns += [*task.subgroups, *task.shortcuts]
        table = read_labels(config.labels, config.tasks.values(), columns)
        # Labels name files as they are on disk, also where the store hides paths.
        slices = self.names.revealed(self.store.slices())
        status = self.store.status()
        joined = []
        whole = {name: task for name, task in config.tasks.items() if LEVELS[task.level].is_whole}
        for name, task in whole.items():
            # A task's policy goes before that of the whole table, as it does in `evaluate`.
            policy = {
                "uncertain": task.uncertain or config.labels.uncertain,
                "missing": task.missing or config.labels.missing,
            }
            query = task.model_copy(update=policy)
            try:
                units = label_units(table, query, slices, status, config.data.root, self.names)
            except LabelError as error:  # `evaluate` refuses; the rest of the page stands
                log.warning("%s is not on the map: %s", name, error)
            else:
                joined.append((name, task, units, table))
        return tuple(joined)

    @cached_property
    def patients(self) -> NDArray[np.object_]:
        """(n,) each slice's patient as splits have it, by labels or headers; "" for none."""
        slices = self.slices
        if self.config is not None and self.config.labels is not None:
            try:
                slices = with_patients(self.names.revealed(slices), self.config, self.names)
            except LabelError as error:  # `evaluate` refuses; the rest of the page stands
                log.warning("Patients are those of the headers: %s", error)
        return np.array([p or "" for p in slices["patient"].to_pylist()], dtype=object)

    @property
    def names(self) -> Names:
        """The names that the store has for patients and paths."""
        return Names(self.store.path, self.config.data.paths if self.config else "hide")


def _put_last(answers: dict[K, A], key: K, answer: A) -> None:
    """Have a later answer in the place of an earlier one, and behind all others."""
    answers.pop(key, None)
    answers[key] = answer


def _of_one_test(newest: dict[K, A]) -> dict[K, A]:
    """Return those answers that were tested as the newest to their task was, the newest last.

    Other labels, another split or an earlier state of the store are other test units, and a figure
    of both would compare what cannot be compared.
    """
    last = {answer.task: _test_of(answer) for answer in newest.values()}
    return {key: each for key, each in newest.items() if _test_of(each) == last[each.task]}


def _test_of(answer: Result | Segmented) -> tuple[str, str, str]:
    """Return what decides on which units, labelled how, an answer was tested."""
    origin = answer.provenance
    return origin.split, origin.labels, origin.store


def open_sources(paths: list[Path]) -> list[Source]:
    """Return the sources that paths name, each a store's folder or a config file of one.

    Equal folder names get the names of the folders above. Raises StoreNotFoundError, ConfigError.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("A report takes each store once. Name stores of different recipes.")
    configs = [load_config(path) if path.is_file() else None for path in paths]
    for config in configs:
        if config is not None:
            check_store(config)
    stores = [
        FeatureStore.open(config.store if config else path)
        for path, config in zip(paths, configs, strict=True)
    ]
    names = _short_names([store.path.resolve() for store in stores])
    return [
        Source(name, store, config)
        for name, store, config in zip(names, stores, configs, strict=True)
    ]


def _short_names(paths: list[Path]) -> list[str]:
    """Return the last folder names of each path, as many as make all of them differ."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("A report takes each store once. Two of the paths name the same store.")


@dataclass(frozen=True)
class Loss:
    """How many files or slices were lost for a reason, with the details of the first few."""

    what: str
    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """What is in a store, counted. modalities: name -> (slices, series, patients)."""

    modalities: dict[str, tuple[int, int, int]]
    patients: int
    waiting: int
    withdrawn: int
    flags: dict[str, int]
    losses: tuple[Loss, ...]
    bytes: int


def take_stock(source: Source) -> Inventory:
    """Count a store: slices by modality, what was lost and why. It has details, no path."""
    table = source.store.slices()
    status = source.store.status()
    withdrawn = table["withdrawn"].to_numpy(zero_copy_only=False)
    rows = table["row"].to_numpy()[~withdrawn]
    flags: Counter[str] = Counter()
    for of_slice in source.slices["flags"].to_pylist():
        flags.update(of_slice or ())
    return Inventory(
        modalities=_by_modality(source),
        patients=_distinct(source.patients),
        # A withdrawn slice waits for nothing: its status does not count.
        waiting=int((status[rows] == 0).sum()),
        withdrawn=int(withdrawn.sum()),
        flags=dict(flags.most_common()),
        losses=(*_files_lost(source.store), *_slices_lost(source.store, status)),
        bytes=sum(f.stat().st_size for f in below(source.store.path) if f.is_file()),
    )


def _by_modality(source: Source) -> dict[str, tuple[int, int, int]]:
    """Return (slices, series, patients) by modality, the commonest first."""
    live = source.slices
    modality = np.array(live["modality"].to_pylist(), dtype=object)
    series = np.array(live["series"].fill_null("").to_pylist(), dtype=object)
    counts = {}
    for name, number in Counter(modality.tolist()).most_common():
        on = modality == name
        counts[str(name)] = (number, _distinct(series[on]), _distinct(source.patients[on]))
    return counts


def _distinct(names: NDArray[np.object_]) -> int:
    """Return how many names there are, the empty one not counted."""
    return len({*names} - {""})


def _files_lost(store: FeatureStore) -> list[Loss]:
    lost = []
    for file in store.files(["reason", "detail"]).to_pylist():
        is_folder = (file["detail"] or "").startswith(LEFT_OUT)
        if file["reason"] and not is_folder:
            lost.append((file["reason"], file["detail"] or ""))
    return _by_reason("file", lost)


def _slices_lost(store: FeatureStore, status: NDArray[np.uint8]) -> list[Loss]:
    """Return the slices that could not be read, by the receipts of their parts."""
    failures = store.unreadable(status)
    return _by_reason("slice", [(f.reason, f"row {f.row}: {f.detail}") for f in failures])


def _by_reason(what: str, lost: list[tuple[str, str]]) -> list[Loss]:
    """Return a loss a reason, the commonest first. lost: a reason and a detail of each."""
    losses = []
    for reason, number in Counter(reason for reason, _ in lost).most_common():
        # Equal details once each, in the order they came in.
        details = dict.fromkeys(detail for r, detail in lost if r == reason)
        losses.append(Loss(what, reason, number, tuple(details)[:EXAMPLES]))
    return losses
