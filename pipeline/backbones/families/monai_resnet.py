"""MONAI's 3D ResNets, as MedicalNet (Med3D) trained them, of which the last grid is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.volume import VolumeFamily
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class _MonaiResnet(VolumeFamily):
    def network(self, architecture: Architecture) -> Any:
        """Return MONAI's network without its classifier."""
        from monai.networks.nets import resnet

        depth = architecture.settings["depth"]
        short = "A" if depth in (18, 34) else "B"  # as MedicalNet's files have it
        make = getattr(resnet, f"resnet{depth}")
        return make(
            spatial_dims=3,
            n_input_channels=1,
            feed_forward=False,
            shortcut_type=short,
            bias_downsample=False,
        )

    def vector(self, network: Any, x: Any) -> Any:
        """Return (b, d): the network's own mean of the last grid."""
        return network(x)


FAMILY = _MonaiResnet(name="monai_resnet", prefixes=("module.",), left_out=("conv_seg.", "fc."))
