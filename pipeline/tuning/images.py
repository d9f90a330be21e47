"""The images of asked slices, batch after batch, read and preprocessed as `extract` does it.

Files are read ahead by processes while the network learns; what waits is bounded there. A slice
that cannot be read, or whose pixels are no longer those its features were made of, is left out of
its batch and counted: nothing is put in its place.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.root import Config
from pipeline.io.reader import read_files
from pipeline.io.types import FrameRead, Request
from pipeline.preprocessing.prepare import prepare_batch
from pipeline.preprocessing.volume_range import recorded_ends
from pipeline.recipe import Recipe
from pipeline.shared.pseudonyms import Names
from pipeline.types import Failure, Slice
from stores.features import FeatureStore

Rows = NDArray[np.int64]
CHANGED = "changed since it was embedded"


@dataclass(frozen=True)
class Ask:
    """m slices of b units that pass through the network together, never none.

    units (b,); rows (m,): the slices; own (m,): the place in `units` of the unit each belongs to.
    step: of training, or epoch of val. first: of the slices of a step, how many came in batches
    before. share: the part of its step's units that are in this batch. last: of its step, or of
    all of val.
    """

    stage: Literal["train", "val", "test"]
    step: int
    units: Rows
    rows: Rows
    own: Rows
    first: int = 0
    share: float = 1.0
    last: bool = False


@dataclass
class Images:
    """The images of a store's slices, for a device. bad: row -> why it could not be used.

    A slice that its volume scaled is scaled by the same range.
    """

    config: Config
    store: FeatureStore
    recipe: Recipe
    device: torch.device
    workers: int
    time_limit_s: float = 60.0
    bad: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = Names(self.store.path, self.config.data.paths)
        self._slices = names.revealed(self.store.slices())
        self._numbers: Rows = self._slices["row"].to_numpy()

    def batches(self, asks: Iterable[Ask]) -> Generator[tuple[Ask, Tensor, Rows]]:
        """Yield each ask with its images (m, 3, S, S), and which of its slices (m,) they are.

        Fewer than asked where some cannot be used.
        """
        waiting: deque[tuple[Ask, list[dict[str, Any]]]] = deque()

        def requests() -> Iterator[Request]:
            for ask in asks:
                about = self._about(ask.rows)
                waiting.append((ask, about))
                for path, group in itertools.groupby(about, key=lambda row: row["path"]):
                    yield Request(path, tuple(row["frame"] for row in group))

        reads = read_files(
            self.config.data.root,
            requests(),
            plane=self.recipe.preprocess.plane,
            workers=self.workers,
            time_limit_s=self.time_limit_s,
        )
        with contextlib.closing(reads):
            for first in reads:
                ask, about = waiting.popleft()
                rest = itertools.islice(reads, len(about) - 1)
                yield ask, *self._prepared(ask, about, [first, *rest])

    def _about(self, rows: Rows) -> list[dict[str, Any]]:
        places = pa.array(np.searchsorted(self._numbers, rows))
        found: list[dict[str, Any]] = self._slices.take(places).to_pylist()
        return found

    def _prepared(
        self, ask: Ask, about: list[dict[str, Any]], reads: list[FrameRead]
    ) -> tuple[Tensor, Rows]:
        digests = self.store.read("pixel_digest", ask.rows)
        items: list[Slice] = []
        kept: list[int] = []
        for i, (read, digest) in enumerate(zip(reads, digests, strict=True)):
            why = _unusable(read, bytes(digest))
            if why is None and isinstance(read.item, Slice):
                ends = recorded_ends(self.store, self._slices, self.recipe.preprocess, about[i])
                items.append(read.item if ends is None else replace(read.item, ends=ends))
                kept.append(i)
            else:
                self.bad[int(ask.rows[i])] = str(why)
        if not items:
            size = self.recipe.image_size
            return torch.empty((0, 3, size, size), device=self.device), np.array(kept, np.int64)
        # On the CPU unless it is a GPU: other devices lack float64.
        where = self.device if self.device.type == "cuda" else "cpu"
        modalities = [about[i]["modality"] for i in kept]
        x = prepare_batch(items, modalities, self.recipe, where)
        return x.to(self.device), np.array(kept, np.int64)


def _unusable(read: FrameRead, digest: bytes) -> str | None:
    """Return why a slice cannot be used; None where it is the one that has features."""
    if isinstance(read.item, Failure):
        return read.item.reason
    same = read.pixel_digest is not None and bytes.fromhex(read.pixel_digest) == digest
    return None if same else CHANGED
