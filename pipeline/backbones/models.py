"""Networks to set beside DINOv2's: one table of names, and how their Hugging Face files are read.

Torch-free. Each is taken as its authors meant it: its own mean, std, final norm and pooling.
`families` holds the networks themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.recipe import Architecture


@dataclass(frozen=True)
class Family:
    """How the files of one of transformers' model types are read.

    settings: what its config says beside width, depth, heads and patch; eps: of its norms, where
    the config does not say; section: the part of the config that holds the image tower; prefixes:
    of the tower's tensors in files that hold more; beside: what such files hold that is left out;
    positions: the learned positions, which are resampled to other image sizes.
    """

    settings: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    positions: str | None = None
    eps: float = 1e-6
    section: str | None = None


_MLP = ("intermediate_size", "hidden_act", "qkv_bias")
_TABLE = "embeddings.position_embeddings"
FAMILIES: dict[str, Family] = {
    # visual.trunk: of a tower of timm's in an open_clip file
    "vit": Family(
        _MLP,
        ("vit.", "visual.trunk."),
        ("classifier.", "pooler.", "head.", "visual.head.", "text.", "logit_"),
        _TABLE,
        1e-12,
    ),
    "vit_mae": Family(_MLP, ("vit.",), ("decoder.",), _TABLE, 1e-12),
    "vit_msn": Family(_MLP, ("vit.",), ("classifier.",), _TABLE),
    "clip": Family(
        ("intermediate_size", "hidden_act"),
        ("vision_model.",),
        (
            "text_model.",
            "text_projection.",
            "visual_projection.",
            "logit_scale",
            "embeddings.position_ids",
        ),
        "embeddings.position_embedding.weight",
        1e-5,
        "vision_config",
    ),
    "sam": Family(
        (
            "mlp_dim",
            "hidden_act",
            "qkv_bias",
            "image_size",
            "window_size",
            "global_attn_indexes",
            "use_abs_pos",
            "use_rel_pos",
        ),
        ("vision_encoder.",),
        ("neck.", "prompt_encoder.", "mask_decoder.", "shared_image_embedding."),
        section="vision_config",
    ),
    "resnet": Family(
        (
            "depths",
            "hidden_sizes",
            "embedding_size",
            "layer_type",
            "hidden_act",
            "downsample_in_first_stage",
            "downsample_in_bottleneck",
        ),
        ("resnet.",),
        ("classifier.",),
    ),
    "timm_wrapper": Family(("architecture",), beside=("classifier.", "fc.", "head.fc.")),
    "dinov3_vit": Family(
        (
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
    ),
}


# Networks whose stages differ in width: the last grid alone is kept.
GRIDS = ("resnet", "timm_wrapper")
# Of timm's networks: its ViTs, which transformers has too, and convolutional ones of 1/32 the side.
_TIMM_VIT = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d+)_\d+")
_TIMM_DEPTHS = {"tiny": 12, "small": 12, "base": 12, "large": 24, "huge": 32}
_TIMM_GRIDS = re.compile(r"(densenet|resnet|vgg)\d")
VGG_DIM = 512  # of its last grid; its config has that of the layers behind


def knows_of_timm(name: str) -> bool:
    """Return whether a network of timm's, by the name of its architecture, is of a known kind."""
    return bool(_TIMM_VIT.fullmatch(name) or _TIMM_GRIDS.match(name))


def read_timm_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an Architecture is made of, from the config of a file of timm's that is known.

    Raises KeyError naming what the config lacks.
    """
    name, dim, about = config["architecture"], config["num_features"], config["pretrained_cfg"]
    spread = {"mean": tuple(about["mean"]), "std": tuple(about["std"])}
    if vit := _TIMM_VIT.fullmatch(name):
        settings = {"intermediate_size": 4 * dim, "hidden_act": "gelu", "qkv_bias": True}
        heads = dim // (80 if vit[1] == "huge" else 64)
        shape = {"dim": dim, "depth": _TIMM_DEPTHS[vit[1]], "heads": heads, "patch": int(vit[2])}
        return {"family": "vit", "settings": settings} | shape | spread
    return _timm_grid(name, VGG_DIM if name.startswith("vgg") else dim) | spread


def _timm_grid(name: str, dim: int) -> dict[str, Any]:
    settings = {"architecture": name}
    grid = {"dim": dim, "depth": 1, "heads": 1, "patch": 32}
    return {"family": "timm_wrapper", "settings": settings} | grid


def read_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an Architecture is made of, from a Hugging Face config of a family above.

    Raises KeyError naming what the config lacks.
    """
    kind = str(config["model_type"]).replace("clip_vision_model", "clip")
    family = FAMILIES[kind]
    tower = config.get(family.section, config) if family.section else config
    settings = {name: tower[name] for name in family.settings if tower.get(name) is not None}
    shape: dict[str, Any] = {"family": kind, "settings": settings}
    if kind == "resnet":
        first = tower.get("downsample_in_first_stage", False)
        return shape | {
            "dim": tower["hidden_sizes"][-1],
            "depth": 1,
            "heads": 1,
            "patch": 64 if first else 32,
        }
    if kind == "sam":
        settings["image_size"]  # it takes no other
    return shape | {
        "dim": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "patch": tower["patch_size"],
        "registers": tower.get("num_register_tokens", 0),
        "eps": tower.get("layer_norm_eps", family.eps),
    }


@dataclass(frozen=True)
class Comparator:
    """A network by name: its shape, its Hugging Face repository, the size it was trained at.

    licence: as its model card names it; feature: what is taken as its CLS token; millions: of
    parameters of the image tower; unchecked: what could not be held against the published files.
    """

    architecture: Architecture
    repository: str
    image_size: int
    feature: str
    licence: str
    millions: float
    unchecked: str = ""


_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_LARGE: dict[str, Any] = {"dim": 1024, "depth": 24, "heads": 16, "patch": 16}
_GELU = {"intermediate_size": 4096, "hidden_act": "gelu", "qkv_bias": True}
_GRID = "mean of the last grid; `blocks: 1`; extra `timm`"
_NORMED = "CLS after the final norm"


def _dinov3(letter: str, dim: int, depth: int, heads: int, millions: float) -> Comparator:
    settings = {"intermediate_size": 4 * dim, "hidden_act": "gelu", "key_bias": False}
    architecture = Architecture(
        family="dinov3_vit",
        settings=settings,
        dim=dim,
        depth=depth,
        heads=heads,
        patch=16,
        registers=4,
        eps=1e-5,
    )
    repository = f"facebook/dinov3-vit{letter}16-pretrain-lvd1689m"
    return Comparator(
        architecture,
        repository,
        224,
        _NORMED,
        "DINOv3 License, gated",
        millions,
        "shape, mean, std",
    )


COMPARATORS: dict[str, Comparator] = {
    "vit_large_in21k": Comparator(
        Architecture(family="vit", settings=_GELU, eps=1e-12, **_LARGE, **_HALF),
        "google/vit-large-patch16-224",
        224,
        _NORMED,
        "Apache-2.0",
        303,
    ),
    "mae_large": Comparator(
        Architecture(family="vit_mae", settings=_GELU, eps=1e-12, **_LARGE),
        "facebook/vit-mae-large",
        224,
        _NORMED + ", nothing masked",
        "Apache-2.0",
        303,
        "shape",
    ),
    "msn_large": Comparator(
        Architecture(family="vit_msn", settings=_GELU, **_LARGE),
        "facebook/vit-msn-large",
        224,
        _NORMED,
        "Apache-2.0",
        303,
        "mean, std",
    ),
    "clip_large": Comparator(
        Architecture(
            family="clip",
            settings={"intermediate_size": 4096, "hidden_act": "quick_gelu"},
            eps=1e-5,
            **(_LARGE | {"patch": 14}),
            **_CLIP,
        ),
        "openai/clip-vit-large-patch14",
        224,
        "CLS after post_layernorm, before the projection",
        "see its card",
        303,
        "mean, std, licence",
    ),
    "openclip_huge": Comparator(
        Architecture(
            family="clip",
            settings={"intermediate_size": 5120, "hidden_act": "gelu"},
            dim=1280,
            depth=32,
            heads=16,
            eps=1e-5,
            **_CLIP,
        ),
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        224,
        "CLS after post_layernorm, before the projection",
        "MIT",
        631,
        "mean, std",
    ),
    "sam_large": Comparator(
        Architecture(
            family="sam",
            settings={
                "mlp_dim": 4096,
                "hidden_act": "gelu",
                "qkv_bias": True,
                "image_size": 1024,
                "window_size": 14,
                "global_attn_indexes": [5, 11, 17, 23],
                "use_abs_pos": True,
                "use_rel_pos": True,
            },
            **_LARGE,
        ),
        "facebook/sam-vit-large",
        1024,
        "mean of the grid before the neck",
        "Apache-2.0",
        308,
        "licence",
    ),
    "resnet_152": Comparator(
        Architecture(
            family="resnet",
            settings={
                "depths": [3, 8, 36, 3],
                "hidden_sizes": [256, 512, 1024, 2048],
                "embedding_size": 64,
                "layer_type": "bottleneck",
                "hidden_act": "relu",
                "downsample_in_first_stage": False,
            },
            dim=2048,
            depth=1,
            heads=1,
            patch=32,
        ),
        "microsoft/resnet-152",
        224,
        "mean of the last stage; `blocks: 1`",
        "Apache-2.0",
        58,
        "mean, std",
    ),
    "densenet_201": Comparator(
        Architecture(**_timm_grid("densenet201", 1920)),
        "timm/densenet201.tv_in1k",
        224,
        _GRID,
        "see its card",
        18.1,
        "mean, std, licence",
    ),
    "vgg_19": Comparator(
        Architecture(**_timm_grid("vgg19", VGG_DIM)),
        "timm/vgg19.tv_in1k",
        224,
        _GRID,
        "see its card",
        139.6,
        "mean, std, licence",
    ),
    "biomedclip_base": Comparator(
        Architecture(
            family="vit",
            settings={"intermediate_size": 3072, "hidden_act": "gelu", "qkv_bias": True},
            dim=768,
            depth=12,
            heads=12,
            patch=16,
            **_CLIP,
        ),
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        224,
        "CLS after the final norm, before the projection",
        "see its card",
        85.8,
        "mean, std, licence",
    ),
    "rad_dino": Comparator(
        Architecture(
            dim=768, depth=12, heads=12, mean=(0.5307, 0.5307, 0.5307), std=(0.2583, 0.2583, 0.2583)
        ),
        "microsoft/rad-dino",
        518,
        _NORMED,
        "MIT",
        86.6,
        "mean, std",
    ),
    "dinov3_vits16": _dinov3("s", 384, 12, 6, 21.6),
    "dinov3_vitb16": _dinov3("b", 768, 12, 12, 85.7),
    "dinov3_vitl16": _dinov3("l", 1024, 24, 16, 303),
}
