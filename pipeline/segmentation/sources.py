"""A store's tokens, masks and images by row, as heads ask for them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.io.decode import read_frames
from pipeline.preprocessing.volume_range import recorded_ends
from pipeline.recipe import recipe_of
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.paths import collection_file
from pipeline.shared.pseudonyms import Names
from pipeline.types import Failure, Slice
from stores.errors import ConfigError, UnreadableError
from stores.features import FeatureStore
from stores.slices import SliceRow, slice_rows


class InputMasks(Protocol):
    """The masks of a source: those of a store, or the names of what is to be drawn alone."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label value."""

    def at_input(self, row: int, size: int) -> Labels:
        """Return the label values (size, size) as the network's input shows the slice."""


@dataclass(frozen=True)
class NoMasks:
    """What is to be drawn, of slices that nobody has drawn it on."""

    classes: tuple[str, ...]

    def at_input(self, row: int, size: int) -> Labels:
        """Raise KeyError: there is no mask."""
        raise KeyError(f"Row {row} has no mask.")


class StoreSource:
    """The `TokenSource` of a store and its masks."""

    def __init__(self, config: Config, store: FeatureStore, masks: InputMasks) -> None:
        self._root = config.data.root
        self._store = store
        self._masks = masks
        self._recipe = recipe_of(store)
        self._slices = Names(store.path, config.data.paths).revealed(store.slices())
        self._numbers: Rows = self._slices["row"].to_numpy()

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._store)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label value."""
        return self._masks.classes

    @property
    def image_size(self) -> int:
        """The side S of the network's input, in pixels."""
        return self._recipe.image_size

    @property
    def chunk_rows(self) -> int:
        """How many rows are read at once."""
        return self._tokens.chunk_rows

    def tokens(self, rows: Rows) -> NDArray[Any]:
        """Return (b, l, h, w, d). Raises ConfigError where the store keeps no patch tokens."""
        return self._tokens.read(rows)

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        """Return (b, S, S) label values."""
        size = self.image_size
        masks = np.zeros((len(rows), size, size), np.uint8)
        for i, row in enumerate(rows):
            masks[i] = self._masks.at_input(int(row), size)
        return masks

    def images(self, rows: Rows) -> NDArray[np.float32]:
        """Return (b, 3, S, S) as the network saw them, read from their files.

        A slice that its volume scaled is scaled by the same range. Raises UnreadableError where a
        file is gone or was damaged, ConfigError where the store does not tell such a range.
        """
        from pipeline.preprocessing.prepare import prepare_batch

        if self._recipe.preprocess.view == "thick":
            raise ConfigError(
                "Images of a store with preprocess.view: thick are not read again: each would need "
                "its neighbours. Take a head that sees tokens alone."
            )
        places = np.searchsorted(self._numbers, rows)
        slices = slice_rows(self._slices.take(pa.array(places)))
        modalities = [row.modality for row in slices]
        return prepare_batch(self._read(slices), modalities, self._recipe).numpy()

    def _read(self, slices: list[SliceRow]) -> list[Slice]:
        """Return the pixels of slices, in their order, each file opened once."""
        preprocess = self._recipe.preprocess
        by_file: defaultdict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(slices):
            by_file[row.path].append(place)
        items: dict[int, Slice] = {}
        for path, places in by_file.items():
            frames = tuple(slices[place].frame for place in places)
            reads = read_frames(collection_file(self._root, path), frames, preprocess.plane)
            for place, read in zip(places, reads, strict=True):
                row = slices[place]
                if isinstance(read.item, Failure):
                    raise UnreadableError(read.item.reason, f"row {row.row}: {read.item.detail}")
                # The range of intensities by which the slice's volume scaled it, where one did.
                ends = recorded_ends(self._store, self._slices, preprocess, row)
                items[place] = read.item if ends is None else replace(read.item, ends=ends)
        return [items[place] for place in range(len(slices))]
