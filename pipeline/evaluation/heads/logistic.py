"""Logistic regression of many small problems at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 300

Floats = NDArray[np.float32]


def fit_logistic(support: Floats, c: int) -> tuple[Floats, Floats]:
    """Return alpha (e, m, c) and b (e, c) of e models: logits are (x @ support.T) @ alpha + b.

    Multinomial, C = 1, b not penalised, as scikit-learn's LogisticRegression by default, on unit
    length (Tian et al., arXiv 2003.11539). support (e, m, d), class after class in equal numbers.
    Weights lie in the span of the support, so that m * c numbers are fitted and not d * c; by
    Nesterov's method with the step and momentum that the conditions of the problem allow.
    """
    e, m, _ = support.shape
    gram = support @ support.transpose(0, 2, 1)
    truth = np.eye(c, dtype=np.float32)[np.repeat(np.arange(c), m // c)]
    steepest = m + 1.0  # of the loss: half the largest eigenvalue, of at most 2m, and the penalty
    momentum = np.float32((np.sqrt(steepest) - 1) / (np.sqrt(steepest) + 1))
    alpha, b = np.zeros((e, m, c), np.float32), np.zeros((e, 1, c), np.float32)
    ahead, ahead_b = alpha, b
    for _ in range(STEPS):
        logits = gram @ ahead + ahead_b
        odds = np.exp(logits - logits.max(axis=2, keepdims=True))
        wrong = odds / odds.sum(axis=2, keepdims=True) - truth
        after = ahead - (wrong + ahead) / np.float32(steepest)
        after_b = ahead_b - wrong.sum(axis=1, keepdims=True) / np.float32(steepest)
        ahead, ahead_b = after + momentum * (after - alpha), after_b + momentum * (after_b - b)
        alpha, b = after, after_b
    return alpha, b[:, 0]
