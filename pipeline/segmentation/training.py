"""Training: all learning rates at once on the same batches, one chosen on validation.

As arXiv 2312.02366 does it: SGD with momentum 0.9, a cosine to 0 over all steps, MONAI's Dice loss.
The networks share no parameter, and each is stepped by the gradient of its own loss: trained
together, they become what each would become alone. Each ends by itself once val says so, and is
then what it was at its best.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses.dice import DiceCELoss, DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.segmentation import Segment
from pipeline.segmentation.contracts import Parts, Source
from pipeline.segmentation.loader import Batch, Loader, Need, Rows, in_order
from pipeline.segmentation.selection import Course, Overlap, check_parts, chosen_note, learned_rows
from pipeline.segmentation.token_heads import Decoder, ImageDecoder, Linear
from pipeline.segmentation.unet import TransUNet, UNet
from stores.errors import ConfigError

MOMENTUM = 0.9
NOTHING: Rows = np.empty(0, np.int64)
Loss = Callable[[Tensor, Tensor], Tensor]

# What each network is given, in the order of its arguments.
NEEDS: dict[str, tuple[Need, ...]] = {
    "linear": ("tokens",),
    "linear-bn": ("tokens",),
    "decoder": ("tokens",),
    "image-decoder": ("tokens", "images"),
    "unet": ("images",),
    "transunet": ("images",),
}


def needs_of(settings: Segment) -> frozenset[Need]:
    """Return what a method's network is given."""
    return frozenset(NEEDS[settings.method])


@dataclass(frozen=True)
class Trained:
    """A network that has learned; see `contracts.Fitted`."""

    network: nn.Module
    needs: frozenset[Need]
    settings: Segment
    device: torch.device
    setting: dict[str, float]
    notes: tuple[str, ...]
    seconds: float

    def predict(self, source: Source, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row with its label values (S, S), in the order asked."""
        batches = in_order(source, rows, self.needs, self.settings.batch_size, masks=False)
        for batch in batches:
            for row, labels in zip(
                batch.rows, _labels(self.network, batch, self.device), strict=True
            ):
                yield int(row), labels


def fit(source: Source, parts: Parts, settings: Segment, *, device: str = "auto") -> Trained:
    """Train a network for each learning rate, keep the one with the best Dice on val, at its best.

    Raises ConfigError where there is nothing to learn from or to choose by, or where the store
    lacks the tokens.
    """
    started = time.perf_counter()
    rates, val = settings.learning_rates, parts["val"]
    check_parts(parts, "learning_rates", rates)
    on = pick(device)
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    runs = train(source, parts["train"], settings, rates, on, val=val)
    dice = np.array([run.course.dice for run in runs])
    best = int(dice.argmax())
    run = runs[best]
    notes = [chosen_note("learning rate", rates, dice)] if len(rates) > 1 else []
    notes.append(_epochs_note(run.course, settings, len(val)))
    if settings.refit == "train+val" and len(val):
        rows, epochs = learned_rows(parts, settings), run.course.best
        (run,) = train(source, rows, settings, rates[best : best + 1], on, epochs=epochs)
        notes.append("trained again on train and val with what was chosen")
    notes.append(f"peak memory {_peak_megabytes(on):.0f} MB on {on.type}")
    return Trained(
        run.network,
        needs_of(settings),
        settings,
        on,
        {"lr": rates[best], "epochs": float(run.course.best)},
        tuple(notes),
        time.perf_counter() - started,
    )


def _epochs_note(course: Course, settings: Segment, val: int) -> str:
    """Return after how many epochs a network was taken, and why."""
    if not val:
        return f"trained for all {settings.epochs} epochs: val has no slice to end it by"
    seen = f"the best Dice on val came after epoch {course.best} of {course.seen}"
    if course.seen < settings.epochs:
        return f"{seen}, where it ended (patience {settings.patience}, {settings.epochs} at most)"
    return f"{seen} (patience {settings.patience})"


@dataclass
class Run:
    """A network in training, and how it does; once trained, it is what it was at its best."""

    network: nn.Module
    course: Course

    def judge(self, dice: float) -> None:
        """Take the Dice on val of one more epoch: keep the weights, or go back to the best."""
        if self.course.add(dice):
            self._state = {k: v.clone() for k, v in self.network.state_dict().items()}

    def finish(self) -> None:
        """Go back to the best weights."""
        if self.course.best < self.course.seen:
            self.network.load_state_dict(self._state)


def train(
    source: Source,
    rows: Rows,
    settings: Segment,
    rates: Sequence[float],
    device: torch.device,
    *,
    val: Rows = NOTHING,
    epochs: int | None = None,
) -> list[Run]:
    """Return a network for each learning rate, all trained on the same batches of rows.

    val: rows that say when a network is at its best, and when it has ended; without them all train
    to the last epoch. epochs: how many of `settings.epochs` are gone through, whose cosine it is.
    """
    loader = Loader(source, rows, needs_of(settings), settings.batch_size, settings.seed)
    runs = [Run(build(source, rows, settings).to(device), Course(settings.patience)) for _ in rates]
    optimiser = torch.optim.SGD(
        [
            {"params": list(run.network.parameters()), "lr": rate}
            for run, rate in zip(runs, rates, strict=True)
        ],
        momentum=MOMENTUM,
    )
    steps = settings.epochs * loader.batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    loss_of, active = loss(settings), runs
    for epoch in range(epochs or settings.epochs):
        for run in active:
            run.network.train()
        for batch in loader.epoch(epoch):
            inputs, masks = inputs_of(batch, device), torch.from_numpy(batch.masks)
            masks = masks[:, None].to(device)
            for run in active:
                torch.autograd.backward(loss_of(run.network(*inputs), masks))
            optimiser.step()  # what has no gradient, since it has ended, stays
            optimiser.zero_grad()
            schedule.step()
        dice = validate([run.network for run in active], source, val, settings, device)
        for run, score in zip(active, dice, strict=True):
            run.judge(float(score))
        active = [run for run in active if not run.course.ended]
        if not active:
            break
    for run in runs:
        run.finish()
    return runs


def build(source: Source, rows: Rows, settings: Segment) -> nn.Module:
    """Return a network that has learned nothing: equal seeds give equal weights."""
    classes, size = len(source.classes), source.image_size
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        match settings.method:
            case "unet":
                return UNet(classes, settings.size)
            case "transunet":
                return TransUNet(classes, size, settings.size)
        _, blocks, *_, dim = source.tokens(rows[:1]).shape
        match settings.method:
            case "decoder" if blocks < Decoder.BLOCKS:
                raise ConfigError(
                    f"The decoder needs the patch tokens of {Decoder.BLOCKS} blocks, and the store "
                    f"has {blocks}. Extract a store with outputs.patch.blocks: {Decoder.BLOCKS}."
                )
            case "decoder":
                return Decoder(dim, classes, size)
            case "image-decoder":
                return ImageDecoder(dim, classes)
        return Linear(dim, classes, size, norm=settings.method == "linear-bn")


def loss(settings: Segment) -> Loss:
    """Return MONAI's loss of logits (b, c, S, S) and label values (b, 1, S, S)."""
    chosen: Loss = (DiceLoss if settings.loss == "dice" else DiceCELoss)(
        softmax=True, to_onehot_y=True
    )
    return chosen


def validate(
    networks: Sequence[nn.Module],
    source: Source,
    rows: Rows,
    settings: Segment,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return the Dice of each network on rows (see `Overlap.dice`); zeros where there are none."""
    overlap = Overlap(len(networks), len(source.classes))
    for batch in in_order(source, rows, needs_of(settings), settings.batch_size, masks=True):
        assert batch.masks is not None
        for i, network in enumerate(networks):
            overlap.add(i, batch.masks, _labels(network, batch, device))
    return overlap.dice()


def inputs_of(batch: Batch, device: torch.device) -> list[Tensor]:
    """Return what a network is given, as float32 on its device."""
    held = (batch.tokens, batch.images)
    return [torch.from_numpy(array).to(device).float() for array in held if array is not None]


@torch.inference_mode()
def _labels(network: nn.Module, batch: Batch, device: torch.device) -> NDArray[np.uint8]:
    """Return the likeliest label values (b, S, S)."""
    logits = network.eval()(*inputs_of(batch, device))
    labels: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return labels


def pick(device: str) -> torch.device:
    """Return a torch device: `auto` is the first GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _peak_megabytes(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU, or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
