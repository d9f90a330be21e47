"""k nearest neighbours by cosine, exact, with FAISS. The one module that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Knn
from pipeline.types import Part, Prediction, Units

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]
Votes = dict[int, NDArray[np.float64]]
QUERIES_AT_ONCE = 1024


def predict(
    x: Floats, units: Units, parts: Mapping[Part, Rows], settings: Knn
) -> tuple[list[Prediction], list[str]]:
    """Score the test units by their neighbours among train and val; x (n, d).

    Returns a prediction a k, and notes on every k that was left out.
    """
    reference = np.concatenate([parts["train"], parts["val"]])
    known, targets, queries = x[reference], units.indicator[reference], x[parts["test"]]
    patient = np.unique(units.groups[reference], return_inverse=True)[1]
    method = settings.multilabel if units.kind == "multilabel" else "soft"
    own = int(np.bincount(patient).max()) if method == "mlknn" else 0
    most = len(reference) - own
    ks = [k for k in settings.k if k <= most]
    notes = [f"k = {k} left out: only {most} reference units" for k in settings.k if k > most]
    if not ks:
        return [], notes
    if method == "soft":
        votes = soft_vote(known, targets, queries, ks, settings.temperature)
    else:
        votes = ml_knn(known, targets, queries, ks, patient if method == "mlknn" else None)
    return [Prediction({"k": k}, proba) for k, proba in votes.items()], notes


def soft_vote(
    reference: Floats, targets: Bools, queries: Floats, ks: list[int], temperature: float
) -> Votes:
    """Return for each k the probabilities (q, c) of DINOv2's weighted vote.

    Weights are softmax(cosine / temperature) over the largest k, once; a smaller k sums its first
    k (facebookresearch/dinov2, eval/knn.py). There the sums are left as they are; here they are
    divided by the k weights, so that they are probabilities. The likeliest class is the same; an
    AUROC, which compares queries, is not.
    reference (n, d), targets (n, c), queries (q, d).
    """
    votes = {k: np.empty((len(queries), targets.shape[1])) for k in ks}
    for now, cosine, nearest in _neighbours(reference, queries, max(ks)):
        weights = np.exp((cosine - cosine[:, :1]).astype(np.float64) / temperature)
        carried = targets[nearest]  # (q, k, c)
        for k, proba in votes.items():
            first = weights[:, :k] / weights[:, :k].sum(axis=1, keepdims=True)
            proba[now] = np.einsum("qk,qkc->qc", first, carried[:, :k])
    return votes


def ml_knn(
    reference: Floats, targets: Bools, queries: Floats, ks: list[int], patient: Rows | None
) -> Votes:
    """Return for each k the probabilities (q, c) of ML-kNN, with smoothing s = 1.

    Zhang and Zhou, Pattern Recognition 40 (2007), eqs. 1 to 3. The likelihoods come from how many
    neighbours of each reference carry a label. Neighbours are of other patients (patient (n,) of
    each reference), as they are for the queries; with None, as in the code of arXiv 2312.02366,
    each reference is its own first neighbour, which makes neighbours look better than they are.
    """
    own = 0 if patient is None else int(np.bincount(patient).max())
    inside = _counts(reference, targets, reference, ks, own, patient)
    outside = _counts(reference, targets, queries, ks, 0, None)
    prior = (1 + targets.sum(axis=0)) / (2 + len(targets))
    votes = {}
    for k in ks:
        with_label, without = (_likelihood(inside[k], side, k) for side in (targets, ~targets))
        label = np.arange(targets.shape[1])
        true = prior * with_label[outside[k], label]
        false = (1 - prior) * without[outside[k], label]
        votes[k] = true / (true + false)
    return votes


def _likelihood(counts: Rows, side: Bools, k: int) -> NDArray[np.float64]:
    """Return (k + 1, c): how likely j carrying neighbours are, for references on this side."""
    table = np.stack([((counts == j) & side).sum(axis=0) for j in range(k + 1)])
    likelihood: NDArray[np.float64] = (1 + table) / (k + 1 + table.sum(axis=0))
    return likelihood


def _counts(
    reference: Floats,
    targets: Bools,
    queries: Floats,
    ks: list[int],
    own: int,
    patient: Rows | None,
) -> dict[int, Rows]:
    """Return for each k how many of the first k neighbours carry each label, (q, c).

    Where the queries are the references, neighbours of the query's patient (at most `own`) do not
    count and others take their place.
    """
    counts = {k: np.empty((len(queries), targets.shape[1]), np.int64) for k in ks}
    for now, _, nearest in _neighbours(reference, queries, max(ks) + own):
        if patient is not None:
            same = patient[nearest] == patient[now, None]
            order = np.argsort(same, axis=1, kind="stable")  # others first, nearest first
            nearest = np.take_along_axis(nearest, order, axis=1)
        carried = targets[nearest[:, : max(ks)]]
        for k, into in counts.items():
            into[now] = carried[:, :k].sum(axis=1)
    return counts


def _neighbours(reference: Floats, queries: Floats, k: int) -> Iterator[tuple[slice, Floats, Rows]]:
    """Yield batches of queries: which they are, cosines (b, k) from the greatest, references."""
    index = faiss.IndexFlatIP(reference.shape[1])
    index.add(unit_length(reference))
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        now = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
        yield now, *index.search(unit_length(queries[now]), k)


def unit_length(x: Floats) -> Floats:
    """Return rows scaled to length 1, float32 and contiguous; a zero row stays zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norm, np.finfo(np.float32).tiny), np.float32)
