"""Series of one slice that are, by all that is known, slices of one volume.

Some anonymisers give each slice a SeriesInstanceUID of its own: what is of a volume (its range, its
one answer) is then of a slice. Such slices are flagged, not joined, since the standard has no word
that they belong together.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.io.formats.series import is_even
from stores.slices import with_column

LONE_SLICE = "one-slice-series"
# As few could be localisers, or the planes of an overview.
_FEWEST = 4
_ALIKE = ("patient", "study", "modality", "height", "width", "spacing_y_mm", "spacing_x_mm")


def flag_lone_slices(slices: pa.Table) -> pa.Table:
    """Return slices with the flag on those of one slice a series that lie evenly in one study."""
    lone = _lone_slices(slices)
    flagged_before = pc.list_flatten(slices["flags"])
    if not lone and not pc.any(pc.equal(flagged_before, LONE_SLICE)).as_py():
        return slices  # and nothing is copied
    flags = []
    for number, before in enumerate(slices["flags"].to_pylist()):
        others = [flag for flag in before if flag != LONE_SLICE]
        flags.append([*others, LONE_SLICE] if number in lone else others)
    column = pa.array(flags, slices.schema.field("flags").type)
    return with_column(slices, "flags", column)


def _lone_slices(slices: pa.Table) -> set[int]:
    """Return the numbers of the slices to flag."""
    counts = pc.value_counts(slices["series"])
    single = counts.field("values").filter(pc.equal(counts.field("counts"), 1))
    candidates = pc.is_in(slices["series"], single)
    for column in ("study", "position_mm"):
        candidates = pc.and_(candidates, pc.is_valid(slices[column]))
    groups: dict[tuple[object, ...], list[tuple[float, int]]] = defaultdict(list)
    # In one piece: of a table of no slices it has none, on which pyarrow below 26 ends the process.
    numbers = pc.indices_nonzero(candidates.combine_chunks())
    few = slices.select([*_ALIKE, "position_mm"]).take(numbers)
    for number, row in zip(numbers.to_pylist(), few.to_pylist(), strict=True):
        kind = tuple(row[name] for name in _ALIKE)
        groups[kind].append((row["position_mm"], number))
    lone: set[int] = set()
    for group in groups.values():
        positions = sorted(position for position, _ in group)
        steps = [b - a for a, b in itertools.pairwise(positions)]
        if len(group) >= _FEWEST and is_even(steps):
            lone.update(number for _, number in group)
    return lone
