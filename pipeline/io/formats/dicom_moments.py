"""What a DICOM header says of when a frame was taken, and how it differs from others of its place.

- Labels are numbers that slices of one time point share: a temporal position, the number of an
  acquisition. Only whether two are equal means anything.
- The order sorts slices in time. AcquisitionNumber "identifies the single continuous gathering of
  data" (PS3.3 C.7.6.1) and has no order in time, so it is a label.
"""

from __future__ import annotations

import datetime
import re
import zlib
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from pipeline.io.formats.dicom_geometry import floats, image_type, macro, text
from pipeline.types import Header

_TIME = re.compile(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?")
_DATE = re.compile(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)")


def with_moment(header: Header, dataset: Dataset) -> Header:
    """Return a frame's header with its labels and its order in time (see `pipeline.types`)."""
    frame = header.frame
    content = macro(dataset, frame, "FrameContentSequence")
    acquired = _acquired(dataset, content)
    trigger = _first(dataset, "TriggerTime")
    nominal = macro(dataset, frame, "CardiacSynchronizationSequence")
    delay = _first(nominal, "NominalCardiacTriggerDelayTime")
    temporal = _first(content, "TemporalPositionIndex")
    if temporal is None:
        temporal = _first(dataset, "TemporalPositionIdentifier")
    reference = _first(dataset, "FrameReferenceTime")
    labels = (
        temporal,
        _first(dataset, "AcquisitionNumber"),
        reference,
        trigger if delay is None else delay,
        _first(dataset, "InversionTime"),
        _first(dataset, "EchoNumbers"),
        _first(dataset, "FlipAngle"),
        _first(dataset, "SliceThickness"),
        _first(dataset, "KVP"),
        _number(text(dataset, "ConvolutionKernel")),
        # Values after the third are the maker's own (C.8.2.1.1.1): they tell pictures of one place
        # apart, and never cut a volume of others.
        _number("/".join(image_type(dataset, frame)[3:])),
    )
    order = (
        reference if temporal is None else temporal,
        trigger if delay is None else delay,
        acquired,
        _moment(text(dataset, "ContentDate"), text(dataset, "ContentTime")),
        _first(dataset, "InstanceNumber"),
    )
    return replace(header, labels=labels, gradient=_diffusion(dataset, frame), order=order)


def _first(dataset: Dataset, name: str) -> float | None:
    """Return the first number of an element, None where it has none."""
    numbers = floats(dataset, name)
    return numbers[0] if numbers else None


def _number(words: str | None) -> float | None:
    """Return a number that stands for a text: equal texts have equal ones; None for no text."""
    if not words:
        return None
    return float(zlib.crc32(words.encode(errors="replace")))


def _diffusion(dataset: Dataset, frame: int) -> tuple[float, ...]:
    """Return a frame's b-value and its direction, as far as there are such (C.8.13.5.9)."""
    diffusion = macro(dataset, frame, "MRDiffusionSequence")
    b_value = _first(diffusion, "DiffusionBValue")
    if b_value is None:
        return ()
    sequence: Any = diffusion.get("DiffusionGradientDirectionSequence")
    gradient = sequence[0] if sequence else diffusion
    return (b_value, *(floats(gradient, "DiffusionGradientOrientation", 3) or ()))


def _acquired(dataset: Dataset, content: Dataset) -> float | None:
    """Return when a frame was acquired (s)."""
    for source, name in (
        (content, "FrameAcquisitionDateTime"),
        (dataset, "AcquisitionDateTime"),
    ):
        moment = text(source, name)
        if moment:
            return _moment(moment[:8], moment[8:])
    return _moment(text(dataset, "AcquisitionDate"), text(dataset, "AcquisitionTime"))


def _moment(date: str | None, time: str | None) -> float | None:
    """Return a date and a time as seconds; of the day alone where there is no date."""
    match = _TIME.match(time or "")
    if match is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    moment = 3600 * hours + 60 * minutes + seconds
    day = _DATE.match(date or "")
    if day is None:
        return moment
    try:
        return 86400.0 * datetime.date(*map(int, day.groups())).toordinal() + moment
    except ValueError:
        return moment
