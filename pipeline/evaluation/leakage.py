"""Copies of an image on two sides of a split: of equal pixels, or of features all but equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.data import SplitChoice
from stores.errors import LabelError

EXAMPLES = 3
# Copies that a message lists.
MOST_LISTED = 1000
# Units are all but copies where they are nearer than this share of what is usual: of the distance
# to the fifth nearest, theirs and everybody's. Of real X-rays, by an untrained network, images
# encoded again stand at 0.01 to 0.1, different images at 0.2 and above (benchmarks/xrays.py); among
# features that spread in ten directions, chance brings one query in ten million so near.
NEAR = 0.15
FEW = 5
# Distances are looked at in so many directions, drawn at random: to about a tenth.
DIRECTIONS = 64
SEED = 0

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
# Of the pixels of slices (m, 32); zero where unknown.
Digests = NDArray[np.uint8]


# --- equal pixels --------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualPixels:
    """Units that are, for the most part, copied on another side, and the rows of equal pixels.

    units (k,): by number; images: the rows of each image that such a unit shares.
    """

    units: Rows
    images: tuple[Rows, ...]

    def without_units(self) -> EqualPixels:
        """Return none, as where copies are allowed."""
        return EqualPixels(self.units[:0], ())


def equal_pixels(digests: Digests, units: Units, side: Rows) -> EqualPixels:
    """Return the units on one side that are, for the most part, copied on another.

    digests (m, 32): of the pixels of units.rows; side (n,): of each unit, -1 for none. For the most
    part: series share blank slices and are no copies for that.
    """
    is_copied = _copied_across(digests, side[units.unit])
    n = len(units.ids)
    copied = np.bincount(units.unit, weights=is_copied, minlength=n)
    slices = np.bincount(units.unit, minlength=n)
    leaked = np.flatnonzero(copied > slices / 2)
    of_leaked = np.flatnonzero(is_copied & np.isin(units.unit, leaked))
    return EqualPixels(leaked, tuple(_rows_by_image(digests, units.rows, of_leaked)))


def _rows_by_image(digests: Digests, rows: Rows, places: Rows) -> list[Rows]:
    """Return for each image at some places the rows (of all) that have its pixels."""
    wanted = {digests[place].tobytes(): None for place in places}
    by_image: dict[bytes, list[int]] = {image: [] for image in wanted}
    for place in np.flatnonzero(digests.any(axis=1)):
        image = digests[place].tobytes()
        if image in by_image:
            by_image[image].append(int(rows[place]))
    return [np.array(each, np.int64) for each in by_image.values()]


def _copied_across(digests: Digests, side: Rows) -> NDArray[np.bool_]:
    """Return (m,) which slices have the pixels of one on another side; side (m,): -1 for none."""
    counts = digests.any(axis=1) & (side >= 0)
    # A digest as one value of 32 bytes, which `unique` compares as a whole.
    pixels = np.ascontiguousarray(digests[counts]).view("V32").ravel()
    _, image = np.unique(pixels, return_inverse=True)
    lowest = np.full(len(pixels), side.max(initial=-1) + 1)
    highest = np.full(len(pixels), -1)
    np.minimum.at(lowest, image, side[counts])
    np.maximum.at(highest, image, side[counts])
    copied = np.zeros(len(digests), bool)
    copied[counts] = (lowest < highest)[image]
    return copied


# --- nearly equal features -----------------------------------------------------------------


@dataclass(frozen=True)
class NearCopy:
    """Two units on two sides of a split, by number, and how near: 1 is what is usual."""

    first: int
    second: int
    share: float


def near_copies(
    features: Iterable[Floats],
    digests: Digests,
    units: Units,
    side: Rows,
) -> list[NearCopy]:
    """Return the units (n,) that are all but copies of one on another side, the nearest first.

    features: of all units in order, some (b, d) at a time; digests, side: as `equal_pixels` has
    them, which answers for units of equal pixels. An image in more than five versions hides itself.
    """
    return _near_copies(_sketch(features), digests, units, side)


def _near_copies(sketch: Floats, digests: Digests, units: Units, side: Rows) -> list[NearCopy]:
    """Return what `near_copies` does, by the units' sketch (n, d)."""
    pairs = _nearest_across(sketch, side)
    if pairs is None:
        return []
    few = pairs.to_few
    # Near among the dense is nothing: theirs counts, where it is less than everybody's.
    usual = np.minimum(few, np.median(few))
    share = np.divide(
        pairs.to_nearest,
        usual,
        out=np.ones_like(usual),
        where=usual > 0,
    )
    pixels = _pixels_of_units(digests, units)
    ours = pixels[pairs.query]
    is_other_image = (ours != pixels[pairs.nearest]) | (ours == 0)
    near = np.flatnonzero((share < NEAR) & is_other_image)
    nearest_first = near[np.argsort(share[near], kind="stable")]
    return [
        NearCopy(
            int(pairs.query[i]),
            int(pairs.nearest[i]),
            float(share[i]),
        )
        for i in nearest_first
    ]


@dataclass(frozen=True)
class _Pairs:
    """Units (q,) and the nearest of each on another side, with the distances to it and to a few.

    to_few: the distance to the FEW-th nearest, or to the last where there are not so many.
    """

    query: Rows
    nearest: Rows
    to_nearest: Floats
    to_few: Floats


def _nearest_across(sketch: Floats, side: Rows) -> _Pairs | None:
    """Return the nearest of each unit among those on larger sides; None for one side alone.

    So every pair of sides is looked at once, and the largest is looked into alone.
    """
    from pipeline.evaluation.neighbours import nearest_by_distance

    sides, sizes = np.unique(side[side >= 0], return_counts=True)
    smallest_first = sides[np.argsort(sizes, kind="stable")]
    each: list[_Pairs] = []
    for i, smaller in enumerate(smallest_first[:-1]):
        query = np.flatnonzero(side == smaller)
        others = np.flatnonzero(np.isin(side, smallest_first[i + 1 :]))
        few = min(FEW, len(others))
        distance, nearest = nearest_by_distance(sketch, others, query, few)
        each.append(_Pairs(query, nearest[:, 0], distance[:, 0], distance[:, -1]))
    if not each:
        return None
    return _Pairs(
        query=np.concatenate([pairs.query for pairs in each]),
        nearest=np.concatenate([pairs.nearest for pairs in each]),
        to_nearest=np.concatenate([pairs.to_nearest for pairs in each]),
        to_few=np.concatenate([pairs.to_few for pairs in each]),
    )


def _sketch(features: Iterable[Floats]) -> Floats:
    """Return features (n, d), or where d is more than DIRECTIONS so many projections of them.

    Distances stay what they are to about a tenth (Johnson and Lindenstrauss, 1984).
    """
    sketch: list[Floats] = []
    centre: Floats | None = None
    onto: Floats | None = None
    for x in features:
        if centre is None:
            centre = x.mean(axis=0)  # far from the origin, float32 would be rounded
            onto = _random_directions(x.shape[1])
        centred = x - centre
        sketch.append(centred if onto is None else centred @ onto)
    return np.concatenate(sketch)


def _random_directions(d: int) -> Floats | None:
    """Return (d, DIRECTIONS) to project on; None where there are no more than that."""
    if d <= DIRECTIONS:
        return None
    return np.random.default_rng(SEED).standard_normal((d, DIRECTIONS), np.float32)


def _pixels_of_units(digests: Digests, units: Units) -> NDArray[np.uint64]:
    """Return (n,) a number for the pixels of all of a unit's slices; 0 where they are unknown."""
    total = np.zeros(len(units.ids), np.uint64)
    of_slices = np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
    np.add.at(total, units.unit, of_slices)
    return total


def describe_equal_pixels(equal: EqualPixels) -> str:
    """Return a sentence on copies, which names the first by the rows of their slices."""
    return (
        f"{len(equal.units)} units have the pixels of units on another side of the split, for "
        f"example rows {equal.images[0][:EXAMPLES].tolist()} of the slice table"
    )


def describe_near_copies(near: list[NearCopy], units: Units) -> str:
    """Return a sentence on near copies, which names the nearest by the rows of their slices."""
    examples = [_rows_of(pair, units) for pair in near[:EXAMPLES]]
    # Of a volume it is the whole that is nearly equal, not the slice that names it.
    firsts = ", each the first of its unit" if len(units.rows) > len(units.ids) else ""
    return (
        f"{len(near)} units are all but copies of units on another side of the split, by features "
        f"nearer than {NEAR} of what is usual, for example {', '.join(examples)} of the slice "
        f"table{firsts}"
    )


def _rows_of(pair: NearCopy, units: Units) -> str:
    """Return which slices two units are, by the row of the first of each."""
    first, second = _first_rows(pair, units)
    return f"rows {first} and {second} ({pair.share:.2f})"


def _first_rows(pair: NearCopy, units: Units) -> tuple[int, int]:
    first = units.rows[units.unit == pair.first][0]
    second = units.rows[units.unit == pair.second][0]
    return int(first), int(second)


# --- all copies together -------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """What stands on two sides of a split: equal pixels, and pairs that are all but equal."""

    equal: EqualPixels
    near: list[NearCopy]


@dataclass(frozen=True)
class CopySearch:
    """What tells the images of some units apart, read once for all ways to divide them.

    sketch (n, d): of each unit's features, as distances need them.
    """

    units: Units
    digests: Digests
    sketch: Floats

    @classmethod
    def of(cls, units: Units, digests: Digests, features: Iterable[Floats]) -> CopySearch:
        """Take up features of all units in order, some (b, d) at a time; digests (m, 32)."""
        return cls(units, digests, _sketch(features))

    def across(self, side: Rows) -> Copies:
        """Return the copies that stand on two sides; side (n,): of each unit, -1 for none."""
        return Copies(
            equal_pixels(self.digests, self.units, side),
            _near_copies(self.sketch, self.digests, self.units, side),
        )


@dataclass(frozen=True)
class WaysOut:
    """What whoever asks can do about copies on two sides.

    split: as the config has it. is_filed: whether the split is on file, where patients stay.
    same_patient: how slices are said to be of one patient; without: how copies are left out.
    """

    split: SplitChoice
    is_filed: bool
    same_patient: str
    without: str

    def text(self, copies: Copies) -> str:
        """Return them in sentences, those alone that help with such copies."""
        ways = [self.without]
        if self.split.group == "duplicates":
            # Only those whom an earlier split has parted already are refused.
            ways.append("delete the split file to deal all patients anew, copies on one side")
        elif self.split.deals:
            anew = ", which deals all patients anew," if self.is_filed else ""
            ways.append(
                f'set split.group: "duplicates"{anew} to keep whoever has copies on one side'
            )
        ways.append(f"accept them by split.allow: [{', '.join(self._allowing(copies))}]")
        return (
            "Look at them (`radprobe slices` says which files they are, where the store hides "
            f"paths). Those that are of one patient need {self.same_patient}. Else "
            f"{', or '.join(ways)}."
        )

    def _allowing(self, copies: Copies) -> list[str]:
        """Return what split.allow has, and what it must have too."""
        allow = [f'"{each}"' for each in self.split.allow]
        if len(copies.equal.units):
            allow.append('"duplicates"')
        if copies.near:
            allow.append('"near-duplicates"')
        return allow


def refuse_copies(
    copies: Copies, units: Units, ways_out: WaysOut, named: Callable[[int], str]
) -> None:
    """Raise LabelError where there are copies, which lists all of them.

    named: a row, as messages may name it.
    """
    sentences = []
    lines = []
    if len(copies.equal.units):
        sentences.append(f"{describe_equal_pixels(copies.equal)}: scores would be leaked.")
        lines += [_line("equal pixels", rows.tolist(), named) for rows in copies.equal.images]
    if copies.near:
        sentences.append(f"{describe_near_copies(copies.near, units)}: scores would be leaked.")
        for pair in copies.near:
            lines.append(_line("all but equal", _first_rows(pair, units), named))
    if sentences:
        raise LabelError(" ".join([*sentences, ways_out.text(copies)]) + "\n" + _listed(lines))


def _line(what: str, rows: Iterable[int], named: Callable[[int], str]) -> str:
    return f"  {what}: {', '.join(map(named, rows))}"


def _listed(lines: Sequence[str]) -> str:
    """Return the lines of all copies, and of very many how many more there are."""
    more = len(lines) - MOST_LISTED
    rest = [f"  and {more} more"] if more > 0 else []
    return "\n".join([*lines[:MOST_LISTED], *rest])


# --- patients who have copies of an image between them ---------------------------------------


@dataclass
class Links:
    """Which patients must stand on one side, as their units turn out to be copies of each other."""

    units: Units
    # By patient: another one of the same link, or himself.
    _leader: dict[str, str] = field(default_factory=dict)

    def names_of(self, groups: NDArray[np.str_]) -> NDArray[np.str_]:
        """Return (n,) what the patients of one link have in common: the name of one of them.

        groups: the patient of each unit, of these or of others in the same images.
        """
        patients, patient = np.unique(groups, return_inverse=True)
        leaders = np.array([self._leader_of(name) for name in patients.tolist()])
        return leaders[patient]

    def add(self, copies: Copies) -> bool:
        """Link the patients of copies; return whether any were not linked before."""
        groups = self.units.groups
        pairs = _patients_who_share(copies.equal, self.units)
        pairs += [(str(groups[pair.first]), str(groups[pair.second])) for pair in copies.near]
        is_new = False
        for one, other in pairs:
            first = self._leader_of(one)
            second = self._leader_of(other)
            is_new |= first != second
            # The first in order leads, whichever pair came first.
            self._leader[max(first, second)] = min(first, second)
        return is_new

    def _leader_of(self, patient: str) -> str:
        while self._leader.get(patient, patient) != patient:
            patient = self._leader[patient]
        return patient


def _patients_who_share(equal: EqualPixels, units: Units) -> list[tuple[str, str]]:
    """Return for each copied unit its patient and the other who has most of its pixels.

    Not all who have any: a blank slice is in many series.
    """
    groups = units.groups.tolist()
    patient_of_row = dict(zip(units.rows.tolist(), units.groups[units.unit].tolist(), strict=True))
    unit_of_row = dict(zip(units.rows.tolist(), units.unit.tolist(), strict=True))
    shared: dict[int, Counter[str]] = {number: Counter() for number in equal.units.tolist()}
    for rows in equal.images:
        patients = {patient_of_row[row] for row in rows.tolist()}
        for row in rows.tolist():
            if unit_of_row[row] in shared:
                shared[unit_of_row[row]].update(patients - {patient_of_row[row]})
    pairs = []
    for number, others in shared.items():
        if others:
            most = max(others.values())
            other = min(name for name, times in others.items() if times == most)
            pairs.append((groups[number], other))
    return pairs
