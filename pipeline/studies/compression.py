"""What is lost where patch tokens are kept in fewer bytes: cosine, and the Dice of a head on them.

A few slices of the collection are embedded once, in float32, in a store of their own that is gone
afterwards. From these tokens the others are made as a store would keep them.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.backbones.weights import Checkpoint
from pipeline.config.data import Outputs
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.extraction.distributed.tasks import Work, embed_locally
from pipeline.extraction.embed import BadLimit, Progress, Speed
from pipeline.extraction.recipes import locate_weights, open_store, recipe_with
from pipeline.extraction.sync import look, update_tables
from pipeline.inference.forward import coded
from pipeline.recipe import PatchTokens
from pipeline.segmentation import heads, masks
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.contracts import Parts
from pipeline.segmentation.selection import Overlap
from pipeline.segmentation.sources import StoreSource
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.paths import unescape_path
from stores import FeatureStore
from stores.errors import ConfigError
from stores.features import OK

Rows = NDArray[np.int64]
WAYS: dict[str, tuple[PatchTokens, torch.dtype]] = {
    "float32": (PatchTokens(), torch.float32),
    "float16": (PatchTokens(), torch.float16),
    "int8": (PatchTokens(coding="int8"), torch.float32),
    "float16, pool 2": (PatchTokens(pool=2), torch.float16),
    "int8, pool 2": (PatchTokens(coding="int8", pool=2), torch.float32),
}
# Slices of one series that are looked at, at most.
_OF_A_SERIES = 4
HEAD = Segment(method="linear-bn", learning_rates=(0.05,), refit="none")


@dataclass(frozen=True)
class Fidelity:
    """One way to keep the patch tokens of the last block, against float32.

    bytes: of a slice; cosine_mean, cosine_least: of all tokens with what is kept of them, on a
    pooled grid with what stands for them; dice: by masks of the config, of a linear head fitted to
    what is kept, over all pixels of the test part; lost: by how much it is less than of float32.
    """

    way: str
    bytes: int
    cosine_mean: float
    cosine_least: float
    dice: dict[str, float]
    lost: dict[str, float]


def fidelity(config: Config, slices: int = 96, device: str = "auto") -> Iterator[Fidelity]:
    """Yield what each way keeps of so many slices; with masks, of those that have one.

    Raises ConfigError where there are too few slices, LabelError, WeightsError.
    """
    with tempfile.TemporaryDirectory(prefix="radprobe-") as folder:
        some = _of_some(config, slices, Path(folder) / "store")
        store, rows = _embedded(some, slices, device)
        tokens = Tokens(store).read(rows)[:, 0]  # (n, h, w, d), of the last block
        tasks = [_MaskTask.of(some, task, rows) for task in some.masks]
        baseline: dict[str, float] = {}  # task -> Dice of float32, the first way
        for way, (coding, dtype) in WAYS.items():
            if tokens.shape[1] % coding.pool:
                continue
            size, coarse = _coded(tokens, coding, dtype)
            spread = coarse.repeat(coding.pool, axis=1).repeat(coding.pool, axis=2)
            cosine = _cosine(tokens, spread)
            dice = {each.task: each.dice(coarse) for each in tasks}
            baseline = baseline or dice
            lost = {task: baseline[task] - value for task, value in dice.items()}
            yield Fidelity(way, size, float(cosine.mean()), float(cosine.min()), dice, lost)


# --- some slices -------------------------------------------------------------------------------


def _of_some(config: Config, slices: int, store: Path) -> Config:
    """Return the config over files that have about so many slices to look at, and another store."""
    # With masks, a sample of all slices might have nothing to draw on most of them.
    only = "masked" if config.masks else config.data.only
    data = config.data.model_copy(update={"only": only})
    there = look(config.model_copy(update={"data": data, "store": store}), None).reconciled.slices
    paths = there["path"].to_pylist()
    series = _by_series(there)
    chosen = set[str]()
    count = 0
    for i in np.random.default_rng(0).permutation(len(series)):
        if count >= slices:
            break
        # Escaped: the names of files become patterns of `data.include`.
        chosen |= {glob.escape(unescape_path(paths[place])) for place in series[i]}
        count += min(len(series[i]), _OF_A_SERIES)
    if not chosen:
        raise ConfigError(f"No image was found in {str(data.root)!r}.")
    some = data.model_copy(update={"include": tuple(sorted(chosen)), "exclude": ()})
    # A row a part, so that any rows at all can be embedded by themselves.
    outputs = Outputs(keep=("patch",), dtype="float32", part_rows=1)
    return config.model_copy(update={"data": some, "store": store, "outputs": outputs})


def _by_series(slices: pa.Table) -> list[Rows]:
    """Return the places of each series in a slice table, series by their first slices."""
    series = slices["series"].to_numpy(zero_copy_only=False)
    _, first, inverse = np.unique(series, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[inverse]
    return [np.flatnonzero(order == i) for i in range(len(first))]


def _embedded(config: Config, slices: int, device: str) -> tuple[FeatureStore, Rows]:
    """Return a store of some slices, and their rows."""
    weights = locate_weights(config)
    recipe = recipe_with(config, weights)
    checkpoint = Checkpoint.of(config.backbone.name, weights)
    store = open_store(config, recipe)
    update_tables(config, store)
    rows = _rows_to_study(config, store)[:slices]
    work = Work(
        store=str(store.path),
        backbone=checkpoint.name,
        weights=checkpoint.weights,
        root=str(config.data.root.absolute()),
        speed=Speed(device),
        stamp=checkpoint.stamp,
    )
    parts = [store.layout.part(int(row)) for row in rows]  # of one row each
    embed_locally(work, store, parts, Progress(), BadLimit(len(rows), 1.0, 0))
    rows = rows[store.status()[rows] == OK]
    if not len(rows):
        raise ConfigError(f"Not one slice can be read in {str(config.data.root)!r}.")
    return store, rows


def _rows_to_study(config: Config, store: FeatureStore) -> Rows:
    """Return rows from every series, ascending: of those with something on a mask, if any."""
    slices = store.slices()
    numbers = slices["row"].to_numpy()
    drawn = np.zeros(len(numbers), bool)
    for each in config.masks.values():
        cached = masks.update_masks(config, store, each)
        inside = cached.present(cached.rows)[:, 1:].any(axis=1)
        drawn |= np.isin(numbers, cached.rows[inside])
    rows: list[Rows] = []
    for places in _by_series(slices):
        some = places[drawn[places]] if drawn[places].any() else places
        spread = np.linspace(0, len(some) - 1, min(len(some), _OF_A_SERIES)).round().astype(int)
        rows.append(numbers[some[spread]])
    return np.sort(np.concatenate(rows))


# --- what is kept ------------------------------------------------------------------------------


def _coded(
    tokens: NDArray[np.float32], coding: PatchTokens, dtype: torch.dtype
) -> tuple[int, NDArray[np.float32]]:
    """Return the bytes of a slice, and tokens (n, h, w, d) as they are read again."""
    arrays = coded(torch.from_numpy(tokens), coding, dtype)
    size = sum(each.numel() * each.element_size() for each in arrays.values()) // len(tokens)
    values: NDArray[np.float32] = arrays["patch"].float().numpy()
    if "patch_scale" in arrays:
        values = values * arrays["patch_scale"].numpy()[..., None]
    return size, values


def _cosine(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of tokens (n, h, w, d) with others: (n, h, w)."""
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    cosine: NDArray[np.float32] = (x * y).sum(axis=-1) / norms
    return cosine


# --- a head on it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _MaskTask:
    """Some masks, and the rows of each part of their split; rows (n,): those that have tokens."""

    task: str
    rows: Rows
    parts: Parts
    source: StoreSource

    @classmethod
    def of(cls, config: Config, task: str, rows: Rows) -> _MaskTask:
        """Return a task of a config. Raises ConfigError where no row is in its test part."""
        cases = SegmentationCases.of(config, task)
        cases.task_cases.ensure_split()
        parts: Parts = {}
        for part, units in cases.task_cases.folds[0].items():
            parts[part] = cases.rows_of(units)
        if not len(parts["test"]):
            raise ConfigError(
                f"None of the {len(rows)} slices that are looked at is in the test part of "
                f"{task!r}. Ask for more, or for another split."
            )
        return cls(task, rows, parts, cases.source)

    def dice(self, tokens: NDArray[np.float32]) -> float:
        """Return the Dice of a linear head on tokens (n, h, w, d), over all pixels of test."""
        source = _TokensInMemory(self.source, self.rows, tokens)
        head = heads.fit(source, self.parts, HEAD)
        overlap = Overlap(1, len(source.classes))
        for row, labels in head.predict(source, self.parts["test"]):
            overlap.add(0, source.masks(np.array([row]))[0], labels)
        return float(overlap.dice()[0])


@dataclass(frozen=True)
class _TokensInMemory:
    """The masks of a source, with tokens (n, h, w, d) of rows (n,) that lie in memory."""

    source: StoreSource
    rows: Rows
    in_memory: NDArray[np.float32]
    chunk_rows: int = 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the masks' values."""
        return self.source.classes

    @property
    def image_size(self) -> int:
        """The side of the network's input."""
        return self.source.image_size

    def tokens(self, rows: Rows) -> NDArray[Any]:
        """Return tokens (b, 1, h, w, d) of rows, ascending."""
        return self.in_memory[np.searchsorted(self.rows, rows)][:, None]

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        """Return masks (b, H, W)."""
        return self.source.masks(rows)

    def images(self, rows: Rows) -> NDArray[np.float32]:
        """Return images, which a head on tokens never asks for."""
        return self.source.images(rows)
