"""Who stands where: patients dealt by label, by site, by date, or as a list says.

Patients count in the order of their first units, so that two stores of one collection are split
alike whatever their pseudonyms. Every function returns the p patients and a side (p,) for each.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from stores.errors import LabelError

Names = NDArray[np.str_]
Sides = NDArray[np.int64]
TRAIN, VAL, TEST = 0, 1, 2
DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")


def by_label(units: Truth, folds: int, seed: int, first: int = -1) -> tuple[Names, Sides]:
    """Return patients and their folds, stratified by label combination, rarest label first.

    Dealt in turn from a deck that is sorted by combination and shuffled within: every combination,
    and the rarest label exactly, is spread over the folds to within one patient, however few carry
    it. The first card goes to the fold `first`.
    """
    patients, carries = _carried(units)
    shuffled = np.random.default_rng(seed).permutation(len(patients))
    rarest_last = np.argsort(-carries.sum(axis=0), kind="stable")
    deck = shuffled[np.lexsort(carries[shuffled][:, rarest_last].T)[::-1]]
    fold = np.empty(len(deck), np.int64)
    fold[deck] = (np.arange(len(deck)) + first) % folds
    return patients, fold


def _carried(units: Truth) -> tuple[Names, NDArray[np.bool_]]:
    """Return the patients and, (p, c), which classes, labels or quarters of y they carry."""
    patients, first, patient = np.unique(units.groups, return_index=True, return_inverse=True)
    strata = units.strata
    carries = np.zeros((len(patients), strata.shape[1]), bool)
    np.logical_or.at(carries, patient, strata)
    order = np.argsort(first)
    return patients[order], carries[order]


def by_site(units: Truth, sites: Names, folds: int, seed: int) -> tuple[Names, Sides]:
    """Return patients and their sides, no site (n,) on two of them.

    The largest sites are dealt first, each to the side that lacks most of its share: 1 / folds of
    the patients for val and for test, the rest for train. Raises LabelError for fewer than three
    sites, or a patient at two.
    """
    patients, site = _of_patients(units.groups, sites, "site")
    names, at, sizes = np.unique(site, return_inverse=True, return_counts=True)
    if len(names) < 3:
        raise LabelError(
            f"A split by site must have at least three sites. Got {names.tolist()} instead; choose "
            "another column, or a split of kind holdout."
        )
    lacks = len(patients) * np.array([folds - 2, 1, 1]) / folds
    shuffled = np.random.default_rng(seed).permutation(len(names))
    side, empty = np.empty(len(names), np.int64), {TRAIN, VAL, TEST}
    for dealt, i in enumerate(shuffled[np.argsort(-sizes[shuffled], kind="stable")]):
        must = empty if len(names) - dealt == len(empty) else {TRAIN, VAL, TEST}
        side[i] = max(sorted(must), key=lambda s: lacks[s])
        lacks[side[i]] -= sizes[i]
        empty.discard(int(side[i]))
    return patients, side[at]


def by_date(units: Truth, dates: Names, folds: int) -> tuple[Names, Sides]:
    """Return patients and their sides, the last 1 / folds of them for test, those before for val.

    A patient's date is the last of his units', so that nothing is fitted on what came after the
    first test patient's last. Raises LabelError for a date that is not YYYY-MM-DD or YYYYMMDD.
    """
    for date in dates.tolist():
        if not DATE.fullmatch(date):
            raise LabelError(
                f"A date must be YYYY-MM-DD or YYYYMMDD. Got {date!r} instead; correct the column "
                "that split.column names."
            )
    digits = np.char.replace(dates, "-", "").astype(np.int64)
    patients, first, patient = np.unique(units.groups, return_index=True, return_inverse=True)
    last = np.zeros(len(patients), np.int64)
    np.maximum.at(last, patient, digits)
    side = np.full(len(patients), TRAIN)
    late, share = np.lexsort((first, last))[::-1], max(1, len(patients) // folds)
    side[late[:share]], side[late[share : 2 * share]] = TEST, VAL
    return patients, side


def by_list(units: Truth, parts: Names, folds: int, seed: int) -> tuple[Names, Sides]:
    """Return the listed patients and their sides; parts (n,): "" for a unit that is not listed.

    Where the list has no val, 1 / folds of the train patients are dealt for it. Raises LabelError
    for a patient in two parts.
    """
    listed = parts != ""
    patients, part = _of_patients(units.groups[listed], parts[listed], "part of the split list")
    side = np.array([("train", "val", "test").index(name) for name in part.tolist()], np.int64)
    if not (side == VAL).any():
        inside = np.isin(units.groups, patients[side == TRAIN])
        dealt, fold = by_label(units.at(inside), folds, seed)
        side[np.isin(patients, dealt[fold == 0])] = VAL
    return patients, side


def _of_patients(groups: Names, values: Names, what: str) -> tuple[Names, Names]:
    """Return the patients and the one value of each. Raises LabelError where one has two."""
    pairs = np.unique(np.stack([groups, values.astype(np.str_)], axis=1), axis=0)
    patients, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        torn = patients[counts > 1]
        raise LabelError(
            f"{len(torn)} patients have more than one {what}, for example {torn[0]!r} with "
            f"{pairs[pairs[:, 0] == torn[0], 1].tolist()}: they would stand on both sides."
        )
    return patients, pairs[:, 1]
