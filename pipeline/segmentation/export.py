"""What a head predicted, as files in the images' own space, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.recipe import recipe_of
from pipeline.segmentation import pictures
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.mask_writer import MASK_FORMS, MaskForm, UnitLabels, write_unit
from pipeline.segmentation.units import Unit, native_labels
from pipeline.shared.pseudonyms import Names
from stores.errors import UnreadableError
from stores.slices import slice_rows

# Most units that have a picture, and slices whose tokens are shown.
MOST_PICTURES = 12
MOST_TOKENS = 6
Predicted = Mapping[int, NDArray[np.uint8]]  # row -> label values (S, S)


@dataclass(frozen=True)
class Unwritten:
    """A unit that could not be written: its first row, its file as the store names it, and why."""

    row: int
    source: str
    detail: str


# --- files ---------------------------------------------------------------------------------------


def write_units(
    cases: SegmentationCases, predicted: Predicted, out: Path
) -> tuple[list[Path], list[Unwritten]]:
    """Write each predicted unit in the space of its file; return the files, and what failed.

    That is a unit whose images can no longer be read, or lack what its format must have.
    """
    names = Names(cases.store.path, cases.config.data.paths)
    slices = names.revealed(cases.store.slices())
    written: list[Path] = []
    failed: list[Unwritten] = []
    for unit in cases.units:
        if unit.rows[0] not in predicted:
            continue
        labels = _labels_of(cases, unit, slices, predicted)
        files, detail = try_writing(labels, out)
        written += files
        if detail:
            failed.append(Unwritten(unit.rows[0], names.shown(labels.slices[0].path), detail))
    return written, failed


def try_writing(
    labels: UnitLabels, out: Path, forms: Sequence[MaskForm] = MASK_FORMS
) -> tuple[list[Path], str]:
    """Write a unit as `write_unit` does; return its files, and why there are none, or ""."""
    try:
        return write_unit(labels, out, forms), ""
    except (UnreadableError, OSError, ValueError, AttributeError) as error:
        # A library's words may quote a header: of its errors the kind alone is reported.
        return [], str(error) if isinstance(error, UnreadableError) else type(error).__name__


def _labels_of(
    cases: SegmentationCases, unit: Unit, slices: pa.Table, predicted: Predicted
) -> UnitLabels:
    """Return what was predicted of a unit, at native size; slices: with real paths."""
    places = np.searchsorted(slices["row"].to_numpy(), unit.rows)
    at_input = [predicted[row] for row in unit.rows]
    placements = [cases.masks.placement(row) for row in unit.rows]
    labels = native_labels(unit, at_input, placements)
    return UnitLabels(
        root=cases.config.data.root,
        slices=slice_rows(slices.take(pa.array(places))),
        planes=list(labels) if unit.volume else [labels],
        plane=cases.config.preprocess.plane,
        classes=cases.masks.classes,
    )


# --- pictures ------------------------------------------------------------------------------------


def write_pictures(
    cases: SegmentationCases, predicted: Predicted, out: Path, head: str
) -> list[Path]:
    """Write overlays of the first units, and the tokens of their slices as colours.

    Each unit is shown by the slice with most of the mask. Files are named by row, and no picture
    has a name on it.
    """
    units = [unit for unit in cases.units if unit.rows[0] in predicted][:MOST_PICTURES]
    if not units:
        return []
    recipe = recipe_of(cases.store)
    note = "RANDOM WEIGHTS" if recipe.random else ""
    rows = np.array([cases.row_with_most_mask(unit) for unit in units])
    images = cases.source.images(rows)
    masks = cases.source.masks(rows)
    written = []
    for row, image, mask in zip(rows.tolist(), images, masks, strict=True):
        path = out / f"{head}-row{row}.png"
        picture = pictures.overlay(pictures.grey_of(image), mask, predicted[row])
        pictures.write_png(path, picture, note)
        written.append(path)
    tokens = out / "tokens.png"
    if not tokens.exists():  # else by another head, of the same units
        _write_tokens(cases, rows[:MOST_TOKENS], images[:MOST_TOKENS], tokens, note)
        written.append(tokens)
    return written


def _write_tokens(
    cases: SegmentationCases,
    rows: NDArray[np.int64],
    images: NDArray[np.float32],
    path: Path,
    note: str,
) -> None:
    """Write the images of some rows, each with its tokens as colours to its right."""
    tokens: NDArray[np.float32] = cases.source.tokens(rows)[:, -1].astype(np.float32)
    colours = pictures.components(tokens, cases.source.image_size)
    pairs = []
    for image, colour in zip(images, colours, strict=True):
        grey = pictures.in_channels(pictures.grey_of(image))
        pairs.append(pictures.side_by_side([grey, colour]))
    pictures.write_png(path, pictures.stacked(pairs), note)
