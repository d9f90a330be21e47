"""Choosing on val: AUROC first, of equals the log-loss, in every head that chooses alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, log_loss

from pipeline.annotations.units import Units
from pipeline.config.heads import declared
from pipeline.evaluation.heads.contract import FitInput, Head
from pipeline.evaluation.metrics.quality import Quality, best_of, is_better, quality
from tests.pipeline.collection import units_of

NAN = float("nan")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_the_loss_is_scikit_learns(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "multilabel":
        y = (rng.random((60, 3)) < 0.4).astype(np.int8)
        proba = rng.random((60, 3))
        proba[:, 2] = np.nan  # no model
        y[:20, 1] = -1  # not known
        first = log_loss(y[:, 0], proba[:, 0])
        second = log_loss(y[20:, 1], proba[20:, 1])
        expected = (first + second) / 2
    else:
        c = 2 if kind == "binary" else 4
        y = rng.integers(0, c, 60)
        proba = rng.dirichlet(np.ones(c), 60)
        expected = log_loss(y, proba)
    assert quality(units_of(y), proba).loss == pytest.approx(expected)


def test_of_equals_the_smaller_loss_is_best_and_nan_never_is() -> None:
    qualities = [Quality(NAN, 0.1), Quality(0.9, 0.2), Quality(1.0, 0.7), Quality(1.0, 0.3)]
    assert best_of(qualities) == 3
    assert best_of([*qualities, Quality(1.0 - 1e-13, 0.1)]) == 4
    assert best_of([Quality(0.8, 0.5), Quality(0.8, 0.5)]) == 0
    assert best_of([Quality(NAN), Quality(NAN)]) is None
    assert best_of([]) is None
    assert is_better(Quality(1.0, 0.3), Quality(1.0, 0.7))
    assert is_better(Quality(0.5, 9.0), None)
    assert is_better(Quality(0.5, 9.0), Quality(NAN, 0.0))
    assert not is_better(Quality(NAN, 0.0), Quality(0.5, 9.0))
    assert not is_better(Quality(0.9, 0.0), Quality(1.0, 9.0))


def separable(seed: int) -> tuple[NDArray[np.float32], Units, dict[Any, NDArray[np.int64]]]:
    """Return features that tell 30 % of 150 units apart, so that many settings rank alike."""
    rng = np.random.default_rng(seed)
    y = (rng.random(150) < 0.3).astype(np.int64)
    spread = np.geomspace(1, 0.05, 96)
    classes = rng.standard_normal((2, 96)) * spread
    x = rng.standard_normal((150, 96)) * spread + classes[y]
    parts = dict(zip(("train", "val", "test"), np.split(np.arange(150), [90, 120]), strict=True))
    return x.astype(np.float32), units_of(y), parts


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("probe", {"steps": 12}),
        ("efficiency", {"steps": 6, "shots": [4], "draws": 2}),
        ("linear", {"features": "cls", "epochs": 30, "batch": 32}),
        ("attention", {"epochs": 12, "hidden": 16}),
    ],
)
def test_what_is_chosen_among_equals_says_more_than_one_class(
    name: str, settings: dict[str, Any]
) -> None:
    head = declared(name)
    assert isinstance(head, Head)
    reached = []
    for seed in range(3):
        x, units, parts = separable(seed)
        if head.sees == "slices":
            x = np.repeat(x, 2, axis=0) + np.float32(0.01) * np.tile([[1], [-1]], (150, 1))
            twice = np.arange(300)
            units = replace(units, rows=twice, unit=twice // 2)
        known = {part: parts[part] for part in ("train", "val")}
        given = FitInput(x.astype(np.float32), units, known, head.settings(**settings))
        predicted = head.predict(head.fit(given), given.x, parts["test"])
        *_, last = predicted.predictions
        called = last.proba.argmax(axis=1)
        reached.append(balanced_accuracy_score(units.y[parts["test"]], called))
    # The smallest C of equals called everything the commoner class: 0.5.
    assert np.mean(reached) > 0.8
