"""Masks looked into before anything is embedded: whether they fit their images and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.annotations.mask_matching import MaskedSlices
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.segmentation.masks import MaskReader
from pipeline.shared.pseudonyms import Names
from stores.errors import UnreadableError
from stores.slices import slice_rows

# Of very many masks so many are read, spread over all: what is wrong is mostly so in each.
MOST = 50


@dataclass(frozen=True)
class MaskSample:
    """What masks that were read came to: how many, what was wrong with how many of them.

    absent: structures that none of them shows.
    """

    read: int
    faults: dict[str, int]
    absent: tuple[str, ...]


def sample_masks(
    config: Config, masks: Masks, slices: pa.Table, names: Names, groups: Sequence[MaskedSlices]
) -> MaskSample:
    """Read some masks of a config, as `segment` will; slices, groups: as `join` has them."""
    reader = MaskReader(config, masks, names)
    places = np.unique(np.linspace(0, len(groups) - 1, min(MOST, len(groups))).astype(int))
    faults: Counter[str] = Counter()
    shown: set[int] = set()
    for place in places.tolist():
        group = groups[place]
        rows = slice_rows(slices.take(pa.array(group.numbers)))
        try:
            for _, labels in reader.read(reader.paths(group), rows):
                shown.update(np.unique(labels).tolist())
        except UnreadableError as error:
            faults[error.detail] += 1
    can_show = bool(shown)
    absent = [name for i, name in enumerate(masks.classes) if i and can_show and i not in shown]
    return MaskSample(len(places), dict(faults.most_common()), tuple(absent))
