"""Pages of a TIFF: what each says of itself, and the samples of those that Pillow does not read.

Pillow reads numbers of 8 and 16 bits without sign. It has no pictures of several deeper channels,
wraps 32 bits round, takes signs off, swaps the bytes of compressed big-endian numbers, and refuses
what it has no mode for. libtiff (by imagecodecs) has all of these as they are stored.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import tiff_decode
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from pipeline.io.formats.limits import MAX_FRAMES, check_size, luma
from stores.errors import UnreadableError

_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0")
_BIG = ord("+")
_WIDTH = 256
_HEIGHT = 257
_BITS = 258
_PHOTOMETRIC = 262
_ORIENTATION = 274
_CHANNELS = 277
_EXTRA = 338
_SAMPLE_FORMAT = 339
# Photometric interpretations of grey and of colour.
_WHITE_IS_ZERO = 0
_GREYS = (_WHITE_IS_ZERO, 1)
_RGB = 2
# What a further channel is: of no stated meaning, or opacity that the others are multiplied by.
_UNSTATED = 0
_PREMULTIPLIED = 1
_UNSIGNED = 1

Grey = NDArray[np.float32]  # (H, W)


@dataclass(frozen=True)
class Page:
    """What a page says of itself.

    height, width: as stored. bits: of each channel. orientation: 1 to 8, as in EXIF. extra: what
    the channels behind grey or colour are.
    """

    number: int
    height: int
    width: int
    bits: tuple[int, ...]
    photometric: int | None
    sample_format: int
    extra: tuple[int, ...]
    orientation: int

    @property
    def channels(self) -> int:
        """How many values a pixel has."""
        return len(self.bits)

    @property
    def is_deep(self) -> bool:
        """Whether the page is grey or RGB of which Pillow makes nothing, or something else."""
        if self.photometric not in (*_GREYS, _RGB) or len(set(self.bits)) > 1 or self.bits[0] < 8:
            return False
        if self.sample_format != _UNSIGNED:
            return True
        if self.photometric == _RGB:
            return self.bits[0] > 8
        # Grey without sign: of 8 bits, or of 16 if black is zero.
        return self.bits not in ((8,), (16,)) or (self.bits[0], self.photometric) == (16, 0)


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does, or a BigTIFF of little-endian byte order."""
    with path.open("rb") as file:
        return file.read(4) in _BEGINNINGS


def pages_of(path: Path) -> list[Page]:
    """Return the pages of a TIFF, in order. Raises UnreadableError."""
    pages: list[Page] = []
    seen: set[int] = set()
    with path.open("rb") as file:
        start = file.read(8)
        if start[2] == _BIG:
            start += file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(start)
        place = directory.next
        while place and place not in seen:
            seen.add(place)
            if len(pages) == MAX_FRAMES:
                raise UnreadableError("too-large", f"has more than {MAX_FRAMES} pages")
            file.seek(place)
            directory.load(file)
            pages.append(_page(directory, len(pages), path.stat().st_size))
            place = directory.next
    if not pages:
        raise UnreadableError("corrupt", "a TIFF without pages")
    return pages


def _page(directory: Any, number: int, stored: int) -> Page:
    """Return a page by its tags. Raises UnreadableError.

    stored: the bytes of the file.
    """
    channels = int(directory.get(_CHANNELS, 1))
    bits = tuple(directory.get(_BITS, (1,)))
    if len(bits) == 1:
        bits *= min(channels, 64)
    page = Page(
        number=number,
        height=int(directory.get(_HEIGHT, 0)),
        width=int(directory.get(_WIDTH, 0)),
        bits=bits,
        photometric=directory.get(_PHOTOMETRIC),
        sample_format=int(directory.get(_SAMPLE_FORMAT, (1,))[0]),
        extra=tuple(directory.get(_EXTRA, ())),
        orientation=int(directory.get(_ORIENTATION, 1)),
    )
    check_size(page.height, page.width, 1, 4, stored, coded=True)
    if page.is_deep and page.photometric in _GREYS and page.channels > 2:
        raise UnreadableError("unsupported", f"a grey picture of {page.channels} channels")
    return page


def samples(path: Path, page: Page) -> NDArray[Any]:
    """Return the stored values of a deep page, (H, W, channels). Raises UnreadableError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        values = tiff_decode(data, index=page.number)
    if values.ndim == 2:
        values = values[..., None]
    shape = (page.height, page.width)
    if values.shape[1:] == shape and len(values) == page.channels:  # channel by channel
        values = np.moveaxis(values, 0, -1)
    if values.shape != (*shape, page.channels):
        raise UnreadableError("corrupt", "its channels are not as its header says")
    return np.asarray(values)


def deep_grey(path: Path, page: Page) -> tuple[Grey, NDArray[np.bool_] | None]:
    """Return the grey levels of a deep page, as stored, and where it is transparent, if anywhere.

    Both (H, W). Raises UnreadableError.
    """
    values = samples(path, page)
    kind = values.dtype
    colours = 3 if page.photometric == _RGB else 1
    if colours == 3:
        grey = luma(values)
    elif page.photometric == _WHITE_IS_ZERO and kind.kind in "iu":
        ends = np.iinfo(kind)
        highest = ends.max if page.bits[0] == 8 * kind.itemsize else (1 << page.bits[0]) - 1
        grey = (float(ends.min + highest) - values[..., 0]).astype(np.float32)
    else:
        grey = values[..., 0].astype(np.float32)
    meaning = _first(page.extra)
    if page.channels <= colours or meaning == _UNSTATED:
        return grey, None
    opacity = values[..., colours]
    if meaning == _PREMULTIPLIED and kind.kind == "u":
        grey *= np.float32(np.iinfo(kind).max) / np.maximum(opacity, 1)
    return grey, opacity == 0


def _first(meanings: Sequence[int]) -> int | None:
    return meanings[0] if meanings else None
