"""The names that a notebook needs: embed a folder, open its features, ask them.

    import radprobe

    config = radprobe.load_config("configs/demo.yaml")
    radprobe.extract(config)
    x, slices = radprobe.features(config.store)
    X, y, groups, part = radprobe.data(config, "mass")
    model = radprobe.load_model("mass-model")
    model.predict_proba("new_studies")

A config is a YAML file, by its path, or a `Config` made of the same keys. xarray opens a store's
`features.zarr` as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import evaluate as _evaluate
from pipeline import extract as _extract
from pipeline.config import loading as _loading
from pipeline.config.heads import DEFAULT_HEADS, method_names
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tasks import COLUMNS, FeatureSet, SliceFeatures
from pipeline.extraction.embed import Speed
from pipeline.extraction.same_store import check_store
from pipeline.results import Result
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import ConfigError, PartsFailedError
from stores.export import Selection, live_slices

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from pipeline.extract import Summary
    from pipeline.fitted.estimator import Estimator, Segmenter

__all__ = [
    "Config",
    "FeatureStore",
    "Features",
    "Speed",
    "TaskData",
    "data",
    "discover",
    "evaluate",
    "extract",
    "features",
    "fit",
    "load_config",
    "load_model",
]

AnyPath = str | PathLike[str]
# A config, or the YAML file that it is read from.
AnyConfig = Config | AnyPath


def load_config(path: AnyPath) -> Config:
    """Read a config file. Raises ConfigError with one line a fault."""
    return _loading.load_config(Path(path))


def _config(config: AnyConfig) -> Config:
    """Return a config, read where it is a path. Raises ConfigError; TypeError for neither."""
    if isinstance(config, Config):
        return config
    if isinstance(config, str | PathLike):
        return load_config(config)
    raise TypeError(
        "A config must be a path, or what load_config returns. Got "
        f"{type(config).__name__} instead."
    )


def _check_one_of(what: str, given: str, known: Sequence[str]) -> None:
    """Raise ConfigError for a word that is none of those known."""
    if given in known:
        return
    near = get_close_matches(given, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    choices = ", ".join(known) or "none, since it has none"
    raise ConfigError(f"{what} must be one of: {choices}. Got {given!r} instead.{hint}")


def _store(store: AnyConfig) -> str:
    """Return where a store is: it itself, or that of a config or of its file."""
    if isinstance(store, Config):
        return fspath(store.store)
    return fspath(load_config(store).store if Path(store).is_file() else store)


def discover(root: AnyPath, **data: Any) -> tuple[pa.Table, pa.Table]:
    """Return what a folder holds: a table of its slices and one of its files, with real paths.

    data: as the block `data` of a config has it. Pseudonyms are by a key that is thrown away.
    Raises ConfigError where there is no such folder.
    """
    import secrets

    from pipeline.config.data import Data
    from pipeline.extraction.discover import discover

    collection = discover(Data(root=Path(root), **data), secrets.token_bytes(32))
    return collection.slices, collection.files


def extract(config: AnyConfig, speed: Speed = Speed()) -> Summary:  # noqa: B008 (frozen)
    """Embed what is not in the config's store yet, as `radprobe extract` does.

    Raises PartsFailedError where parts failed; those that did not are committed.
    """
    summary = _extract.extract(_config(config), speed)
    if summary.parts_failed:
        raise PartsFailedError(
            f"{len(summary.parts_failed)} parts of {summary.store} failed, first "
            f"{summary.parts_failed[0]}. The others are committed; mend what it says and extract "
            "again.",
            summary,
        )
    return summary


def evaluate(config: AnyConfig, methods: Sequence[Method] = DEFAULT_HEADS) -> list[Result]:
    """Answer the config's tasks from its store, as `radprobe evaluate` does.

    Raises UnansweredError, which has the other answers, where some tasks cannot be answered, and
    ConfigError for a method that there is not.
    """
    from pipeline.segmentation.regions import update_regions

    read = _config(config)
    for name in methods:
        _check_one_of("A method", name, method_names())
    check_store(read)
    update_regions(read)
    return list(_evaluate.evaluate(read, methods))


class TaskData(NamedTuple):
    """The units of a task, as arrays for scikit-learn.

    X (n, d) float32: features, not scaled. y (n,): of two classes 1 for the positive one and 0; of
    more their names; or numbers; of several labels (n, c) int8: 1, 0, or -1 where not known. groups
    (n,): patients, as pseudonyms. part (n,): train, val or test, or the number of the fold; "" for
    patients whom the split leaves out.
    """

    X: NDArray[np.float32]
    y: NDArray[Any]
    groups: NDArray[np.str_]
    part: NDArray[np.str_]

    def loader(self, *parts: str, batch_size: int = 64, shuffle: bool = False) -> DataLoader[Any]:
        """Return torch's loader of (X, y) of the units of some parts, such as "train".

        Of more than two classes y is the number of the name, by alphabet. Raises ConfigError for a
        part that has no units.
        """
        from pipeline.evaluation.batches import batches_of

        absent = sorted({*parts} - {*self.part.tolist()})
        if absent or not parts:
            known = ", ".join(sorted({*self.part.tolist()} - {""}))
            raise ConfigError(f"A loader is of parts that have units: {known}. Got {absent}.")
        chosen = np.isin(self.part, parts)
        return batches_of(self.X, self.y, chosen, size=batch_size, shuffle=shuffle)


def data(config: AnyConfig, task: str, features: FeatureSet = "cls+mean") -> TaskData:
    """Return what a task of a config is asked of: features, labels, patients, sides of the split.

    In the order of rows, as models answer.

    features: cls, cls+mean, cls4, cls4+mean or volume; of regions, what their task pools. The
    split is the one on file, or it is dealt and filed. Raises ConfigError where there is no such
    task, and for other features, RecipeMismatchError where another recipe made the store,
    StoreNotFoundError, LabelError.
    """
    from pipeline.evaluation.pooling import read_features
    from pipeline.evaluation.questions import cases_of
    from pipeline.segmentation.regions import update_regions

    read = _config(config)
    _check_one_of("A task of this config", task, tuple(read.tasks))
    if COLUMNS in features:
        raise ConfigError(
            f"Columns become numbers by what train says of them, and stand in no array. Got "
            f"features {features!r}; ask for those without columns."
        )
    _check_one_of("Features", features, (*get_args(SliceFeatures), "volume"))
    check_store(read)
    # What heads are fitted on elsewhere is not of this store.
    one = read.model_copy(update={"tasks": {task: read.tasks[task]}, "fit_on": None})
    update_regions(one)
    (cases,) = cases_of(one)
    cases.ensure_split()
    _, first = np.unique(cases.units.unit, return_index=True)
    units = cases.units.in_order(np.argsort(first))
    y = units.y
    if units.kind == "multiclass":
        y = np.array(units.classes)[y]
    side = cases.split.sides_of(units.groups)
    # One more for those of no side, whose number is -1.
    names = np.array([*cases.split.patients, ""])
    x = read_features(cases.store, units, features, cases.task.pool)
    return TaskData(x, y, units.groups, names[side])


def fit(
    config: AnyConfig,
    out: AnyPath,
    *,
    task: str | None = None,
    method: Method | None = None,
    device: str | None = None,
) -> Estimator | Segmenter:
    """Make a model of an answer, as `radprobe fit` does, and return it.

    out: a new folder; task: a task or masks by their name, where the config has several; method:
    unset, the probe, or the config's only segmentation head; device: of torch's, such as "cuda";
    unset, the CPU, or for masks a GPU where there is one. Raises ConfigError for a task or method
    that no model comes of, OccupiedError where `out` is taken, and as `evaluate` does.
    """
    from pipeline.fitted.estimator import wrapped
    from pipeline.fitted.kinds import fit_model

    return wrapped(fit_model(_config(config), Path(out), task=task, method=method, device=device))


def load_model(path: AnyPath) -> Estimator | Segmenter:
    """Read a model's folder. Raises ModelError for one that is missing, damaged or too new."""
    from pipeline.fitted.estimator import wrapped
    from pipeline.fitted.kinds import load_model

    return wrapped(load_model(Path(path)))


def features(
    store: AnyConfig, array: str = "cls", blocks: int = 1
) -> tuple[NDArray[Any], pa.Table]:
    """Return features (n, ...) of a store and the table of their n slices, row for row.

    store: its folder or URL, or a config. array: cls (its last `blocks` side by side), mean, patch
    or volume. Paths are the real ones
    where the store's key is there. Raises StoreNotFoundError, and KeyError for an array it does not
    have.
    """
    lazy = Features(store, array, blocks)
    return lazy[np.arange(len(lazy))], lazy.slices


@dataclass(frozen=True, init=False)
class Features:
    """The features of a store by place, read when indexed: what a torch DataLoader takes.

    slices: the table of the slices that have features, ascending by row. Indexing by a number
    gives (...), by several numbers (b, ...), each chunk of the store read once.
    """

    store: FeatureStore
    which: Selection
    slices: pa.Table

    def __init__(self, store: AnyConfig, array: str = "cls", blocks: int = 1) -> None:
        opened = FeatureStore.open(_store(store))
        which = Selection(array, blocks)
        which.row_shape(opened)  # raises for what is not there
        names = Names(opened.path)
        slices = live_slices(opened)
        # A frozen class sets its fields by the way of its base.
        object.__setattr__(self, "store", opened)
        object.__setattr__(self, "which", which)
        object.__setattr__(self, "slices", names.revealed(slices) if names.has_key else slices)

    def __len__(self) -> int:
        return int(self.slices.num_rows)

    def __getitem__(self, places: Any) -> NDArray[Any]:
        """Return the features at one place, a slice of places, or several."""
        rows = self.slices["row"].to_numpy()[places]
        features = self.which.of(self.store, np.atleast_1d(rows))
        return features if np.ndim(rows) else features[0]

    def __getitems__(self, places: Sequence[int]) -> list[NDArray[Any]]:
        """Return a batch, as torch's DataLoader asks for it: one read for all."""
        return list(self[np.asarray(places)])
