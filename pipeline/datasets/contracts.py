"""What the description of a public data set is made of, and what looking into its folder gives.

A description is data and one function, `find`, which reads tables and names of files and no pixels,
unless masks or images are packed together with something else: what it unpacks it writes under
`out`. `describing` makes a config of what it gives.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.tasks import Part
from stores.errors import ConfigError


@dataclass(frozen=True)
class Item:
    """An image, a volume or a folder of slices, or what a box in one of these holds.

    path: relative to `Contents.root`; patient: as the set names them; part: of the official split,
    or None; mask: relative to `Contents.masks`; labels: column -> text; box: x0, x1, y0, y1, z0 and
    z1 in mm of the patient (LPS), of the structure that the column `DataSet.labels` calls so names.
    """

    path: str
    patient: str
    part: Part | None = None
    mask: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    box: tuple[float, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What is in a folder. counts: what is there of what `DataSet.published` counts.

    masks: the folder of the masks, where it is another than root. join: how they are joined to the
    images, as the block `masks` of a config has it, where it is not by `Item.mask`. published,
    tasks: where they depend on which of several sets the folder holds. notes: what the user should
    know.
    """

    root: Path
    items: Sequence[Item]
    counts: Mapping[str, int]
    masks: Path | None = None
    join: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Systematic(NamedTuple):
    """A split in which every so-manieth unit tests, and every so-manieth of the others is val.

    The rest trains; where train is given, every so-manieth of all does, before val and then test
    are dealt of the others, and the rest is left out.
    """

    test: float
    val: float
    train: float | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    layout: the files that a download leaves; published: what is counted -> how many there are;
    data, labels, split, tasks, values: as the blocks of a config have them; split also without an
    official one; values: of the masks. paper_split: how arXiv 2312.02366 deals it, where it does so
    by a rule. unverified: what could not be held against a source.
    """

    title: str
    source: str
    layout: str
    find: Callable[[Path, Path], Contents]
    data: Mapping[str, Any]
    published: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: str | Mapping[int, str] | None = None
    paper_split: Systematic | None = None
    unverified: str = ""


def below(folder: Path, *names: str) -> Path:
    """Return `folder`, or the one folder at most two levels below it, that holds all of `names`.

    Names may be patterns. Archives are often unpacked into a folder of their own name. Raises
    ConfigError where there is none, or several.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {str(folder)!r}. Name the unpacked download.")
    # The nearest counts: a folder that has all the names may hold another copy further down.
    for depth in ("", "*/", "*/*/"):
        folders = sorted({path.parent for path in folder.glob(f"{depth}{names[0]}")})
        complete = [each for each in folders if _has_all(each, names)]
        if len(complete) == 1:
            return complete[0]
        if complete:
            raise ConfigError(
                f"{str(folder)!r} holds {' and '.join(names)} more than once, in "
                f"{', '.join(str(path) for path in complete[:3])}. Name one of these."
            )
    raise ConfigError(f"{str(folder)!r} does not hold {' and '.join(names)}.")


def _has_all(folder: Path, names: Sequence[str]) -> bool:
    return all(any(folder.glob(name)) for name in names)


def table_rows(file: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a table of a set by its columns."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        yield from csv.DictReader(lines, delimiter=delimiter)


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder by name, without those that macOS leaves in archives."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("._"))
