"""k nearest neighbours by cosine, exact, with FAISS. The one module that imports it."""

from __future__ import annotations

from collections.abc import Mapping

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Knn
from pipeline.types import Part, Prediction, Units

Floats = NDArray[np.float32]
QUERIES_AT_ONCE = 1024


def predict(
    x: Floats, units: Units, parts: Mapping[Part, NDArray[np.int64]], settings: Knn
) -> tuple[list[Prediction], list[str]]:
    """Score the test units by their neighbours among train and val; x (n, d).

    Returns a prediction a k, and notes on every k that was left out.
    """
    reference = np.concatenate([parts["train"], parts["val"]])
    fitting = [k for k in settings.k if k <= len(reference)]
    left_out = [k for k in settings.k if k > len(reference)]
    notes = [f"k = {k} left out: only {len(reference)} reference units" for k in left_out]
    if not fitting:
        return [], notes
    targets = units.indicator[reference]
    votes = soft_vote(x[reference], targets, x[parts["test"]], fitting, settings.temperature)
    return [Prediction({"k": k}, proba) for k, proba in votes.items()], notes


def soft_vote(
    reference: Floats,
    targets: NDArray[np.bool_],
    queries: Floats,
    ks: list[int],
    temperature: float,
) -> dict[int, NDArray[np.float64]]:
    """Return for each k the probabilities (q, c) of DINOv2's weighted vote.

    Weights are softmax(cosine / temperature) over the largest k, once; a smaller k sums its first
    k (facebookresearch/dinov2, eval/knn.py). There the sums are left as they are; here they are
    divided by the k weights, so that they are probabilities. The likeliest class is the same; an
    AUROC, which compares queries, is not.
    reference (n, d), targets (n, c), queries (q, d).
    """
    similarity, neighbours = search(reference, queries, max(ks))
    weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    totals = weights.cumsum(axis=1)
    votes = {k: np.empty((len(queries), targets.shape[1])) for k in ks}
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        now = slice(start, start + QUERIES_AT_ONCE)
        for k, proba in votes.items():
            carried = targets[neighbours[now, :k]]  # (q, k, c)
            summed = np.einsum("qk,qkc->qc", weights[now, :k], carried)
            proba[now] = summed / totals[now, k - 1 : k]
    return votes


def search(reference: Floats, queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the cosines (q, k), greatest first, and which of the references they belong to."""
    index = faiss.IndexFlatIP(reference.shape[1])
    index.add(unit_length(reference))
    similarity, neighbours = index.search(unit_length(queries), k)
    return similarity, neighbours


def unit_length(x: Floats) -> Floats:
    """Return rows scaled to length 1, float32 and contiguous; a zero row stays zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norm, np.finfo(np.float32).tiny), np.float32)
