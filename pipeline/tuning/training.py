"""Training, step after step, and after each epoch a look at val.

One stream of images runs through the whole of it, so that files are read ahead of every step and
every look at val. Dims: m slices, b units, o outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Tuning
from pipeline.heads.objective import Objective, Targets
from pipeline.questions import Units
from pipeline.tuning import checkpoint
from pipeline.tuning.augment import augmented
from pipeline.tuning.images import Ask, Images
from pipeline.tuning.network import Network, groups

Rows = NDArray[np.int64]
# What is drawn in a step by each of these has a stream of its own.
_ORDER, _SLICES, _AUGMENT, _DROPOUT = range(4)
Beat = Callable[[int, int], None]  # steps done, of how many at most


@dataclass
class Training:
    """A network, what it learns from, and where its state is kept.

    train, val: unit numbers. every_s: seconds between two checkpoints.
    """

    network: Network
    images: Images
    units: Units
    train: Rows
    val: Rows
    settings: Tuning
    objective: Objective
    folder: Path
    every_s: float
    beat: Beat

    def __post_init__(self) -> None:
        settings = self.settings
        self.bags = self.units.bags()
        self.learnt: Targets = self.objective.targets(self.units)
        self.per_epoch = -(-len(self.train) // settings.batch)
        self.steps = settings.epochs * self.per_epoch
        peaks = groups(self.network, settings)
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(peaks, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(peaks)

    def run(self) -> checkpoint.Run:
        """Train to the end, from where a killed run stopped; the network is then of its best epoch.

        An epoch is better than another by its AUROC on val; where that is not defined, the last is
        kept.
        """
        began = time.perf_counter()
        run = checkpoint.load(self.folder, self.network, self.optimizer)
        before, saved = run.seconds, time.perf_counter()
        self.images.bad.update(run.bad)
        seen: list[tuple[Ask, Tensor, Rows]] = []

        def keep() -> None:
            run.bad, run.seconds = self.images.bad, before + time.perf_counter() - began
            checkpoint.save(self.folder, self.network, self.optimizer, run)

        batches = self.images.batches(self._plan(run.step, len(run.history)))
        for ask, x, kept in batches if not self._over(run) else ():
            if ask.stage == "train":
                self._learn(ask, x, kept)
                if not ask.last:
                    continue
                self._step(run.step)
                run.step += 1
                self.beat(run.step, self.steps)
                if time.perf_counter() - saved > self.every_s:
                    keep()
                    saved = time.perf_counter()
                continue
            seen.append((ask, self._features(x), kept))
            if ask.last:
                self._look(run, seen)
                seen.clear()
                keep()
                saved = time.perf_counter()
                if self._over(run):
                    batches.close()
                    break
        checkpoint.load_best(self.folder, self.network)
        return run

    def _over(self, run: checkpoint.Run) -> bool:
        epochs, patience = len(run.history), self.settings.patience
        known = any(value is not None for value in run.history)
        return epochs == self.settings.epochs or (known and epochs - run.best >= patience)

    # --- what is looked at, and when ---------------------------------------------------------

    def _plan(self, step: int, scored: int) -> Iterator[Ask]:
        """Yield what is to be seen from a step on, `scored` epochs having been held against val."""
        while True:
            if step == self.per_epoch * (scored + 1):
                scored += 1
                yield from self.all_of(self.val, "val", scored)
            if step == self.steps:
                return
            yield from self._of_step(step)
            step += 1

    def _of_step(self, step: int) -> Iterator[Ask]:
        """Yield the units of a step, so many together as `at_once` slices are, one at least."""
        epoch, place = divmod(step, self.per_epoch)
        order = self._chance(_ORDER, epoch).permutation(self.train)
        chosen = order[place * self.settings.batch : (place + 1) * self.settings.batch]
        rng, most = self._chance(_SLICES, step), self.settings.slices
        bags = [self._slices(unit) for unit in chosen]
        bags = [np.sort(rng.permutation(bag)[:most]) if len(bag) > most else bag for bag in bags]
        first = start = 0
        for stop in _fits([len(bag) for bag in bags], self.settings.at_once):
            some = bags[start:stop]
            own = np.repeat(np.arange(len(some)), [len(bag) for bag in some])
            units, share = chosen[start:stop], (stop - start) / len(chosen)
            last = stop == len(chosen)
            yield Ask("train", step, units, np.concatenate(some), own, first, share, last)
            first, start = first + len(own), stop

    def all_of(self, units: Rows, stage: Literal["val", "test"], number: int = 0) -> Iterator[Ask]:
        """Yield all slices of some units, `at_once` together."""
        rows = np.concatenate([self._slices(unit) for unit in units])
        own = np.repeat(np.arange(len(units)), [len(self.bags[unit]) for unit in units])
        size = self.settings.at_once
        for start in range(0, len(rows), size):
            some, places = rows[start : start + size], own[start : start + size]
            yield Ask(stage, number, units, some, places, last=start + size >= len(rows))

    def _slices(self, unit: int) -> Rows:
        return self.units.rows[self.bags[unit]]

    def _chance(self, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, what, number))

    # --- learning ------------------------------------------------------------------------------

    def _learn(self, ask: Ask, x: Tensor, kept: Rows) -> None:
        """Add the gradients of some units, whose share in the step's loss is that of their number.

        A unit counts by the mean of its slices; one none of whose slices can be used is left out.
        """
        weights = _means(ask.own[kept], len(ask.units))
        there = weights.any(axis=1)
        if not there.any():
            return
        draws = self._chance(_AUGMENT, ask.step).random((ask.first + len(ask.rows), 6))
        architecture = self.images.recipe.architecture
        x = augmented(x, self.settings.augment, draws[ask.first :][kept], architecture)
        self.network.learning(True)
        torch.manual_seed(int(self._chance(_DROPOUT, ask.step).integers(2**32)) + ask.first)
        logits = self.network(x, torch.from_numpy(weights[there]).to(x.device))
        loss = self.learnt.loss(logits, torch.from_numpy(ask.units[there]))
        (loss * (ask.share * there.mean())).backward()

    def _step(self, step: int) -> None:
        factor = pace(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    # --- looking -------------------------------------------------------------------------------

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        self.network.learning(False)
        d = self.network.head.in_features
        return self.network.features(x) if len(x) else torch.empty((0, d), device=x.device)

    @torch.no_grad()
    def _said(
        self, seen: list[tuple[Ask, Tensor, Rows]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the probabilities (b, c) of the units of a look, and which have a slice at all."""
        own = np.concatenate([ask.own[kept] for ask, _, kept in seen])
        features = torch.cat([features for _, features, _ in seen])
        n = len(seen[0][0].units)
        at = torch.from_numpy(own).to(features.device)
        # Slices of a unit follow each other: summed in their order, whatever the batches are.
        pooled = torch.zeros((n, features.shape[1]), device=features.device)
        pooled.index_add_(0, at, features)
        counts = torch.bincount(at, minlength=n)
        logits = self.network.head(pooled / counts.clamp_min(1)[:, None])
        return self.objective.said(logits), (counts > 0).cpu().numpy()

    def _look(self, run: checkpoint.Run, seen: list[tuple[Ask, Tensor, Rows]]) -> None:
        """Hold the network against val; keep it where it is the best so far."""
        proba, there = self._said(seen)
        value = self.objective.quality(self.units.at(self.val[there]), proba[there])
        run.history.append(None if math.isnan(value) else value)
        best = run.history[run.best - 1] if run.best else None
        if math.isnan(value) or best is None or value > best:
            run.best = len(run.history)
            checkpoint.save_best(self.folder, self.network)

    def say(self, units: Rows) -> tuple[NDArray[np.float64], Rows]:
        """Return the probabilities (q, c) of those of some units that have a slice, and which."""
        seen = [
            (ask, self._features(x), kept)
            for ask, x, kept in self.images.batches(self.all_of(units, "test"))
        ]
        proba, there = self._said(seen)
        return proba[there], units[there]


def pace(step: int, steps: int, warmup: float) -> float:
    """Return what part of its peak a rate is at a step: up a line, down a cosine."""
    up = round(warmup * steps)
    if step < up:
        return (step + 1) / up
    return (1 + math.cos(math.pi * (step - up) / (steps - up))) / 2


def _fits(sizes: list[int], most: int) -> Iterator[int]:
    """Yield where to cut units of these sizes so that together they have at most so many slices.

    A unit that alone has more is not cut.
    """
    held = 0
    for i, size in enumerate(sizes):
        if held and held + size > most:
            yield i
            held = 0
        held += size
    yield len(sizes)


def _means(own: Rows, units: int) -> NDArray[np.float32]:
    """Return (b, m): what each slice counts in its unit; a row of zeros where it has none."""
    member = own[None, :] == np.arange(units)[:, None]
    counts = np.maximum(member.sum(axis=1, keepdims=True), 1)
    return np.asarray(member / counts, np.float32)
