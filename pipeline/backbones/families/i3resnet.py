"""Inflated 3D ResNets (Merlin's and Astra's image encoder), of which the last grid is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.volume import VolumeFamily
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class _I3ResNet(VolumeFamily):
    def network(self, architecture: Architecture) -> Any:
        """Return the network; see `pipeline.backbones.i3resnet`."""
        from pipeline.backbones.i3resnet import I3ResNet

        return I3ResNet(architecture.settings["layers"])

    def vector(self, network: Any, x: Any) -> Any:
        """Return (b, d) the mean of the last grid."""
        return network(x).mean(dim=(2, 3, 4))


FAMILY = _I3ResNet(
    name="i3resnet",
    prefixes=(
        "visual_encoder.model.encode_image.i3_resnet.",
        "encode_image.i3_resnet.",
    ),
    left_out=("classifier.", "contrastive_head."),
)
