"""Images changed by chance, on tensors: what a network should not mind."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.recipe import Architecture

# Mild: degrees either way, scale, shift of the side, contrast about the mean, brightness.
TURN, SCALE, SHIFT, CONTRAST, BRIGHTNESS = 10.0, (0.9, 1.1), 0.05, (0.8, 1.2), 0.1
# As the code of arXiv 2312.02366: share of the area that a crop keeps, its width to its height.
AREA, RATIO = (0.75, 1.0), (3 / 4, 4 / 3)
Kind = Literal["none", "mild", "paper"]


def augmented(
    x: Tensor,
    kind: Kind,
    draws: NDArray[np.float64],
    architecture: Architecture,
) -> Tensor:
    """Return normalised images (b, 3, S, S) changed as `draws` (b, 6), of [0, 1), say.

    mild: turned, scaled, shifted, contrast and brightness; paper: cropped and flipped. What comes
    from outside is black.
    """
    if kind == "none" or not len(x):
        return x
    spread = architecture.mean, architecture.std
    mean, std = (torch.tensor(each, device=x.device)[:, None, None] for each in spread)
    at = _places(x, kind, draws)
    grey = functional.grid_sample(x * std + mean, at, mode="bicubic", align_corners=False)
    if kind == "mild":
        change = torch.from_numpy(draws[:, 4:].astype(np.float32)).to(x.device)[..., None, None]
        contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * change[:, :1]
        middle = grey.mean(dim=(1, 2, 3), keepdim=True)
        grey = (grey - middle) * contrast + middle + BRIGHTNESS * (2 * change[:, 1:] - 1)
    return (grey.clamp(0, 1) - mean) / std


def moved_along(masks: Tensor, kind: Kind, draws: NDArray[np.float64]) -> Tensor:
    """Return label values (b, S, S) moved as `augmented` moves images; outside is background."""
    if kind == "none" or not len(masks):
        return masks
    values = masks[:, None].float()
    at = _places(values, kind, draws)
    moved = functional.grid_sample(values, at, mode="nearest", align_corners=False)
    return moved[:, 0].to(masks.dtype)


def _places(x: Tensor, kind: Kind, draws: NDArray[np.float64]) -> Tensor:
    """Return (b, S, S, 2): where each pixel of (b, C, S, S) comes from."""
    theta = _mild(draws) if kind == "mild" else _paper(draws)
    return functional.affine_grid(
        torch.from_numpy(theta.astype(np.float32)).to(x.device), list(x.shape), align_corners=False
    )


def _mild(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (b, 2, 3): where each pixel comes from, in [-1, 1] over the image."""
    turn = np.deg2rad(TURN * (2 * u[:, 0] - 1))
    size = 1 / (SCALE[0] + (SCALE[1] - SCALE[0]) * u[:, 1])
    x, y = (2 * SHIFT * (2 * u[:, i] - 1) for i in (2, 3))
    cos, sin = np.cos(turn) * size, np.sin(turn) * size
    return np.stack([np.stack([cos, -sin, x], 1), np.stack([sin, cos, y], 1)], 1)


def _paper(u: NDArray[np.float64]) -> NDArray[np.float64]:
    area = AREA[0] + (AREA[1] - AREA[0]) * u[:, 0]
    ratio = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * u[:, 1])
    width, height = (np.minimum(1, np.sqrt(area * r)) for r in (ratio, 1 / ratio))
    x, y = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)
    flip, none = np.where(u[:, 4] < 0.5, -1.0, 1.0), np.zeros(len(u))
    return np.stack([np.stack([flip * width, none, x], 1), np.stack([none, height, y], 1)], 1)
