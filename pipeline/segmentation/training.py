"""Training: all learning rates at once on the same batches, one chosen on validation.

As arXiv 2312.02366 does it: SGD with momentum 0.9, a cosine to 0 over all steps, MONAI's Dice loss.
The networks share no parameter, and each is stepped by the gradient of its own loss: trained
together, they become what each would become alone. Each ends by itself once val says so, and is
then what it was at its best.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS, Need
from pipeline.evaluation.heads.contract import HeadState
from pipeline.segmentation.contracts import Parts, Rows, TokenSource
from pipeline.segmentation.loader import Batch, Loader, in_order
from pipeline.segmentation.selection import Course, Overlap, check_parts, chosen_note, learned_rows
from pipeline.shared.devices import pick_device
from pipeline.shared.steps import report_epoch
from stores.errors import ConfigError

MOMENTUM = 0.9
NO_ROWS: Rows = np.empty(0, np.int64)
MEGABYTE = 2**20
# What torch says of a batch norm that is trained on one value a channel.
_OF_ONE_VALUE = "more than 1 value per channel"
Loss = Callable[[Tensor, Tensor], Tensor]
# Makes a network that has learned nothing, of a source, rows whose tokens tell its width, settings.
Build = Callable[[TokenSource, Rows, Segment], nn.Module]


def needs_of(settings: Segment) -> frozenset[Need]:
    """Return what a method's network is given."""
    return frozenset(SEGMENTATION_HEADS[settings.method].needs)


@dataclass(frozen=True)
class TrainedHead:
    """A network that has learned; see `contracts.FittedHead`."""

    network: nn.Module
    needs: frozenset[Need]
    settings: Segment
    device: torch.device
    setting: dict[str, float]
    notes: tuple[str, ...]
    seconds: float

    def predict(self, source: TokenSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row with its label values (S, S), in the order of `rows`."""
        for batch in in_order(source, rows, self.needs, self.settings.batch_size, masks=False):
            labels = predict_labels(self.network, batch, self.device)
            yield from zip(batch.rows.tolist(), labels, strict=True)

    def to_state(self) -> HeadState:
        """Return the network's weights; see `contracts.FileableHead`."""
        weights = self.network.state_dict()
        return HeadState({name: value.cpu().numpy() for name, value in weights.items()})


def from_state(
    build: Build,
    state: HeadState,
    source: TokenSource,
    rows: Rows,
    settings: Segment,
    *,
    device: str,
) -> TrainedHead:
    """Return the head that was filed. Raises KeyError where it has other weights than `build`'s."""
    place = torch.device(pick_device(device))
    network = new_network(build, source, rows, settings)
    if state.arrays.keys() != network.state_dict().keys():
        raise KeyError("its weights are another network's")
    # A copy: arrays read from a file may not be written to.
    weights = {name: torch.from_numpy(np.array(value)) for name, value in state.arrays.items()}
    network.load_state_dict(weights)
    return TrainedHead(
        network=network.to(place),
        needs=needs_of(settings),
        settings=settings,
        device=place,
        setting={},
        notes=(),
        seconds=0.0,
    )


# --- choosing ------------------------------------------------------------------------------------


def fit(
    build: Build, source: TokenSource, parts: Parts, settings: Segment, *, device: str = "auto"
) -> TrainedHead:
    """Train a network for each learning rate, keep the one with the best Dice on val, at its best.

    Raises ConfigError where there is nothing to learn from or to choose by, where the store lacks
    the tokens, and where a batch is too small for the network's batch norm.
    """
    started = time.perf_counter()
    rates = settings.learning_rates
    val = parts["val"]
    check_parts(parts, "learning_rates", rates)
    place = torch.device(pick_device(device))
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    candidates = train(build, source, parts["train"], settings, rates, place, val=val)
    dice = np.array([candidate.course.dice for candidate in candidates])
    best = int(dice.argmax())
    chosen = candidates[best]
    notes = [chosen_note("learning rate", rates, dice)] if len(rates) > 1 else []
    notes.append(_epochs_note(chosen.course, settings, len(val)))
    # The epochs that val found best; the training below, which has no val, goes through as many.
    epochs = chosen.course.best
    if settings.refit == "train+val" and len(val):
        rows = learned_rows(parts, settings)
        (chosen,) = train(build, source, rows, settings, [rates[best]], place, epochs=epochs)
        notes.append("trained again on train and val with what was chosen")
        epochs = chosen.course.best
    notes.append(f"peak memory {peak_bytes(place) / MEGABYTE:.0f} MB on {place.type}")
    return TrainedHead(
        network=chosen.network,
        needs=needs_of(settings),
        settings=settings,
        device=place,
        setting={"lr": rates[best], "epochs": float(epochs)},
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _epochs_note(course: Course, settings: Segment, val: int) -> str:
    """Return after how many epochs a network was taken, and why; val: how many slices it has."""
    if not val:
        return f"trained for all {settings.epochs} epochs: val has no slice to end it by"
    taken = f"the best Dice on val came after epoch {course.best} of {course.seen}"
    if course.seen < settings.epochs:
        return f"{taken}, where it ended (patience {settings.patience}, {settings.epochs} at most)"
    return f"{taken} (patience {settings.patience})"


# --- training ------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A network in training, and how it does; once trained, it is what it was at its best."""

    network: nn.Module
    course: Course

    def judge(self, dice: float) -> None:
        """Take the Dice on val of one more epoch, and keep the weights where it is the best."""
        if self.course.add(dice):
            weights = self.network.state_dict()
            self._best_weights = {name: value.clone() for name, value in weights.items()}

    def finish(self) -> None:
        """Go back to the best weights."""
        if self.course.best < self.course.seen:
            self.network.load_state_dict(self._best_weights)


def train(
    build: Build,
    source: TokenSource,
    rows: Rows,
    settings: Segment,
    rates: Sequence[float],
    device: torch.device,
    *,
    val: Rows = NO_ROWS,
    epochs: int | None = None,
) -> list[Candidate]:
    """Return a network for each learning rate, all trained on the same batches of rows.

    val: rows that say when a network is at its best, and when it has ended; without them all train
    to the last epoch. epochs: how many of `settings.epochs` are gone through, whose cosine it is.
    """
    loader = Loader(source, rows, needs_of(settings), settings.batch_size, settings.seed)
    candidates = []
    for _ in rates:
        network = new_network(build, source, rows, settings).to(device)
        candidates.append(Candidate(network, Course(settings.patience)))
    optimiser = torch.optim.SGD(
        [
            {"params": list(candidate.network.parameters()), "lr": rate}
            for candidate, rate in zip(candidates, rates, strict=True)
        ],
        momentum=MOMENTUM,
    )
    steps = settings.epochs * loader.batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    criterion = loss(settings)
    active = candidates
    last = epochs or settings.epochs
    for epoch in range(last):
        report_epoch(epoch, last)
        for candidate in active:
            candidate.network.train()
        for batch in loader.epoch(epoch):
            _add_gradients(active, batch, criterion, device)
            optimiser.step()  # what has no gradient, since it has ended, stays
            optimiser.zero_grad()
            schedule.step()
        networks = [candidate.network for candidate in active]
        dice = validate(networks, source, val, settings, device)
        for candidate, score in zip(active, dice, strict=True):
            candidate.judge(float(score))
        active = [candidate for candidate in active if not candidate.course.ended]
        if not active:
            break
    for candidate in candidates:
        candidate.finish()
    return candidates


def _add_gradients(
    active: Sequence[Candidate], batch: Batch, criterion: Loss, device: torch.device
) -> None:
    """Add the gradient of each network's own loss on the same batch.

    Raises ConfigError where it is of one slice, which the network narrows to one value a channel.
    """
    assert batch.masks is not None
    inputs = inputs_of(batch, device)
    masks = torch.from_numpy(batch.masks)[:, None].to(device)
    for candidate in active:
        try:
            logits = candidate.network(*inputs)
        except ValueError as error:
            # torch's own words are of a layer that nobody named.
            if len(batch.rows) > 1 or _OF_ONE_VALUE not in str(error):
                raise
            raise ConfigError(
                f"A batch of one slice of {batch.masks.shape[-1]} px leaves a single value a "
                "channel where the network is narrowest, of which batch norm has no spread. Set "
                "`batch_size` so that no batch, the last one too, is of one slice, or a larger "
                "`image_size`."
            ) from error
        torch.autograd.backward(criterion(logits, masks))


def new_network(build: Build, source: TokenSource, rows: Rows, settings: Segment) -> nn.Module:
    """Return a network that has learned nothing: equal seeds give equal weights."""
    # The random stream of whoever called is as it was afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return build(source, rows, settings)


def loss(settings: Segment) -> Loss:
    """Return MONAI's loss of logits (b, c, S, S) and label values (b, 1, S, S)."""
    # MONAI takes six seconds to import: tuning on classes and numbers needs it not.
    from monai.losses.dice import DiceCELoss, DiceLoss

    kind = DiceLoss if settings.loss == "dice" else DiceCELoss
    criterion: Loss = kind(softmax=True, to_onehot_y=True)
    return criterion


def validate(
    networks: Sequence[nn.Module],
    source: TokenSource,
    rows: Rows,
    settings: Segment,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return the Dice of each network on rows (see `Overlap.dice`); zeros where there are none."""
    overlap = Overlap(len(networks), len(source.classes))
    for batch in in_order(source, rows, needs_of(settings), settings.batch_size, masks=True):
        assert batch.masks is not None
        for i, network in enumerate(networks):
            overlap.add(i, batch.masks, predict_labels(network, batch, device))
    return overlap.dice()


def inputs_of(batch: Batch, device: torch.device) -> list[Tensor]:
    """Return what a network is given, as float32 on its device: tokens, images, or both."""
    arrays = (batch.tokens, batch.images)
    return [torch.from_numpy(array).to(device).float() for array in arrays if array is not None]


@torch.inference_mode()
def predict_labels(network: nn.Module, batch: Batch, device: torch.device) -> NDArray[np.uint8]:
    """Return the likeliest label values (b, S, S)."""
    logits = network.eval()(*inputs_of(batch, device))
    likeliest = logits.argmax(dim=1).to(torch.uint8)
    labels: NDArray[np.uint8] = likeliest.cpu().numpy()
    return labels


# --- where ---------------------------------------------------------------------------------------


def peak_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the GPU, or else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # macOS counts bytes where Linux counts kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
