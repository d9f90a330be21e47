"""How far features move when the image does: noise, a shift of intensities, a turn, JPEG.

The same slices are embedded as they are and as each view of them. What a network does not see past
moves features that a second scan of the same patient would move as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config.root import Config
from pipeline.evaluation.metrics.agreement import icc
from pipeline.preprocessing.perturb import OF_A_SLICE
from pipeline.shared.devices import pick_device
from pipeline.studies.precision import (
    K,
    agreement,
    cls_recipe,
    features_of,
    load_network,
    sample_of,
)

BATCH = 8


@dataclass(frozen=True)
class Stability:
    """One view against the slices as they are.

    icc: the median over the numbers of a feature of ICC(A,1), icc_low: their 5th percentile;
    cosine_mean: of CLS tokens; moved: the share of the k nearest neighbours that are others then.
    """

    view: str
    icc: float
    icc_low: float
    cosine_mean: float
    moved: float
    k: int


def stability(config: Config, slices: int = 64, device: str = "auto") -> Iterator[Stability]:
    """Yield how far features agree with those of each view.

    Raises ConfigError where the collection has too few slices for neighbours.
    """
    sample = sample_of(config, slices, "Stability")
    recipe, checkpoint = cls_recipe(config)
    network = load_network(recipe, checkpoint, pick_device(device), "float32")
    baseline = features_of(network, sample, BATCH)
    for view, words in OF_A_SLICE.items():
        # By the recipe, as `extract` would: what a rule undoes is changed after it was scaled.
        preprocess = recipe.preprocess.model_copy(update={"view": view})
        seen = recipe.model_copy(update={"preprocess": preprocess})
        features = features_of(replace(network, recipe=seen), sample, BATCH)
        # (n, 2, d): the two are repeats of one measurement.
        agreements = icc(np.stack([baseline, features], axis=1))
        low, middle = np.nanquantile(agreements, [0.05, 0.5]).tolist()
        cosine, moved = agreement(baseline, features)
        yield Stability(words, middle, low, float(cosine.mean()), moved, K)
