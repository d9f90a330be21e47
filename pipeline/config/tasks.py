"""Tasks: which labels, at which level, over which slices, by which features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.types import Frozen

# Which cached numbers a head sees: the CLS token of the last block or of the last four
# (concatenated, oldest first), with or without the mean patch token.
FeatureSet = Literal["cls", "cls+mean", "cls4", "cls4+mean"]
Level = Literal["image", "series", "study", "patient"]
Kind = Literal["binary", "multiclass", "multilabel", "regression"]
Part = Literal["train", "val", "test"]
# How the features of a unit's slices become one.
Pool = Literal["mean", "max", "gem3", "top5"]
# What is done to the features before a head sees them, as the train units alone say.
Scaling = Literal["none", "l2", "standardise", "whiten"]
# What becomes of an uncertain (-1) and of an empty value of a column of zeros and ones.
Uncertain = Literal["refuse", "zero", "one", "leave-out"]
Missing = Literal["leave-out", "zero"]


class Task(Frozen):
    """A question: which label columns, at which level, over which modalities.

    One column is binary or multi-class by its values, or a number to be predicted (values:
    number); several are multi-label (0 or 1). uncertain, missing: as `Labels` has them, where the
    task does not say. subgroups: label columns by whose values scores are given too; shortcuts:
    label columns that a probe is asked beside the task, on the same split, such as view or site;
    permutations: how many times labels are permuted for a p value of each AUROC.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    values: Literal["classes", "number"] = "classes"
    level: Level = "image"
    modality: tuple[str, ...] | None = None
    pool: Pool = "mean"
    uncertain: Uncertain | None = None
    missing: Missing | None = None
    subgroups: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    permutations: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_number(self) -> Task:
        if self.values == "number" and len(self.labels) > 1:
            raise ValueError(
                f"A task of values: number must have one label column. Got {list(self.labels)} "
                "instead; make a task of each."
            )
        return self
