"""What a task of regions will come to, before masks are read: as if each had every structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.mask_matching import join
from pipeline.annotations.regions import INDEX_SCHEMA, Regions, slices_of_regions
from pipeline.config.root import Config
from pipeline.config.tasks import Task
from pipeline.evaluation.region_cases import structures_of, table_of_regions
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
    masks = config.masks[task.region.masks]
    structures = structures_of(config, task)
    if masks.by == "uid":
        raise LabelError(
            "which images the masks are of stands in their files, which `radprobe regions` reads."
        )
    groups = join(config, masks, slices, names)
    numbers = sorted(number for group in groups for number in group.numbers)
    if not numbers:
        raise LabelError(
            f"no slice has a mask of {task.region.masks!r}. Correct its root, or how it is joined."
        )
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
    return table_of_regions(table, task, structures), expanded
