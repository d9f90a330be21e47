"""The images of requested slices, batch after batch, read and preprocessed as `extract` does it.

Files are read ahead by processes while the network learns; what waits is bounded there. A slice
that cannot be read, or whose pixels are no longer those its features were made of, is left out of
its batch and counted: nothing is put in its place.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

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
from stores.slices import SliceRow, slice_rows

Rows = NDArray[np.int64]
CHANGED = "changed since it was embedded"


@dataclass(frozen=True)
class BatchRequest:
    """m slices of b units that are to pass through the network together, never none.

    units (b,); rows (m,): the slices; unit_of (m,): the place in `units` of the unit each belongs
    to. step: of training, or epoch of val. offset: of the slices of a step, how many came in
    batches before. share: the part of its step's units that are in this batch. last: of its step,
    or of all of val.
    """

    stage: Literal["train", "val", "test"]
    step: int
    units: Rows
    rows: Rows
    unit_of: Rows
    offset: int = 0
    share: float = 1.0
    last: bool = False


def all_slices(
    units: Rows,
    bags: Sequence[Rows],
    at_once: int,
    stage: Literal["val", "test"],
    step: int = 0,
) -> Iterator[BatchRequest]:
    """Yield all slices of some units, so many together; bags: the rows of each unit."""
    rows = np.concatenate(bags)
    unit_of = np.repeat(np.arange(len(units)), [len(bag) for bag in bags])
    for start in range(0, len(rows), at_once):
        stop = start + at_once
        yield BatchRequest(
            stage=stage,
            step=step,
            units=units,
            rows=rows[start:stop],
            unit_of=unit_of[start:stop],
            last=stop >= len(rows),
        )


@dataclass(frozen=True)
class ImageBatch:
    """What came of a request: k of its m slices, those that can be used.

    x: images (k, 3, S, S) on the device; places (k,): which of the request's slices they are of.
    """

    request: BatchRequest
    x: Tensor
    places: Rows

    @property
    def rows(self) -> Rows:
        """The rows (k,) of the slices."""
        return self.request.rows[self.places]

    @property
    def unit_of(self) -> Rows:
        """The place (k,) in the request's units of the unit each slice belongs to."""
        return self.request.unit_of[self.places]


Batches = Generator[ImageBatch]


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

    def batches(self, requests: Iterable[BatchRequest]) -> Batches:
        """Yield the images of each request, in their order; fewer where some cannot be used."""
        # Files are read ahead of what is yielded: the requests that wait for theirs, in order.
        waiting: deque[tuple[BatchRequest, list[SliceRow]]] = deque()

        def file_requests() -> Iterator[Request]:
            for request in requests:
                slices = self._slices_of(request.rows)
                # Before its files: once the first frame is there, its request must be known.
                waiting.append((request, slices))
                for path, frames in itertools.groupby(slices, key=lambda row: row.path):
                    yield Request(path, tuple(row.frame for row in frames))

        reads = read_files(
            self.config.data.root,
            file_requests(),
            plane=self.recipe.preprocess.plane,
            workers=self.workers,
            time_limit_s=self.time_limit_s,
        )
        # The processes that read end with this generator, however it is left.
        with contextlib.closing(reads):
            for first in reads:
                request, slices = waiting.popleft()
                rest = itertools.islice(reads, len(slices) - 1)
                yield self._prepare(request, slices, [first, *rest])

    def _slices_of(self, rows: Rows) -> list[SliceRow]:
        places = np.searchsorted(self._numbers, rows)
        return slice_rows(self._slices.take(pa.array(places)))

    def _prepare(
        self, request: BatchRequest, slices: list[SliceRow], reads: list[FrameRead]
    ) -> ImageBatch:
        """Return the images of the slices that can be used; why others cannot goes to `bad`."""
        digests = self.store.read("pixel_digest", request.rows)
        items: list[Slice] = []
        usable: list[int] = []
        for i, (read, digest) in enumerate(zip(reads, digests, strict=True)):
            reason = _unusable(read, bytes(digest))
            if reason is not None:
                self.bad[int(request.rows[i])] = reason
                continue
            assert isinstance(read.item, Slice)
            # The range of intensities by which the slice's volume scaled it, where one did.
            ends = recorded_ends(self.store, self._slices, self.recipe.preprocess, slices[i])
            item = read.item
            if ends is not None:
                item = replace(item, ends=ends)
            items.append(item)
            usable.append(i)
        places = np.array(usable, np.int64)
        if not items:
            size = self.recipe.image_size
            nothing = torch.empty((0, 3, size, size), device=self.device)
            return ImageBatch(request, nothing, places)
        # On the CPU unless it is a GPU: other devices lack float64.
        where = self.device if self.device.type == "cuda" else "cpu"
        modalities = [slices[i].modality for i in usable]
        x = prepare_batch(items, modalities, self.recipe, where)
        return ImageBatch(request, x.to(self.device), places)


def _unusable(read: FrameRead, digest: bytes) -> str | None:
    """Return why a slice cannot be used; None where it is the one that has features."""
    if isinstance(read.item, Failure):
        return read.item.reason
    if read.pixel_digest is None or bytes.fromhex(read.pixel_digest) != digest:
        return CHANGED
    return None
