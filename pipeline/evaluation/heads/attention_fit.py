"""The network of gated attention over slices.

Ilse, Tomczak and Welling, arXiv 1802.04712, eqs. 8 and 9, on cached features. Dims: s slices of
the largest unit of a batch, d features, h hidden, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.evaluation.heads import over_slices
from pipeline.evaluation.heads.attention import AttentionSettings
from pipeline.evaluation.heads.contract import FitInput, HeadState, Predictor
from pipeline.evaluation.heads.over_slices import Build, SliceModel, SliceNetwork


class GatedAttention(SliceNetwork):
    """Weighs slices (b, s, d) by softmax(w (tanh Vx * sigmoid Ux)) and classifies their mean."""

    def __init__(self, d: int, hidden: int, o: int) -> None:
        super().__init__()
        self.content = nn.Linear(d, hidden)
        self.gate = nn.Linear(d, hidden)
        self.weigh = nn.Linear(hidden, 1)
        self.classify = nn.Linear(d, o)

    @property
    def shape(self) -> dict[str, int]:
        """The settings that it is built by again."""
        return {"hidden": self.weigh.in_features}

    def weights(self, slices: Tensor, there: Tensor) -> Tensor:
        """Return (b, s) what each slice counts; there (b, s): whether it is one."""
        content = torch.tanh(self.content(slices))  # (b, s, h)
        gate = torch.sigmoid(self.gate(slices))
        scores: Tensor = self.weigh(content * gate)[..., 0]
        # What pads a smaller unit counts nothing.
        masked = scores.masked_fill(~there, -torch.inf)
        return torch.softmax(masked, dim=1)

    def forward(self, slices: Tensor, there: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (b, o) and weights (b, s); where a slice lies has no say."""
        weights = self.weights(slices, there)
        pooled = (weights[..., None] * slices).sum(dim=1)  # (b, d)
        return self.classify(pooled), weights


def fit(given: FitInput[AttentionSettings]) -> SliceModel:
    """Train gated attention; see `over_slices.fit`."""
    return over_slices.fit(given, "attention", _build(given.settings.hidden))


def from_state(state: HeadState) -> Predictor:
    """Return what a filed network says of units, from the features (m, d) of their slices."""
    build = _build(int(state.about["hidden"]))
    return over_slices.from_state(state, state.arrays["classify.weight"].shape[1], build)


def _build(hidden: int) -> Build:
    return lambda d, o: GatedAttention(d, hidden, o)
