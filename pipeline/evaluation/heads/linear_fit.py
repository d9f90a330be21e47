"""How the grid of linear heads is trained: all at once, by SGD.

As eval/linear.py of facebookresearch/dinov2 does, on cached features and so without augmentation:
CLS of the last block or of the last four, with or without the mean patch token, times learning
rates; one linear layer each, weights of N(0, 0.01); SGD with momentum 0.9 and no decay, the rate
falling to 0 along a cosine. The head with the greatest AUROC on val, or for a number the least
squared error, is trained again on train and val, never chosen on test. Several classes pass through
softmax (the paper's code takes a sigmoid).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.annotations.units import Prediction, Units
from pipeline.config.feature_sets import made_of
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.evaluation.heads.linear import LinearSettings
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.shared.arrays import batches
from pipeline.shared.steps import report_epoch
from pipeline.shared.texts import plain_number


@dataclass(frozen=True)
class GridPlace:
    """A place in the grid: which columns of the features, and the learning rate."""

    blocks: int
    avgpool: bool
    rate: float
    columns: slice

    @property
    def setting(self) -> dict[str, float]:
        """How the place is named in results."""
        return {"lr": self.rate, "blocks": self.blocks, "avgpool": int(self.avgpool)}


# A trained layer of each place.
Layers = list[tuple[GridPlace, nn.Linear]]


@dataclass(frozen=True)
class Chosen:
    """The layer that was chosen on val, and what it learnt; none where nothing can be fitted.

    on_val (v, c): what it said of val when it had learnt train alone.
    """

    layers: Layers
    objective: Objective
    notes: list[str]
    on_val: NDArray[np.float64] | None = None


def fit(given: FitInput[LinearSettings]) -> Chosen:
    """Train every head on train, choose one on val, train it on train and val.

    x (n, d): as settings.features says, of which the grid takes every part that begins with the
    last block. Notes say which labels have no model, and where the choice stands.
    """
    x = given.x
    val = given.parts["val"]
    settings = given.settings
    objective = Objective.of(given.units, given.parts["train"])
    if not objective.enough:
        return Chosen([], objective, objective.notes)
    grid = grid_of(settings, x.shape[1])
    trained = train(given, given.parts["train"], grid, objective)
    truth = given.units.at(val)
    on_val = outputs_of(trained, x, val, objective)
    chosen = best_of([quality(truth, proba) for proba in on_val])
    # Without both sides of any label on val nothing tells heads apart.
    if chosen is None:
        note = "no head was chosen: all val units have the same labels"
        return Chosen([], objective, [*objective.notes, note])
    best = grid[chosen]
    # Again from the start, and the chosen head alone: val is worth learning from too.
    again = train(given, given.train_and_val, [best], objective)
    notes = list(objective.notes)
    edges = (min(settings.rates), max(settings.rates))
    if len(settings.rates) > 1 and best.rate in edges:
        notes.append(f"lr = {plain_number(best.rate)} is at the edge of the grid")
    return Chosen(again, objective, notes, on_val[chosen])


def predict(model: Chosen, x: Floats, rows: Rows) -> Predicted:
    """Return what the chosen layer says of the units `rows`; x (n, d)."""
    each = outputs_of(model.layers, x, rows, model.objective)
    predictions = []
    for (place, _), proba in zip(model.layers, each, strict=True):
        predictions.append(Prediction(place.setting, proba, on_val=model.on_val))
    return Predicted(predictions, model.notes)


# --- filed -----------------------------------------------------------------------------------


def to_state(model: Chosen, x: Floats) -> HeadState | None:
    """Return the chosen layer as arrays, with its place in the grid; None where there is none."""
    if not model.layers:
        return None
    ((place, layer),) = model.layers
    arrays = {
        "weight": layer.weight.detach().cpu().numpy(),
        "bias": layer.bias.detach().cpu().numpy(),
    }
    columns = [place.columns.start, place.columns.stop]
    about = {"setting": place.setting, "columns": columns, "objective": model.objective.to_about()}
    return HeadState(arrays, about)


def from_state(state: HeadState) -> Predictor:
    """Return what a filed layer says of units, from their features (n, d)."""
    weight = torch.from_numpy(np.array(state.arrays["weight"]))
    bias = torch.from_numpy(np.array(state.arrays["bias"]))
    columns = slice(*state.about["columns"])
    objective = Objective.of_about(state.about["objective"])
    setting = dict(state.about["setting"])

    def predictor(x: Floats, units: Units) -> list[Prediction]:
        outputs = []
        for batch in batches(len(x)):
            seen = torch.from_numpy(np.ascontiguousarray(x[batch, columns]))
            outputs.append(functional.linear(seen, weight, bias))
        return [Prediction(setting, objective.decode(torch.cat(outputs)))]

    return predictor


def grid_of(settings: LinearSettings, width: int) -> list[GridPlace]:
    """Return every head; the features are blocks, oldest first, and the mean token, if it is there.

    width: of all features, which are as wide as their tokens are many.
    """
    made = made_of(settings.features)
    most = made.blocks
    d = width // made.tokens
    places = []
    for blocks in sorted({1, most}):
        for avgpool in sorted({False, made.mean}):
            # The last blocks stand right before the mean token: what is taken is one slice.
            start = (most - blocks) * d
            columns = slice(start, (most + avgpool) * d)
            places += [GridPlace(blocks, avgpool, rate, columns) for rate in settings.rates]
    return places


def train(
    given: FitInput[LinearSettings],
    rows: Rows,
    grid: list[GridPlace],
    objective: Objective,
) -> Layers:
    """Return the heads of the grid, trained together on the units `rows`."""
    settings = given.settings
    device = torch.device(given.device or "cpu")
    # On the CPU whatever the device, so that weights and batches are the same on all.
    chance = torch.Generator().manual_seed(settings.seed)
    layers = []
    groups = []
    for place in grid:
        layer = layer_of(place, objective.outputs, chance).to(device)
        layers.append((place, layer))
        groups.append({"params": list(layer.parameters()), "lr": place.rate})
    steps = settings.epochs * -(-len(rows) // settings.batch)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = objective.targets(given.units.at(rows))
    units = torch.from_numpy(rows)
    features = torch.from_numpy(given.x)
    places = shuffled(len(rows), settings.batch, chance)
    for step in range(steps):
        report_epoch(step * settings.epochs // steps, settings.epochs)
        batch = next(places)
        seen = features[units[batch]].to(device)
        outputs = [layer(seen[:, place.columns]) for place, layer in layers]
        logits = torch.cat(outputs)
        mean_loss = targets.loss(logits, batch.repeat(len(layers)))
        # The sum over heads, which do not touch each other, of each one's mean over the batch.
        loss = mean_loss * len(layers)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return layers


def layer_of(place: GridPlace, o: int, chance: torch.Generator) -> nn.Linear:
    """Return the layer of a place before it is trained; o: its outputs."""
    layer = nn.Linear(place.columns.stop - place.columns.start, o)
    nn.init.normal_(layer.weight, std=0.01, generator=chance)
    nn.init.zeros_(layer.bias)
    return layer


def shuffled(n: int, b: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Yield places below n without end, shuffled anew each time round, b at a time."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < b:
            left = torch.cat([left, torch.randperm(n, generator=chance)])
        yield left[:b]
        left = left[b:]


@torch.inference_mode()
def outputs_of(
    layers: Layers,
    x: Floats,
    rows: Rows,
    objective: Objective,
) -> list[NDArray[np.float64]]:
    """Return what each head says of the units `rows`: (q, c) a head."""
    outputs: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches(len(rows)):
        seen = torch.from_numpy(x[rows[batch]])
        for of_layer, (place, layer) in zip(outputs, layers, strict=True):
            columns = seen[:, place.columns].to(layer.weight.device)
            of_layer.append(layer(columns))
    return [objective.decode(torch.cat(each)) for each in outputs]
