from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.heads import knn
from pipeline.evaluation.heads.knn import KnnSettings
from pipeline.evaluation.neighbours import build_inverted_file, neighbours, recall_of
from tests.pipeline.collection import answered, thirds, units_of

RNG = np.random.default_rng(0)


def vote(
    reference: NDArray[Any], targets: NDArray[Any], queries: NDArray[Any], ks: list[int]
) -> knn.Votes:
    x, n = np.concatenate([reference, queries]), len(reference)
    near = neighbours(x, np.arange(n), np.arange(n, len(x)), max(ks))
    return knn.soft_vote(*near, targets, ks, 0.07)


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
    votes = vote(reference, targets, queries, [5, 20])
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
    whole = vote(reference, targets, queries, [3])[3]
    monkeypatch.setattr(knn, "AT_ONCE", 5)
    np.testing.assert_array_equal(vote(reference, targets, queries, [3])[3], whole)


def test_train_and_val_are_the_reference_and_a_larger_k_is_said() -> None:
    x = np.eye(8, dtype=np.float32)
    x[6], x[7] = x[0] * 1.01, x[5] * 0.1  # the test units point as train unit 0 and val unit 5
    units = units_of(np.array([1, 0, 0, 0, 0, 1, 0, 0]))
    predictions, notes = answered(knn.HEAD, x, units, thirds(8), KnnSettings(k=(1, 6, 7)))
    assert [p.setting for p in predictions] == [{"k": 1}, {"k": 6}]
    np.testing.assert_allclose(predictions[0].proba, [[0, 1], [0, 1]])
    assert notes == ["k = 7 left out: only 6 reference units"]
    assert answered(knn.HEAD, x, units, thirds(8), KnnSettings(k=(7,)))[0] == []


def test_above_a_stated_size_an_inverted_file_finds_what_it_says() -> None:
    centres = RNG.standard_normal((40, 16)) * 2
    x = (centres[RNG.integers(0, 40, 4000)] + RNG.standard_normal((4000, 16))).astype(np.float32)
    units, parts = units_of(np.arange(4000) % 2), thirds(4000)
    exact, none = answered(knn.HEAD, x, units, parts, KnnSettings(k=(5, 10), exact_up_to=3000))
    assert none == []
    reference = np.concatenate([parts["train"], parts["val"]])
    true = neighbours(x, reference, parts["test"], 10)[1]
    probed = []
    for least in (0.5, 0.95, 1.0):
        settings = KnnSettings(k=(5, 10), exact_up_to=2999, recall=least)
        near, (note,) = answered(knn.HEAD, x, units, parts, settings)
        searched, lists, recall, sample = re.findall(
            r"(\d+) of (\d+) lists searched: ([\d.]+) of .* on (\d+) test units", note
        )[0]
        assert (lists, sample) == (str(4 * 54), "256")
        assert float(recall) >= least
        index = build_inverted_file(x, reference, parts["test"], 10, least)
        nearest = neighbours(x, reference, parts["test"], 10, index=index)[1]
        assert recall_of(nearest, true) == pytest.approx(float(recall), abs=0.04)
        probed.append(int(searched))
    assert probed[0] < probed[1] <= probed[2] <= 216
    assert (near[1].proba == exact[1].proba).all(axis=1).mean() > 0.99


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
        for t, nearest in enumerate(asked):
            j = carried[nearest].sum()
            yes = prior * (1 + c[j]) / (k + 1 + c.sum())
            no = (1 - prior) * (1 + c_not[j]) / (k + 1 + c_not.sum())
            out[t, label] = yes / (yes + no)
    return out


def test_ml_knn_is_the_formulas_and_no_patient_is_its_own_neighbour() -> None:
    reference = RNG.standard_normal((90, 6)).astype(np.float32)
    queries = RNG.standard_normal((15, 6)).astype(np.float32)
    targets = RNG.random((90, 3)) < 0.4
    patient = RNG.integers(0, 40, 90)
    x, rows = np.concatenate([reference, queries]), np.arange(90)
    whose = np.concatenate([patient, np.full(15, 99)])
    outside = neighbours(x, rows, np.arange(90, 105), 7, whose)[1]
    inside, itself = (neighbours(x, rows, rows, 7, own)[1] for own in (whose, None))
    ours = knn.ml_knn(inside, outside, targets, [3, 7])
    paper = knn.ml_knn(itself, outside, targets, [3, 7])
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
        settings = KnnSettings.model_validate({"k": [5, 60], "multilabel": name})
        predictions, notes = answered(knn.HEAD, x, many, thirds(80), settings)
        by_name[name] = [p.proba for p in predictions]
        assert len(notes) == (name == "mlknn")  # 60 others are not there: one is oneself
        assert len(answered(knn.HEAD, x, one, thirds(80), settings)[0]) == 2
    assert not np.allclose(by_name["soft"][0], by_name["mlknn"][0])
    assert not np.allclose(by_name["mlknn-paper"][0], by_name["mlknn"][0])


@pytest.mark.parametrize("multilabel", ["soft", "mlknn", "mlknn-paper"])
def test_an_unknown_label_is_as_if_the_unit_were_not_there_for_that_label(multilabel: Any) -> None:
    x = RNG.standard_normal((120, 6)).astype(np.float32)
    y = (RNG.random((120, 3)) < 0.4).astype(np.int8)
    hidden = (np.arange(120) < 90) & (RNG.random(120) < 0.3)
    masked = y.copy()
    masked[hidden, 1] = -1
    parts, settings = thirds(120), KnnSettings(k=(4,), multilabel=multilabel)
    ours = answered(knn.HEAD, x, units_of(masked), parts, settings)[0][0].proba
    whole = answered(knn.HEAD, x, units_of(y), parts, settings)[0][0].proba
    left = {name: rows[~hidden[rows]] for name, rows in parts.items()}
    without = answered(knn.HEAD, x, units_of(y), left, settings)[0][0].proba
    np.testing.assert_allclose(ours[:, [0, 2]], whole[:, [0, 2]])
    np.testing.assert_allclose(ours[:, 1], without[:, 1])
    assert not np.allclose(whole[:, 1], without[:, 1])


def test_k_is_chosen_on_val_by_neighbours_in_train_and_the_others_stay() -> None:
    rng = np.random.default_rng(3)
    y = np.arange(240) % 2
    x = rng.standard_normal((240, 6)).astype(np.float32)
    x[:, 0] += 1.5 * y
    units, parts = units_of(y), thirds(240)
    given, notes = answered(knn.HEAD, x, units, parts, KnnSettings(k=(1, 15, 180)))
    assert [p.setting["k"] for p in given] == [1, 15, 180]
    assert [p.chosen for p in given] == [False, True, False]
    assert notes == []
    # What is said of val is said by train alone; 180 of 120 is said by nobody.
    assert given[1].on_val is not None
    assert given[2].on_val is None
    train = parts["train"]
    whole = {"train": train[:60], "val": train[60:], "test": parts["val"]}
    of_val = answered(knn.HEAD, x, units, whole, KnnSettings(k=(15,)))[0][0].proba
    np.testing.assert_array_equal(given[1].on_val, of_val)
    alike = units_of(np.where(np.isin(np.arange(240), parts["val"]), 0, y))
    unsaid, notes = answered(knn.HEAD, x, alike, parts, KnnSettings(k=(1, 15, 180)))
    assert [p.chosen for p in unsaid] == [False, True, False]
    assert notes == ["k = 15 was not chosen on val: all val units have the same labels"]


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_unanimous_votes_are_one_and_classes_may_swap_their_names(temperature: float) -> None:
    rng = np.random.default_rng(4)
    cosine = np.sort(rng.uniform(0.2, 0.99, (2000, 20)).astype(np.float32), axis=1)[:, ::-1]
    nearest = np.arange(40_000).reshape(2000, 20)
    positive = rng.random(40_000) < 0.5
    positive[:10_000] = True
    targets = np.stack([~positive, positive], axis=1)
    votes = knn.soft_vote(cosine, nearest, targets, [5, 20], temperature)
    swapped = knn.soft_vote(cosine, nearest, targets[:, ::-1], [5, 20], temperature)
    for k in (5, 20):
        assert (votes[k][:500, 1] == 1).all()
        assert (votes[k][:500, 0] == 0).all()
        np.testing.assert_array_equal(votes[k], swapped[k][:, ::-1])
        np.testing.assert_array_equal(votes[k][:, 0], 1 - votes[k][:, 1])
        np.testing.assert_allclose(votes[k].sum(axis=1), 1, rtol=0, atol=1e-15)


def test_neighbours_of_one_number_give_that_number() -> None:
    cosine = np.sort(RNG.uniform(0.2, 0.99, (50, 9)).astype(np.float32), axis=1)[:, ::-1]
    votes = knn.soft_vote(cosine, np.zeros((50, 9), np.int64), np.array([[0.1]]), [9], 0.07)
    assert set(votes[9].ravel().tolist()) == {0.1}


def test_a_number_is_the_weighted_mean_of_the_neighbours() -> None:
    x = RNG.standard_normal((80, 5)).astype(np.float32)
    age = RNG.random(80) * 80
    units = replace(units_of(np.arange(80) % 2), y=age, kind="regression", classes=("age",))
    said = answered(knn.HEAD, x, units, thirds(80), KnnSettings(k=(7,)))[0][0].proba
    plain = dinov2_rule(x[:60], age[:60, None], x[60:], 7, 7)
    np.testing.assert_allclose(said, plain, rtol=1e-5)
