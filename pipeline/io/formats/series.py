"""Slices to volumes: grouped, ordered along the normal, and what is odd about them.

Pure functions over headers. A volume is what one series holds of one orientation, shape, echo and
time point. Nothing is repaired: oddities become flags.

    missing-position    a gap of about two or more slice distances
    duplicate-position  two slices of one volume at one place
    variable-spacing    distances that are neither equal nor multiples of one
    gantry-tilt         slices that shift within their plane from one to the next
    no-position         several slices, and no word where they lie
    localizer, oblique, mosaic, no-orientation: said by the file itself
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.types import Header

# Positions closer than this are one place (mm); slices of one millimetre are told apart.
_SAME_MM = 0.01
# Distances that differ by more than this part of the usual one are not equal.
_UNEQUAL = 0.05
# Shift within the plane, as a part of the distance along the normal: one degree.
_TILT = 0.0175


@dataclass(frozen=True, slots=True)
class Place:
    """A header and the file it stands in."""

    path: str
    header: Header


def volumes(places: Sequence[Place]) -> list[list[Place]]:
    """Return one series' slices as volumes, each in order, flags set; the first file's first."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(places, key=lambda p: (p.path, p.header.frame)):
        groups[place.header.volume].append(place)
    found = [volume for group in groups.values() for volume in _time_points(group)]
    return [_flagged(volume) for volume in found]


def _time_points(group: list[Place]) -> list[list[Place]]:
    """Deal slices at one place out to time points, by their order; each sorted along the normal.

    A place that comes up twice in a volume of otherwise single slices is a duplicate and no second
    time point: a further volume needs at least half of the places.
    """
    if any(place.header.position_mm is None for place in group):
        return [sorted(group, key=_in_time)]
    at: list[list[Place]] = []
    for place in sorted(group, key=lambda p: (p.header.position_mm or 0.0, *_in_time(p))):
        here = place.header.position_mm or 0.0
        if at and here - (at[-1][0].header.position_mm or 0.0) < _SAME_MM:
            at[-1].append(place)
        else:
            at.append([place])
    at = [sorted(same, key=_in_time) for same in at]
    depth = max(map(len, at))
    layers = [[same[k] for same in at if k < len(same)] for k in range(depth)]
    whole = [layer for layer in layers if 2 * len(layer) >= len(at)]
    spare = [place for layer in layers if 2 * len(layer) < len(at) for place in layer]
    if spare:
        whole[-1] = sorted(
            [*whole[-1], *spare], key=lambda p: (p.header.position_mm or 0.0, *_in_time(p))
        )
    return whole


def _in_time(place: Place) -> tuple[tuple[float, ...], str, int]:
    return place.header.order, place.path, place.header.frame


def _flagged(volume: list[Place]) -> list[Place]:
    """Return the volume with its oddities on each of its slices."""
    found = {flag for place in volume for flag in place.header.flags} | _oddities(volume)
    flags = tuple(sorted(found))
    return [Place(place.path, replace(place.header, flags=flags)) for place in volume]


def _oddities(volume: list[Place]) -> set[str]:
    headers = [place.header for place in volume]
    if len(headers) < 2:
        return set()
    positions = [h.position_mm for h in headers if h.position_mm is not None]
    if len(positions) < len(headers):
        return {"no-position"}
    steps = [b - a for a, b in itertools.pairwise(positions)]
    found = {"duplicate-position"} if min(steps) < _SAME_MM else set()
    apart = [step for step in steps if step >= _SAME_MM]
    if apart:
        found |= _spacing_oddities(apart)
    for step, (a, b) in zip(steps, itertools.pairwise(headers), strict=True):
        if step >= _SAME_MM and _shift(a, b) > _TILT * step:
            found.add("gantry-tilt")
    return found


def _spacing_oddities(steps: list[float]) -> set[str]:
    # The low median: where half of the slices are gone, the usual distance is still a single one.
    usual = statistics.median_low(steps)
    found = set()
    for step in steps:
        times = max(1, round(step / usual))
        if abs(step - times * usual) > _UNEQUAL * usual:
            found.add("variable-spacing")
        elif times > 1:
            found.add("missing-position")
    return found


def _shift(a: Header, b: Header) -> float:
    """Return how far two slices are shifted against each other within their plane (mm)."""
    if a.offset_mm is None or b.offset_mm is None:
        return 0.0
    return float(
        ((a.offset_mm[0] - b.offset_mm[0]) ** 2 + (a.offset_mm[1] - b.offset_mm[1]) ** 2) ** 0.5
    )
