"""Training: all learning rates at once on the same batches, one chosen on validation.

As arXiv 2312.02366 does it: SGD with momentum 0.9, a cosine to 0 over all steps, MONAI's Dice loss.
The networks share no parameter, and each is stepped by the gradient of its own loss: trained
together, they become what each would become alone.
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

from pipeline.config import Segment
from pipeline.segmentation.choice import Overlap, check_parts, chosen_note, learned_rows
from pipeline.segmentation.contracts import Parts, Source
from pipeline.segmentation.loader import Batch, Loader, Need, Rows, in_order
from pipeline.segmentation.scratch import TransUNet, UNet
from pipeline.segmentation.token_heads import Decoder, ImageDecoder, Linear
from stores.errors import ConfigError

MOMENTUM = 0.9
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
    """Train a network for each learning rate, keep the one with the best Dice on val.

    Raises ConfigError where there is nothing to learn from or to choose by, or where the store
    lacks the tokens.
    """
    started = time.perf_counter()
    rates = settings.learning_rates
    check_parts(parts, "learning_rates", rates)
    on = pick(device)
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    networks = train(source, parts["train"], settings, rates, on)
    best, notes = 0, []
    if len(rates) > 1:
        dice = validate(networks, source, parts["val"], settings, on)
        best = int(dice.argmax())
        notes.append(chosen_note("learning rate", rates, dice))
    network = networks[best]
    if settings.refit == "train+val" and len(parts["val"]):
        rows = learned_rows(parts, settings)
        (network,) = train(source, rows, settings, rates[best : best + 1], on)
        notes.append("trained again on train and val with what was chosen")
    notes.append(f"peak memory {_peak_megabytes(on):.0f} MB on {on.type}")
    return Trained(
        network,
        frozenset(NEEDS[settings.method]),
        settings,
        on,
        {"lr": rates[best]},
        tuple(notes),
        time.perf_counter() - started,
    )


def train(
    source: Source,
    rows: Rows,
    settings: Segment,
    rates: Sequence[float],
    device: torch.device,
) -> list[nn.Module]:
    """Return a network for each learning rate, all trained on the same batches of rows."""
    needs = frozenset(NEEDS[settings.method])
    loader = Loader(source, rows, needs, settings.batch_size, settings.seed)
    networks = [build(source, rows, settings).to(device).train() for _ in rates]
    optimiser = torch.optim.SGD(
        [{"params": list(n.parameters()), "lr": r} for n, r in zip(networks, rates, strict=True)],
        momentum=MOMENTUM,
    )
    steps = settings.epochs * loader.batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    loss_of = loss(settings)
    for epoch in range(settings.epochs):
        for batch in loader.epoch(epoch):
            inputs, masks = inputs_of(batch, device), torch.from_numpy(batch.masks)
            masks = masks[:, None].to(device)
            for network in networks:
                torch.autograd.backward(loss_of(network(*inputs), masks))
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return networks


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
    """Return the Dice of each network on rows (see `Overlap.dice`)."""
    overlap = Overlap(len(networks), len(source.classes))
    needs = frozenset(NEEDS[settings.method])
    for batch in in_order(source, rows, needs, settings.batch_size, masks=True):
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
