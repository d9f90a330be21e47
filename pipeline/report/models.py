"""The section of the page that tells of a model: what it is for, and the cases to look at.

What a model says of itself and of its test units is gathered by `pipeline.fitted.section`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass

from pipeline.results import Metric


@dataclass(frozen=True)
class Patches:
    """Which patches of other pictures are most like each patch of one.

    grid: its rows and columns; rows: of the other pictures' slices; near: base64 of `shown` for
    each patch, row after row, five bytes each: the picture's place in `rows` and the patch, two
    bytes each, the lower first, and the cosine in hundredths, signed.
    """

    grid: tuple[int, int]
    rows: tuple[int, ...]
    shown: int
    near: str

    @property
    def data(self) -> str:
        """All of it as JSON, for the page's script."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class Mark:
    """A rectangle on a picture, in pixels of the slice; size: width and height of the picture."""

    size: tuple[int, int]
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Case:
    """A test unit to look at. row: of the slice that is shown; about: what is said of it.

    picture: WebP; None where its file cannot be read here. neighbours: the nearest slices of other
    patients. patches: what is like each patch of the picture; None where nobody knows. part: what
    of the slice the unit is, such as a structure; "" for all of it. mark: where that lies.
    """

    row: int
    about: str
    picture: bytes | None
    neighbours: tuple[Case, ...] = ()
    patches: Patches | None = None
    part: str = ""
    mark: Mark | None = None

    @property
    def name(self) -> str:
        """What the page calls it: its slice's row, and which part of that it is."""
        return f"row {self.row}, {self.part}" if self.part else f"row {self.row}"

    @property
    def address(self) -> str:
        """The picture as the page has it."""
        assert self.picture is not None
        return f"data:image/webp;base64,{base64.b64encode(self.picture).decode()}"


@dataclass(frozen=True)
class CaseGroup:
    """Cases of one kind, the worst first. beside: what a case's neighbours are."""

    title: str
    about: str
    cases: tuple[Case, ...]
    beside: str = "Nearest slices of other patients"


@dataclass(frozen=True)
class ModelSection:
    """All that the page says of a model. sentence: how it did; facts: each with its name."""

    name: str
    sentence: str
    random: bool
    facts: tuple[tuple[str, str], ...]
    metrics: dict[str, Metric]
    groups: tuple[CaseGroup, ...]
    notes: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """How many cases have a picture."""
        return sum(case.picture is not None for group in self.groups for case in group.cases)
