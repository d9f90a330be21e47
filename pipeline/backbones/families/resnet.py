"""ResNet, of which the grid of the last stage is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Config, Family
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class _Resnet(Family):
    """ResNet: its stages have widths and depths of their own, and no heads."""

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of; a patch is a cell of the last grid."""
        halved = config.get("downsample_in_first_stage", False)
        shape = {"dim": config["hidden_sizes"][-1], "depth": 1, "heads": 1}
        return {**self.read_settings(config), **shape, "patch": 64 if halved else 32}

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what its config is made of, which says all by itself."""
        return dict(architecture.settings)


FAMILY = _Resnet(
    name="resnet",
    config_class="ResNetConfig",
    model_class="ResNetModel",
    settings=(
        "depths",
        "hidden_sizes",
        "embedding_size",
        "layer_type",
        "hidden_act",
        "downsample_in_first_stage",
        "downsample_in_bottleneck",
    ),
    prefixes=("resnet.",),
    left_out=("classifier.",),
    is_grid=True,
)
