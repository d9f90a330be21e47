"""Siemens mosaics: one picture that tiles the slices of a volume. Private to `_dicom`.

The number of tiles stands in a private header, as a plain element or in the CSA block (read with
nibabel). Without it the tiles cannot be told from the empty rest, and the file is set aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_geometry import (
    floats,
    frame_header,
    image_type,
    orientation,
    pixel_spacing,
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
    counted, normal = _csa(dataset)
    count = _private(dataset) or counted
    if not count or count < 1:
        raise UnreadableError("unsupported", "a Siemens mosaic without its number of tiles")
    side = math.ceil(math.sqrt(count))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows % side or columns % side or count > 4096:
        raise UnreadableError(
            "corrupt", f"a mosaic of {count} tiles does not divide {rows} x {columns} pixels"
        )
    return Tiles(int(count), side, rows // side, columns // side, _direction(dataset, normal))


def headers(dataset: Dataset, tiling: Tiles) -> list[Header]:
    """Return one header a tile; the file's corner is that of the whole mosaic, not of a tile."""
    shape = tiling.height, tiling.width
    step = floats(dataset, "SpacingBetweenSlices") or floats(dataset, "SliceThickness")
    axes, spacing = orientation(dataset, 0), pixel_spacing(dataset, 0)
    start = floats(dataset, "ImagePositionPatient", 3)
    found = []
    for k in range(tiling.count):
        corner = None
        if axes is not None and spacing and step and start:
            # The scanner centres the whole mosaic where the tile should be centred.
            down = axes[1] * (tiling.side - 1) * tiling.height * spacing[0] / 2
            along = axes[0] * (tiling.side - 1) * tiling.width * spacing[1] / 2
            corner = np.array(start) + down + along + tiling.direction * k * step[0] * axes[2]
        header = frame_header(dataset, k, shape, corner)
        found.append(replace(header, flags=(*header.flags, "mosaic")))
    return found


def tile(picture: NDArray[np.float32], tiling: Tiles, k: int) -> NDArray[np.float32]:
    """Return tile k (height, width) of a mosaic."""
    row, column = divmod(k, tiling.side)
    height, width = tiling.height, tiling.width
    return np.ascontiguousarray(
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
    )


def _private(dataset: Dataset) -> int | None:
    """Return the number of tiles where it stands as a plain private element."""
    try:
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER")
        return int(block[0x0A].value)
    except (KeyError, ValueError, TypeError):
        return None


def _csa(dataset: Dataset) -> tuple[int | None, NDArray[np.float64] | None]:
    """Return the number of tiles and the slice normal of the CSA header, each None where absent."""
    # Here and not above: nibabel warns on this import, and the caller has silenced warnings.
    from nibabel.nicom import csareader

    try:
        csa = csareader.get_csa_header(dataset, "image")
        return (
            (csareader.get_n_mosaic(csa), csareader.get_slice_normal(csa)) if csa else (None, None)
        )
    except Exception:  # a private block of unknown making: whatever it raises, it is no CSA header
        return None, None


def _direction(dataset: Dataset, normal: NDArray[np.float64] | None) -> int:
    """Return whether the tiles follow the normal of the picture (+1) or run against it (-1)."""
    axes = orientation(dataset, 0)
    if axes is None or normal is None:
        return 1
    return 1 if float(np.dot(axes[2], normal)) >= 0 else -1
