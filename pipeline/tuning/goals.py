"""What a network is trained for: classes or a number of units, or the masks of their slices.

Dims: m slices asked for, k of them that can be used, b units, o outputs, c classes, S side of the
network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.annotations.units import Units
from pipeline.config.segmentation import Segment
from pipeline.config.tuning import Tuning
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.metrics.quality import Quality, quality
from pipeline.recipe import Architecture
from pipeline.segmentation.contracts import TokenSource
from pipeline.segmentation.selection import Overlap
from pipeline.segmentation.training import loss
from pipeline.tuning.augment import Draws, augmented, moved_along
from pipeline.tuning.images import ImageBatch
from pipeline.tuning.network import TunableNetwork

Rows = NDArray[np.int64]
# Of pixels as well as of structures: Dice alone hardly moves a network that draws nothing yet.
LOSS = Segment(loss="dice-ce")


class Goal(Protocol):
    """What is learnt of batches of images, and how well it is known on val."""

    def loss(self, network: TunableNetwork, batch: ImageBatch, draws: Draws) -> Tensor:
        """Return the sum of the losses of the units that are there over the number asked for.

        draws (k, 6): of [0, 1), by which images are changed.
        """

    def observe(self, network: TunableNetwork, batch: ImageBatch) -> None:
        """Take note of what the network predicts for a batch."""

    def quality(self) -> Quality:
        """Return how good what was observed of val is, its score NaN for nothing; and forget it."""


# --- classes and numbers -------------------------------------------------------------------------


@dataclass
class LabelGoal:
    """Classes or a number: a unit is predicted from the mean features of its slices.

    val: the units that are looked at while training.
    """

    units: Units
    val: Rows
    objective: Objective
    settings: Tuning
    architecture: Architecture
    # Batches, and the features (k, d) of their slices, until all of a unit are there.
    _observed: list[tuple[ImageBatch, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._targets = self.objective.targets(self.units)

    def loss(self, network: TunableNetwork, batch: ImageBatch, draws: Draws) -> Tensor:
        """Return the loss; a unit none of whose slices can be used is left out."""
        units = batch.request.units
        weights = _slice_weights(batch.unit_of, len(units))
        there = weights.any(axis=1)
        x = augmented(batch.x, self.settings.augment, draws, self.architecture)
        of_there = torch.from_numpy(weights[there]).to(x.device)
        logits = network(x, of_there)
        # The loss is a mean over the units there; times their share it is a part of the step's.
        loss = self._targets.loss(logits, torch.from_numpy(units[there]))
        return loss * float(there.mean())

    @torch.no_grad()
    def observe(self, network: TunableNetwork, batch: ImageBatch) -> None:
        """Keep the features of the slices, until all of a unit are there."""
        head = network.head
        assert isinstance(head, nn.Linear)
        if len(batch.x):
            features = network.features(batch.x)
        else:
            features = torch.empty((0, head.in_features), device=batch.x.device)
        self._observed.append((batch, features))
        self._head = head

    def quality(self) -> Quality:
        """Return the macro AUROC and the log-loss, or less the squared error."""
        proba, there = self.predictions()
        if not there.any():
            return Quality(math.nan)
        return quality(self.units.at(self.val[there]), proba)

    @torch.no_grad()
    def predictions(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the probabilities (q, c) of the units observed that have a slice, and which (b,).

        Of a number: the numbers (q, 1). What was observed is forgotten.
        """
        unit_of = np.concatenate([batch.unit_of for batch, _ in self._observed])
        features = torch.cat([features for _, features in self._observed])
        # Every request of val, or of a test, names all of its units.
        first, _ = self._observed[0]
        n = len(first.request.units)
        self._observed.clear()
        index = torch.from_numpy(unit_of).to(features.device)
        # Slices of a unit follow each other: summed in their order, whatever the batches are.
        total = torch.zeros((n, features.shape[1]), device=features.device)
        total.index_add_(0, index, features)
        counts = torch.bincount(index, minlength=n)
        divisor = counts.clamp_min(1)[:, None]
        logits = self._head(total / divisor)
        there = (counts > 0).cpu().numpy()
        return self.objective.decode(logits)[there], there


def _slice_weights(unit_of: Rows, units: int) -> NDArray[np.float32]:
    """Return (b, k): what each slice counts in its unit; a row of zeros where it has none."""
    numbers = np.arange(units)
    member = unit_of[None, :] == numbers[:, None]
    counts = member.sum(axis=1, keepdims=True)
    weights = member / np.maximum(counts, 1)
    return np.asarray(weights, np.float32)


# --- masks ---------------------------------------------------------------------------------------


@dataclass
class MaskGoal:
    """The masks of slices, each a unit of its own, as a segmentation head draws them."""

    source: TokenSource
    settings: Tuning
    architecture: Architecture

    def __post_init__(self) -> None:
        self._loss = loss(LOSS)
        self._overlap = self._no_overlap()

    def _no_overlap(self) -> Overlap:
        return Overlap(1, len(self.source.classes))

    def loss(self, network: TunableNetwork, batch: ImageBatch, draws: Draws) -> Tensor:
        """Return MONAI's loss, of the masks changed along with their images."""
        kind = self.settings.augment
        masks = torch.from_numpy(self.source.masks(batch.rows))
        masks = moved_along(masks.to(batch.x.device), kind, draws)
        x = augmented(batch.x, kind, draws, self.architecture)
        logits = network.head(network.features(x))
        loss = self._loss(logits, masks[:, None])
        # The loss is a mean over the slices there; times their share it is a part of the step's.
        share = len(batch.places) / len(batch.request.rows)
        return loss * share

    def observe(self, network: TunableNetwork, batch: ImageBatch) -> None:
        """Count pixels by label value."""
        for row, labels in predict_masks(network, batch):
            self._overlap.add(0, self.source.masks(np.array([row])), labels)

    def quality(self) -> Quality:
        """Return the Dice (see `Overlap.dice`); NaN as long as nothing that is true is drawn."""
        dice = float(self._overlap.dice()[0])
        self._overlap = self._no_overlap()
        return Quality(dice or math.nan)


@torch.no_grad()
def predict_masks(
    network: TunableNetwork, batch: ImageBatch
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each row of a batch with the likeliest label values (S, S) of its image."""
    if not len(batch.rows):
        return
    logits = network.head(network.features(batch.x))
    likeliest = logits.argmax(dim=1).to(torch.uint8)
    labels = likeliest.cpu().numpy()
    yield from zip(batch.rows.tolist(), labels, strict=True)
