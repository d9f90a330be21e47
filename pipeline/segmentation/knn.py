"""The method knn: neighbours of patch tokens, without training, so that a few masks are enough.

A reference is a patch of a slice with a mask, and the share of its pixels that each class has. A
patch of a query slice takes the shares of its nearest references by DINOv2's soft vote; the shares
are brought to full size by bilinear interpolation. Dims: b slices, h, w patch grid, d embedding,
c classes, S side of the network's input.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import Need
from pipeline.evaluation.cards import MOST, number_of_cards, on_card
from pipeline.evaluation.heads.contract import HeadState
from pipeline.evaluation.heads.knn import soft_vote
from pipeline.segmentation.contracts import Parts, Rows, TokenSource
from pipeline.segmentation.loader import Batch, in_order
from pipeline.segmentation.selection import Overlap, check_parts, chosen_note, learned_rows
from pipeline.shared.arrays import unit_length
from pipeline.shared.steps import report_step

# Slices whose patches are looked up at once.
SLICES = 8
TOKENS: frozenset[Need] = frozenset({"tokens"})
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TokenReferences:
    """An index of m unit tokens, and their classes' shares (m, c).

    searched: the index, or its copy on a GPU.
    """

    index: faiss.IndexFlatIP
    shares: Floats
    searched: Any


@dataclass(frozen=True)
class NeighbourHead:
    """References that know their masks; see `contracts.FittedHead`."""

    references: TokenReferences
    k: int
    temperature: float
    setting: dict[str, float]
    notes: tuple[str, ...]
    seconds: float

    def predict(self, source: TokenSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row with its label values (S, S), in the order of `rows`."""
        done = 0
        for batch in in_order(source, rows, TOKENS, SLICES, masks=False):
            done += len(batch.rows)
            report_step("slices predicted", done, len(rows))
            votes = vote(self.references, batch, [self.k], self.temperature, source.image_size)
            labels = votes[self.k]
            yield from zip(batch.rows.tolist(), labels, strict=True)

    def to_state(self) -> HeadState:
        """Return the tokens of the index and their shares; see `contracts.FileableHead`."""
        index = self.references.index
        tokens = index.reconstruct_n(0, index.ntotal)
        arrays = {"tokens": tokens, "shares": self.references.shares}
        return HeadState(arrays, {"k": self.k, "temperature": self.temperature})


def from_state(
    state: HeadState, source: TokenSource, rows: Rows, settings: Segment, *, device: str
) -> NeighbourHead:
    """Return the head that was filed; see `fit` for its device."""
    tokens = state.arrays["tokens"]
    index = faiss.IndexFlatIP(tokens.shape[1])
    index.add(tokens)
    k = int(state.about["k"])
    return NeighbourHead(
        references=_references(index, state.arrays["shares"], k, device),
        k=k,
        temperature=float(state.about["temperature"]),
        setting={"k": k},
        notes=(),
        seconds=0.0,
    )


def fit(source: TokenSource, parts: Parts, settings: Segment, *, device: str) -> NeighbourHead:
    """Collect references from train, choose k by the Dice on val.

    device: where neighbours are searched for; `auto` is the first GPU where FAISS finds one.
    """
    started = time.perf_counter()
    check_parts(parts, "k", settings.k)
    references = collect_references(source, parts["train"], settings, device)
    notes = []
    # A vote of more neighbours than there are references is none.
    ks = [k for k in settings.k if k <= len(references.shares)] or [1]
    best = ks[0]
    if len(ks) > 1:
        dice = _dice_on(source, parts["val"], references, ks, settings.temperature)
        best = ks[int(dice.argmax())]
        notes.append(chosen_note("k", ks, dice))
    if settings.refit == "train+val" and len(parts["val"]):
        references = collect_references(source, learned_rows(parts, settings), settings, device)
        notes.append("references of train and val, once k was chosen")
    notes.append(f"{len(references.shares)} reference patches")
    return NeighbourHead(
        references=references,
        k=best,
        temperature=settings.temperature,
        setting={"k": best},
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _dice_on(
    source: TokenSource,
    val: Rows,
    references: TokenReferences,
    ks: Sequence[int],
    temperature: float,
) -> NDArray[np.float64]:
    """Return the Dice on val by each k."""
    overlap = Overlap(len(ks), len(source.classes))
    done = 0
    for batch in in_order(source, val, TOKENS, SLICES, masks=True):
        done += len(batch.rows)
        report_step("slices of val asked", done, len(val))
        assert batch.masks is not None
        labels = vote(references, batch, ks, temperature, source.image_size)
        for i, k in enumerate(ks):
            overlap.add(i, batch.masks, labels[k])
    return overlap.dice()


def collect_references(
    source: TokenSource, rows: Rows, settings: Segment, device: str
) -> TokenReferences:
    """Return the patches of rows as references, equally many of each where not all may stay."""
    rng = np.random.default_rng(settings.seed)
    if len(rows) > settings.references:
        rows = np.sort(rng.choice(rows, settings.references, replace=False))
    index = faiss.IndexFlatIP(source.tokens(rows[:1]).shape[-1])
    shares: list[Floats] = []
    for batch in in_order(source, np.sort(rows), TOKENS, SLICES, masks=True):
        report_step("slices collected", len(shares), len(rows))
        assert batch.masks is not None
        tokens = _last_block(batch)
        b, h, w, d = tokens.shape
        number = h * w
        by_patch = class_shares(batch.masks, (h, w), len(source.classes))
        most = min(number, settings.references // len(rows))
        for i in range(b):
            chosen = rng.permutation(number)[:most]
            chosen = np.sort(chosen)
            of_slice = tokens[i].reshape(number, d)
            of_chosen = of_slice[chosen].astype(np.float32)
            index.add(unit_length(of_chosen))
            share = by_patch[i].reshape(number, -1)
            shares.append(share[chosen])
    return _references(index, np.concatenate(shares), max(settings.k), device)


def _references(index: faiss.IndexFlatIP, shares: Floats, k: int, device: str) -> TokenReferences:
    """Return references that are searched on a device for at most k. Raises DeviceError."""
    if device == "auto":
        device = "cuda:0" if number_of_cards() else "cpu"
    searched = index if k > MOST else on_card(index, device)
    return TokenReferences(index, shares, searched)


def class_shares(masks: NDArray[np.uint8], grid: tuple[int, int], classes: int) -> Floats:
    """Return (b, h, w, c): the share of each patch's pixels that have each class; they sum to 1.

    masks (b, S, S); grid: h and w.
    """
    b, size, _ = masks.shape
    h, w = grid
    y = np.arange(size) * h // size
    x = np.arange(size) * w // size
    # The number of the patch that each pixel is in, and with its class that of its count.
    image = np.arange(b)[:, None, None]
    patch = (image * h + y[:, None]) * w + x
    bins = (patch * classes + masks).ravel()
    counts = np.bincount(bins, minlength=b * h * w * classes)
    counts = counts.reshape(b, h, w, classes)
    total = counts.sum(axis=-1, keepdims=True)
    shares: Floats = (counts / total).astype(np.float32)
    return shares


def vote(
    references: TokenReferences, batch: Batch, ks: Sequence[int], temperature: float, size: int
) -> dict[int, NDArray[np.uint8]]:
    """Return for each k the likeliest label values (b, S, S) of a batch; size: S."""
    tokens = _last_block(batch)
    b, h, w, d = tokens.shape
    queries = unit_length(tokens.reshape(-1, d).astype(np.float32))
    cosine, nearest = references.searched.search(queries, max(ks))
    labels = {}
    votes = soft_vote(cosine, nearest, references.shares, list(ks), temperature)
    for k, share in votes.items():
        grid = torch.from_numpy(share.astype(np.float32)).reshape(b, h, w, -1)
        channels = grid.permute(0, 3, 1, 2)  # (b, c, h, w)
        full = interpolate(channels, (size, size), mode="bilinear", align_corners=False)
        likeliest = full.argmax(dim=1)
        labels[k] = likeliest.to(torch.uint8).numpy()
    return labels


def _last_block(batch: Batch) -> Floats:
    """Return the tokens (b, h, w, d) of the last block."""
    assert batch.tokens is not None
    last: Floats = batch.tokens[:, -1]
    return last
