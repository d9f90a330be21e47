"""The method image-decoder: the last block's patch tokens, and the image for the borders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.segmentation import training
from pipeline.segmentation.contracts import Parts, Rows, TokenSource
from pipeline.segmentation.layers import convolution

# Channels at S / 4, S / 2 and S.
WIDTHS = (64, 32, 16)


class ImageDecoder(nn.Module):
    """A light decoder of the last block's tokens that sees the image for the borders.

    Tokens are brought to S / 4, S / 2 and S, and joined there by convolutions of the image.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        quarter, half, full = WIDTHS
        self.tokens = nn.Conv2d(dim, quarter, 1)
        # Down the image: at S, S / 2 and S / 4.
        self.image = nn.ModuleList(
            [convolution(3, full, 1), convolution(full, half, 2), convolution(half, quarter, 2)]
        )
        # Up from the tokens: what came so far, and the image at S / 4, S / 2 and S.
        self.joins = nn.ModuleList(
            [
                convolution(quarter + quarter, quarter),
                convolution(quarter + half, half),
                convolution(half + full, full),
            ]
        )
        self.classify = nn.Conv2d(full, classes, 1)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Return logits (b, c, S, S) of tokens (b, l, h, w, d) and images (b, 3, S, S)."""
        pictures = []
        picture = image
        for layer in self.image:
            picture = layer(picture)
            pictures.append(picture)
        x = self.tokens(tokens[:, -1].permute(0, 3, 1, 2))
        for join, picture in zip(self.joins, reversed(pictures), strict=True):
            x = interpolate(x, picture.shape[-2:], mode="bilinear", align_corners=False)
            x = join(torch.cat((x, picture), dim=1))
        logits: Tensor = self.classify(x)
        return logits


def build(source: TokenSource, rows: Rows, settings: Segment) -> ImageDecoder:
    """Return a decoder that has learned nothing, as wide as the tokens of the first row."""
    dim = source.tokens(rows[:1]).shape[-1]
    return ImageDecoder(dim, len(source.classes))


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str
) -> training.TrainedHead:
    """Train the decoder; see `training.fit`."""
    return training.fit(build, source, parts, settings, device=device)
