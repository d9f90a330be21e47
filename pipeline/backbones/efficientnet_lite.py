"""EfficientNet-Lite (arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), written out.

A convolutional network small enough to come from a package index: with it a machine that no hub
reaches has features of trained weights. It is padded as TensorFlow pads ("SAME"), in which its
published weights were trained, and takes images whose side is a multiple of 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

NORM_EPS = 1e-3
STEM = 32
LAST = 1280


class Stage(NamedTuple):
    """A stage of EfficientNet-B0: so many blocks, the first of which may halve the grid."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# Size -> what widths and depths are multiplied by.
MULTIPLIERS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[misc]
    """Which of the networks lite0 to lite4 it is."""

    model_type = "efficientnet_lite"

    def __init__(self, size: int = 0, **others: Any) -> None:
        super().__init__(**others)
        self.size = size


class EfficientNetLite(PreTrainedModel):  # type: ignore[misc]
    """The network up to its last grid: no pooling and no classes behind it."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.embedder = _Unit(3, STEM, kernel=3, stride=2)
        blocks = list(_blocks(config.size))
        self.layers = nn.ModuleList(blocks)
        self.last = _Unit(blocks[-1].width, LAST)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave beginnings as torch has them; what is loaded or drawn takes their place."""

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        """Return the last grid (b, 1280, h, w) of images (b, 3, S, S)."""
        grid = self.embedder(pixel_values)
        for block in self.layers:
            grid = block(grid)
        return BaseModelOutput(last_hidden_state=self.last(grid))


class _Unit(nn.Module):
    """A convolution, batch norm and ReLU6, which `is_linear` leaves out."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        is_linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=NORM_EPS)
        self.is_linear = is_linear
        # TensorFlow's "SAME", of sides that the stride divides: the odd pixel comes last.
        total = kernel - stride
        self.padding = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        padded = pad(x, self.padding) if any(self.padding) else x
        normed: Tensor = self.norm(self.conv(padded))
        return normed if self.is_linear else torch.clamp(normed, 0, 6)


class _Block(nn.Module):
    """MBConv: widened, filtered channel by channel, narrowed; added to its input where both fit."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Identity() if expansion == 1 else _Unit(channels, inner)
        self.depthwise = _Unit(inner, inner, kernel, stride, groups=inner)
        self.project = _Unit(inner, width, is_linear=True)
        self.width = width
        self.is_added = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + output if self.is_added else output


def _blocks(size: int) -> Iterator[_Block]:
    """Yield the blocks of a size. Stem, first and last stage are as deep in every size."""
    by_width, by_depth = MULTIPLIERS[size]
    channels = STEM
    for number, stage in enumerate(STAGES):
        width = _rounded(stage.channels * by_width)
        is_fixed = number in (0, len(STAGES) - 1)
        repeats = stage.repeats if is_fixed else math.ceil(stage.repeats * by_depth)
        for i in range(repeats):
            stride = stage.stride if i == 0 else 1
            yield _Block(channels, width, stage.kernel, stride, stage.expansion)
            channels = width


def _rounded(width: float) -> int:
    """Return the multiple of 8 next to a width, at most a tenth below it."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
