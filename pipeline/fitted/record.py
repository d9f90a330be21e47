"""What a model says of itself: the file `model.json` of its folder.

It names what the model was made of (recipe, weights, features, split, labels by their digests, the
key of the answer it comes from), what it says (classes, operating point) and how well it did. No
patient, path or value of a single unit stands in it.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.data import BackboneChoice
from pipeline.config.feature_sets import made_of
from pipeline.config.heads import declared
from pipeline.config.methods import Method
from pipeline.config.regions import RegionFeatures
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.config.tasks import FeatureSet, Kind, Level, Part, Scaling, Task
from pipeline.evaluation.covariates import Covariates
from pipeline.evaluation.heads.contract import Head
from pipeline.fitted.calibration import Calibration
from pipeline.recipe import PatchTokens, Recipe
from pipeline.results import PartCount, Provenance, Score
from pipeline.shared.frozen import Frozen

# Of model.json and of the arrays beside it. Raised where an older radprobe would read them wrongly.
FORMAT: Literal[1] = 1
# What `kind` says of a model that draws masks; of others it is the kind of their task.
MASKS: Literal["masks"] = "masks"


class Scaled(Frozen):
    """How features are scaled before the head sees them; what train said of it is in the arrays."""

    kind: Scaling


class Unlike(Frozen):
    """How far an image is from those the model learnt from (`pipeline.fitted.unlike`).

    neighbours: to how many references a distance is the mean; references: how many are filed.
    """

    neighbours: int
    references: int


class TrainedOn(Frozen):
    """The units of train and val, counted. slices: fewest and most a unit; key: which store key
    made their pseudonyms, as a digest of it.
    """

    units: int
    patients: int
    slices: tuple[int, int]
    modalities: dict[str, int]
    key: str


def backbone_of(choice: BackboneChoice, recipe: Recipe) -> BackboneChoice:
    """Return the network as a config names it, with random weights where a demo fell back to them.

    recipe: of the config's store.
    """
    if recipe.seeded:
        return choice.model_copy(update={"weights": recipe.weights})
    return choice


class FiledRecord(Frozen):
    """What every model says of itself, whatever it answers. task: the question's name.

    setting: what was chosen of the head's settings, such as {"k": 20}. score: on test, of the
    answer that `provenance.key` names. tuned: whether the network was, which then lies in the
    folder, and recipe is of its features. files: the sha256 of each other file of the folder.
    """

    format: Literal[1] = FORMAT
    task: str
    method: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    setting: dict[str, float]
    recipe: Recipe
    backbone: BackboneChoice
    counts: dict[Part, PartCount]
    trained_on: TrainedOn
    score: Score
    unlike: Unlike
    difference: float
    notes: tuple[str, ...]
    provenance: Provenance
    tuned: bool = False
    files: dict[str, str]

    @property
    def random(self) -> bool:
        """Whether the network was never trained, which whatever shows a number must say."""
        return self.recipe.random


class ModelRecord(FiledRecord):
    """A model of a task. question: as the answer had it. covariates: the columns that stand beside
    features, as train said of them.

    setting: which of the head's predictions the model gives. thresholds: from which probability on
    a class or label is called so; above one half where it has none. head: what of the fitted head
    is no array. difference: the greatest between what the model says of the test units and what the
    answer says.
    """

    question: Task
    method: Method
    kind: Kind
    level: Level
    features: FeatureSet | RegionFeatures
    covariates: Covariates = Covariates()
    scaling: Scaled
    thresholds: dict[str, float]
    calibration: Calibration | None
    head: dict[str, Any]

    @property
    def sees(self) -> Literal["units", "slices"]:
        """Whether the head sees features of units, or of each of their slices."""
        head = declared(self.method)
        return head.sees if isinstance(head, Head) else "units"

    @property
    def modality(self) -> tuple[str, ...] | None:
        """The modalities that the model is asked about; None for all."""
        return self.question.modality

    @property
    def folder_recipe(self) -> Recipe:
        """The recipe that a folder is embedded by: the model's, of what it reads alone."""
        change = {"outputs": made_of(self.features).outputs, "patch": PatchTokens()}
        return self.recipe.model_copy(update=change)

    @property
    def not_of_values(self) -> tuple[str, ...]:
        """What stands in a recipe and changes no value that the model reads."""
        of_all = ("outputs", "blocks")
        return of_all if "patch" in made_of(self.features).outputs else (*of_all, "patch")


class MaskRecord(FiledRecord):
    """A model that draws masks. method: of the head, or that which tuned the network.

    name: the head's in the config; drawn_by: the settings by which the head is made again; about:
    what of it is no array. classes: by label value, the background first. level: what was scored.
    difference: the share of the pixels of the test slices, at the size of the input, that the model
    draws otherwise than its answer.
    """

    kind: Literal["masks"] = MASKS
    name: str
    level: Literal["volume", "image"]
    drawn_by: Segment
    about: dict[str, Any]

    @property
    def structures(self) -> tuple[str, ...]:
        """The classes but for the background."""
        return self.classes[1:]

    @property
    def modality(self) -> None:
        """None: masks are drawn on images of any modality."""
        return

    @property
    def needs_tokens(self) -> bool:
        """Whether the head reads patch tokens."""
        return "tokens" in SEGMENTATION_HEADS[self.drawn_by.method].needs

    @property
    def folder_recipe(self) -> Recipe:
        """The recipe that a folder is embedded by: the model's, of what it reads alone."""
        if self.needs_tokens:
            return self.recipe.model_copy(update={"outputs": ("mean", "patch"), "blocks": 1})
        change = {"outputs": ("mean",), "blocks": 1, "patch": PatchTokens()}
        return self.recipe.model_copy(update=change)

    @property
    def not_of_values(self) -> tuple[str, ...]:
        """What stands in a recipe and changes no value that the model reads."""
        return ("outputs", "blocks") if self.needs_tokens else ("outputs", "blocks", "patch")
