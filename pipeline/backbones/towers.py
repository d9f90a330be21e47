"""A network of any family, made to hand out tokens as DINOv2 does.

transformers holds the architectures, and wraps those of timm. `Tower` lays their tokens out as CLS,
registers, patches row by row, of every block, before the final norm.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from pipeline.backbones.families import family_of
from pipeline.recipe import Architecture


class Tower(nn.Module):
    """A network that answers as DINOv2's does: `hidden_states` before `layernorm`, and after it.

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

    def forward(self, x: Tensor, output_hidden_states: bool = True) -> BaseModelOutput:
        """Return every block's tokens, (b, 1 + registers + h w, d)."""
        arguments = self.family.arguments(x, self.architecture.patch)
        is_grid = self.family.is_grid
        states = output_hidden_states and not is_grid
        output = self.model(x, output_hidden_states=states, **arguments)
        blocks = output.hidden_states
        if is_grid:
            blocks = [output.last_hidden_state.permute(0, 2, 3, 1)]
        hidden = tuple(_with_cls(block) if block.ndim == 4 else block for block in blocks)
        return BaseModelOutput(
            last_hidden_state=self.layernorm(hidden[-1]),
            hidden_states=hidden,
        )


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
