"""What segmentation heads learn and are scored on: masks of a config, as units with a split."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.labels import read_labels
from pipeline.config.data import Labels
from pipeline.config.heads import TUNED
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks, Segment
from pipeline.config.tasks import Level, Task
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import WITHOUT_IMAGES, Cases
from pipeline.evaluation.result_files import segmentation_path
from pipeline.recipe import recipe_of
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.masks import StoredMasks, update_masks
from pipeline.segmentation.sources import StoreSource
from pipeline.segmentation.units import Unit, units_of
from stores._disk import sha256
from stores.errors import ConfigError
from stores.features import FeatureStore

# Raised whenever the same question is answered otherwise: older answers are then not found.
CONTRACT = 5
# What is being done, how much of it is done, of how much.
Progress = Callable[[str, int, int], None]


@dataclass
class MaskCases(Cases):
    """What is asked of masks: units are labelled by the structures that they have; see `Cases`."""

    @property
    def _without_copies(self) -> str:
        """How copies are left out: no label says what a mask shows."""
        return WITHOUT_IMAGES


@dataclass
class SegmentationCases:
    """What all heads of a config share: a store, some masks, their units and the split of those.

    mask_settings: the block of the config; task_cases: the units as a task of evaluation, each
    labelled by the structures it has, which knows their split.
    """

    config: Config
    mask_settings: Masks
    store: FeatureStore
    masks: StoredMasks
    task_cases: Cases
    units: list[Unit]

    @classmethod
    def of(cls, config: Config, task: str, progress: Progress | None = None) -> SegmentationCases:
        """Bring the masks that the config calls `task` up to date and join them to the slices.

        progress: called with what is done, how many mask files were looked at, of how many. Raises
        ConfigError, LabelError.
        """
        if config.fit_on is not None:
            raise ConfigError(
                "Segmentation heads are fitted and tested on the tokens of one store. The config "
                "has `fit_on`: leave it out."
            )
        store = FeatureStore.open(config.store)
        recipe = recipe_of(store)
        if recipe.level == "volume":  # before masks are read
            raise ConfigError(
                f"Masks are drawn on slices, by their patch tokens. The store {store.place} has "
                f"vectors of whole volumes instead, by {recipe.network}: name a network of slices "
                "in another config, with a store of its own and `outputs: {keep: [cls, mean, "
                "patch]}`."
            )
        withdrawn = store.withdrawn  # before anything of the store is read
        mask_settings = config.masks[task]
        report = functools.partial(progress, f"{task}: masks") if progress else None
        masks = update_masks(config, store, mask_settings, report)
        table = _label_table(config)
        labelled, units = units_of(config, store, masks, table)
        level: Level = "series" if any(unit.volume for unit in units) else "image"
        task_cases = MaskCases(
            config,
            store,
            table or LabelTable(Labels(file=Path()), {}),
            store.fingerprint(),
            task,
            Task(labels=masks.classes[1:], level=level),
        )
        # Known from the masks: they are not to be joined from labels, of which there may be none.
        task_cases.units = labelled
        task_cases.withdrawn = withdrawn
        return cls(config, mask_settings, store, masks, task_cases, units)

    @cached_property
    def source(self) -> StoreSource:
        """Tokens, masks and images by row."""
        return StoreSource(self.config, self.store, self.masks)

    def rows_of(self, units: Rows) -> Rows:
        """Return the rows of some units (by number), ascending."""
        labelled = self.task_cases.units
        return labelled.rows[np.isin(labelled.unit, units)]

    def row_with_most_mask(self, unit: Unit) -> int:
        """Return the row of a unit's slice that shows most of its structures."""
        return max(unit.rows, key=lambda row: int((self.masks.labels(row) > 0).sum()))

    # --- answers on file ---------------------------------------------------------------------

    def heads_on_file(self) -> list[str]:
        """Return the heads, and methods that tune the network, whose answers are on file."""
        # An answer is named by its split among others: without one there is none.
        if not self.task_cases.is_split:
            return []
        every = [*self.config.segment, *TUNED]
        return [name for name in every if self.settings(name) and self.path(name).is_file()]

    def settings(self, head: str) -> Segment | Tuning:
        """Return the settings of a head, or of a method that tunes the network."""
        settings: Segment | Tuning = self.config.segment.get(head) or getattr(self.config, head)
        return settings

    def initial_head(self, head: str) -> Segment | None:
        """Return the head on cached tokens that a tuned network's begins as; None for noise.

        The first linear one of the config, or one of the defaults.
        """
        settings = self.settings(head)
        if not isinstance(settings, Tuning) or settings.start == "noise":
            return None
        linear = [each for each in self.config.segment.values() if each.method == "linear"]
        initial = linear[0] if linear else Segment()
        return initial.model_copy(update={"refit": "none"})

    def path(self, head: str) -> Path:
        """Return where the answer of a head is filed."""
        return segmentation_path(self.store.path, self.task_cases.name, head, self.key(head))

    def key(self, head: str) -> str:
        """Return the sha256 of all that the answer of a head depends on."""
        patients = "\0".join(self.task_cases.units.groups)
        question = {
            "contract": CONTRACT,
            "task": self.task_cases.name,
            "head": head,
            "settings": self.settings(head).model_dump(mode="json"),
            "masks": self.masks.digest,
            "tolerance": self.mask_settings.tolerance,
            "patients": sha256(patients.encode()),
            "split": self.task_cases.split.digest,
            "rules": self.config.split.model_dump(mode="json", include={"new", "allow"}),
            "store": self.task_cases.fingerprint,
        }
        # Only where there is one: other answers keep their names.
        if self.task_cases.split_column_digest is not None:
            question["split_column"] = self.task_cases.split_column_digest
        initial = self.initial_head(head)
        if initial is not None:
            question["begun_as"] = initial.model_dump(mode="json")
        return sha256(json.dumps(question, sort_keys=True).encode())


def _label_table(config: Config) -> LabelTable | None:
    """Return the label table, which may name patients and say how to split; None without one."""
    column = config.split.column
    if config.labels is not None:
        return read_labels(config.labels, [], [column] if column else [])
    if column:
        raise ConfigError(
            f"A split of kind {config.split.kind!r} needs `labels`: the file that has the "
            f"column {column!r}."
        )
    return None
