"""How gated attention over slices is trained.

Ilse, Tomczak and Welling, arXiv 1802.04712, eqs. 8 and 9, on cached features. Dims: m slices of
all units, s slices of the largest unit of a batch, h hidden, o outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.annotations.units import Bags, Prediction, Units
from pipeline.evaluation.heads.attention import AttentionSettings
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.metrics.quality import best_of, quality


class GatedAttention(nn.Module):
    """Weighs slices (b, s, d) by softmax(w (tanh Vx * sigmoid Ux)) and classifies their mean."""

    def __init__(self, d: int, hidden: int, o: int) -> None:
        super().__init__()
        self.content = nn.Linear(d, hidden)
        self.gate = nn.Linear(d, hidden)
        self.weigh = nn.Linear(hidden, 1)
        self.classify = nn.Linear(d, o)

    def weights(self, slices: Tensor, there: Tensor) -> Tensor:
        """Return (b, s) what each slice counts; there (b, s): whether it is one."""
        content = torch.tanh(self.content(slices))  # (b, s, h)
        gate = torch.sigmoid(self.gate(slices))
        scores: Tensor = self.weigh(content * gate)[..., 0]
        # What pads a smaller unit counts nothing.
        masked = scores.masked_fill(~there, -torch.inf)
        return torch.softmax(masked, dim=1)

    def forward(self, slices: Tensor, there: Tensor) -> Tensor:
        """Return the logits (b, o)."""
        weights = self.weights(slices, there)
        pooled = (weights[..., None] * slices).sum(dim=1)  # (b, d)
        logits: Tensor = self.classify(pooled)
        return logits


@dataclass(frozen=True)
class Weigher:
    """A network, of which slices its units are, and what its outputs mean.

    batch: how many units pass through it at once.
    """

    network: GatedAttention
    bags: Bags
    objective: Objective
    batch: int
    device: torch.device

    def logits(self, x: Floats, rows: Rows) -> Tensor:
        """Return the logits (b, o) of the units `rows`; x (m, d): of every slice."""
        slices = []
        for unit in rows:
            places = self.bags[unit]
            slices.append(torch.from_numpy(x[places]))
        # Units are padded to the largest of them.
        sizes = torch.tensor([len(each) for each in slices])
        there = torch.arange(int(sizes.max())) < sizes[:, None]
        padded = pad_sequence(slices, batch_first=True).to(self.device)  # (b, s, d)
        logits: Tensor = self.network(padded, there.to(self.device))
        return logits

    @torch.inference_mode()
    def proba(self, x: Floats, rows: Rows) -> NDArray[np.float64]:
        """Return what the network says of the units `rows`: (q, c)."""
        each = []
        for start in range(0, len(rows), self.batch):
            units = rows[start : start + self.batch]
            each.append(self.logits(x, units))
        return self.objective.decode(torch.cat(each))


@dataclass(frozen=True)
class Attention:
    """A trained network, and after how many epochs; none where nothing can be fitted.

    on_val (v, c): what it said of val after as many, when it had learnt train alone.
    """

    weigher: Weigher | None
    epochs: int
    notes: list[str]
    on_val: NDArray[np.float64] | None = None
    applies: bool = True


def fit(given: FitInput[AttentionSettings]) -> Attention:
    """Train on train, choose the number of epochs on val, train on train and val.

    x (m, d): of every slice, in the order of units.rows. Notes say which labels have no model, and
    where units are of one slice each, which nothing can be weighed of.
    """
    units = given.units
    if len(units.rows) == len(units.ids):
        note = "attention needs units of several slices: each has one; ask the probe"
        return Attention(None, 0, [note], applies=False)
    objective = Objective.of(units, given.parts["train"])
    if not objective.enough:
        return Attention(None, 0, objective.notes)
    val = given.parts["val"]
    truth = units.at(val)
    each_on_val = []
    training = AttentionTraining(given, given.parts["train"], objective)
    for _ in range(given.settings.epochs):
        training.epoch()
        each_on_val.append(training.weigher.proba(given.x, val))
    best = best_of([quality(truth, on_val) for on_val in each_on_val])
    # Without both sides of any label on val nothing tells epochs apart.
    if best is None:
        note = "epochs were not chosen: all val units have the same labels"
        return Attention(None, 0, [*objective.notes, note])
    epochs = best + 1
    # Again from the start: val is worth learning from too, once it has said when to end.
    again = AttentionTraining(given, given.train_and_val, objective)
    for _ in range(epochs):
        again.epoch()
    return Attention(again.weigher, epochs, objective.notes, each_on_val[best])


def predict(model: Attention, x: Floats, rows: Rows) -> Predicted:
    """Return what the network says of the units `rows`; x (m, d): of every slice."""
    if model.weigher is None:
        return Predicted([], model.notes, applies=model.applies)
    proba = model.weigher.proba(x, rows)
    prediction = Prediction({"epochs": model.epochs}, proba, on_val=model.on_val)
    return Predicted([prediction], model.notes)


# --- filed -----------------------------------------------------------------------------------


def to_state(model: Attention, x: Floats) -> HeadState | None:
    """Return the trained network as arrays; None where nothing could be fitted."""
    weigher = model.weigher
    if weigher is None:
        return None
    arrays = {}
    for name, tensor in weigher.network.state_dict().items():
        arrays[name] = tensor.detach().cpu().numpy()
    about = {
        "epochs": model.epochs,
        "hidden": weigher.network.weigh.in_features,
        "batch": weigher.batch,
        "objective": weigher.objective.to_about(),
    }
    return HeadState(arrays, about)


def from_state(state: HeadState) -> Predictor:
    """Return what a filed network says of units, from the features (m, d) of their slices."""
    about = state.about
    objective = Objective.of_about(about["objective"])
    d = state.arrays["classify.weight"].shape[1]
    # What it draws its weights by is left as it was: they are filled at once.
    with torch.random.fork_rng(devices=[]):
        network = GatedAttention(d, int(about["hidden"]), objective.outputs)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in state.arrays.items()}
    network.load_state_dict(tensors)
    setting = {"epochs": about["epochs"]}

    def predictor(x: Floats, units: Units) -> list[Prediction]:
        device = torch.device("cpu")
        weigher = Weigher(network, units.bags(), objective, int(about["batch"]), device)
        return [Prediction(setting, weigher.proba(x, np.arange(len(units.ids))))]

    return predictor


class AttentionTraining:
    """A network, its optimiser, and the units it learns from."""

    def __init__(
        self, given: FitInput[AttentionSettings], rows: Rows, objective: Objective
    ) -> None:
        settings = given.settings
        device = torch.device(given.device or "cpu")
        # Layers draw their weights from torch's own generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = GatedAttention(given.x.shape[1], settings.hidden, objective.outputs)
        bags = given.units.bags()
        network = network.to(device)
        self.weigher = Weigher(network, bags, objective, settings.batch, device)
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
        for batch in torch.split(order, self.weigher.batch):
            units = self.rows[batch.numpy()]
            logits = self.weigher.logits(self.x, units)
            loss = self.targets.loss(logits, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
