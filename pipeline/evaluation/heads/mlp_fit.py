"""How the perceptron is trained: val chooses its weight decay and after which epoch it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.annotations.units import Prediction, Units
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.evaluation.heads.linear_fit import shuffled
from pipeline.evaluation.heads.mlp import MlpSettings
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.shared.arrays import batches
from pipeline.shared.steps import report_epoch

Proba = NDArray[np.float64]


class Perceptron(nn.Module):
    """Features (b, d) to outputs (b, o)."""

    def __init__(self, d: int, hidden: int, o: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(d, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, o)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs, with dropout as long as it is trained."""
        outputs: Tensor = self.output(self.dropout(nn.functional.gelu(self.hidden(x))))
        return outputs


@dataclass(frozen=True)
class Chosen:
    """The network that val chose, trained on train and val; none where nothing can be fitted.

    on_val (v, c): what it said of val when it had learnt train alone.
    """

    network: Perceptron | None
    setting: dict[str, float]
    objective: Objective
    notes: list[str]
    on_val: Proba | None = None


def fit(given: FitInput[MlpSettings]) -> Chosen:
    """Train with each decay, choose decay and epoch on val, train so on train and val.

    x (n, d): as settings.features says. Notes say which labels have no model, and where the choice
    stands.
    """
    settings = given.settings
    train = given.parts["train"]
    val = given.parts["val"]
    objective = Objective.of(given.units, train)
    if not objective.enough:
        return Chosen(None, {}, objective, objective.notes)
    truth = given.units.at(val)
    tried = [(decay, epoch) for decay in settings.decays for epoch in range(settings.epochs)]
    on_val: list[Proba] = []
    for decay in settings.decays:
        for network in _epochs(given, train, objective, decay):
            on_val.append(_outputs(network, given.x, val, objective))
    chosen = best_of([quality(truth, proba) for proba in on_val])
    # Without both sides of any label on val nothing tells epochs apart.
    if chosen is None:
        note = "no network was chosen: all val units have the same labels"
        return Chosen(None, {}, objective, [*objective.notes, note])
    decay, epoch = tried[chosen]
    # Again from the start, as far as it was best: val is worth learning from too.
    *_, network = _epochs(given, given.train_and_val, objective, decay, epoch + 1)
    notes = list(objective.notes)
    if epoch + 1 == settings.epochs:
        notes.append(f"the last of {settings.epochs} epochs was best on val: allow it more")
    setting = {"decay": decay, "epochs": epoch + 1}
    return Chosen(network, setting, objective, notes, on_val[chosen])


def predict(model: Chosen, x: Floats, rows: Rows) -> Predicted:
    """Return what the network says of the units `rows`; x (n, d)."""
    if model.network is None:
        return Predicted([], model.notes)
    proba = _outputs(model.network, x, rows, model.objective)
    return Predicted([Prediction(model.setting, proba, on_val=model.on_val)], model.notes)


def _epochs(
    given: FitInput[MlpSettings],
    rows: Rows,
    objective: Objective,
    decay: float,
    epochs: int | None = None,
) -> Iterator[Perceptron]:
    """Yield the network after each epoch of learning from the units `rows`; it goes on learning."""
    settings = given.settings
    device = torch.device(given.device or "cpu")
    # What is drawn is of the seed alone, and whoever draws from torch afterwards finds its stream
    # as it was: the stream is this one's from one epoch to the next.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = Perceptron(
            given.x.shape[1], settings.hidden, objective.outputs, settings.dropout
        ).to(device)
        stream = torch.random.get_rng_state()
    order = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=decay)
    targets = objective.targets(given.units.at(rows))
    units = torch.from_numpy(rows)
    features = torch.from_numpy(given.x)
    places = shuffled(len(rows), settings.batch, order)
    most = epochs or settings.epochs
    for epoch in range(most):
        report_epoch(epoch, most)
        network.train()
        with torch.random.fork_rng():
            torch.random.set_rng_state(stream)
            for _ in range(-(-len(rows) // settings.batch)):
                batch = next(places)
                loss = targets.loss(network(features[units[batch]].to(device)), batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            stream = torch.random.get_rng_state()
        yield network.eval()


@torch.inference_mode()
def _outputs(network: Perceptron, x: Floats, rows: Rows, objective: Objective) -> Proba:
    """Return what a network says of the units `rows`: (q, c)."""
    device = network.output.weight.device
    outputs = [network(torch.from_numpy(x[rows[batch]]).to(device)) for batch in batches(len(rows))]
    return objective.decode(torch.cat(outputs))


# --- filed -----------------------------------------------------------------------------------


def to_state(model: Chosen, x: Floats) -> HeadState | None:
    """Return the network as arrays; None where there is none."""
    if model.network is None:
        return None
    state = model.network.state_dict()
    arrays = {name: value.detach().cpu().numpy() for name, value in state.items()}
    return HeadState(arrays, {"setting": model.setting, "objective": model.objective.to_about()})


def from_state(state: HeadState) -> Predictor:
    """Return what a filed network says of units, from their features (n, d)."""
    objective = Objective.of_about(state.about["objective"])
    hidden, d = state.arrays["hidden.weight"].shape
    network = Perceptron(d, hidden, objective.outputs, 0.0).eval()
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.arrays.items()}
    network.load_state_dict(tensors)
    setting = dict(state.about["setting"])

    def predictor(x: Floats, units: Units) -> list[Prediction]:
        return [Prediction(setting, _outputs(network, x, np.arange(len(x)), objective))]

    return predictor
