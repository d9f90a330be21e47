"""LIDC-IDRI: chest CT whose nodules up to four radiologists outlined and rated.

A reading names pixels and the patient's z; one header of each scan says where pixels lie. No pixel
is read.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.contracts import Contents, DataSet, Item, below, files_of
from pipeline.io.decode import read_headers
from pipeline.types import Header
from stores.errors import ConfigError, UnreadableError

# Readings of X-rays stand in files alike but for their namespace.
_SERIES_OF_CT = "{http://www.nih.gov}SeriesInstanceUid"
_AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# Of radiologists' ratings, from 1 (highly unlikely) to 5 (highly suspicious): says neither.
INDETERMINATE = 3
# Around the outermost outlines of a nodule: less than half of what lies between any two slices.
_MARGIN_MM = 0.2

Ends = NDArray[np.float64]  # (3, 2): across, down and along the patient


@dataclass(frozen=True)
class Outline:
    """What one radiologist says of a nodule of 3 mm or more.

    ends (3, 2): where it begins and ends, in mm of the patient (LPS).
    """

    malignancy: int
    ends: Ends


def _find_lidc(folder: Path, out: Path) -> Contents:
    root = below(folder, "LIDC-IDRI-*")
    readings = {uid: file for file in sorted(folder.rglob("*.xml")) for uid in _series_of(file)}
    items: list[Item] = []
    scans = 0
    patients = set()
    unread = 0
    for scan, header in _ct_scans(root):
        scans += 1
        patient, *_ = scan.split("/")
        patients.add(patient)
        reading = readings.get(header.series or "")
        unread += reading is None
        if reading is not None:
            items += _nodules(scan, patient, nodules_of(outlines_of(reading, header)))
    if not items:
        raise ConfigError(
            f"{str(folder)!r} holds {len(readings)} readings and {scans} CT scans, and no nodule. "
            "The radiologists' readings (XML) come beside the scans, or as LIDC-XML-only.zip: "
            "unpack that in the same folder."
        )
    counts = {"scans": scans, "patients": len(patients), "nodules of 3 mm or more": len(items)}
    notes = [
        "a nodule is malignant where the median of its readers' ratings is above 3, benign below, "
        "and not asked about at 3; outlines whose boxes meet are of one nodule"
    ]
    if unread:
        notes.append(f"{unread} of {scans} scans have no reading, and no nodule here")
    return Contents(root, items, counts, notes=notes)


def _ct_scans(root: Path) -> Iterator[tuple[str, Header]]:
    """Yield each CT scan's folder, relative to root, and the header of one of its slices."""
    for folder in sorted(root.glob("LIDC-IDRI-*/*/*")):
        files = files_of(folder, "*.dcm")
        if not files:
            continue
        try:
            header, *_ = read_headers(files[0])
        except UnreadableError as error:
            raise ConfigError(f"{files[0]} cannot be read: {error.detail}.") from error
        if header.modality == "CT":  # there are X-rays of some patients, too
            yield folder.relative_to(root).as_posix(), header


def _series_of(file: Path) -> list[str]:
    """Return the UID of the CT scan that a file of readings is of; none of other files."""
    try:
        for _, element in ET.iterparse(file):
            if element.tag == _SERIES_OF_CT:
                return [(element.text or "").strip()]
    except ET.ParseError as error:
        raise ConfigError(f"{file} is no reading of this set: {error}.") from error
    return []


def outlines_of(reading: Path, header: Header) -> list[Outline]:
    """Return what radiologists outlined and rated; header: of one slice of the scan.

    Raises ConfigError for a reading that is torn, and where the scan is not as those of the set
    are: axial, of known spacing.
    """
    if header.axes != _AXIAL or header.offset_mm is None or header.spacing_mm is None:
        raise ConfigError(
            f"The scan of {reading.name} must lie axially and say where and how closely its "
            f"pixels lie, as those of the set do. Got axes {header.axes}, spacing "
            f"{header.spacing_mm} instead."
        )
    top, left = header.offset_mm
    down, across = header.spacing_mm
    outlines = []
    for rating, drawn in _drawn(reading):
        (x0, y0, z0), (x1, y1, z1) = np.min(drawn, axis=0), np.max(drawn, axis=0)
        ends = [
            left + across * _inside(x0, x1),
            top + down * _inside(y0, y1),
            np.array([z0 - _MARGIN_MM, z1 + _MARGIN_MM]),
        ]
        outlines.append(Outline(rating, np.stack(ends)))
    return outlines


def _drawn(reading: Path) -> Iterator[tuple[int, list[tuple[float, float, float]]]]:
    """Yield the rating of each nodule of 3 mm or more that was outlined, and the outline's points.

    Points are x and y in pixels, z in mm. Raises ConfigError for a file that is torn.
    """
    try:
        for nodule in ET.parse(reading).iterfind(".//{*}unblindedReadNodule"):
            rating = (nodule.findtext("{*}characteristics/{*}malignancy") or "").strip()
            points = [
                (_number(point, "xCoord"), _number(point, "yCoord"), _number(roi, "imageZposition"))
                for roi in nodule.iterfind("{*}roi")
                if (roi.findtext("{*}inclusion") or "").strip().upper() == "TRUE"
                for point in roi.iterfind("{*}edgeMap")
            ]
            # One below 3 mm is a point, and has no rating.
            if rating in set("12345") and len(points) > 1:
                yield int(rating), points
    except (ET.ParseError, ValueError) as error:
        raise ConfigError(f"{reading} is no reading of this set, or is torn: {error}.") from error


def _number(element: ET.Element, name: str) -> float:
    """Return what an element holds under a name. Raises ValueError where that is no number."""
    text = element.findtext(f"{{*}}{name}") or ""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is no number") from None


def _inside(first: float, last: float) -> NDArray[np.float64]:
    """Return the ends of a nodule in pixels: its outline is drawn on the pixels just outside."""
    reach = 0.5 if last - first >= 2 else -0.5
    return np.array([first + reach, last - reach])


def nodules_of(outlines: Sequence[Outline]) -> list[list[Outline]]:
    """Return the outlines of each nodule: those whose boxes meet, directly or by others."""
    groups: list[list[Outline]] = []
    for outline in outlines:
        meet = [any(_meet(outline.ends, other.ends) for other in group) for group in groups]
        met = itertools.compress(groups, meet)
        apart = itertools.compress(groups, [not each for each in meet])
        groups = [*apart, [*itertools.chain.from_iterable(met), outline]]
    return groups


def _meet(one: Ends, other: Ends) -> bool:
    return bool((one[:, 0] < other[:, 1]).all() and (other[:, 0] < one[:, 1]).all())


def _nodules(scan: str, patient: str, groups: Sequence[Sequence[Outline]]) -> Iterator[Item]:
    """Yield the nodules of a scan from the head down, each by the median of its readers."""
    boxes = [np.median([outline.ends for outline in group], axis=0) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: boxes[i][2].tolist(), reverse=True)
    for number, i in enumerate(order, start=1):
        rating = float(np.median([outline.malignancy for outline in groups[i]]))
        malignant = "" if rating == INDETERMINATE else str(int(rating > INDETERMINATE))
        labels = {
            "nodule": f"nodule {number}",
            "malignant": malignant,
            "malignancy": f"{rating:g}",
            "readers": str(len(groups[i])),
        }
        box = tuple(boxes[i].ravel().round(3).tolist())
        yield Item(scan, patient, labels=labels, box=box)


LIDC = DataSet(
    title="LIDC-IDRI",
    source="cancerimagingarchive.net/collection/lidc-idri",
    layout="LIDC-IDRI-0001/study/series/*.dcm, ...; the readings as XML beside them, or "
    "LIDC-XML-only.zip unpacked in the same folder",
    find=_find_lidc,
    data={"include": ["LIDC-IDRI-*/*/*/*.dcm"]},
    published={"scans": 1_018, "patients": 1_010},
    labels={"structure": "nodule"},
    tasks={
        "malignancy": {
            "labels": ["malignant"],
            "level": "region",
            "region": {"boxes": "nodules"},
        },
        "rating": {
            "labels": ["malignancy"],
            "values": "number",
            "level": "region",
            "region": {"boxes": "nodules"},
        },
    },
    unverified="which outlines of several readers are of one nodule; no file of it was read here",
)
