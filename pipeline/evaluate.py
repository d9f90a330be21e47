"""FLOW 2: labels + split + cached features -> head -> scores. Opens no image, runs no backbone.

A result is a file named by all it depends on: the method and its settings, the task and the labels
it reads, the split, the store's fingerprint, and the version of what the code means by it. So an
answer is either found, without opening an array or importing a head, or it is computed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline._pooling import read_features
from pipeline._tables import read_predictions, write_predictions
from pipeline._tables import tidy as tidy
from pipeline.config import Config
from pipeline.labels import LabelTable, Pseudonymise, label_units, read_labels
from pipeline.splits import PARTS, Split, deal, load_split, split_path, split_text
from pipeline.types import (
    Difference,
    FeatureSet,
    Method,
    Part,
    PartCount,
    Prediction,
    Provenance,
    Recipe,
    Result,
    Score,
    Task,
    Units,
)
from stores._disk import write_atomic
from stores.errors import ConfigError, LabelError
from stores.features import FeatureStore

log = logging.getLogger(__name__)

METHODS: tuple[Method, ...] = get_args(Method)
# Raised whenever a method answers the same question otherwise: older results are then not found.
CONTRACT: dict[Method, int] = {"knn": 1, "probe": 1, "fewshot": 1}
LIBRARIES = ("radprobe", "numpy", "scikit-learn", "faiss-cpu")

Floats = NDArray[np.float32]
# what is being answered, how many answers are done, of how many
Progress = Callable[[str, int, int], None]


def evaluate(
    config: Config, methods: Sequence[Method] = METHODS, *, progress: Progress | None = None
) -> list[Result]:
    """Answer every task of the config by every method, from `results/` where nothing changed.

    Raises ConfigError where there is nothing to ask, StoreNotFoundError, or LabelError.
    """
    if config.labels is None or not config.tasks:
        raise ConfigError(
            "There is nothing to evaluate: the config must have `labels` (a file) and `tasks` (a "
            "name with its label columns)."
        )
    store = FeatureStore.open(config.store)
    table = read_labels(config.labels, config.tasks.values())
    fingerprint = store.fingerprint()
    total = len(config.tasks) * len(methods)
    results: list[Result] = []
    for name, task in config.tasks.items():
        question = _Question(config, store, table, fingerprint, name, task)
        for method in methods:
            if progress:
                progress(f"{name}: {method}", len(results), total)
            results.append(_answer(question, method))
    return results


@dataclass
class _Question:
    """A task over a store. What costs time to know is made once, when it is first asked for."""

    config: Config
    store: FeatureStore
    table: LabelTable
    fingerprint: str
    name: str
    task: Task
    _features: dict[FeatureSet, Floats] = field(default_factory=dict)

    @cached_property
    def units(self) -> Units:
        slices, status = self.store.slices(), self.store.status()
        root = self.config.data.root
        return label_units(
            self.table, self.task, slices, status, root, _pseudonymiser(self.store.path)
        )

    @cached_property
    def split(self) -> Split:
        """The split of the file, or one dealt now and filed."""
        path = split_path(self.store.path, self.name, self.task, self.config.split)
        try:
            return load_split(path)
        except FileNotFoundError:
            split = deal(self.units, self.config.split)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, split_text(split, self.name, self.config.split).encode())
            return split

    @cached_property
    def parts(self) -> dict[Part, NDArray[np.int64]]:
        return self.split.parts_of(self.units.groups)

    @cached_property
    def labels_digest(self) -> str:
        return self.table.digest(self.task)

    def features(self, which: FeatureSet) -> Floats:
        if which not in self._features:
            self._features[which] = read_features(self.store, self.units, which, self.task.pool)
        return self._features[which]


def _pseudonymiser(store: Path) -> Pseudonymise:
    """Return the store's pseudonyms; the key is read, and its module imported, at first use."""

    def pseudonymise(kind: Any, raw: str) -> str:
        from pipeline.discover import load_key, pseudonym

        return pseudonym(load_key(store), kind, raw)

    return pseudonymise


def _answer(question: _Question, method: Method) -> Result:
    """Return the result that is on file, or compute it and file it."""
    key = _key(question, method)
    path = question.store.path / "results" / f"{method}-{key[:16]}.json"
    try:
        found = Result.model_validate_json(path.read_bytes())
        return found.model_copy(update={"cached": True})
    except FileNotFoundError:
        pass
    except ValidationError as error:
        log.warning("%s is not a result and is computed anew: %s", path, error)
    started = time.perf_counter()
    scores, notes, predictions = _compute(question, method)
    result = _result(question, method, key, scores, notes, time.perf_counter() - started)
    path.parent.mkdir(exist_ok=True)
    if predictions:
        write_predictions(path.with_suffix(".parquet"), question.units, question.parts, predictions)
    write_atomic(path, result.model_dump_json(indent=1).encode())
    return result


def _key(question: _Question, method: Method) -> str:
    """Return the sha256 of all that the answer depends on."""
    asked = {
        "method": method,
        "contract": CONTRACT[method],
        "settings": getattr(question.config, method).model_dump(mode="json"),
        "name": question.name,
        "task": question.task.model_dump(mode="json"),
        "join": question.table.settings.model_dump(mode="json", exclude={"file"}),
        "labels": question.labels_digest,
        "split": question.split.digest,
        "store": question.fingerprint,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _compute(
    question: _Question, method: Method
) -> tuple[list[Score], list[str], list[Prediction]]:
    """Run one head, whose module is imported here and not before."""
    units, parts = question.units, question.parts
    settings = getattr(question.config, method)
    x = question.features(settings.features)
    head = importlib.import_module(f"pipeline.{method}")
    if method == "fewshot":
        return *head.score(x, units, parts, settings), []
    from pipeline import metrics

    predictions, notes = head.predict(x, units, parts, settings)
    test = parts["test"]
    indicator, groups = units.indicator[test], units.groups[test]
    notes += [
        f"{name!r} has no AUROC: all or none of the test units carry it"
        for name in metrics.one_sided(indicator, units.classes)
    ]
    scores = []
    for each in predictions:
        joint, labels = metrics.score(indicator, each.proba, groups, units.classes, units.kind)
        scores.append(Score(setting=each.setting, metrics=joint, labels=labels))
    return scores, notes, predictions


def compare(
    first: tuple[Path, Result], second: tuple[Path, Result], *, setting: int = -1
) -> list[Difference]:
    """Return what the second (store, result) scores above the first on the same test units.

    For two backbones, heads or settings; `setting` picks one of each result's scores. Raises
    LabelError unless both scored the same units with the same labels, in the same order.
    """
    from pipeline import metrics

    (truth, one, groups), (other_truth, two, other_groups) = (
        read_predictions(store, result, setting) for store, result in (first, second)
    )
    if not np.array_equal(truth, other_truth) or not _same_grouping(groups, other_groups):
        raise LabelError(
            f"Results of {first[1].task!r} and {second[1].task!r} can be compared only on the same "
            f"test units with the same labels. Got {len(truth)} and {len(other_truth)} units, "
            "other labels or other patients; use one collection, task and split seed."
        )
    return metrics.compare(truth, one, two, groups, first[1].classes, first[1].kind)


def _same_grouping(first: NDArray[np.str_], second: NDArray[np.str_]) -> bool:
    """Return whether two namings, by other keys, tell the same patients apart."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def _result(
    question: _Question,
    method: Method,
    key: str,
    scores: list[Score],
    notes: list[str],
    seconds: float,
) -> Result:
    units, settings = question.units, getattr(question.config, method)
    recipe = Recipe.model_validate_json(question.store.recipe_text)
    return Result(
        task=question.name,
        method=method,
        features=settings.features,
        kind=units.kind,
        classes=units.classes,
        level=question.task.level,
        settings=settings.model_dump(mode="json"),
        counts={part: _count(units, question.parts[part]) for part in PARTS},
        tally=units.tally,
        scores=tuple(scores),
        notes=tuple(notes),
        provenance=Provenance(
            key=key,
            contract=CONTRACT[method],
            recipe=recipe.digest,
            weights=recipe.weights,
            random=recipe.random,
            store=question.fingerprint,
            labels=question.labels_digest,
            split=question.split.digest,
            versions={name: version(name) for name in LIBRARIES},
        ),
        seconds=seconds,
    )


def _count(units: Units, rows: NDArray[np.int64]) -> PartCount:
    positives = units.indicator[rows].sum(axis=0).tolist()
    return PartCount(
        units=len(rows),
        patients=len(np.unique(units.groups[rows])),
        positives=dict(zip(units.classes, positives, strict=True)),
    )
