"""What families of 3D networks have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

from pipeline.backbones.families.base import Family, Tensors
from pipeline.recipe import Architecture


@dataclasses.dataclass(frozen=True)
class VolumeFamily(Family):
    """A family of networks that take volumes (b, 1, X, Y, Z) in [0, 1] and give vectors (b, d).

    prefixes: of the network's tensors in files that hold more, the longest first; a file that has
    one of them keeps those tensors alone.
    """

    config_class: str = ""
    model_class: str = ""
    maker: str = "pipeline.backbones.volume_networks"
    is_grid: bool = True

    @abstractmethod
    def network(self, architecture: Architecture) -> Any:
        """Return the network as its authors name its tensors; its parameters hold anything."""

    @abstractmethod
    def vector(self, network: Any, x: Any) -> Any:
        """Return (b, d) of volumes x (b, 1, X, Y, Z)."""

    def tower_tensors(self, tensors: Tensors) -> dict[str, Any]:
        """Return those of a file's tensors that are of the network, without prefixes."""
        for prefix in self.prefixes:
            inside = {
                key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
            if inside:
                tensors = inside
                break
        return {key: each for key, each in tensors.items() if not key.startswith(self.left_out)}
