"""PNG, JPEG, TIFF, BMP and WebP.

Pixels are the grey levels of the file, 1 to 16 bit or float; palettes and colour become luma
(ITU-R BT.601); fully transparent pixels are padding; the EXIF rotation is applied; the pages of a
TIFF are frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
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
        # Pillow inverts where white is zero up to 8 bits only.
        inverted = image.mode.startswith("I;16") and _photometric(image) == _WHITE_IS_ZERO
        grey = _grey(ImageOps.exif_transpose(image))
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


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """Return grey levels, float32 (H, W), NaN where the picture is fully transparent."""
    alpha: NDArray[np.uint8] | None = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        # Grey stays as it is: as the luma of three equal channels it would be rounded.
        image = image.convert("L") if image.mode == "LA" else rgba.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = luma(pixels)
    grey = np.array(pixels, dtype=np.float32)
    if alpha is not None and alpha.any():
        grey[alpha == 0] = np.nan
    return grey
