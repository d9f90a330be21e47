"""The method unet: a U-Net trained from scratch on images (b, 3, S, S), for comparison.

A GPU is recommended: at full size an epoch on a CPU takes hours. `small` is of the same build, with
an eighth of the channels, and works at half the image's side.
"""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.config.segmentation import Segment
from pipeline.segmentation import training
from pipeline.segmentation.contracts import Parts, Rows, TokenSource

Size = Literal["full", "small"]
# Channels from the full grid down to a 16th of it; the last is the width before the classes.
WIDTHS = {
    "full": (64, 128, 256, 512, 1024, 64),
    "small": (8, 16, 32, 64, 128, 8),
}


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. (arXiv 1505.04597) with batch norm and ReLU.

    Images lie channels last, which a CPU works through a third faster.
    """

    def __init__(self, classes: int, size: Size) -> None:
        super().__init__()
        self.halved = size == "small"
        self.net = BasicUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=classes,
            features=WIDTHS[size],
            act=("relu", {"inplace": True}),
            norm="batch",
            upsample="deconv",
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        x = avg_pool2d(image, 2, ceil_mode=True) if self.halved else image
        logits: Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        if not self.halved:
            return logits
        return interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def build(source: TokenSource, rows: Rows, settings: Segment) -> UNet:
    """Return a network that has learned nothing; it takes images of any size."""
    return UNet(len(source.classes), settings.size)


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str
) -> training.TrainedHead:
    """Train the network; see `training.fit`."""
    return training.fit(build, source, parts, settings, device=device)
