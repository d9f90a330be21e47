"""SAM's image encoder without the neck, which makes its decoder's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Config, Family
from pipeline.recipe import Architecture
from stores.errors import ConfigError


@dataclass(frozen=True)
class _Sam(Family):
    """SAM, which takes images of one size alone: its relative positions are of that size."""

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of. Raises KeyError, also for its image size."""
        shape = super().read_shape(config)
        if "image_size" not in shape["settings"]:
            raise KeyError("image_size")
        return shape

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what its config is made of. Raises ConfigError for another image size."""
        only = architecture.settings.get("image_size", image_size)
        if only != image_size:
            raise ConfigError(
                f"image_size must be {only}: the relative positions of SAM are of that size. "
                f"Got {image_size} instead."
            )
        return super().config_values(architecture, image_size)

    def classes(self, transformers: Any, architecture: Architecture) -> tuple[Any, Any]:
        """Return the classes of its config, and of a network whose neck does nothing."""
        from torch import nn
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        class Necks(SamVisionEncoder):  # type: ignore[misc]  # untyped
            """The encoder without its neck, whose tensors no file needs to hold then."""

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.neck = nn.Identity()

        return transformers.SamVisionConfig, Necks


FAMILY = _Sam(
    name="sam",
    config_class="SamVisionConfig",
    model_class="SamVisionEncoder",
    settings=(
        "mlp_dim",
        "hidden_act",
        "qkv_bias",
        "image_size",
        "window_size",
        "global_attn_indexes",
        "use_abs_pos",
        "use_rel_pos",
    ),
    section="vision_config",
    prefixes=("vision_encoder.",),
    left_out=("neck.", "prompt_encoder.", "mask_decoder.", "shared_image_embedding."),
)
