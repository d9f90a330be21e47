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

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.evaluation.neighbours import neighbours
from pipeline.extraction.sync import make_recipe
from pipeline.inference.forward import Forward, Values, pick_device
from pipeline.recipe import Precision, Recipe
from pipeline.studies.sample import Sample, take_sample
from stores.errors import ConfigError

K = 5


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
    want = features_of(network_of(config, "cpu", "float32"), sample, 1)
    for where in dict.fromkeys(["cpu", pick_device(device)]):
        lower: tuple[Precision, ...] = ("bfloat16",) if where == "cpu" else ("bfloat16", "float16")
        for precision in ("float32", *lower):
            network = network_of(config, where, precision)
            for size in (1, 8, 32):
                if (where, precision, size) == ("cpu", "float32", 1):
                    continue
                cosine, moved = held(want, features_of(network, sample, size))
                least, mean = float(cosine.min()), float(cosine.mean())
                yield Drift(where, precision, size, least, mean, moved, K)
            del network  # before the next is loaded
            if where.startswith("cuda"):
                torch.cuda.empty_cache()


def sample_of(config: Config, slices: int, what: str) -> Sample:
    """Return some slices. Raises ConfigError where they are too few for neighbours."""
    sample = take_sample(config, slices)
    if len(sample.items) <= K:
        raise ConfigError(
            f"{what} needs more than {K} slices. Got {len(sample.items)} in "
            f"{str(config.data.root)!r} instead."
        )
    return sample


def held(want: NDArray[np.float32], got: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Return the cosine (n,) of features (n, d) with those wanted, and the share that moved.

    Of the K nearest neighbours of all slices, that is: those that are others then.
    """
    near = _near(want)
    cosine = (want * got).sum(1, dtype=np.float64)
    cosine /= np.linalg.norm(want.astype(np.float64), axis=1)
    cosine /= np.linalg.norm(got.astype(np.float64), axis=1)
    kept = [len(np.intersect1d(a, b)) for a, b in zip(near, _near(got), strict=True)]
    return cosine, 1 - sum(kept) / near.size


def _near(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (n, k): the nearest other slices of each."""
    rows = np.arange(len(x))
    _, found = neighbours(x, rows, rows, K, patient=rows)  # each its own patient: not itself
    return found


@dataclass(frozen=True)
class Network:
    """A network on a device, and the recipe of what is asked of it: CLS tokens in float32."""

    backbone: Backbone
    recipe: Recipe


def network_of(config: Config, device: str, precision: Precision) -> Network:
    """Load the network of a config. Raises WeightsError."""
    recipe, file = make_recipe(config)
    recipe = recipe.model_copy(
        update={"precision": precision, "dtype": "float32", "outputs": ("cls",)}
    )
    backbone = load_backbone(
        config.backbone.name,
        file or recipe.weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        device=device,
        precision=precision,
        treatment=recipe.architecture.treatment,
    )
    return Network(backbone, recipe)


def features_of(network: Network, sample: Sample, batch_size: int) -> NDArray[np.float32]:
    """Return the last CLS token of each slice (n, d), in float32."""
    found: list[Values] = []
    with closing(Forward(network.backbone, network.recipe, batch_size)) as forward:
        for start in range(0, len(sample.items), batch_size):
            some = slice(start, start + batch_size)
            seconds = dict.fromkeys(("preprocess", "forward"), 0.0)
            forward.run(sample.items[some], sample.modalities[some], found.append, seconds)
        forward.flush()
    return np.concatenate([values["cls"][:, -1] for values in found])
