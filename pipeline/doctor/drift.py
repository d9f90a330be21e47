"""How far features move between batch sizes, precisions and devices, and whether that matters.

The same slices are embedded each way. Rounding moves every feature a little; what counts is whether
a nearest neighbour becomes another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones import load_backbone
from pipeline.collection import make_recipe
from pipeline.config import Config
from pipeline.doctor.sample import Sample, take_sample
from pipeline.embedding.forward import Forward, Values, pick_device
from pipeline.neighbours import neighbours
from pipeline.types import Precision
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
    sample = take_sample(config, slices)
    if len(sample.items) <= K:
        raise ConfigError(
            f"Drift needs more than {K} slices. Got {len(sample.items)} in "
            f"{str(config.data.root)!r} instead."
        )
    want = features_of(config, sample, "cpu", "float32", 1)
    devices = list(dict.fromkeys(["cpu", pick_device(device)]))
    for where in devices:
        lower: tuple[Precision, ...] = ("bfloat16",) if where == "cpu" else ("bfloat16", "float16")
        for precision in ("float32", *lower):
            for size in (1, 8, 32):
                if (where, precision, size) == ("cpu", "float32", 1):
                    continue
                got = features_of(config, sample, where, precision, size)
                yield held(where, precision, size, want, got)


def held(
    device: str,
    precision: Precision,
    size: int,
    want: NDArray[np.float32],
    got: NDArray[np.float32],
) -> Drift:
    """Return how far features (n, d) are off those that are wanted."""
    near = _near(want)
    cosine = (want * got).sum(1, dtype=np.float64)
    cosine /= np.linalg.norm(want.astype(np.float64), axis=1)
    cosine /= np.linalg.norm(got.astype(np.float64), axis=1)
    kept = [len(np.intersect1d(a, b)) for a, b in zip(near, _near(got), strict=True)]
    moved = 1 - sum(kept) / near.size
    return Drift(
        device, precision, size, float(cosine.min()), float(cosine.mean()), moved, near.shape[1]
    )


def _near(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (n, k): the nearest other slices of each."""
    rows = np.arange(len(x))
    _, found = neighbours(x, rows, rows, K, patient=rows)  # each its own patient: not itself
    return found


def features_of(
    config: Config, sample: Sample, device: str, precision: Precision, batch_size: int
) -> NDArray[np.float32]:
    """Return the last CLS token of each slice (n, d), in float32."""
    recipe, file = make_recipe(config)
    recipe = recipe.model_copy(
        update={"precision": precision, "dtype": "float32", "outputs": ("cls",)}
    )
    network = load_backbone(
        config.backbone.name,
        file or recipe.weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        device=device,
        precision=precision,
        treatment=recipe.architecture.treatment,
    )
    forward, found = Forward(network, recipe, batch_size), list[Values]()
    for start in range(0, len(sample.items), batch_size):
        some = slice(start, start + batch_size)
        seconds = dict.fromkeys(("preprocess", "forward"), 0.0)
        forward.run(sample.items[some], sample.modalities[some], found.append, seconds)
    forward.flush()
    del network, forward
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return np.concatenate([values["cls"][:, -1] for values in found])
