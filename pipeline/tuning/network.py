"""A backbone with a head, and which of its parameters a method trains.

The names of parameters are those of transformers, whatever the weights file calls them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pipeline.backbones.load import Backbone
from pipeline.config.feature_sets import made_of
from pipeline.config.heads import TUNED
from pipeline.config.tasks import FeatureSet
from pipeline.config.tuning import BitFit, FineTune, FrozenTune, Lora, NormTune, Tuning
from stores.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraModel

_BLOCK = re.compile(r"(?:^|\.)(?:stages|layers?)\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"embed|pre_layrnorm")
_TOKENS = re.compile(r"token|position|pos_embed|class_embedding")


class TunableNetwork(nn.Module):
    """A backbone, called `body`, and a head on the features, or patch tokens, of its images."""

    def __init__(
        self, backbone: Backbone, head: nn.Module, features: FeatureSet | Literal["patch"]
    ) -> None:
        super().__init__()
        self.body = backbone.network
        self.head = head
        self.backbone = backbone
        self.feature_set = features

    def features(self, x: Tensor) -> Tensor:
        """Return (m, d) as `tasks.pooling` has them: blocks, oldest first, then the mean token.

        Or the last block's patch tokens (m, 1, h, w, d). x: images (m, 3, S, S).
        """
        outputs = self.backbone.forward(x)
        if self.feature_set == "patch":
            return outputs.patch[:, None]
        made = made_of(self.feature_set)
        cls = outputs.cls[:, -made.blocks :].flatten(1)
        if made.mean:
            return torch.cat([cls, outputs.mean], dim=1)
        return cls

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return logits (b, o) of units whose images (m, 3, S, S) count as weights (b, m) state."""
        logits: Tensor = self.head(weights @ self.features(x))
        return logits

    def switch_dropout(self, on: bool) -> None:
        """Switch LoRA's dropout; all else is always as it is when features are made."""
        self.eval()
        for module in self.modules():
            dropout = getattr(module, "lora_dropout", None)  # of a layer that LoRA adds to
            if dropout is not None:
                dropout.train(on)

    @property
    def linear(self) -> nn.Linear:
        """The linear part of the head."""
        linear = self.head.classify if self.feature_set == "patch" else self.head
        assert isinstance(linear, nn.Linear)
        return linear

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained, head included, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


# --- what a method trains ------------------------------------------------------------------------


def make_trainable(network: TunableNetwork, settings: Tuning) -> LoraModel | None:
    """Let gradients into what a method trains and into nothing else; return LoRA's updates.

    What a method would train but no gradient reaches, such as DINOv2's mask token, is left out.
    Raises ConfigError where nothing is left.
    """
    body = network.body
    adapters = None
    # All is shut first, so that each method states only what it opens.
    body.requires_grad_(False)
    match settings:
        case Lora():
            # Its library takes seconds to import, in each process that shares a training.
            from pipeline.tuning.adapters import add_adapters

            adapters = add_adapters(body, settings)
        case FineTune():
            body.requires_grad_(True)
        case BitFit():
            for name, parameter in body.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))
        case NormTune():
            for parameter in _norm_parameters(body):
                parameter.requires_grad_(True)
        case FrozenTune():
            pass
        case _:
            raise ConfigError(
                f"A method must be one of {', '.join(TUNED)}. Got settings of "
                f"{type(settings).__name__} instead."
            )
    _close_unreached(network)
    opens_some = not isinstance(settings, FrozenTune)
    if opens_some and not any(parameter.requires_grad for parameter in body.parameters()):
        raise ConfigError(
            f"{type(settings).__name__} finds nothing to train in a network of the family "
            f"{network.backbone.architecture.family!r}; take finetune."
        )
    return adapters


def _norm_parameters(body: nn.Module) -> Iterator[nn.Parameter]:
    for module in body.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)


def _close_unreached(network: TunableNetwork) -> None:
    """Stop training what one backward pass gives no gradient."""
    size = network.backbone.image_size
    # As features are made, without dropout.
    network.switch_dropout(False)
    x = torch.zeros((1, 3, size, size), device=network.backbone.device)
    network.head(network.features(x)).sum().backward()
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


# --- how fast it is trained ----------------------------------------------------------------------


def parameter_groups(network: TunableNetwork, settings: Tuning) -> list[dict[str, Any]]:
    """Return what is trained as an optimiser takes it: parameters of equal rate and decay.

    The rate of a block is layer_decay times that of the next; the embeddings stand before the
    first, the final norm with the last. Biases, norms and tokens are not decayed. `peak` is the
    rate at its highest, of which `training.rate_factor` gives the part at a step.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depth = _depth(network.body)
    for name, parameter in network.trained().items():
        if name.startswith("body."):
            distance = depth - _place(name, depth)  # from the last block
            rate = settings.rate * settings.layer_decay**distance
        else:
            rate = settings.head_rate
        decays = parameter.ndim > 1 and not _TOKENS.search(name)
        decay = settings.weight_decay if decays else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _depth(body: nn.Module) -> int:
    """Return how many blocks a network has."""
    last = 0
    for name, _ in body.named_parameters():
        block = _BLOCK.search(name)
        if block:
            last = max(last, int(block[1]))
    return last + 1


def _place(name: str, depth: int) -> int:
    """Return a parameter's place: 0 before all blocks, i + 1 in block i, depth behind them."""
    block = _BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if _BEFORE_BLOCKS.search(name) else depth
