"""DINOv3's ViTs, whose positions are rotary and learned by none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Family
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class _Dinov3(Family):
    """A ViT with registers."""

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what its config is made of."""
        values = super().config_values(architecture, image_size)
        return {**values, "num_register_tokens": architecture.registers}


FAMILY = _Dinov3(
    name="dinov3_vit",
    config_class="DINOv3ViTConfig",
    model_class="DINOv3ViTModel",
    norm="norm",
    settings=(
        "intermediate_size",
        "hidden_act",
        "use_gated_mlp",
        "query_bias",
        "key_bias",
        "value_bias",
        "proj_bias",
        "mlp_bias",
        "rope_theta",
    ),
    eps=1e-5,
)
