"""CLIP's image tower, of a file with or without the text tower, before the projection."""

from __future__ import annotations

from pipeline.backbones.families.base import Family

FAMILY = Family(
    name="clip",
    config_class="CLIPVisionConfig",
    model_class="CLIPVisionModel",
    norm="post_layernorm",
    settings=("intermediate_size", "hidden_act"),
    section="vision_config",
    prefixes=("vision_model.",),
    left_out=(
        "text_model.",
        "text_projection.",
        "visual_projection.",
        "logit_scale",
        "embeddings.position_ids",
    ),
    positions="embeddings.position_embedding.weight",
    eps=1e-5,
)
