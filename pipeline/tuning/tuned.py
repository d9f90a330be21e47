"""A network that was tuned and saved, asked once more: about slices of the store it was tuned on.

And its head, as a model files it. Dims: n units, m slices, d features, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from pipeline.annotations.units import Prediction, Units
from pipeline.backbones.load import load_backbone
from pipeline.config.feature_sets import made_of
from pipeline.config.root import Config
from pipeline.config.tasks import FeatureSet
from pipeline.config.tuning import Tuning
from pipeline.evaluation.heads.contract import HeadState, Predictor
from pipeline.evaluation.heads.objective import Objective
from pipeline.inference.speed import Speed
from pipeline.recipe import recipe_of
from pipeline.segmentation.linear import LinearTokenHead
from pipeline.shared.arrays import Floats, Rows
from pipeline.shared.devices import pick_device
from pipeline.tuning.goals import predict_masks
from pipeline.tuning.images import Images, all_slices
from pipeline.tuning.network import TunableNetwork
from pipeline.tuning.saving import HEAD
from stores.features import FeatureStore


@dataclass(frozen=True)
class TunedNetwork:
    """A tuned network with its head, and the images of the store that it was tuned on."""

    network: TunableNetwork
    images: Images
    at_once: int

    @classmethod
    def load(
        cls,
        config: Config,
        store: FeatureStore,
        folder: Path,
        settings: Tuning,
        head: nn.Module | None = None,
        device: str = "auto",
    ) -> TunedNetwork:
        """Load a network from the folder that tuning saved it in.

        head: on patch tokens; None for the features that the settings name, alone.
        """
        recipe = recipe_of(store)
        place = pick_device(device)
        features: FeatureSet | Literal["patch"] = "patch" if head else settings.features
        backbone = load_backbone(
            config.backbone.name,
            str(folder),
            image_size=recipe.image_size,
            blocks=made_of(features).blocks,
            device=place,
            precision=settings.precision,
            treatment=recipe.architecture.treatment,
        )
        network = TunableNetwork(backbone, head or nn.Identity(), features).to(place)
        network.switch_dropout(False)
        workers = Speed().chosen(place, recipe).workers or 0
        images = Images(config, store, recipe, torch.device(place), workers)
        return cls(network, images, settings.at_once)

    @torch.no_grad()
    def unit_features(self, units: Units, numbers: Rows) -> tuple[Floats, NDArray[np.bool_]]:
        """Return (n, d) the mean features of some units, and which have a slice that can be used.

        Of patch tokens their mean.
        """
        bags = units.bags()
        rows = [units.rows[bags[unit]] for unit in numbers.tolist()]
        total: torch.Tensor | None = None
        counts = np.zeros(len(numbers), np.int64)
        for batch in self.images.batches(all_slices(numbers, rows, self.at_once, "test")):
            x = self.network.features(batch.x).float().cpu()
            if x.ndim > 2:
                x = x.mean(dim=(1, 2, 3))
            if total is None:
                total = torch.zeros((len(numbers), x.shape[1]))
            # Slices of a unit follow each other: summed in their order, as while it was tuned.
            total.index_add_(0, torch.from_numpy(batch.unit_of), x)
            np.add.at(counts, batch.unit_of, 1)
        assert total is not None, "there are units, and each has a slice"
        divisor = torch.from_numpy(np.maximum(counts, 1))[:, None]
        return (total / divisor).numpy(), counts > 0

    def masks(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row whose image can be used with its label values (S, S)."""
        each = [rows[i : i + 1] for i in range(len(rows))]
        numbers = np.arange(len(rows))
        for batch in self.images.batches(all_slices(numbers, each, self.at_once, "test")):
            yield from predict_masks(self.network, batch)


# --- its head --------------------------------------------------------------------------------


def saved_head(folder: Path) -> dict[str, NDArray[Any]]:
    """Return weight (o, d) and bias (o,) of the head that was saved with a network."""
    arrays: dict[str, NDArray[Any]] = load_file(folder / HEAD)
    return arrays


def label_state(folder: Path, units: Units, train: Rows, setting: dict[str, float]) -> HeadState:
    """Return a head on features as it is filed. units, train: that it was tuned on."""
    about = Objective.of(units, train).to_about()
    return HeadState(saved_head(folder), {**about, "setting": setting})


def from_state(state: HeadState) -> Predictor:
    """Return what a filed head says of units, from the mean features (n, d) of their slices."""
    objective = Objective.of_about(state.about)
    # Copies: arrays read from a file may not be written to.
    weight = torch.from_numpy(np.array(state.arrays["weight"]))
    bias = torch.from_numpy(np.array(state.arrays["bias"]))
    setting = dict(state.about["setting"])

    def predict(x: Floats, units: Units) -> list[Prediction]:
        outputs = nn.functional.linear(torch.from_numpy(x), weight, bias)
        return [Prediction(setting, objective.decode(outputs))]

    return predict


def mask_state(folder: Path) -> HeadState:
    """Return a head on patch tokens as it is filed: that of `segmentation.linear`."""
    arrays = saved_head(folder)
    return HeadState({f"classify.{name}": array for name, array in arrays.items()})


def mask_head(state: HeadState, classes: int, size: int) -> LinearTokenHead:
    """Return a head on patch tokens as it was tuned. size: S of the network's input."""
    dim = state.arrays["classify.weight"].shape[1]
    head = LinearTokenHead(dim, classes, size, norm=False)
    head.load_state_dict({name: torch.from_numpy(array) for name, array in state.arrays.items()})
    return head
