"""The method decoder: a U-Net's way up over the patch tokens of five blocks.

As the text and code of arXiv 2312.02366 describe it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.segmentation import training
from pipeline.segmentation.contracts import Parts, Rows, TokenSource
from pipeline.segmentation.layers import convolution
from stores.errors import ConfigError

BLOCKS = 5


class Decoder(nn.Module):
    """A U-Net's way up from the last block, with the four blocks before it as skip connections.

    Each step doubles the grid: d, d/2, d/4, d/8, c channels, so that 16 times the grid is reached,
    which is then resized to the image by bicubic interpolation.
    """

    def __init__(self, dim: int, classes: int, size: int) -> None:
        super().__init__()
        self.size = size
        widths = (dim, dim // 2, dim // 4, dim // 8, classes)
        self.steps = nn.ModuleList(
            _DecoderStep(dim, before, after) for before, after in itertools.pairwise(widths)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (b, c, S, S) of tokens (b, 5, h, w, d)."""
        *earlier, x = (block.permute(0, 3, 1, 2) for block in tokens.unbind(1))
        for step, skip in zip(self.steps, reversed(earlier), strict=True):
            x = step(x, skip)
        return interpolate(x, (self.size, self.size), mode="bicubic", align_corners=False)


class _DecoderStep(nn.Module):
    """One step of the decoder: twice the grid, joined by an earlier block's tokens."""

    def __init__(self, dim: int, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 2, stride=2)
        self.skip = convolution(dim, after)
        self.join = convolution(2 * after, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        skip = interpolate(self.skip(skip), x.shape[-2:], mode="bilinear", align_corners=True)
        joined: Tensor = self.join(torch.cat((x, skip), dim=1))
        return joined


def build(source: TokenSource, rows: Rows, settings: Segment) -> Decoder:
    """Return a decoder that has learned nothing. Raises ConfigError of too few blocks' tokens."""
    _, blocks, _, _, dim = source.tokens(rows[:1]).shape
    if blocks < BLOCKS:
        raise ConfigError(
            f"The decoder needs the patch tokens of {BLOCKS} blocks, and the store "
            f"has {blocks}. Extract a store with outputs.patch.blocks: {BLOCKS}."
        )
    return Decoder(dim, len(source.classes), source.image_size)


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str
) -> training.TrainedHead:
    """Train the decoder; see `training.fit`."""
    return training.fit(build, source, parts, settings, device=device)
