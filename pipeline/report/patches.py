"""What a click on a patch of a case's picture shows: the patches of other patients most like it.

Among the pictures of the cases and their neighbours, so that the page needs no server: of each
patch the nearest of a few pictures, by the cosine of its token, as numbers beside the picture. A
grid of many patches is thinned, so that they stay few. Dims: s pictures, g patches of each, d
features.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.report.models import Case, CaseGroup, Patches
from pipeline.report.sources import Source
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.arrays import Floats, unit_length

Groups = Mapping[str, tuple[CaseGroup, ...]]
# Patches along a side, pictures that a patch is shown with, and pictures that are looked through.
MOST_SIDE = 16
SHOWN = 3
MOST_PICTURES = 96
# As the page reads them: which picture, which of its patches, and the cosine in hundredths.
_NEAR = np.dtype([("picture", "<u2"), ("patch", "<u2"), ("cosine", "i1")])


def with_patches(source: Source, groups: Groups) -> dict[str, tuple[CaseGroup, ...]]:
    """Return cases whose pictures know which patches of other patients are like each of theirs.

    As they are, where the store has no patch tokens or their pictures are of one patient.
    """
    if "patch" not in source.store.arrays:
        return dict(groups)
    rows = np.array(sorted({case.row for case in _pictured(groups)})[:MOST_PICTURES], np.int64)
    patient = source.patients[np.searchsorted(source.rows, rows)]
    if len(set(patient.tolist())) < 2:
        return dict(groups)
    x, grid = _tokens(source, rows)
    place_of = {row: i for i, row in enumerate(rows.tolist())}

    def known(case: Case) -> Case:
        place = place_of.get(case.row)
        if case.picture is None or place is None:
            return case
        # A slice of no patient is a patient by itself.
        is_other = patient != patient[place] if patient[place] else np.arange(len(rows)) != place
        others = np.flatnonzero(is_other)
        if not len(others):
            return case
        return replace(case, patches=_patches(x, place, others, rows, grid))

    return {
        task: tuple(replace(group, cases=tuple(map(known, group.cases))) for group in of_task)
        for task, of_task in groups.items()
    }


def _pictured(groups: Groups) -> Iterable[Case]:
    """Yield the cases and neighbours that have a picture."""
    for of_task in groups.values():
        for group in of_task:
            for case in group.cases:
                yield from (each for each in (case, *case.neighbours) if each.picture)


def _tokens(source: Source, rows: NDArray[np.int64]) -> tuple[Floats, tuple[int, int]]:
    """Return (s, g, d) tokens of length 1, and the rows and columns that they are of."""
    tokens = Tokens(source.store)
    h, w = tokens.grid
    y, x = (np.unique(np.linspace(0, n - 1, min(n, MOST_SIDE)).round().astype(int)) for n in (h, w))
    each = []
    for row in rows.tolist():
        of_slice = tokens.read(np.array([row]))[0, -1][np.ix_(y, x)].astype(np.float32)
        each.append(unit_length(of_slice.reshape(len(y) * len(x), -1)))
    return np.stack(each), (len(y), len(x))


def _patches(
    x: Floats, place: int, others: NDArray[np.int64], rows: NDArray[np.int64], grid: tuple[int, int]
) -> Patches:
    """Return of each patch of a picture the few other pictures that have the nearest patches."""
    g = x.shape[1]
    cosine = (x[place] @ x[others].reshape(-1, x.shape[2]).T).reshape(g, len(others), g)
    nearest = cosine.argmax(axis=2)
    best = np.take_along_axis(cosine, nearest[..., None], 2)[..., 0]
    shown = min(SHOWN, len(others))
    order = np.argsort(-best, axis=1, kind="stable")[:, :shown]
    near = np.empty((g, shown), _NEAR)
    near["picture"] = order
    near["patch"] = np.take_along_axis(nearest, order, 1)
    near["cosine"] = np.rint(100 * np.take_along_axis(best, order, 1)).clip(-100, 100)
    return Patches(
        grid=grid,
        rows=tuple(rows[others].tolist()),
        shown=shown,
        near=base64.b64encode(near.tobytes()).decode(),
    )
