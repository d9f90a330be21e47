"""k nearest neighbours by cosine: how they vote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotations.units import Prediction, Truth, Units
from pipeline.config.base import HeadSettings
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    Head,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.results import Tally
from pipeline.shared.arrays import batches

Bools = NDArray[np.bool_]
# k -> probabilities (q, c)
Votes = dict[int, NDArray[np.float64]]
AT_ONCE = 1024  # queries whose neighbours' labels are looked up together
GRID = 2.0**-40  # that shares of votes are multiples of, so that 1 less a share is exact as well


class KnnSettings(HeadSettings):
    """FAISS kNN settings.

    k: all that are asked, of which val chooses the one that stands for the answer. temperature: of
    the votes, as DINOv2 weighs neighbours. multilabel: how
    neighbours vote on multi-label tasks: as on any other (DINOv2's soft vote), or by ML-kNN;
    "mlknn-paper" counts a training image among its own neighbours, as the code of arXiv 2312.02366
    does. exact_up_to: how many references are all looked at; where there are more, an inverted file
    is asked: faster from about 2,560 + 4 sqrt(references) test units on, and for ML-kNN, which asks
    about the references too. Unset, all are always looked at. recall: the share of the true
    neighbours that so many lists of the inverted file find.
    """

    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        5, 10, 20, 50, 100, 200,
    )  # fmt: skip
    temperature: Annotated[float, Field(gt=0)] = 0.07
    multilabel: Literal["soft", "mlknn", "mlknn-paper"] = "soft"
    exact_up_to: Annotated[int, Field(ge=1)] | None = None
    recall: Annotated[float, Field(gt=0, le=1)] = 0.99


@dataclass(frozen=True)
class References:
    """Units (r,) among which neighbours are looked for, and for which k.

    They are train and val; while k is chosen on val, train alone. device: where to look for them.
    """

    units: Units
    settings: KnnSettings
    rows: Rows
    ks: list[int]
    device: str | None = None

    @property
    def by_ml_knn(self) -> bool:
        """Whether neighbours vote by ML-kNN."""
        return self.units.kind == "multilabel" and self.settings.multilabel != "soft"


@dataclass(frozen=True)
class Neighbours:
    """References, and the k that val chose; None where there are too few for any.

    on_val: what train alone says of val for each k that it is enough for. notes: every k that was
    left out, and how k was chosen.
    """

    references: References
    k: int | None
    on_val: Votes
    notes: list[str]


def fit(given: FitInput[KnnSettings]) -> Neighbours:
    """Take train and val as references, and choose k on val by the neighbours in train.

    By macro AUROC, or of a number the squared error; of equals by the log-loss.
    """
    references = _references(given, given.train_and_val)
    too_many = [str(k) for k in given.settings.k if k not in references.ks]
    notes = []
    if too_many:
        most = _most_neighbours(references.units, references.settings, references.rows)
        notes.append(f"k = {', '.join(too_many)} left out: only {most} reference units")
    if not references.ks:
        return Neighbours(references, None, {}, notes)
    # Val must not be among its own neighbours, nor may those it is asked by be other than train.
    of_train = _references(given, given.parts["train"])
    val = given.parts["val"]
    on_val, _ = _votes_of(of_train, given.x, val)
    truth = given.units.at(val)
    best = best_of([quality(truth, proba) for proba in on_val.values()])
    if best is not None:
        return Neighbours(references, list(on_val)[best], on_val, notes)
    # As many as the root of the references, by the rule of thumb.
    root = len(references.rows) ** 0.5
    nearest = min(references.ks, key=lambda k: abs(np.log(k / root)))
    reason = "all val units have the same labels" if on_val else "train has too few units"
    notes.append(f"k = {nearest} was not chosen on val: {reason}")
    return Neighbours(references, nearest, on_val, notes)


def _references(given: FitInput[KnnSettings], rows: Rows) -> References:
    """Return units as references, for every k that there are enough of."""
    most = _most_neighbours(given.units, given.settings, rows)
    ks = [k for k in given.settings.k if k <= most]
    return References(given.units, given.settings, rows, ks, given.device)


def _most_neighbours(units: Units, settings: KnnSettings, rows: Rows) -> int:
    """Return the greatest k that the references `rows` are enough for."""
    # A label has its neighbours among the units of which it is known: the rarest sets the bound.
    most = int(units.known[rows].sum(axis=0).min())
    if units.kind == "multilabel" and settings.multilabel == "mlknn":
        # A reference's own patient is no neighbour of it: so many fewer are left for it.
        most -= int(np.bincount(units.patient[rows]).max())
    return most


def predict(model: Neighbours, x: Floats, rows: Rows) -> Predicted:
    """Score units by their neighbours among the references; x (n, d).

    A label has its neighbours among the units of which it is known; a number is the weighted mean
    of the neighbours'. A prediction a k; notes say how many of the true neighbours an inverted file
    finds.
    """
    votes, notes = _votes_of(model.references, x, rows)
    predictions = []
    for k, proba in votes.items():
        of_k = Prediction({"k": k}, proba, on_val=model.on_val.get(k), chosen=k == model.k)
        predictions.append(of_k)
    return Predicted(predictions, list(dict.fromkeys([*model.notes, *notes])))


def _votes_of(model: References, x: Floats, rows: Rows) -> tuple[Votes, list[str]]:
    """Return for each k what the references say of the units `rows`, and notes."""
    votes = _no_votes(model.ks, len(rows), len(model.units.classes))
    notes: list[str] = []
    # Labels that the same references are known of share one search for neighbours.
    for known, labels in _known_alike(model) if model.ks else ():
        among = model.rows[known]
        voted, of_search = _vote(model, x, rows, among, labels)
        notes += of_search
        for k, proba in voted.items():
            votes[k][:, labels] = proba
    return votes, notes


def _no_votes(ks: list[int], q: int, c: int) -> Votes:
    """Return room for the probabilities of each k."""
    votes = {}
    for k in ks:
        votes[k] = np.empty((q, c))
    return votes


def _known_alike(model: References) -> Iterator[tuple[Bools, Rows]]:
    """Yield each set of references (r,) that some labels are known of, and these labels."""
    known = model.units.known[model.rows]
    masks, which = np.unique(known, axis=1, return_inverse=True)
    of_label = which.ravel()
    for i, mask in enumerate(masks.T):
        labels = np.flatnonzero(of_label == i)
        yield mask, labels


def _vote(
    model: References,
    x: Floats,
    rows: Rows,
    among: Rows,
    labels: Rows,
) -> tuple[Votes, list[str]]:
    """Return for each k what the references `among` say of some labels of the units `rows`."""
    from pipeline.evaluation.neighbours import build_inverted_file, neighbours

    units = model.units
    settings = model.settings
    patient = units.patient
    most = max(model.ks)
    index = None
    notes = []
    if settings.exact_up_to is not None and len(among) > settings.exact_up_to:
        index = build_inverted_file(x, among, rows, most, settings.recall, model.device)
        notes.append(index.note)
    # The most once: a smaller k looks at the first of them.
    cosine, nearest = neighbours(x, among, rows, most, patient, index, model.device)
    if model.by_ml_knn:
        # The paper's code lets an image be its own neighbour; its formulas do not.
        others = patient if settings.multilabel == "mlknn" else None
        _, within = neighbours(x, among, among, most, others, index, model.device)
        carried = units.indicator[among][:, labels]
        return ml_knn(within, nearest, carried, model.ks), notes
    of_classes = units.kind != "regression"
    targets = units.indicator[:, labels] if of_classes else units.y[:, None]
    votes = soft_vote(cosine, nearest, targets[among], model.ks, settings.temperature)
    return votes, notes


def soft_vote(
    cosine: Floats,
    nearest: Rows,
    targets: NDArray[Any],
    ks: list[int],
    temperature: float,
) -> Votes:
    """Return for each k the probabilities (q, c) of DINOv2's weighted vote.

    Weights are softmax(cosine / temperature) over the largest k, once; a smaller k sums its first
    k (facebookresearch/dinov2, eval/knn.py). There the sums are left as they are; here they are
    divided by the k weights, so that they are probabilities. The likeliest class is the same; an
    AUROC, which compares queries, is not. A class's share is of what votes for it and what votes
    against it, both summed alike, and is rounded to multiples of GRID: neighbours who all carry a
    class give 1 and tie, and of two classes each is exactly what the other leaves.
    cosine, nearest (q, k) from the greatest; targets (n, c) of the references.
    """
    votes = _no_votes(ks, len(nearest), targets.shape[1])
    for batch in batches(len(nearest), AT_ONCE):
        # Less the greatest cosine, so that no power overflows.
        below = cosine[batch] - cosine[batch, :1]
        weights = np.exp(below.astype(np.float64) / temperature)  # (b, k)
        carried = targets[nearest[batch]]  # (b, k, c)
        for k, proba in votes.items():
            first = weights[:, :k]
            if targets.dtype != bool:
                proba[batch] = _weighted_mean(first, carried[:, :k])
                continue
            for_it = np.einsum("qk,qkc->qc", first, carried[:, :k])
            against = np.einsum("qk,qkc->qc", first, ~carried[:, :k])
            # The lesser part and what it leaves: the same two numbers, whichever side is which.
            lesser = np.minimum(for_it, against) / (for_it + against)
            rounded = np.round(lesser / GRID) * GRID
            proba[batch] = np.where(for_it < against, rounded, 1 - rounded)
    return votes


def _weighted_mean(weights: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return (b, c) the means of values (b, k, c), exactly theirs where all are equal."""
    nearest = values[:, 0]
    apart = values - nearest[:, None]
    total = weights.sum(axis=1, keepdims=True)
    mean: NDArray[np.float64] = nearest + np.einsum("qk,qkc->qc", weights / total, apart)
    return mean


def ml_knn(
    inside: Rows,
    outside: Rows,
    targets: Bools,
    ks: list[int],
) -> Votes:
    """Return for each k the probabilities (q, c) of ML-kNN, with smoothing s = 1.

    Zhang and Zhou, Pattern Recognition 40 (2007), eqs. 1 to 3. The likelihoods come from how many
    neighbours of each reference (inside (n, k)) carry a label, the answer from how many of each
    query (outside (q, k)) do; targets (n, c). Where each reference is its own first neighbour, as
    in the code of arXiv 2312.02366, neighbours look better than they are.
    """
    of_references = _carrying(inside, targets, ks)
    of_queries = _carrying(outside, targets, ks)
    # Smoothed by s = 1: a label that no reference carries is rare, and not impossible.
    prior = (1 + targets.sum(axis=0)) / (2 + len(targets))
    label = np.arange(targets.shape[1])
    votes = {}
    for k in ks:
        given_carried = _likelihood(of_references[k], targets, k)
        given_not = _likelihood(of_references[k], ~targets, k)
        counts = of_queries[k]
        carried = prior * given_carried[counts, label]
        not_carried = (1 - prior) * given_not[counts, label]
        votes[k] = carried / (carried + not_carried)
    return votes


def _carrying(nearest: Rows, targets: Bools, ks: list[int]) -> dict[int, Rows]:
    """Return for each k how many of the first k neighbours (q, k) carry each label: (q, c)."""
    counts = {}
    for k in ks:
        shape = (len(nearest), targets.shape[1])
        counts[k] = np.empty(shape, np.int64)
    for batch in batches(len(nearest), AT_ONCE):
        carried = targets[nearest[batch]]  # (b, k, c)
        for k, count in counts.items():
            count[batch] = carried[:, :k].sum(axis=1)
    return counts


def _likelihood(counts: Rows, side: Bools, k: int) -> NDArray[np.float64]:
    """Return (k + 1, c): how likely j carrying neighbours are, for references on this side."""
    rows = []
    for j in range(k + 1):
        on_side = (counts == j) & side
        rows.append(on_side.sum(axis=0))
    table = np.stack(rows)
    total = k + 1 + table.sum(axis=0)
    likelihood: NDArray[np.float64] = (1 + table) / total
    return likelihood


# --- filed -----------------------------------------------------------------------------------


def to_state(model: Neighbours, x: Floats) -> HeadState | None:
    """Return the references with what they carry; nothing of whose they are.

    x (n, d): of all units. None where there were too few references for any k.
    """
    references = model.references
    if not references.ks:
        return None
    units = references.units
    rows = references.rows
    arrays = {
        "references": np.ascontiguousarray(x[rows], np.float32),
        "y": np.ascontiguousarray(units.y[rows]),
        # Whose neighbours count for ML-kNN, by numbers that say nothing of who it is.
        "patient": units.at(rows).patient,
    }
    about = {
        "k": references.ks,
        "kind": units.kind,
        "classes": list(units.classes),
        "settings": references.settings.model_dump(mode="json"),
    }
    return HeadState(arrays, about)


def from_state(state: HeadState) -> Predictor:
    """Return what says of units what their neighbours among filed references carry.

    All references are looked at, whatever `exact_up_to` says.
    """
    about = state.about
    patient = state.arrays["patient"]
    r = len(patient)
    places = np.arange(r)
    references = state.arrays["references"]
    settings = KnnSettings.model_validate(about["settings"])
    settings = settings.model_copy(update={"exact_up_to": None})
    truth = Truth(
        y=state.arrays["y"],
        groups=patient.astype(np.str_),
        classes=tuple(about["classes"]),
        kind=about["kind"],
    )

    def predictor(x: Floats, units: Units) -> list[Prediction]:
        # Behind the references stand the units that are asked about, each a patient of its own.
        q = len(x)
        queries = np.arange(r, r + q)
        unknown = np.zeros((q, *truth.y.shape[1:]), truth.y.dtype)
        everyone = Units(
            y=np.concatenate([truth.y, unknown]),
            groups=np.concatenate([truth.groups, np.char.add("query ", queries.astype(np.str_))]),
            classes=truth.classes,
            kind=truth.kind,
            ids=np.arange(r + q).astype(np.str_),
            rows=np.arange(r + q),
            unit=np.arange(r + q),
            tally=Tally(),
        )
        model = References(everyone, settings, places, list(about["k"]))
        votes, _ = _votes_of(model, np.concatenate([references, x]), queries)
        return [Prediction({"k": k}, proba) for k, proba in votes.items()]

    return predictor


HEAD = Head(
    name="knn",
    title="kNN",
    settings=KnnSettings,
    contract=11,
    fit=fit,
    predict=predict,
    to_state=to_state,
    from_state=from_state,
)
