"""k nearest neighbours by cosine, with FAISS. The one module that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Knn
from pipeline.questions import Part, Prediction, Units
from stores.errors import LabelError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]
Votes = dict[int, NDArray[np.float64]]
AT_ONCE = 1024
EXAMPLES = 3
# An inverted file: references a list that it learns from, queries that recall is measured on
POINTS_A_LIST = 64
SAMPLED = 256
SEED = 0


def predict(
    x: Floats, units: Units, parts: Mapping[Part, Rows], settings: Knn
) -> tuple[list[Prediction], list[str]]:
    """Score the test units by their neighbours among train and val; x (n, d).

    A label has its neighbours among the units of which it is known; a number is the weighted mean
    of the neighbours'. Returns a prediction a k, and notes: every k that was left out, and how many
    test units are all but copies of a reference.
    """
    reference, test = np.concatenate([parts["train"], parts["val"]]), parts["test"]
    known = units.known[reference]
    patient = np.unique(units.groups, return_inverse=True)[1]
    others = units.kind == "multilabel" and settings.multilabel == "mlknn"
    most = int(known.sum(axis=0).min())
    most -= int(np.bincount(patient[reference]).max()) if others else 0
    ks = [k for k in settings.k if k <= most]
    notes = []
    if too_many := [str(k) for k in settings.k if k > most]:
        notes.append(f"k = {', '.join(too_many)} left out: only {most} reference units")
    votes = {k: np.empty((len(test), len(units.classes))) for k in ks}
    closest, nearest = np.full(len(test), -np.inf), np.zeros(len(test), np.int64)
    for mask, labels in _alike(known) if ks else ():
        among = reference[mask]
        index, said = _index(x, among, test, max(ks), settings)
        each, cosine, first = _votes(x, units, among, test, patient, labels, ks, settings, index)
        nearest = np.where(cosine > closest, among[first], nearest)
        closest = np.maximum(closest, cosine)
        notes += [note for note in said if note not in notes]
        for k, proba in each.items():
            votes[k][:, labels] = proba
    if ks:
        centre = x[reference].mean(axis=0)
        notes += _near_duplicates(x, units, centre, test, nearest, settings)
    return [Prediction({"k": k}, proba) for k, proba in votes.items()], notes


def _near_duplicates(
    x: Floats, units: Units, centre: Floats, test: Rows, nearest: Rows, settings: Knn
) -> list[str]:
    """Return what there is to say of test units whose nearest reference (q,) is all but a copy.

    By the cosine about the mean of the references: what all features share says nothing. Raises
    LabelError where they are to be refused.
    """
    pairs = []
    for now in _batches(len(test)):
        sides = (unit_length(x[rows[now]] - centre) for rows in (test, nearest))
        cosine = np.einsum("qd,qd->q", *sides)
        pairs += [
            (test[now][i], nearest[now][i])
            for i in np.flatnonzero(cosine >= settings.near_duplicate)
        ]
    if not pairs:
        return []
    named = ", ".join(f"{units.ids[a]} of {units.ids[b]}" for a, b in pairs[:EXAMPLES])
    said = (
        f"{len(pairs)} of {len(test)} test units are near-duplicates (cosine about the mean >= "
        f"{settings.near_duplicate}) of another patient's reference, for example {named}"
    )
    if settings.near_duplicates == "refuse":
        raise LabelError(
            f"{said}: scores would be leaked. Leave one of each pair out of the labels, or set "
            'knn.near_duplicates: "report".'
        )
    return [said]


def _alike(known: Bools) -> Iterator[tuple[Bools, Rows]]:
    """Yield each set of reference units (n,) that some labels are known of, and these labels."""
    masks, which = np.unique(known, axis=1, return_inverse=True)
    for i, mask in enumerate(masks.T):
        yield mask, np.flatnonzero(which.ravel() == i)


def _votes(
    x: Floats,
    units: Units,
    reference: Rows,
    test: Rows,
    patient: Rows,
    labels: Rows,
    ks: list[int],
    settings: Knn,
    index: Any,
) -> tuple[Votes, Floats, Rows]:
    """Return for each k what is said of the test units, (q, labels), and who is nearest, how near.

    The nearest (q,) are places in `reference`.
    """
    cosine, outside = neighbours(x, reference, test, max(ks), patient, index)
    if units.kind == "regression":
        targets = units.y[reference][:, None]
    else:
        targets = units.indicator[reference][:, labels]
    if units.kind != "multilabel" or settings.multilabel == "soft":
        votes = soft_vote(cosine, outside, targets, ks, settings.temperature)
    else:
        others = patient if settings.multilabel == "mlknn" else None
        inside = neighbours(x, reference, reference, max(ks), others, index)[1]
        votes = ml_knn(inside, outside, targets, ks)
    return votes, cosine[:, 0], outside[:, 0]


def soft_vote(
    cosine: Floats, nearest: Rows, targets: NDArray[Any], ks: list[int], temperature: float
) -> Votes:
    """Return for each k the probabilities (q, c) of DINOv2's weighted vote.

    Weights are softmax(cosine / temperature) over the largest k, once; a smaller k sums its first
    k (facebookresearch/dinov2, eval/knn.py). There the sums are left as they are; here they are
    divided by the k weights, so that they are probabilities. The likeliest class is the same; an
    AUROC, which compares queries, is not.
    cosine, nearest (q, k) from the greatest; targets (n, c) of the references.
    """
    votes = {k: np.empty((len(nearest), targets.shape[1])) for k in ks}
    for now in _batches(len(nearest)):
        weights = np.exp((cosine[now] - cosine[now, :1]).astype(np.float64) / temperature)
        carried = targets[nearest[now]]  # (b, k, c)
        for k, proba in votes.items():
            first = weights[:, :k] / weights[:, :k].sum(axis=1, keepdims=True)
            proba[now] = np.einsum("qk,qkc->qc", first, carried[:, :k])
    return votes


def ml_knn(inside: Rows, outside: Rows, targets: Bools, ks: list[int]) -> Votes:
    """Return for each k the probabilities (q, c) of ML-kNN, with smoothing s = 1.

    Zhang and Zhou, Pattern Recognition 40 (2007), eqs. 1 to 3. The likelihoods come from how many
    neighbours of each reference (inside (n, k)) carry a label, the answer from how many of each
    query (outside (q, k)) do; targets (n, c). Where each reference is its own first neighbour, as
    in the code of arXiv 2312.02366, neighbours look better than they are.
    """
    within, without = _counts(inside, targets, ks), _counts(outside, targets, ks)
    prior = (1 + targets.sum(axis=0)) / (2 + len(targets))
    label = np.arange(targets.shape[1])
    votes = {}
    for k in ks:
        carrying, lacking = (_likelihood(within[k], side, k) for side in (targets, ~targets))
        true = prior * carrying[without[k], label]
        false = (1 - prior) * lacking[without[k], label]
        votes[k] = true / (true + false)
    return votes


def _counts(nearest: Rows, targets: Bools, ks: list[int]) -> dict[int, Rows]:
    """Return for each k how many of the first k neighbours (q, k) carry each label: (q, c)."""
    counts = {k: np.empty((len(nearest), targets.shape[1]), np.int64) for k in ks}
    for now in _batches(len(nearest)):
        carried = targets[nearest[now]]
        for k, into in counts.items():
            into[now] = carried[:, :k].sum(axis=1)
    return counts


def _likelihood(counts: Rows, side: Bools, k: int) -> NDArray[np.float64]:
    """Return (k + 1, c): how likely j carrying neighbours are, for references on this side."""
    table = np.stack([((counts == j) & side).sum(axis=0) for j in range(k + 1)])
    likelihood: NDArray[np.float64] = (1 + table) / (k + 1 + table.sum(axis=0))
    return likelihood


# --- searching -----------------------------------------------------------------------------


def neighbours(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
    patient: Rows | None = None,
    index: Any = None,
) -> tuple[Floats, Rows]:
    """Return (q, k): cosines from the greatest, and places in `reference` of the nearest units.

    reference, queries: row numbers of x (n, d). With patient (n,), neighbours of the query's own
    patient do not count and others take their place, also where reference and queries share
    patients; k others must be there for every query. index: of the references, where there is one
    already; unset, all of them are looked at.
    """
    if index is None:
        index = _filled(faiss.IndexFlatIP(x.shape[1]), x, reference)
    cosine = np.empty((len(queries), k), np.float32)
    nearest = np.empty((len(queries), k), np.int64)
    own = 0 if patient is None else _shared(patient[reference], patient[queries])
    for now in _batches(len(queries)):
        near, at = _found(index, unit_length(x[queries[now]]), k + own)
        if patient is not None and own:
            same = patient[reference][at] == patient[queries[now], None]
            order = np.argsort(same, axis=1, kind="stable")  # others first, nearest first
            near, at = np.take_along_axis(near, order, 1), np.take_along_axis(at, order, 1)
        cosine[now], nearest[now] = near[:, :k], at[:, :k]
    return cosine, nearest


def _index(
    x: Floats, reference: Rows, queries: Rows, k: int, settings: Knn
) -> tuple[Any, list[str]]:
    """Return an index of the references, and what there is to say where it is not exact.

    An inverted file (Jegou et al., TPAMI 33(1), 2011) of 4 sqrt(n) lists. Lists to be searched are
    doubled until the share of the k nearest that is found, on a sample of the queries, is what
    settings.recall asks.
    """
    n, d = len(reference), x.shape[1]
    if settings.exact_up_to is None or n <= settings.exact_up_to:
        return _filled(faiss.IndexFlatIP(d), x, reference), []
    lists = min(n, 4 * int(n**0.5))
    coarse = faiss.IndexFlatIP(d)
    index = faiss.IndexIVFFlat(coarse, d, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.min_points_per_centroid, index.cp.niter = True, 1, 10
    rng = np.random.default_rng(SEED)
    learnt = rng.choice(reference, min(n, POINTS_A_LIST * lists), replace=False)
    index.train(unit_length(x[learnt]))
    _filled(index, x, reference)
    sample = rng.choice(queries, min(len(queries), SAMPLED), replace=False)
    asked = unit_length(x[sample])
    index.nprobe = lists
    true = index.search(asked, k)[1]
    index.nprobe = max(1, lists // 128)
    while (recall := _recall(_found(index, asked, k)[1], true)) < settings.recall:
        index.nprobe = min(2 * index.nprobe, lists)
    return index, [
        f"neighbours among {n} references are by an inverted file, {index.nprobe} of {lists} lists "
        f"searched: {recall:.4f} of the true {k} are found, measured on {len(sample)} test units"
    ]


def _filled(index: Any, x: Floats, reference: Rows) -> Any:
    """Return the index with the references in it."""
    for now in _batches(len(reference)):
        index.add(unit_length(x[reference[now]]))
    return index


def _recall(found: Rows, true: Rows) -> float:
    """Return which share of the true neighbours (q, k) is found."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))


def _found(index: Any, asked: Floats, k: int) -> tuple[Floats, Rows]:
    """Return cosines and places (q, k); all lists are searched where some held fewer than k."""
    near, at = index.search(asked, k)
    short = (at < 0).any(axis=1)
    if short.any() and isinstance(index, faiss.IndexIVF):
        everywhere = faiss.SearchParametersIVF()
        everywhere.nprobe = index.nlist
        near[short], at[short] = index.search(asked[short], k, params=everywhere)
    return near, at


def _shared(reference: Rows, queries: Rows) -> int:
    """Return how many references a patient who is also asked about has at most."""
    counts = np.bincount(reference[np.isin(reference, queries)])
    return int(counts.max()) if len(counts) else 0


def unit_length(x: Floats) -> Floats:
    """Return rows scaled to length 1, float32 and contiguous; a zero row stays zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norm, np.finfo(np.float32).tiny), np.float32)


def _batches(n: int) -> Iterator[slice]:
    for start in range(0, n, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, n))
