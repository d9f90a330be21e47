"""Siemens mosaics: one picture that tiles the slices of a volume.

The number of tiles stands in a private header, as a plain element or in the CSA block (read with
nibabel). Without it the tiles cannot be told from the empty rest, and the file is set aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_geometry import (
    Floats,
    Pixels,
    floats,
    frame_header,
    image_type,
    orientation,
    pixel_spacing,
    positive,
)
from pipeline.types import Header
from stores.errors import UnreadableError


@dataclass(frozen=True)
class Tiles:
    """How many tiles, each (height, width), stand on a grid of `side` by `side`, row after row."""

    count: int
    side: int
    height: int
    width: int
    # +1 where the tiles follow each other along the normal of the picture, -1 against it.
    direction: int


def tiles(dataset: Dataset) -> Tiles | None:
    """Return the tiling of a mosaic, None for any other file. Raises UnreadableError."""
    if "MOSAIC" not in image_type(dataset, 0):
        return None
    csa_count, normal = _csa(dataset)
    count = _private_count(dataset) or csa_count
    if not count or count < 1:
        raise UnreadableError("unsupported", "a Siemens mosaic without its number of tiles")
    side = math.ceil(math.sqrt(count))
    rows = int(dataset.Rows)
    columns = int(dataset.Columns)
    if rows % side or columns % side or count > 4096:
        raise UnreadableError(
            "corrupt", f"a mosaic of {count} tiles does not divide {rows} x {columns} pixels"
        )
    direction = _direction(dataset, normal)
    return Tiles(int(count), side, rows // side, columns // side, direction)


def headers(dataset: Dataset, tiling: Tiles) -> list[Header]:
    """Return one header a tile; the file's corner is that of the whole mosaic, not of a tile."""
    shape = (tiling.height, tiling.width)
    tile_headers = []
    for k in range(tiling.count):
        header = frame_header(dataset, k, shape, _corner(dataset, tiling, k))
        tile_headers.append(replace(header, flags=(*header.flags, "mosaic")))
    return tile_headers


def _corner(dataset: Dataset, tiling: Tiles, k: int) -> Floats | None:
    """Return where tile k's first pixel lies (x, y, z; mm), None where the file does not tell."""
    axes = orientation(dataset, 0)
    spacing = pixel_spacing(dataset, 0)
    step = positive(dataset, "SpacingBetweenSlices") or positive(dataset, "SliceThickness")
    start = floats(dataset, "ImagePositionPatient", 3)
    if axes is None or spacing is None:
        return None
    if step is None or start is None:
        return None
    # The scanner centres the whole mosaic where the tile should be centred.
    beyond = tiling.side - 1  # tiles, half of them on either side
    down = axes[1] * beyond * tiling.height * spacing[0] / 2
    along = axes[0] * beyond * tiling.width * spacing[1] / 2
    corner: Floats = np.array(start) + down + along
    corner += tiling.direction * k * step[0] * axes[2]
    return corner


def tile(picture: Pixels, tiling: Tiles, k: int) -> Pixels:
    """Return tile k (height, width) of a mosaic."""
    row, column = divmod(k, tiling.side)
    top = row * tiling.height
    bottom = top + tiling.height
    left = column * tiling.width
    right = left + tiling.width
    return np.ascontiguousarray(picture[top:bottom, left:right])


def _private_count(dataset: Dataset) -> int | None:
    """Return the number of tiles where it stands as a plain private element."""
    try:
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER")
        return int(block[0x0A].value)
    except (KeyError, ValueError, TypeError):
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
