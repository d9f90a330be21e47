"""The linear heads of arXiv 2312.02366 and of DINOv2, a grid of them trained at once by SGD.

As eval/linear.py of facebookresearch/dinov2 does, on cached features and so without augmentation:
CLS of the last block or of the last four, with or without the mean patch token, times learning
rates; one linear layer each, weights of N(0, 0.01); SGD with momentum 0.9 and no decay, the rate
falling to 0 along a cosine. The head with the greatest AUROC on val, or for a number the least
squared error, is trained again on train and val, never chosen on test. Several classes pass through
softmax (the paper's code takes a sigmoid).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.annotations.units import Prediction, Units
from pipeline.config.heads import Linear
from pipeline.config.tasks import Part
from pipeline.evaluation.heads.objective import Objective
from pipeline.shared.arrays import batches

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Head:
    """A place in the grid: which columns of the features, and the learning rate."""

    blocks: int
    avgpool: bool
    rate: float
    columns: slice

    @property
    def setting(self) -> dict[str, float]:
        return {"lr": self.rate, "blocks": self.blocks, "avgpool": int(self.avgpool)}


def predict(
    x: Floats,
    units: Units,
    parts: Mapping[Part, Rows],
    settings: Linear,
    *,
    device: str | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Train every head on train, choose one on val, train it on train and val, score test.

    x (n, d): as settings.features says, of which the grid takes every part that begins with the
    last block. Notes say which labels have no model, and where the choice stands.
    """
    learnt = Objective.of(units, parts["train"])
    if not learnt.enough:
        return [], learnt.notes
    grid, where = _grid(settings, x.shape[1]), torch.device(device or "cpu")
    trained = _train(x, units, parts["train"], grid, learnt, settings, where)
    of_val = units.at(parts["val"])
    qualities = np.array(
        [learnt.quality(of_val, said) for said in _say(x, parts["val"], trained, learnt)]
    )
    if np.isnan(qualities).all():
        return [], [*learnt.notes, "no head was chosen: all val units have the same labels"]
    best = grid[int(np.nanargmax(qualities))]
    both = np.concatenate([parts["train"], parts["val"]])
    again = _train(x, units, both, [best], learnt, settings, where)
    (said,) = _say(x, parts["test"], again, learnt)
    edge = len(settings.rates) > 1 and best.rate in (min(settings.rates), max(settings.rates))
    notes = [f"lr = {best.rate:.3g} is at the edge of the grid"] if edge else []
    return [Prediction(best.setting, said)], learnt.notes + notes


def _grid(settings: Linear, width: int) -> list[_Head]:
    """Return every head; the features are blocks, oldest first, and the mean token, if it is there.

    width: of all features, which are as wide as their tokens are many.
    """
    most, mean = (4 if "cls4" in settings.features else 1), "mean" in settings.features
    d = width // (most + mean)
    return [
        _Head(n, avgpool, rate, slice((most - n) * d, (most + avgpool) * d))
        for n in sorted({1, most})
        for avgpool in sorted({False, mean})
        for rate in settings.rates
    ]


Trained = Sequence[tuple[_Head, nn.Linear]]


def _train(
    x: Floats,
    units: Units,
    rows: Rows,
    grid: list[_Head],
    objective: Objective,
    settings: Linear,
    device: torch.device,
) -> Trained:
    """Return the heads of the grid, trained together on the units `rows`."""
    chance = torch.Generator().manual_seed(settings.seed)
    heads = [(head, _layer(head, objective.outputs, chance).to(device)) for head in grid]
    groups = [{"params": list(layer.parameters()), "lr": head.rate} for head, layer in heads]
    steps = settings.epochs * -(-len(rows) // settings.batch)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    learnt, at = objective.targets(units.at(rows)), torch.from_numpy(rows)
    features = torch.from_numpy(x)
    places = _batches(len(rows), settings.batch, chance)
    for _ in range(steps):
        batch = next(places)
        seen = features[at[batch]].to(device)
        logits = torch.cat([layer(seen[:, head.columns]) for head, layer in heads])
        # The sum over heads, which do not touch each other, of each one's mean over the batch.
        loss = learnt.loss(logits, batch.repeat(len(heads))) * len(heads)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return heads


def _layer(head: _Head, o: int, chance: torch.Generator) -> nn.Linear:
    layer = nn.Linear(head.columns.stop - head.columns.start, o)
    nn.init.normal_(layer.weight, std=0.01, generator=chance)
    nn.init.zeros_(layer.bias)
    return layer


def _batches(n: int, b: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Yield places below n without end, shuffled anew each time round, b at a time."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < b:
            left = torch.cat([left, torch.randperm(n, generator=chance)])
        yield left[:b]
        left = left[b:]


@torch.inference_mode()
def _say(x: Floats, rows: Rows, heads: Trained, learnt: Objective) -> list[NDArray[np.float64]]:
    """Return what each head says of the units `rows`: (q, c) a head."""
    said: list[list[Tensor]] = [[] for _ in heads]
    for now in batches(len(rows)):
        seen = torch.from_numpy(x[rows[now]])
        for into, (head, layer) in zip(said, heads, strict=True):
            into.append(layer(seen[:, head.columns].to(layer.weight.device)))
    return [learnt.said(torch.cat(outputs)) for outputs in said]
