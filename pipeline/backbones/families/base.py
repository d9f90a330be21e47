"""What a family of networks says of itself. Torch-free, but for the network that it builds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.recipe import Architecture, FamilyName
from stores.errors import WeightsError

Config = Mapping[str, Any]  # of a config.json
Tensors = Mapping[str, Any]  # name -> torch.Tensor, of a weights file
# How learned positions are taken to another grid: as DINOv2's code does it, or as transformers'.
Resampling = Literal["dinov2", "transformers"]


@dataclass(frozen=True)
class Family:
    """One of transformers' model types, as it is for most ViTs; others override what differs.

    config_class, model_class: of transformers, by name. norm: the submodule that is its final norm.
    settings: what its config.json says beside width, depth, heads and patch. section: the part of
    the config that holds the image tower; eps: of its norms, where the config does not say.
    prefixes: of the tower's tensors in files that hold more; left_out: what such files hold beside.
    positions: the learned positions. fixed, options: values of the config, and arguments of the
    class, that are always these. is_grid: its stages differ in width, so the last grid alone is
    taken. is_written_out: the network is `backbones.dinov2`, and transformers but saves it. maker:
    the module that makes networks of the family.
    """

    name: FamilyName
    config_class: str
    model_class: str
    norm: str | None = None
    settings: tuple[str, ...] = ()
    section: str | None = None
    eps: float = 1e-6
    prefixes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    positions: str | None = None
    resampling: Resampling = "transformers"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_grid: bool = False
    is_written_out: bool = False
    maker: str = "pipeline.backbones.towers"

    # --- a config.json ---------------------------------------------------------------------

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of, from a config.json of this family.

        Raises KeyError naming what the config lacks.
        """
        tower = self.tower_of(config)
        return {
            **self.read_settings(tower),
            "dim": tower["hidden_size"],
            "depth": tower["num_hidden_layers"],
            "heads": tower["num_attention_heads"],
            "patch": tower["patch_size"],
            "registers": tower.get("num_register_tokens", 0),
            "eps": tower.get("layer_norm_eps", self.eps),
        }

    def tower_of(self, config: Config) -> Config:
        """Return the part of a config that is of the image tower."""
        tower: Config = config.get(self.section, config) if self.section else config
        return tower

    def read_settings(self, tower: Config) -> dict[str, Any]:
        """Return family and settings of an Architecture, as far as a config says them."""
        settings = {name: tower[name] for name in self.settings if tower.get(name) is not None}
        return {"family": self.name, "settings": settings}

    # --- a weights file --------------------------------------------------------------------

    def read_tensors(self, tensors: Tensors, file: Path) -> dict[str, Any]:
        """Return a file's tensors of the image tower, under the names that its network has.

        Raises WeightsError where the file is of another network.
        """
        tower = self.tower_tensors(tensors)
        self.check_positions(tower, tensors, file, f"no {self.name} network")
        return tower

    def tower_tensors(self, tensors: Tensors) -> dict[str, Any]:
        """Return those of a file's tensors that are of the image tower, without prefixes."""
        tower: dict[str, Any] = {}
        for key, tensor in tensors.items():
            prefix = next((each for each in self.prefixes if key.startswith(each)), "")
            name = key.removeprefix(prefix)
            if not name.startswith(self.left_out):
                tower[name] = tensor
        return tower

    def check_positions(self, tower: Tensors, tensors: Tensors, file: Path, otherwise: str) -> None:
        """Raise WeightsError where a file lacks learned positions, and so is `otherwise`."""
        if self.positions is not None and self.positions not in tower:
            raise WeightsError(
                f"{str(file)!r} holds no position embeddings: it is {otherwise}. "
                f"Its first keys: {', '.join(list(tensors)[:5])}."
            )

    # --- its network -----------------------------------------------------------------------

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what the transformers config of an architecture is made of.

        Raises ConfigError where the network takes no images of that size.
        """
        return {
            "hidden_size": architecture.dim,
            "num_hidden_layers": architecture.depth,
            "num_attention_heads": architecture.heads,
            "patch_size": architecture.patch,
            "image_size": image_size,
            "layer_norm_eps": architecture.eps,
            **architecture.settings,
            **self.fixed,
        }

    def classes(self, transformers: Any, architecture: Architecture) -> tuple[Any, Any]:
        """Return the classes of config and network, from the library.

        Raises WeightsError where the network needs an extra that is not installed.
        """
        return getattr(transformers, self.config_class), getattr(transformers, self.model_class)

    def arguments(self, x: Any, patch: int) -> dict[str, Any]:
        """Return what the network takes beside images x (b, 3, S, S) with patches of so many px."""
        return {}


def renamed(tensors: Tensors, names: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return tensors under other names, (pattern, replacement); a joint qkv as its thirds."""
    result: dict[str, Any] = {}
    for key, tensor in tensors.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            for part, third in parts:
                result[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            result[name] = tensor
    return result
