from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipeline.annotations.units import Units
from pipeline.evaluation.heads import fewshot
from pipeline.evaluation.heads.contract import fit_and_predict
from pipeline.evaluation.heads.fewshot import FewShotSettings
from pipeline.evaluation.heads.fixed_draw import fixed_draw
from pipeline.evaluation.heads.logistic import fit_logistic
from pipeline.results import Score
from tests.pipeline.collection import thirds, units_of


def score(
    x: NDArray[np.float32], units: Units, parts: Any, settings: FewShotSettings
) -> tuple[list[Score], list[str]]:
    """Return the scores of episodes, and their notes."""
    predicted = fit_and_predict(fewshot.HEAD, x, units, parts, settings)
    assert predicted.scores is not None
    return list(predicted.scores), list(predicted.notes)


def test_draws_are_sets_and_every_set_is_as_likely() -> None:
    drawn = fewshot.draw(np.random.default_rng(0), 5, 2, 20000)
    counts = dict.fromkeys(combinations(range(5), 2), 0)
    for pair in np.sort(drawn, axis=1).tolist():
        counts[tuple(pair)] += 1
    assert min(counts.values()) > 1850
    assert max(counts.values()) < 2150
    assert sorted(fewshot.draw(np.random.default_rng(0), 4, 4, 1)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("c", [2, 3])
def test_an_episode_is_the_nearest_centroid_stated_plainly(c: int) -> None:
    """With every patient drawn there is one possible episode: it can be worked out by hand."""
    rng = np.random.default_rng(1)
    y = np.arange(24 * c) % c
    x = (rng.standard_normal((24 * c, 6)) + np.eye(6)[y]).astype(np.float32)
    parts = thirds(24 * c)
    known = np.concatenate([parts["train"], parts["val"]])
    settings = FewShotSettings(shots=(18,), queries=100, episodes=2)
    scores, _ = score(x, units_of(y), parts, settings)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centroids = np.stack([unit[known][y[known] == j].mean(axis=0) for j in range(c)])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    cosine, truth = unit[parts["test"]] @ centroids.T, y[parts["test"]]
    metrics = scores[0].metrics
    assert metrics["accuracy"].value == pytest.approx((cosine.argmax(axis=1) == truth).mean())
    margin = np.stack(
        [cosine[:, j] - np.delete(cosine, j, axis=1).max(axis=1) for j in range(c)], axis=1
    )
    aurocs = [roc_auc_score(truth == j, margin[:, j]) for j in range(c)]
    assert metrics["auroc"].value == pytest.approx(np.mean(aurocs), abs=1e-6)


def test_more_shots_help_where_there_is_a_signal_and_chance_is_a_half() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 400)
    x = rng.standard_normal((400, 8)).astype(np.float32)
    settings = FewShotSettings(shots=(1, 8), episodes=400)
    for noise in score(x, units_of(y), thirds(400), settings)[0]:
        assert noise.metrics["auroc"].value == pytest.approx(0.5, abs=0.06)
    x[:, 0] += 2.0 * y
    one, eight = score(x, units_of(y), thirds(400), settings)[0]
    assert eight.metrics["accuracy"].value > one.metrics["accuracy"].value + 0.05
    low, high = one.metrics["accuracy"].low, one.metrics["accuracy"].high
    assert low is not None
    assert high is not None
    assert low < one.metrics["accuracy"].value < high


@pytest.mark.parametrize("head", ["centroid", "logistic"])
def test_episodes_are_the_same_whichever_class_is_positive(head: Any) -> None:
    rng = np.random.default_rng(7)
    y = rng.integers(0, 2, 120)
    x = (rng.standard_normal((120, 8)) + 0.3 * y[:, None]).astype(np.float32)
    settings = FewShotSettings(shots=(2,), episodes=40, head=head)
    (one,), _ = score(x, units_of(y), thirds(120), settings)
    (other,), _ = score(x, units_of(1 - y), thirds(120), settings)
    assert other.metrics == one.metrics


def test_episodes_that_all_agree_have_an_interval() -> None:
    y = np.arange(120) % 2
    x = np.ones((120, 8), np.float32)
    (found,), _ = score(x, units_of(y), thirds(120), FewShotSettings(shots=(2,), episodes=40))
    for metric in found.metrics.values():
        assert metric.value == 0.5
        assert metric.low is not None
        assert metric.high is not None
        assert metric.high - metric.low > 0.2


def test_shots_are_patients_and_not_their_images() -> None:
    y = np.arange(80) % 2
    groups = np.arange(80) // 8  # 10 patients, each with images of both classes
    _, notes = score(
        np.eye(80, dtype=np.float32), units_of(y, groups), thirds(80), FewShotSettings(shots=(8, 9))
    )
    assert notes == ["9 shots of all classes left out: a class has too few patients"]


def test_multilabel_averages_two_way_problems_and_names_those_left_out() -> None:
    rng = np.random.default_rng(3)
    y = (rng.random((200, 3)) < 0.5).astype(np.int8)
    y[:, 2] = np.arange(200) == 0
    x = (rng.standard_normal((200, 6)) + np.pad(2 * y, ((0, 0), (0, 3)))).astype(np.float32)
    scores, notes = score(x, units_of(y), thirds(200), FewShotSettings(shots=(4,), episodes=50))
    each = scores[0].labels
    assert set(each) == {"a", "b"}
    mean = np.mean([metrics["auroc"].value for metrics in each.values()])
    assert scores[0].metrics["auroc"].value == pytest.approx(mean)
    assert notes == ["4 shots of c left out: a class has too few patients"]


def test_chunks_of_episodes_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.arange(100) % 2
    x = np.random.default_rng(4).standard_normal((100, 4)).astype(np.float32)
    settings = FewShotSettings(shots=(2,), episodes=100)
    monkeypatch.setattr(fewshot, "GATHERED", 2**9)
    scores, _ = score(x, units_of(y), thirds(100), settings)
    again, _ = score(x, units_of(y), thirds(100), settings)
    assert scores == again
    assert scores[0].metrics["auroc"].value == pytest.approx(0.5, abs=0.15)


def test_simpleshot_is_the_centroid_of_centred_features() -> None:
    rng = np.random.default_rng(5)
    y = np.arange(200) % 2
    x = (rng.standard_normal((200, 8)) + 0.5 * y[:, None]).astype(np.float32)
    far, parts = x + 50, thirds(200)
    centred = x - x[: 200 * 3 // 4].mean(axis=0)
    simpleshot = FewShotSettings(shots=(8,), episodes=100, head="simpleshot")
    plain = FewShotSettings(shots=(8,), episodes=100)
    ours = score(far, units_of(y), parts, simpleshot)[0][0].metrics["auroc"].value
    expected = score(centred, units_of(y), parts, plain)[0][0].metrics["auroc"].value
    assert ours == pytest.approx(expected, abs=1e-3)
    uncentred = score(far, units_of(y), parts, plain)[0][0].metrics["auroc"].value
    assert abs(uncentred - expected) > 0.01


def test_a_patient_whose_label_is_not_known_stands_on_neither_side() -> None:
    y = np.tile(np.array([[0, 0], [1, 1]], np.int8), (40, 1))
    y[:70, 1] = -1
    settings = FewShotSettings(shots=(1,), episodes=10)
    scores, notes = score(np.eye(80, dtype=np.float32), units_of(y), thirds(80), settings)
    assert notes == ["1 shots of b left out: a class has too few patients"]
    assert scores[0].labels == {}


def test_the_logistic_head_is_scikit_learns() -> None:
    rng = np.random.default_rng(7)
    for c, k in ((2, 1), (2, 16), (4, 5)):
        y = np.repeat(np.arange(c), k)
        support = rng.standard_normal((3, c * k, 12)).astype(np.float32)
        support /= np.linalg.norm(support, axis=2, keepdims=True)
        alpha, b = fit_logistic(support, c)
        for s, a, offset in zip(support, alpha, b, strict=True):
            logits = (support[0] @ s.T) @ a + offset
            # Two opposed weight vectors share the penalty of scikit-learn's one: half as strong.
            model = LogisticRegression(C=2 if c == 2 else 1, max_iter=10000, tol=1e-10)
            model.fit(s.astype(float), y)
            proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(proba, model.predict_proba(support[0]), atol=1e-4)
    rng = np.random.default_rng(8)
    y = np.arange(200) % 2
    x = (rng.standard_normal((200, 8)) + 0.7 * y[:, None]).astype(np.float32)
    heads = ("centroid", "logistic")
    asked = [FewShotSettings(shots=(8,), episodes=100, head=head) for head in heads]
    centroid, logistic = (
        score(x, units_of(y), thirds(200), each)[0][0].metrics["auroc"].value for each in asked
    )
    assert logistic == pytest.approx(centroid, abs=0.05)
    assert logistic != centroid


def test_the_interval_covers_what_other_patients_would_say() -> None:
    """Trials of the same question with other patients; the truth is their mean."""
    rng = np.random.default_rng(9)
    settings = FewShotSettings(shots=(4,), episodes=100)
    y, found = np.arange(120) % 2, []
    for _ in range(60):
        x = (rng.standard_normal((120, 4)) + 0.8 * y[:, None] * np.eye(4)[0]).astype(np.float32)
        found.append(score(x, units_of(y), thirds(120), settings)[0][0].metrics)
    for name in ("accuracy", "auroc"):
        truth = np.mean([metrics[name].value for metrics in found])
        covered = [(m[name].low or 0) <= truth <= (m[name].high or 0) for m in found]
        assert 52 <= sum(covered) <= 60


def test_the_papers_draw_is_the_first_patients_of_each_class() -> None:
    y = np.array(
        [[1, 0], [0, 0], [1, 1], [1, 1], [0, 1], [0, 1], [1, 1], [0, 1]], np.int8
    )  # fmt: skip
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4])
    units, train = units_of(y, groups), np.arange(7)
    # patient 0 does not always carry a; patient 1 does, and is not replaced for b
    assert fixed_draw(units, train, 1).tolist() == [2, 3]
    assert fixed_draw(units, train, 2).tolist() == [2, 3, 4, 5, 6]
    plain = units_of(np.arange(10) % 2)
    assert fixed_draw(plain, np.arange(10), 4).tolist() == [0, 2, 5, 8]
    assert fixed_draw(plain, np.arange(3), 16).tolist() == [0, 1, 2]
