"""3D networks, made and loaded strictly; `VolumeBackbone` is one on its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.dinov2 import check_keys
from pipeline.backbones.families import family_of
from pipeline.backbones.families.volume import VolumeFamily
from pipeline.recipe import Architecture, Precision


class VolumeTower(nn.Module):
    """A 3D network that gives vectors (b, d) of volumes (b, 1, X, Y, Z)."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.model = model
        self.family = _family(architecture)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        vectors: Tensor = self.family.vector(self.model, x)
        return vectors


# As `load` asks each maker of networks for it.
Tower = VolumeTower


class VolumeBackbone:
    """A 3D network on its device; called with x (b, 1, X, Y, Z), returns (b, d) in float32.

    precision: what it computes in (autocast), as of `Backbone`.
    """

    compiled = False

    def __init__(
        self, model: nn.Module, architecture: Architecture, precision: Precision = "float32"
    ) -> None:
        self.architecture = architecture
        self.precision = precision
        self._model = model

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self._model.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The module itself."""
        return self._model

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the vectors of volumes."""
        lower = self.precision != "float32"
        dtype = getattr(torch, self.precision) if lower else None
        with torch.autocast(self.device.type, dtype, enabled=lower):
            vectors: Tensor = self._model(x.to(self.device))
        return vectors.float()


def _family(architecture: Architecture) -> VolumeFamily:
    family = family_of(architecture.family)
    assert isinstance(family, VolumeFamily)
    return family


def empty_network(architecture: Architecture, image_size: int) -> Any:
    """Return a network whose parameters hold anything: to be filled, every one."""
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, which nobody sees
        return _family(architecture).network(architecture)


def loaded_network(
    architecture: Architecture, image_size: int, state: dict[str, Tensor], file: Path
) -> Any:
    """Return a network with the weights of a state dict, in float32; every key must fit.

    Raises WeightsError naming and counting missing, unexpected and misshapen keys.
    """
    model = empty_network(architecture, image_size)
    # Batches counted in training change nothing: files of some have them, of others not.
    counted = "num_batches_tracked"
    have = {key: value for key, value in model.state_dict().items() if counted not in key}
    given = {key: value for key, value in state.items() if counted not in key}
    misshapen = [key for key in have.keys() & given.keys() if have[key].shape != given[key].shape]
    check_keys(
        architecture,
        file,
        sorted(have.keys() - given.keys()),
        sorted(given.keys() - have.keys()),
        sorted(misshapen),
        state,
    )
    model.load_state_dict(given, strict=False)  # all but the counters, as was checked
    return model.float()
