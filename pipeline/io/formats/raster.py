"""PNG, JPEG, TIFF, BMP and WebP.

Pixels are the grey levels of the file, 1 to 16 bit or float; palettes and colour become luma
(ITU-R BT.601); fully transparent pixels are padding; the EXIF rotation is applied; the pages of a
TIFF are frames.

Pillow has no colours of 16 bits, and would cut them to 8: those are decoded with imagecodecs, and
so are deep pages of a TIFF (`tiff.Page.is_deep`).
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import png_decode
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.io.formats.limits import as_unreadable, check_size, luma
from pipeline.io.formats.tiff import Page, deep_grey, is_tiff, pages_of
from pipeline.io.formats.tiff import samples as deep_samples
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_LOSSLESS = ("PNG", "TIFF", "BMP")
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})
# Where a PNG has its bits a channel and its kind of colour.
_PNG_DEPTH = 24
_PNG_COLOURS = frozenset({2, 4, 6})  # RGB, grey with opacity, RGB with opacity

Grey = NDArray[np.float32]  # (H, W)


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return one header a page. Raises UnreadableError."""
    with _pillow():
        pages = _tiff_pages(path)
        if pages is not None:
            _check_shallow(path, pages)
            return [
                _header(page.number, page.height, page.width, page.orientation) for page in pages
            ]
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            check_size(height, width, 1, 4, path.stat().st_size, coded=True)
            return [_header(0, height, width, _exif_orientation(image))]


def _header(frame: int, height: int, width: int, orientation: int | None) -> Header:
    """Return the header of a page that is stored with so many rows and columns."""
    if orientation in _SIDEWAYS:
        height, width = width, height
    return Header(frame, None, height, width, volume=f"{height}x{width}")


def _tiff_pages(path: Path) -> list[Page] | None:
    """Return the pages of a TIFF, None for other pictures (an animated one is its first)."""
    return pages_of(path) if is_tiff(path) else None


def _check_shallow(path: Path, pages: list[Page]) -> None:
    """Raise what Pillow has to say of pages that it will read."""
    shallow = [page for page in pages if not page.is_deep]
    if not shallow:
        return
    with Image.open(path, formats=_FORMATS) as image:
        for page in shallow:
            image.seek(page.number)


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested pages in order, float32 (H, W). Raises UnreadableError."""
    with ExitStack() as stack:
        with _pillow():
            pages = _tiff_pages(path)
            image = _opened(path, pages, stack)
        for frame in frames:
            with _pillow():
                item = _read_page(image, path, frame, pages)
            yield item


def _opened(
    path: Path, pages: list[Page] | None, stack: ExitStack, formats: tuple[str, ...] = _FORMATS
) -> Image.Image | None:
    """Return a file opened by Pillow, None where it need not read a page of it.

    stack: closes the file.
    """
    if pages is not None and all(page.is_deep for page in pages):
        return None
    # By its stream: Pillow does not turn a TIFF that it has mapped into memory by its name.
    stream = stack.enter_context(path.open("rb"))
    return stack.enter_context(Image.open(stream, formats=formats))


def _read_page(
    image: Image.Image | None, path: Path, frame: int, pages: list[Page] | None
) -> Slice | Failure:
    """Return a page as grey levels, or why there are none.

    image: what Pillow has opened, None where it has nothing to read.
    """
    if not 0 <= frame < (1 if pages is None else len(pages)):
        return Failure(frame, "corrupt", f"the file has no frame {frame}")
    try:
        if pages is not None and pages[frame].is_deep:
            grey, transparent = deep_grey(path, pages[frame])
            if transparent is not None:
                grey = _without(grey, transparent)
            return Slice(frame, _upright(grey, pages[frame].orientation))
        assert image is not None
        width, height = image.size
        check_size(height, width, 1, 4, path.stat().st_size, coded=True)
        if _is_deep_png(image, path):
            return Slice(frame, _upright(_deep_png_grey(image, path), _exif_orientation(image)))
        picture = _upright_page(image, frame)
        return Slice(frame, _grey(picture, _transparent_level(image, path)))
    except Exception as error:
        known = as_unreadable(error, "decoding the picture")
        return Failure(frame, known.reason, known.detail)


def _upright_page(image: Image.Image, frame: int) -> Image.Image:
    """Return a page of what Pillow has opened, turned as it is to be shown."""
    image.seek(frame)
    image.load()  # which turns those of a TIFF
    return image if image.format == "TIFF" else ImageOps.exif_transpose(image)


def stored_pages(path: Path) -> list[NDArray[Any]]:
    """Return the stored values of each page, (H, W) or (H, W, channels), turned as it is shown.

    Of palettes their indices, not their colours. JPEG and WebP are none of what is stored. Raises
    UnreadableError.
    """
    with _pillow(), ExitStack() as stack:
        pages = _tiff_pages(path)
        image = _opened(path, pages, stack, _LOSSLESS)
        count = 1 if pages is None else len(pages)
        return [_stored_page(image, path, frame, pages) for frame in range(count)]


def _stored_page(
    image: Image.Image | None, path: Path, frame: int, pages: list[Page] | None
) -> NDArray[Any]:
    if pages is not None and pages[frame].is_deep:
        return _upright(deep_samples(path, pages[frame]), pages[frame].orientation)
    assert image is not None
    if _is_deep_png(image, path):
        return _upright(_deep_png_samples(image, path), _exif_orientation(image))
    return np.asarray(_upright_page(image, frame))


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
    if image.mode == "1":
        return int(level)
    depth, _ = _png_depth(path)
    highest = (1 << depth) - 1
    stored = int(level) & highest  # PNG 11.3.2.1: of its two bytes only so many bits count
    if image.mode == "L" and depth < 8:  # Pillow spreads the levels over 8 bits, and not this one
        return stored * 255 // highest
    return stored


# --- channels of 16 bits --------------------------------------------------------------------------


def _png_depth(path: Path) -> tuple[int, int]:
    """Return the bits a channel of a PNG, and its kind of colour."""
    with path.open("rb") as file:
        start = file.read(_PNG_DEPTH + 2)
    return start[_PNG_DEPTH], start[_PNG_DEPTH + 1]


def _is_deep_png(image: Image.Image, path: Path) -> bool:
    """Return whether a picture is a PNG with several channels of 16 bits."""
    if image.format != "PNG":
        return False
    depth, kind = _png_depth(path)
    return depth == 16 and kind in _PNG_COLOURS


def _deep_png_grey(image: Image.Image, path: Path) -> Grey:
    """Return the grey levels of such a PNG, as stored, NaN where it is fully transparent."""
    samples = _deep_png_samples(image, path)
    channels = samples.shape[2]
    grey = samples[..., 0].astype(np.float32) if channels < 3 else luma(samples)
    if channels in (2, 4):
        return _without(grey, samples[..., -1] == 0)
    level = image.info.get("transparency")
    if isinstance(level, tuple):
        return _without(grey, (samples == np.array(level)).all(axis=2))
    return grey


def _deep_png_samples(image: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Return the stored values of such a PNG, (H, W, channels)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        samples = png_decode(data)
    width, height = image.size
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[:2] != (height, width):
        raise UnreadableError("corrupt", "its channels are not as its header says")
    return np.asarray(samples)


def _exif_orientation(image: Image.Image) -> int | None:
    """Return how a picture is turned, None where it does not say."""
    return image.getexif().get(_EXIF_ORIENTATION)


def _upright(values: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """Return values (H, W, ...) turned as a picture's EXIF says (CIPA DC-008, tag 0x0112)."""
    if orientation in _SIDEWAYS:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
