"""The frozen types of FLOW 2: what is asked of a store, what it is asked of, what is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.types import Frozen

# Which cached numbers a head sees: the CLS token of the last block or of the last four
# (concatenated, oldest first), with or without the mean patch token.
FeatureSet = Literal["cls", "cls+mean", "cls4", "cls4+mean"]
Level = Literal["image", "series", "study", "patient"]
Kind = Literal["binary", "multiclass", "multilabel", "regression"]
Part = Literal["train", "val", "test"]
Method = Literal[
    "knn", "probe", "fewshot", "linear", "attention", "efficiency",
    "finetune", "lora", "bitfit", "norm",
]  # fmt: skip
# How the features of a unit's slices become one.
Pool = Literal["mean", "max", "gem3", "top5"]
# What is done to the features before a head sees them, as the train units alone say.
Scaling = Literal["none", "l2", "standardise", "whiten"]
# What becomes of an uncertain (-1) and of an empty value of a column of zeros and ones.
Uncertain = Literal["refuse", "zero", "one", "leave-out"]
Missing = Literal["leave-out", "zero"]


# --- questions -----------------------------------------------------------------------------


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


class Tally(Frozen):
    """What joined and what did not: counts, and the first few by name.

    unknown_labels: labels of scored units that are left out of what is fitted, voted and measured;
    filled_labels: uncertain or empty values of joined label rows that count as 0 or 1, as asked.
    Label rows are named by their path, or, where they are keyed by an id, by their place in the
    file, because a raw id may not leave the labels file.
    """

    unlabelled_units: int = 0
    unknown_labels: int = 0
    filled_labels: int = 0
    unreadable_slices: int = 0
    pending_slices: int = 0
    unmatched_slices: int = 0
    unmatched_labels: int = 0
    unmatched_slice_examples: tuple[str, ...] = ()
    unmatched_label_examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """What is true of n units, and whose they are.

    y (n,) int64 class indices; (n, c) int8 for multi-label: 1, 0, or -1 where not known; or (n,)
    float64 for regression. groups (n,): the patients; classes: the c names in index order, of
    which the last is the positive one where there are two; for regression the column's name.
    """

    y: NDArray[Any]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    kind: Kind

    @property
    def indicator(self) -> NDArray[np.bool_]:
        """Return (n, c): which classes or labels each unit is known to carry."""
        if self.kind == "multilabel":
            return np.asarray(self.y == 1)
        return np.asarray(self.y[:, None] == np.arange(len(self.classes)))

    @property
    def strata(self) -> NDArray[np.bool_]:
        """Return (n, c): the classes or labels each unit carries, or of a number its quarter."""
        if self.kind != "regression":
            return self.indicator
        quarter = np.searchsorted(np.quantile(self.y, [0.25, 0.5, 0.75]), self.y)
        return np.asarray(quarter[:, None] == np.arange(4))

    @property
    def patient(self) -> NDArray[np.int64]:
        """Return (n,) the number of each unit's patient, who count in the order of first units.

        So what is drawn by it does not depend on pseudonyms, which differ from store to store.
        """
        _, first, patient = np.unique(self.groups, return_index=True, return_inverse=True)
        return np.asarray(np.argsort(np.argsort(first))[patient])

    @property
    def known(self) -> NDArray[np.bool_]:
        """Return (n, c): of which classes or labels a unit is known to carry them or not."""
        if self.kind == "multilabel":
            return np.asarray(self.y >= 0)
        return np.ones((len(self.y), len(self.classes)), bool)

    def at(self, which: NDArray[Any]) -> Truth:
        """Return the truth of some units, by number or by mask."""
        return Truth(self.y[which], self.groups[which], self.classes, self.kind)


@dataclass(frozen=True)
class Units(Truth):
    """What a task is scored on: n images, series, studies or patients, with their labels.

    ids (n,): row number, or pseudonym; rows (m,) ascending: the slices; unit (m,): the unit each
    slice belongs to, whose features are pooled over its slices.
    """

    ids: NDArray[np.str_]
    rows: NDArray[np.int64]
    unit: NDArray[np.int64]
    tally: Tally

    @classmethod
    def unlabelled(
        cls, ids: NDArray[np.str_], rows: NDArray[np.int64], unit: NDArray[np.int64]
    ) -> Units:
        """Return units that are asked for their features alone, each a group of its own."""
        return cls(
            y=np.zeros(len(ids)),
            groups=ids,
            classes=("",),
            kind="regression",
            ids=ids,
            rows=rows,
            unit=unit,
            tally=Tally(),
        )

    def bags(self) -> Bags:
        """Return which slices belong to each unit."""
        counts = np.bincount(self.unit, minlength=len(self.ids))
        first = np.concatenate([[0], np.cumsum(counts)])
        return Bags(np.argsort(self.unit, kind="stable"), first)


@dataclass(frozen=True)
class Bags:
    """The slices of n units: places in `Units.rows`, ascending, of any unit by its number.

    order (m,): all places, unit by unit; first (n + 1,): where those of each unit begin in it.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]

    def __getitem__(self, unit: int) -> NDArray[np.int64]:
        return self.order[self.first[unit] : self.first[unit + 1]]


@dataclass(frozen=True)
class Prediction:
    """Probabilities (q, c) of the test units under one setting, such as {"k": 10}.

    Rows sum to 1, but for multi-label, where each column stands by itself. For regression: the
    numbers (q, 1).
    """

    setting: dict[str, float]
    proba: NDArray[np.float64]


# --- answers -------------------------------------------------------------------------------


class Metric(Frozen):
    """One number, with its 95 % interval where there is one.

    p: the share of permutations of the labels with a value as great, the true one counted.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


class Bin(Frozen):
    """Units of similar probability: its mean, and the share of them that it came true for."""

    predicted: float
    observed: float
    units: int


class Subgroup(Frozen):
    """The metrics of the test units with one value of a column; positives: units a class or label.

    Where one patient alone stands on a side, what ranks the sides has no interval.
    """

    units: int
    patients: int
    positives: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, Metric]


class Score(Frozen):
    """The metrics of one setting, such as {"k": 10}: overall, and by class or label name.

    subgroups: by `column=value`; reliability: the curve that ece sums up, by label name, or "" for
    the positive of two classes or the likeliest of several.
    """

    setting: dict[str, float]
    metrics: dict[str, Metric]
    labels: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    subgroups: dict[str, Subgroup] = Field(default_factory=dict)
    reliability: dict[str, tuple[Bin, ...]] = Field(default_factory=dict)


class Difference(Frozen):
    """Second less first, of one metric (of one class or label; "" for all), on the same units.

    The interval is of a bootstrap that draws the same patients for both. p is DeLong's, for an
    AUROC of two sides; p_holm is that, adjusted for the number of labels tested.
    """

    metric: str
    label: str
    difference: Metric
    p: float | None = None
    p_holm: float | None = None


class PartCount(Frozen):
    """How much stands on one side of the split; positives, unknown: units a class or label."""

    units: int
    patients: int
    positives: dict[str, int]
    unknown: dict[str, int] = Field(default_factory=dict)


class Provenance(Frozen):
    """All that a result was computed from. `random`: the weights were never trained."""

    key: str
    contract: int
    recipe: str
    weights: str
    random: bool
    store: str
    labels: str
    split: str
    versions: dict[str, str]


class Tuned(Frozen):
    """What tuning made of a network, in one fold.

    weights: the folder of the tuned network, under the store, as `backbone.weights` takes it;
    identity: the sha256 of its file, as recipes have it. trained: numbers that were trained in the
    network, of how many; head: those of the head. moved: the parameters of the network that are not
    as they were. history: the AUROC on val of each epoch, or of masks the Dice, of a number less
    the squared error (none where it is not defined), of which `epoch` (from 1) is kept. resumed:
    how often the run went on after it had been stopped.
    peak_bytes: most memory, of the GPU, or of the process on a CPU.
    """

    weights: str
    identity: str
    trained: int
    parameters: int
    head: int
    moved: tuple[str, ...]
    history: tuple[float | None, ...]
    epoch: int
    resumed: int
    device: str
    peak_bytes: int
    seconds: float


class Result(Frozen):
    """One task answered by one method. `notes` says what was left out, and why.

    tuned: of methods that train the network, what each fold made. agreement: where heads were
    fitted on another store's features, how far those of the test units agree with them there (the
    median over the numbers of a feature of ICC(A,1)).
    """

    task: str
    question: Task
    method: Method
    features: FeatureSet
    kind: Kind
    classes: tuple[str, ...]
    level: Level
    settings: dict[str, Any]
    counts: dict[Part, PartCount]
    tally: Tally
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    seconds: float
    cached: bool = False
    tuned: tuple[Tuned, ...] = ()
    agreement: float | None = None


class Segmented(Frozen):
    """One head's answer: how well it segments the test units, volumes or images.

    task, head: by their names in the config; scores: one for each number of training patients
    asked, the last of all of them. `dice_ceiling` among the metrics is what the masks themselves
    score after they went through the size of the network's input and back; `fit_seconds` the time
    of learning alone. tuned: as `Result` has it.
    """

    task: str
    head: str
    method: str
    classes: tuple[str, ...]
    level: Literal["volume", "image"]
    settings: dict[str, Any]
    counts: dict[Part, PartCount]
    tally: Tally
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    seconds: float
    cached: bool = False
    tuned: tuple[Tuned, ...] = ()
