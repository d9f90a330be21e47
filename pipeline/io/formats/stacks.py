"""Slices of one kind by where they lie: stacks of those at one position, and copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.types import Header

COPY = "copy"
# Positions closer than this are one place (mm), or than this part of the pixels' own distance where
# that is less: slices of a micro-CT lie some micrometres apart.
_SAME_MM = 0.01
_SAME_PIXELS = 0.1
# From this place on in `Header.order`, what an export may give anew: creation, and number.
_EXPORTED = 3


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
PixelsOf = Callable[[Place], str | None]


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
    alike: dict[object, list[Place]] = defaultdict(list)
    for place in originals:
        header = place.header
        if header.instance is not None and header.position_mm is not None:
            known = (header.labels, header.order[:_EXPORTED])
            alike[header.position_mm, header.offset_mm, known].append(place)
    repeated = [places for places in alike.values() if len(places) > 1]
    copies: dict[tuple[str, int], Place] = {}
    places_with_copies = 0
    for places in repeated:
        first: dict[str, Place] = {}
        count_before = len(copies)
        for place in places:
            pixels = pixels_of(place)
            original = first.setdefault(pixels, place) if pixels is not None else place
            if original is not place:
                copies[place.name] = original
        places_with_copies += len(copies) > count_before
    if 2 * places_with_copies < len(repeated):
        return originals
    remaining = []
    for place in originals:
        copied = copies.get(place.name)
        if copied is None:
            remaining.append(place)
        else:
            by_original[copied.name].append(place.flagged(COPY))
            by_original[copied.name].extend(by_original.pop(place.name, ()))
    return remaining


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
