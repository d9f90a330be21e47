"""LoRA's updates, put into the layers that its settings name."""

from __future__ import annotations

import re

from peft import LoraConfig, LoraModel
from torch import nn

from pipeline.config.tuning import Lora
from stores.errors import ConfigError

_ADAPTER = "default"  # peft's name of one set of updates
# What the families of `comparators` call the layers that LoRA adds to.
_QKV = r"\.(q_proj|k_proj|v_proj|qkv)$"
_LAYERS = {
    "qkv": _QKV,
    "shared-qkv": _QKV,
    "proj": r"\.(o_proj|out_proj|attn\.proj)$",
    "fc1": r"\.(fc1|lin1|up_proj|gate_proj|weights_in)$",
    "fc2": r"\.(fc2|lin2|down_proj|weights_out)$",
}


def add_adapters(body: nn.Module, settings: Lora) -> LoraModel:
    """Put LoRA's updates into the layers that the settings name, whatever the network calls them.

    Raises ConfigError where there is no such layer.
    """
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
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=layers,
        bias="lora_only" if settings.biases == "lora" else "none",
    )
    model = LoraModel(body, lora, _ADAPTER)
    if "shared-qkv" in settings.targets:
        _share(body, [name for name in layers if re.search(_QKV, name)])
    return model


def _share(body: nn.Module, layers: list[str]) -> None:
    """Let the query, key and value of a block project what they see to the rank by one matrix."""
    first: dict[str, nn.Module] = {}
    for name in layers:
        block, _, _ = name.rpartition(".")
        projections = body.get_submodule(f"{name}.lora_A")
        assert isinstance(projections, nn.ModuleDict)
        projections[_ADAPTER] = first.setdefault(block, projections[_ADAPTER])
