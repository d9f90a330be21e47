"""Masked autoencoders: a ViT whose encoder is given every patch, none masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Family


@dataclass(frozen=True)
class _Mae(Family):
    """ViT-MAE's encoder, which shuffles its patches."""

    def arguments(self, x: Any, patch: int) -> dict[str, Any]:
        """Return the noise that it sorts its patches by: ascending, so that they stay in order.

        float32 whatever x is: lower precision has too few numbers for a large grid.
        """
        count = (x.shape[-1] // patch) ** 2
        ascending = x[:0].float().new_tensor(range(count))
        return {"noise": ascending.expand(len(x), -1)}


FAMILY = _Mae(
    name="vit_mae",
    config_class="ViTMAEConfig",
    model_class="ViTMAEModel",
    norm="layernorm",
    settings=("intermediate_size", "hidden_act", "qkv_bias"),
    prefixes=("vit.",),
    left_out=("decoder.",),
    positions="embeddings.position_embeddings",
    eps=1e-12,
    fixed={"mask_ratio": 0.0},
)
