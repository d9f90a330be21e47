"""Slices of one kind by where they lie: stacks of those at one position, and copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.io.types import StoredPixels
from pipeline.types import Header

COPY = "copy"
# Positions closer than this are one place (mm), or than this part of the pixels' own distance where
# that is less: slices of a micro-CT lie some micrometres apart.
_SAME_MM = 0.01
_SAME_PIXELS = 0.1
# From this place on in `Header.order`, what an export may give anew: creation, and number.
_EXPORTED = 3
# Positions whose slices are compared by their pixels before the rest is taken to be like them.
_ENOUGH = 5


@dataclass(frozen=True, slots=True)
class Place:
    """A header and the file it stands in."""

    path: str
    header: Header

    @property
    def name(self) -> tuple[str, int]:
        """The slice's address: path and frame."""
        return self.path, self.header.frame

    def flagged(self, flag: str) -> Place:
        """Return the place with one more flag."""
        flags = (*self.header.flags, flag)
        return Place(self.path, replace(self.header, flags=flags))


# A slice -> what its pixels are told by, None where that is not to be had cheaply.
PixelsOf = Callable[[Place], StoredPixels | None]


@dataclass(frozen=True)
class Copies:
    """Slices without their copies, and the copies (flagged) by the name of what they are of."""

    originals: list[Place]
    by_original: dict[tuple[str, int], list[Place]]

    def behind_originals(self, volume: Iterable[Place]) -> list[Place]:
        """Return a volume with each copy behind what it is a copy of."""
        places = []
        for place in volume:
            places.append(place)
            places.extend(self.by_original.get(place.name, ()))
        return places


def copies_of(group: Iterable[Place], pixels_of: PixelsOf | None = None) -> Copies:
    """Tell slices from their copies; the first file's is the original.

    A copy has the SOPInstanceUID of another and all else that its header says of place and time:
    careless anonymisation gives one UID to pictures that differ. Or it has another UID and the
    pixels of a slice from which nothing in its header tells it apart but the numbers and moments
    that a second export gives anew.
    """
    first: dict[object, Place] = {}
    originals: list[Place] = []
    by_original: dict[tuple[str, int], list[Place]] = defaultdict(list)
    for place in group:
        header = place.header
        if header.instance is None:
            originals.append(place)
            continue
        # No SOPInstanceUID is unique within a file, so the frame belongs to it.
        identity = (
            header.instance,
            header.frame,
            header.position_mm,
            header.offset_mm,
            header.labels,
            header.gradient,
            header.order,
        )
        original = first.setdefault(identity, place)
        if original is place:
            originals.append(place)
        else:
            by_original[original.name].append(place.flagged(COPY))
    if pixels_of is not None:
        originals = _without_equal_pixels(originals, by_original, pixels_of)
    return Copies(originals, by_original)


def _without_equal_pixels(
    originals: list[Place], by_original: dict[tuple[str, int], list[Place]], pixels_of: PixelsOf
) -> list[Place]:
    """Move slices with the pixels of another of their place to its copies; return the others.

    Only where that is so at half of the places that come up again: a blank slice is at the ends of
    many a volume, and equal in all of its time points.
    """
    copies: dict[tuple[str, int], Place] = {}
    stacks_with_copies = 0
    stacks_compared = 0
    for places in _alike(originals):
        comparison = _compare(places, pixels_of)
        copies |= comparison.copies
        if comparison.is_telling:
            stacks_compared += 1
            stacks_with_copies += bool(comparison.copies)
        if stacks_compared == _ENOUGH and not stacks_with_copies:
            return originals  # time points without their times: the rest need not be read
    if not stacks_with_copies or 2 * stacks_with_copies < stacks_compared:
        return originals
    remaining = []
    for place in originals:
        original = copies.get(place.name)
        if original is None:
            remaining.append(place)
            continue
        # What is a copy by its UID of a copy by its pixels is one of the original.
        further = by_original.pop(place.name, [])
        by_original[original.name].extend([place.flagged(COPY), *further])
    return remaining


def _alike(originals: list[Place]) -> list[list[Place]]:
    """Return slices that nothing tells apart but what exports give anew, from the middle outwards.

    Only those of files of one frame: the frames of a file are no copies of each other.
    """
    frames = Counter(place.path for place in originals)
    alike: dict[tuple[object, ...], list[Place]] = defaultdict(list)
    for place in originals:
        header = place.header
        if header.instance is None or header.position_mm is None or frames[place.path] > 1:
            continue
        moment = (header.labels, header.gradient, header.order[:_EXPORTED])
        alike[header.position_mm, header.offset_mm, moment].append(place)
    stacks = [places for places in alike.values() if len(places) > 1]
    positions = [position(places[0]) for places in stacks]
    middle = sum(positions) / max(1, len(positions))
    return sorted(stacks, key=lambda places: abs(position(places[0]) - middle))


@dataclass(frozen=True)
class _Comparison:
    """The name of each slice of a place that has the pixels of an earlier one -> that one.

    is_telling: whether two of the slices are no blank ones, which say nothing by themselves.
    """

    copies: dict[tuple[str, int], Place]
    is_telling: bool


def _compare(places: list[Place], pixels_of: PixelsOf) -> _Comparison:
    first: dict[str, Place] = {}
    copies: dict[tuple[str, int], Place] = {}
    pictures = 0
    for place in places:
        pixels = pixels_of(place)
        if pixels is None:
            continue
        pictures += not pixels.is_blank
        original = first.setdefault(pixels.digest, place)
        if original is not place:
            copies[place.name] = original
    return _Comparison(copies, is_telling=pictures > 1)


def same_mm(group: Sequence[Place]) -> float:
    """Return the distance (mm) below which slices of a group lie at one place."""
    spacing = group[0].header.spacing_mm
    return min(_SAME_MM, _SAME_PIXELS * min(spacing)) if spacing else _SAME_MM


def by_position(group: Sequence[Place]) -> list[list[Place]]:
    """Return the slices of each position along the normal, ascending; those of one in time."""
    limit = same_mm(group)
    stacks: list[list[Place]] = []
    for place in sorted(group, key=along_normal):
        # Held against the first of its stack, so that small steps do not add up to one long stack.
        if stacks and position(place) - position(stacks[-1][0]) < limit:
            stacks[-1].append(place)
        else:
            stacks.append([place])
    return [sorted(stack, key=in_time) for stack in stacks]


def position(place: Place) -> float:
    """Return where a slice lies along the normal (mm); only for one whose header tells."""
    assert place.header.position_mm is not None
    return place.header.position_mm


def along_normal(place: Place) -> tuple[object, ...]:
    """Return what sorts slices along the normal, those of one position in time."""
    return position(place), *in_time(place)


def in_time(place: Place) -> tuple[object, ...]:
    """Return what sorts slices in time, as far as their headers tell; then by file."""
    header = place.header
    moments = tuple(-1.0 if moment is None else moment for moment in header.order)
    return *moments, header.frame, place.path
