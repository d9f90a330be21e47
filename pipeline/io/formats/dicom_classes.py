"""What a DICOM object is by its SOP Class, where that is no picture that a scanner acquired.

The SOP Class says what an object is; the modality says what made it, and is believed only where the
class says nothing.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_DICOM = "1.2.840.10008."
# Storage classes (PS3.4 B.5) that describe a picture, or are computed on one, but are none: by the
# beginning of what follows _STORAGE, each a whole component.
_CLASSES = {
    "4.2": "a spectrum",
    "9": "a waveform",
    "11": "a presentation state",
    "66": "raw data",
    "66.1": "a registration",
    "66.2": "fiducials",
    "66.3": "a registration",
    "66.4": "a segmentation",
    "66.5": "a segmentation of surfaces",
    "66.6": "tracts",
    "66.7": "a segmentation",
    "67": "a mapping of values",
    "68": "a surface",
    "77.1.5.3": "a relation of two pictures",
    "78": "a measurement of eyes",
    "79": "settings of a measurement",
    "80": "a measurement of eyes",
    "88": "a structured report",
    "88.59": "a selection of key objects",
    "90": "an assessment",
    "104": "a document",
    "131": "an arrangement of pictures",
    "200": "a protocol",
    "201": "an inventory",
    "481.2": "a dose grid",
    "481.3": "contours",
    "481.4": "a record of treatment",
    "481.5": "a treatment plan",
    "481.6": "a record of treatment",
    "481.7": "a record of treatment",
    "481.8": "a treatment plan",
    "481.9": "a record of treatment",
}
# RT objects of the second generation: plans, sets, records. Those that are pictures are not.
_RT = re.compile(r"481\.(1\d|2[0-2]|25)")
# Modalities of such objects, for those whose class is a maker's own or the wrong one.
_MODALITIES = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose grid",
    "PR": "a presentation state",
    "SR": "a structured report",
    "KO": "a selection of key objects",
    "RTSTRUCT": "contours",
    "RTPLAN": "a treatment plan",
    "RTRECORD": "a record of treatment",
    "REG": "a registration",
    "FID": "fiducials",
    "RWV": "a mapping of values",
    "PLAN": "a plan",
    "ECG": "a waveform",
    "HD": "a waveform",
    "DOC": "a document",
}
# VL Whole Slide Microscopy, and Confocal Microscopy Tiled Pyramidal.
SLIDE_TILES = frozenset({f"{_STORAGE}77.1.6", f"{_STORAGE}77.1.9"})
SECONDARY_CAPTURE = "secondary-capture"
BURNED_IN = "burned-in"
_CAPTURES = frozenset(
    {f"{_STORAGE}7", f"{_STORAGE}7.1", f"{_STORAGE}7.2", f"{_STORAGE}7.3", f"{_STORAGE}7.4"}
)
# CT Image, Enhanced CT, MR Image, Enhanced MR: whose pixels are grey.
_GREY = frozenset({f"{_STORAGE}2", f"{_STORAGE}2.1", f"{_STORAGE}4", f"{_STORAGE}4.1"})
# What makers write into ImageType of screens that were saved, and of pages of text.
_SCREEN = re.compile(
    r"SCREEN ?(SAVE|SHOT|CAPTURE)|\bSSAVE\b|\bPATIENT INFO\b|\bDOSE (INFO|REPORT)\b"
    r"|\bEXAM SUMMARY\b|\bPROT(OCOL)?\b|\bSECONDARY CAPTURE\b"
)


def no_picture(dataset: Dataset, *, has_pixels: bool) -> str | None:
    """Return what an object is in plain words, None where it is, or should be, a picture."""
    sop_class = str(dataset.get("SOPClassUID") or "")
    kind = _kind(sop_class) or _MODALITIES.get(str(dataset.get("Modality") or ""))
    if kind is None and sop_class and not has_pixels and not sop_class.startswith(_DICOM):
        return "an object of its maker's own"
    return kind


def _kind(sop_class: str) -> str | None:
    """Return what a storage class without pictures is of; None for others."""
    if not sop_class.startswith(_STORAGE):
        return None
    components = sop_class.removeprefix(_STORAGE).split(".")
    # The longest beginning that is known: 88.59 is another thing than 88.
    for count in range(len(components), 0, -1):
        beginning = ".".join(components[:count])
        if beginning in _CLASSES:
            return _CLASSES[beginning]
    return "an object of radiotherapy" if _RT.fullmatch(".".join(components)) else None


def capture_flags(dataset: Dataset, image_type: tuple[str, ...]) -> list[str]:
    """Return flags of a picture that no scanner acquired, or that has text burned into it."""
    flags = []
    if _is_capture(dataset, image_type):
        flags.append(SECONDARY_CAPTURE)
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        flags.append(BURNED_IN)
    return flags


def _is_capture(dataset: Dataset, image_type: tuple[str, ...]) -> bool:
    """Return whether a picture was taken of a screen or a page, by its class, type or colour."""
    sop_class = str(dataset.get("SOPClassUID") or "")
    of_class = sop_class in _CAPTURES
    words = " ".join(image_type).upper().replace("_", " ")
    # CT and MR images have one value a pixel (PS3.3 C.8.2.1, C.8.3.1): colour is painted.
    is_painted = sop_class in _GREY and int(dataset.get("SamplesPerPixel") or 1) > 1
    return of_class or is_painted or _SCREEN.search(words) is not None
