"""Small DINOv2 networks and weights files in the real formats, made by recipe."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

TINY = {"dim": 48, "depth": 5, "heads": 3}


def recipe_state(shapes: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return official-format weights by the recipe of the reference outputs (their README)."""
    state = {}
    for name, shape in shapes.items():
        z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(
            shape, dtype=np.float32
        )
        if name.endswith("gamma"):
            value = 0.5 + 0.02 * z
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.02 * z
        elif name in ("pos_embed", "cls_token", "register_tokens"):
            value = 0.2 * z
        else:
            value = 0.02 * z
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def official_shapes(
    dim: int, depth: int, *, registers: int = 0, swiglu: bool = False, grid: int = 37
) -> dict[str, list[int]]:
    """Return names and shapes of an official DINOv2 state dict of any size."""
    hidden = (int(dim * 4 * 2 / 3) + 7) // 8 * 8
    shapes = {
        "cls_token": [1, 1, dim],
        "pos_embed": [1, 1 + grid * grid, dim],
        "mask_token": [1, dim],
        "patch_embed.proj.weight": [dim, 3, 14, 14],
        "patch_embed.proj.bias": [dim],
        "norm.weight": [dim],
        "norm.bias": [dim],
    }
    if registers:
        shapes["register_tokens"] = [1, registers, dim]
    mlp = (
        {"w12": [2 * hidden, dim], "w3": [dim, hidden]}
        if swiglu
        else {"fc1": [4 * dim, dim], "fc2": [dim, 4 * dim]}
    )
    for i in range(depth):
        block = {"attn.qkv": [3 * dim, dim], "attn.proj": [dim, dim]}
        block |= {f"mlp.{name}": shape for name, shape in mlp.items()}
        for name, shape in block.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{i}.{name}"] = [dim]
        for name in ("ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = [dim]
    return shapes


def write_tiny_folder(
    folder: Path, seed: int = 0, *, registers: int = 0, depth: int = TINY["depth"]
) -> Path:
    """Write a tiny DINOv2 as Hugging Face saves it; returns the folder."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    shape = {
        "hidden_size": TINY["dim"],
        "num_hidden_layers": depth,
        "num_attention_heads": TINY["heads"],
        "image_size": 70,
        "patch_size": 14,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: torch.nn.Module
        if registers:
            config = Dinov2WithRegistersConfig(**shape, num_register_tokens=registers)
            model = Dinov2WithRegistersModel(config)
        else:
            model = Dinov2Model(Dinov2Config(**shape))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    return folder
