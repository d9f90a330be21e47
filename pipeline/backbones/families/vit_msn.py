"""Masked siamese networks: a plain ViT."""

from __future__ import annotations

from pipeline.backbones.families.base import Family

FAMILY = Family(
    name="vit_msn",
    config_class="ViTMSNConfig",
    model_class="ViTMSNModel",
    norm="layernorm",
    settings=("intermediate_size", "hidden_act", "qkv_bias"),
    prefixes=("vit.",),
    left_out=("classifier.",),
    positions="embeddings.position_embeddings",
)
