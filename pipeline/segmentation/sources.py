"""A store's tokens, masks and images, as heads ask for them; and its units: volumes and images."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.labels import patients_of
from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.io.decode import read_frames
from pipeline.preprocessing.volume_range import recorded_ends
from pipeline.recipe import Recipe
from pipeline.results import Tally
from pipeline.segmentation.masks import Kept
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.types import Failure, Slice
from stores.errors import ConfigError, LabelError, UnreadableError
from stores.features import OK, UNREADABLE, VOID, FeatureStore

Row = dict[str, Any]


class StoreSource:
    """The `Source` of a store and the masks kept beside it."""

    def __init__(self, config: Config, store: FeatureStore, kept: Kept) -> None:
        self._root, self._store, self._kept = config.data.root, store, kept
        self._recipe = Recipe.model_validate_json(store.recipe_text)
        self._slices = Names(store.path, config.data.paths).revealed(store.slices())
        self._numbers: NDArray[np.int64] = self._slices["row"].to_numpy()

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._store)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label value."""
        return self._kept.classes

    @property
    def image_size(self) -> int:
        """S."""
        return self._recipe.image_size

    @property
    def chunk_rows(self) -> int:
        """How many rows are read at once."""
        return self._tokens.chunk_rows

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return (b, l, h, w, d). Raises ConfigError where the store keeps no patch tokens."""
        return self._tokens.read(rows)

    def masks(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (b, S, S) label values."""
        size = self.image_size
        found = [self._kept.at_input(int(row), size) for row in rows]
        return np.stack(found) if found else np.zeros((0, size, size), np.uint8)

    def images(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
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
        about = self._slices.take(pa.array(np.searchsorted(self._numbers, rows))).to_pylist()
        items = self._read(about)
        return prepare_batch(items, [row["modality"] for row in about], self._recipe).numpy()

    def _read(self, about: list[Row]) -> list[Slice]:
        preprocess = self._recipe.preprocess
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(about):
            wanted[row["path"]].append(i)
        found: dict[int, Slice] = {}
        for path, places in wanted.items():
            frames = tuple(about[i]["frame"] for i in places)
            reads = read_frames(self._root / unescape_path(path), frames, preprocess.plane)
            for i, read in zip(places, reads, strict=True):
                item = read.item
                if isinstance(item, Failure):
                    raise UnreadableError(item.reason, f"row {about[i]['row']}: {item.detail}")
                ends = recorded_ends(self._store, self._slices, preprocess, about[i])
                found[i] = item if ends is None else replace(item, ends=ends)
        return [found[i] for i in range(len(about))]


# --- units -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A volume or an image: the rows of its slices in order, and mm a voxel (z, y, x) or (y, x).

    spacing: ones where the files name none; in_mm: whether they name all of it.
    """

    rows: tuple[int, ...]
    spacing: tuple[float, ...]
    in_mm: bool

    @property
    def volume(self) -> bool:
        """Whether it is scored in three dimensions."""
        return len(self.spacing) == 3


def units_of(
    config: Config, store: FeatureStore, kept: Kept, table: LabelTable | None
) -> tuple[Units, list[Unit]]:
    """Return what is split and scored: a volume each, or an image each where slices are none.

    table: the label table, if any, whose patient column counts before the files' headers. Raises
    LabelError where nothing has both a mask and features, or a slice names no patient.
    """
    names = Names(store.path, config.data.paths)
    slices = names.revealed(store.slices())
    status = store.status()
    place = np.searchsorted(slices["row"].to_numpy(), kept.rows)
    ready = status[kept.rows] == OK
    if not ready.any():
        raise LabelError(
            f"None of the {len(ready)} slices with a mask has features. Run `radprobe extract`."
        )
    tally = Tally(
        unreadable_slices=int((status[kept.rows] == UNREADABLE).sum()),
        pending_slices=int((status[kept.rows] == VOID).sum()),
        unmatched_slices=int((status[slices["row"].to_numpy()] == OK).sum() - ready.sum()),
        unmatched_labels=len(kept.bad),
        unmatched_label_examples=tuple(f"{bad.source} {bad.detail}" for bad in kept.bad[:3]),
    )
    slices = slices.take(pa.array(place[ready]))
    patients = (
        slices["patient"].to_numpy(zero_copy_only=False)
        if table is None
        else patients_of(table, slices, config.data.root, names)
    )
    _refuse_unknown(patients, slices, names)
    rows = slices.to_pylist()
    frames = Counter((row["series"], row["path"]) for row in rows)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        one = row["position_mm"] is None and frames[row["series"], row["path"]] == 1
        called = (row["series"] or "", f"{row['row']}" if one else "")
        groups.setdefault(called, []).append(i)
    members = list(groups.values())
    units = [_unit([rows[i] for i in group]) for group in members]
    numbers = slices["row"].to_numpy()
    y = np.stack([kept.present(numbers[group])[:, 1:].max(axis=0) for group in members])
    ids = [row if row else series for series, row in groups]
    owners = np.array([patients[group[0]] for group in members], np.str_)
    unit = np.empty(len(rows), np.int64)
    for i, group in enumerate(members):
        unit[group] = i
    found = Units(
        y.astype(np.int8),
        owners,
        kept.classes[1:],
        "multilabel",
        np.array(ids, np.str_),
        numbers,
        unit,
        tally,
    )
    return found, units


def _unit(rows: list[Row]) -> Unit:
    named = [rows[0][name] for name in ("spacing_y_mm", "spacing_x_mm")]
    inside = [each or 1.0 for each in named]
    if len(rows) == 1:
        return Unit((rows[0]["row"],), tuple(inside), all(named))
    at = np.array([np.nan if row["position_mm"] is None else row["position_mm"] for row in rows])
    step = float(np.median(np.abs(np.diff(at)))) if np.isfinite(at).all() else 1.0
    in_mm = all(named) and bool(np.isfinite(at).all())
    return Unit(tuple(row["row"] for row in rows), (step or 1.0, *inside), in_mm)


def _refuse_unknown(patients: NDArray[Any], slices: pa.Table, names: Names) -> None:
    unknown = np.array([patient is None for patient in patients])
    if unknown.any():
        example = names.shown(slices["path"][int(np.flatnonzero(unknown)[0])].as_py())
        raise LabelError(
            f"{int(unknown.sum())} slices with a mask name no patient, for example {example!r}, so "
            "they cannot be split by patient. Name the column that does in labels.patient, or a "
            "pattern of the path in data.patient."
        )


def native_mask(kept: Kept, unit: Unit) -> NDArray[np.uint8]:
    """Return a unit's mask at native resolution: (z, H, W), or (H, W) of an image."""
    planes = [kept.labels(row) for row in unit.rows]
    return np.stack(planes) if unit.volume else planes[0]
