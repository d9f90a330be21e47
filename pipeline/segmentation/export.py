"""What a head predicted, as files in the images' own space, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.recipe import recipe_of
from pipeline.segmentation import pictures
from pipeline.segmentation.cases import Asked, native
from pipeline.segmentation.mask_writer import write_unit
from pipeline.shared.pseudonyms import Names
from stores.errors import UnreadableError

# Most units that have a picture, and slices whose tokens are shown.
MOST_PICTURES, MOST_TOKENS = 12, 6
Predicted = Mapping[int, NDArray[np.uint8]]


@dataclass(frozen=True)
class Unwritten:
    """A unit that could not be written: its first row, its file as the store names it, and why."""

    row: int
    source: str
    detail: str


def write_units(
    asked: Asked, predicted: Predicted, out: Path
) -> tuple[list[Path], list[Unwritten]]:
    """Write each predicted unit in the space of its file; return the files, and what failed.

    That is a unit whose images can no longer be read, or lack what its format must have.
    """
    config = asked.config
    names = Names(asked.store.path, config.data.paths)
    slices = names.revealed(asked.store.slices())
    numbers = slices["row"].to_numpy()
    written: list[Path] = []
    failed: list[Unwritten] = []
    for unit in asked.units:
        if unit.rows[0] not in predicted:
            continue
        own = slices.take(pa.array(np.searchsorted(numbers, unit.rows))).to_pylist()
        labels = native(asked.kept, unit, [predicted[row] for row in unit.rows])
        planes = list(labels) if unit.volume else [labels]
        plane, classes = config.preprocess.plane, asked.kept.classes
        try:
            written += write_unit(config.data.root, own, planes, plane, classes, out)
        except (UnreadableError, OSError, ValueError, AttributeError) as error:
            # a library's words may quote a header: its kind alone is told
            detail = str(error) if isinstance(error, UnreadableError) else type(error).__name__
            failed.append(Unwritten(unit.rows[0], names.shown(own[0]["path"]), detail))
    return written, failed


def write_pictures(asked: Asked, predicted: Predicted, out: Path, head: str) -> list[Path]:
    """Write overlays of the first units, and the tokens of their slices as colours.

    Each unit is shown by the slice with most of the mask. Files are named by row, and no picture
    has a name on it.
    """
    recipe = recipe_of(asked.store)
    note = "RANDOM WEIGHTS" if recipe.random else ""
    rows = [telling(asked, unit.rows) for unit in asked.units if unit.rows[0] in predicted]
    rows, written = rows[:MOST_PICTURES], []
    if not rows:
        return []
    images = asked.source.images(np.array(rows))
    masks = asked.source.masks(np.array(rows))
    for row, image, mask in zip(rows, images, masks, strict=True):
        picture = pictures.overlay(pictures.grey_of(image), mask, predicted[row])
        written.append(out / f"{head}-row{row}.png")
        pictures.write_png(written[-1], picture, note)
    shown = out / "tokens.png"
    if shown.exists():  # by another head, of the same units
        return written
    few = np.array(rows[:MOST_TOKENS])
    tokens: NDArray[Any] = asked.source.tokens(few)[:, -1].astype(np.float32)
    colours = pictures.components(tokens, asked.source.image_size)
    pairs = [
        pictures.beside([np.repeat(pictures.grey_of(image)[..., None], 3, axis=2), colour])
        for image, colour in zip(images, colours, strict=False)
    ]
    pictures.write_png(shown, pictures.below(pairs), note)
    return [*written, shown]


def telling(asked: Asked, rows: tuple[int, ...]) -> int:
    """Return the row of a unit's slice that has most of the mask."""
    return max(rows, key=lambda row: int((asked.kept.labels(row) > 0).sum()))
