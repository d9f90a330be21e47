"""What a file may claim before anything is allocated for it, and how its faults are told.

No size in a header is believed: it is compared with fixed limits and with the size of the file.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stores.errors import Reason, UnreadableError

# One slice: a 16k x 8k picture, four times the largest mammograms.
MAX_SLICE_PIXELS = 2**27
# One file, decoded: a CT of 8,000 slices.
MAX_FILE_BYTES = 2**32
MAX_FRAMES = 100_000
# DEFLATE cannot do better than 1032:1; picture codecs can on blank pictures, so a ratio counts
# against them only where much is at stake.
DEFLATE_RATIO = 1032
CODEC_RATIO = 1000
CODEC_FREE_BYTES = 2**28

# How the details begin of files that are whole, and that nobody took for an image: objects of
# DICOM that describe pictures, voxels whose header is another file, what systems keep beside files.
NO_PICTURE = "no picture: "
DICOMDIR = f"{NO_PICTURE}a DICOMDIR, the index of other files"


def check_size(
    height: int, width: int, frames: int, itemsize: float, stored: int, *, coded: bool
) -> int:
    """Return the bytes that `frames` pictures of (height, width) take, decoded, if admissible.

    stored: bytes in the file. coded: whether a picture codec compressed them. Raises
    UnreadableError: `corrupt` for a size below one, `too-large` beyond the limits.
    """
    if min(height, width, frames) < 1:
        raise UnreadableError("corrupt", f"declares {frames} frames of {height} x {width} pixels")
    total = int(height * width * frames * itemsize)
    beyond = (
        height * width > MAX_SLICE_PIXELS
        or total > MAX_FILE_BYTES
        or frames > MAX_FRAMES
        or (coded and total > max(CODEC_FREE_BYTES, stored * CODEC_RATIO))
    )
    if beyond:
        raise UnreadableError(
            "too-large",
            f"declares {frames} frames of {height} x {width} pixels in {stored} bytes",
        )
    return total


def as_unreadable(error: Exception, doing: str) -> UnreadableError:
    """Return `error`, raised by a library while `doing`, under one of the fixed reasons.

    A library's own message may quote what stands in the file, names of patients among it, so only
    the type of the error is told.
    """
    if isinstance(error, UnreadableError):
        return error
    if isinstance(error, ImportError):  # the fault of this installation, not of the file
        raise error
    return UnreadableError(_reason(error), f"{doing}: {type(error).__name__}")


def _reason(error: Exception) -> Reason:
    """Return the fixed reason for an error of a library or of the system."""
    if isinstance(error, PermissionError):
        return "no-permission"
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, MemoryError):
        return "too-large"
    if isinstance(error, EOFError):
        return "truncated"
    if isinstance(error, NotImplementedError):
        return "unsupported"
    # Pillow's and zlib's words for a stream that ends early, which has no class of its own.
    if isinstance(error, (zlib.error, OSError)) and "truncated" in str(error).lower():
        return "truncated"
    return "corrupt"


def luma(colour: NDArray[Any]) -> NDArray[np.float32]:
    """Return RGB (H, W, 3 or more) as brightness, float32 (H, W) (ITU-R BT.601)."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    rgb = colour[..., :3].astype(np.float32)
    return np.asarray(rgb @ weights)
