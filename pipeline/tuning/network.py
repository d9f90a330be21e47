"""A backbone with a head, and which of its parameters a method trains.

The names of parameters are those of transformers, whatever the weights file calls them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pipeline.backbones.load import Backbone
from pipeline.config.tasks import FeatureSet
from pipeline.config.tuning import BitFit, FineTune, Lora, NormTune, Tuning
from stores.errors import ConfigError

# What the families of `comparators` call the layers that LoRA adds to.
_LAYERS = {
    "qkv": r"\.(q_proj|k_proj|v_proj|qkv)$",
    "proj": r"\.(o_proj|out_proj|attn\.proj)$",
    "fc1": r"\.(fc1|lin1|up_proj|gate_proj|weights_in)$",
    "fc2": r"\.(fc2|lin2|down_proj|weights_out)$",
}
_BLOCK = re.compile(r"(?:^|\.)(?:stages|layers?)\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"embed|pre_layrnorm")
_TOKENS = re.compile(r"token|position|pos_embed|class_embedding")


class Network(nn.Module):
    """A backbone, called `body`, and a head on the features, or patch tokens, of its images."""

    def __init__(
        self, backbone: Backbone, head: nn.Module, features: FeatureSet | Literal["patch"]
    ) -> None:
        super().__init__()
        self.body, self.head = backbone.network, head
        self.backbone, self.which = backbone, features

    def features(self, x: Tensor) -> Tensor:
        """Return (m, d) as `tasks.pooling` has them: blocks, oldest first, then the mean token.

        Or the last block's patch tokens (m, 1, h, w, d).
        """
        found = self.backbone.forward(x)
        if self.which == "patch":
            return found.patch[:, None]
        cls = found.cls[:, -blocks_of(self.which) :].flatten(1)
        return torch.cat([cls, found.mean], dim=1) if "mean" in self.which else cls

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return logits (b, o) of units whose images (m, 3, S, S) count as weights (b, m) say."""
        logits: Tensor = self.head(weights @ self.features(x))
        return logits

    def learning(self, on: bool) -> None:
        """Switch LoRA's dropout; all else is always as it is when features are made."""
        self.eval()
        for module in self.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train(on)

    @property
    def linear(self) -> nn.Linear:
        """The linear part of the head."""
        linear = self.head.classify if self.which == "patch" else self.head
        assert isinstance(linear, nn.Linear)
        return linear

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained, head included, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def blocks_of(features: str) -> int:
    """Return how many blocks' CLS tokens a feature set has."""
    return 4 if features.startswith("cls4") else 1


def opened(network: Network, settings: Tuning) -> LoraModel | None:
    """Let gradients into what a method trains and into nothing else; return LoRA's updates.

    What a method would train but no gradient reaches, such as DINOv2's mask token, is left out.
    Raises ConfigError where nothing is left.
    """
    body = network.body
    body.requires_grad_(False)
    adapters = None
    match settings:
        case Lora():
            adapters = _adapted(body, settings)
        case FineTune():
            body.requires_grad_(True)
        case BitFit():
            for name, parameter in body.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))
        case NormTune():
            for parameter in _norms(body):
                parameter.requires_grad_(True)
        case _:
            raise TypeError(f"{type(settings).__name__} says not what is trained")
    _close_unreached(network)
    if not any(parameter.requires_grad for parameter in body.parameters()):
        raise ConfigError(
            f"{type(settings).__name__} finds nothing to train in a network of the family "
            f"{network.backbone.architecture.family!r}; take finetune."
        )
    return adapters


def _adapted(body: nn.Module, settings: Lora) -> LoraModel:
    wanted = re.compile("|".join(_LAYERS[target] for target in settings.targets))
    layers = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear) and wanted.search(name)
    ]
    if not layers:
        raise ConfigError(
            f"LoRA finds no linear layers {list(settings.targets)} in this network; take finetune "
            "or norm."
        )
    chosen = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=layers,
        bias="lora_only" if settings.biases == "lora" else "none",
    )
    return LoraModel(body, chosen, "default")


def _norms(body: nn.Module) -> Iterator[nn.Parameter]:
    for module in body.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)


def _close_unreached(network: Network) -> None:
    """Stop training what one backward pass gives no gradient."""
    size, device = network.backbone.image_size, network.backbone.device
    network.learning(False)
    x = torch.zeros((1, 3, size, size), device=device)
    network.head(network.features(x)).sum().backward()
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


def groups(network: Network, settings: Tuning) -> list[dict[str, Any]]:
    """Return what is trained as an optimiser takes it: parameters of equal rate and decay.

    The rate of a block is layer_decay times that of the next; the embeddings stand before the
    first, the final norm with the last. Biases, norms and tokens are not decayed.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    names = [name for name, _ in network.body.named_parameters()]
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.search, names) if m), default=0)
    for name, parameter in network.trained().items():
        rate = settings.head_rate
        if name.startswith("body."):
            rate = settings.rate * settings.layer_decay ** (depth - _place(name, depth))
        plain = parameter.ndim > 1 and not _TOKENS.search(name)
        decay = settings.weight_decay if plain else 0.0
        found.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in found.items()
    ]


def _place(name: str, depth: int) -> int:
    """Return a parameter's place: 0 before all blocks, i + 1 in block i, depth behind them."""
    block = _BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if _BEFORE_BLOCKS.search(name) else depth
