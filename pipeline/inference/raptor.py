"""Raptor: volumes through a network of slices, along three planes, with nothing trained.

An et al., arXiv 2507.08254: the patch tokens of all slices of a plane are averaged at each place of
the grid, and the average is projected onto random directions. With `seed` 0 these are those that
the authors' own script draws. Otherwise than there, what a slice is scaled, turned and resized by
is the recipe's, as for slices alone; and the CLS token, there one more place, is left out.

Dims: n slices of a plane, S x S of a network's input, g x g patches of d features, K projections.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from pipeline.preprocessing.prepare import normalise, squared
from pipeline.preprocessing.volume_input import as_shown
from pipeline.recipe import Raptor, Recipe
from pipeline.types import Plane


class PlanarNetwork:
    """A network of slices that sees volumes; called with x (1, 1, X, Y, Z) in RAS and [0, 1].

    most: slices that pass through it at once.
    """

    def __init__(self, network: Backbone, recipe: Recipe, raptor: Raptor, most: int) -> None:
        self._network = network
        self._recipe = recipe
        self._planes = raptor.planes
        self._most = most
        matrix = projection(network.architecture.dim, raptor)
        self._projection = torch.from_numpy(matrix).to(network.device, torch.float32)

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return self._network.device

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return (1, planes * K * g * g): of each plane, of each projection, the grid by rows."""
        voxels = x[0, 0].to(self.device)
        return torch.cat([self._plane(voxels, plane) for plane in self._planes])[None]

    def _plane(self, voxels: Tensor, plane: Plane) -> Tensor:
        """Return (K * g * g,) what is said of a plane of a volume (X, Y, Z)."""
        slices = as_shown(voxels, plane)
        total = torch.zeros((), device=self.device)
        for some in torch.split(slices, self._most):
            grey = squared(some[:, None], self._recipe.preprocess.aspect, self._recipe.image_size)
            colour = grey.expand(-1, 3, -1, -1).clone()  # normalised in place
            tokens = self._network(normalise(colour, self._network.architecture)).patch
            total = total + tokens.sum(dim=0)  # (g, g, d)
        projected = total.flatten(0, 1) / len(slices) @ self._projection  # (g * g, K)
        return projected.T.flatten()


def projection(d: int, raptor: Raptor) -> NDArray[np.float64]:
    """Return the matrix (d, K) that tokens are multiplied by.

    Of NumPy's older generator, whose numbers for a seed are the same for good.
    """
    return np.random.RandomState(raptor.seed).standard_normal((d, raptor.numbers))
