"""Stored DICOM values to a slice: what the modality means by them, and how the file shows them.

Pure functions over a header and an array: stored values -> modality LUT or rescale, of the frame
where it has its own -> MONOCHROME1 inverted -> padding to NaN; colour to luma.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from pipeline.io.formats.dicom_geometry import floats, macro
from pipeline.io.formats.dicom_scaling import modality_table, rescale_of
from pipeline.io.formats.limits import luma
from pipeline.types import Slice, Voi
from stores.errors import UnreadableError

Values = NDArray[Any]  # (H, W), or (H, W, 3)


def slice_of(dataset: Dataset, frame: int, stored: Values) -> Slice:
    """Return a frame's stored values (H, W), or colours (H, W, 3), as the modality's values.

    With the file's own window. float32 (H, W), laid as stored.
    """
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
    # What is padding is told in stored values, so it is looked for there and marked here.
    padding = _padding(dataset, stored)
    if padding is not None:
        pixels[padding] = np.nan
    return Slice(frame, pixels, voi)


def _modality_values(dataset: Dataset, frame: int, stored: Values) -> Values:
    """Return stored values after the modality LUT or the frame's rescale (PS3.3 C.11.1)."""
    table = modality_table(dataset)
    if table is not None:
        return _looked_up(table, dataset, stored)
    rescale = rescale_of(dataset, frame)
    if stored.dtype.itemsize <= 2 and rescale.slope == 1 and rescale.intercept.is_integer():
        # As most CT is: exact in float32, at half the memory traffic.
        return stored.astype(np.float32) + np.float32(rescale.intercept)
    return stored.astype(np.float64) * rescale.slope + rescale.intercept


def _looked_up(item: Dataset, dataset: Dataset, stored: Values) -> Values:
    """Return what a modality LUT has for stored values (PS3.3 C.11.1.1.1). Raises UnreadableError.

    Values below the table are its first entry, those beyond it its last.
    """
    table = _table(item, dataset)
    if table is None:
        raise UnreadableError("corrupt", "its modality LUT is not as it is described")
    first = _signed(int(item.LUTDescriptor[1]), dataset)
    place = np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)
    return np.asarray(table[place], dtype=np.float64)


def _range_sum(dataset: Dataset, frame: int, stored: Values) -> float:
    """Return lowest plus highest value the file could hold: value -> sum - value turns it round.

    The range and not the slice's own extremes, so that slices of one series stay comparable.
    """
    if stored.dtype.kind == "f":
        return 0.0
    bits = int(dataset.BitsStored)
    lowest = 0
    highest = 2**bits - 1
    if int(dataset.get("PixelRepresentation", 0)):
        lowest = -(2 ** (bits - 1))
        highest = 2 ** (bits - 1) - 1
    ends = np.array([lowest, highest]).astype(stored.dtype)
    return float(_modality_values(dataset, frame, ends).sum())


def _padding(dataset: Dataset, stored: Values) -> NDArray[np.bool_] | None:
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
    range_ = 1 << bits
    if not int(dataset.get("PixelRepresentation", 0)):
        return value % range_
    return value - range_ if value >= range_ // 2 else value


# --- the file's own window ------------------------------------------------------------------------


def _voi(dataset: Dataset, frame: int) -> Voi | None:
    """Return the frame's VOI LUT, else its first window, in modality values (PS3.3 C.11.2)."""
    frame_voi = macro(dataset, frame, "FrameVOILUTSequence")
    tables = frame_voi.get("VOILUTSequence")
    if tables:
        return _voi_table(tables[0], dataset)
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


def _voi_table(item: Dataset, dataset: Dataset) -> Voi | None:
    """Return a VOI LUT (PS3.3 C.11.2.1.1), None where its description and its data disagree."""
    table = _table(item, dataset)
    if table is None:
        return None
    _, first, bits = (int(value) for value in item.LUTDescriptor)
    if len(table) < 2 or not 1 <= bits <= 16:
        return None
    grey = table.astype(np.float64) / (2**bits - 1)
    last = first + len(table) - 1
    return Voi(first, last, "table", tuple(np.clip(grey, 0, 1).tolist()))


def _table(item: Dataset, dataset: Dataset) -> NDArray[Any] | None:
    """Return the entries of a LUT, None where its description and its data disagree."""
    descriptor = item.get("LUTDescriptor")
    data = item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    # 65,536 does not fit the descriptor's 16 bits, and is written as 0.
    entries = int(descriptor[0]) or 2**16
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        words = "<u2" if little else ">u2"
        # Entries of 8 bits may be packed, two to a word.
        packed = len(data) < 2 * entries
        table = np.frombuffer(data, np.uint8 if packed else words)
    else:
        table = np.atleast_1d(np.asarray(data))
    return table[:entries] if 1 <= entries <= len(table) else None


def _turned(voi: Voi, total: float) -> Voi:
    """Return the window of pixels that became `total` less themselves: bright stays bright."""
    low = total - voi.high
    high = total - voi.low
    table = tuple(1 - grey for grey in reversed(voi.table))
    return Voi(low, high, voi.shape, table)
