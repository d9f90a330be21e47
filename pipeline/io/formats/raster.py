"""PNG, JPEG, TIFF, BMP and WebP.

Pixels are the grey levels of the file, 1 to 16 bit or float; palettes and colour become luma
(ITU-R BT.601); fully transparent pixels are padding; the EXIF rotation is applied; the pages of a
TIFF are frames.

Pillow has no colours of 16 bits, and would cut them to 8: those are decoded with imagecodecs.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import png_decode, tiff_decode
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.io.formats.limits import as_unreadable, check_size, luma
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})
_TIFF_PHOTOMETRIC = 0x0106
_WHITE_IS_ZERO = 0
_RGB = 2
_TIFF_BITS = 0x0102
_TIFF_EXTRA = 0x0152
# What a TIFF's further channel is: of no stated meaning, or opacity its colours are multiplied by.
_UNSTATED = 0
_PREMULTIPLIED = 1
# Where a PNG has its bits a channel and its kind of colour.
_PNG_DEPTH = 24
_PNG_COLOURS = frozenset({2, 4, 6})  # RGB, grey with opacity, RGB with opacity

Grey = NDArray[np.float32]  # (H, W)


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return one header a page. Raises UnreadableError."""
    headers = []
    with _pillow(), Image.open(path, formats=_FORMATS) as image:
        for frame in range(_pages(image, path)):
            image.seek(frame)
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION)
            if orientation in _SIDEWAYS:
                height, width = image.size
            check_size(height, width, 1, 4, path.stat().st_size, coded=True)
            headers.append(Header(frame, None, height, width, volume=f"{height}x{width}"))
    return headers


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested pages in order, float32 (H, W). Raises UnreadableError."""
    with ExitStack() as stack:
        with _pillow():
            image = stack.enter_context(Image.open(path, formats=_FORMATS))
            pages = _pages(image, path)
        for frame in frames:
            with _pillow():
                item = _read_page(image, path, frame, pages)
            yield item


def _read_page(image: Image.Image, path: Path, frame: int, pages: int) -> Slice | Failure:
    """Return a page as grey levels, or why there are none."""
    if not 0 <= frame < pages:
        return Failure(frame, "corrupt", f"the file has no frame {frame}")
    try:
        image.seek(frame)
        width, height = image.size
        check_size(height, width, 1, 4, path.stat().st_size, coded=True)
        if _has_deep_channels(image, path):
            return Slice(frame, _upright(_deep_grey(image, path, frame), image))
        # Pillow inverts where white is zero up to 8 bits only.
        inverted = image.mode.startswith("I;16") and _photometric(image) == _WHITE_IS_ZERO
        grey = _grey(ImageOps.exif_transpose(image), _transparent_level(image, path))
        return Slice(frame, 65535 - grey if inverted else grey)
    except Exception as error:
        known = as_unreadable(error, "decoding the picture")
        return Failure(frame, known.reason, known.detail)


@contextmanager
def _pillow() -> Iterator[None]:
    """Have Pillow's size warning as an error, its other warnings silent, its errors as ours.

    The filters are the process's own: nothing is yielded to a caller meanwhile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UnreadableError("too-large", "declares more pixels than the limit") from None
        except Exception as error:
            raise as_unreadable(error, "opening the picture") from error


def _pages(image: Image.Image, path: Path) -> int:
    """Return the number of pages; only a TIFF has several (an animated PNG is one picture)."""
    if image.format != "TIFF":
        return 1
    pages = int(getattr(image, "n_frames", 1))
    check_size(1, 1, pages, 1, path.stat().st_size, coded=False)
    return pages


def _photometric(image: Image.Image) -> int | None:
    """Return what a TIFF says of its grey levels, None for others and where it says nothing."""
    tags = getattr(image, "tag_v2", None)
    return tags.get(_TIFF_PHOTOMETRIC) if tags else None


def _grey(image: Image.Image, transparent: int | None) -> Grey:
    """Return grey levels, NaN where the picture is fully transparent.

    transparent: the grey level that is.
    """
    alpha: NDArray[np.uint8] | None = None
    if transparent is not None:
        # Grey stays as it is: as the luma of three equal channels it would be rounded.
        image = image.convert("L") if image.mode == "1" else image
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        image = image.convert("L") if image.mode == "LA" else rgba.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = luma(pixels)
    grey = np.array(pixels, dtype=np.float32)
    if transparent is not None:
        return _without(grey, pixels == transparent)
    return grey if alpha is None else _without(grey, alpha == 0)


def _without(grey: Grey, transparent: NDArray[np.bool_]) -> Grey:
    """Return grey levels, NaN where a picture is transparent, if it is not so as a whole."""
    if not transparent.all():
        grey[transparent] = np.nan
    return grey


def _transparent_level(image: Image.Image, path: Path) -> int | None:
    """Return the grey level that a grey PNG has for transparent, None where it has none."""
    level: Any = image.info.get("transparency")
    if image.mode not in ("1", "L", "I;16") or not isinstance(level, int):
        return None
    depth, _ = _png_depth(path)
    if image.mode == "L" and depth < 8:  # Pillow spreads the levels over 8 bits, and not this one
        return int(level) * 255 // ((1 << depth) - 1)
    return int(level)


# --- channels of 16 bits --------------------------------------------------------------------------


def _png_depth(path: Path) -> tuple[int, int]:
    """Return the bits a channel of a PNG, and its kind of colour."""
    with path.open("rb") as file:
        start = file.read(_PNG_DEPTH + 2)
    return start[_PNG_DEPTH], start[_PNG_DEPTH + 1]


def _has_deep_channels(image: Image.Image, path: Path) -> bool:
    """Return whether a page has several channels of 16 bits."""
    if image.format == "PNG":
        depth, kind = _png_depth(path)
        return depth == 16 and kind in _PNG_COLOURS
    if image.format != "TIFF":
        return False
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS) or ()
    return len(bits) >= 3 and set(bits) == {16} and _photometric(image) == _RGB


def _deep_grey(image: Image.Image, path: Path, page: int) -> Grey:
    """Return the grey levels of such a page, as stored, NaN where it is fully transparent."""
    samples = _deep_samples(image, path, page)
    channels = samples.shape[2]
    extra = getattr(image, "tag_v2", {}).get(_TIFF_EXTRA) or (None,)
    grey = samples[..., 0].astype(np.float32) if channels < 3 else luma(samples)
    if channels in (2, 4) and extra[0] != _UNSTATED:
        opacity = samples[..., -1]
        if extra[0] == _PREMULTIPLIED:
            grey *= np.float32(65535) / np.maximum(opacity, 1)
        return _without(grey, opacity == 0)
    level = image.info.get("transparency")
    if isinstance(level, tuple):
        return _without(grey, (samples == np.array(level)).all(axis=2))
    return grey


def _deep_samples(image: Image.Image, path: Path, page: int) -> NDArray[np.uint16]:
    """Return a page of several channels of 16 bits, (H, W, channels)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        is_png = image.format == "PNG"
        samples = png_decode(data) if is_png else tiff_decode(data, index=page)
    width, height = image.size
    if samples.ndim == 3 and samples.shape[1:] == (height, width):  # channel by channel
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[:2] != (height, width):
        raise UnreadableError("corrupt", "its channels are not as its header says")
    return np.asarray(samples)


def _upright(grey: Grey, image: Image.Image) -> Grey:
    """Return grey levels turned as a picture's EXIF says (CIPA DC-008, tag 0x0112)."""
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    if orientation in _SIDEWAYS:
        grey = grey.T
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    if orientation in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    return np.ascontiguousarray(grey)
