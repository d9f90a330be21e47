"""Heads on patch tokens: from (b, l, h, w, d) to logits (b, c, S, S).

The linear head and the decoder are those of arXiv 2312.02366, as its text and code describe them;
the one with batch norm is DINOv2's BNHead (facebookresearch/dinov2, eval/segmentation).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

WEIGHT_STD = 0.01
# Channels of the decoder that sees the image, at S / 4, S / 2 and S.
WIDTHS = (64, 32, 16)


class Linear(nn.Module):
    """A 1x1 convolution on the last block's tokens, bilinear to full size; before it a batch norm.

    Weights are drawn from N(0, 0.01), the bias is 0.
    """

    def __init__(self, dim: int, classes: int, size: int, *, norm: bool) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.BatchNorm1d(dim) if norm else None
        self.classify = nn.Linear(dim, classes)
        nn.init.normal_(self.classify.weight, std=WEIGHT_STD)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        x = tokens[:, -1]  # (b, h, w, d)
        if self.norm is not None:
            x = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        logits = self.classify(x).permute(0, 3, 1, 2)
        return interpolate(logits, (self.size, self.size), mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """A U-Net's way up from the last block, with the four blocks before it as skip connections.

    Each step doubles the grid: d, d/2, d/4, d/8, c channels, so that 16 times the grid is reached,
    which is then resized to the image by bicubic interpolation.
    """

    BLOCKS = 5

    def __init__(self, dim: int, classes: int, size: int) -> None:
        super().__init__()
        self.size = size
        widths = (dim, dim // 2, dim // 4, dim // 8, classes)
        self.steps = nn.ModuleList(
            _Up(dim, before, after) for before, after in itertools.pairwise(widths)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        *earlier, x = (block.permute(0, 3, 1, 2) for block in tokens.unbind(1))
        for step, skip in zip(self.steps, reversed(earlier), strict=True):
            x = step(x, skip)
        return interpolate(x, (self.size, self.size), mode="bicubic", align_corners=False)


class _Up(nn.Module):
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


class ImageDecoder(nn.Module):
    """A light decoder of the last block's tokens that sees the image for the borders.

    Tokens are brought to S / 4, S / 2 and S, and joined there by convolutions of the image.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(dim, WIDTHS[0], 1)
        self.image = nn.ModuleList(
            convolution(before, after, stride)
            for before, after, stride in (
                (3, WIDTHS[2], 1),
                (WIDTHS[2], WIDTHS[1], 2),
                (WIDTHS[1], WIDTHS[0], 2),
            )
        )
        inputs = (WIDTHS[0], *WIDTHS)
        self.joins = nn.ModuleList(
            convolution(before + width, width)
            for before, width in zip(inputs, WIDTHS, strict=False)
        )
        self.classify = nn.Conv2d(WIDTHS[-1], classes, 1)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        seen = [image]
        for layer in self.image:
            seen.append(layer(seen[-1]))
        x = self.tokens(tokens[:, -1].permute(0, 3, 1, 2))
        for join, picture in zip(self.joins, reversed(seen[1:]), strict=True):
            x = interpolate(x, picture.shape[-2:], mode="bilinear", align_corners=False)
            x = join(torch.cat((x, picture), dim=1))
        logits: Tensor = self.classify(x)
        return logits


def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
