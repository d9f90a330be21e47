"""The network of attention over slices: each slice has evidence of its own, and counts by it.

For each output the evidence is that of gated units (as the weights are of Ilse, Tomczak and
Welling, arXiv 1802.04712, eq. 9); it is averaged over slices by a softmax of itself whose sharpness
is learnt (auto-pool of McFee, Salamon and Bello, arXiv 1804.10070), here from the mean on, so that
whichever class a slice speaks for is found alike. Where weights are learnt apart from what slices
say, a model may be right and look elsewhere. Dims: s slices of the largest unit of a batch, d
features, h hidden, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.evaluation.heads import over_slices
from pipeline.evaluation.heads.attention import AttentionSettings
from pipeline.evaluation.heads.contract import FitInput, HeadState, Predictor
from pipeline.evaluation.heads.over_slices import Build, SliceModel, SliceNetwork

# So many times as far as other parameters goes the sharpness in a step: it begins at 0, the mean,
# and ends at tens where one slice decides.
_SHARPENS = 30.0


class EvidenceAttention(SliceNetwork):
    """Averages the evidence of slices (b, s, d), weighed by a softmax of it, for each output."""

    def __init__(self, d: int, hidden: int, o: int) -> None:
        super().__init__()
        self.content = nn.Linear(d, hidden)
        self.gate = nn.Linear(d, hidden)
        self.evidence = nn.Linear(hidden, o)
        self.sharpness = nn.Parameter(torch.zeros(o))

    @property
    def shape(self) -> dict[str, int]:
        """The settings that it is built by again."""
        return {"hidden": self.evidence.in_features}

    def forward(self, slices: Tensor, there: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (b, o) and weights (b, s), the mean of each output's.

        Where a slice lies has no say.
        """
        content = torch.tanh(self.content(slices))  # (b, s, h)
        gate = torch.sigmoid(self.gate(slices))
        evidence = self.evidence(content * gate)  # (b, s, o)
        scores = _SHARPENS * self.sharpness * evidence
        # What pads a smaller unit counts nothing.
        masked = scores.masked_fill(~there[..., None], -torch.inf)
        weights = torch.softmax(masked, dim=1)
        return (weights * evidence).sum(dim=1), weights.mean(dim=2)


def fit(given: FitInput[AttentionSettings]) -> SliceModel:
    """Train attention; see `over_slices.fit`."""
    return over_slices.fit(given, "attention", _build(given.settings.hidden))


def from_state(state: HeadState) -> Predictor:
    """Return what a filed network says of units, from the features (m, d) of their slices."""
    build = _build(int(state.about["hidden"]))
    return over_slices.from_state(state, state.arrays["content.weight"].shape[1], build)


def _build(hidden: int) -> Build:
    return lambda d, o: EvidenceAttention(d, hidden, o)
