"""Gated attention over a unit's slices, learnt with the head: which slices matter is not given.

Ilse, Tomczak and Welling, arXiv 1802.04712, eqs. 8 and 9, on cached features. Dims: m slices of
all units, s slices of the largest unit of a batch, h hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.annotations.units import Bags, Prediction, Units
from pipeline.config.heads import Attention
from pipeline.config.tasks import Part
from pipeline.evaluation.heads.objective import Objective

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class GatedAttention(nn.Module):
    """Weighs slices (b, s, d) by softmax(w (tanh Vx * sigmoid Ux)) and classifies their mean."""

    def __init__(self, d: int, hidden: int, o: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(d, hidden), nn.Linear(d, hidden)
        self.weigh, self.classify = nn.Linear(hidden, 1), nn.Linear(d, o)

    def weights(self, slices: Tensor, there: Tensor) -> Tensor:
        """Return (b, s) what each slice counts; there (b, s): whether it is one."""
        told = torch.tanh(self.content(slices)) * torch.sigmoid(self.gate(slices))
        scores: Tensor = self.weigh(told)[..., 0]
        return torch.softmax(scores.masked_fill(~there, -torch.inf), dim=1)

    def forward(self, slices: Tensor, there: Tensor) -> Tensor:
        """Return the logits (b, o)."""
        pooled = (self.weights(slices, there)[..., None] * slices).sum(dim=1)
        logits: Tensor = self.classify(pooled)
        return logits


@dataclass(frozen=True)
class _Bags:
    """The slices of each unit: x (m, d), of which unit i has the places at[i]."""

    x: Floats
    at: Bags

    def __call__(self, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the slices of the units `rows`, padded (b, s, d), and which are there (b, s)."""
        bags = [torch.from_numpy(self.x[self.at[i]]) for i in rows]
        sizes = torch.tensor([len(bag) for bag in bags])
        there = torch.arange(int(sizes.max())) < sizes[:, None]
        return pad_sequence(bags, batch_first=True).to(device), there.to(device)


def predict(
    x: Floats,
    units: Units,
    parts: Mapping[Part, Rows],
    settings: Attention,
    *,
    device: str | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Train on train, choose the number of epochs on val, train on both, score test.

    x (m, d): of every slice, in the order of units.rows. Returns the prediction, and notes: labels
    without a model, and units of one slice each, which nothing can be weighed of.
    """
    if len(units.rows) == len(units.ids):
        return [], ["attention needs units of several slices: each has one; ask the probe"]
    learnt = Objective.of(units, parts["train"])
    if not learnt.enough:
        return [], learnt.notes
    bags = _Bags(x, units.bags())
    where, of_val, qualities = torch.device(device or "cpu"), units.at(parts["val"]), []
    model = _Training(bags, units, parts["train"], learnt, settings, where)
    for _ in range(settings.epochs):
        model.epoch()
        qualities.append(learnt.quality(of_val, model.say(parts["val"])))
    if np.isnan(qualities).all():
        return [], [*learnt.notes, "epochs were not chosen: all val units have the same labels"]
    best = int(np.nanargmax(qualities)) + 1
    both = np.concatenate([parts["train"], parts["val"]])
    again = _Training(bags, units, both, learnt, settings, where)
    for _ in range(best):
        again.epoch()
    return [Prediction({"epochs": best}, again.say(parts["test"]))], learnt.notes


class _Training:
    """A network, its optimiser, and the units it learns from."""

    def __init__(
        self,
        bags: _Bags,
        units: Units,
        rows: Rows,
        objective: Objective,
        settings: Attention,
        device: torch.device,
    ) -> None:
        self.bags, self.rows, self.objective, self.settings = bags, rows, objective, settings
        self.chance, self.device = torch.Generator().manual_seed(settings.seed), device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = GatedAttention(bags.x.shape[1], settings.hidden, objective.outputs)
        self.network, self.learnt = network.to(device), objective.targets(units.at(rows))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.rate, weight_decay=settings.decay
        )

    def epoch(self) -> None:
        """Learn once from every unit."""
        order = torch.randperm(len(self.rows), generator=self.chance)
        for batch in torch.split(order, self.settings.batch):
            loss = self.learnt.loss(
                self.network(*self.bags(self.rows[batch.numpy()], self.device)), batch
            )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    @torch.inference_mode()
    def say(self, rows: Rows) -> NDArray[np.float64]:
        """Return what is said of the units `rows` (q, c)."""
        each = [
            self.network(*self.bags(rows[start : start + self.settings.batch], self.device))
            for start in range(0, len(rows), self.settings.batch)
        ]
        return self.objective.said(torch.cat(each))
