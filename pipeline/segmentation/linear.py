"""The methods linear and linear-bn: a linear head on the last block's patch tokens.

As the text and code of arXiv 2312.02366 describe it; the one with batch norm is DINOv2's BNHead
(facebookresearch/dinov2, eval/segmentation).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.segmentation import training
from pipeline.segmentation.contracts import Parts, Rows, TokenSource

WEIGHT_STD = 0.01


class LinearTokenHead(nn.Module):
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
        """Return logits (b, c, S, S) of tokens (b, l, h, w, d)."""
        x = tokens[:, -1]  # (b, h, w, d)
        if self.norm is not None:
            # Over all patches of the batch together, as of so many rows of d features.
            patches = x.reshape(-1, x.shape[-1])
            x = self.norm(patches).reshape(x.shape)
        logits = self.classify(x).permute(0, 3, 1, 2)
        size = (self.size, self.size)
        return interpolate(logits, size, mode="bilinear", align_corners=False)


def build(source: TokenSource, rows: Rows, settings: Segment) -> LinearTokenHead:
    """Return a head that has learned nothing, as wide as the tokens of the first row."""
    dim = source.tokens(rows[:1]).shape[-1]
    norm = settings.method == "linear-bn"
    return LinearTokenHead(dim, len(source.classes), source.image_size, norm=norm)


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str
) -> training.TrainedHead:
    """Train the head; see `training.fit`."""
    return training.fit(build, source, parts, settings, device=device)
