"""Which patient stands on which side: spread by label, by site, by date, or as a list says.

Where chance decides, it is a keyed hash of the patient: neither the order of rows nor how a store
grew matters, and another patient moves nobody of a split on file. Who a patient is, `keys` (n,)
say: a text of each unit that is the same in every store of a collection, as pseudonyms are not.
Every function returns the p patients and a side (p,) for each. Dims: n units, p patients, c classes
or labels.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth, Units
from pipeline.config.data import SplitKind
from stores.errors import LabelError

Names = NDArray[np.str_]
Sides = NDArray[np.int64]
Floats = NDArray[np.float64]

TRAIN = 0
VAL = 1
TEST = 2
SIDES = ("train", "val", "test")
DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})(?:[ T]\d{2}:\d{2}.*)?", re.ASCII)


# --- chance --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Patients:
    """The p patients of some units, by name, and what stands for each in every store.

    first_key (p,): the first of the keys of a patient's units; patient (n,): of each unit.
    """

    names: Names
    first_key: Names
    patient: NDArray[np.int64]

    @classmethod
    def of(cls, units: Truth, keys: Names | None) -> _Patients:
        names, patient = np.unique(units.groups, return_inverse=True)
        if keys is None:
            return cls(names, names, patient)
        by_key = np.argsort(keys, kind="stable")
        # The first place of each patient, once the units stand in the order of their keys.
        _, first = np.unique(patient[by_key], return_index=True)
        return cls(names, keys[by_key[first]], patient)

    def chances(self, seed: int) -> Floats:
        """Return (p,) a number in [0, 1) for each patient, evenly spread: a hash by the seed."""
        return np.array([_chance(seed, key) for key in self.first_key.tolist()])


def _chance(seed: int, key: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{key}".encode(errors="surrogatepass")).digest()
    # 53 bits are what a float holds.
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


# --- by label ------------------------------------------------------------------------------


def folds_by_label(
    units: Truth,
    folds: int,
    seed: int,
    keys: Names | None = None,
    *,
    alone: bool = False,
) -> tuple[Names, Sides]:
    """Return patients and their folds: each by the hash of the patient, spread over the labels.

    Patients are stratified by the rarest label that they carry. Of a stratum each fold has between
    half of its share and one and a half, at least one patient: where the hashes give it less or
    more, some change folds. Strata of fewer patients than folds are dealt one by one, rarest first:
    to the last fold, then the first, the second, and so on. alone: by the hash and nothing else, as
    patients are added to folds that stand.
    """
    patients = _Patients.of(units, keys)
    chance = patients.chances(seed)
    fold = np.floor(chance * folds).astype(np.int64)
    if alone:
        return patients.names, fold
    # By the rarest of several labels: the common ones spread by themselves.
    stratum = _rarest_label(units, patients)
    sizes = np.bincount(stratum)
    for number in np.flatnonzero(sizes >= folds):
        members = np.flatnonzero(stratum == number)
        fold[members] = _evened(chance[members] * folds, folds)
    # Of so few, hashes could leave a fold without one for every seed.
    small = np.flatnonzero(sizes[stratum] < folds)
    rarest_first = small[np.lexsort((chance[small], stratum[small]))]
    fold[rarest_first] = (np.arange(len(small)) - 1) % folds
    return patients.names, fold


def _rarest_label(units: Truth, patients: _Patients) -> Sides:
    """Return (p,) a stratum for each patient: the rarest class or label carried, 0 the rarest.

    Of a number, the quarter; after the last label, those who carry none.
    """
    strata = units.strata
    carries = np.zeros((len(patients.names), strata.shape[1] + 1), bool)
    np.logical_or.at(carries[:, :-1], patients.patient, strata)
    carries[:, -1] = True
    rarest_first = np.argsort(carries[:, :-1].sum(axis=0), kind="stable")
    in_order = carries[:, [*rarest_first, -1]]
    return np.asarray(in_order.argmax(axis=1))


def _evened(place: Floats, folds: int) -> Sides:
    """Return the folds (m,) of a stratum's patients, each with half to one and a half of its share.

    place (m,): in [0, folds), whose whole part is a patient's fold. There are m >= folds.
    """
    fold = np.floor(place).astype(np.int64)
    share = len(place) / folds
    fewest = max(1, int(np.ceil(share / 2)))
    most = max(fewest + 1, int(share * 1.5))
    # Who changes folds depends on what is left of the hash, which says nothing of the fold.
    order = place - fold
    while True:
        sizes = np.bincount(fold, minlength=folds)
        largest = int(sizes.argmax())
        smallest = int(sizes.argmin())
        if sizes[smallest] >= fewest and sizes[largest] <= most:
            return fold
        members = np.flatnonzero(fold == largest)
        fold[members[order[members].argmin()]] = smallest


# --- by site -------------------------------------------------------------------------------


def sides_by_site(
    units: Truth,
    sites: Names,
    folds: int,
    seed: int,
) -> tuple[Names, Sides]:
    """Return patients and their sides, no site (n,) on two of them.

    The largest sites go first, each to the side that lacks most of its share: 1 / folds of the
    patients for val and for test, the rest for train. Raises LabelError for fewer than three
    sites, a patient at two, and one whose site nobody knows: it may be one that tests.
    """
    patients, site_of_patient = _site_of_each(units.groups, sites)
    names, site, sizes = np.unique(
        site_of_patient,
        return_inverse=True,
        return_counts=True,
    )
    if len(names) < len(SIDES):
        raise LabelError(
            f"A split by site must have at least three sites. Got {len(names)} instead; choose "
            "another column, or a split of kind holdout."
        )
    # Shuffled first, so that the seed decides between sites of one size.
    shuffled = np.random.default_rng(seed).permutation(len(names))
    largest_first = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    shares = len(patients) * np.array([folds - 2, 1, 1]) / folds
    side_of_site = _fill_sides(largest_first, sizes, shares)
    return patients, side_of_site[site]


def _site_of_each(groups: Names, sites: Names) -> tuple[Names, Names]:
    """Return the patients and the site of each. Raises LabelError where one has none, or two."""
    nowhere = np.unique(groups[sites == ""])
    if len(nowhere):
        raise LabelError(
            f"In a split by site, each patient must have a site. {len(nowhere)} of "
            f"{len(np.unique(groups))} have images of none: they may be of a site that tests. Fill "
            "in the column that split.column names, or take their labels away."
        )
    return _one_value_each(groups, sites, "site")


def _fill_sides(
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> Sides:
    """Return a side for each site, taken in `order`; shares (3,): patients that each side is due.

    sizes: the patients of each site.
    """
    side = np.empty(len(order), np.int64)
    lacking = shares.copy()
    empty = {TRAIN, VAL, TEST}
    for placed, site in enumerate(order):
        # The last sites go to the sides that have none: no side may stay empty.
        must_fill = len(order) - placed == len(empty)
        open_sides = sorted(empty) if must_fill else [TRAIN, VAL, TEST]
        chosen = max(open_sides, key=lambda each: lacking[each])
        side[site] = chosen
        lacking[chosen] -= sizes[site]
        empty.discard(chosen)
    return side


# --- by date -------------------------------------------------------------------------------


def sides_by_date(
    units: Truth,
    dates: Names,
    folds: int,
    keys: Names | None = None,
) -> tuple[Names, Sides]:
    """Return patients and their sides, the last 1 / folds of them for test, those before for val.

    A patient's date is the last of his units', so that nothing is fitted on what came after the
    first test patient's last. Raises LabelError for a date that is not YYYY-MM-DD or YYYYMMDD, with
    a time of day behind it or none, and where more patients are of one day than val and test have.
    """
    patients = _Patients.of(units, keys)
    last_day = _last_days(patients, dates)
    # Of one day, by the hash: neither the order of rows nor that of pseudonyms may matter.
    latest_first = np.lexsort((patients.chances(0), last_day))[::-1]
    share = max(1, len(last_day) // folds)
    side = np.full(len(last_day), TRAIN)
    side[latest_first[:share]] = TEST
    side[latest_first[share : 2 * share]] = VAL
    _refuse_one_day(last_day, side)
    return patients.names, side


def _refuse_one_day(last_day: Sides, side: Sides) -> None:
    """Raise LabelError where some patients train, and others test, of one and the same last day."""
    first_tested = last_day[side == TEST].min()
    if last_day[side == TRAIN].max() < first_tested:
        return
    of_day = int((last_day == first_tested).sum())
    raise LabelError(
        f"In a split by date, train must come before test. {of_day} of {len(last_day)} patients "
        "have the same last day, so that chance would say who of them tests. Name a column with "
        "the date of each in split.column, or choose a split of kind holdout."
    )


def _last_days(patients: _Patients, dates: Names) -> Sides:
    """Return (p,) the last day of each patient, as a number YYYYMMDD. Raises LabelError."""
    last_day = np.zeros(len(patients.names), np.int64)
    np.maximum.at(last_day, patients.patient, _sortable_days(dates))
    return last_day


def _sortable_days(dates: Names) -> NDArray[np.int64]:
    """Return dates as numbers YYYYMMDD. Raises LabelError for what is no day of the calendar."""
    day_of = {date: _day(date) for date in set(dates.tolist())}
    days = np.array([day_of[date] for date in dates.tolist()], np.int64)
    is_other = days == _NO_DATE
    if is_other.any():
        raise LabelError(
            f"A date must be YYYY-MM-DD or YYYYMMDD. Got something else instead for "
            f"{is_other.sum()} of {len(dates)} units; correct the column that "
            "split.column names. Days such as 31.12.2024 need `dates: day.month.year` in labels."
        )
    is_none = days == _NO_DAY
    if is_none.any():
        raise LabelError(
            f"A date must be a day of the calendar. {is_none.sum()} of {len(dates)} units have "
            "one that is none, such as a thirteenth month or the 30th of February. Correct the "
            "column that split.column names: days and months may be the wrong way round."
        )
    return days


# Of what is written in no way in which dates are, and of what is, but is no day.
_NO_DATE = -1
_NO_DAY = -2


def _day(date: str) -> int:
    """Return a date as a number YYYYMMDD."""
    written = DATE.fullmatch(date)
    if written is None:
        return _NO_DATE
    year, month, day = map(int, written.groups())
    try:
        datetime.date(year, month, day)
    except ValueError:
        return _NO_DAY
    return year * 10_000 + month * 100 + day


# --- by a list -----------------------------------------------------------------------------


def sides_by_list(
    units: Truth,
    parts: Names,
    folds: int,
    seed: int,
    keys: Names | None = None,
) -> tuple[Names, Sides]:
    """Return the listed patients and their sides; parts (n,): "" for a unit that is not listed.

    Where the list has no val, 1 / folds of the train patients are taken for it. Raises LabelError
    for a patient in two parts.
    """
    is_listed = parts != ""
    patients, part = _one_value_each(
        units.groups[is_listed],
        parts[is_listed],
        "part of the split list",
    )
    side = np.array([SIDES.index(name) for name in part.tolist()], np.int64)
    if not (side == VAL).any():
        in_train = np.isin(units.groups, patients[side == TRAIN])
        train_keys = None if keys is None else keys[in_train]
        train_patients, fold = folds_by_label(units.at(in_train), folds, seed, train_keys)
        side[np.isin(patients, train_patients[fold == 0])] = VAL
    return patients, side


# --- whether sides still are what a column says ---------------------------------------------


def torn_by_site(units: Truth, sites: Names, side: Sides) -> tuple[Names, Names]:
    """Return the sites that stand on two sides, and the patients who are not where most are.

    side (n,): of each unit, -1 where the split leaves its patient out. Raises LabelError for a
    patient at two sites, or at none.
    """
    counts = side >= 0
    patients, site_of_patient = _site_of_each(units.groups[counts], sites[counts])
    _, first = np.unique(units.groups[counts], return_index=True)
    side_of_patient = side[counts][first]
    moved = np.zeros(len(patients), bool)
    torn: list[str] = []
    for site in np.unique(site_of_patient):
        members = site_of_patient == site
        sizes = np.bincount(side_of_patient[members])
        if np.count_nonzero(sizes) > 1:
            torn.append(str(site))
            moved |= members & (side_of_patient != sizes.argmax())
    return np.array(torn, np.str_), patients[moved]


def torn_by_date(units: Truth, dates: Names, side: Sides) -> Names:
    """Return the patients whose last day is on another side of what is fitted, and tested on.

    side (n,): TRAIN, VAL or TEST of each unit, -1 where the split leaves its patient out. Those are
    the fewest without whom train comes before val, and val before test. Raises LabelError for a
    date that is none.
    """
    counts = side >= 0
    patients = _Patients.of(units.at(counts), None)
    last_day = _last_days(patients, dates[counts])
    _, first = np.unique(units.groups[counts], return_index=True)
    # By day, and of one day in the order of the sides, which is as good as any.
    side_of_patient = side[counts][first]
    in_order = np.lexsort((side_of_patient, last_day))
    stays = _longest_ascending(side_of_patient[in_order])
    return np.sort(patients.names[in_order[~stays]])


def _longest_ascending(numbers: Sides) -> NDArray[np.bool_]:
    """Return (p,) which of some numbers make up their longest run that never falls.

    The numbers are TRAIN, VAL and TEST: the run is all of TRAIN before one place, all of VAL
    between it and another, and all of TEST after that.
    """
    best = {TRAIN: 0, VAL: 0, TEST: 0}
    before: list[tuple[int, ...]] = []
    for number in numbers.tolist():
        source = max(range(number + 1), key=lambda each: best[each])
        before.append((number, source))
        best[number] = best[source] + 1
    stays = np.zeros(len(numbers), bool)
    last = max(best, key=lambda each: best[each])
    for place in range(len(numbers) - 1, -1, -1):
        number, source = before[place]
        if number == last:
            stays[place] = True
            last = source
    return stays


def _one_value_each(
    groups: Names,
    values: Names,
    what: str,
) -> tuple[Names, Names]:
    """Return the patients and the one value of each. Raises LabelError where one has two."""
    pairs = np.unique(np.stack([groups, values.astype(np.str_)], axis=1), axis=0)
    patients, counts = np.unique(pairs[:, 0], return_counts=True)
    torn = patients[counts > 1]
    if len(torn):
        raise LabelError(
            f"{len(torn)} patients have more than one {what}, for example {str(torn[0])!r} (a "
            "pseudonym): they would stand on both sides."
        )
    return patients, pairs[:, 1]


# --- from slices to units ------------------------------------------------------------------


def of_whole_units(texts: Names, units: Units, kind: SplitKind) -> Names:
    """Return (n,) what a column says of each unit, of texts (m,) of the units' slices.

    That is the last day of a unit's slices, or the one site or listed part of all of them; "" where
    some have no date, or no site, and where the unit is listed nowhere. Raises LabelError for a
    unit of two sites or parts.
    """
    is_silent = texts == ""
    match kind:
        case "date":
            # What is no date comes after all, so that it is the unit's, and refused as such.
            days = np.array([_day(text) for text in texts.tolist()], np.int64)
            rank = np.where(days < 0, np.iinfo(np.int64).max, days)
        case "site":
            rank = is_silent.astype(np.int64)
        case _:
            rank = (~is_silent).astype(np.int64)
    in_order = np.lexsort((rank, units.unit))
    is_last = np.append(np.diff(units.unit[in_order]) > 0, True)
    of_unit: Names = texts[in_order[is_last]]
    if kind != "date":
        of_own_unit = of_unit[units.unit]
        differs = (texts != of_own_unit) & ~is_silent & (of_own_unit != "")
        is_torn = np.isin(units.unit, units.unit[differs]) & ~is_silent
        what = "site" if kind == "site" else "part of the split list"
        _one_value_each(units.groups[units.unit][is_torn], texts[is_torn], what)
    return of_unit
