"""k nearest neighbours by cosine: how they vote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Units
from pipeline.config.heads import Knn
from pipeline.config.tasks import Part
from pipeline.evaluation.neighbours import build_inverted_file, neighbours
from pipeline.shared.arrays import batches

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]
Votes = dict[int, NDArray[np.float64]]
AT_ONCE = 1024


def predict(
    x: Floats, units: Units, parts: Mapping[Part, Rows], settings: Knn
) -> tuple[list[Prediction], list[str]]:
    """Score the test units by their neighbours among train and val; x (n, d).

    A label has its neighbours among the units of which it is known; a number is the weighted mean
    of the neighbours'. Returns a prediction a k, and notes: every k that was left out, and how many
    of the true neighbours an inverted file finds.
    """
    reference, test = np.concatenate([parts["train"], parts["val"]]), parts["test"]
    known = units.known[reference]
    patient = units.patient
    others = patient if units.kind == "multilabel" and settings.multilabel == "mlknn" else None
    most = int(known.sum(axis=0).min())
    most -= 0 if others is None else int(np.bincount(patient[reference]).max())
    ks = [k for k in settings.k if k <= most]
    notes = []
    if too_many := [str(k) for k in settings.k if k > most]:
        notes.append(f"k = {', '.join(too_many)} left out: only {most} reference units")
    votes = {k: np.empty((len(test), len(units.classes))) for k in ks}
    for mask, labels in _alike(known) if ks else ():
        among, index = reference[mask], None
        if settings.exact_up_to is not None and len(among) > settings.exact_up_to:
            index = build_inverted_file(x, among, test, max(ks), settings.recall)
            notes.append(index.note)
        outside = neighbours(x, among, test, max(ks), patient, index)
        if units.kind == "multilabel" and settings.multilabel != "soft":
            inside = neighbours(x, among, among, max(ks), others, index)[1]
            each = ml_knn(inside, outside[1], units.indicator[among][:, labels], ks)
        else:
            targets = units.y[:, None] if units.kind == "regression" else units.indicator[:, labels]
            each = soft_vote(*outside, targets[among], ks, settings.temperature)
        for k, proba in each.items():
            votes[k][:, labels] = proba
    return [Prediction({"k": k}, proba) for k, proba in votes.items()], list(dict.fromkeys(notes))


def _alike(known: Bools) -> Iterator[tuple[Bools, Rows]]:
    """Yield each set of reference units (n,) that some labels are known of, and these labels."""
    masks, which = np.unique(known, axis=1, return_inverse=True)
    for i, mask in enumerate(masks.T):
        yield mask, np.flatnonzero(which.ravel() == i)


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
    for now in batches(len(nearest), AT_ONCE):
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
    for now in batches(len(nearest), AT_ONCE):
        carried = targets[nearest[now]]
        for k, into in counts.items():
            into[now] = carried[:, :k].sum(axis=1)
    return counts


def _likelihood(counts: Rows, side: Bools, k: int) -> NDArray[np.float64]:
    """Return (k + 1, c): how likely j carrying neighbours are, for references on this side."""
    table = np.stack([((counts == j) & side).sum(axis=0) for j in range(k + 1)])
    likelihood: NDArray[np.float64] = (1 + table) / (k + 1 + table.sum(axis=0))
    return likelihood
