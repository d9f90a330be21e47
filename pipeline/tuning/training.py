"""Training, step after step, and after each epoch a look at val.

One stream of images runs through the whole of it, so that files are read ahead of every step and
every look at val. Dims: m slices, b units.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.annotations.units import Units
from pipeline.config.tuning import Tuning
from pipeline.tuning import checkpoint
from pipeline.tuning.goals import Goal
from pipeline.tuning.images import Ask, Images
from pipeline.tuning.network import Network, groups
from pipeline.tuning.ranks import ALONE, Ranks

Rows = NDArray[np.int64]
Batches = Generator[tuple[Ask, Tensor, Rows]]
# What is drawn in a step by each of these has a stream of its own.
_ORDER, _SLICES, _AUGMENT, _DROPOUT = range(4)
Beat = Callable[[int, int], None]  # steps done, of how many at most


@dataclass
class Training:
    """A network, what it learns from, and where its state is kept.

    train, val: unit numbers. every_s: seconds between two checkpoints. ranks: those that train it
    together.
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
    ranks: Ranks = ALONE

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
        """Train to the end, from where a killed run stopped; its best epoch is in the folder.

        An epoch is better than another by the goal's quality on val; as long as that is not
        defined, the last is kept.
        """
        began = time.perf_counter()
        run = checkpoint.load(self.folder, self.network, self.optimizer)
        before, saved = run.seconds, time.perf_counter()
        self.images.bad.update(run.bad)
        self.ranks.align(self.network.trained().values())

        def keep() -> float:
            now = time.perf_counter()
            run.bad, run.seconds = self.images.bad, before + now - began
            run.peak_bytes = max(run.peak_bytes, _peak_bytes(self.images.device))
            checkpoint.save(self.folder, self.network, self.optimizer, run)
            return now

        batches = self.images.batches(self._plan(run.step, len(run.history)))
        while not self._over(run):
            while run.step < self.per_epoch * (len(run.history) + 1):
                self._step(run.step, batches)
                run.step += 1
                self.beat(run.step, self.steps)
                if self.ranks.first and time.perf_counter() - saved > self.every_s:
                    saved = keep()
            if self.ranks.first:
                self._look(run, batches)
            run.history, run.best = self.ranks.told((run.history, run.best))
            for bad in self.ranks.every(self.images.bad):
                self.images.bad.update(bad)
            if self.ranks.first:
                saved = keep()
        batches.close()
        return run

    def _over(self, run: checkpoint.Run) -> bool:
        epochs, patience = len(run.history), self.settings.patience
        known = any(value is not None for value in run.history)
        return epochs == self.settings.epochs or (known and epochs - run.best >= patience)

    # --- what is looked at, and when ---------------------------------------------------------

    def _plan(self, step: int, scored: int) -> Iterator[Ask]:
        """Yield what is to be seen from a step on, `scored` epochs having been held against val.

        By this process: its part of each step, and val where it is the first.
        """
        while True:
            if step == self.per_epoch * (scored + 1):
                scored += 1
                if self.ranks.first:
                    yield from self.all_of(self.val, "val", scored)
            if step == self.steps:
                return
            yield from self._of_step(step)
            step += 1

    def _of_step(self, step: int) -> Iterator[Ask]:
        """Yield the units of a step that are this process's, `at_once` slices together."""
        number, size = self.ranks.number, self.ranks.size
        asks = list(self._asks(step))
        # With fewer asks than processes, one is seen again, for nothing: all take the step.
        own = asks[number::size] or [replace(asks[0], share=0.0)]
        yield from own[:-1]
        yield replace(own[-1], last=True)

    def _asks(self, step: int) -> Iterator[Ask]:
        """Yield the units of a step, so many together as `at_once` slices are, one at least.

        Fewer slices where each process would not have its part.
        """
        epoch, place = divmod(step, self.per_epoch)
        order = self._chance(_ORDER, epoch).permutation(self.train)
        chosen = order[place * self.settings.batch : (place + 1) * self.settings.batch]
        rng, most = self._chance(_SLICES, step), self.settings.slices
        bags = [self._slices(unit) for unit in chosen]
        bags = [np.sort(rng.permutation(bag)[:most]) if len(bag) > most else bag for bag in bags]
        sizes = [len(bag) for bag in bags]
        first = start = 0
        for stop in _fits(sizes, min(self.settings.at_once, -(-sum(sizes) // self.ranks.size))):
            some = bags[start:stop]
            own = np.repeat(np.arange(len(some)), [len(bag) for bag in some])
            units, share = chosen[start:stop], (stop - start) / len(chosen)
            yield Ask("train", step, units, np.concatenate(some), own, first, share)
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
        if not len(kept) or not ask.share:
            return
        draws = self._chance(_AUGMENT, ask.step).random((ask.first + len(ask.rows), 6))
        self.network.learning(True)
        torch.manual_seed(int(self._chance(_DROPOUT, ask.step).integers(2**32)) + ask.first)
        loss = self.goal.loss(self.network, ask, x, kept, draws[ask.first :][kept])
        torch.autograd.backward(loss * ask.share)

    def _step(self, step: int, batches: Batches) -> None:
        """Learn from a step's units, here and in the other processes."""
        for ask, x, kept in batches:
            self._learn(ask, x, kept)
            if ask.last:
                break
        self.ranks.add(list(self.network.trained().values()))
        factor = pace(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    # --- looking -------------------------------------------------------------------------------

    def _look(self, run: checkpoint.Run, batches: Batches) -> None:
        """Look at val, and keep the network where it is the best so far."""
        self.network.learning(False)
        for ask, x, kept in batches:
            self.goal.see(self.network, ask, x, kept)
            if ask.last:
                break
        value = self.goal.quality()
        best = run.history[run.best - 1] if run.best else None
        run.history.append(None if math.isnan(value) else value)
        if best is None or value > best:
            run.best = len(run.history)
            checkpoint.save_best(self.folder, self.network)

    def looks(self, units: Rows) -> Batches:
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


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
