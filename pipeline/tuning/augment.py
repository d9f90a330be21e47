"""Images changed by chance, on tensors: what a network should not mind."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.recipe import Architecture

# Mild, from the least to the most of each.
TURN = 10.0  # degrees either way
SCALE = (0.9, 1.1)
SHIFT = 0.05  # of the side
CONTRAST = (0.8, 1.2)  # about the image's mean
BRIGHTNESS = 0.1  # either way, of the range from black to white
# As the code of arXiv 2312.02366.
AREA = (0.75, 1.0)  # share of the area that a crop keeps
RATIO = (3 / 4, 4 / 3)  # its width to its height
Kind = Literal["none", "mild", "paper"]
Floats = NDArray[np.float64]
Draws = Floats


def augmented(x: Tensor, kind: Kind, draws: Draws, architecture: Architecture) -> Tensor:
    """Return normalised images (b, 3, S, S) changed as `draws` (b, 6), of [0, 1), state.

    mild: turned, scaled, shifted, contrast and brightness; paper: cropped and flipped. What comes
    from outside is black.
    """
    if kind == "none" or not len(x):
        return x
    mean = _of_channels(architecture.mean, x.device)
    std = _of_channels(architecture.std, x.device)
    # As grey levels of [0, 1], so that the zeros that come from outside are black.
    grey = x * std + mean
    grid = _sampling_grid(x, kind, draws)
    grey = functional.grid_sample(grey, grid, mode="bicubic", align_corners=False)
    if kind == "mild":
        grey = _recontrasted(grey, draws)
    # Bicubic sampling overshoots, and brightness may leave the range.
    grey = grey.clamp(0, 1)
    return (grey - mean) / std


def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a number a channel as (3, 1, 1)."""
    return torch.tensor(values, device=device)[:, None, None]


def _recontrasted(grey: Tensor, draws: Draws) -> Tensor:
    """Return images (b, 3, S, S) with other contrast and brightness, the last two of the draws."""
    change = torch.from_numpy(draws[:, 4:].astype(np.float32))
    change = change.to(grey.device)[..., None, None]  # (b, 2, 1, 1)
    contrast = _between(CONTRAST, change[:, :1])
    brightness = BRIGHTNESS * _either_way(change[:, 1:])
    middle = grey.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = (grey - middle) * contrast + middle + brightness
    return changed


def moved_along(masks: Tensor, kind: Kind, draws: Draws) -> Tensor:
    """Return label values (b, S, S) moved as `augmented` moves images; outside is background."""
    if kind == "none" or not len(masks):
        return masks
    values = masks[:, None].float()
    grid = _sampling_grid(values, kind, draws)
    moved = functional.grid_sample(values, grid, mode="nearest", align_corners=False)
    return moved[:, 0].to(masks.dtype)


# --- where pixels come from ----------------------------------------------------------------------


def _sampling_grid(x: Tensor, kind: Kind, draws: Draws) -> Tensor:
    """Return (b, S, S, 2): where each pixel of (b, C, S, S) comes from."""
    matrices = _mild(draws) if kind == "mild" else _paper(draws)
    theta = torch.from_numpy(matrices.astype(np.float32)).to(x.device)
    return functional.affine_grid(theta, list(x.shape), align_corners=False)


def _mild(draws: Draws) -> Floats:
    """Return (b, 2, 3): where each pixel comes from, in [-1, 1] over the image."""
    of_turn, of_scale, of_x, of_y, *_ = draws.T
    turn = np.deg2rad(TURN * _either_way(of_turn))
    # A larger image is sampled from closer places.
    size = 1 / _between(SCALE, of_scale)
    # The side is 2 in these units.
    x = 2 * SHIFT * _either_way(of_x)
    y = 2 * SHIFT * _either_way(of_y)
    cos = np.cos(turn) * size
    sin = np.sin(turn) * size
    return _matrices([cos, -sin, x], [sin, cos, y])


def _paper(draws: Draws) -> Floats:
    """Return (b, 2, 3) as `_mild` does, of a crop that may be flipped."""
    of_area, of_ratio, of_x, of_y, of_flip, _ = draws.T
    area = _between(AREA, of_area)
    # Evenly by its logarithm, so that upright and lying crops are as frequent.
    least, most = RATIO
    logarithm = np.log(least) + np.log(most / least) * of_ratio
    ratio = np.exp(logarithm)
    width = np.sqrt(area * ratio)
    height = np.sqrt(area * (1 / ratio))
    # No crop is larger than the image.
    width = np.minimum(1, width)
    height = np.minimum(1, height)
    x = (1 - width) * _either_way(of_x)
    y = (1 - height) * _either_way(of_y)
    flip = np.where(of_flip < 0.5, -1.0, 1.0)
    zero = np.zeros(len(draws))
    return _matrices([flip * width, zero, x], [zero, height, y])


def _matrices(first: list[Floats], second: list[Floats]) -> Floats:
    """Return (b, 2, 3) of the rows, each of three numbers an image (b,)."""
    rows = [np.stack(first, 1), np.stack(second, 1)]
    return np.stack(rows, 1)


# --- what a draw of [0, 1) stands for ------------------------------------------------------------


def _between(ends: tuple[float, float], draw: Any) -> Any:
    """Return numbers from the least to the most."""
    least, most = ends
    return least + (most - least) * draw


def _either_way(draw: Any) -> Any:
    """Return numbers from -1 to 1."""
    return 2 * draw - 1
