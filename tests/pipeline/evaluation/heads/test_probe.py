from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.heads import probe, probe_fit
from pipeline.evaluation.heads.contract import FitInput
from pipeline.evaluation.heads.probe import ProbeSettings
from tests.pipeline.collection import answered, thirds, units_of


def planted(n: int, y: NDArray[Any], d: int = 12) -> NDArray[np.float32]:
    """Return features far from the origin (n, d) whose first columns lean to y."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) + 3
    signal = y if y.ndim == 2 else np.eye(y.max() + 1)[y]
    x[:, : signal.shape[1]] += signal
    return x.astype(np.float32)


@pytest.mark.parametrize("c", [2, 3])
def test_it_is_scikit_learns_model_at_the_c_that_is_best_on_val(c: int) -> None:
    y = np.random.default_rng(1).integers(0, c, 400)
    x, parts = planted(400, y), thirds(400)
    settings = ProbeSettings(low=-4, high=2, steps=7)
    predictions, notes = answered(probe.HEAD, x, units_of(y), parts, settings)
    plain = x.astype(np.float64)

    def fitted(rows: NDArray[Any], value: float) -> LogisticRegression:
        return LogisticRegression(C=value, max_iter=10000, tol=1e-10).fit(plain[rows], y[rows])

    def auroc(value: float) -> float:
        proba = fitted(parts["train"], value).predict_proba(plain[parts["val"]])
        truth = y[parts["val"]]
        return float(roc_auc_score(truth, proba[:, 1] if c == 2 else proba, multi_class="ovr"))

    chosen = predictions[0].setting["C"]
    aurocs = {value: auroc(value) for value in 10 ** np.linspace(-4, 2, 7)}
    assert aurocs[chosen] == pytest.approx(max(aurocs.values()), abs=1e-3)
    both = np.concatenate([parts["train"], parts["val"]])
    expected = fitted(both, chosen).predict_proba(plain[parts["test"]])
    np.testing.assert_allclose(predictions[0].proba, expected, atol=2e-3)
    assert all("edge of the grid" in note for note in notes)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_fit_goes_on_far_enough_whatever_the_scale_of_the_features(scale: float) -> None:
    y = np.random.default_rng(7).integers(0, 2, 600)
    x = scale * (planted(600, y, 60) * np.geomspace(1, 0.02, 60)).astype(np.float32)
    parts, c = thirds(600), 1e3 / scale**2
    (found,), _ = answered(
        probe.HEAD, x, units_of(y), parts, ProbeSettings(low=np.log10(c), high=np.log10(c), steps=1)
    )
    both, wide = np.concatenate([parts["train"], parts["val"]]), x.astype(np.float64) / scale
    model = LogisticRegression(C=1e3, max_iter=100_000, tol=1e-10).fit(wide[both], y[both])
    expected = model.predict_proba(wide[parts["test"]])
    assert abs(found.proba - expected).mean() < 5e-3


def test_of_equals_the_c_of_the_smaller_log_loss_is_chosen_and_an_edge_is_said() -> None:
    y = np.arange(80) % 2
    x = (y[:, None] * 10 + np.zeros((80, 3))).astype(np.float32)  # every C ranks perfectly
    predictions, notes = answered(probe.HEAD, x, units_of(y), thirds(80), ProbeSettings(steps=5))
    assert predictions[0].setting["C"] == pytest.approx(1e5)
    assert notes[0] == "C = 100000 is at the edge of the grid"
    # The smallest says one half of everything: it ranks as well, and decides nothing.
    assert (predictions[0].proba[:, 1].round() == y[60:]).all()
    assert predictions[0].on_val is not None
    assert predictions[0].on_val.shape == (20, 2)


def test_multilabel_is_one_model_a_label() -> None:
    rng = np.random.default_rng(2)
    y = (rng.random((300, 3)) < 0.4).astype(np.int8)
    y[:150, 2] = 0  # the third label is never seen in train
    x, parts = planted(300, y), thirds(300)
    predictions, notes = answered(
        probe.HEAD, x, units_of(y), parts, ProbeSettings(low=-2, high=1, steps=4)
    )
    proba, c = predictions[0].proba, predictions[0].setting["C"]
    both = np.concatenate([parts["train"], parts["val"]])
    for j in (0, 1):
        model = LogisticRegression(C=c, max_iter=10000, tol=1e-10).fit(x[both], y[both, j])
        np.testing.assert_allclose(
            proba[:, j], model.predict_proba(x[parts["test"]])[:, 1], atol=2e-3
        )
    assert np.isnan(proba[:, 2]).all()
    assert notes[0] == "'c' has no model: all or none of the train units carry it"


def test_a_class_that_train_lacks_is_no_crash() -> None:
    y = np.random.default_rng(3).integers(0, 2, 100)
    y[80:85] = 2
    predictions, notes = answered(
        probe.HEAD, planted(100, y), units_of(y), thirds(100), ProbeSettings(steps=3)
    )
    assert (predictions[0].proba[:, 2] == 0).all()
    assert notes[0].startswith("'c' has no model")


def test_train_of_one_class_is_said_and_val_of_one_class_leaves_c_unchosen() -> None:
    y = np.zeros(80, np.int64)
    y[40:] = 1
    predictions, notes = answered(
        probe.HEAD, planted(80, y), units_of(y), thirds(80), ProbeSettings(steps=3)
    )
    assert predictions == []
    assert len(notes) == 2
    y[:40] = np.arange(40) % 2
    predictions, notes = answered(
        probe.HEAD, planted(80, y), units_of(y), thirds(80), ProbeSettings(low=-3, high=4, steps=8)
    )
    assert predictions[0].setting["C"] == pytest.approx(1)
    assert notes[0] == "C = 1 was not chosen: all val units have the same labels"


def test_fits_that_stop_early_are_counted_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_fit, "MAX_ITER", 1)
    y = np.random.default_rng(4).integers(0, 2, 100)
    _, notes = answered(
        probe.HEAD, planted(100, y), units_of(y), thirds(100), ProbeSettings(steps=3)
    )
    assert any("fits stopped before they converged" in note for note in notes)


@pytest.mark.parametrize(("c", "stopped"), [(1e5, True), (1.0, False)])
def test_a_c_too_large_for_the_fit_to_feel_is_noted_where_it_is_checked(
    c: float, stopped: bool
) -> None:
    """Classes that can be told apart: the loss is flat before the penalty has its say."""
    rng = np.random.default_rng(1)
    y = rng.choice(2, 300, p=[0.92, 0.08])
    spread = np.geomspace(1, 0.05, 64)
    classes = 0.2 * rng.standard_normal((2, 64)) * spread
    x = (rng.standard_normal((300, 64)) * spread + classes[y]).astype(np.float32)
    settings = ProbeSettings(low=np.log10(c), high=np.log10(c), steps=1)
    predictions, notes = answered(probe.HEAD, x, units_of(y), thirds(300), settings)
    assert any("stopped before it converged" in note for note in notes) == stopped
    parts = thirds(300)
    model = probe_fit.fit_unchecked(FitInput(x, units_of(y), parts, settings))
    assert not any("stopped before it converged" in note for note in model.notes)
    (unchecked,) = probe_fit.predict(model, x, parts["test"]).predictions
    np.testing.assert_array_equal(unchecked.proba, predictions[0].proba)


def test_an_unknown_label_is_not_fitted_and_its_unit_serves_the_others() -> None:
    rng = np.random.default_rng(5)
    y = (rng.random((300, 2)) < 0.4).astype(np.int8)
    x, parts = planted(300, y), thirds(300)
    hidden = (np.arange(300) < 225) & (rng.random(300) < 0.4)
    masked = y.copy()
    masked[hidden, 1] = -1
    predictions, _ = answered(
        probe.HEAD, x, units_of(masked), parts, ProbeSettings(low=-2, high=1, steps=4)
    )
    proba, c = predictions[0].proba, predictions[0].setting["C"]
    both = np.concatenate([parts["train"], parts["val"]])
    for j, rows in enumerate([both, both[~hidden[both]]]):
        model = LogisticRegression(C=c, max_iter=10000, tol=1e-10).fit(x[rows], y[rows, j])
        expected = model.predict_proba(x[parts["test"]])[:, 1]
        np.testing.assert_allclose(proba[:, j], expected, atol=2e-3)


@pytest.mark.parametrize("d", [12, 400])
def test_a_number_is_predicted_by_scikit_learns_ridge_at_the_alpha_that_is_best_on_val(
    d: int,
) -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((240, d)) + 3).astype(np.float32)
    age = 50 + 10 * x[:, 0] + rng.standard_normal(240) * 5
    units = replace(units_of(np.arange(240) % 2), y=age, kind="regression", classes=("age",))
    parts, settings = thirds(240), ProbeSettings(low=-4, high=2, steps=13)
    predictions, notes = answered(probe.HEAD, x, units, parts, settings)

    def fitted(rows: NDArray[Any], alpha: float) -> Ridge:
        return Ridge(alpha=alpha, solver="svd").fit(x[rows].astype(float), age[rows])

    errors = {
        alpha: ((fitted(parts["train"], alpha).predict(x[parts["val"]]) - age[parts["val"]]) ** 2)
        .mean()
        for alpha in 1 / 10 ** np.linspace(-4, 2, 13)
    }  # fmt: skip
    chosen = predictions[0].setting["alpha"]
    assert chosen == pytest.approx(min(errors, key=lambda alpha: errors[alpha]))
    both = np.concatenate([parts["train"], parts["val"]])
    expected = fitted(both, chosen).predict(x[parts["test"]].astype(float))
    np.testing.assert_allclose(predictions[0].proba[:, 0], expected, rtol=1e-7)
    assert notes == []


@pytest.mark.parametrize("setting", [{"C": 0.1}, {"alpha": 10.0}])
def test_what_was_chosen_is_all_that_is_tried_then(setting: dict[str, float]) -> None:
    settings = ProbeSettings(scaling="standardise").chosen(setting)
    assert settings.scaling == "standardise"
    np.testing.assert_allclose(probe_fit._grid(settings), [0.1])
