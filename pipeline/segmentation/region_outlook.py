"""What a task of regions will come to, before masks are read: as if each had every structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.mask_matching import join, unjoined, why_none
from pipeline.annotations.regions import INDEX_SCHEMA, Regions, slices_of_regions, structures_of
from pipeline.config.regions import Boxes
from pipeline.config.root import Config
from pipeline.config.tasks import Task
from pipeline.evaluation.region_cases import table_of_regions
from pipeline.segmentation.region_sources import BoxRegions
from pipeline.segmentation.units import groups_of
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError
from stores.slices import slice_rows


def regions_ahead(
    config: Config, task: Task, table: LabelTable, slices: pa.Table, names: Names
) -> tuple[LabelTable, pa.Table]:
    """Return labels and slices (SLICE_SCHEMA, real paths) of a task as if of regions by now.

    Raises ConfigError and LabelError as masks are joined, and LabelError where none is.
    """
    assert task.region is not None
    structures = structures_of(config, task.region)
    table = table_of_regions(table, task, structures)
    if task.region.masks is None:
        index = _index_of_boxes(config, config.boxes[task.region.name], slices)
        return table, slices_of_regions(slices, Regions(Path(), index), structures)
    masks = config.masks[task.region.masks]
    why = unjoined(config, masks)
    if why:
        raise LabelError(f"of its masks {why}")
    groups = join(config, masks, slices, names)
    numbers = sorted(number for group in groups for number in group.numbers)
    if not numbers:
        why = why_none(config, masks, slices)
        raise LabelError(f"no slice has a mask of {task.region.masks!r}: {why}")
    masked = slices.take(pa.array(np.array(numbers, np.int64)))
    rows = masked["row"].to_pylist()
    ids, members = groups_of(slice_rows(masked))
    pieces = []
    for whole, places in zip(ids, members, strict=True):
        for place in places:
            for structure in structures:
                piece = dict.fromkeys(INDEX_SCHEMA.names) | {"row": rows[place], "weight": 1.0}
                pieces.append(piece | {"whole": whole, "structure": structure})
    index = pa.Table.from_pylist(pieces, schema=INDEX_SCHEMA)
    expanded = slices_of_regions(slices, Regions(Path(), index), structures)
    return table, expanded


def _index_of_boxes(config: Config, settings: Boxes, slices: pa.Table) -> pa.Table:
    """Return the boxes of a table as if each covered something."""
    source = BoxRegions.in_slices(config, slices, settings)
    masked = [source.slices[row] for row in source.rows.tolist()]
    pieces = []
    for whole, places in zip(*groups_of(masked), strict=True):
        for place in places:
            row = masked[place].row
            for box in source.boxes[row]:
                piece = dict.fromkeys(INDEX_SCHEMA.names) | {"row": row, "weight": 1.0}
                own = {"whole": whole, "structure": box.structure, "box": box.number}
                pieces.append(piece | own)
    return pa.Table.from_pylist(pieces, schema=INDEX_SCHEMA)
