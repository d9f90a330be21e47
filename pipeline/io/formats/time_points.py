"""Slices of one kind, of which several lie at one position, to volumes: time points and passes.

Labels come first (see `pipeline.types.Header`): what the header says of the slices of one place
that they do not share. Then the order in time, where it runs through the positions without a
doubt. Where nothing tells, the slices stay together, flagged: none is dealt out by guess.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.io.formats.stacks import Place, along_normal, by_position, in_time

TIME_POINTS_UNCLEAR = "time-points-unclear"

Stacks = list[list[Place]]
# A slice -> what it is labelled by, or when it was.
Value = Callable[[Place], float | None]

# How many labels, from the first on, tell time points and passes by themselves, though only few
# positions come up twice: the temporal position and the number of the acquisition. Others, such as
# a kernel, may change within one volume, and a slice that is there twice is no second volume then.
_PASSES = 2
# b-values (s/mm2) and directions (a chord of a third of a degree) that are one.
_SAME_B = 0.5
_SAME_DIRECTION = 0.006
# Places in `Header.order`.
_TRIGGER = 1
_ACQUIRED = 2
_CREATED = 3
_INSTANCE = 4


def time_points(group: list[Place]) -> list[list[Place]]:
    """Return slices of one kind as volumes, the first in time first; each along the normal.

    A place that comes up twice in a volume of otherwise single slices is a duplicate and no second
    time point. Where a position is missing, all are one volume, in the order of time.
    """
    if any(place.header.position_mm is None for place in group):
        return [sorted(group, key=in_time)]
    stacks = by_position(group)
    if all(len(stack) == 1 for stack in stacks):
        return [[stack[0] for stack in stacks]]
    for value in _values(group):
        parts = _parts(stacks, value)
        if parts:
            volumes = []
            for part in sorted(parts, key=_begin):
                volumes.extend(time_points(part))
            return volumes
    # No value of a header tells them apart: what is left is when each was taken.
    together = sorted(group, key=along_normal)
    if not _repeats(stacks):
        return [together]
    # What is surest first: a time of the heart, of the scanner, then of the file, then its number.
    for layers in (
        _ranks(stacks, _TRIGGER),
        _ranks(stacks, _ACQUIRED),
        _runs(stacks, _CREATED),
        _runs(stacks, _INSTANCE),
        _sweeps(stacks, _ACQUIRED),
        _sweeps(stacks, _INSTANCE),
    ):
        if layers:
            return layers
    return [[place.flagged(TIME_POINTS_UNCLEAR) for place in together]]


def _begin(part: list[Place]) -> tuple[object, ...]:
    """Return what sorts volumes in time: of the slices of each, the first."""
    return min(map(_as_volume, part))


def _as_volume(place: Place) -> tuple[object, ...]:
    """Return what sorts slices of several volumes in time.

    The number of the acquisition comes behind all that has an order in time, for series whose
    numbers begin anew in each.
    """
    header = place.header
    values = [*header.order, *header.labels[1:_PASSES]]
    numbers = [-1.0 if value is None else value for value in values]
    return *numbers, *in_time(place)


def _repeats(stacks: Stacks) -> bool:
    """Return whether at least half of the positions come up more than once."""
    repeated = [stack for stack in stacks if len(stack) > 1]
    return 2 * len(repeated) >= len(stacks)


# --- by labels --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Label:
    """A label of slices, by its number in their headers."""

    number: int

    def __call__(self, place: Place) -> float | None:
        return place.header.labels[self.number]


@dataclass(frozen=True, slots=True)
class _Clock:
    """A moment of slices, by its number in their headers."""

    number: int

    def __call__(self, place: Place) -> float | None:
        return place.header.order[self.number]


def _values(group: list[Place]) -> list[Value]:
    """Return what may tell slices apart, the plainest first."""
    count = min(len(place.header.labels) for place in group)
    values: list[Value] = [_Label(number) for number in range(count)]
    values.insert(_PASSES, _gradients(group))
    if all(len(place.header.order) > _ACQUIRED for place in group):
        # Of all slices of a time point, where they were taken at once.
        values.append(_Clock(_ACQUIRED))
    return values


def _gradients(group: list[Place]) -> Value:
    """Return what numbers slices by their b-value and direction, alike ones by one number.

    Writers differ in the last digits from slice to slice, and whatever digits are rounded to has an
    edge.
    """
    kinds: list[tuple[float, ...]] = []
    numbers: dict[tuple[float, ...], float | None] = {(): None}
    for place in group:
        gradient = place.header.gradient
        if gradient in numbers:
            continue
        alike = (n for n, kind in enumerate(kinds) if _same_gradient(kind, gradient))
        number = next(alike, len(kinds))
        if number == len(kinds):
            kinds.append(gradient)
        numbers[gradient] = float(number)
    return lambda place: numbers[place.header.gradient]


def _same_gradient(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether b-values and directions are one."""
    if len(a) != len(b) or abs(a[0] - b[0]) > _SAME_B:
        return False
    return math.dist(a[1:], b[1:]) < _SAME_DIRECTION


def _parts(stacks: Stacks, value: Value) -> list[list[Place]]:
    """Return the slices of each value, where that tells the slices of one position apart."""
    parts: dict[float | None, list[Place]] = defaultdict(list)
    for stack in stacks:
        for place in stack:
            parts[value(place)].append(place)
    if len(parts) < 2:
        return []
    if not (_is_even(stacks, value) or _is_telling(stacks, value, len(parts))):
        return []
    return list(parts.values())


def _is_even(stacks: Stacks, value: Value) -> bool:
    """Return whether each position has each value equally often: directions, b0 several times."""
    first = Counter(map(value, stacks[0]))
    return all(Counter(map(value, stack)) == first for stack in stacks)


def _is_telling(stacks: Stacks, value: Value, count: int) -> bool:
    """Return whether no position has one of the values twice, and the values are of volumes.

    As passes that overlap in part, or one that was aborted.
    """
    is_pass = isinstance(value, _Label) and value.number < _PASSES
    if not is_pass and not _repeats(stacks):
        return False
    # A number that runs from slice to slice names no volume.
    deepest = max(map(len, stacks))
    if count >= 2 * deepest:
        return False
    return all(len(set(map(value, stack))) == len(stack) for stack in stacks)


# --- by the order in time ---------------------------------------------------------------------


class _Moment(NamedTuple):
    """When a slice of a stack came, and as which of its stack."""

    when: tuple[float, int]
    rank: int
    stack: int
    place: Place


def _moments(stacks: Stacks, clock: int) -> list[_Moment]:
    """Return all slices in time; none where a clock does not tell those of a position apart."""
    moments = []
    for number, stack in enumerate(stacks):
        dated = []
        for place in stack:
            order = place.header.order
            when = order[clock] if clock < len(order) else None
            if when is None and clock != _INSTANCE:
                return []
            # Frames of one file share its number, and follow each other.
            frame = place.header.frame if clock == _INSTANCE else 0
            dated.append(((when or 0.0, frame), place))
        dated.sort(key=lambda pair: pair[0])
        if len({moment for moment, _ in dated}) < len(dated):
            return []
        for rank, (moment, place) in enumerate(dated):
            moments.append(_Moment(moment, rank, number, place))
    return sorted(moments, key=lambda moment: moment[:3])


def _ranks(stacks: Stacks, clock: int) -> list[list[Place]]:
    """Return the first slices of all positions, then the second ones, etc.; none where unclear."""
    depth = len(stacks[0])
    if any(len(stack) != depth for stack in stacks):
        return []
    layers: list[list[Place]] = [[] for _ in range(depth)]
    for moment in _moments(stacks, clock):
        layers[moment.rank].append(moment.place)
    if not layers[0]:
        return []
    return [sorted(layer, key=along_normal) for layer in layers]


def _runs(stacks: Stacks, clock: int) -> list[list[Place]]:
    """Return `_ranks` by a clock that tells when pictures were made, which need not be in order.

    It is believed where it runs through all positions for each time point, or through all time
    points for each position, or does so package by package; a number also runs through the
    positions of each in one order.
    """
    rank = 0
    begun: Counter[int] = Counter()
    unfinished: set[int] = set()
    moments = _moments(stacks, clock)
    if clock == _INSTANCE and not _in_one_order(_by_rank(moments)):
        return []
    for moment in moments:
        if moment.rank < rank:
            return []
        rank = moment.rank
        begun[moment.stack] += 1
        unfinished.add(moment.stack)
        if begun[moment.stack] == len(stacks[moment.stack]):
            unfinished.remove(moment.stack)
        if not unfinished:
            rank = 0
    return _ranks(stacks, clock)


def _sweeps(stacks: Stacks, clock: int) -> list[list[Place]]:
    """Return sweeps through the positions, where a slice is missing or a pass was aborted.

    A sweep ends where a position comes up again. None where there are more of them than any
    position has slices, more than one has fewer than half of the positions, or two go through them
    in different orders: they are no sweeps then.
    """
    sweeps: list[list[_Moment]] = []
    passed: set[int] = set()
    for moment in _moments(stacks, clock):
        if not sweeps or moment.stack in passed:
            sweeps.append([])
            passed = set()
        sweeps[-1].append(moment)
        passed.add(moment.stack)
    short = [sweep for sweep in sweeps if 2 * len(sweep) < len(stacks)]
    too_many = len(sweeps) > max(map(len, stacks))
    if too_many or len(short) > 1 or not _in_one_order(sweeps):
        return []
    return [sorted((moment.place for moment in sweep), key=along_normal) for sweep in sweeps]


def _by_rank(moments: list[_Moment]) -> list[list[_Moment]]:
    """Return the first of each position in time, then the second of each, etc."""
    layers: dict[int, list[_Moment]] = defaultdict(list)
    for moment in moments:
        layers[moment.rank].append(moment)
    return list(layers.values())


def _in_one_order(sweeps: list[list[_Moment]]) -> bool:
    """Return whether all go through the positions that they share with the longest in its order."""
    longest = max(sweeps, key=len, default=[])
    order = {moment.stack: number for number, moment in enumerate(longest)}
    for sweep in sweeps:
        shared = [order[moment.stack] for moment in sweep if moment.stack in order]
        if shared != sorted(shared):
            return False
    return True
