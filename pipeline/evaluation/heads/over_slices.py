"""How a network is trained that sees the slices of a unit and says how much each mattered.

Dims: m slices of all units, s slices of the largest unit of a batch, d features, o outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.annotations.units import Bags, Prediction, SliceWeights, Units
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.heads.slice_settings import SliceSettings
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.shared.steps import report_epoch


class SliceNetwork(nn.Module):
    """A network over the slices of units, padded to the largest of them."""

    @abstractmethod
    def forward(self, slices: Tensor, there: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (b, o), and (b, s) what each slice counts, which sum to 1.

        slices (b, s, d); there (b, s): whether it is one; z (b, s): see `Units.z`.
        """

    @property
    @abstractmethod
    def shape(self) -> dict[str, int]:
        """The settings that it is built by again, beside d and o."""


# Builds a network of so many features and outputs, its weights drawn from torch's generator.
Build = Callable[[int, int], SliceNetwork]


@dataclass(frozen=True)
class SliceReader:
    """A network, of which slices its units are, and what its outputs mean.

    batch: how many units pass through it at once.
    """

    network: SliceNetwork
    units: Units
    objective: Objective
    batch: int
    device: torch.device

    def __call__(self, x: Floats, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return logits (b, o) and weights (b, s) of the units `rows`; x (m, d): of every slice."""
        bags = self._bags
        slices = []
        z = []
        for unit in rows:
            places = bags[unit]
            slices.append(torch.from_numpy(x[places]))
            z.append(torch.from_numpy(self.units.z[places]).float())
        # Units are padded to the largest of them.
        sizes = torch.tensor([len(each) for each in slices])
        there = torch.arange(int(sizes.max())) < sizes[:, None]
        padded = pad_sequence(slices, batch_first=True).to(self.device)  # (b, s, d)
        padded_z = pad_sequence(z, batch_first=True).to(self.device)
        logits, weights = self.network(padded, there.to(self.device), padded_z)
        return logits, weights

    @torch.inference_mode()
    def read(self, x: Floats, rows: Rows) -> tuple[NDArray[np.float64], SliceWeights]:
        """Return what the network says of the units `rows`, (q, c), and what each slice counts."""
        logits = []
        weights = []
        bags = self._bags
        for start in range(0, len(rows), self.batch):
            units = rows[start : start + self.batch]
            of_batch, padded = self(x, units)
            logits.append(of_batch)
            for unit, of_unit in zip(units, padded.double().cpu().numpy(), strict=True):
                weights.append(of_unit[: len(bags[unit])])
        places = np.concatenate([bags[unit] for unit in rows])
        counts = [len(each) for each in weights]
        mattered = SliceWeights(
            rows=self.units.rows[places],
            unit=np.repeat(np.arange(len(rows)), counts),
            weight=np.concatenate(weights),
        )
        return self.objective.decode(torch.cat(logits)), mattered

    @cached_property
    def _bags(self) -> Bags:
        return self.units.bags()


@dataclass(frozen=True)
class SliceModel:
    """A trained network, and after how many epochs; none where nothing can be fitted.

    on_val (v, c): what it said of val after as many, when it had learnt train alone.
    """

    reader: SliceReader | None
    epochs: int
    notes: list[str]
    on_val: NDArray[np.float64] | None = None
    applies: bool = True


def fit(given: FitInput[Any], name: str, build: Build) -> SliceModel:
    """Train on train, choose the number of epochs on val, train on train and val.

    x (m, d): of every slice, in the order of units.rows. name: of the head, for its notes, which
    say which labels have no model, and where units are of one slice each, which nothing can be
    weighed of.
    """
    units = given.units
    if len(units.rows) == len(units.ids):
        note = f"{name} needs units of several slices: each has one; ask the probe"
        return SliceModel(None, 0, [note], applies=False)
    objective = Objective.of(units, given.parts["train"])
    if not objective.enough:
        return SliceModel(None, 0, objective.notes)
    val = given.parts["val"]
    truth = units.at(val)
    each_on_val = []
    training = SliceTraining(given, given.parts["train"], objective, build)
    for epoch in range(given.settings.epochs):
        report_epoch(epoch, given.settings.epochs)
        training.epoch()
        on_val, _ = training.reader.read(given.x, val)
        each_on_val.append(on_val)
    best = best_of([quality(truth, on_val) for on_val in each_on_val])
    # Without both sides of any label on val nothing tells epochs apart.
    if best is None:
        note = "epochs were not chosen: all val units have the same labels"
        return SliceModel(None, 0, [*objective.notes, note])
    epochs = best + 1
    # Again from the start: val is worth learning from too, once it has said when to end.
    again = SliceTraining(given, given.train_and_val, objective, build)
    for epoch in range(epochs):
        report_epoch(epoch, epochs)
        again.epoch()
    return SliceModel(again.reader, epochs, objective.notes, each_on_val[best])


def predict(model: SliceModel, x: Floats, rows: Rows) -> Predicted:
    """Return what the network says of the units `rows`; x (m, d): of every slice."""
    if model.reader is None:
        return Predicted([], model.notes, applies=model.applies)
    proba, weights = model.reader.read(x, rows)
    setting: dict[str, float] = {"epochs": model.epochs}
    prediction = Prediction(setting, proba, on_val=model.on_val, weights=weights)
    return Predicted([prediction], model.notes)


# --- filed -----------------------------------------------------------------------------------


def to_state(model: SliceModel, x: Floats) -> HeadState | None:
    """Return the trained network as arrays; None where nothing could be fitted."""
    reader = model.reader
    if reader is None:
        return None
    arrays = {}
    for name, tensor in reader.network.state_dict().items():
        arrays[name] = tensor.detach().cpu().numpy()
    about = {
        "epochs": model.epochs,
        **reader.network.shape,
        "batch": reader.batch,
        "objective": reader.objective.to_about(),
    }
    return HeadState(arrays, about)


def from_state(state: HeadState, width: int, build: Build) -> Predictor:
    """Return what a filed network says of units, from the features (m, d) of their slices.

    width: its d.
    """
    about = state.about
    objective = Objective.of_about(about["objective"])
    # What it draws its weights by is left as it was: they are filled at once.
    with torch.random.fork_rng(devices=[]):
        network = build(width, objective.outputs)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in state.arrays.items()}
    network.load_state_dict(tensors)
    network.eval()
    setting = {"epochs": about["epochs"]}

    def predictor(x: Floats, units: Units) -> list[Prediction]:
        device = torch.device("cpu")
        reader = SliceReader(network, units, objective, int(about["batch"]), device)
        proba, weights = reader.read(x, np.arange(len(units.ids)))
        return [Prediction(setting, proba, weights=weights)]

    return predictor


class SliceTraining:
    """A network, its optimiser, and the units it learns from."""

    def __init__(
        self, given: FitInput[Any], rows: Rows, objective: Objective, build: Build
    ) -> None:
        settings: SliceSettings = given.settings
        device = torch.device(given.device or "cpu")
        # Layers draw their weights from torch's own generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = build(given.x.shape[1], objective.outputs)
        network = network.to(device)
        self.reader = SliceReader(network, given.units, objective, settings.batch, device)
        self.x = given.x
        self.rows = rows
        self.targets = objective.targets(given.units.at(rows))
        self.chance = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.rate, weight_decay=settings.decay
        )

    def epoch(self) -> None:
        """Learn once from every unit."""
        order = torch.randperm(len(self.rows), generator=self.chance)
        for batch in torch.split(order, self.reader.batch):
            units = self.rows[batch.numpy()]
            logits, _ = self.reader(self.x, units)
            loss = self.targets.loss(logits, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
