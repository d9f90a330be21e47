"""The inflated 3D ResNet of Merlin (Blankemeier et al., arXiv 2406.06512) and Astra.

A 2D bottleneck ResNet whose convolutions have a third axis: tensors are named as in the authors'
files, so that these load strictly. tests/pipeline/backbones/test_volume_networks.py holds it
against the authors' own class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Channels out of a bottleneck for each channel within it.
EXPANSION = 4


class Bottleneck(nn.Module):
    """Three convolutions with what came in added; the second one steps."""

    def __init__(self, channels: int, inner: int, stride: int = 1, *, first: bool = False) -> None:
        super().__init__()
        out = inner * EXPANSION
        self.conv1 = nn.Conv3d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.downsample: nn.Module = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 4 inner, ...) of x (b, channels, ...)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.downsample(x))


class I3ResNet(nn.Module):
    """The network; layers: bottlenecks of each of the four stages, [3, 8, 36, 3] of 152."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels = 64
        for i, blocks in enumerate(layers):
            inner = 64 * 2**i
            stage = [Bottleneck(channels, inner, stride=1 if i == 0 else 2, first=True)]
            channels = inner * EXPANSION
            stage += [Bottleneck(channels, inner) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = len(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last grid (b, d, Z', X', Y') of volumes x (b, 1, X, Y, Z)."""
        x = x.permute(0, 1, 4, 2, 3)
        x = x.expand(-1, 3, -1, -1, -1)  # three colours, all alike
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x
