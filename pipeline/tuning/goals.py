"""What a network is trained for: classes or a number of units, or the masks of their slices.

Dims: m slices, b units, o outputs, c classes, S side of the network's input.
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
from pipeline.recipe import Architecture
from pipeline.segmentation.contracts import Source
from pipeline.segmentation.selection import Overlap
from pipeline.segmentation.training import loss
from pipeline.tuning.augment import augmented, moved_along
from pipeline.tuning.images import Ask
from pipeline.tuning.network import Network

Rows = NDArray[np.int64]
Draws = NDArray[np.float64]
# Of pixels as well as of structures: Dice alone hardly moves a network that draws nothing yet.
LOSS = Segment(loss="dice-ce")


class Goal(Protocol):
    """What is learnt of batches of images (m, 3, S, S), of which `kept` (m,) of an ask's slices."""

    def loss(self, network: Network, ask: Ask, x: Tensor, kept: Rows, draws: Draws) -> Tensor:
        """Return the sum of the losses of the units that are there over the number asked.

        draws (m, 6): of [0, 1), by which images are changed.
        """

    def see(self, network: Network, ask: Ask, x: Tensor, kept: Rows) -> None:
        """Take note of what the network says of a batch."""

    def quality(self) -> float:
        """Return how good what was seen of val is, more being better, or NaN; and forget it."""


@dataclass
class Labels:
    """Classes or a number: a unit is told from the mean features of its slices.

    val: the units that are looked at while training.
    """

    units: Units
    val: Rows
    objective: Objective
    settings: Tuning
    architecture: Architecture
    _seen: list[tuple[Ask, Tensor, Rows]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._learnt = self.objective.targets(self.units)

    def loss(self, network: Network, ask: Ask, x: Tensor, kept: Rows, draws: Draws) -> Tensor:
        """A unit none of whose slices can be used is left out."""
        weights = _means(ask.own[kept], len(ask.units))
        there = weights.any(axis=1)
        x = augmented(x, self.settings.augment, draws, self.architecture)
        logits = network(x, torch.from_numpy(weights[there]).to(x.device))
        return self._learnt.loss(logits, torch.from_numpy(ask.units[there])) * float(there.mean())

    @torch.no_grad()
    def see(self, network: Network, ask: Ask, x: Tensor, kept: Rows) -> None:
        """Keep the features of the slices, until all of a unit are there."""
        head = network.head
        assert isinstance(head, nn.Linear)
        none = torch.empty((0, head.in_features), device=x.device)
        self._seen.append((ask, network.features(x) if len(x) else none, kept))
        self._head = head

    def quality(self) -> float:
        """Return the macro AUROC, or less the squared error."""
        proba, there = self.said()
        if not there.any():
            return math.nan
        return self.objective.quality(self.units.at(self.val[there]), proba)

    @torch.no_grad()
    def said(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the probabilities (q, c) of the units seen that have a slice, and which; forget.

        Of a number: the numbers (q, 1).
        """
        own = np.concatenate([ask.own[kept] for ask, _, kept in self._seen])
        features = torch.cat([features for _, features, _ in self._seen])
        n = len(self._seen[0][0].units)
        self._seen.clear()
        at = torch.from_numpy(own).to(features.device)
        # Slices of a unit follow each other: summed in their order, whatever the batches are.
        pooled = torch.zeros((n, features.shape[1]), device=features.device)
        pooled.index_add_(0, at, features)
        counts = torch.bincount(at, minlength=n)
        logits = self._head(pooled / counts.clamp_min(1)[:, None])
        there = (counts > 0).cpu().numpy()
        return self.objective.decode(logits)[there], there


def _means(own: Rows, units: int) -> NDArray[np.float32]:
    """Return (b, m): what each slice counts in its unit; a row of zeros where it has none."""
    member = own[None, :] == np.arange(units)[:, None]
    counts = np.maximum(member.sum(axis=1, keepdims=True), 1)
    return np.asarray(member / counts, np.float32)


@dataclass
class Outlines:
    """The masks of slices, each a unit of its own, as a segmentation head draws them."""

    source: Source
    settings: Tuning
    architecture: Architecture

    def __post_init__(self) -> None:
        self._loss = loss(LOSS)
        self._overlap = Overlap(1, len(self.source.classes))

    def loss(self, network: Network, ask: Ask, x: Tensor, kept: Rows, draws: Draws) -> Tensor:
        """MONAI's, of the masks changed along with their images."""
        kind = self.settings.augment
        masks = torch.from_numpy(self.source.masks(ask.rows[kept])).to(x.device)
        masks = moved_along(masks, kind, draws)
        logits = network.head(network.features(augmented(x, kind, draws, self.architecture)))
        return self._loss(logits, masks[:, None]) * (len(kept) / len(ask.rows))

    def see(self, network: Network, ask: Ask, x: Tensor, kept: Rows) -> None:
        """Count pixels by label value."""
        rows = ask.rows[kept]
        for row, labels in drawn(network, rows, x):
            self._overlap.add(0, self.source.masks(np.array([row])), labels)

    def quality(self) -> float:
        """Return the Dice (see `Overlap.dice`); NaN as long as nothing that is true is drawn."""
        dice = float(self._overlap.dice()[0])
        self._overlap = Overlap(1, len(self.source.classes))
        return dice or math.nan


@torch.no_grad()
def drawn(network: Network, rows: Rows, x: Tensor) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each row with the likeliest label values (S, S) of its image."""
    if len(rows):
        logits = network.head(network.features(x))
        labels = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
        yield from zip(rows.tolist(), labels, strict=True)
