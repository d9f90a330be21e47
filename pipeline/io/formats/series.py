"""Slices to volumes: grouped, ordered along the normal, and what is odd about them.

Pure functions over headers. A volume is what one series of one patient's study holds of one
orientation, shape, echo and time point. Numbers are compared as numbers, with a tolerance. Nothing
is repaired: oddities become flags.

    missing-position     a gap of about two or more slice distances
    duplicate-position   two slices of one volume at one place
    variable-spacing     distances that are neither equal nor multiples of one
    gantry-tilt          slices that shift within their plane from one to the next
    no-position          several slices, and no word where they lie
    time-points-unclear  places that come up several times, and no word of when
    copy                 a slice that is there twice, by its SOPInstanceUID or its pixels; the first
                         is none
    shared-series        a SeriesInstanceUID that several patients or studies have
    one-slice-series     slices of one volume, each with a SeriesInstanceUID of its own (told by
                         `pipeline.extraction.lone_slices`)
    localizer            few slices that lie across each other, or as the file itself says
    burned-in, secondary-capture, oblique, mosaic, no-orientation, ...: said by the file itself
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from pipeline.io.formats.localizers import LOCALIZER, lie_as_localizers
from pipeline.io.formats.reorientation import placed_along
from pipeline.io.formats.stacks import COPY, Copies, PixelsOf, Place, copies_of, same_mm
from pipeline.io.formats.time_points import time_points
from pipeline.types import Header

SHARED_SERIES = "shared-series"
# Flags that are said of a slice, and not of its volume.
_OF_A_SLICE = frozenset({COPY, "burned-in"})
# Axes that differ by less are one direction: a chord of half a degree.
_SAME_AXIS = 0.0087
# Echo times that differ by less, or by less than this part, are one (ms).
_SAME_ECHO_MS = 0.01
_SAME_ECHO = 0.001
# Distances that differ by more than this part of the usual one, or by more (mm), are not equal.
_UNEQUAL = 0.05
_UNEQUAL_MM = 0.1
# Shift within the plane, as a part of the distance along the normal: one degree from a slice to the
# next, where positions are rounded; over all slices, the angle whose cosine is 1 - 1e-4, from which
# on dcm2niix shears a volume back (`_Tilt`).
_TILT = 0.0175
_TILT_OF_ALL = 0.01414


def volumes(places: Sequence[Place], pixels_of: PixelsOf | None = None) -> list[list[Place]]:
    """Return one series' slices as volumes, each in order, flags set; the first file's first.

    pixels_of: tells copies by their pixels, asked only where headers do not tell slices apart.
    """
    owners = {_owner(place.header) for place in places}
    shared = {SHARED_SERIES} if len(owners) > 1 else set()
    if not shared and lie_as_localizers([place.header for place in places]):
        shared = {LOCALIZER}
    flagged = []
    for kind in _groups(sorted(places, key=_by_file)):
        group = _along_one_normal(kind)
        copies = copies_of(group, pixels_of)
        for volume in time_points(copies.originals):
            flagged.append(_flagged(volume, copies, shared))
    return flagged


def _by_file(place: Place) -> tuple[str, int]:
    return place.path, place.header.frame


def _owner(header: Header) -> tuple[str | None, str | None]:
    """Return whose a slice is: a series is of one study, of one patient (PS3.3 A.1.4)."""
    return header.patient, header.study


def _groups(places: Sequence[Place]) -> list[list[Place]]:
    """Return the slices that may be of one volume, but for their time; the first file's first."""
    groups: list[list[Place]] = []
    by_kind: dict[object, list[list[Place]]] = defaultdict(list)
    # Most slices repeat what another says to the last digit, and need not be compared with all.
    by_header: dict[object, list[Place]] = {}
    for place in places:
        header = place.header
        kind = (*_owner(header), header.volume)
        exact = (kind, header.axes, header.echo_ms)
        group = by_header.get(exact)
        if group is None:
            group = _alike(by_kind[kind], header)
        if group is None:
            group = []
            groups.append(group)
            by_kind[kind].append(group)
        by_header[exact] = group
        group.append(place)
    return groups


def _alike(groups: list[list[Place]], header: Header) -> list[Place] | None:
    """Return the group of a header's orientation and echo; held against the first of each."""
    for group in groups:
        first = group[0].header
        if _same_axes(first.axes, header.axes) and _same_echo(first.echo_ms, header.echo_ms):
            return group
    return None


def _along_one_normal(group: list[Place]) -> list[Place]:
    """Return slices of one orientation with their places along the axes of the first."""
    reference = group[0].header.axes
    return [Place(place.path, placed_along(place.header, reference)) for place in group]


def _same_axes(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    """Return whether both axes of the pixels point the same way."""
    if a is None or b is None:
        return a is b
    along = math.dist(a[:3], b[:3])
    down = math.dist(a[3:], b[3:])
    return max(along, down) < _SAME_AXIS


def _same_echo(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_SAME_ECHO, abs_tol=_SAME_ECHO_MS)


def _flagged(volume: list[Place], copies: Copies, more: set[str]) -> list[Place]:
    """Return the volume and its copies with its oddities on each of its slices."""
    oddities = _oddities(volume) | more
    for place in volume:
        oddities.update(set(place.header.flags) - _OF_A_SLICE)
    flagged = []
    for place in copies.behind_originals(volume):
        flags_of_slice = _OF_A_SLICE & set(place.header.flags)
        flags = tuple(sorted(oddities | flags_of_slice))
        flagged.append(Place(place.path, replace(place.header, flags=flags)))
    return flagged


def _oddities(volume: list[Place]) -> set[str]:
    """Return the flags of a volume that its slices show together."""
    headers = [place.header for place in volume]
    if len(headers) < 2:
        return set()
    positions = [h.position_mm for h in headers if h.position_mm is not None]
    if len(positions) < len(headers):
        return {"no-position"}
    limit = same_mm(volume)
    steps = [b - a for a, b in itertools.pairwise(positions)]
    oddities: set[str] = set()
    if min(steps) < limit:
        oddities.add("duplicate-position")
    distances = [step for step in steps if step >= limit]
    if distances:
        oddities |= _spacing_oddities(distances)
    if _is_tilted(headers, steps, limit):
        oddities.add("gantry-tilt")
    return oddities


def _is_tilted(headers: list[Header], steps: list[float], limit: float) -> bool:
    """Return whether slices shift within their plane, over a volume or from one to the next."""
    length = sum(steps)
    if length >= limit and _shift(headers[0], headers[-1]) > _TILT_OF_ALL * length:
        return True
    for step, (a, b) in zip(steps, itertools.pairwise(headers), strict=True):
        if step >= limit and _shift(a, b) > _TILT * step:
            return True
    return False


def is_even(distances: list[float]) -> bool:
    """Return whether distances along the normal (mm) are those of one volume's slices."""
    if not distances or min(distances) <= 0:
        return False
    return "variable-spacing" not in _spacing_oddities(distances)


def _spacing_oddities(distances: list[float]) -> set[str]:
    """Return the flags of the distances (mm) between slices that lie at different places."""
    # The low median: where half of the slices are gone, the usual distance is still a single one.
    usual = statistics.median_low(distances)
    unequal = min(_UNEQUAL * usual, _UNEQUAL_MM)
    oddities = set()
    for distance in distances:
        multiple = max(1, round(distance / usual))
        if abs(distance - multiple * usual) > unequal:
            oddities.add("variable-spacing")
        elif multiple > 1:
            oddities.add("missing-position")
    return oddities


def _shift(a: Header, b: Header) -> float:
    """Return how far two slices are shifted against each other within their plane (mm)."""
    if a.offset_mm is None or b.offset_mm is None:
        return 0.0
    down = a.offset_mm[0] - b.offset_mm[0]
    along = a.offset_mm[1] - b.offset_mm[1]
    return float((down**2 + along**2) ** 0.5)
