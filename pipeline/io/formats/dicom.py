"""DICOM: headers and pixels of one file, in the planes they were acquired.

- Pixels come out as the modality's values (HU for CT): stored values -> modality LUT or rescale, of
  the frame where it has its own -> padding to NaN -> MONOCHROME1 inverted -> colour to luma; then
  rows and columns are laid as the plane is usually shown.
- Each transfer syntax has one decoder, so that values do not depend on what else is installed.
- Frames are read one by one where they lie in the file, which is never in memory as a whole.
- A mosaic (Siemens) or grid (United Imaging) is one frame a tile.
- Objects that are no pictures of the patient (segmentations, dose, presentation states, reports)
  are refused with a reason.
- Values of the file never reach an error, a warning or a log.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options

from pipeline.io.formats import mosaic
from pipeline.io.formats.dicom_geometry import frame_header, orientation
from pipeline.io.formats.dicom_moments import with_moment
from pipeline.io.formats.dicom_rules import (
    DECODERS,
    PixelElement,
    check,
    frame_count,
    meta_of,
    refuse_deflation_bomb,
    syntax_of,
)
from pipeline.io.formats.dicom_scaling import with_scaling
from pipeline.io.formats.dicom_tags import tag_values
from pipeline.io.formats.dicom_values import slice_of
from pipeline.io.formats.inflate import open_inflated, stream_size
from pipeline.io.formats.limits import as_unreadable
from pipeline.io.formats.reorientation import Reorientation
from pipeline.io.types import StoredPixels
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

_PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
# Codecs that return what stands above the stored bits as well.
_LOSSLESS = frozenset(
    {uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.JPEGLSLossless}
)
_UNDEFINED = 0xFFFFFFFF
_JPEG_END = b"\xff\xd9"
# Zeros before the end of a JPEG-LS that may be padding: each is one more try.
_MOST_PADDING = 8
_DELIMITER = b"\xfe\xff\xdd\xe0"  # behind the last item of encapsulated pixels


@dataclass(frozen=True)
class _Picture:
    """A file's header, checked, and its pixels: a stream at their beginning, and what they are.

    options: of the pixels, as pydicom's decoders take them. below: how many bits the header leaves
    below the stored ones. tiles: of a mosaic.
    """

    dataset: Dataset
    pixels: BinaryIO
    options: dict[str, Any]
    below: int
    tiles: mosaic.Tiles | None

    @property
    def frame_count(self) -> int:
        """The number of slices in the file."""
        return self.tiles.count if self.tiles else frame_count(self.dataset)


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return a header for each frame, or each tile of a mosaic. Raises UnreadableError."""
    with _quiet():
        try:
            with open_inflated(path) as file:
                dataset, pixels = _read_until_pixels(file)
                frames = check(dataset, pixels, stream_size(file))
            values = tag_values(dataset, tags)
            tiles = _tiles(dataset, path)
            if tiles is not None:
                headers = mosaic.headers(dataset, tiles)
            else:
                headers = [frame_header(dataset, frame) for frame in range(frames)]
            headers = [with_moment(header, dataset) for header in headers]
            headers = [with_scaling(header, dataset) for header in headers]
            return [replace(header, tags=values) for header in headers] if values else headers
        except Exception as error:
            raise as_unreadable(error, "reading the DICOM header") from error


def stored_pixels(path: Path) -> StoredPixels | None:
    """Return what tells a file by its pixels as stored, None where it has several frames.

    Raises UnreadableError.
    """
    with _quiet():
        try:
            with open_inflated(path) as file:
                dataset, pixels = _read_until_pixels(file)
                check(dataset, pixels, stream_size(file))
                assert pixels is not None
                deflated = syntax_of(dataset) == uid.DeflatedExplicitVRLittleEndian
                if deflated or frame_count(dataset) > 1:
                    return None
                length = pixels.length if pixels.length is not None else -1
                file.seek(pixels.offset)
                stored = file.read(length)
            # By values and not by bytes, of which a value has several that differ.
            size = max(1, int(dataset.BitsAllocated) // 8)
            is_blank = stored[size:] == stored[:-size]
            return StoredPixels(hashlib.sha256(stored).hexdigest(), is_blank)
        except Exception as error:
            raise as_unreadable(error, "reading the pixels") from error


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested frames in order, float32 (H, W). Raises UnreadableError."""
    with ExitStack() as stack:
        try:
            with _quiet():
                picture = _open(path, stack)
        except Exception as error:
            raise as_unreadable(error, "reading the DICOM file") from error
        read = _tile_reader(picture) if picture.tiles else functools.partial(_read_frame, picture)
        for frame in frames:
            # Nothing is yielded to the caller while pydicom's settings are ours.
            with _quiet():
                item = _read_slice(picture, frame, read)
            yield item


def _read_slice(picture: _Picture, frame: int, read: Callable[[int], Slice]) -> Slice | Failure:
    """Return a frame as it is shown, or why it cannot be."""
    if not 0 <= frame < picture.frame_count:
        return Failure(frame, "corrupt", f"the file has no frame {frame}")
    try:
        return _shown(read(frame), picture.dataset)
    except Exception as error:
        known = as_unreadable(error, "decoding the pixels")
        return Failure(frame, known.reason, known.detail)


def _tile_reader(picture: _Picture) -> Callable[[int], Slice]:
    """Return what reads tiles of a mosaic, whose one frame is decoded once."""
    tiles = picture.tiles
    assert tiles is not None

    @functools.cache
    def mosaic_pixels() -> NDArray[np.float32]:
        return _read_frame(picture, 0).pixels

    return lambda frame: Slice(frame, mosaic.tile(mosaic_pixels(), tiles, frame))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from checking, warning of or logging values: they are the patient's."""
    settings = pydicom_config.settings
    log = logging.getLogger("pydicom")
    mode_before = settings.reading_validation_mode
    disabled_before = log.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.reading_validation_mode = pydicom_config.IGNORE
        log.disabled = True
        try:
            yield
        finally:
            settings.reading_validation_mode = mode_before
            log.disabled = disabled_before


# --- the file -------------------------------------------------------------------------------------


def _read_until_pixels(file: BinaryIO) -> tuple[Dataset, PixelElement | None]:
    """Return all that stands before the pixels, and where they begin. Raises UnreadableError."""
    stored = stream_size(file)
    refuse_deflation_bomb(file, stored)
    pixels: list[PixelElement] = []
    overlong = False

    def stop_at(tag: Any, vr: str | None, length: int) -> bool:
        """Note an element whose value is next; return whether to stop before it."""
        nonlocal overlong
        if tag in _PIXELS:
            known = None if length == _UNDEFINED else length
            pixels.append(PixelElement(_PIXELS[tag], vr, file.tell(), known))
        elif length != _UNDEFINED and file.tell() + length > stored:
            overlong = True
        return bool(pixels)

    stop: Callable[..., bool] = stop_at
    dataset = read_partial(file, stop_when=stop, force=True)
    if pixels:
        return dataset, pixels[0]
    # A deflated file is read from memory, where its elements' places say nothing of the file.
    deflated = syntax_of(dataset) == uid.DeflatedExplicitVRLittleEndian
    if (overlong and not deflated) or not len(dataset):
        raise UnreadableError("truncated", "ends before its pixels, within an element")
    return dataset, None


def _open(path: Path, stack: ExitStack) -> _Picture:
    """Return a file's header and the stream of its pixels, once that can be believed.

    stack: closes the file.
    """
    stream = stack.enter_context(open_inflated(path))
    dataset, pixels = _read_until_pixels(stream)
    check(dataset, pixels, stream_size(stream))
    assert pixels is not None
    if syntax_of(dataset) == uid.DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        inflated = pydicom.dcmread(stream, force=True)
        stream = BytesIO(inflated[pixels.keyword].value)
    else:
        stream.seek(pixels.offset)
    options = as_pixel_options(dataset, pixel_keyword=pixels.keyword)
    if pixels.vr is not None:
        options["pixel_vr"] = pixels.vr
    below = _bits_below(dataset)
    if below and "bits_stored" in options:
        # pydicom would take what is below the values for part of them, and cut off their upper end.
        options["bits_stored"] += below
    if pixels.length is None:
        options = _frame_offsets(stream, frame_count(dataset)) | options
    picture = _Picture(dataset, stream, options, below, mosaic.tiles(dataset))
    if picture.tiles is None or not picture.tiles.inferred:
        return picture
    # The one case in which pixels are decoded to know the slices: no header tells any more.
    tiles = mosaic.filled(picture.tiles, _decode(picture, 0))
    return replace(picture, tiles=tiles)


def _tiles(dataset: Dataset, path: Path) -> mosaic.Tiles | None:
    """Return the tiling of a file whose header has passed the checks; None for single slices."""
    tiles = mosaic.tiles(dataset)
    if tiles is None or not tiles.inferred:
        return tiles
    with ExitStack() as stack:
        return _open(path, stack).tiles


def _frame_offsets(stream: BinaryIO, frames: int) -> dict[str, Any]:
    """Return where each of several encapsulated frames lies, in pydicom's terms.

    Nothing where a frame is in pieces: pydicom then looks, for each frame anew. Where each is in
    one piece, that tells more than a table of offsets, which may be wrong. Raises UnreadableError
    where the pixels do not end as they should: decoders make up what is missing, or search for it
    without end.
    """
    begin = stream.tell()
    parse_basic_offsets(stream)
    first = stream.tell()
    _, items = parse_fragments(stream)
    end = first
    if items:
        # An item is its tag and its length, of four bytes each, and its value.
        last = items[-1]
        stream.seek(last + 4)
        length = int.from_bytes(stream.read(4), "little")
        end = last + 8 + length
    stream.seek(end)
    if stream.read(4) != _DELIMITER:
        raise UnreadableError("truncated", "its encapsulated pixels have no end")
    stream.seek(begin)
    if len(items) != frames:
        return {}
    offsets = [item - first for item in items]
    lengths = []
    for item, following in itertools.pairwise([*items, end]):
        lengths.append(following - item - 8)
    return {"extended_offsets": (offsets, lengths)}


# --- pixels ---------------------------------------------------------------------------------------


def _read_frame(picture: _Picture, frame: int) -> Slice:
    """Return one frame's pixels as the modality's values, with the file's own window."""
    return slice_of(picture.dataset, frame, _decode(picture, frame))


def _shown(item: Slice, dataset: Dataset) -> Slice:
    """Return a slice laid as its plane is usually shown (see `Reorientation`)."""
    axes = orientation(dataset, item.frame)
    if axes is None:
        return item
    turn = Reorientation.of(axes)
    return replace(item, pixels=turn.apply(item.pixels))


def _decode(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W), or RGB (H, W, 3)."""
    dataset = picture.dataset
    syntax = _pixel_syntax(dataset)
    begin = picture.pixels.tell()
    try:
        if syntax == uid.JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8:
            return _decode_jpeg_12(picture, frame)
        try:
            array, _ = get_decoder(syntax).as_array(
                picture.pixels,
                index=frame,
                decoding_plugin=DECODERS.get(syntax, ""),
                **picture.options,
            )
        except RuntimeError:
            if syntax not in uid.JPEGLSTransferSyntaxes:
                raise
            picture.pixels.seek(begin)
            array = _decode_jpeg_ls(picture, frame)
        stored = _without_bits_below(np.asarray(array), dataset, picture.below)
        return _without_unused_bits(stored, dataset, syntax)
    finally:
        picture.pixels.seek(begin)  # where each frame is counted from


def _bits_below(dataset: Dataset) -> int:
    """Return how many bits a header leaves below the stored ones: HighBit need not be the least.

    PS3.5 of before 2014; 0 where a codec says how many bits there are.
    """
    syntax = _pixel_syntax(dataset)
    high = dataset.get("HighBit")
    bits = dataset.get("BitsStored")
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        return 0
    if not isinstance(high, int) or not isinstance(bits, int):
        return 0
    return high + 1 - bits if bits <= high < int(dataset.BitsAllocated) else 0


def _without_bits_below(stored: NDArray[Any], dataset: Dataset, below: int) -> NDArray[Any]:
    """Return stored values whose lowest bit is the first, whatever HighBit says.

    Many a writer says it wrongly, and has its values in the low bits all the same: the others leave
    what is below them empty.
    """
    if not below or stored.dtype.kind not in "iu":
        return stored
    if not (stored & ((1 << below) - 1)).any():
        return stored >> below
    unused = 8 * stored.dtype.itemsize - int(dataset.BitsStored)
    return (stored << unused) >> unused


def _without_unused_bits(stored: NDArray[Any], dataset: Dataset, syntax: uid.UID) -> NDArray[Any]:
    """Return stored values without what stands above their bits, which is no part of them.

    PS3.5 8.1.1: an overlay, mostly. pydicom does this for other codecs, and where there is none. A
    lossy codec goes beyond the highest value by a little, which must not become the lowest: there,
    only what the file declares as an overlay is taken off.
    """
    is_lossy = syntax in uid.JPEG2000TransferSyntaxes and syntax not in _LOSSLESS
    if syntax not in _LOSSLESS and not (is_lossy and _has_overlay_bits(dataset)):
        return stored
    unused = 8 * stored.dtype.itemsize - int(dataset.get("BitsStored") or 0)
    if unused <= 0 or stored.dtype.kind not in "iu":
        return stored
    return (stored << unused) >> unused


def _has_overlay_bits(dataset: Dataset) -> bool:
    """Return whether a file declares overlays among the bits of its pixels (PS3.3 C.9.2)."""
    for group in range(0x6000, 0x6020, 2):
        element = dataset.get((group, 0x0102))  # OverlayBitPosition
        position = element.value if element else None
        if isinstance(position, int) and position >= int(dataset.get("BitsStored") or 0) > 0:
            return True
    return False


def _pixel_syntax(dataset: Dataset) -> uid.UID:
    """Return the transfer syntax that pixels are decoded by; if unsaid, by their byte order."""
    syntax = meta_of(dataset).get("TransferSyntaxUID")
    if syntax is not None:
        return uid.UID(syntax)
    little = dataset.original_encoding[1] is not False
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _stream_of(picture: _Picture, frame: int) -> bytes:
    """Return a frame as its codec wrote it."""
    return get_frame(
        picture.pixels,
        frame,
        number_of_frames=frame_count(picture.dataset),
        extended_offsets=picture.options.get("extended_offsets"),
    )


def _decode_jpeg_12(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W) of a lossy JPEG of 12 bits, which `gdcm` cannot decode."""
    from imagecodecs import jpeg8_decode  # which few streams need, as below

    dataset = picture.dataset
    stream = _stream_of(picture, frame)
    if not stream.rstrip(b"\0\xff").endswith(_JPEG_END):  # the decoder would make up the rest
        raise UnreadableError("truncated", "a JPEG stream without its end")
    rows = int(dataset.Rows)
    columns = int(dataset.Columns)
    stored = np.empty((rows, columns), np.uint16)
    jpeg8_decode(stream, out=stored)  # refuses a picture of another size before it decodes it
    return stored.view(np.int16) if int(dataset.get("PixelRepresentation", 0)) else stored


def _decode_jpeg_ls(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W) of a JPEG-LS that `pyjpegls` refuses.

    Such as one with a padding byte before its end. The values are the same: a stream has one
    meaning, lossy or not (ISO 14495-1).
    """
    dataset = picture.dataset
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableError("corrupt", "decoding the pixels: a JPEG-LS stream of colours")
    shape = (int(dataset.Rows), int(dataset.Columns))
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    stored = np.empty(shape, np.uint8 if bits <= 8 else np.uint16)
    _unpad_jpeg_ls(_stream_of(picture, frame), stored)
    if not int(dataset.get("PixelRepresentation", 0)):
        return stored
    # Nothing in the stream tells negative values from large ones.
    signed: NDArray[Any] = stored.view(np.int8 if bits <= 8 else np.int16)
    unused = 8 * signed.dtype.itemsize - bits
    return np.asarray((signed << unused) >> unused)


def _unpad_jpeg_ls(stream: bytes, stored: NDArray[Any]) -> None:
    """Decode a JPEG-LS into an array of its size and type, with zeros before its end or without.

    The last of the pixels may be zeros too, and less than all of them would decode to other values
    without a word; a decoder refuses what is left over. So the first that it takes is right.
    """
    from imagecodecs import JpeglsError, jpegls_decode

    coded = stream.rstrip(b"\0")
    if not coded.endswith(_JPEG_END):
        raise UnreadableError("truncated", "a JPEG-LS stream without its end")
    coded = coded.removesuffix(_JPEG_END)
    pixels = coded.rstrip(b"\0")
    zeros = min(len(coded) - len(pixels), _MOST_PADDING)
    for count in range(zeros, -1, -1):
        try:
            jpegls_decode(pixels + count * b"\0" + _JPEG_END, out=stored)
        except JpeglsError:
            continue
        return
    raise UnreadableError("corrupt", "decoding the pixels: a damaged JPEG-LS stream")
