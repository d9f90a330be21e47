"""What makes a DICOM file a picture: the rules that its header must pass, and its decoders.

Values of the file never reach a message, but for its sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_classes import SLIDE_TILES, no_picture
from pipeline.io.formats.limits import (
    DEFLATE_RATIO,
    DICOMDIR,
    MAX_FILE_BYTES,
    NO_PICTURE,
    check_size,
)
from stores.errors import Reason, UnreadableError

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

# Those of PS3.6 that pydicom's table has not.
_NEW_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "frames deflated one by one",
}
_UID = re.compile(r"[0-2](\.[0-9]+)+")


@dataclass(frozen=True)
class PixelElement:
    """A file's pixel data element: its keyword, its VR (None: implicit), where its value begins.

    length: how long it says it is; None: encapsulated.
    """

    keyword: str
    vr: str | None
    offset: int
    length: int | None


def meta_of(dataset: Dataset) -> Dataset:
    """Return a file's meta information, empty where it has none."""
    meta: Dataset = getattr(dataset, "file_meta", Dataset())
    return meta


def syntax_of(dataset: Dataset) -> uid.UID:
    """Return a file's transfer syntax; a file that does not say is implicit little endian."""
    return uid.UID(meta_of(dataset).get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)


def frame_count(dataset: Dataset) -> int:
    """Return how many frames a header declares; one where it does not say."""
    return int(dataset.get("NumberOfFrames") or 1)


def refuse_deflation_bomb(file: BinaryIO, stored: int) -> None:
    """Refuse a deflated file that could blow up: pydicom inflates it whole, without a limit.

    file: at its start, where it is left; stored: its bytes.
    """
    if stored * DEFLATE_RATIO <= MAX_FILE_BYTES:
        return
    start = file.read(1024)
    file.seek(0)
    if uid.DeflatedExplicitVRLittleEndian.encode() in start:
        raise UnreadableError("too-large", "a deflated file of this size may inflate too far")


class _Claims:
    """What a header claims of its pixels, against the file's true size `stored` (bytes)."""

    def __init__(self, dataset: Dataset, pixels: PixelElement | None, stored: int) -> None:
        self.dataset = dataset
        self.pixels = pixels
        self.stored = stored
        self.syntax = syntax_of(dataset)

    @property
    def element(self) -> PixelElement:
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
            frame_count(dataset),
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
    if meta_of(claims.dataset).get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise UnreadableError("not-an-image", DICOMDIR)


def _refuse_no_picture(claims: _Claims) -> None:
    has_pixels = claims.pixels is not None
    kind = no_picture(claims.dataset, has_pixels=has_pixels)
    if kind is not None:
        reason: Reason = "unsupported" if has_pixels else "not-an-image"
        raise UnreadableError(reason, f"{NO_PICTURE}{kind}")
    if not has_pixels:
        raise UnreadableError("not-an-image", "a DICOM object without pixels")


def _refuse_slide_tiles(claims: _Claims) -> None:
    if str(claims.dataset.get("SOPClassUID", "")) in SLIDE_TILES:
        raise UnreadableError(
            "unsupported", "a whole-slide image, whose frames are tiles of a microscope's slide"
        )


def _refuse_no_shape(claims: _Claims) -> None:
    for name in ("Rows", "Columns", "BitsAllocated"):
        if not isinstance(claims.dataset.get(name), int):
            raise UnreadableError("corrupt", f"has pixels, and no {name}")


def _refuse_retired_colours(claims: _Claims) -> None:
    photometric = str(claims.dataset.get("PhotometricInterpretation", ""))
    if photometric in ("HSV", "ARGB", "CMYK"):
        raise UnreadableError("unsupported", f"colours as {photometric}, which DICOM has given up")


def _refuse_unknown_syntax(claims: _Claims) -> None:
    syntax = claims.syntax
    if not syntax.type:
        # One of a maker's own, or newer than the table: the file is whole, and nothing is known of
        # how its pixels are coded.
        if not _UID.fullmatch(syntax):
            raise UnreadableError("corrupt", "its transfer syntax is no UID")
        name = _NEW_SYNTAXES.get(syntax, "the transfer syntax")
        raise UnreadableError("unsupported", f"no decoder for {name} {syntax}")
    if not syntax.is_transfer_syntax:
        raise UnreadableError("corrupt", "its transfer syntax is a UID of something else")
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
    frames = frame_count(claims.dataset)
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
    _refuse_slide_tiles,
    _refuse_no_shape,
    _refuse_retired_colours,
    _refuse_unknown_syntax,
    _refuse_size,
    _refuse_too_many_frames,
    _refuse_whole_colour,
    _refuse_cut_pixels,
)


def check(dataset: Dataset, pixels: PixelElement | None, stored: int) -> int:
    """Return the number of frames of a file that can be a picture. Raises UnreadableError.

    stored: the bytes of the file.
    """
    claims = _Claims(dataset, pixels, stored)
    for rule in _RULES:
        rule(claims)
    return frame_count(dataset)
