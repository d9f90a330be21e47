"""Learned position embeddings taken to another grid, by the rule of whoever trained them.

Done once, at load: given a grid of exactly its own size, transformers uses them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stores.errors import WeightsError

# The official code adds 0.1 to the grid before dividing, to dodge a rounding error in torch; the
# scale factor it gives moves the sampling positions, so it must be repeated for equal features.
INTERPOLATE_OFFSET = 0.1


def resample_positions(positions: Tensor, grid: int, *, antialias: bool) -> Tensor:
    """Resample position embeddings (1, 1 + g*g, d) to (1, 1 + grid*grid, d) by DINOv2's rule.

    Mirrors `interpolate_pos_encoding` of facebookresearch/dinov2 (vision_transformer.py): bicubic
    in float32; without registers by scale factor (grid + 0.1) / g and no antialias, with registers
    to the size itself with antialias.
    """
    old = _side(positions.shape[1] - 1)
    if old == grid:
        return positions
    dim = positions.shape[2]
    table = positions[:, 1:].float().reshape(1, old, old, dim).permute(0, 3, 1, 2)
    if antialias:
        table = interpolate(table, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        scale = (grid + INTERPOLATE_OFFSET) / old
        table = interpolate(table, scale_factor=(scale, scale), mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(1, grid * grid, dim)
    return torch.cat([positions[:, :1], table.to(positions.dtype)], dim=1)


def resample_as_transformers(positions: Tensor, grid: int) -> Tensor:
    """Resample positions (..., 1 + g*g, d) to (..., 1 + grid*grid, d), bicubic, as transformers."""
    flat = positions.reshape(-1, positions.shape[-1])
    old = _side(len(flat) - 1)
    if old == grid:
        return positions
    table = flat[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    table = interpolate(table, size=(grid, grid), mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(grid * grid, -1)
    resampled = torch.cat([flat[:1], table.to(flat.dtype)])
    return resampled.reshape(*positions.shape[:-2], *resampled.shape)


def _side(count: int) -> int:
    """Return the side of a square grid of so many positions. Raises WeightsError for another."""
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(f"Position embeddings must be a square grid. Got {count} positions.")
    return side
