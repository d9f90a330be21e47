"""The config file: one YAML that names data, backbone, preprocessing, outputs, store and tasks.

Relative paths are relative to the config file. Unknown keys are refused with the nearest known
one. Defaults stand here and in `pipeline.types`, each once.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    create_model,
    field_validator,
    model_validator,
)

from pipeline.config.base import HeadSettings
from pipeline.config.data import (
    ROOT_COLUMN,
    BackboneChoice,
    Data,
    Demo,
    JobQueue,
    Labels,
    Outputs,
    SplitChoice,
)
from pipeline.config.heads import HEADS, TUNED, Declaration, declared, method_names
from pipeline.config.presets import PresetName, expanded
from pipeline.config.regions import Boxes, RegionChoice
from pipeline.config.segmentation import Masks, Segment
from pipeline.config.tasks import Task
from pipeline.config.tuning import BitFit, FineTune, FrozenTune, Lora, NormTune
from pipeline.recipe import Preprocess
from pipeline.shared.frozen import Frozen
from stores.errors import ConfigError

S = TypeVar("S", bound=HeadSettings)


def _settings(name: str, given: Any) -> HeadSettings:
    """Return the settings of a head from what a config gives under its name."""
    return declared(name).settings.model_validate(given)


def _default(name: str) -> HeadSettings:
    return declared(name).settings()


def _head_field(name: str) -> Any:
    """Return type and default of a head's key: both are known to the module that declares it."""
    # Parsed before pydantic sees it: the annotation knows no more than what all heads have.
    of_its_own = BeforeValidator(functools.partial(_settings, name))
    # Made for each config anew, so that importing this module imports no head.
    default = Field(default_factory=functools.partial(_default, name))
    return (Annotated[SerializeAsAny[HeadSettings], of_its_own], default)


# One field a line of the registry, which is known when this module is imported, and not before.
if TYPE_CHECKING:

    class HeadKeys(Frozen):
        """A key for each registered head; type checkers know its settings by `settings_of`."""
else:
    HeadKeys = create_model(
        "HeadKeys", __base__=Frozen, **{name: _head_field(name) for name in HEADS}
    )


class Config(HeadKeys):
    """One config file. Each head of `pipeline.config.heads` has a key, whose settings it declares.

    title: what the data are called on a report. description: what a reader of it should know of
    them, such as where and when they were taken. store: the folder or the URL of the features.
    preset: ordinary settings by one word (see `pipeline.config.presets`); what is given beside it
    wins. fit_on: a store of the same collection by the same network, whose features heads are
    fitted on in place of this one's, which are tested alone: how answers hold where the images are
    others; or the config of another collection, on whose train and val heads are fitted, to be
    tested on test of this one: how answers hold elsewhere. masks: what is to be segmented, each by
    a name of its own; boxes: regions by a table, each by a name of its own; segment: the heads that
    are asked to, each by a name of its own. finetune, lora, bitfit, norm, frozen: how the network
    is tuned, where it is.
    """

    title: str = ""
    description: str = ""
    preset: PresetName | None = None
    data: Data
    store: Path
    fit_on: Path | Config | None = None
    demo: Demo | None = None
    backbone: BackboneChoice = BackboneChoice()
    preprocess: Preprocess = Preprocess()
    outputs: Outputs = Outputs()
    labels: Labels | None = None
    split: SplitChoice = SplitChoice()
    tasks: dict[str, Task] = Field(default_factory=dict)
    scale: JobQueue | None = None
    masks: dict[str, Masks] = Field(default_factory=dict)
    boxes: dict[str, Boxes] = Field(default_factory=dict)
    segment: dict[str, Segment] = Field(default_factory=dict)
    finetune: FineTune | None = None
    lora: Lora | None = None
    bitfit: BitFit | None = None
    norm: NormTune | None = None
    frozen: FrozenTune | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        return expanded(given) if isinstance(given, dict) else given

    @field_validator("segment")
    @classmethod
    def _own_names(cls, value: dict[str, Segment]) -> dict[str, Segment]:
        taken = sorted({*TUNED} & value.keys())
        if taken:
            raise ValueError(
                f"A head must have a name of its own. Got {taken[0]!r}, which `radprobe tune` "
                "calls its answers by."
            )
        return value

    @model_validator(mode="after")
    def _masks_for_masked(self) -> Config:
        if self.data.only == "masked" and not self.masks:
            raise ValueError("data.only: masked needs `masks`, which say where the masks are.")
        return self

    @model_validator(mode="after")
    def _known_regions(self) -> Config:
        for name, task in self.tasks.items():
            if task.region is not None:
                self._check_region(name, task.region)
        return self

    def _check_region(self, task: str, region: RegionChoice) -> None:
        """Raise ValueError for masks or structures that the config does not have."""
        kind = "boxes" if region.masks is None else "masks"
        there = [*(self.boxes if region.masks is None else self.masks)]
        if region.name not in there:
            raise ValueError(
                f"Task {task} must name {kind} of the config. Got {region.name!r} instead; there "
                f"are {', '.join(there) or 'none'}."
            )
        if region.masks is None:  # what is in boxes stands in their table
            return
        structures = self.masks[region.masks].classes[1:]
        unknown = [name for name in region.structures if name not in structures]
        if unknown:
            raise ValueError(
                f"Task {task} must name structures of the masks {region.masks}. Got "
                f"{unknown[0]!r} instead; they have {', '.join(structures)}."
            )

    @model_validator(mode="after")
    def _roots_of_rows(self) -> Config:
        """Refuse labels that do not say at which site a patient is: two would be one."""
        labels = self.labels
        if not self.data.roots:
            columns = [self.split.column, labels and labels.root and ROOT_COLUMN]
            for task in self.tasks.values():
                columns += [*task.subgroups, *task.shortcuts]
            if ROOT_COLUMN in columns:
                raise ValueError(
                    f"{ROOT_COLUMN} as a column, and labels.root, need names: `data: {{root: "
                    "{site_a: /path, site_b: /path}}`."
                )
            return self
        if self.demo is not None:
            raise ValueError("A demo is written to one folder. Give data.root as one path.")
        names_people = labels is not None and (labels.patient is not None or labels.by != "path")
        if labels is not None and names_people and labels.root is None:
            raise ValueError(
                "Where data.root has names, they tell patients and ids of labels apart: set "
                "labels.root to the column that has them."
            )
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the config has settings of: all heads, and those that it tunes by."""
        return tuple(name for name in method_names() if getattr(self, name) is not None)

    def settings_of(self, method: Declaration[S]) -> S:
        """Return the settings of a method. Raises ConfigError where the config has none."""
        settings: S | None = getattr(self, method.name)
        if settings is None:
            raise ConfigError(
                f"The config has no block {method.name!r}; `{method.name}: {{}}` takes the "
                "defaults."
            )
        return settings
