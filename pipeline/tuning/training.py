"""Training, step after step, and after each epoch a look at val.

One stream of images runs through the whole of it, so that files are read ahead of every step and
every look at val. Dims: m slices, b units.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.tuning import Tuning
from pipeline.evaluation.metrics.quality import Quality, is_better
from pipeline.segmentation.training import peak_bytes
from pipeline.tuning import checkpoint
from pipeline.tuning.checkpoint import Filing, TrainingState
from pipeline.tuning.goals import Goal
from pipeline.tuning.images import Batches, BatchRequest, ImageBatch, Images, all_slices
from pipeline.tuning.network import TunableNetwork, parameter_groups
from pipeline.tuning.options import ReportSteps
from pipeline.tuning.ranks import ALONE, Ranks

Rows = NDArray[np.int64]
# What is drawn in a step by each of these has a random stream of its own.
_ORDER, _SLICES, _AUGMENT, _DROPOUT = range(4)


@dataclass(frozen=True)
class TrainVal:
    """The units (by number) that a network learns from, and those that say when to end.

    until: after how many epochs it ends whatever is said, where val is learnt from as well.
    """

    units: Units
    train: Rows
    val: Rows
    until: int | None = None


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a run's state, and how many seconds lie between two of its checkpoints.

    filing: within which they are put there.
    """

    folder: Path
    every_s: float
    filing: Filing


@dataclass
class Training:
    """A network, what it learns from, and where its state is kept.

    ranks: the place of this process among those that train the network together.
    """

    network: TunableNetwork
    images: Images
    data: TrainVal
    goal: Goal
    settings: Tuning
    checkpoints: Checkpoints
    report_steps: ReportSteps
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        settings = self.settings
        self.bags = self.data.units.bags()
        self.steps_per_epoch = -(-len(self.data.train) // settings.batch)
        self.steps = settings.epochs * self.steps_per_epoch
        groups = parameter_groups(self.network, settings)
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(groups)

    def run(self) -> TrainingState:
        """Train to the end, from where a killed run stopped; its best epoch is in the folder.

        An epoch is better than another by the goal's quality on val, of equals by the log-loss; as
        long as that is not defined, the last is kept.
        """
        saver = _Saver(self)
        state = saver.state
        self.images.bad.update(state.bad)
        # All begin alike, to the bit: their steps are then the same as well.
        self.ranks.align(self.network.trained().values())
        # From here on batches come as `_requests` lists them. What takes them below must take as
        # many in the same order: those of a step up to its `last`, then those of val.
        # Closed here, however this ends: left to the search for garbage, it would tell of a signal
        # that came meanwhile as of a fault, and go on.
        requests = self._requests(state.step, len(state.history))
        with contextlib.closing(self.images.batches(requests)) as batches:
            while not self._ended(state):
                self._train_epoch(state, batches, saver)
                if self.ranks.first:
                    self._validate(state, batches)
                # All end at the same epoch, since all go by what the first has seen of val.
                state.history, state.best = self.ranks.broadcast((state.history, state.best))
                for bad in self.ranks.gather(self.images.bad):
                    self.images.bad.update(bad)
                # Behind the best network, which the state names: a kill in between repeats the
                # epoch's look at val, and writes the same file again.
                if self.ranks.first:
                    saver.save()
        return state

    def _ended(self, state: TrainingState) -> bool:
        """Return whether all epochs are done, or val has not become better for `patience`."""
        epochs = len(state.history)
        if epochs == self.settings.epochs or epochs == self.data.until:
            return True
        defined = any(value is not None for value in state.history)
        return defined and epochs - state.best >= self.settings.patience

    # --- what is looked at, and when ---------------------------------------------------------

    def _requests(self, step: int, scored: int) -> Iterator[BatchRequest]:
        """Yield what is to be seen from a step on, `scored` epochs having been scored on val.

        By this process: its part of each step, and val where it is the first.
        """
        while True:
            if step == self.steps_per_epoch * (scored + 1):
                scored += 1
                if self.ranks.first and self.data.until is None:
                    yield from self.all_of(self.data.val, "val", scored)
            if step == self.steps:
                return
            yield from self._share_of_step(step)
            step += 1

    def _share_of_step(self, step: int) -> Iterator[BatchRequest]:
        """Yield the units of a step that are this process's, `at_once` slices together."""
        requests = list(self._step_requests(step))
        share = requests[self.ranks.number :: self.ranks.size]
        if not share:
            # With fewer requests than processes, one is seen again, for nothing: all must take
            # part in the step, since gradients are added up over all.
            share = [replace(requests[0], share=0.0)]
        yield from share[:-1]
        yield replace(share[-1], last=True)

    def _step_requests(self, step: int) -> Iterator[BatchRequest]:
        """Yield the units of a step, so many together as `at_once` slices are, one at least.

        Fewer slices where each process would not have its part.
        """
        units = self._units_of_step(step)
        bags = self._drawn_slices(step, units)
        sizes = [len(bag) for bag in bags]
        a_process = -(-sum(sizes) // self.ranks.size)
        offset = 0
        start = 0
        for stop in _cuts(sizes, min(self.settings.at_once, a_process)):
            rows = np.concatenate(bags[start:stop])
            yield BatchRequest(
                stage="train",
                step=step,
                units=units[start:stop],
                rows=rows,
                unit_of=np.repeat(np.arange(stop - start), sizes[start:stop]),
                offset=offset,
                share=(stop - start) / len(units),
            )
            offset += len(rows)
            start = stop

    def _units_of_step(self, step: int) -> Rows:
        """Return the units (b,) that a step learns from: each of train once an epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._random(_ORDER, epoch).permutation(self.data.train)
        batch = self.settings.batch
        return order[place * batch : (place + 1) * batch]

    def _drawn_slices(self, step: int, units: Rows) -> list[Rows]:
        """Return the rows of each unit's slices, drawn where it has more than `slices`."""
        rng = self._random(_SLICES, step)
        most = self.settings.slices
        bags = []
        for unit in units:
            bag = self._slices_of(unit)
            if len(bag) > most:
                bag = np.sort(rng.permutation(bag)[:most])
            bags.append(bag)
        return bags

    def all_of(
        self, units: Rows, stage: Literal["val", "test"], number: int = 0
    ) -> Iterator[BatchRequest]:
        """Yield all slices of some units, `at_once` together."""
        bags = [self._slices_of(unit) for unit in units]
        yield from all_slices(units, bags, self.settings.at_once, stage, number)

    def _slices_of(self, unit: int) -> Rows:
        return self.data.units.rows[self.bags[unit]]

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        """Return the stream of a step (or an epoch), the same whenever it is asked for.

        So a run that goes on needs no generator's state.
        """
        return np.random.default_rng((self.settings.seed, purpose, number))

    # --- learning ------------------------------------------------------------------------------

    def _train_epoch(self, state: TrainingState, batches: Batches, saver: _Saver) -> None:
        """Take the steps that are left of an epoch; a run that goes on may begin in its middle."""
        end = self.steps_per_epoch * (len(state.history) + 1)
        while state.step < end:
            self._take_step(state.step, batches)
            state.step += 1
            self.report_steps(state.step, self.steps)
            if self.ranks.first and saver.due:
                saver.save()

    def _take_step(self, step: int, batches: Batches) -> None:
        """Learn from a step's units, here and in the other processes."""
        for batch in batches:
            self._learn(batch)
            if batch.request.last:
                break
        # Once all of this process's batches are in, so that the sum is the whole step's.
        self.ranks.add_gradients(list(self.network.trained().values()))
        factor = rate_factor(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _learn(self, batch: ImageBatch) -> None:
        """Add the gradients of some units, whose share in the step's loss is that of their number.

        One none of whose slices can be used is left out.
        """
        request = batch.request
        if not len(batch.places) or not request.share:
            return
        # A slice's draws are those of its place in the step, however the step is cut into batches.
        rng = self._random(_AUGMENT, request.step)
        draws = rng.random((request.offset + len(request.rows), 6))
        draws = draws[request.offset :][batch.places]
        self.network.switch_dropout(True)
        seed = int(self._random(_DROPOUT, request.step).integers(2**32))
        torch.manual_seed(seed + request.offset)
        loss = self.goal.loss(self.network, batch, draws)
        torch.autograd.backward(loss * request.share)

    # --- looking -------------------------------------------------------------------------------

    def _validate(self, state: TrainingState, batches: Batches) -> None:
        """Look at val, and keep the network where it is the best so far.

        Where val is learnt from as well, nothing is looked at, and the last is the best.
        """
        if self.data.until is not None:
            state.history.append(None)
            state.best = len(state.history)
            checkpoint.save_best(self.checkpoints.folder, self.network, self.checkpoints.filing)
            return
        self.network.switch_dropout(False)
        for batch in batches:
            self.goal.observe(self.network, batch)
            if batch.request.last:
                break
        value = self.goal.quality()
        best = state.history[state.best - 1] if state.best else None
        state.history.append(None if math.isnan(value.score) else value.score)
        if best is None or is_better(value, Quality(best, state.best_loss)):
            state.best = len(state.history)
            state.best_loss = value.loss
            checkpoint.save_best(self.checkpoints.folder, self.network, self.checkpoints.filing)

    def test_batches(self, units: Rows) -> Batches:
        """Yield the images of all slices of some units, to be tested."""
        self.network.switch_dropout(False)
        yield from self.images.batches(self.all_of(units, "test"))


@dataclass
class _Saver:
    """Loads the state of a run, and saves it with the time that all its sessions took."""

    training: Training
    state: TrainingState = field(init=False)

    def __post_init__(self) -> None:
        training = self.training
        self._began = time.perf_counter()
        self.state = checkpoint.load(
            training.checkpoints.folder, training.network, training.optimizer
        )
        self._before = self.state.seconds
        self._saved = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is as old as one may be."""
        return time.perf_counter() - self._saved > self.training.checkpoints.every_s

    def save(self) -> None:
        """Put the state into the folder."""
        training = self.training
        state = self.state
        now = time.perf_counter()
        state.bad = training.images.bad
        state.seconds = self._before + now - self._began
        state.peak_bytes = max(state.peak_bytes, peak_bytes(training.images.device))
        place = training.checkpoints
        checkpoint.save(place.folder, training.network, training.optimizer, state, place.filing)
        self._saved = now


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return what part of its peak a rate is at a step: up a line, down a cosine."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    angle = math.pi * (step - rising) / (steps - rising)
    return (1 + math.cos(angle)) / 2


def _cuts(sizes: list[int], most: int) -> Iterator[int]:
    """Yield where to cut units of these sizes so that together they have at most so many slices.

    A unit that alone has more is not cut.
    """
    total = 0
    for i, size in enumerate(sizes):
        if total and total + size > most:
            yield i
            total = 0
        total += size
    yield len(sizes)
