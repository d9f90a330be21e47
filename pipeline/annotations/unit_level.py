"""What a level of tasks knows about itself: which slices are of which unit, and units' names.

`pipeline.annotations.levels` has them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class UnitLevel:
    """A level whose units are whole slices together, each slice of one unit.

    column: of a slice table, that names them; a file without a name there is its own.
    """

    column: str

    @property
    def is_whole(self) -> bool:
        """Whether whole slices make up its units; else a slice may be of several, or of none."""
        return True

    @property
    def holds_volumes(self) -> bool:
        """Whether a unit is a whole volume or several, so that a volume's vector tells of it."""
        return self.is_whole and self.column != "row"

    def has_unit(self, slices: pa.Table) -> NDArray[np.bool_]:
        """Return (m,) which slices are of a unit at all."""
        return np.ones(len(slices), bool)

    def unit_names(self, slices: pa.Table) -> NDArray[np.str_]:
        """Return (m,) the unit of each slice of a slice table, without labels."""
        names = []
        for name, path in zip(
            slices[self.column].to_pylist(), slices["path"].to_pylist(), strict=True
        ):
            names.append(str(path if name is None else name))
        return np.array(names, np.str_)

    def places(self, slices: pa.Table, ids: Iterable[str]) -> Iterator[tuple[int, str]]:
        """Yield places of a slice table and the unit that each is of, of units by their names."""
        yield from enumerate(self.unit_names(slices).tolist())

    def part(self, name: str) -> str | None:
        """Return which part of its slices a unit is, by its name; None of whole ones."""
        return None
