"""The config file: one YAML that names data, backbone, preprocessing, outputs, store and tasks.

Relative paths are relative to the config file. Unknown keys are refused with the nearest known
one. Defaults stand here and in `pipeline.types`, each once.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from pipeline.config.data import BackboneChoice, Data, Demo, JobQueue, Labels, Outputs, SplitChoice
from pipeline.config.heads import Attention, Efficiency, FewShot, Knn, Linear, Probe
from pipeline.config.segmentation import Masks, Segment
from pipeline.config.tasks import Task
from pipeline.config.tuning import TUNED, BitFit, FineTune, Lora, NormTune
from pipeline.recipe import Preprocess
from pipeline.types import Frozen


class Config(Frozen):
    """One config file.

    fit_on: a store of the same collection by the same network, whose features heads are fitted on
    in place of this one's, which are tested alone: how answers hold where the images are others.
    masks: what is to be segmented, each by a name of its own; segment: the heads that are asked to,
    each by a name of its own. finetune, lora, bitfit, norm: how the network is tuned, where it is.
    """

    data: Data
    store: Path
    fit_on: Path | None = None
    demo: Demo | None = None
    backbone: BackboneChoice = BackboneChoice()
    preprocess: Preprocess = Preprocess()
    outputs: Outputs = Outputs()
    labels: Labels | None = None
    split: SplitChoice = SplitChoice()
    tasks: dict[str, Task] = Field(default_factory=dict)
    knn: Knn = Knn()
    probe: Probe = Probe()
    fewshot: FewShot = FewShot()
    scale: JobQueue | None = None
    masks: dict[str, Masks] = Field(default_factory=dict)
    segment: dict[str, Segment] = Field(default_factory=dict)
    linear: Linear = Linear()
    attention: Attention = Attention()
    efficiency: Efficiency = Efficiency()
    finetune: FineTune | None = None
    lora: Lora | None = None
    bitfit: BitFit | None = None
    norm: NormTune | None = None

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
