"""What is to be known of regions beside their features: counted, and the first of each named.

A region is a structure in its image or volume, called by both: the number of the image's row, or
the pseudonym of the volume's series, and the structure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.annotations.regions import EXAMPLES, Regions, region_name
from pipeline.shared.texts import count
from stores.features import OK, FeatureStore

# Of its pixels, from which share outside the input on a region is told of.
_MOST_OUTSIDE = 0.5


@dataclass
class _Region:
    """A region's pixels, those that the input shows, and how many patches it covers."""

    pixels: int = 0
    seen: int = 0
    weight: float = 0.0


def region_notes(regions: Regions, structures: Sequence[str], store: FeatureStore) -> Iterator[str]:
    """Yield what there is to say of some structures, in those slices of a store with features."""
    slices = store.slices(["row", "series"])
    slices = slices.filter(pa.array(store.status()[slices["row"].to_numpy()] == OK))
    live = set(slices["row"].to_pylist())
    index = [piece for piece in regions.index.to_pylist() if piece["row"] in live]
    # A table says where boxes are, and of no image that it has none.
    of_boxes = any(piece["box"] is not None for piece in index)
    faults = regions.faults
    if faults:
        what = "box" if of_boxes else "mask"
        counted = count(len(faults), what, "boxes" if of_boxes else "")
        yield f"{counted} cannot be used, first {'; '.join(faults[:EXAMPLES])}"
    if regions.cut:
        shown = ", ".join(map(str, regions.cut[:EXAMPLES]))
        verb = "ends" if len(regions.cut) == 1 else "end"
        yield (
            f"{count(len(regions.cut), 'box', 'boxes')} {verb} outside of the image or volume, of "
            f"which alone the regions are, first data row {shown}"
        )
    every = _gathered(index, structures)
    if not of_boxes:
        yield from _empty(index, every, structures)
    outside = [name for name, region in every.items() if not region.weight]
    yield from _named(outside, "outside of what the network's input shows, and no case", "lies")
    cut = [
        name
        for name, region in every.items()
        if region.weight and region.seen < _MOST_OUTSIDE * region.pixels
    ]
    yield from _named(cut, "by more than half outside of what the network's input shows", "lies")
    small = [name for name, region in every.items() if 0 < region.weight < 1]
    yield from _named(
        small,
        "less than one patch in all: their features are mostly of what is round them",
        "covers",
    )
    if not of_boxes:
        yield from _in_part(index, slices)


def _gathered(index: Iterable[Mapping[str, Any]], structures: Sequence[str]) -> dict[str, _Region]:
    """Return the regions of some structures by their names, over all their slices."""
    every: defaultdict[str, _Region] = defaultdict(_Region)
    for piece in index:
        if piece["structure"] in structures:
            region = every[region_name(piece["whole"], piece["structure"], piece["box"])]
            region.pixels += piece["pixels"]
            region.seen += piece["seen"]
            region.weight += piece["weight"]
    return every


def _empty(
    index: Iterable[Mapping[str, Any]], every: Mapping[str, _Region], structures: Sequence[str]
) -> Iterator[str]:
    """Yield of each structure how many masks have none of it."""
    wholes = dict.fromkeys(piece["whole"] for piece in index)
    for structure in structures:
        without = [whole for whole in wholes if region_name(whole, structure) not in every]
        if without:
            shown = ", ".join(without[:EXAMPLES])
            yield (
                f"{len(without)} of {len(wholes)} images or volumes with a mask have no "
                f"{structure!r}, first {shown}"
            )


def _named(names: Sequence[str], what: str, verb: str) -> Iterator[str]:
    if names:
        how = verb if len(names) == 1 else {"lies": "lie", "covers": "cover"}[verb]
        yield f"{count(len(names), 'region')} {how} {what}, first {', '.join(names[:EXAMPLES])}"


def _in_part(index: Iterable[Mapping[str, Any]], slices: pa.Table) -> Iterator[str]:
    """Yield how many volumes have masks of some of their slices alone."""
    masked = Counter({piece["row"]: piece["whole"] for piece in index}.values())
    sizes = Counter(slices["series"].to_pylist())
    part = [whole for whole, n in masked.items() if n < sizes.get(whole, 0)]
    if part:
        shown = ", ".join(part[:EXAMPLES])
        have = "has a mask" if len(part) == 1 else "have masks"
        yield (
            f"{count(len(part), 'volume')} {have} of some slices only, of which alone the regions "
            f"are, first {shown}"
        )
