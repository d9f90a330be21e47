"""Which patient stands on which side: spread by label, by site, by date, or as a list says.

Patients count in the order of their first units, so that two stores of one collection are split
alike whatever their pseudonyms. Every function returns the p patients and a side (p,) for each.
Dims: n units, p patients, c classes or labels.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from stores.errors import LabelError

Names = NDArray[np.str_]
Sides = NDArray[np.int64]

TRAIN = 0
VAL = 1
TEST = 2
SIDES = ("train", "val", "test")
DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")


# --- by label ------------------------------------------------------------------------------


def folds_by_label(
    units: Truth,
    folds: int,
    seed: int,
    first: int = -1,
) -> tuple[Names, Sides]:
    """Return patients and their folds, stratified by label combination, rarest label first.

    Patients are sorted by combination, shuffled within, and take the folds in turn: every
    combination, and the rarest label exactly, is spread over the folds to within one patient,
    however few carry it. The first patient goes to the fold `first`.
    """
    patients, carries = _labels_of_patients(units)
    shuffled = np.random.default_rng(seed).permutation(len(patients))
    # lexsort takes its last key first, which is so the rarest label.
    rarest_last = np.argsort(-carries.sum(axis=0), kind="stable")
    combinations = carries[shuffled][:, rarest_last]
    carriers_last = np.lexsort(combinations.T)
    ordered = shuffled[carriers_last[::-1]]
    fold = np.empty(len(ordered), np.int64)
    fold[ordered] = (np.arange(len(ordered)) + first) % folds
    return patients, fold


def _labels_of_patients(units: Truth) -> tuple[Names, NDArray[np.bool_]]:
    """Return the patients and, (p, c), which classes, labels or quarters of y they carry."""
    patients, first, patient = np.unique(
        units.groups,
        return_index=True,
        return_inverse=True,
    )
    strata = units.strata
    carries = np.zeros((len(patients), strata.shape[1]), bool)
    np.logical_or.at(carries, patient, strata)
    by_first_unit = np.argsort(first)
    return patients[by_first_unit], carries[by_first_unit]


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
    sites, or a patient at two.
    """
    patients, site_of_patient = _one_value_each(units.groups, sites, "site")
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
) -> tuple[Names, Sides]:
    """Return patients and their sides, the last 1 / folds of them for test, those before for val.

    A patient's date is the last of his units', so that nothing is fitted on what came after the
    first test patient's last. Raises LabelError for a date that is not YYYY-MM-DD or YYYYMMDD.
    """
    days = _sortable_days(dates)
    patients, first, patient = np.unique(
        units.groups,
        return_index=True,
        return_inverse=True,
    )
    last_day = np.zeros(len(patients), np.int64)
    np.maximum.at(last_day, patient, days)
    # Of one day, by first unit: the order of pseudonyms must not matter.
    latest_first = np.lexsort((first, last_day))[::-1]
    share = max(1, len(patients) // folds)
    side = np.full(len(patients), TRAIN)
    side[latest_first[:share]] = TEST
    side[latest_first[share : 2 * share]] = VAL
    return patients, side


def _sortable_days(dates: Names) -> NDArray[np.int64]:
    """Return dates as numbers YYYYMMDD. Raises LabelError."""
    for date in dates.tolist():
        if not DATE.fullmatch(date):
            raise LabelError(
                "A date must be YYYY-MM-DD or YYYYMMDD. Got something else instead; correct the "
                "column that split.column names."
            )
    return np.char.replace(dates, "-", "").astype(np.int64)


# --- by a list -----------------------------------------------------------------------------


def sides_by_list(
    units: Truth,
    parts: Names,
    folds: int,
    seed: int,
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
        train_patients, fold = folds_by_label(units.at(in_train), folds, seed)
        side[np.isin(patients, train_patients[fold == 0])] = VAL
    return patients, side


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
            f"{len(torn)} patients have more than one {what}, for example {torn[0]!r} (a "
            "pseudonym): they would stand on both sides."
        )
    return patients, pairs[:, 1]
