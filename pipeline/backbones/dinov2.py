"""DINOv2's vision transformer, with and without registers, as the official code defines it.

Written out here because the library that has it takes seconds to import, which every process that
embeds would pay. Parameters are named as in transformers, whose class and the official outputs are
the judges of its numbers in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from pipeline.recipe import Architecture
from stores.errors import WeightsError

# SwiGLU keeps two thirds of the MLP's width, rounded up to a multiple of this.
_SWIGLU_MULTIPLE = 8
# Keys that a message names of each kind.
_TOLD = 5


class BlockTokens(NamedTuple):
    """Tokens (b, 1 + registers + h w, d): after each block, and the last ones after the norm."""

    blocks: tuple[Tensor, ...]
    last: Tensor


class _Linear(nn.Linear):
    """Begins with anything: drawing weights that are replaced takes 10 s for the largest."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class _Convolution(nn.Conv2d):
    """Begins with anything, as `_Linear`."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Dinov2(nn.Module):
    """The network, for square images of one size.

    Its learned positions are those of its own grid: `positions.resample_positions` takes others
    to it when weights are read.
    """

    def __init__(self, architecture: Architecture, image_size: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(architecture, image_size)
        self.encoder = _Encoder(architecture)
        self.layernorm = nn.LayerNorm(architecture.dim, eps=architecture.eps)

    def forward(self, x: Tensor) -> BlockTokens:
        """Return the tokens of images x (b, 3, S, S)."""
        blocks = self.encoder(self.embeddings(x))
        return BlockTokens(blocks, self.layernorm(blocks[-1]))


class _Embeddings(nn.Module):
    """Patches, CLS and registers with their positions; registers have none."""

    def __init__(self, architecture: Architecture, image_size: int) -> None:
        super().__init__()
        dim = architecture.dim
        grid = image_size // architecture.patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        # Of the training alone, but in every file of weights.
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + grid * grid, dim))
        self.patch_embeddings = _PatchEmbeddings(dim, architecture.patch)
        self.registers = architecture.registers
        if self.registers:
            self.register_tokens = nn.Parameter(torch.empty(1, self.registers, dim))

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        cls = self.cls_token.expand(count, -1, -1)
        tokens = torch.cat([cls, self.patch_embeddings(x)], dim=1) + self.position_embeddings
        if self.registers:
            registers = self.register_tokens.expand(count, -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens


class _PatchEmbeddings(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.projection = _Convolution(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.projection(x).flatten(2).transpose(1, 2)
        return tokens


class _Encoder(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Block(architecture) for _ in range(architecture.depth)])

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        blocks: list[Tensor] = []
        for layer in self.layer:
            tokens = layer(tokens)
            blocks.append(tokens)
        return tuple(blocks)


class _Block(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim = architecture.dim
        self.norm1 = nn.LayerNorm(dim, eps=architecture.eps)
        self.attention = _Attention(dim, architecture.heads)
        self.layer_scale1 = _LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=architecture.eps)
        width = int(dim * architecture.mlp_ratio)
        self.mlp = _SwiGlu(dim, width) if architecture.ffn == "swiglu" else _Mlp(dim, width)
        self.layer_scale2 = _LayerScale(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer_scale1(self.attention(self.norm1(tokens))) + tokens
        output: Tensor = self.layer_scale2(self.mlp(self.norm2(tokens))) + tokens
        return output


class _Attention(nn.Module):
    """Self-attention. The official files hold q, k and v as one matrix, here they are three."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = _Linear(dim, dim)
        self.k_proj = _Linear(dim, dim)
        self.v_proj = _Linear(dim, dim)
        self.o_proj = _Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self._by_head(self.q_proj(tokens))
        key = self._by_head(self.k_proj(tokens))
        value = self._by_head(self.v_proj(tokens))
        attended = scaled_dot_product_attention(query, key, value)
        output: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output

    def _by_head(self, tokens: Tensor) -> Tensor:
        """Return tokens (b, n, d) as (b, heads, n, d / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.lambda1


class _Mlp(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = _Linear(dim, width)
        self.fc2 = _Linear(width, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return output


class _SwiGlu(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        multiples = (int(width * 2 / 3) + _SWIGLU_MULTIPLE - 1) // _SWIGLU_MULTIPLE
        hidden = multiples * _SWIGLU_MULTIPLE
        self.gate_proj = _Linear(dim, hidden)
        self.up_proj = _Linear(dim, hidden)
        self.down_proj = _Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        gated = silu(self.gate_proj(tokens)) * self.up_proj(tokens)
        output: Tensor = self.down_proj(gated)
        return output


# --- with weights --------------------------------------------------------------------------------


def empty_network(architecture: Architecture, image_size: int) -> Dinov2:
    """Return a network whose parameters hold anything: to be filled, every one."""
    return Dinov2(architecture, image_size)


def loaded_network(
    architecture: Architecture, image_size: int, state: dict[str, Tensor], file: Path
) -> Dinov2:
    """Return a network with the weights of a state dict, in float32; every key must fit.

    Raises WeightsError naming and counting missing, unexpected and misshapen keys.
    """
    network = empty_network(architecture, image_size)
    check_keys(architecture, file, *_faults_of(network.state_dict(), state), state)
    network.load_state_dict(state)
    return network


def _faults_of(
    expected: dict[str, Tensor], state: dict[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    mismatched = [
        f"{name} ({tuple(state[name].shape)}, not {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return missing, unexpected, mismatched


def check_keys(
    architecture: Architecture,
    file: Path,
    missing: list[str],
    unexpected: list[str],
    mismatched: list[str],
    there: Iterable[str],
) -> None:
    """Raise WeightsError where keys of a file do not fit its network; there: all that it has."""
    kinds = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    faults = [f"{kind}: {_first_of(sorted(keys))}" for kind, keys in kinds.items() if keys]
    if faults:
        raise WeightsError(
            f"{str(file)!r} does not fit the network asked for ({architecture.family}, dim "
            f"{architecture.dim}, depth {architecture.depth}, {architecture.registers} registers). "
            f"{'; '.join(faults)}. Its first keys: {', '.join([*there][:_TOLD])}. Name in "
            "backbone.weights the file of that network, or in backbone.name the network of that "
            "file."
        )


def _first_of(keys: list[str]) -> str:
    """Return the first of some keys, and how many there are beside: of another network hundreds."""
    more = len(keys) - _TOLD
    return ", ".join(keys[:_TOLD]) + (f" and {more} more" if more > 0 else "")
