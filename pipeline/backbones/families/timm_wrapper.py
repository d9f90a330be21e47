"""Networks of timm's: convolutional ones of 1/32 the side, and ViTs, which transformers has too."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.base import Config, Family
from pipeline.recipe import Architecture
from stores.errors import WeightsError

VGG_DIM = 512  # of its last grid; its config has that of the layers behind
_VIT = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d+)_\d+")
_VIT_DEPTHS = {"tiny": 12, "small": 12, "base": 12, "large": 24, "huge": 32}
_GRIDS = re.compile(r"(densenet|resnet|vgg)\d")


def knows_of_timm(name: str) -> bool:
    """Return whether a network of timm's, by the name of its architecture, is of a known kind."""
    return bool(_VIT.fullmatch(name) or _GRIDS.match(name))


def grid_shape(name: str, dim: int) -> dict[str, Any]:
    """Return what the Architecture of a convolutional network of timm's is made of."""
    grid = {"dim": dim, "depth": 1, "heads": 1, "patch": 32}
    return {"family": "timm_wrapper", "settings": {"architecture": name}, **grid}


@dataclass(frozen=True)
class _Timm(Family):
    """timm's convolutional networks, as transformers wraps them."""

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of, of a network that `knows_of_timm`."""
        name = config["architecture"]
        dim = config["num_features"]
        about = config["pretrained_cfg"]
        spread = {"mean": tuple(about["mean"]), "std": tuple(about["std"])}
        vit = _VIT.fullmatch(name)
        if vit is None:
            return {**grid_shape(name, VGG_DIM if name.startswith("vgg") else dim), **spread}
        return {
            "family": "vit",
            "settings": {"intermediate_size": 4 * dim, "hidden_act": "gelu", "qkv_bias": True},
            "dim": dim,
            "depth": _VIT_DEPTHS[vit[1]],
            "heads": dim // (80 if vit[1] == "huge" else 64),
            "patch": int(vit[2]),
            **spread,
        }

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what its config is made of, which says all by itself."""
        return dict(architecture.settings)

    def classes(self, transformers: Any, architecture: Architecture) -> tuple[Any, Any]:
        """Return the classes of config and network. Raises WeightsError where timm is missing."""
        if importlib.util.find_spec("timm") is None:
            raise WeightsError(
                f"{architecture.settings['architecture']} is one of timm's networks, and timm is "
                "not installed. Install the extra: pip install 'radprobe[timm]' (it brings "
                "torchvision)."
            )
        return super().classes(transformers, architecture)

    def arguments(self, x: Any, patch: int) -> dict[str, Any]:
        """Return what keeps its last grid from being pooled."""
        return {"do_pooling": False}


FAMILY = _Timm(
    name="timm_wrapper",
    config_class="TimmWrapperConfig",
    model_class="TimmWrapperModel",
    settings=("architecture",),
    left_out=("classifier.", "fc.", "head.fc."),
    is_grid=True,
)
