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
from pipeline.preprocessing.perturb import OF_A_SLICE, viewed
from pipeline.studies.precision import K, features_of, held, network_of, sample_of

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
    from pipeline.inference.forward import pick_device

    sample = sample_of(config, slices, "Stability")
    network = network_of(config, pick_device(device), "float32")
    want = features_of(network, sample, BATCH)
    for view, said in OF_A_SLICE.items():
        items = [viewed(item, view) for item in sample.items]
        got = features_of(network, replace(sample, items=items), BATCH)
        found = icc(np.stack([want, got], axis=1))
        low, middle = np.nanquantile(found, [0.05, 0.5]).tolist()
        cosine, moved = held(want, got)
        yield Stability(said, middle, low, float(cosine.mean()), moved, K)
