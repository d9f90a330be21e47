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
    for place in sorted(places, key=_by_file):
        groups[place.header.volume].append(place)
    ordered: list[list[Place]] = []
    for group in groups.values():
        ordered.extend(_time_points(group))
    return [_flagged(volume) for volume in ordered]


def _by_file(place: Place) -> tuple[str, int]:
    return place.path, place.header.frame


def _time_points(group: list[Place]) -> list[list[Place]]:
    """Return a group as its time points, the first first; each sorted along the normal.

    A place that comes up twice in a volume of otherwise single slices is a duplicate and no second
    time point: a further volume needs at least half of the places. Where a position is missing,
    all are one volume, in the order of time.
    """
    if any(place.header.position_mm is None for place in group):
        return [sorted(group, key=_in_time)]
    stacks = _by_position(group)
    time_points: list[list[Place]] = []
    duplicates: list[Place] = []
    for layer in _layers(stacks):
        if 2 * len(layer) >= len(stacks):
            time_points.append(layer)
        else:
            duplicates.extend(layer)
    # The first layer has a slice of every position, so there is a time point to take them in. The
    # last one does: a layer is never wider than the one before it, so they came behind it in time.
    if duplicates:
        time_points[-1] = sorted([*time_points[-1], *duplicates], key=_along_normal)
    return time_points


def _by_position(group: list[Place]) -> list[list[Place]]:
    """Return the slices of each position along the normal, ascending; those of one in time."""
    stacks: list[list[Place]] = []
    for place in sorted(group, key=_along_normal):
        # Held against the first of its stack, so that small steps do not add up to one long stack.
        if stacks and _position(place) - _position(stacks[-1][0]) < _SAME_MM:
            stacks[-1].append(place)
        else:
            stacks.append([place])
    return [sorted(stack, key=_in_time) for stack in stacks]


def _layers(stacks: list[list[Place]]) -> list[list[Place]]:
    """Return the first slices of all stacks, then the second ones of those that have two, etc."""
    layers: list[list[Place]] = []
    for stack in stacks:
        for k, place in enumerate(stack):
            if k == len(layers):
                layers.append([])
            layers[k].append(place)
    return layers


def _position(place: Place) -> float:
    """Return where a slice lies along the normal (mm); only for one whose header tells."""
    assert place.header.position_mm is not None
    return place.header.position_mm


def _along_normal(place: Place) -> tuple[float, tuple[float, ...], str, int]:
    return _position(place), *_in_time(place)


def _in_time(place: Place) -> tuple[tuple[float, ...], str, int]:
    return place.header.order, place.path, place.header.frame


def _flagged(volume: list[Place]) -> list[Place]:
    """Return the volume with its oddities on each of its slices."""
    oddities = _oddities(volume)
    for place in volume:
        oddities.update(place.header.flags)
    flags = tuple(sorted(oddities))
    return [Place(place.path, replace(place.header, flags=flags)) for place in volume]


def _oddities(volume: list[Place]) -> set[str]:
    """Return the flags of a volume that its slices show together."""
    headers = [place.header for place in volume]
    if len(headers) < 2:
        return set()
    positions = [h.position_mm for h in headers if h.position_mm is not None]
    if len(positions) < len(headers):
        return {"no-position"}
    steps = [b - a for a, b in itertools.pairwise(positions)]
    oddities: set[str] = set()
    if min(steps) < _SAME_MM:
        oddities.add("duplicate-position")
    distances = [step for step in steps if step >= _SAME_MM]
    if distances:
        oddities |= _spacing_oddities(distances)
    for step, (a, b) in zip(steps, itertools.pairwise(headers), strict=True):
        if step >= _SAME_MM and _shift(a, b) > _TILT * step:
            oddities.add("gantry-tilt")
    return oddities


def _spacing_oddities(distances: list[float]) -> set[str]:
    """Return the flags of the distances (mm) between slices that lie at different places."""
    # The low median: where half of the slices are gone, the usual distance is still a single one.
    usual = statistics.median_low(distances)
    oddities = set()
    for distance in distances:
        multiple = max(1, round(distance / usual))
        if abs(distance - multiple * usual) > _UNEQUAL * usual:
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
