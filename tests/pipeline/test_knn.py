from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import knn
from pipeline.config import Knn
from tests.pipeline.collection import thirds, units_of

RNG = np.random.default_rng(0)


def dinov2_rule(
    reference: NDArray[Any], targets: NDArray[Any], queries: NDArray[Any], k: int, largest: int
) -> NDArray[np.float64]:
    """DINOv2's vote for one query at a time, in float64, as its formula reads."""
    votes = np.zeros((len(queries), targets.shape[1]))
    unit = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    for i, query in enumerate(queries.astype(float)):
        cosine = unit.astype(float) @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosine)[:largest]
        weights = np.exp(cosine[nearest] / 0.07)
        weights /= weights.sum()
        for weight, row in list(zip(weights, nearest, strict=True))[:k]:
            votes[i] += weight * targets[row]
    return votes


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_vote_is_dinov2s_up_to_its_scale(multilabel: bool) -> None:
    reference = RNG.standard_normal((300, 16)).astype(np.float32)
    queries = RNG.standard_normal((40, 16)).astype(np.float32)
    targets = (
        RNG.random((300, 3)) < 0.4 if multilabel else np.eye(3, dtype=bool)[RNG.integers(0, 3, 300)]
    )
    votes = knn.soft_vote(reference, targets, queries, [5, 20], 0.07)
    np.testing.assert_allclose(
        votes[20], dinov2_rule(reference, targets, queries, 20, 20), atol=2e-6
    )
    unscaled = dinov2_rule(reference, targets, queries, 5, 20)
    share = dinov2_rule(reference, np.ones((300, 1)), queries, 5, 20)
    np.testing.assert_allclose(votes[5], unscaled / share, atol=2e-6)
    if not multilabel:
        np.testing.assert_allclose(votes[5].sum(axis=1), 1)


def test_many_queries_are_scored_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = RNG.standard_normal((50, 8)).astype(np.float32)
    targets = np.eye(2, dtype=bool)[RNG.integers(0, 2, 50)]
    queries = RNG.standard_normal((23, 8)).astype(np.float32)
    whole = knn.soft_vote(reference, targets, queries, [3], 0.07)[3]
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 5)
    np.testing.assert_array_equal(knn.soft_vote(reference, targets, queries, [3], 0.07)[3], whole)


def test_train_and_val_are_the_reference_and_a_larger_k_is_said() -> None:
    x = np.eye(8, dtype=np.float32)
    x[6], x[7] = x[0] * 3, x[5] * 0.1  # the test units point as train unit 0 and val unit 5
    units = units_of(np.array([1, 0, 0, 0, 0, 1, 0, 0]))
    predictions, notes = knn.predict(x, units, thirds(8), Knn(k=(1, 6, 7)))
    assert [p.setting for p in predictions] == [{"k": 1}, {"k": 6}]
    np.testing.assert_allclose(predictions[0].proba, [[0, 1], [0, 1]])
    assert notes == ["k = 7 left out: only 6 reference units"]
    assert knn.predict(x, units, thirds(8), Knn(k=(7,)))[0] == []


def test_a_zero_feature_is_near_to_nothing_and_breaks_nothing() -> None:
    np.testing.assert_array_equal(knn.unit_length(np.zeros((1, 4), np.float32)), np.zeros((1, 4)))


def ml_knn_as_written(
    reference: NDArray[Any],
    targets: NDArray[Any],
    queries: NDArray[Any],
    k: int,
    may: Callable[[int, int], bool],
) -> NDArray[np.float64]:
    """Zhang and Zhou's formulas, an instance at a time; may(i, j): j can be i's neighbour."""
    unit = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    m, labels = targets.shape
    near = [
        [j for j in np.argsort(-unit @ unit[i], kind="stable") if may(i, int(j))][:k]
        for i in range(m)
    ]
    asked = [np.argsort(-unit @ (q / np.linalg.norm(q)), kind="stable")[:k] for q in queries]
    out = np.empty((len(queries), labels))
    for label in range(labels):
        carried = targets[:, label]
        prior = (1 + carried.sum()) / (2 + m)
        c, c_not = np.zeros(k + 1), np.zeros(k + 1)
        for i in range(m):
            delta = carried[near[i]].sum()
            (c if carried[i] else c_not)[delta] += 1
        for t, neighbours in enumerate(asked):
            j = carried[neighbours].sum()
            yes = prior * (1 + c[j]) / (k + 1 + c.sum())
            no = (1 - prior) * (1 + c_not[j]) / (k + 1 + c_not.sum())
            out[t, label] = yes / (yes + no)
    return out


def test_ml_knn_is_the_formulas_and_no_patient_is_its_own_neighbour() -> None:
    reference = RNG.standard_normal((90, 6)).astype(np.float32)
    queries = RNG.standard_normal((15, 6)).astype(np.float32)
    targets = RNG.random((90, 3)) < 0.4
    patient = RNG.integers(0, 40, 90)
    ours = knn.ml_knn(reference, targets, queries, [3, 7], patient)
    paper = knn.ml_knn(reference, targets, queries, [3, 7], None)
    for k in (3, 7):
        plain = ml_knn_as_written(
            reference, targets, queries, k, lambda i, j: patient[i] != patient[j]
        )
        np.testing.assert_allclose(ours[k], plain, atol=1e-12)
        leaky = ml_knn_as_written(reference, targets, queries, k, lambda i, j: True)
        np.testing.assert_allclose(paper[k], leaky, atol=1e-12)
    assert abs(ours[3] - paper[3]).max() > 0.01


def test_ml_knn_is_chosen_by_name_and_for_multilabel_only() -> None:
    x = RNG.standard_normal((80, 5)).astype(np.float32)
    many = units_of((RNG.random((80, 2)) < 0.5).astype(np.int8))
    one = units_of(RNG.integers(0, 2, 80))
    by_name: dict[str, list[Any]] = {}
    for name in ("soft", "mlknn", "mlknn-paper"):
        settings = Knn.model_validate({"k": [5, 60], "multilabel": name})
        predictions, notes = knn.predict(x, many, thirds(80), settings)
        by_name[name] = [p.proba for p in predictions]
        assert len(notes) == (name == "mlknn")  # 60 others are not there: one is oneself
        assert len(knn.predict(x, one, thirds(80), settings)[0]) == 2
    assert not np.allclose(by_name["soft"][0], by_name["mlknn"][0])
    assert not np.allclose(by_name["mlknn-paper"][0], by_name["mlknn"][0])
