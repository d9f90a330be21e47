"""What a model says of itself: the file `model.json` of its folder.

It names what the model was made of (recipe, weights, features, split, labels by their digests, the
key of the answer it comes from), what it says (classes, operating point) and how well it did. No
patient, path or value of a single unit stands in it.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.data import BackboneChoice
from pipeline.config.methods import Method
from pipeline.config.tasks import FeatureSet, Kind, Level, Part, Scaling, Task
from pipeline.fitted.calibration import Calibration
from pipeline.recipe import Recipe
from pipeline.results import PartCount, Provenance, Score
from pipeline.types import Frozen

# Of model.json and of the arrays beside it. Raised where an older radprobe would read them wrongly.
FORMAT: Literal[1] = 1


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


class ModelRecord(Frozen):
    """One model. task: the question's name; question: as the answer had it.

    setting: which of the head's predictions the model gives, such as {"k": 20}. thresholds: from
    which probability on a class or label is called so; above one half where it has none. score: on
    test, of the answer that `provenance.key` names. head: what of the fitted head is no array.
    difference: the greatest between what the model says of the test units and what the answer says.
    files: the sha256 of each other file of the folder.
    """

    format: Literal[1] = FORMAT
    task: str
    question: Task
    method: Method
    kind: Kind
    classes: tuple[str, ...]
    level: Level
    features: FeatureSet
    scaling: Scaled
    settings: dict[str, Any]
    setting: dict[str, float]
    thresholds: dict[str, float]
    calibration: Calibration | None
    head: dict[str, Any]
    recipe: Recipe
    backbone: BackboneChoice
    counts: dict[Part, PartCount]
    trained_on: TrainedOn
    score: Score
    unlike: Unlike
    difference: float
    notes: tuple[str, ...]
    provenance: Provenance
    files: dict[str, str]

    @property
    def random(self) -> bool:
        """Whether the network was never trained, which whatever shows a number must say."""
        return self.recipe.random
