"""Answers as they are filed: scores with intervals, counts, what they were computed from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from pipeline.config.methods import Method
from pipeline.config.regions import RegionFeatures
from pipeline.config.tasks import FeatureSet, Kind, Level, Part, Task
from pipeline.shared.frozen import Frozen


class Tally(Frozen):
    """What joined and what did not: counts, and the first few by name.

    unknown_labels: labels of scored units that are left out of what is fitted, voted and measured;
    withdrawn_labels: label rows of patients who were withdrawn by name, not among those unmatched;
    filled_labels: uncertain or empty values of joined label rows that count as 0 or 1, as asked;
    unreadable_units, unreadable_patients: with a label, and no slice that could be read.
    Label rows are named by their path, or, where they are keyed by an id, by their place in the
    file, because a raw id may not leave the labels file.
    """

    unlabelled_units: int = 0
    unknown_labels: int = 0
    filled_labels: int = 0
    unreadable_slices: int = 0
    unreadable_units: int = 0
    unreadable_patients: int = 0
    pending_slices: int = 0
    unmatched_slices: int = 0
    unmatched_labels: int = 0
    withdrawn_labels: int = 0
    unmatched_slice_examples: tuple[str, ...] = ()
    unmatched_label_examples: tuple[str, ...] = ()


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

    predicted: FiniteFloat
    observed: FiniteFloat
    units: PositiveInt


class Subgroup(Frozen):
    """The metrics of the test units with one value of a column; positives: units a class or label.

    Where one patient alone stands on a side, what ranks the sides has no interval.
    """

    units: NonNegativeInt
    patients: NonNegativeInt
    positives: dict[str, NonNegativeInt] = Field(default_factory=dict)
    metrics: dict[str, Metric]


class Score(Frozen):
    """The metrics of one setting, such as {"k": 10}: overall, and by class or label name.

    subgroups: by `column=value`; reliability: the curve that ece sums up, by label name, or "" for
    the positive of two classes or the likeliest of several. operating_points: from which
    probabilities on a unit is called positive, by label name, or "" for the positive of two: one a
    model, where folds or draws have several; a label that is not there has none, and is called
    above 0.5.
    """

    setting: dict[str, float]
    metrics: dict[str, Metric]
    labels: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    subgroups: dict[str, Subgroup] = Field(default_factory=dict)
    reliability: dict[str, tuple[Bin, ...]] = Field(default_factory=dict)
    operating_points: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class PairedUnits(Frozen):
    """How many test units two answers share, of how many patients, and who is left out.

    first_only, second_only: units that only one answer was tested on, and the first few by their
    ids in that store: row numbers or pseudonyms.
    """

    units: int
    patients: int
    first_only: int = 0
    second_only: int = 0
    first_only_examples: tuple[str, ...] = ()
    second_only_examples: tuple[str, ...] = ()


class Difference(Frozen):
    """Second less first, of one metric (of one class or label; "" for all), on the same units.

    The interval is of a bootstrap that draws the same patients for both. p is DeLong's, for an
    AUROC of two sides; p_holm is that, adjusted for the number of labels tested. paired: which
    units of two answers these are.
    """

    metric: str
    label: str
    difference: Metric
    p: float | None = None
    p_holm: float | None = None
    paired: PairedUnits | None = None


class PartCount(Frozen):
    """How much stands on one side of the split; positives, unknown: units a class or label."""

    units: NonNegativeInt
    patients: NonNegativeInt
    positives: dict[str, NonNegativeInt]
    unknown: dict[str, NonNegativeInt] = Field(default_factory=dict)


class Positive(Frozen):
    """The class of two that is positive, and how many of the test units and patients carry it."""

    name: str
    units: int
    patients: int


class Provenance(Frozen):
    """All that a result was computed from. `random`: the weights were never trained.

    network: what made the features, in words; "" in answers that were filed before it was named.
    """

    key: str
    contract: int
    recipe: str
    weights: str
    random: bool
    store: str
    labels: str
    split: str
    versions: dict[str, str]
    network: str = ""

    @property
    def network_in_words(self) -> str:
        """The network, or where the answer has no name of it, its weights."""
        return self.network or f"weights {self.weights[:15]}"


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


class FittedOn(Frozen):
    """The collection whose train and val heads were fitted on, to be tested on another.

    name: of its store; tested_on: of the other's; task: as both call it; store, labels, split: as
    `Provenance` has them.
    """

    name: str
    tested_on: str
    task: str
    store: str
    labels: str
    split: str


class Result(Frozen):
    """One task answered by one method. `notes` says what was left out, and why.

    positive: of two classes. chosen: the place of the score that stands for the answer, by default
    the last. tuned: of methods that train the network, what each fold made. agreement: where heads
    were fitted on another store's features, how far those of the test units agree with them there
    (the median over the numbers of a feature of ICC(A,1)). fitted_on: where heads were fitted on
    another collection, whose train and val `counts` then has.
    """

    task: str
    question: Task
    method: Method
    features: FeatureSet | RegionFeatures
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
    positive: Positive | None = None
    chosen: int = -1
    fitted_on: FittedOn | None = None

    @property
    def configured_task(self) -> str:
        """The task as its config calls it, whatever heads were fitted on."""
        return self.task if self.fitted_on is None else self.fitted_on.task

    @property
    def main_score(self) -> Score:
        """The score that stands for the answer; there must be one."""
        return self.scores[self.chosen]


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
