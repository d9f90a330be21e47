"""Regions on file: which patches of which slices each structure covers, and their tokens pooled.

<store>/regions/<16 hex>.parquet     a row a structure of a slice, or a slice without any
<store>/regions/<16 hex>-<16 hex>.features.parquet    what the tokens come to of what covers any

The first is named by the settings it depends on, the second by that and by all that is covered.
`pipeline.segmentation.regions` writes both, from masks and cached tokens; whoever answers reads
them, and neither mask nor token. A region is a structure in all slices of its volume, or in its
image: a piece is what it has of one slice. Dims: p pieces, m slices, d features.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.boxes import read_boxes
from pipeline.annotations.unit_level import UnitLevel
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.shared.texts import file_name
from stores.contents import REGIONS
from stores.errors import ConfigError
from stores.features import FeatureStore
from stores.filed_tables import read_filed_table

# Goes up when the same masks and tokens give other regions.
CONTRACT = 1
INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("mask", pa.string()),  # the digest of the slice's labels and of their way to the input
        ("whole", pa.string()),  # the image or volume: a row number, or the series' pseudonym
        ("structure", pa.string()),  # null where the slice has none
        ("box", pa.int64()),  # of boxes, its data row in their table
        ("pixels", pa.int64()),  # of the structure in the slice
        ("seen", pa.int64()),  # of them, those that the network's input shows
        ("weight", pa.float64()),  # patches that it covers, parts of them summed
        ("cover", pa.float64()),  # the greatest share of one patch that it covers
        ("coverage", pa.string()),  # the sha256 of the share that it covers of every patch
    ]
)
# What is known of a piece beside its coverage, as `INDEX_SCHEMA` has it, and what pools it.
POOLS = ("mean", "max", "square")
# Of a patch, from which share on the greatest number is asked of it (see `RegionChoice.pool`).
COVERED = 0.5
# Under which the index keeps what is wrong with masks, the boxes that end outside of their image,
# which state of the store it is of, and the names of the masks' structures.
_FAULTS = b"unusable_masks"
_CUT = b"cut_boxes"
_STORE = b"store"
_STRUCTURES = b"structures"
FEATURES = ".features.parquet"
# How many of these are named.
EXAMPLES = 3

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Texts = NDArray[np.str_]


def structures_of(config: Config, choice: RegionChoice) -> tuple[str, ...]:
    """Return the structures that are chosen, by their names; of all where none is named.

    Raises ConfigError for one that no box is called by: a config knows its masks' alone.
    """
    if choice.masks is not None:
        return choice.structures or config.masks[choice.masks].classes[1:]
    there = read_boxes(config.boxes[choice.name]).structures
    unknown = [name for name in choice.structures if name not in there]
    if unknown:
        raise ConfigError(
            f"`structures` must name what is in the boxes {choice.name}. Got {unknown[0]!r} "
            f"instead; they have {', '.join(there) or 'none'}."
        )
    return choice.structures or there


def index_path(config: Config, choice: RegionChoice) -> Path:
    """Return where the regions of some masks or boxes of the config are filed."""
    of_masks = choice.masks is not None
    source = config.masks[choice.name] if of_masks else config.boxes[choice.name]
    settings = {
        "contract": CONTRACT,
        # In their order, which sorted keys lose: coverages are kept by it.
        **({"classes": config.masks[choice.name].classes} if of_masks else {}),
        "masks" if of_masks else "boxes": source.model_dump(mode="json", exclude={"tolerance"}),
        "geometry": config.preprocess.model_dump(mode="json", include={"plane", "aspect", "crop"}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return config.store / REGIONS / f"{digest[:16]}.parquet"


def features_path(index: Path, coverages: str) -> Path:
    """Return where the features of an index's pieces are; coverages: the digest of all of them."""
    return index.with_name(f"{index.stem}-{coverages[:16]}{FEATURES}")


def coverages_digest(index: pa.Table) -> str:
    """Return the sha256 of what all pieces of an index cover, in their order."""
    digest = hashlib.sha256()
    for name in ("row", "structure", "box", "coverage"):
        digest.update(json.dumps(index[name].to_pylist()).encode())
    return digest.hexdigest()


def with_origin(
    index: pa.Table, faults: list[str], cut: list[int], store: str, structures: tuple[str, ...]
) -> pa.Table:
    """Return an index that says which masks cannot be used, a sentence each, and what it is of.

    cut: the data rows of boxes that end outside of their image; store: its fingerprint; structures:
    their names.
    """
    metadata = {
        _FAULTS: json.dumps(faults),
        _CUT: json.dumps(cut),
        _STORE: store,
        _STRUCTURES: json.dumps(structures),
    }
    return index.replace_schema_metadata(metadata)


@dataclass(frozen=True)
class Regions:
    """The regions of masks or boxes in a store, as they are filed. index (p,): INDEX_SCHEMA."""

    path: Path
    index: pa.Table

    @classmethod
    def of(cls, config: Config, store: FeatureStore, choice: RegionChoice) -> Regions:
        """Read the regions of some masks or boxes. Raises ConfigError where none were gathered."""
        path = index_path(config, choice)
        try:
            return cls(path, read_filed_table(path))
        except FileNotFoundError:
            raise ConfigError(
                f"The regions of {choice.name!r} were not gathered in the store "
                f"{store.place} with these settings. Run `radprobe regions CONFIG`, which reads "
                "masks and cached patch tokens."
            ) from None

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of all structures, of masks in the order of their label values."""
        structures: list[str] = json.loads(self._metadata.get(_STRUCTURES, b"[]"))
        return tuple(structures)

    @property
    def faults(self) -> list[str]:
        """What is wrong with masks that cannot be used, a sentence a file."""
        faults: list[str] = json.loads(self._metadata.get(_FAULTS, b"[]"))
        return faults

    @property
    def cut(self) -> list[int]:
        """The data rows of boxes that end outside of their image or volume."""
        cut: list[int] = json.loads(self._metadata.get(_CUT, b"[]"))
        return cut

    def check_store(self, fingerprint: str) -> None:
        """Raise ConfigError where the store has another fingerprint than it had."""
        if self._metadata.get(_STORE, b"").decode() != fingerprint:
            raise ConfigError(
                "The store has changed since its regions were gathered. Run `radprobe regions "
                "CONFIG` again: it keeps what is as it was."
            )

    @property
    def _metadata(self) -> dict[bytes, bytes]:
        return self.index.schema.metadata or {}

    @functools.cached_property
    def _features(self) -> pa.Table:
        return read_filed_table(features_path(self.path, coverages_digest(self.index)))

    def check_features(self) -> None:
        """Raise FileNotFoundError or CorruptStoreError where the pieces' features are not whole."""
        _ = self._features

    @property
    def pooled(self) -> NDArray[np.int64]:
        """The numbers of the pieces that have features, ascending: the others await extraction."""
        pieces: NDArray[np.int64] = self._features["piece"].to_numpy()
        return pieces

    def features(self, pool: str, pieces: NDArray[np.int64]) -> Floats:
        """Return (b, d) what the tokens of some pieces come to; each must cover something."""
        place = np.searchsorted(self.pooled, pieces)
        values = self._features[pool].combine_chunks().flatten().to_numpy()
        of_all: Floats = values.reshape(self._features.num_rows, -1)
        return of_all[place]

    def column(self, name: str) -> NDArray[Any]:
        """Return (p,) a column of the index."""
        values: NDArray[Any] = self.index[name].to_numpy(zero_copy_only=False)
        return values


# --- as slices -----------------------------------------------------------------------------------

# What a slice table of regions has beside SLICE_SCHEMA: the region that a row is a piece of, its
# structure, its image or volume, and the number of the piece; null where a slice has none.
REGION = "region"
PIECE = "piece"
WHOLE = "whole"
STRUCTURE_OF = "structure"


def slices_of_regions(slices: pa.Table, regions: Regions, structures: tuple[str, ...]) -> pa.Table:
    """Return a slice table in which each slice stands once for each structure that it has.

    Of the structures that are asked for, and that cover a part of a patch at least. A slice without
    any stands once, as none's. slices: SLICE_SCHEMA by ascending row; the same order comes back.
    """
    index = regions.index
    named = index["structure"].to_pylist()
    weight = regions.column("weight")
    is_asked = np.array([name in structures for name in named], bool) & (weight > 0)
    pieces = np.flatnonzero(is_asked)
    numbers = slices["row"].to_numpy()
    rows = regions.column("row")[pieces]
    there = np.isin(rows, numbers)
    pieces, rows = pieces[there], rows[there]
    bare = np.flatnonzero(~np.isin(numbers, rows))
    place = np.concatenate([np.searchsorted(numbers, rows), bare])
    piece = np.concatenate([pieces, np.full(len(bare), -1)])
    rank = np.array([structures.index(named[i]) if i >= 0 else 0 for i in piece.tolist()], np.int64)
    order = np.lexsort([rank, place])
    place, piece = place[order], piece[order]
    wholes = index["whole"].to_pylist()
    boxes = index["box"].to_pylist()
    columns: dict[str, list[str | None]] = {name: [] for name in (REGION, STRUCTURE_OF, WHOLE)}
    for i in piece.tolist():
        structure = named[i] if i >= 0 else None
        whole = wholes[i] if i >= 0 else None
        named_so = region_name(whole, structure, boxes[i]) if whole and structure else None
        columns[REGION].append(named_so)
        columns[STRUCTURE_OF].append(structure)
        columns[WHOLE].append(whole)
    expanded = slices.take(pa.array(place))
    for name, values in columns.items():
        expanded = expanded.append_column(name, pa.array(values, pa.string()))
    return expanded.append_column(PIECE, pa.array(piece))


def region_name(whole: str, structure: str, box: int | None = None) -> str:
    """Return what a region is called: its image or volume, the number of its box, its structure."""
    return f"{whole}:{structure}" if box is None else f"{whole}#{box}:{structure}"


def region_of(name: str) -> tuple[str, str]:
    """Return the image or volume, and the structure, of a region by its name."""
    whole, _, structure = name.partition(":")
    return whole.partition("#")[0], structure


def crop_file(row: int, structure: str, coverage: str) -> str:
    """Return the name of the crop of a piece, which is another once that covers something else."""
    return f"{row}-{file_name(structure)}-{coverage[:12]}.npy"


# --- as a level ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionLevel(UnitLevel):
    """The level of tasks whose units are regions, by the column of `slices_of_regions`."""

    column: str = REGION

    @property
    def is_whole(self) -> bool:
        """A slice shows several regions, or none."""
        return False

    def has_unit(self, slices: pa.Table) -> NDArray[np.bool_]:
        """Return (m,) which slices show a region."""
        return np.array([name is not None for name in slices[REGION].to_pylist()], bool)

    def places(self, slices: pa.Table, ids: Iterable[str]) -> Iterator[tuple[int, str]]:
        """Yield places of a slice table and each region that lies in its image or volume."""
        places: dict[str, list[int]] = {}
        for place, (row, series) in enumerate(
            zip(slices["row"].to_pylist(), slices["series"].to_pylist(), strict=True)
        ):
            for whole in (str(row), series or ""):
                places.setdefault(whole, []).append(place)
        for name in ids:
            for place in places.get(region_of(name)[0], ()):
                yield place, name

    def part(self, name: str) -> str | None:
        """Return the structure that a region is of."""
        return region_of(name)[1]
