"""What a config asks: each of its tasks over its store, alone or with heads fitted elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.annotations.labels import LabelTable, read_labels
from pipeline.config.data import Labels
from pipeline.config.heads import HEADS, declared
from pipeline.config.root import Config
from pipeline.config.tasks import COLUMNS, Level, Task
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.failures import Failures
from pipeline.evaluation.fit_store import FitStore
from pipeline.evaluation.pairs import PairedCases, check_same_recipe
from pipeline.evaluation.region_cases import RegionCases
from pipeline.recipe import recipe_of
from stores.errors import ConfigError, LabelError
from stores.features import FeatureStore

# The cases of a level that slices alone do not make up.
CASES: dict[Level, type[Cases]] = {"region": RegionCases}


def cases_of(config: Config, failures: Failures | None = None) -> Iterator[Cases]:
    """Yield each task of the config over its store; one at a time, since they hold their features.

    Where `fit_on` is a config, each is paired with that one's task of the same name. failures: what
    notes the tasks whose columns are not there; without it, they are raised. Raises ConfigError
    where there is nothing to ask, StoreNotFoundError, or LabelError, and RecipeMismatchError where
    both stores of a pair, or of `fit_on`, are of different features.
    """
    if isinstance(config.fit_on, Config):
        yield from _pairs_of(config, config.fit_on, failures)
    else:
        yield from _alone(config, failures)


def _pairs_of(config: Config, fit_on: Config, failures: Failures | None) -> Iterator[Cases]:
    """Yield each task of a config, to be tested by heads that are fitted on another's."""
    lacking = [name for name in config.tasks if name not in fit_on.tasks]
    if lacking:
        raise ConfigError(
            f"Heads are fitted on the task of the same name. The config of `fit_on` lacks "
            f"{', '.join(lacking)}; it has {', '.join(fit_on.tasks) or 'none'}."
        )
    there = fit_on.model_copy(update={"tasks": {name: fit_on.tasks[name] for name in config.tasks}})
    fitted = {cases.name: cases for cases in _alone(there, failures)}
    for tested in _alone(config, failures):
        # Taken out: once it was asked, it holds features.
        there_too = fitted.pop(tested.name, None)
        if there_too is not None:
            check_same_recipe(there_too.store, tested.store)
            yield PairedCases.of(there_too, tested)


def _alone(config: Config, failures: Failures | None) -> Iterator[Cases]:
    """Yield each task of a config over its store."""
    if config.labels is None or not config.tasks:
        raise ConfigError(
            "There is nothing to evaluate: the config must have `labels` (a file) and `tasks` (a "
            "name with its label columns)."
        )
    store = FeatureStore.open(config.store)
    labels = config.labels
    if recipe_of(store).level == "volume":
        config = _of_volumes(config)
    tasks = {name: with_policies(task, labels) for name, task in config.tasks.items()}
    tables = tables_of(config, labels, tasks, failures)
    # Once: it reads every receipt.
    fingerprint = store.fingerprint()
    fit_store = None
    if isinstance(config.fit_on, Path):
        fit_store = FitStore.of(config.fit_on, store)
    for name, table in tables.items():
        yield CASES.get(tasks[name].level, Cases)(
            config=config,
            store=store,
            table=table,
            fingerprint=fingerprint,
            name=name,
            task=tasks[name],
            fit_store=fit_store,
        )


def _of_volumes(config: Config) -> Config:
    """Return a config whose heads see the vectors of volumes: all that such a store has."""
    heads = {}
    for name in HEADS:
        settings = config.settings_of(declared(name))
        columns = f"+{COLUMNS}" if settings.features.endswith(f"+{COLUMNS}") else ""
        if settings.features != COLUMNS:
            heads[name] = settings.model_copy(update={"features": f"volume{columns}"})
    return config.model_copy(update=heads)


def tables_of(
    config: Config,
    labels: Labels,
    tasks: dict[str, Task],
    failures: Failures | None,
) -> dict[str, LabelTable]:
    """Return the label table of each task, one for all: the file is read once.

    Where that cannot be read, each task is read alone, so that one that names no column of the
    file leaves the others answered.
    """
    try:
        return dict.fromkeys(
            tasks, read_labels(labels, tasks.values(), _other_columns(config, tasks.values()))
        )
    except LabelError:
        if failures is None:
            raise
    tables = {}
    for name, task in tasks.items():
        with failures.of(name):
            tables[name] = read_labels(labels, [task], _other_columns(config, [task]))
    return tables


def _other_columns(config: Config, tasks: Iterable[Task]) -> list[str]:
    """Return the label columns that are read for shortcuts and for the split."""
    columns: list[str] = []
    for task in tasks:
        columns += task.shortcuts
    if config.split.column:
        columns.append(config.split.column)
    return columns


def with_policies(task: Task, labels: Labels) -> Task:
    """Return a task with the labels' policies where it states none itself."""
    return task.model_copy(
        update={
            "uncertain": task.uncertain or labels.uncertain,
            "missing": task.missing or labels.missing,
        }
    )
