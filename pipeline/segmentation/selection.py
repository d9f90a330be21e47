"""Choosing on validation: the Dice of several candidates, counted as they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.segmentation import Segment
from pipeline.segmentation.contracts import Parts, Rows
from stores.errors import ConfigError


class Overlap:
    """What candidates predicted against what is true, over all pixels seen: m candidates."""

    def __init__(self, candidates: int, classes: int) -> None:
        self._counts = np.zeros((candidates, classes, classes), np.int64)  # true, predicted

    def add(self, candidate: int, true: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count one batch of label values of one candidate."""
        c = self._counts.shape[1]
        # A pair of label values is a number of two digits to the base c.
        pairs = true.astype(np.int64).ravel() * c + predicted.ravel()
        counts = np.bincount(pairs, minlength=c * c)
        self._counts[candidate] += counts.reshape(c, c)

    def dice(self) -> NDArray[np.float64]:
        """Return (m,): the mean Dice of the foreground classes that are true anywhere.

        2 tp / (2 tp + fp + fn) of a class, over all pixels of all images together.
        """
        true = self._counts.sum(axis=2)  # (m, c)
        predicted = self._counts.sum(axis=1)  # (m, c)
        hits = np.diagonal(self._counts, axis1=1, axis2=2)
        # All candidates saw the same masks, so that those of the first tell what is true.
        present = true[0] > 0
        present[0] = False
        if not present.any():
            return np.zeros(len(true))
        both = predicted + true
        dice: NDArray[np.float64] = (2 * hits[:, present] / both[:, present]).mean(axis=1)
        return dice


@dataclass
class Course:
    """How one candidate does on val, epoch after epoch: when it is at its best, and has ended.

    As long as it draws nothing that is true, its latest epoch is its best.
    """

    patience: int
    seen: int = 0
    best: int = 0
    dice: float = 0.0

    def add(self, dice: float) -> bool:
        """Take the Dice of one more epoch; return whether it is the best so far."""
        self.seen += 1
        if dice > self.dice or not self.dice:
            self.best = self.seen
            self.dice = dice
        return self.best == self.seen

    @property
    def ended(self) -> bool:
        """Whether it has not become better for `patience` epochs."""
        return self.seen - self.best >= self.patience


def check_parts(parts: Parts, name: str, candidates: Sequence[float]) -> None:
    """Raise ConfigError where there is nothing to learn from, or to choose one of several by."""
    if not len(parts["train"]):
        raise ConfigError("There is no slice with a mask to train on: the train part is empty.")
    if len(candidates) > 1 and not len(parts["val"]):
        raise ConfigError(
            f"One of {len(candidates)} values of {name} is chosen on val, and val has no slice "
            f"with a mask. Give {name} a single value, or a split with a val part."
        )


def learned_rows(parts: Parts, settings: Segment) -> Rows:
    """Return the rows that the head in use has learned from, once it is chosen."""
    if settings.refit == "none":
        return parts["train"]
    return np.concatenate([parts["train"], parts["val"]])


def chosen_note(name: str, candidates: Sequence[float], dice: NDArray[np.float64]) -> str:
    """Return what was chosen of what, and how well each did."""
    scores = [f"{value:g}: {score:.3f}" for value, score in zip(candidates, dice, strict=True)]
    return f"{name} chosen by the Dice on val ({', '.join(scores)})"
