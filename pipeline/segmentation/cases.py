"""What heads are asked: some masks of a config over its store, as units with a split."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.labels import read_labels
from pipeline.config.data import Labels
from pipeline.config.heads import TUNED
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks, Segment
from pipeline.config.tasks import Task
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.result_files import segmentation_path
from pipeline.segmentation.geometry import to_slice
from pipeline.segmentation.masks import Kept, settle
from pipeline.segmentation.sources import StoreSource, Unit, units_of
from stores.errors import ConfigError
from stores.features import FeatureStore

# Raised whenever the same question is answered otherwise: older answers are then not found.
CONTRACT = 3
Labels2D = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]


@dataclass
class Asked:
    """What all heads of a config are asked about: a store, some masks, units and their split."""

    config: Config
    masks: Masks
    store: FeatureStore
    kept: Kept
    cases: Cases
    units: list[Unit]

    @classmethod
    def of(cls, config: Config, task: str, progress: Progress | None = None) -> Asked:
        """Bring the masks up to date and join them.

        progress: called with what is done, how many mask files were looked at, of how many. Raises
        ConfigError, LabelError.
        """
        if config.fit_on is not None:
            raise ConfigError(
                "Segmentation heads are fitted and tested on the tokens of one store. The config "
                "has `fit_on`: leave it out."
            )
        store, masks = FeatureStore.open(config.store), config.masks[task]
        tell = functools.partial(progress, f"{task}: masks") if progress else None
        kept = settle(config, store, masks, tell)
        table = None
        if config.labels is not None:
            column = config.split.column
            table = read_labels(config.labels, [], [column] if column else [])
        elif config.split.column:
            raise ConfigError(
                f"A split of kind {config.split.kind!r} needs `labels`: the file that has the "
                f"column {config.split.column!r}."
            )
        found, units = units_of(config, store, kept, table)
        level: Any = "series" if any(unit.volume for unit in units) else "image"
        question = Task(labels=kept.classes[1:], level=level)
        table = table or LabelTable(Labels(file=Path()), {})
        cases = Cases(config, store, table, store.fingerprint(), task, question)
        cases.units = found
        return cls(config, masks, store, kept, cases, units)

    @cached_property
    def source(self) -> StoreSource:
        """Tokens, masks and images by row."""
        return StoreSource(self.config, self.store, self.kept)

    def rows_of(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of some units, ascending."""
        units = self.cases.units
        return units.rows[np.isin(units.unit, which)]

    @property
    def filed(self) -> list[str]:
        """The heads, and methods that tune the network, whose answers are on file."""
        if not self.cases.is_split:
            return []
        every = [*self.config.segment, *TUNED]
        return [name for name in every if self.settings(name) and self.path(name).is_file()]

    def settings(self, head: str) -> Segment | Tuning:
        """Return the settings of a head, or of a method that tunes the network."""
        own: Segment | Tuning = self.config.segment.get(head) or getattr(self.config, head)
        return own

    def begun_as(self, head: str) -> Segment | None:
        """Return the head on cached tokens that a tuned network's begins as; None for noise.

        The first linear one of the config, or one of the defaults.
        """
        own = self.settings(head)
        if not isinstance(own, Tuning) or own.start == "noise":
            return None
        linear = [each for each in self.config.segment.values() if each.method == "linear"]
        return (linear or [Segment()])[0].model_copy(update={"refit": "none"})

    def path(self, head: str) -> Path:
        """Return where the answer of a head is filed."""
        return segmentation_path(self.store.path, self.cases.name, head, self.key(head))

    def key(self, head: str) -> str:
        """Return the sha256 of all that the answer of a head depends on."""
        asked = {
            "contract": CONTRACT,
            "task": self.cases.name,
            "head": head,
            "settings": self.settings(head).model_dump(mode="json"),
            "masks": self.kept.digest,
            "tolerance": self.masks.tolerance,
            "patients": hashlib.sha256("\0".join(self.cases.units.groups).encode()).hexdigest(),
            "split": self.cases.split.digest,
            "rules": self.config.split.model_dump(mode="json", include={"new", "allow"}),
            "store": self.cases.fingerprint,
        }
        begun = self.begun_as(head)
        if begun is not None:
            asked["begun_as"] = begun.model_dump(mode="json")
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def native(kept: Kept, unit: Unit, labels: Sequence[Labels2D]) -> Labels2D:
    """Return label values (S, S) of a unit's slices at native size: (z, H, W), or (H, W)."""
    planes = [
        to_slice(each, kept.shows(row), kept.labels(row).shape)
        for row, each in zip(unit.rows, labels, strict=True)
    ]
    return np.stack(planes) if unit.volume else planes[0]
