"""The names that a notebook needs: embed a folder, open its features, ask them.

    from pipeline import api as radprobe

    config = radprobe.load_config("configs/demo.yaml")
    radprobe.extract(config)
    x, slices = radprobe.features(config.store)

A config is a YAML file or a `Config` made of the same keys. xarray opens a store's `features.zarr`
as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import evaluate as _evaluate
from pipeline import extract as _extract
from pipeline.config import loading as _loading
from pipeline.config.heads import DEFAULT_HEADS
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.extraction.embed import Speed
from pipeline.extraction.same_store import check_store
from pipeline.results import Result
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import PartsFailedError
from stores.export import Selection, live_slices

if TYPE_CHECKING:
    from pipeline.extract import Summary

__all__ = [
    "Config",
    "FeatureStore",
    "Features",
    "Speed",
    "discover",
    "evaluate",
    "extract",
    "features",
    "load_config",
]

AnyPath = str | PathLike[str]


def load_config(path: AnyPath) -> Config:
    """Read a config file. Raises ConfigError with one line a fault."""
    return _loading.load_config(Path(path))


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


def extract(config: Config, speed: Speed = Speed()) -> Summary:  # noqa: B008 (frozen)
    """Embed what is not in the config's store yet, as `radprobe extract` does.

    Raises PartsFailedError where parts failed; those that did not are committed.
    """
    summary = _extract.extract(config, speed)
    if summary.parts_failed:
        raise PartsFailedError(
            f"{len(summary.parts_failed)} parts of {summary.store} failed, first "
            f"{summary.parts_failed[0]}. The others are committed; mend what it says and extract "
            "again.",
            summary,
        )
    return summary


def evaluate(config: Config, methods: Sequence[Method] = DEFAULT_HEADS) -> list[Result]:
    """Answer the config's tasks from its store, as `radprobe evaluate` does.

    Raises UnansweredError, which has the other answers, where some tasks cannot be answered.
    """
    check_store(config)
    return list(_evaluate.evaluate(config, methods))


def features(store: AnyPath, array: str = "cls", blocks: int = 1) -> tuple[NDArray[Any], pa.Table]:
    """Return features (n, ...) of a store and the table of their n slices, row for row.

    array: cls (its last `blocks` side by side), mean or patch. Paths are the real ones where the
    store's key is there. Raises StoreNotFoundError, and KeyError for an array it does not have.
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

    def __init__(self, store: AnyPath, array: str = "cls", blocks: int = 1) -> None:
        opened = FeatureStore.open(fspath(store))
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
