"""A source over arrays whose masks can be read off its tokens, and as well off its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.segmentation.contracts import Parts

GRID, PATCH, DIM = 8, 4, 16


@dataclass
class Planted:
    """n slices of 32 px with two squares each, of one class each, on a background.

    A patch's token is the shares of the classes in it, through a matrix, and noise; the image has a
    grey level for each class, and noise. reads: the rows of each call of `tokens`.
    """

    n: int
    blocks: int = 1
    seed: int = 0
    chunk_rows: int = 4
    dtype: str = "float16"
    classes: tuple[str, ...] = ("background", "left", "right")
    image_size: int = GRID * PATCH
    reads: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        size = self.image_size
        self.all_masks: NDArray[np.uint8] = np.zeros((self.n, size, size), np.uint8)
        for mask in self.all_masks:
            for value in (1, 2):
                y, x = rng.integers(0, 3, 2) * PATCH
                x += (value - 1) * size // 2
                mask[y : y + 4 * PATCH, x : x + 2 * PATCH] = value
        one_hot = np.eye(3)[self.all_masks]
        shares = one_hot.reshape(self.n, GRID, PATCH, GRID, PATCH, 3).mean(axis=(2, 4))
        basis = rng.standard_normal((self.blocks, 3, DIM))
        tokens = np.einsum("nhwc,lcd->nlhwd", shares, basis)
        tokens += 0.1 * rng.standard_normal(tokens.shape)
        self.all_tokens: NDArray[Any] = tokens.astype(self.dtype)
        grey = np.array([0.0, 1.0, 2.0])[self.all_masks] - 0.5
        grey = grey + 0.1 * rng.standard_normal(grey.shape)
        self.all_images = np.repeat(grey[:, None], 3, axis=1).astype(np.float32)

    @property
    def parts(self) -> Parts:
        rows = np.arange(self.n)
        return {
            "train": rows[rows % 4 < 2],
            "val": rows[rows % 4 == 2],
            "test": rows[rows % 4 == 3],
        }

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        self.reads.append(rows)
        return self.all_tokens[rows]

    def masks(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.all_masks[rows]

    def images(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.all_images[rows]
