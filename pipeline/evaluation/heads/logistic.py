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
    gram = support @ support.transpose(0, 2, 1)  # (e, m, m)
    classes = np.repeat(np.arange(c), m // c)
    truth = np.eye(c, dtype=np.float32)[classes]  # (m, c)
    # Of the loss: half the largest eigenvalue, of at most 2m, and the penalty.
    steepest = m + 1.0
    step = np.float32(steepest)
    root = np.sqrt(steepest)  # of the condition number: the penalty is 1
    momentum = np.float32((root - 1) / (root + 1))
    alpha = np.zeros((e, m, c), np.float32)
    b = np.zeros((e, 1, c), np.float32)
    # Gradients are taken where momentum leads to, ahead of where the weights are.
    ahead = alpha
    ahead_b = b
    for _ in range(STEPS):
        logits = gram @ ahead + ahead_b
        odds = np.exp(logits - logits.max(axis=2, keepdims=True))
        proba = odds / odds.sum(axis=2, keepdims=True)
        wrong = proba - truth
        next_alpha = ahead - (wrong + ahead) / step
        next_b = ahead_b - wrong.sum(axis=1, keepdims=True) / step
        ahead = next_alpha + momentum * (next_alpha - alpha)
        ahead_b = next_b + momentum * (next_b - b)
        alpha = next_alpha
        b = next_b
    return alpha, b[:, 0]
