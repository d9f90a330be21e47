"""The method transunet: a TransUNet trained from scratch on images (b, 3, S, S), for comparison.

A GPU is recommended: at full size an epoch on a CPU takes hours. `small` is of the same build, with
an eighth of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.segmentation import training
from pipeline.segmentation.contracts import Parts, Rows, TokenSource
from pipeline.segmentation.layers import convolution

Size = Literal["full", "small"]
# The ResNet halves the image's side so often that its grid is a 16th of it.
STRIDE = 16


@dataclass(frozen=True)
class Shape:
    """stem: channels at S / 2; blocks: of the ResNet's stages; and of the transformer on its grid:
    width, layers and attention heads.
    """

    stem: int
    blocks: tuple[int, int, int]
    dim: int
    layers: int
    heads: int


# full is R50-ViT-B/16.
SHAPES = {
    "full": Shape(stem=64, blocks=(3, 4, 9), dim=768, layers=12, heads=12),
    "small": Shape(stem=8, blocks=(1, 1, 1), dim=32, layers=2, heads=4),
}


class TransUNet(nn.Module):
    """TransUNet (Chen et al., arXiv 2102.04306): a ResNet, a transformer on its grid, a decoder.

    Group norm as there, but MONAI's residual blocks, without weight standardisation, and no
    dropout, since a network's result must not depend on which learning rates are trained along
    with it.
    """

    def __init__(self, classes: int, image_size: int, size: Size) -> None:
        super().__init__()
        shape = SHAPES[size]
        stem = shape.stem
        dim = shape.dim
        self.image_size = image_size
        self.resnet = _ResNet(stem, shape.blocks)
        grid = -(-image_size // STRIDE)
        self.embed = nn.Conv2d(16 * stem, dim, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, dim))
        layer = nn.TransformerEncoderLayer(
            dim,
            shape.heads,
            4 * dim,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.widen = convolution(dim, 8 * stem)
        # To S / 8, S / 4 and S / 2, each joined by the ResNet's features there.
        self.steps = nn.ModuleList(
            [
                _UpStep(8 * stem, 4 * stem, skip=8 * stem),
                _UpStep(4 * stem, 2 * stem, skip=4 * stem),
                _UpStep(2 * stem, stem, skip=stem),
            ]
        )
        self.last = _UpStep(stem, stem // 4, skip=0)
        self.classify = nn.Conv2d(stem // 4, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (b, c, S, S)."""
        *skips, x = self.resnet(_padded(image))
        h, w = x.shape[-2:]
        tokens = self.embed(x).flatten(2).transpose(1, 2)  # (b, h * w, d)
        tokens = self.transformer(tokens + self.positions)
        grid = tokens.transpose(1, 2).unflatten(2, (h, w))
        x = self.widen(grid)
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
        features = [self.stem(image)]
        x = self.pool(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class _UpStep(nn.Module):
    """Twice the size by bilinear interpolation, joined by a skip connection; two convolutions."""

    def __init__(self, before: int, after: int, skip: int) -> None:
        super().__init__()
        self.joins = nn.Sequential(convolution(before + skip, after), convolution(after, after))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        joined: Tensor = self.joins(x if skip is None else torch.cat((x, skip), dim=1))
        return joined


def _padded(image: Tensor) -> Tensor:
    """Return the image with zeros below and to the right, its sides multiples of the stride."""
    missing = -image.shape[-1] % STRIDE
    if not missing:
        return image
    return nn.functional.pad(image, (0, missing, 0, missing))


def build(source: TokenSource, rows: Rows, settings: Segment) -> TransUNet:
    """Return a network that has learned nothing, for images of the source's size."""
    return TransUNet(len(source.classes), source.image_size, settings.size)


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str
) -> training.TrainedHead:
    """Train the network; see `training.fit`."""
    return training.fit(build, source, parts, settings, device=device)
