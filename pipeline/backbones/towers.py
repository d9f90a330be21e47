"""The networks of `comparators`, each made to hand out tokens as DINOv2 does. Part of `backbones`.

transformers holds the architectures, and wraps those of timm. `Tower` lays their tokens out as CLS,
registers, patches row by row, of every block, before the final norm.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    SamVisionConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.sam.modeling_sam import SamVisionEncoder

from pipeline.backbones.models import FAMILIES, GRIDS
from pipeline.recipe import Architecture
from stores.errors import WeightsError


class _Sam(SamVisionEncoder):  # type: ignore[misc]  # untyped
    """SAM's image encoder without the neck, which makes its decoder's input."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.neck = nn.Identity()


# family -> its config, its network, its final norm
_CLASSES: dict[str, tuple[type[Any], type[Any], str | None]] = {
    "vit": (ViTConfig, ViTModel, "layernorm"),
    "vit_mae": (ViTMAEConfig, ViTMAEModel, "layernorm"),
    "vit_msn": (ViTMSNConfig, ViTMSNModel, "layernorm"),
    "clip": (CLIPVisionConfig, CLIPVisionModel, "post_layernorm"),
    "sam": (SamVisionConfig, _Sam, None),
    "resnet": (ResNetConfig, ResNetModel, None),
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel, "norm"),
    "timm_wrapper": (TimmWrapperConfig, TimmWrapperModel, None),
}
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


class Tower(nn.Module):
    """A network that answers as DINOv2's does: `hidden_states` before `layernorm`, and after it.

    A grid without a CLS token gets the mean of the grid as one. `layernorm` does nothing where the
    network has no final norm, or the paper's treatment leaves it out.
    """

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        norm = _CLASSES[architecture.family][2]
        left_out = norm is None or architecture.treatment == "paper"
        self.model = model
        self.layernorm = nn.Identity() if left_out else model.get_submodule(str(norm))
        self.architecture = architecture

    def forward(self, x: Tensor, output_hidden_states: bool = True) -> BaseModelOutput:
        """Return every block's tokens, (b, 1 + registers + h w, d)."""
        extra: dict[str, Any] = {}
        family = self.architecture.family
        if family == "timm_wrapper":
            extra["do_pooling"] = False
        if family == "vit_mae":  # it sorts its patches by this noise
            count = (x.shape[-1] // self.architecture.patch) ** 2
            extra["noise"] = torch.arange(float(count), device=x.device).expand(len(x), -1)
        alone = family in GRIDS
        output = self.model(x, output_hidden_states=output_hidden_states and not alone, **extra)
        grids = output.hidden_states
        if alone:
            grids = [output.last_hidden_state.permute(0, 2, 3, 1)]
        hidden = tuple(_with_cls(grid) if grid.ndim == 4 else grid for grid in grids)
        return BaseModelOutput(
            last_hidden_state=self.layernorm(hidden[-1]),
            hidden_states=hidden,
        )


def _with_cls(grid: Tensor) -> Tensor:
    """Return a grid (b, h, w, d) as tokens, their mean before them."""
    tokens = grid.flatten(1, 2)
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def family_model(architecture: Architecture, image_size: int) -> tuple[type[Any], Any]:
    """Return the transformers class and config of an architecture of `comparators`.

    Raises ValueError where the network takes no images of that size, WeightsError where timm is
    needed and not installed.
    """
    settings = architecture.settings
    config, cls, _ = _CLASSES[architecture.family]
    if architecture.family == "timm_wrapper" and importlib.util.find_spec("timm") is None:
        raise WeightsError(
            f"{settings['architecture']} is one of timm's networks, and timm is not installed. "
            "Install the extra: pip install 'radprobe[timm]' (it brings torchvision)."
        )
    if architecture.family in GRIDS:
        return cls, config(**settings)
    own = settings.get("image_size", image_size)
    if own != image_size:
        raise ValueError(
            f"image_size must be {own}: the relative positions of SAM are of that size. "
            f"Got {image_size} instead."
        )
    shape = {
        "hidden_size": architecture.dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads,
        "patch_size": architecture.patch,
        "image_size": image_size,
        "layer_norm_eps": architecture.eps,
        **settings,
    }
    if architecture.family == "vit_mae":
        shape["mask_ratio"] = 0.0
    if architecture.family == "dinov3_vit":
        shape["num_register_tokens"] = architecture.registers
    return cls, config(**shape)


def family_options(architecture: Architecture) -> dict[str, Any]:
    """Return what the class takes beside its config: ViT's pooler only served its classifier."""
    return {"add_pooling_layer": False} if architecture.family == "vit" else {}


def family_state(
    state: Mapping[str, Tensor], architecture: Architecture, image_size: int, file: Path
) -> dict[str, Tensor]:
    """Return a file's tensors of the image tower, positions resampled to the image size."""
    family = FAMILIES[architecture.family]
    kept = {}
    for key, value in state.items():
        prefix = next((each for each in family.prefixes if key.startswith(each)), "")
        name = key.removeprefix(prefix)
        if not name.startswith(family.beside):
            kept[name] = value
    if architecture.family == "vit" and "pos_embed" in kept:
        kept = renamed(kept, _TIMM_NAMES)
    if family.positions is not None:
        if family.positions not in kept:
            raise WeightsError(
                f"{str(file)!r} holds no position embeddings: it is no {architecture.family} "
                f"network. Its first keys: {', '.join(list(state)[:5])}."
            )
        table = kept[family.positions]
        kept[family.positions] = _resampled(table, image_size // architecture.patch)
    return kept


def renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return a state dict under other names, (pattern, replacement); a joint qkv as its thirds."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            for part, third in parts:
                found[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            found[name] = value
    return found


def _resampled(positions: Tensor, grid: int) -> Tensor:
    """Resample positions (..., 1 + g*g, d) to (..., 1 + grid*grid, d), bicubic, as transformers."""
    flat = positions.reshape(-1, positions.shape[-1])
    old = math.isqrt(len(flat) - 1)
    if old * old != len(flat) - 1:
        raise WeightsError(
            f"Position embeddings must be a square grid. Got {len(flat) - 1} positions."
        )
    if old == grid:
        return positions
    table = flat[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    table = interpolate(table, size=(grid, grid), mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(grid * grid, -1)
    whole = torch.cat([flat[:1], table.to(flat.dtype)])
    return whole.reshape(*positions.shape[:-2], *whole.shape)
