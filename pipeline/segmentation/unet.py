"""Networks trained from scratch on images (b, 3, S, S), for comparison: U-Net and TransUNet.

A GPU is recommended: at full size an epoch on a CPU takes hours. `small` is of the same build, with
an eighth of the channels; its U-Net works at half the image's side.
"""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.segmentation.token_heads import convolution

Size = Literal["full", "small"]
# The last is the width before the classes.
UNET_WIDTHS = {
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
            features=UNET_WIDTHS[size],
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


class TransUNet(nn.Module):
    """TransUNet (Chen et al., arXiv 2102.04306): a ResNet, a transformer on its grid, a decoder.

    full is R50-ViT-B/16 (3, 4 and 9 blocks, then 12 layers of 768): group norm as there, but
    MONAI's residual blocks, without weight standardisation, and no dropout, since a network's
    result must not depend on which learning rates are trained beside it.
    """

    def __init__(self, classes: int, image_size: int, size: Size) -> None:
        super().__init__()
        full = size == "full"
        stem, dim, layers, heads = (64, 768, 12, 12) if full else (8, 32, 2, 4)
        wide = (16 * stem, 8 * stem, 4 * stem, stem)  # at S / 16, S / 8, S / 4 and S / 2
        self.image_size = image_size
        self.resnet = _ResNet(stem, (3, 4, 9) if full else (1, 1, 1))
        grid = -(-image_size // 16)
        self.embed = nn.Conv2d(wide[0], dim, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.widen = convolution(dim, 8 * stem)
        ups = ((8, 4, wide[1]), (4, 2, wide[2]), (2, 1, wide[3]))
        self.steps = nn.ModuleList(_Up(a * stem, b * stem, skip) for a, b, skip in ups)
        self.last = _Up(stem, stem // 4, 0)
        self.classify = nn.Conv2d(stem // 4, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        *skips, x = self.resnet(_padded(image))
        h, w = x.shape[-2:]
        tokens = self.embed(x).flatten(2).transpose(1, 2)  # (b, h * w, d)
        x = self.transformer(tokens + self.positions).transpose(1, 2).unflatten(2, (h, w))
        x = self.widen(x)
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
        logits: Tensor = self.classify(self.last(x))
        return logits[:, :, : self.image_size, : self.image_size]


class _ResNet(nn.Module):
    """The first three stages of a ResNet: features at S / 2, S / 4, S / 8 and S / 16."""

    def __init__(self, stem: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        net = ResNet(
            ResNetBottleneck,
            [*blocks, 1],
            [stem, 2 * stem, 4 * stem, 8 * stem],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            feed_forward=False,
            norm=("group", {"num_groups": stem // 2}),
        )
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act)
        self.pool = net.maxpool
        self.stages = nn.ModuleList((net.layer1, net.layer2, net.layer3))

    def forward(self, image: Tensor) -> list[Tensor]:
        found = [self.stem(image)]
        x = self.pool(found[0])
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Up(nn.Module):
    """Twice the size by bilinear interpolation, joined by a skip connection; two convolutions."""

    def __init__(self, before: int, after: int, skip: int) -> None:
        super().__init__()
        self.joins = nn.Sequential(convolution(before + skip, after), convolution(after, after))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        joined: Tensor = self.joins(x if skip is None else torch.cat((x, skip), dim=1))
        return joined


def _padded(image: Tensor) -> Tensor:
    """Return the image with zeros below and to the right, its sides multiples of 16."""
    missing = -image.shape[-1] % 16
    return nn.functional.pad(image, (0, missing, 0, missing)) if missing else image
