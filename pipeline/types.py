"""The frozen types that the stages hand to each other.

Two kinds of settings never share an object. A `Recipe` is all that changes feature values: it is
validated when made, has one canonical JSON form and one digest, and is stored beside the features.
Speed settings (batch size, workers, device) are keyword arguments elsewhere and change no value.

Dims, here and everywhere: n rows, b batch, d embedding, l blocks, h and w patch grid, H and W
pixels, k neighbours, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from stores.errors import Reason


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about one slice, known without decoding its pixels.

    `modality` is None where the file names none. `patient`, `study`, `series` and `instance` are
    the file's own identifiers, `tags` (DICOM keyword -> value) what was asked for beside them:
    `discover` turns them into keyed pseudonyms, and nothing else may keep them. `volume` tells
    apart what cannot lie in one volume (shape, kind of picture), as do `axes` (along the rows, down
    the columns, as stored) and `echo_ms`, which are compared as numbers. `labels` are what slices
    of one time point share, each by its place (the first: a temporal position; the second: the
    number of an acquisition); only whether two are equal means anything. `gradient` is another, the
    b-value and direction of diffusion, which is compared as numbers. `order` sorts slices of
    one place in time, the plainest first: temporal position, delay behind a trigger, acquisition,
    creation, number of the instance; None where a file does not tell. `position_mm` is along the
    slice normal, `offset_mm` the first pixel's place along the rows and columns.
    """

    frame: int
    modality: str | None
    height: int
    width: int
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    volume: str = ""
    axes: tuple[float, ...] | None = None
    echo_ms: float | None = None
    labels: tuple[float | None, ...] = ()
    gradient: tuple[float, ...] = ()
    order: tuple[float | None, ...] = ()
    position_mm: float | None = None
    offset_mm: tuple[float, float] | None = None
    spacing_mm: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Voi:
    """The file's own way from its pixels to grey: what its authors wanted seen.

    linear: a ramp over [low, high]; sigmoid: 1 / (1 + exp(-4 (x - (low + high) / 2) /
    (high - low))) (DICOM PS3.3 C.11.2.1.3); table: `table` holds the grey in [0, 1] at equal steps
    from low to high.
    """

    low: float
    high: float
    shape: Literal["linear", "sigmoid", "table"] = "linear"
    table: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice's pixels: float32 (H, W), HU for CT, scanner units or grey levels otherwise.

    Higher is brighter (MONOCHROME1 is already inverted, except HU). NaN marks padding. ends: the
    values that its volume makes 0 and 1, set by `embed` for rules of scope `volume`. Between
    `read_files` and the network, whole numbers may be uint8, int16 or uint16.
    """

    frame: int
    pixels: NDArray[Any]
    voi: Voi | None = None
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One slice that could not be read, and why."""

    frame: int
    reason: Reason
    detail: str


# Which cut of a volume file (NIfTI) its slices are. Other files are taken as acquired.
Plane = Literal["axial", "sagittal", "coronal"]
