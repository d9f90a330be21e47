"""ViT, as transformers and timm save it; of an open_clip file, its image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Family, Tensors, renamed

# timm's name for a tensor of a ViT -> that in files of transformers' ViT
_TIMM_NAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


@dataclass(frozen=True)
class _Vit(Family):
    """ViT: one network, under the names of two libraries."""

    def tower_tensors(self, tensors: Tensors) -> dict[str, Any]:
        """Return the tower's tensors, those of timm's under the names of transformers'."""
        tower = super().tower_tensors(tensors)
        return renamed(tower, _TIMM_NAMES) if "pos_embed" in tower else tower


FAMILY = _Vit(
    name="vit",
    config_class="ViTConfig",
    model_class="ViTModel",
    norm="layernorm",
    settings=("intermediate_size", "hidden_act", "qkv_bias"),
    prefixes=("vit.", "visual.trunk."),  # the latter: a tower of timm's in an open_clip file
    left_out=("classifier.", "pooler.", "head.", "visual.head.", "text.", "logit_"),
    positions="embeddings.position_embeddings",
    eps=1e-12,
    options={"add_pooling_layer": False},  # which only served its classifier
)
