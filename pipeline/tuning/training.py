"""Training, step after step, and after each epoch a look at val.

One stream of images runs through the whole of it, so that files are read ahead of every step and
every look at val. Dims: m slices, b units.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Tuning
from pipeline.questions import Units
from pipeline.tuning import checkpoint
from pipeline.tuning.goals import Goal
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
    goal: Goal
    folder: Path
    every_s: float
    beat: Beat

    def __post_init__(self) -> None:
        settings = self.settings
        self.bags = self.units.bags()
        self.per_epoch = -(-len(self.train) // settings.batch)
        self.steps = settings.epochs * self.per_epoch
        peaks = groups(self.network, settings)
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(peaks, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(peaks)

    def run(self) -> checkpoint.Run:
        """Train to the end, from where a killed run stopped; the network is then of its best epoch.

        An epoch is better than another by the goal's quality on val; as long as that is not
        defined, the last is kept.
        """
        began = time.perf_counter()
        run = checkpoint.load(self.folder, self.network, self.optimizer)
        before, saved = run.seconds, time.perf_counter()
        self.images.bad.update(run.bad)

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
            self.network.learning(False)
            self.goal.see(self.network, ask, x, kept)
            if ask.last:
                self._look(run)
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

        One none of whose slices can be used is left out.
        """
        if not len(kept):
            return
        draws = self._chance(_AUGMENT, ask.step).random((ask.first + len(ask.rows), 6))
        self.network.learning(True)
        torch.manual_seed(int(self._chance(_DROPOUT, ask.step).integers(2**32)) + ask.first)
        loss = self.goal.loss(self.network, ask, x, kept, draws[ask.first :][kept])
        torch.autograd.backward(loss * ask.share)

    def _step(self, step: int) -> None:
        factor = pace(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    # --- looking -------------------------------------------------------------------------------

    def _look(self, run: checkpoint.Run) -> None:
        """Take what the goal says of val; keep the network where it is the best so far."""
        value = self.goal.quality()
        best = run.history[run.best - 1] if run.best else None
        run.history.append(None if math.isnan(value) else value)
        if best is None or value > best:
            run.best = len(run.history)
            checkpoint.save_best(self.folder, self.network)

    def looks(self, units: Rows) -> Generator[tuple[Ask, Tensor, Rows]]:
        """Yield the images of all slices of some units, as `Images.batches` does, to be tested."""
        self.network.learning(False)
        yield from self.images.batches(self.all_of(units, "test"))


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
