"""A network of any other family, made to hand out tokens as DINOv2 does.

transformers holds the architectures, and wraps those of timm. `Tower` lays their tokens out as CLS,
registers, patches row by row, of every block, before the final norm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from pipeline.backbones.dinov2 import BlockTokens, Dinov2, check_keys
from pipeline.backbones.families import family_of
from pipeline.recipe import Architecture


class Tower(nn.Module):
    """A network that answers as DINOv2's does: tokens before `layernorm`, and after it.

    A grid without a CLS token gets the mean of the grid as one. `layernorm` does nothing where the
    network has no final norm, or the paper's treatment leaves it out.
    """

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.family = family_of(architecture.family)
        norm = None if architecture.treatment == "paper" else self.family.norm
        self.model = model
        self.layernorm = nn.Identity() if norm is None else model.get_submodule(norm)
        self.architecture = architecture

    def forward(self, x: Tensor) -> BlockTokens:
        """Return every block's tokens."""
        arguments = self.family.arguments(x, self.architecture.patch)
        is_grid = self.family.is_grid
        output = self.model(x, output_hidden_states=not is_grid, **arguments)
        blocks = output.hidden_states
        if is_grid:
            blocks = [output.last_hidden_state.permute(0, 2, 3, 1)]
        tokens = tuple(_with_cls(block) if block.ndim == 4 else block for block in blocks)
        return BlockTokens(tokens, self.layernorm(tokens[-1]))


def _with_cls(grid: Tensor) -> Tensor:
    """Return a grid (b, h, w, d) as tokens, their mean before them."""
    tokens = grid.flatten(1, 2)
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def network_parts(architecture: Architecture, image_size: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return the transformers class of a network, its config, and what else the class takes.

    Raises ConfigError where the network takes no images of that size, WeightsError where an extra
    is needed and not installed.
    """
    family = family_of(architecture.family)
    config_class, model_class = family.classes(transformers, architecture)
    config = config_class(**family.config_values(architecture, image_size))
    return model_class, config, dict(family.options)


def empty_network(architecture: Architecture, image_size: int) -> Any:
    """Return a network whose parameters hold anything: to be filled, every one."""
    model_class, config, options = network_parts(architecture, image_size)
    with torch.random.fork_rng(devices=[]):  # the library draws initial values, which nobody sees
        return model_class(config, **options)


def loaded_network(
    architecture: Architecture, image_size: int, state: dict[str, Tensor], file: Path
) -> Any:
    """Return a network with the weights of a state dict, in float32; every key must fit.

    Raises WeightsError naming and counting missing, unexpected and misshapen keys.
    """
    model_class, config, options = network_parts(architecture, image_size)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on keys comes back below, as an error
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with all other faults at once
            dtype=torch.float32,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    mismatched = [
        f"{key} ({tuple(given)}, not {tuple(asked)})"
        for key, given, asked in info["mismatched_keys"]
    ]
    missing, unexpected = ([*info[kind]] for kind in ("missing_keys", "unexpected_keys"))
    check_keys(architecture, file, missing, unexpected, mismatched, state)
    return model


def as_library_model(network: nn.Module, architecture: Architecture) -> Any:
    """Return a network as transformers' class of it, which saves it in its own format."""
    if isinstance(network, Tower):
        return network.model
    assert isinstance(network, Dinov2)
    positions = network.embeddings.position_embeddings.shape[1] - 1
    model = empty_network(architecture, math.isqrt(positions) * architecture.patch)
    model.load_state_dict(network.state_dict())
    return model
