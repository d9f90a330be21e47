"""Settings of the heads that read cached features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.tasks import FeatureSet, Scaling
from pipeline.types import Frozen


class Head(Frozen):
    """What every head has: which features it sees, and scaled how, as the train units alone say.

    components: how many principal components `whiten` keeps at most.
    """

    features: FeatureSet = "cls"
    scaling: Scaling = "none"
    components: Annotated[int, Field(ge=1)] = 256


class Knn(Head):
    """FAISS kNN settings.

    multilabel: how neighbours vote on multi-label tasks: as on any other (DINOv2's soft vote), or
    by ML-kNN; "mlknn-paper" counts a training image among its own neighbours, as the code of
    arXiv 2312.02366 does. exact_up_to: how many references are all looked at; where there are more,
    an inverted file is asked, so many of its lists that the share `recall` of the true neighbours
    is found: faster from about 2,560 + 4 sqrt(references) test units on, and for ML-kNN, which asks
    about the references too. Unset, all are always looked at.
    """

    k: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10, 20, 50, 100, 200)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    multilabel: Literal["soft", "mlknn", "mlknn-paper"] = "soft"
    exact_up_to: Annotated[int, Field(ge=1)] | None = None
    recall: Annotated[float, Field(gt=0, le=1)] = 0.99


class Probe(Head):
    """Probe settings: C = 10^linspace(low, high, steps), chosen on validation.

    Regression is ridge with the penalty alpha = 1 / C.
    """

    features: FeatureSet = "cls+mean"
    low: float = -6
    high: float = 5
    steps: Annotated[int, Field(ge=1)] = 45


class Linear(Head):
    """The grid of linear heads of arXiv 2312.02366, by SGD: rates times parts of the features.

    The parts of cls4+mean are CLS of the last block or of the last four, with or without the mean
    patch token. DINOv2's own rates are 1e-5 to 0.1 times batch / 256.
    """

    features: FeatureSet = "cls4+mean"
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-3,
        5e-3,
        1e-2,
        5e-2,
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    batch: Annotated[int, Field(ge=1)] = 128
    seed: int = 0

    @model_validator(mode="after")
    def _columns_stay(self) -> Linear:
        if self.scaling == "whiten":
            raise ValueError(
                "The linear grid takes parts of the features, which whitening mixes. Set scaling "
                'to "none", "l2" or "standardise".'
            )
        return self


class Attention(Head):
    """Gated attention over a unit's slices, trained by AdamW; `epochs` at most, as val says."""

    scaling: Scaling = "standardise"
    hidden: Annotated[int, Field(ge=1)] = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0


class Efficiency(Probe):
    """Label efficiency: the probe fitted on `shots` patients a class, on twice as many, up to all.

    Each number of patients is drawn `draws` times, or fewer where the draws together would take
    more patients than there are (three at least), and scored on all test units.
    """

    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        1,
        2,
        4,
        8,
        16,
    )
    draws: Annotated[int, Field(ge=1)] = 10
    seed: int = 0


class FewShot(Head):
    """Few-shot settings: episodes of `shots` patients a class.

    head: the nearest centroid by cosine; SimpleShot, which first takes the mean of train and val
    from every feature; or logistic regression. draw: "paper" is the one draw of arXiv 2312.02366,
    fitted by the probe and scored on all test units.
    """

    draw: Literal["episodes", "paper"] = "episodes"
    head: Literal["centroid", "simpleshot", "logistic"] = "centroid"
    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16)
    queries: Annotated[int, Field(ge=1)] = 15
    episodes: Annotated[int, Field(ge=2)] = 600
    seed: int = 0
