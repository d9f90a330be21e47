"""Families of networks: how the files of one are read and it is built, a module each.

To add one: write its module, with a `FAMILY`, and give it a line in FAMILIES; its name goes into
`pipeline.recipe.FamilyName`, which recipes are checked against. All of it is torch-free until a
network is built.
"""

from __future__ import annotations

import importlib

from pipeline.backbones.families.base import Family
from pipeline.recipe import FamilyName

# family -> its module, which is imported when the family is asked for.
FAMILIES: dict[FamilyName, str] = {
    "dinov2": "pipeline.backbones.families.dinov2",
    "vit": "pipeline.backbones.families.vit",
    "vit_mae": "pipeline.backbones.families.vit_mae",
    "vit_msn": "pipeline.backbones.families.vit_msn",
    "clip": "pipeline.backbones.families.clip",
    "sam": "pipeline.backbones.families.sam",
    "resnet": "pipeline.backbones.families.resnet",
    "dinov3_vit": "pipeline.backbones.families.dinov3_vit",
    "timm_wrapper": "pipeline.backbones.families.timm_wrapper",
    "i3resnet": "pipeline.backbones.families.i3resnet",
    "monai_resnet": "pipeline.backbones.families.monai_resnet",
    "segresenc": "pipeline.backbones.families.segresenc",
    "efficientnet_lite": "pipeline.backbones.families.efficientnet_lite",
}
# Those of 3D networks, whose files have no config.json.
VOLUME_FAMILIES: frozenset[FamilyName] = frozenset({"i3resnet", "monai_resnet", "segresenc"})
# model_type in a config.json of Hugging Face -> family: the same word, but for two that have two.
# The files of timm have none.
MODEL_TYPES: dict[str, FamilyName] = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    **{
        name: name
        for name in FAMILIES
        if name not in ("dinov2", "timm_wrapper") and name not in VOLUME_FAMILIES
    },
    "clip_vision_model": "clip",
}


def family_of(name: FamilyName) -> Family:
    """Return a family by the name that architectures have it by."""
    family = importlib.import_module(FAMILIES[name]).FAMILY
    assert isinstance(family, Family)
    return family
