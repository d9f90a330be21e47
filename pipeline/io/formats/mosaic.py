"""Pictures that tile the slices of a volume: Siemens' mosaics and United Imaging's grids.

A mosaic's number of tiles stands in a private header, as a plain element, as a list of times, or in
the CSA block (read with nibabel). Where those were stripped, the size of a tile tells the grid, and
the pixels tell how much of it is filled. A grid has its number, and a header a tile. Where nothing
tells the tiles from the empty rest, the file is set aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_geometry import (
    floats,
    frame_header,
    image_type,
    orientation,
    pixel_spacing,
    positive,
)
from pipeline.io.formats.reorientation import Floats
from pipeline.types import Header
from stores.errors import UnreadableError

_MOSAIC = "mosaic"
_INFERRED = "mosaic-inferred"
_MOST_TILES = 4096
_COUNT = (0x0019, 0x100A)
# Other words for pictures of several slices, whose tiles no header tells.
_MONTAGES = ("MONTAGE", "COLLAGE")


@dataclass(frozen=True)
class Tiles:
    """How many tiles, each (height, width), stand on a grid of `columns`, row after row.

    direction: +1 where the tiles follow each other along the normal of the picture, -1 against it.
    corners: where each tile lies (x, y, z; mm), where the file says it of each. inferred: whether
    `count` is that of the grid, and how many of its last tiles are empty is for the pixels to tell.
    """

    count: int
    columns: int
    height: int
    width: int
    direction: int = 1
    corners: tuple[tuple[float, ...] | None, ...] | None = None
    inferred: bool = False


def tiles(dataset: Dataset) -> Tiles | None:
    """Return the tiling of a picture, None for a single slice. Raises UnreadableError."""
    kind = image_type(dataset, 0)
    if "VFRAME" in kind:
        return _grid(dataset)
    if "MOSAIC" in kind:
        return _mosaic(dataset)
    if any(word in kind for word in _MONTAGES):
        raise UnreadableError("unsupported", "a montage of slices, of unknown tiles")
    # Only mosaics have the element, and anonymisers take the word off. Looked up where it nearly
    # always stands, since all files come by here.
    if _COUNT not in dataset:
        return None
    count = _private_count(dataset) or 0
    side = math.ceil(math.sqrt(count))
    divides = side > 1 and not (int(dataset.Rows) % side or int(dataset.Columns) % side)
    return _mosaic(dataset) if divides else None


def filled(tiling: Tiles, picture: NDArray[Any]) -> Tiles:
    """Return an inferred tiling with the tiles that the stored pixels fill.

    Siemens' grids are as small as their tiles allow: only so many of these can be empty.
    """
    least = (tiling.columns - 1) ** 2 + 1
    count = tiling.count
    while count > least and not tile(picture, tiling, count - 1).any():
        count -= 1
    return replace(tiling, count=count)


def headers(dataset: Dataset, tiling: Tiles) -> list[Header]:
    """Return one header a tile; the file's corner is that of the whole mosaic, not of a tile."""
    shape = (tiling.height, tiling.width)
    flags = (_MOSAIC, _INFERRED) if tiling.inferred else (_MOSAIC,)
    tile_headers = []
    for k in range(tiling.count):
        header = frame_header(dataset, k, shape, _corner(dataset, tiling, k))
        tile_headers.append(replace(header, flags=(*header.flags, *flags)))
    return tile_headers


def tile(picture: NDArray[Any], tiling: Tiles, k: int) -> NDArray[Any]:
    """Return tile k (height, width) of a mosaic."""
    row, column = divmod(k, tiling.columns)
    top = row * tiling.height
    bottom = top + tiling.height
    left = column * tiling.width
    right = left + tiling.width
    return np.ascontiguousarray(picture[top:bottom, left:right])


def _corner(dataset: Dataset, tiling: Tiles, k: int) -> Floats | None:
    """Return where tile k's first pixel lies (x, y, z; mm), None where the file does not tell."""
    if tiling.corners is not None:
        corner = tiling.corners[k]
        return None if corner is None else np.array(corner)
    return _centred_corner(dataset, tiling, k)


# --- Siemens -------------------------------------------------------------------------------------


def _mosaic(dataset: Dataset) -> Tiles:
    """Return the tiling of a Siemens mosaic, whose grid is square. Raises UnreadableError."""
    csa_count, normal = _csa(dataset)
    count = _private_count(dataset) or csa_count or _times(dataset)
    side = _inferred_side(dataset)
    if count and count > 0:
        side = math.ceil(math.sqrt(count))
    elif not side:
        raise UnreadableError("unsupported", "a Siemens mosaic without its number of tiles")
    rows = int(dataset.Rows)
    columns = int(dataset.Columns)
    stated = count or side**2
    if rows % side or columns % side or stated > _MOST_TILES:
        raise UnreadableError(
            "corrupt", f"a mosaic of {stated} tiles does not divide {rows} x {columns} pixels"
        )
    return Tiles(
        stated,
        side,
        rows // side,
        columns // side,
        _direction(dataset, normal),
        inferred=not count,
    )


def _centred_corner(dataset: Dataset, tiling: Tiles, k: int) -> Floats | None:
    """Return where tile k of a Siemens mosaic lies: the scanner centres the whole there."""
    axes = orientation(dataset, 0)
    spacing = pixel_spacing(dataset, 0)
    step = positive(dataset, "SpacingBetweenSlices") or positive(dataset, "SliceThickness")
    start = floats(dataset, "ImagePositionPatient", 3)
    if axes is None or spacing is None:
        return None
    if step is None or start is None:
        return None
    beyond = tiling.columns - 1  # tiles, half of them on either side
    down = axes[1] * beyond * tiling.height * spacing[0] / 2
    along = axes[0] * beyond * tiling.width * spacing[1] / 2
    corner: Floats = np.array(start) + down + along
    corner += tiling.direction * k * step[0] * axes[2]
    return corner


def _private(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """Return the value of a private element, None where there is none."""
    try:
        return dataset.private_block(group, creator)[element].value
    except (KeyError, ValueError, TypeError, NotImplementedError):
        return None


def _private_count(dataset: Dataset) -> int | None:
    """Return the number of tiles where it stands as a plain private element."""
    count = _private(dataset, 0x0019, "SIEMENS MR HEADER", 0x0A)
    return _as_count(count)


def _as_count(value: Any) -> int | None:
    """Return a number of tiles, None for what is none."""
    if isinstance(value, bytes) and len(value) == 2:  # where its type was lost
        return int.from_bytes(value, "little")
    try:
        return int(float(value))
    except (ValueError, TypeError, OverflowError):
        return None


def _times(dataset: Dataset) -> int | None:
    """Return the number of tiles by the list of their times (MosaicRefAcqTimes), 8 bytes each."""
    times = _private(dataset, 0x0019, "SIEMENS MR HEADER", 0x29)
    if isinstance(times, bytes):
        return len(times) // 8
    return len(times) if hasattr(times, "__len__") else None


def _inferred_side(dataset: Dataset) -> int | None:
    """Return how many tiles stand side by side, by the matrix that each was acquired with.

    AcquisitionMatrix is frequency rows, frequency columns, phase rows, phase columns (PS3.3
    C.8.3.1); the frequency direction has a tile's own size. One or two tiles a side are no mosaic,
    but a slice that was interpolated.
    """
    text = _private(dataset, 0x0051, "SIEMENS MR HEADER", 0x0B)
    if "i" in str(text or "").lower():  # interpolated: a tile is larger than its matrix
        return None
    rows = int(dataset.Rows)
    columns = int(dataset.Columns)
    matrix = floats(dataset, "AcquisitionMatrix", 4) or (0.0, 0.0, 0.0, 0.0)
    steps = floats(dataset, "NumberOfPhaseEncodingSteps") or (0.0,)
    for total, part in (
        (rows, int(matrix[0])),
        (columns, int(matrix[1])),
        (rows, int(steps[0])),
    ):
        if part < 1 or total % part:
            continue
        side = total // part
        if side > 2 and not (rows % side or columns % side):
            return side
    return None


def _csa(dataset: Dataset) -> tuple[int | None, Floats | None]:
    """Return the number of tiles and the slice normal of the CSA header, each None where absent."""
    # Here and not above: nibabel warns on this import, and the caller has silenced warnings.
    from nibabel.nicom import csareader

    try:
        csa = csareader.get_csa_header(dataset, "image")
        if not csa:
            return None, None
        return csareader.get_n_mosaic(csa), csareader.get_slice_normal(csa)
    except Exception:  # a private block of unknown making: whatever it raises, it is no CSA header
        return None, None


def _direction(dataset: Dataset, normal: Floats | None) -> int:
    """Return whether the tiles follow the normal of the picture (+1) or run against it (-1)."""
    axes = orientation(dataset, 0)
    if axes is None or normal is None:
        return 1
    along = float(np.dot(axes[2], normal))
    return 1 if along >= 0 else -1


# --- United Imaging ------------------------------------------------------------------------------


def _grid(dataset: Dataset) -> Tiles:
    """Return the tiling of a grid, which has no empty row. Raises UnreadableError.

    (0065,1050) is how many slices it has, (0065,1051) a header of each.
    """
    frames = _united(dataset, 0x1051) or []
    count = _as_count(_united(dataset, 0x1050)) or len(frames)
    if count < 1:
        raise UnreadableError("unsupported", "a grid of slices without their number")
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, height_rest = divmod(int(dataset.Rows), rows)
    width, width_rest = divmod(int(dataset.Columns), columns)
    if height_rest or width_rest or count > _MOST_TILES:
        raise UnreadableError(
            "corrupt",
            f"a grid of {count} slices does not divide {dataset.Rows} x {dataset.Columns} pixels",
        )
    corners: list[tuple[float, ...] | None] = [None] * count
    for k, frame in zip(range(count), frames, strict=False):
        if isinstance(frame, Dataset):  # and no bytes, where the sequence's type was lost
            corners[k] = floats(frame, "ImagePositionPatient", 3)
    if count == 1 and corners[0] is None:
        corners[0] = floats(dataset, "ImagePositionPatient", 3)
    return Tiles(count, columns, height, width, corners=tuple(corners))


def _united(dataset: Dataset, element: int) -> Any:
    """Return a private element of United Imaging, whoever reserved its block."""
    try:
        known = dataset.get((0x0065, element))
        return known.value if known else None
    except (KeyError, ValueError, TypeError, NotImplementedError):
        return None
