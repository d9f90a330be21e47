"""Every metric of a task, under b columns of weights at once.

Dims: n units, c classes, b draws, s scored columns, r terms of a decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.texts import is_number
from pipeline.annotations.units import Truth
from pipeline.config.tasks import CLASS_KINDS
from pipeline.evaluation.metrics.bootstrap import Key, Values
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.metrics.survival import concordances
from pipeline.evaluation.metrics.weighted import (
    SPECIFICITY,
    RankMetrics,
    confusion_table,
    decision_metrics,
    decision_terms,
    f1_by_class,
    mean,
    quadratic_kappa,
    rank_metrics,
    ratio,
    regression,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]
# (b,) values, or (s, b) of each scored class or label, by the name of the metric
ByMetric = dict[str, Floats]

RANKING = (
    "auroc",
    "average_precision",
    f"sensitivity_at_specificity_{SPECIFICITY}",
)


# --- columns -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredColumn:
    """One class or label of n units: which carry it, of which that is known, how likely it is.

    thresholds (n,): from which on each unit is called so; NaN where that is above one half.
    """

    name: str
    positive: Bools
    known: Bools
    proba: Floats
    thresholds: Floats

    @property
    def called(self) -> Bools:
        """(n,): which units are called so."""
        return is_called(self.proba, self.thresholds)


def columns_of(
    truth: Truth,
    proba: Floats,
    thresholds: Floats | None = None,
) -> list[ScoredColumn]:
    """Return the columns that are scored: those with a model, or the positive of two.

    proba, thresholds: (n, c).
    """
    if thresholds is None:
        thresholds = np.full(proba.shape, np.nan)
    indicator = truth.indicator
    known = truth.known
    has_model = ~np.isnan(proba)
    scored = [1] if truth.kind == "binary" else np.flatnonzero(has_model.any(axis=0)).tolist()
    # Of several models one may lack a label: nothing of it is known of the units that it scored.
    known = known & has_model
    proba = np.where(has_model, proba, 0.0)
    return [
        ScoredColumn(
            truth.classes[j],
            indicator[:, j],
            known[:, j],
            proba[:, j],
            thresholds[:, j],
        )
        for j in scored
    ]


def one_sided(truth: Truth) -> list[str]:
    """Return the classes that all units carry, or none does: nothing can be ranked by them."""
    if truth.kind not in CLASS_KINDS:
        return []
    is_carried = truth.indicator.any(axis=0)
    is_lacked = (truth.known & ~truth.indicator).any(axis=0)
    has_both = np.logical_and(is_carried, is_lacked).tolist()
    return [name for name, both in zip(truth.classes, has_both, strict=True) if not both]


def _has_two_sides(column: ScoredColumn) -> bool:
    """Return whether some units are known to carry a label, and others to lack it."""
    lacked = column.known & ~column.positive
    return bool(column.positive.any() and lacked.any())


# --- every metric --------------------------------------------------------------------------


def all_metrics(
    truth: Truth,
    proba: Floats,
    weights: Floats,
    thresholds: Floats | None = None,
) -> Values:
    """Return every metric of one model under each column of weights (n, b).

    What needs a decision takes the likeliest class, the first of equals; of two classes, and of a
    label, the positive from its threshold (n, c) on, or without one above 0.5 (so that 0.5 itself
    is a no). It is averaged over classes or labels; the f1 of two classes, and so of a label, is
    the positive's, as sensitivity, specificity, ppv and npv are. What ranks (auroc, average
    precision, sensitivity at a specificity of 0.9) is of one class against the rest, and their
    mean; for binary, of the positive alone; `_micro` ranks all (unit, class) pairs together. brier
    is half the squared distance (binary and multi-label: the plain square); ece is of the positive,
    or for multi-class of the likeliest class. A label that is not known of a unit leaves the unit
    out for that label; one whose column is NaN has no model and stays out of every mean, and one
    that all units carry, or none, has nothing said of it alone.
    """
    counted = _counted_metrics(truth, proba, weights, thresholds)
    return counted | _ranking_metrics(truth, proba, weights)


def metrics_over_folds(
    truth: Truth,
    proba: Floats,
    fold: Numbers,
    weights: Floats,
    thresholds: Floats | None = None,
) -> Values:
    """Return every metric of several models, each of which scored the units of its fold (n,).

    What is counted unit by unit is counted over all folds together, and what ranks is the mean over
    folds, since scores of two models do not compare (Forman and Scholz, SIGKDD Explorations 12(1),
    2010). In a fold of few units F1, ECE and R2 would be off by more than chance.
    """
    counted = _counted_metrics(truth, proba, weights, thresholds)
    ranking = []
    for i in np.unique(fold):
        on = fold == i
        ranking.append(_ranking_metrics(truth.at(on), proba[on], weights[on]))
    return counted | mean_of_models(ranking)


def mean_of_models(each: Iterable[Values]) -> Values:
    """Return the mean of each metric over the models that define it."""
    by_key: dict[Key, list[Floats]] = {}
    for of_model in each:
        for key, values in of_model.items():
            by_key.setdefault(key, []).append(values)
    return {key: mean(np.array(values)) for key, values in by_key.items()}


def _counted_metrics(
    truth: Truth,
    proba: Floats,
    weights: Floats,
    thresholds: Floats | None,
) -> Values:
    """Return what is a function of sums over units: decisions, probabilities, numbers."""
    if truth.kind == "regression":
        return _for_all(regression(truth.y, proba[:, 0], weights))
    if truth.kind == "survival":
        return {}
    columns = columns_of(truth, proba, thresholds)
    if truth.kind == "multilabel":
        joint, by_label = _decisions_on_labels(columns, weights)
        return _for_all(joint) | _for_each(columns, by_label)
    decided = proba.argmax(axis=1)
    if truth.kind == "binary":
        (positive,) = columns
        decided = positive.called.astype(np.int64)
    joint, by_class = _decisions_on_classes(truth, proba, decided, weights)
    if truth.kind == "binary":
        return _for_all(joint)
    return _for_all(joint) | _for_each(columns, by_class)


def _ranking_metrics(
    truth: Truth,
    proba: Floats,
    weights: Floats,
) -> Values:
    """Return what depends on the order of units alone."""
    if truth.kind == "regression":
        return {}
    if truth.kind == "survival":
        return _for_all(concordances(truth, proba[:, 0], weights))
    columns = columns_of(truth, proba)
    by_label = _ranks_by_label(columns, weights)
    # Labels without both sides are NaN by now, and stay out of the mean.
    joint = {name: mean(values) for name, values in by_label.items()}
    if truth.kind == "binary":
        return _for_all(joint)
    joint |= _micro_ranks(columns, weights)
    return _for_all(joint) | _for_each(columns, by_label)


def _for_all(joint: ByMetric) -> Values:
    return {(name, ""): values for name, values in joint.items()}


def _for_each(columns: list[ScoredColumn], by_label: ByMetric) -> Values:
    """Return the values (s, b) of each scored class or label that has two sides, by its name."""
    has_two_sides = [_has_two_sides(column) for column in columns]
    values: Values = {}
    for metric, of_labels in by_label.items():
        for i, of_label in enumerate(of_labels):
            if has_two_sides[i]:
                values[metric, columns[i].name] = of_label
    return values


def _ranks_by_label(columns: list[ScoredColumn], weights: Floats) -> ByMetric:
    """Return what ranks, (s, b) of each scored class or label against the rest."""
    each: list[RankMetrics] = []
    for column in columns:
        # A slice, where it can be, saves a copy of the weights.
        on = slice(None) if column.known.all() else column.known
        each.append(rank_metrics(column.positive[on], column.proba[on], weights[on]))
    by_metric = zip(*each, strict=True)
    return {name: np.stack(of_labels) for name, of_labels in zip(RANKING, by_metric, strict=False)}


def _micro_ranks(columns: list[ScoredColumn], weights: Floats) -> ByMetric:
    """Return what ranks all (unit, class) pairs that are known together, unit by unit."""
    if not columns:
        return {}
    known = np.stack([column.known for column in columns], axis=1)
    positive = np.stack([column.positive for column in columns], axis=1)
    proba = np.stack([column.proba for column in columns], axis=1)
    unit, _ = np.nonzero(known)
    ranks = rank_metrics(positive[known], proba[known], weights[unit])
    return {
        "auroc_micro": ranks.auroc,
        "average_precision_micro": ranks.average_precision,
    }


def _decisions_on_classes(
    truth: Truth,
    proba: Floats,
    decided: Numbers,
    weights: Floats,
) -> tuple[ByMetric, ByMetric]:
    """Return what is of all classes, and (c, b) what is of each; decided (n,): the class said."""
    c = len(truth.classes)
    terms = decision_terms(truth.indicator, proba, decided)
    sums = terms @ weights
    joint = decision_metrics(sums, c)
    table = confusion_table(sums, c)
    # Distances between classes mean something where classes are numbers, such as grades.
    if c > 2 and all(map(is_number, truth.classes)):
        joint["quadratic_kappa"] = quadratic_kappa(table)
    return joint, {"f1": f1_by_class(table)}


def _decisions_on_labels(
    columns: list[ScoredColumn],
    weights: Floats,
) -> tuple[ByMetric, ByMetric]:
    """Return the means over labels, and (s, b) of each label, a matter of two classes."""
    if not columns:
        return {}, {}
    terms = [_terms_of_label(column) for column in columns]
    # The labels' terms below each other: one product with the weights serves all of them.
    sums = np.concatenate(terms) @ weights
    sums = sums.reshape(len(terms), len(terms[0]), -1)
    each = [decision_metrics(of_label, 2) for of_label in sums]
    by_label = {}
    for name in each[0]:
        by_label[name] = np.stack([metrics[name] for metrics in each])
    joint = {name: mean(values) for name, values in by_label.items()}
    joint["f1_micro"] = _micro_f1(sums)
    return joint, by_label


def _terms_of_label(column: ScoredColumn) -> Floats:
    """Return the `decision_terms` of a label as two classes, nil for units it is not known of."""
    terms = decision_terms(
        np.stack([~column.positive, column.positive], axis=1),
        np.stack([1 - column.proba, column.proba], axis=1),
        column.called.astype(np.int64),
    )
    return terms * column.known


def _micro_f1(sums: Floats) -> Floats:
    """Return the F1 of all (unit, label) pairs, from the sums (s, r, b) of each label's terms."""
    # The first four terms are a table of two classes: true and decided 0 0, 0 1, 1 0, 1 1.
    wrong = sums[:, 1:3].sum(axis=(0, 1))
    right = sums[:, 3].sum(axis=0)
    return ratio(2 * right, 2 * right + wrong)
