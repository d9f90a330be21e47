"""Images changed by chance, on tensors: what a network should not mind."""

from __future__ import annotations

from typing import Literal

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
Draws = NDArray[np.float64]


def augmented(x: Tensor, kind: Kind, draws: Draws, architecture: Architecture) -> Tensor:
    """Return normalised images (b, 3, S, S) changed as `draws` (b, 6), of [0, 1), state.

    mild: turned, scaled, shifted, contrast and brightness; paper: cropped and flipped. What comes
    from outside is black.
    """
    if kind == "none" or not len(x):
        return x
    mean = torch.tensor(architecture.mean, device=x.device)[:, None, None]
    std = torch.tensor(architecture.std, device=x.device)[:, None, None]
    # Sampled as grey levels of [0, 1], so that the zeros from outside are black.
    grid = _sampling_grid(x, kind, draws)
    grey = functional.grid_sample(x * std + mean, grid, mode="bicubic", align_corners=False)
    if kind == "mild":
        grey = _recontrasted(grey, draws)
    return (grey.clamp(0, 1) - mean) / std


def _recontrasted(grey: Tensor, draws: Draws) -> Tensor:
    """Return images (b, 3, S, S) with other contrast and brightness, the last two of the draws."""
    change = torch.from_numpy(draws[:, 4:].astype(np.float32)).to(grey.device)[..., None, None]
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * change[:, :1]
    brightness = BRIGHTNESS * (2 * change[:, 1:] - 1)
    middle = grey.mean(dim=(1, 2, 3), keepdim=True)
    return (grey - middle) * contrast + middle + brightness


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
    theta = _mild(draws) if kind == "mild" else _paper(draws)
    return functional.affine_grid(
        torch.from_numpy(theta.astype(np.float32)).to(x.device), list(x.shape), align_corners=False
    )


def _mild(draws: Draws) -> NDArray[np.float64]:
    """Return (b, 2, 3): where each pixel comes from, in [-1, 1] over the image."""
    turn = np.deg2rad(TURN * (2 * draws[:, 0] - 1))
    # A larger image is sampled from closer places.
    size = 1 / (SCALE[0] + (SCALE[1] - SCALE[0]) * draws[:, 1])
    x = 2 * SHIFT * (2 * draws[:, 2] - 1)
    y = 2 * SHIFT * (2 * draws[:, 3] - 1)
    cos = np.cos(turn) * size
    sin = np.sin(turn) * size
    return _matrices([cos, -sin, x], [sin, cos, y])


def _paper(draws: Draws) -> NDArray[np.float64]:
    """Return (b, 2, 3) as `_mild` does, of a crop that may be flipped."""
    area = AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0]
    ratio = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * draws[:, 1])
    width = np.minimum(1, np.sqrt(area * ratio))
    height = np.minimum(1, np.sqrt(area * (1 / ratio)))
    x = (1 - width) * (2 * draws[:, 2] - 1)
    y = (1 - height) * (2 * draws[:, 3] - 1)
    flip = np.where(draws[:, 4] < 0.5, -1.0, 1.0)
    zero = np.zeros(len(draws))
    return _matrices([flip * width, zero, x], [zero, height, y])


def _matrices(
    first: list[NDArray[np.float64]], second: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return (b, 2, 3) of the rows, each of three numbers an image (b,)."""
    return np.stack([np.stack(first, 1), np.stack(second, 1)], 1)
