"""The levels of tasks by name. To add one: its class, its line here, and its name in `Level`.

Where its cases are more than slices joined to labels, they have a line in `evaluation.questions`.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.annotations.regions import RegionLevel
from pipeline.annotations.unit_level import UnitLevel
from pipeline.config.tasks import Level
from stores.errors import ConfigError

LEVELS: dict[Level, UnitLevel] = {
    "image": UnitLevel("row"),
    "series": UnitLevel("series"),
    "study": UnitLevel("study"),
    "patient": UnitLevel("patient"),
    "region": RegionLevel(),
}


def check_of_volumes(task: str, level: Level) -> None:
    """Raise ConfigError for a task of less than a volume, all slices of which share one vector."""
    if not LEVELS[level].holds_volumes:
        wide = [name for name, each in LEVELS.items() if each.holds_volumes]
        raise ConfigError(
            f"{task}: there are features of whole volumes, and a unit of the task is less than one "
            f"(level: {level}). Set its level to {', '.join(wide[:-1])} or {wide[-1]}."
        )


def column_of_parts(slices: pa.Table) -> str | None:
    """Return the column of a slice table that names the part that each row is of its slice.

    None where each slice stands once, as a whole.
    """
    for level in LEVELS.values():
        if not level.is_whole and level.column in slices.column_names:
            return level.column
    return None
