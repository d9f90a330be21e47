"""How far features move when the image does: noise, a shift of intensities, a turn, JPEG.

The same slices are embedded as they are and as each view of them. What a network does not see past
moves features that a second scan of the same patient would move as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Config
from pipeline.doctor.drift import K, features_of, held, network_of, sample_of
from pipeline.stats.agreement import icc

BATCH = 8
Pixels = NDArray[np.float32]


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
    from pipeline.embedding.forward import pick_device

    sample = sample_of(config, slices, "Stability")
    network = network_of(config, pick_device(device), "float32")
    want = features_of(network, sample, BATCH)
    for name, view in VIEWS.items():
        items = [
            replace(item, pixels=view(_filled(item.pixels), np.random.default_rng(i)))
            for i, item in enumerate(sample.items)
        ]
        got = features_of(network, replace(sample, items=items), BATCH)
        found = icc(np.stack([want, got], axis=1))
        low, middle = np.nanquantile(found, [0.05, 0.5]).tolist()
        cosine, moved = held(want, got)
        yield Stability(name, middle, low, float(cosine.mean()), moved, K)


# --- views ---------------------------------------------------------------------------------------


def _filled(pixels: Pixels) -> Pixels:
    """Return pixels with padding at the darkest value."""
    pixels = pixels.astype(np.float32)
    return np.where(np.isnan(pixels), np.nanmin(pixels), pixels)


def _range(pixels: Pixels) -> float:
    """Return how far apart the 1st and the 99th percentile are."""
    low, high = np.quantile(pixels, [0.01, 0.99])
    return float(high - low) or float(np.ptp(pixels)) or 1.0


def _noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    noise = rng.normal(0, 0.02 * _range(pixels), pixels.shape)
    return (pixels + noise).astype(np.float32)


def _shift(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels + np.float32(0.05 * _range(pixels))


def _turn(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    from scipy import ndimage

    turned: Pixels = ndimage.rotate(pixels, 5, reshape=False, order=1, mode="nearest")
    return turned


def _jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    low, high = float(pixels.min()), float(pixels.max())
    scale = (high - low) / 255 or 1.0
    sink = io.BytesIO()
    Image.fromarray(((pixels - low) / scale).round().astype(np.uint8)).save(
        sink, "JPEG", quality=50
    )
    with Image.open(sink, formats=("JPEG",)) as image:
        return (np.asarray(image, np.float32) * scale + low).astype(np.float32)


VIEWS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "noise of 2 % of the range": _noise,
    "shift by 5 % of the range": _shift,
    "turn by 5 degrees": _turn,
    "JPEG of quality 50": _jpeg,
}
