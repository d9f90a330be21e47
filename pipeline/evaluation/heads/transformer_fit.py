"""The network of the transformer over slices.

Müller-Franzes et al., Medical Slice Transformer, arXiv 2411.15802: the CLS tokens of a volume's
slices, where each lies, and a class token go through a transformer, whose class token is
classified; what a slice counts is how much of the class token's attention it has. As theirs, the
layers are of norms first and have no dropout. Otherwise than theirs, a slice's place is no number
of a learned table but its place along the volume (`Units.z`) as sines and cosines, so that volumes
of any number of slices are alike; and features are brought to a width first.

Dims: s slices of the largest unit of a batch, d features, w width, a heads, o outputs.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from pipeline.evaluation.heads import over_slices
from pipeline.evaluation.heads.contract import FitInput, HeadState, Predictor
from pipeline.evaluation.heads.over_slices import SliceModel, SliceNetwork
from pipeline.evaluation.heads.transformer import TransformerSettings
from stores.errors import ConfigError

# The shortest wave that tells places apart is twice this part of a volume.
_FINEST = 1 / 128


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (b, s + 1, w), and (b, s + 1) the attention of the first token, over heads."""
        normed = self.norm(x)
        mixed, attention = self.attention(normed, normed, normed, key_padding_mask=~there)
        x = x + mixed
        x = x + self.feed(self.feed_norm(x))
        return x, attention[:, 0]


class SliceTransformer(SliceNetwork):
    """Classifies a token that has attended to the slices (b, s, d) of a unit."""

    def __init__(self, width: int, layers: int, heads: int, d: int, o: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(d, width)
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, o)

    @property
    def shape(self) -> dict[str, int]:
        """The settings that it is built by again."""
        width = self.token.shape[0]
        return {"width": width, "layers": len(self.layers), "heads": self.heads}

    def forward(self, slices: Tensor, there: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (b, o), and the class token's attention in the last layer, (b, s)."""
        width = self.token.shape[0]
        tokens = self.enter(slices) + waves(z, width)
        first = self.token.expand(len(slices), 1, width)
        x = torch.cat([first, tokens], dim=1)
        there = torch.cat([there.new_ones(len(there), 1), there], dim=1)
        attention = x.new_zeros(())
        for layer in self.layers:
            x, attention = layer(x, there)
        # What the token attends to of itself says nothing of slices.
        of_slices = attention[:, 1:]
        total = of_slices.sum(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return self.classify(self.norm(x[:, 0])), of_slices / total


def waves(z: Tensor, width: int) -> Tensor:
    """Return (b, s, w) places z (b, s) in [0, 1] as sines and cosines, long waves and short."""
    half = width // 2
    steps = torch.arange(half, device=z.device) / max(1, half - 1)
    frequency = math.pi * _FINEST**-steps
    angle = z[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def fit(given: FitInput[TransformerSettings]) -> SliceModel:
    """Train the transformer; see `over_slices.fit`. Raises ConfigError for heads of no width."""
    settings = given.settings
    if settings.width % settings.heads:
        raise ConfigError(
            f"transformer.width must be a multiple of transformer.heads. Got {settings.width} and "
            f"{settings.heads} instead."
        )
    build = functools.partial(SliceTransformer, settings.width, settings.layers, settings.heads)
    return over_slices.fit(given, "transformer", build)


def from_state(state: HeadState) -> Predictor:
    """Return what a filed network says of units, from the features (m, d) of their slices."""
    shape = [int(state.about[name]) for name in ("width", "layers", "heads")]
    build = functools.partial(SliceTransformer, *shape)
    return over_slices.from_state(state, state.arrays["enter.weight"].shape[1], build)
