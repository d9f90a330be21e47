"""A head in one module: every pixel is of the structure that the training masks have most of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.segmentation import Segment
from pipeline.segmentation.contracts import Parts, Rows, TokenSource


@dataclass(frozen=True)
class LargestStructure:
    """See `contracts.FittedHead`."""

    value: int
    setting: dict[str, float]
    notes: tuple[str, ...] = ("all pixels are of one structure",)
    seconds: float = 0.0

    def predict(self, source: TokenSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        size = source.image_size
        for row in rows.tolist():
            yield row, np.full((size, size), self.value, np.uint8)


def fit(source: TokenSource, parts: Parts, settings: Segment, *, device: str) -> LargestStructure:
    pixels = np.bincount(source.masks(parts["train"]).ravel(), minlength=len(source.classes))
    return LargestStructure(int(pixels[1:].argmax()) + 1, {"pixels": float(pixels[1:].max())})
