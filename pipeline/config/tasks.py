"""Tasks: which labels, at which level, over which slices, by which features."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.config.regions import STRUCTURE, RegionChoice
from pipeline.shared.frozen import Frozen

# Which cached numbers a head sees: the CLS token of the last block or of the last four
# (concatenated, oldest first), with or without the mean patch token.
SliceFeatures = Literal["cls", "cls+mean", "cls4", "cls4+mean"]
# Or of the columns that the task names beside them, as numbers, alone or with the cached ones.
COLUMNS = "columns"
FeatureSet = Literal[
    SliceFeatures,
    "volume",
    "columns",
    "cls+columns",
    "cls+mean+columns",
    "cls4+columns",
    "cls4+mean+columns",
    "volume+columns",
]
Level = Literal["image", "series", "study", "patient", "region"]
Kind = Literal["binary", "multiclass", "multilabel", "regression", "survival"]
# What is asked by classes or labels, each of which has a probability.
CLASS_KINDS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel")
Part = Literal["train", "val", "test"]
# How the features of a unit's slices become one.
Pool = Literal["mean", "max", "gem3", "top5"]
# What is done to the features before a head sees them, as the train units alone say.
Scaling = Literal["none", "l2", "standardise", "whiten"]
# What becomes of an uncertain (-1) and of an empty value of a column of zeros and ones.
Uncertain = Literal["refuse", "zero", "one", "leave-out"]
Missing = Literal["leave-out", "zero"]


def _as_text(value: Any) -> Any:
    """Return a class as labels write it: YAML reads yes, 1 and 1.0 as a truth and as numbers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float) else value


ClassName = Annotated[str, BeforeValidator(_as_text)]


class AtLeast(Frozen):
    """A sensitivity, or a specificity, that the operating point reaches on val: one of them."""

    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    specificity: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> AtLeast:
        if (self.sensitivity is None) == (self.specificity is None):
            raise ValueError(
                "An operating point reaches a sensitivity or a specificity. Got "
                f"{self.model_dump()} instead; give one, such as {{sensitivity: 0.95}}."
            )
        return self


# From which probability on a unit is called positive: where Youden's index is greatest on val,
# where a rate is reached there, or where the positive is the likelier of two.
OperatingRule = Literal["youden", "likeliest"] | AtLeast


class Task(Frozen):
    """A question: which label columns, at which level, over which modalities.

    labels: of the label file, or bids. and an entity of a BIDS folder (bids.session), or
    region.structure, which structure a region is of; one column is binary or multi-class by its
    values, or a number to be predicted (values: number); several are multi-label (0 or 1). values:
    unset, classes, unless the column holds so many numbers or dates that none can be meant.
    positive: which of two classes sensitivity, F1 and average precision are of; unset, what the
    words say (see `pipeline.annotations.classes`). time, event: in the place of labels, survival:
    the column of how long each was watched, and the one of whether the event was seen then (1) or
    the watching ended before it (0, censored). operating_point: how the probability is chosen on
    val from which on a unit is called positive: youden, {sensitivity: 0.95}, {specificity: 0.9}, or
    likeliest (above 0.5, chosen on nothing). level: what a case is. region: of level region, which
    structures are cases. modality: the modality codes of the slices it is asked about; unset, all.
    pool: how the features of a case's slices become one. uncertain, missing, empty: as `Labels` has
    them, where the task does not say. subgroups: label columns by whose values scores are given
    too; columns: label columns that stand beside features, such as age and sex, where a head's
    `features` say so; shortcuts: label columns that a probe is asked beside the task, on the same
    split, such as view or site; permutations: how many times labels are permuted for a p value of
    each AUROC.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    time: str | None = None
    event: str | None = None
    values: Literal["classes", "number"] | None = None
    positive: ClassName | None = None
    operating_point: OperatingRule = "youden"
    level: Level = "image"
    region: RegionChoice | None = None
    modality: tuple[str, ...] | None = None
    pool: Pool = "mean"
    uncertain: Uncertain | None = None
    missing: Missing | None = None
    empty: tuple[str, ...] | None = None
    subgroups: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    permutations: Annotated[int, Field(ge=0)] = 0

    @field_validator("labels", "columns")
    @classmethod
    def _each_once(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        twice = [name for name, n in Counter(labels).items() if n > 1]
        if twice:
            raise ValueError(
                f"{(info.field_name or '').capitalize()} must name each column once. Got "
                f"{twice[0]!r} {labels.count(twice[0])} "
                "times instead."
            )
        return labels

    @model_validator(mode="before")
    @classmethod
    def _labelled_by_event(cls, given: Any) -> Any:
        """Take the column of the event for the label of a task of survival, which names no other.

        Before what is missing is looked for: such a task needs no `labels`, also where it has
        forgotten its event.
        """
        if not isinstance(given, dict) or "labels" in given:
            return given
        named = [given[key] for key in ("event", "time") if given.get(key) is not None]
        return given | {"labels": tuple(named[:1])} if named else given

    @model_validator(mode="after")
    def _survival_of_two_columns(self) -> Task:
        if self.time is None and self.event is None:
            return self
        if self.time is None or self.event is None or self.time == self.event:
            raise ValueError(
                "A task of survival names two columns: time, how long each was watched, and event, "
                f"whether it was seen. Got time {self.time!r} and event {self.event!r} instead."
            )
        if self.labels != (self.event,) or self.values is not None or self.permutations:
            raise ValueError(
                "A task of survival has time and event in the place of labels and values, and no "
                f"permutations. Got labels {list(self.labels)}, values {self.values} and "
                f"permutations {self.permutations} instead; leave them out."
            )
        return self

    @model_validator(mode="after")
    def _columns_are_no_truth(self) -> Task:
        truth = sorted({*self.columns} & {*self.truth_columns})
        if truth:
            raise ValueError(
                f"A column beside features must not be what is predicted. Got {truth[0]!r} among "
                "both; leave it out of columns."
            )
        if STRUCTURE in self.columns:
            raise ValueError(
                f"A column beside features is of the label table. Got {STRUCTURE!r} instead, which "
                "is of regions; leave it out of columns."
            )
        return self

    @property
    def truth_columns(self) -> tuple[str, ...]:
        """The columns that say what is true of a case."""
        return self.labels if self.time is None else (self.time, *self.labels)

    @property
    def reads_structure(self) -> bool:
        """Whether it asks which structure a region is of, as a label, subgroup or shortcut."""
        return STRUCTURE in (*self.labels, *self.subgroups, *self.shortcuts)

    @model_validator(mode="after")
    def _regions_of_their_level(self) -> Task:
        if (self.level == "region") != (self.region is not None):
            raise ValueError(
                "A task of level region says which by `region`, and no other does. Got level "
                f"{self.level} and region {self.region and self.region.name!r} instead; write "
                "`level: region` and `region: {masks: NAME}`."
            )
        if self.reads_structure and self.region is None:
            raise ValueError(
                f"{STRUCTURE} is known of regions alone. Got it in a task of level {self.level} "
                "instead; write `level: region` and `region: {masks: NAME}`."
            )
        return self

    @model_validator(mode="after")
    def _one_number(self) -> Task:
        if self.values == "number" and len(self.labels) > 1:
            raise ValueError(
                f"A task of values: number must have one label column. Got {list(self.labels)} "
                "instead; make a task of each."
            )
        return self

    @model_validator(mode="after")
    def _positive_of_one_column(self) -> Task:
        if self.positive is not None and (self.values == "number" or len(self.labels) > 1):
            what = "a number" if self.values == "number" else f"{len(self.labels)} label columns"
            raise ValueError(
                f"positive names one of two classes of one label column. Got {self.positive!r} for "
                f"{what} instead; leave it out: of several labels each is positive where it is 1."
            )
        return self
