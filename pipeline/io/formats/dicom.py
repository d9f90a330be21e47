"""DICOM: headers and pixels of one file. Private to `read`.

- Pixels come out as the modality's values (HU for CT): stored values -> modality LUT or rescale, of
  the frame where it has its own -> padding to NaN -> MONOCHROME1 inverted -> colour to luma; then
  rows and columns are laid as the plane is usually shown.
- Each transfer syntax has one decoder, so that values do not depend on what else is installed.
- Frames are read one by one where they lie in the file, which is never in memory as a whole.
- A Siemens mosaic is one frame a tile. Objects that are no pictures of the patient (segmentations,
  dose, presentation states, reports) are refused with a reason.
- Values of the file never reach an error, a warning or a log.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import as_pixel_options

from pipeline.io.formats import mosaic
from pipeline.io.formats.dicom_geometry import (
    Reorientation,
    floats,
    frame_header,
    macro,
    orientation,
)
from pipeline.io.formats.dicom_tags import tag_values
from pipeline.io.formats.limits import (
    DEFLATE_RATIO,
    MAX_FILE_BYTES,
    as_unreadable,
    check_size,
    luma,
)
from pipeline.types import Failure, Header, Slice, Voi
from stores.errors import UnreadableError

_PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_UNDEFINED = 0xFFFFFFFF
_DELIMITER = b"\xfe\xff\xdd\xe0"  # behind the last item of encapsulated pixels
# All with permissive licences; pylibjpeg-libjpeg (GPL) is never used.
DECODERS = {
    uid.JPEGBaseline8Bit: "gdcm",
    uid.JPEGExtended12Bit: "gdcm",  # of 8 bits; imagecodecs where there are more
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
# Modalities whose objects describe a picture, or are computed on one, but are none.
_NO_PICTURE = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose grid",
    "PR": "a presentation state",
    "SR": "a structured report",
    "KO": "a selection of key objects",
    "RTSTRUCT": "contours",
    "RTPLAN": "a treatment plan",
    "REG": "a registration",
    "ECG": "a waveform",
    "HD": "a waveform",
    "DOC": "a document",
}


@dataclass(frozen=True)
class _PixelElement:
    """A file's pixel data element: its keyword, its VR (None: implicit), where its value begins.

    length: how long it says it is; None: encapsulated.
    """

    keyword: str
    vr: str | None
    offset: int
    length: int | None


@dataclass(frozen=True)
class _Picture:
    """A file's header, checked, and its pixels: a stream at their beginning, and what they are.

    options: of the pixels, as pydicom's decoders take them. tiles: of a mosaic.
    """

    dataset: Dataset
    pixels: BinaryIO
    options: dict[str, Any]
    tiles: mosaic.Tiles | None

    @property
    def frame_count(self) -> int:
        """The number of slices in the file."""
        return self.tiles.count if self.tiles else _frame_count(self.dataset)


def read_headers(path: Path, tags: Sequence[str] = ()) -> list[Header]:
    """Return a header for each frame, or each tile of a mosaic. Raises UnreadableError."""
    with _quiet():
        try:
            dataset, pixels = _read_until_pixels(path)
            frames = _check(dataset, pixels, path)
            values = tag_values(dataset, tags)
            tiles = mosaic.tiles(dataset)
            if tiles is not None:
                headers = mosaic.headers(dataset, tiles)
            else:
                headers = [frame_header(dataset, frame) for frame in range(frames)]
            return [replace(header, tags=values) for header in headers] if values else headers
        except Exception as error:
            raise as_unreadable(error, "reading the DICOM header") from error


def read_slices(path: Path, frames: Sequence[int]) -> Iterator[Slice | Failure]:
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


def _read_until_pixels(path: Path) -> tuple[Dataset, _PixelElement | None]:
    """Return all that stands before the pixels, and where they begin. Raises UnreadableError."""
    _check_deflated(path)
    stored = path.stat().st_size
    pixels: list[_PixelElement] = []
    overlong = False

    def stop_at(tag: Any, vr: str | None, length: int) -> bool:
        """Note an element whose value is next; return whether to stop before it."""
        nonlocal overlong
        if tag in _PIXELS:
            known = None if length == _UNDEFINED else length
            pixels.append(_PixelElement(_PIXELS[tag], vr, file.tell(), known))
        elif length != _UNDEFINED and file.tell() + length > stored:
            overlong = True
        return bool(pixels)

    with path.open("rb") as file:
        stop: Callable[..., bool] = stop_at
        dataset = read_partial(file, stop_when=stop, force=True)
        if pixels:
            return dataset, pixels[0]
    # A deflated file is read from memory, where its elements' places say nothing of the file.
    deflated = _syntax(dataset) == uid.DeflatedExplicitVRLittleEndian
    if (overlong and not deflated) or not len(dataset):
        raise UnreadableError("truncated", "ends before its pixels, within an element")
    return dataset, None


def _open(path: Path, stack: ExitStack) -> _Picture:
    """Return a file's header and the stream of its pixels, once that can be believed.

    stack: closes the file.
    """
    dataset, pixels = _read_until_pixels(path)
    _check(dataset, pixels, path)
    assert pixels is not None
    stream: BinaryIO = stack.enter_context(path.open("rb"))
    if _syntax(dataset) == uid.DeflatedExplicitVRLittleEndian:
        inflated = pydicom.dcmread(stream, force=True)
        stream = BytesIO(inflated[pixels.keyword].value)
    else:
        stream.seek(pixels.offset)
    options = as_pixel_options(dataset, pixel_keyword=pixels.keyword)
    if pixels.vr is not None:
        options["pixel_vr"] = pixels.vr
    if pixels.length is None:
        options = _frame_offsets(stream, _frame_count(dataset)) | options
    return _Picture(dataset, stream, options, mosaic.tiles(dataset))


def _frame_offsets(stream: BinaryIO, frames: int) -> dict[str, Any]:
    """Return where each of several encapsulated frames lies, in pydicom's terms.

    Nothing where the file says so itself or a frame is in pieces: pydicom then looks, for each
    frame anew. Raises UnreadableError where the pixels do not end as they should: decoders make up
    what is missing, or search for it without end.
    """
    begin = stream.tell()
    basic_offsets = parse_basic_offsets(stream)
    first = stream.tell()
    _, items = parse_fragments(stream)
    end = first
    if items:
        # An item is its tag and its length, of four bytes each, and its value.
        stream.seek(items[-1] + 4)
        end = items[-1] + 8 + int.from_bytes(stream.read(4), "little")
    stream.seek(end)
    if stream.read(4) != _DELIMITER:
        raise UnreadableError("truncated", "its encapsulated pixels have no end")
    stream.seek(begin)
    if basic_offsets or len(items) != frames:
        return {}
    offsets = [item - first for item in items]
    lengths = [after - item - 8 for item, after in itertools.pairwise([*items, end])]
    return {"extended_offsets": (offsets, lengths)}


def _meta(dataset: Dataset) -> Dataset:
    """Return a file's meta information, empty where it has none."""
    meta: Dataset = getattr(dataset, "file_meta", Dataset())
    return meta


def _syntax(dataset: Dataset) -> uid.UID:
    """Return a file's transfer syntax; a file that does not say is implicit little endian."""
    return uid.UID(_meta(dataset).get("TransferSyntaxUID", uid.ImplicitVRLittleEndian))


def _frame_count(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


# --- what can be a picture ------------------------------------------------------------------------


def _check_deflated(path: Path) -> None:
    """Refuse a deflated file that could blow up: pydicom inflates it whole, without a limit."""
    if path.stat().st_size * DEFLATE_RATIO <= MAX_FILE_BYTES:
        return
    with path.open("rb") as file:
        if uid.DeflatedExplicitVRLittleEndian.encode() in file.read(1024):
            raise UnreadableError("too-large", "a deflated file of this size may inflate too far")


class _Claims:
    """What a header claims of its pixels, against the file's true size `stored` (bytes)."""

    def __init__(self, dataset: Dataset, pixels: _PixelElement | None, stored: int) -> None:
        self.dataset = dataset
        self.pixels = pixels
        self.stored = stored
        self.syntax = _syntax(dataset)

    @property
    def element(self) -> _PixelElement:
        """The pixel data element, for rules behind the one that there must be one."""
        assert self.pixels is not None
        return self.pixels

    @property
    def coded(self) -> bool:
        """Whether the file's bytes are fewer than those of the pixels they decode to."""
        return self.element.length is None or self.syntax == uid.DeflatedExplicitVRLittleEndian

    def decoded_bytes(self) -> int:
        """Return the bytes of all frames once decoded. Raises UnreadableError beyond the limits."""
        dataset = self.dataset
        samples = int(dataset.get("SamplesPerPixel") or 1)
        return check_size(
            int(dataset.Rows),
            int(dataset.Columns),
            _frame_count(dataset),
            samples * int(dataset.BitsAllocated) / 8,
            self.stored,
            coded=self.coded,
        )

    @property
    def halves_colour(self) -> bool:
        """Whether two pixels share their colour: two values are stored for each, not three."""
        photometric = str(self.dataset.get("PhotometricInterpretation", ""))
        return photometric.startswith("YBR_FULL_422")


def _refuse_directory(claims: _Claims) -> None:
    if _meta(claims.dataset).get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise UnreadableError("not-an-image", "a DICOMDIR, the index of other files")


def _refuse_no_picture(claims: _Claims) -> None:
    kind = _NO_PICTURE.get(str(claims.dataset.get("Modality", "")))
    if claims.pixels is None:
        raise UnreadableError("not-an-image", f"{kind or 'a DICOM object'} without pixels")
    if kind is not None:
        raise UnreadableError("unsupported", f"{kind}, not a picture")


def _refuse_no_shape(claims: _Claims) -> None:
    for name in ("Rows", "Columns", "BitsAllocated"):
        if not isinstance(claims.dataset.get(name), int):
            raise UnreadableError("corrupt", f"has pixels, and no {name}")


def _refuse_unknown_syntax(claims: _Claims) -> None:
    syntax = claims.syntax
    if syntax.is_encapsulated and syntax not in DECODERS:
        raise UnreadableError("unsupported", f"no decoder for {syntax.name}")
    if claims.element.length is None and not syntax.is_encapsulated:
        raise UnreadableError("corrupt", f"its pixels are in pieces, which {syntax.name} has not")


def _refuse_size(claims: _Claims) -> None:
    claims.decoded_bytes()  # raises where it is not admissible
    if claims.element.length == 0:
        raise UnreadableError("truncated", "the pixel data element is empty")


def _refuse_too_many_frames(claims: _Claims) -> None:
    # Where frames are coded, each has at least the header of its item.
    frames = _frame_count(claims.dataset)
    if claims.coded and frames * 8 > claims.stored:
        raise UnreadableError("truncated", f"declares {frames} frames in {claims.stored} bytes")


def _refuse_whole_colour(claims: _Claims) -> None:
    length = claims.element.length
    if not claims.halves_colour or length is None or claims.syntax.is_encapsulated:
        return
    if length >= claims.decoded_bytes():
        raise UnreadableError("corrupt", "its colour is of three values a pixel, not of two")


def _refuse_cut_pixels(claims: _Claims) -> None:
    if claims.coded:
        return  # only the decoder can tell
    needed = claims.decoded_bytes()
    if claims.halves_colour:
        needed = needed * 2 // 3
    element = claims.element
    present = min(claims.stored - element.offset, element.length or claims.stored)
    if present < needed:
        raise UnreadableError("truncated", f"holds {present} of {needed} bytes of pixels")


# In this order: what a rule takes for granted, such as that there are pixels, those before it have
# seen to; and the reason that a file is set aside for is that of the first one it breaks.
_RULES: tuple[Callable[[_Claims], None], ...] = (
    _refuse_directory,
    _refuse_no_picture,
    _refuse_no_shape,
    _refuse_unknown_syntax,
    _refuse_size,
    _refuse_too_many_frames,
    _refuse_whole_colour,
    _refuse_cut_pixels,
)


def _check(dataset: Dataset, pixels: _PixelElement | None, path: Path) -> int:
    """Return the number of frames of a file that can be a picture. Raises UnreadableError."""
    claims = _Claims(dataset, pixels, path.stat().st_size)
    for rule in _RULES:
        rule(claims)
    return _frame_count(dataset)


# --- pixels ---------------------------------------------------------------------------------------


def _read_frame(picture: _Picture, frame: int) -> Slice:
    """Return one frame's pixels as the modality's values, with the file's own window."""
    dataset = picture.dataset
    stored = _decode(picture, frame)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if stored.ndim == 3:
        return Slice(frame, luma(stored))
    pixels = _modality_values(dataset, frame, stored)
    voi = _voi(dataset, frame)
    if photometric == "MONOCHROME1" and dataset.get("Modality") != "CT":
        total = _range_sum(dataset, frame, stored)
        pixels = total - pixels
        voi = voi and _turned(voi, total)
    pixels = pixels.astype(np.float32, order="C", copy=False)
    # Last, since padding is told in stored values, and NaN is in no integer's range.
    padding = _padding(dataset, stored)
    if padding is not None:
        pixels[padding] = np.nan
    return Slice(frame, pixels, voi)


def _shown(item: Slice, dataset: Dataset) -> Slice:
    """Return a slice laid as its plane is usually shown (see `Reorientation`)."""
    axes = orientation(dataset, item.frame)
    return item if axes is None else replace(item, pixels=Reorientation.of(axes).apply(item.pixels))


def _decode(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W), or RGB (H, W, 3)."""
    dataset = picture.dataset
    syntax = _pixel_syntax(dataset)
    begin = picture.pixels.tell()
    try:
        if syntax == uid.JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8:
            return _decode_jpeg_12(picture, frame)
        array, _ = get_decoder(syntax).as_array(
            picture.pixels,
            index=frame,
            decoding_plugin=DECODERS.get(syntax, ""),
            **picture.options,
        )
        return np.asarray(array)
    finally:
        picture.pixels.seek(begin)  # where each frame is counted from


def _pixel_syntax(dataset: Dataset) -> uid.UID:
    """Return the transfer syntax that pixels are decoded by; if unsaid, by their byte order."""
    syntax = _meta(dataset).get("TransferSyntaxUID")
    if syntax is not None:
        return uid.UID(syntax)
    little = dataset.original_encoding[1] is not False
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _decode_jpeg_12(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W) of a lossy JPEG of 12 bits, which `gdcm` cannot decode."""
    dataset = picture.dataset
    stream = get_frame(
        picture.pixels,
        frame,
        number_of_frames=_frame_count(dataset),
        extended_offsets=picture.options.get("extended_offsets"),
    )
    if not stream.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # the decoder would make up the rest
        raise UnreadableError("truncated", "a JPEG stream without its end")
    stored = np.empty((int(dataset.Rows), int(dataset.Columns)), np.uint16)
    jpeg8_decode(stream, out=stored)  # refuses a picture of another size before it decodes it
    return stored.view(np.int16) if int(dataset.get("PixelRepresentation", 0)) else stored


def _modality_values(dataset: Dataset, frame: int, stored: NDArray[Any]) -> NDArray[Any]:
    """Return stored values after the modality LUT or the frame's rescale (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    slope, intercept = _rescale(dataset, frame)
    if stored.dtype.itemsize <= 2 and slope == 1 and intercept.is_integer():
        # As most CT is: exact in float32, at half the memory traffic.
        return stored.astype(np.float32) + np.float32(intercept)
    return stored.astype(np.float64) * slope + intercept


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    """Return slope and intercept from stored to modality values; 1 and 0 where a file has none."""
    transformation = macro(dataset, frame, "PixelValueTransformationSequence")
    slope = floats(transformation, "RescaleSlope")
    intercept = floats(transformation, "RescaleIntercept")
    if slope is None or intercept is None:
        return 1.0, 0.0
    return slope[0], intercept[0]


def _range_sum(dataset: Dataset, frame: int, stored: NDArray[Any]) -> float:
    """Return lowest plus highest value the file could hold: value -> sum - value turns it round.

    The range and not the slice's own extremes, so that slices of one series stay comparable.
    """
    if stored.dtype.kind == "f":
        return 0.0
    bits = int(dataset.BitsStored)
    if int(dataset.get("PixelRepresentation", 0)):
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    else:
        ends = np.array([0, 2**bits - 1])
    return float(_modality_values(dataset, frame, ends.astype(stored.dtype)).sum())


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which stored values are padding (PS3.3 C.7.5.1.1.2), (H, W); None: none can be."""
    value = dataset.get("PixelPaddingValue")
    limit = dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or stored.dtype.kind not in "iu":
        return None
    first = _signed(value, dataset)
    last = _signed(limit, dataset) if isinstance(limit, int) else first
    low = min(first, last)
    high = max(first, last)
    return np.asarray((stored >= low) & (stored <= high))


def _signed(value: int, dataset: Dataset) -> int:
    """Return a padding value with the sign of the pixels: writers mix up its two types."""
    bits = int(dataset.BitsAllocated)
    if int(dataset.get("PixelRepresentation", 0)):
        return value - (1 << bits) if value >= 1 << (bits - 1) else value
    return value % (1 << bits)


# --- the file's own window ------------------------------------------------------------------------


def _voi(dataset: Dataset, frame: int) -> Voi | None:
    """Return the frame's VOI LUT, else its first window, in modality values (PS3.3 C.11.2)."""
    frame_voi = macro(dataset, frame, "FrameVOILUTSequence")
    tables = frame_voi.get("VOILUTSequence")
    if tables:
        return _voi_table(tables[0])
    centres = floats(frame_voi, "WindowCenter")
    widths = floats(frame_voi, "WindowWidth")
    if centres is None or widths is None:
        return None
    function = str(frame_voi.get("VOILUTFunction") or "LINEAR")
    centre = centres[0]
    width = widths[0]
    if function == "LINEAR":
        # C.11.2.1.2.1: a ramp from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
        centre = centre - 0.5
        width = max(width - 1, 1e-3)
    if width <= 0:
        return None
    shape: Literal["linear", "sigmoid"] = "sigmoid" if function == "SIGMOID" else "linear"
    return Voi(centre - width / 2, centre + width / 2, shape)


def _voi_table(item: Dataset) -> Voi | None:
    """Return a VOI LUT (PS3.3 C.11.2.1.1), None where its description and its data disagree."""
    descriptor = item.get("LUTDescriptor")
    data = item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    entries, first, bits = (int(value) for value in descriptor)
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    entries = entries or 2**16  # 65,536 does not fit the descriptor's 16 bits, and is written as 0
    if len(table) < entries or entries < 2 or not 1 <= bits <= 16:
        return None
    grey = table[:entries].astype(np.float64) / (2**bits - 1)
    return Voi(first, first + entries - 1, "table", tuple(np.clip(grey, 0, 1).tolist()))


def _turned(voi: Voi, total: float) -> Voi:
    """Return the window of pixels that became `total` less themselves: bright stays bright."""
    table = tuple(1 - grey for grey in reversed(voi.table))
    return Voi(total - voi.high, total - voi.low, voi.shape, table)
