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
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import as_pixel_options

from pipeline.io.formats import mosaic
from pipeline.io.formats.dicom_geometry import Layout, floats, frame_header, macro, orientation
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
    """A file's header, checked, and its pixels: a stream at their beginning, and what they are."""

    dataset: Dataset
    pixels: BinaryIO
    about: dict[str, Any]


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
    """Yield the asked frames in order, float32 (H, W). Raises UnreadableError."""
    with ExitStack() as stack:
        try:
            with _quiet():
                picture = _open(path, stack)
                tiles = mosaic.tiles(picture.dataset)
                count = tiles.count if tiles else _frame_count(picture.dataset)
        except Exception as error:
            raise as_unreadable(error, "reading the DICOM file") from error
        whole: NDArray[np.float32] | None = None
        for frame in frames:
            if not 0 <= frame < count:
                yield Failure(frame, "corrupt", f"the file has no frame {frame}")
                continue
            try:
                with _quiet():
                    if tiles is None:
                        item = _read_frame(picture, frame)
                    else:
                        whole = _read_frame(picture, 0).pixels if whole is None else whole
                        item = Slice(frame, mosaic.tile(whole, tiles, frame))
                    item = _shown(item, picture.dataset)
            except Exception as error:
                known = as_unreadable(error, "decoding the pixels")
                yield Failure(frame, known.reason, known.detail)
            else:
                yield item


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from checking, warning of or logging values: they are the patient's."""
    settings, log = pydicom_config.settings, logging.getLogger("pydicom")
    before, disabled = settings.reading_validation_mode, log.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.reading_validation_mode = pydicom_config.IGNORE
        log.disabled = True
        try:
            yield
        finally:
            settings.reading_validation_mode = before
            log.disabled = disabled


def _read_until_pixels(path: Path) -> tuple[Dataset, _PixelElement | None]:
    """Return all that stands before the pixels, and where they begin. Raises UnreadableError."""
    _check_deflated(path)
    stored = path.stat().st_size
    found: list[_PixelElement] = []
    cut: list[int] = []

    def at_element(tag: Any, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            known = None if length == _UNDEFINED else length
            found.append(_PixelElement(_PIXELS[tag], vr, file.tell(), known))
        elif length != _UNDEFINED and file.tell() + length > stored:
            cut.append(length)
        return bool(found)

    with path.open("rb") as file:
        stop: Callable[..., bool] = at_element
        dataset = read_partial(file, stop_when=stop, force=True)
        if found:
            return dataset, found[0]
    # A deflated file is read from memory, where its elements' places say nothing of the file.
    deflated = _syntax(dataset) == uid.DeflatedExplicitVRLittleEndian
    if (cut and not deflated) or not len(dataset):
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
        whole = pydicom.dcmread(stream, force=True)
        stream = BytesIO(whole[pixels.keyword].value)
    else:
        stream.seek(pixels.offset)
    about = as_pixel_options(dataset, pixel_keyword=pixels.keyword)
    if pixels.vr is not None:
        about["pixel_vr"] = pixels.vr
    if pixels.length is None:
        about = _places(stream, _frame_count(dataset)) | about
    return _Picture(dataset, stream, about)


def _places(stream: BinaryIO, frames: int) -> dict[str, Any]:
    """Return where each of several encapsulated frames lies, in pydicom's terms.

    Nothing where the file says so itself or a frame is in pieces: pydicom then looks, for each
    frame anew. Raises UnreadableError where the pixels do not end as they should: decoders make up
    what is missing, or search for it without end.
    """
    begin = stream.tell()
    told = parse_basic_offsets(stream)
    first = stream.tell()
    _, items = parse_fragments(stream)
    end = items[-1] if items else first
    if items:
        stream.seek(end + 4)
        end += 8 + int.from_bytes(stream.read(4), "little")
    stream.seek(end)
    if stream.read(4) != _DELIMITER:
        raise UnreadableError("truncated", "its encapsulated pixels have no end")
    stream.seek(begin)
    if told or len(items) != frames:
        return {}
    lengths = [after - at - 8 for at, after in itertools.pairwise([*items, end])]
    return {"extended_offsets": ([at - first for at in items], lengths)}


def _syntax(dataset: Dataset) -> uid.UID:
    """Return a file's transfer syntax; a file that does not say is implicit little endian."""
    meta = getattr(dataset, "file_meta", Dataset())
    return uid.UID(meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian))


def _check_deflated(path: Path) -> None:
    """Refuse a deflated file that could blow up: pydicom inflates it whole, without a limit."""
    if path.stat().st_size * DEFLATE_RATIO <= MAX_FILE_BYTES:
        return
    with path.open("rb") as file:
        if uid.DeflatedExplicitVRLittleEndian.encode() in file.read(1024):
            raise UnreadableError("too-large", "a deflated file of this size may inflate too far")


def _frame_count(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _check(dataset: Dataset, pixels: _PixelElement | None, path: Path) -> int:
    """Return the number of frames of a file that can be a picture. Raises UnreadableError."""
    meta = getattr(dataset, "file_meta", Dataset())
    if meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise UnreadableError("not-an-image", "a DICOMDIR, the index of other files")
    kind = _NO_PICTURE.get(str(dataset.get("Modality", "")))
    if pixels is None:
        raise UnreadableError("not-an-image", f"{kind or 'a DICOM object'} without pixels")
    if kind is not None:
        raise UnreadableError("unsupported", f"{kind}, not a picture")
    for name in ("Rows", "Columns", "BitsAllocated"):
        if not isinstance(dataset.get(name), int):
            raise UnreadableError("corrupt", f"has pixels, and no {name}")
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), _frame_count(dataset)
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
    stored = path.stat().st_size
    syntax = _syntax(dataset)
    if syntax.is_encapsulated and syntax not in DECODERS:
        raise UnreadableError("unsupported", f"no decoder for {syntax.name}")
    if pixels.length is None and not syntax.is_encapsulated:
        raise UnreadableError("corrupt", f"its pixels are in pieces, which {syntax.name} has not")
    coded = pixels.length is None or syntax == uid.DeflatedExplicitVRLittleEndian
    need = check_size(rows, columns, frames, samples * bits / 8, stored, coded=coded)
    if pixels.length == 0:
        raise UnreadableError("truncated", "the pixel data element is empty")
    if coded and frames * 8 > stored:
        raise UnreadableError("truncated", f"declares {frames} frames in {stored} bytes")
    if str(dataset.get("PhotometricInterpretation", "")).startswith("YBR_FULL_422"):
        if pixels.length is not None and not syntax.is_encapsulated and pixels.length >= need:
            raise UnreadableError("corrupt", "its colour is of three values a pixel, not of two")
        need = need * 2 // 3
    held = min(stored - pixels.offset, pixels.length or stored)
    if not coded and held < need:
        raise UnreadableError("truncated", f"holds {held} of {need} bytes of pixels")
    return frames


def _read_frame(picture: _Picture, frame: int) -> Slice:
    """Return one frame's pixels as the modality's values, with the file's own window."""
    dataset, stored = picture.dataset, _decode(picture, frame)
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
        voi = voi and Voi(total - voi.high, total - voi.low, voi.shape, _turned(voi))
    pixels = pixels.astype(np.float32, order="C", copy=False)
    padding = _padding(dataset, stored)
    if padding is not None:
        pixels[padding] = np.nan
    return Slice(frame, pixels, voi)


def _shown(item: Slice, dataset: Dataset) -> Slice:
    """Return a slice laid as its plane is usually shown (see `Layout`)."""
    axes = orientation(dataset, item.frame)
    return item if axes is None else replace(item, pixels=Layout.of(axes).apply(item.pixels))


def _decode(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W), or RGB (H, W, 3)."""
    dataset, begin = picture.dataset, picture.pixels.tell()
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta else None
    if syntax is None:
        little = dataset.original_encoding[1] is not False
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    try:
        if syntax == uid.JPEGExtended12Bit and int(dataset.get("BitsStored") or 0) > 8:
            return _decode_jpeg_12(picture, frame)
        plugin = DECODERS.get(uid.UID(syntax), "")
        array, _ = get_decoder(syntax).as_array(
            picture.pixels, index=frame, decoding_plugin=plugin, **picture.about
        )
        return np.asarray(array)
    finally:
        picture.pixels.seek(begin)


def _decode_jpeg_12(picture: _Picture, frame: int) -> NDArray[Any]:
    """Return stored values (H, W) of a lossy JPEG of 12 bits, which `gdcm` cannot decode."""
    from imagecodecs import jpeg8_decode

    dataset = picture.dataset
    stream = get_frame(
        picture.pixels,
        frame,
        number_of_frames=_frame_count(dataset),
        extended_offsets=picture.about.get("extended_offsets"),
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
    holder = macro(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = floats(holder, "RescaleSlope"), floats(holder, "RescaleIntercept")
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
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    if not int(dataset.get("PixelRepresentation", 0)):
        ends = np.array([0, 2**bits - 1])
    return float(_modality_values(dataset, frame, ends.astype(stored.dtype)).sum())


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which stored values are padding (PS3.3 C.7.5.1.1.2), (H, W); None: none can be."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or stored.dtype.kind not in "iu":
        return None
    ends = [_signed(value, dataset)]
    ends.append(_signed(limit, dataset) if isinstance(limit, int) else ends[0])
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _signed(value: int, dataset: Dataset) -> int:
    """Return a padding value with the sign of the pixels: writers mix up its two types."""
    bits = int(dataset.BitsAllocated)
    if int(dataset.get("PixelRepresentation", 0)):
        return value - (1 << bits) if value >= 1 << (bits - 1) else value
    return value % (1 << bits)


def _voi(dataset: Dataset, frame: int) -> Voi | None:
    """Return the frame's VOI LUT, else its first window, in modality values (PS3.3 C.11.2)."""
    holder = macro(dataset, frame, "FrameVOILUTSequence")
    tables = holder.get("VOILUTSequence")
    if tables:
        return _voi_table(tables[0])
    centre, width = floats(holder, "WindowCenter"), floats(holder, "WindowWidth")
    if centre is None or width is None:
        return None
    function = str(holder.get("VOILUTFunction") or "LINEAR")
    c, w = centre[0], width[0]
    if function == "LINEAR":  # C.11.2.1.2.1: from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2
        c, w = c - 0.5, max(w - 1, 1e-3)
    if w <= 0:
        return None
    return Voi(c - w / 2, c + w / 2, "sigmoid" if function == "SIGMOID" else "linear")


def _voi_table(item: Dataset) -> Voi | None:
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    entries, first, bits = (int(value) for value in descriptor)
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    entries = entries or 2**16
    if len(table) < entries or entries < 2 or not 1 <= bits <= 16:
        return None
    grey = table[:entries].astype(np.float64) / (2**bits - 1)
    return Voi(first, first + entries - 1, "table", tuple(np.clip(grey, 0, 1).tolist()))


def _turned(voi: Voi) -> tuple[float, ...]:
    """Return a VOI table for turned pixels, its grey turned too: bright stays bright."""
    return tuple(1 - grey for grey in reversed(voi.table))
