from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from pipeline.annotations.units import Units
from pipeline.config.tasks import Pool
from pipeline.evaluation import pooling
from pipeline.evaluation.pooling import read_features, scaled
from pipeline.results import Tally
from stores import FeatureStore
from tests.pipeline.collection import make_store

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    cls = RNG.standard_normal((64, 4, 6)).astype(np.float16)
    return make_store(tmp_path_factory.mktemp("pooling") / "store", cls, [{} for _ in range(64)])


def units_over(unit: NDArray[np.int64]) -> Units:
    n = int(unit.max()) + 1
    names = np.arange(n).astype(str)
    rows = np.arange(len(unit))
    return Units(np.arange(n) % 2, names, ("a", "b"), "binary", names, rows, unit, Tally())


@pytest.mark.parametrize("pool", ["mean", "max", "gem3", "top5"])
@pytest.mark.parametrize("at_once", [5, 10_000])
def test_pools_are_their_formulas_however_the_rows_are_read(
    store: FeatureStore, pool: Pool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "ROWS_AT_ONCE", at_once)
    unit = np.concatenate([np.arange(9), RNG.integers(0, 9, 55)])  # interleaved
    got = read_features(store, units_over(unit), "cls", pool)
    values = store.read("cls", range(64))[:, -1].astype(np.float64)
    for i in range(9):
        own = values[unit == i]
        expected = {
            "mean": own.mean(axis=0),
            "max": own.max(axis=0),
            "gem3": np.cbrt((own**3).mean(axis=0)),
            "top5": np.array([np.sort(column)[-5:].mean() for column in own.T]),
        }[pool]
        np.testing.assert_allclose(got[i], expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "max", "gem3", "top5"])
def test_a_unit_of_one_slice_is_that_slice(store: FeatureStore, pool: Pool) -> None:
    got = read_features(store, units_over(np.arange(64)), "cls4+mean", pool)
    cls = store.read("cls", range(64)).astype(np.float32).reshape(64, -1)
    np.testing.assert_array_equal(got, np.concatenate([cls, cls[:, -6:]], axis=1))


def test_scalings_are_scikit_learns_fitted_on_train_alone() -> None:
    mixed = RNG.standard_normal((300, 10)) @ RNG.standard_normal((10, 10)) + 4
    x, fit = mixed.astype(np.float32), np.arange(200)
    assert scaled(x, fit, "none", 256) is x
    np.testing.assert_allclose(scaled(x, fit, "l2", 256), normalize(x), atol=1e-6)
    standard = StandardScaler().fit(x[fit]).transform(x)
    np.testing.assert_allclose(scaled(x, fit, "standardise", 256), standard, atol=1e-5)
    expected = PCA(4, whiten=True).fit(x[fit]).transform(x)
    whitened = scaled(x, fit, "whiten", 4)
    np.testing.assert_allclose(abs(whitened), abs(expected), atol=1e-4)  # axes have no sign
    np.testing.assert_allclose(np.cov(whitened[fit], rowvar=False), np.eye(4), atol=1e-4)
    changed = x.copy()
    changed[200:] += 100
    for how in ("standardise", "whiten"):
        np.testing.assert_array_equal(
            scaled(changed, fit, how, 4)[:200], scaled(x, fit, how, 4)[:200]
        )


def test_flat_columns_and_few_units_break_no_scaling() -> None:
    x = RNG.standard_normal((20, 30)).astype(np.float32)
    x[:, 3] = 7
    assert (scaled(x, np.arange(10), "standardise", 256)[:, 3] == 0).all()
    assert scaled(x, np.arange(10), "whiten", 256).shape == (20, 9)
    assert np.isfinite(scaled(np.zeros((4, 3), np.float32), np.arange(2), "l2", 256)).all()
