"""MONAI's SegResNet encoder, as CT-FM trained it, of which the last level is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.backbones.families.volume import VolumeFamily
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class _SegResEncoder(VolumeFamily):
    def network(self, architecture: Architecture) -> Any:
        """Return MONAI's encoder."""
        from monai.networks.nets.segresnet_ds import SegResEncoder

        return SegResEncoder(
            spatial_dims=3,
            in_channels=1,
            init_filters=architecture.settings["filters"],
            blocks_down=tuple(architecture.settings["blocks"]),
        )

    def vector(self, network: Any, x: Any) -> Any:
        """Return (b, d) the mean of the last level."""
        return network(x)[-1].mean(dim=(2, 3, 4))


FAMILY = _SegResEncoder(name="segresenc", prefixes=("model.encoder.", "encoder."))
