"""Volumes through a 3D network, one after the other; windows of one are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.telemetry import Seconds, clock
from pipeline.preprocessing.volume_input import Volume, network_input
from pipeline.recipe import Recipe
from stores.errors import DeviceError


class SeesVolumes(Protocol):
    """What gives vectors of volumes: a 3D network, or one of slices along planes of them."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the vectors (b, d), float, of volumes x (b, 1, X, Y, Z) in [0, 1]."""


class VolumeForward:
    """What sees volumes, and a recipe. All that is handed in is computed at once: nothing waits.

    It has of `Forward` what a run asks of either.
    """

    most = 1

    def __init__(self, network: SeesVolumes, recipe: Recipe) -> None:
        self.network = network
        self.recipe = recipe

    def vector(self, volume: Volume, seconds: Seconds) -> NDArray[Any]:
        """Return (d,) what the network says of a volume, in the recipe's dtype.

        seconds: where the time it takes is added. Raises DeviceError where memory runs out.
        """
        how = self.recipe.preprocess.volume
        assert how is not None
        shape, _ = self.recipe.arrays["volume"]
        # In float64: of many windows a sum in float32 would lose digits.
        total = torch.zeros(shape, dtype=torch.float64)
        count = 0
        inputs = network_input(volume, how)
        try:
            while True:
                with clock(seconds, "preprocess"):
                    x = next(inputs, None)
                if x is None:
                    break
                with clock(seconds, "forward"):
                    total += self.network(x)[0].double().cpu()
                count += 1
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"One volume is too much for the memory of {self.network.device} "
                f"({str(error).splitlines()[0]}). Take a smaller network, or --device cpu."
            ) from None
        mean = total / count
        return mean.to(getattr(torch, self.recipe.dtype)).numpy()

    def pass_by(self, deliver: Callable[[dict[str, NDArray[Any]]], None]) -> None:
        """Call `deliver` without features: all that came before was handed over."""
        deliver({})

    def flush(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Nothing is to be ended."""
