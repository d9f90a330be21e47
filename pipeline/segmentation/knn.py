"""kNN over patch tokens: no training, so that a few masks are enough.

A reference is a patch of a slice with a mask, and the share of its pixels that each class has. A
patch asked about takes the shares of its nearest references by DINOv2's soft vote; the shares are
brought to full size by bilinear interpolation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pipeline.config.segmentation import Segment
from pipeline.evaluation.heads.knn import soft_vote
from pipeline.segmentation.contracts import Parts, Source
from pipeline.segmentation.loader import Batch, Need, Rows, in_order
from pipeline.segmentation.selection import Overlap, check_parts, chosen_note, learned_rows
from pipeline.shared.arrays import unit_length

# Slices whose patches are asked about at once.
SLICES = 8
TOKENS: frozenset[Need] = frozenset({"tokens"})
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Bank:
    """References: an index of m unit tokens, and their classes' shares (m, c)."""

    index: faiss.IndexFlatIP
    shares: Floats


@dataclass(frozen=True)
class Neighbours:
    """Patches that are asked for their masks; see `contracts.Fitted`."""

    bank: Bank
    k: int
    temperature: float
    setting: dict[str, float]
    notes: tuple[str, ...]
    seconds: float

    def predict(self, source: Source, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row with its label values (S, S), in the order asked."""
        for batch in in_order(source, rows, TOKENS, SLICES, masks=False):
            found = votes(self.bank, batch, [self.k], self.temperature, source.image_size)
            for row, labels in zip(batch.rows, found[self.k], strict=True):
                yield int(row), labels


def fit(source: Source, parts: Parts, settings: Segment) -> Neighbours:
    """Gather references from train, choose k by the Dice on val."""
    started = time.perf_counter()
    check_parts(parts, "k", settings.k)
    bank, notes = gather(source, parts["train"], settings), []
    ks = [k for k in settings.k if k <= len(bank.shares)] or [1]
    best = ks[0]
    if len(ks) > 1:
        overlap = Overlap(len(ks), len(source.classes))
        for batch in in_order(source, parts["val"], TOKENS, SLICES, masks=True):
            assert batch.masks is not None
            found = votes(bank, batch, ks, settings.temperature, source.image_size)
            for i, k in enumerate(ks):
                overlap.add(i, batch.masks, found[k])
        dice = overlap.dice()
        best = ks[int(dice.argmax())]
        notes.append(chosen_note("k", ks, dice))
    if settings.refit == "train+val" and len(parts["val"]):
        bank = gather(source, learned_rows(parts, settings), settings)
        notes.append("references of train and val, once k was chosen")
    notes.append(f"{len(bank.shares)} reference patches")
    spent = time.perf_counter() - started
    return Neighbours(bank, best, settings.temperature, {"k": best}, tuple(notes), spent)


def gather(source: Source, rows: Rows, settings: Segment) -> Bank:
    """Return the patches of rows as references, equally many of each where not all may be kept."""
    rng = np.random.default_rng(settings.seed)
    if len(rows) > settings.references:
        rows = np.sort(rng.choice(rows, settings.references, replace=False))
    index = faiss.IndexFlatIP(source.tokens(rows[:1]).shape[-1])
    shares = []
    for batch in in_order(source, np.sort(rows), TOKENS, SLICES, masks=True):
        assert batch.tokens is not None
        assert batch.masks is not None
        last = batch.tokens[:, -1]
        b, h, w, d = last.shape
        share = class_shares(batch.masks, (h, w), len(source.classes)).reshape(b, h * w, -1)
        most = min(h * w, settings.references // len(rows))
        for tokens, of_slice in zip(last.reshape(b, h * w, d), share, strict=True):
            kept = np.sort(rng.permutation(h * w)[:most])
            index.add(unit_length(tokens[kept].astype(np.float32)))
            shares.append(of_slice[kept])
    return Bank(index, np.concatenate(shares))


def class_shares(masks: NDArray[np.uint8], grid: tuple[int, int], classes: int) -> Floats:
    """Return (b, h, w, c): the share of each patch's pixels that have each class; they sum to 1."""
    b, size, _ = masks.shape
    h, w = grid
    y, x = np.arange(size) * h // size, np.arange(size) * w // size
    cell = (np.arange(b)[:, None, None] * h + y[:, None]) * w + x
    counts = np.bincount((cell * classes + masks).ravel(), minlength=b * h * w * classes)
    counts = counts.reshape(b, h, w, classes)
    shares: Floats = (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def votes(
    bank: Bank, batch: Batch, ks: list[int], temperature: float, size: int
) -> dict[int, NDArray[np.uint8]]:
    """Return for each k the likeliest label values (b, S, S) of a batch."""
    assert batch.tokens is not None
    last = batch.tokens[:, -1]
    b, h, w, d = last.shape
    cosine, nearest = bank.index.search(
        unit_length(last.reshape(-1, d).astype(np.float32)), max(ks)
    )
    found = {}
    for k, share in soft_vote(cosine, nearest, bank.shares, ks, temperature).items():
        grid = torch.from_numpy(share.astype(np.float32)).reshape(b, h, w, -1).permute(0, 3, 1, 2)
        full = interpolate(grid, (size, size), mode="bilinear", align_corners=False)
        found[k] = full.argmax(dim=1).to(torch.uint8).numpy()
    return found
