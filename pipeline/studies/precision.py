"""How far features move between batch sizes, precisions and devices, and whether that matters.

The same slices are embedded each way. Rounding moves every feature a little; what counts is whether
a nearest neighbour becomes another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones.load import Backbone, load_recipe_backbone
from pipeline.backbones.weights import Checkpoint
from pipeline.config.root import Config
from pipeline.evaluation.neighbours import neighbours
from pipeline.extraction.recipes import locate_weights, recipe_with
from pipeline.inference.forward import Forward, Values
from pipeline.recipe import PatchTokens, Precision, Recipe
from pipeline.shared.devices import pick_device
from pipeline.studies.sample import Sample, take_sample
from stores.errors import ConfigError

K = 5
# Libraries take other kernels, and so other sums, at other batch sizes.
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Drift:
    """One way against float32, batches of one, on the CPU: cosines of CLS tokens, and neighbours.

    moved: the share of the k nearest neighbours of all slices that are others then.
    """

    device: str
    precision: Precision
    batch_size: int
    cosine_min: float
    cosine_mean: float
    moved: float
    k: int


def drift(config: Config, slices: int = 64, device: str = "auto") -> Iterator[Drift]:
    """Yield how far each way of computing the same features drifts.

    Raises ConfigError where the collection has too few slices for neighbours.
    """
    sample = sample_of(config, slices, "Drift")
    recipe, checkpoint = cls_recipe(config)
    baseline = features_of(load_network(recipe, checkpoint, "cpu", "float32"), sample, 1)
    for place in dict.fromkeys(["cpu", pick_device(device)]):  # once, where that is the CPU
        lower: tuple[Precision, ...] = ("bfloat16",) if place == "cpu" else ("bfloat16", "float16")
        for precision in ("float32", *lower):
            network = load_network(recipe, checkpoint, place, precision)
            for size in BATCH_SIZES:
                if (place, precision, size) == ("cpu", "float32", 1):  # the baseline itself
                    continue
                features = features_of(network, sample, size)
                cosine, moved = agreement(baseline, features)
                least = float(cosine.min())
                mean = float(cosine.mean())
                yield Drift(place, precision, size, least, mean, moved, K)
            del network  # before the next is loaded
            if place.startswith("cuda"):
                torch.cuda.empty_cache()


def sample_of(config: Config, slices: int, study: str) -> Sample:
    """Return some slices. Raises ConfigError where they are too few for neighbours."""
    sample = take_sample(config, slices)
    if len(sample.items) <= K:
        raise ConfigError(
            f"{study} needs more than {K} slices. Got {len(sample.items)} in "
            f"{str(config.data.root)!r} instead."
        )
    return sample


def agreement(
    baseline: NDArray[np.float32], features: NDArray[np.float32]
) -> tuple[NDArray[np.float64], float]:
    """Return the cosine (n,) of features (n, d) with their baseline, and the share that moved.

    Of the K nearest neighbours of all slices, that is: those that are others then.
    """
    cosine = (baseline * features).sum(1, dtype=np.float64)
    cosine /= np.linalg.norm(baseline.astype(np.float64), axis=1)
    cosine /= np.linalg.norm(features.astype(np.float64), axis=1)
    before = _nearest(baseline)
    after = _nearest(features)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True)]
    return cosine, 1 - sum(shared) / before.size


def _nearest(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (n, k): the nearest other slices of each."""
    rows = np.arange(len(x))
    _, nearest = neighbours(x, rows, rows, K, patient=rows)  # each its own patient: not itself
    return nearest


@dataclass(frozen=True)
class StudiedNetwork:
    """A network on a device, and the recipe of what it is to give: CLS tokens in float32."""

    backbone: Backbone
    recipe: Recipe


def cls_recipe(config: Config) -> tuple[Recipe, Checkpoint]:
    """Return a config's recipe for CLS tokens in float32, and its weights. Raises WeightsError."""
    weights = locate_weights(config)
    change = {"dtype": "float32", "outputs": ("cls",), "patch": PatchTokens()}
    recipe = recipe_with(config, weights).model_copy(update=change)
    return recipe, Checkpoint.of(config.backbone.name, weights)


def load_network(
    recipe: Recipe, checkpoint: Checkpoint, device: str, precision: Precision
) -> StudiedNetwork:
    """Load the network of a recipe at another precision. Raises WeightsError."""
    at_precision = recipe.model_copy(update={"precision": precision})
    backbone = load_recipe_backbone(at_precision, checkpoint, device=device)
    return StudiedNetwork(backbone, at_precision)


def features_of(network: StudiedNetwork, sample: Sample, batch_size: int) -> NDArray[np.float32]:
    """Return the last CLS token of each slice (n, d), in float32."""
    batches: list[Values] = []
    with closing(Forward(network.backbone, network.recipe, batch_size)) as forward:
        for start in range(0, len(sample.items), batch_size):
            some = slice(start, start + batch_size)
            seconds = dict.fromkeys(("preprocess", "forward"), 0.0)
            forward.run(sample.items[some], sample.modalities[some], batches.append, seconds)
        forward.flush()
    return np.concatenate([values["cls"][:, -1] for values in batches])
