"""Heads trained by gradient: the linear grid, attention. The label-efficiency curve. Devices."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pipeline.annotations.units import Units, places_along
from pipeline.evaluate import evaluate
from pipeline.evaluation.heads import (
    attention,
    attention_fit,
    efficiency,
    linear,
    linear_fit,
    mlp,
    probe,
    transformer,
)
from pipeline.evaluation.heads.attention import AttentionSettings
from pipeline.evaluation.heads.contract import FitInput
from pipeline.evaluation.heads.efficiency import EfficiencySettings, Point
from pipeline.evaluation.heads.linear import LinearSettings
from pipeline.evaluation.heads.mlp import MlpSettings
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.heads.probe import ProbeSettings
from pipeline.evaluation.heads.transformer import TransformerSettings
from stores.errors import ConfigError, LabelError
from tests.pipeline.collection import (
    answered,
    config_of,
    make_store,
    probed_on_train,
    thirds,
    units_of,
    write_csv,
)


def planted(y: NDArray[Any], d: int, at: int = 0) -> NDArray[np.float32]:
    """Return features (n, d) of which the columns from `at` on lean to y."""
    x = np.random.default_rng(0).standard_normal((len(y), d))
    signal = y if y.ndim == 2 else np.eye(y.max() + 1)[y]
    x[:, at : at + signal.shape[1]] += 1.5 * signal
    return x.astype(np.float32)


# --- the linear grid -----------------------------------------------------------------------


def test_the_grid_is_blocks_and_mean_token_times_rates() -> None:
    grid = linear_fit.grid_of(LinearSettings(), 50)  # 4 blocks and the mean token, 10 wide each
    assert len(grid) == 16
    columns = {(h.blocks, h.avgpool): (h.columns.start, h.columns.stop) for h in grid}
    assert columns == {
        (1, False): (30, 40), (1, True): (30, 50), (4, False): (0, 40), (4, True): (0, 50),
    }  # fmt: skip
    alone = linear_fit.grid_of(LinearSettings(features="cls", rates=(0.1,)), 10)
    assert [(h.columns.start, h.columns.stop) for h in alone] == [(0, 10)]
    with pytest.raises(ValueError, match="whitening mixes"):
        LinearSettings(scaling="whiten")


def test_a_head_of_the_grid_is_sgd_written_out() -> None:
    """Heads trained together do not touch each other, and each is the update rule by hand."""
    y = np.random.default_rng(1).integers(0, 2, 200)
    x, units, rows = planted(y, 30), units_of(y), np.arange(150)
    settings = LinearSettings(rates=(0.01, 0.05), epochs=3, batch=32, features="cls4+mean")
    grid, learnt = linear_fit.grid_of(settings, 30), Objective.of(units, rows)
    trained = linear_fit.train(FitInput(x, units, {}, settings), rows, grid, learnt)

    chance = torch.Generator().manual_seed(settings.seed)
    start = [linear_fit.layer_of(head, 1, chance) for head in grid]
    batches, steps = linear_fit.shuffled(150, 32, chance), 3 * 5
    drawn = [next(batches).numpy() for _ in range(steps)]
    assert sorted(np.concatenate(drawn)[:150].tolist()) == list(range(150))
    for head, before, (_, after) in zip(grid, start, trained, strict=True):
        w, b = before.weight.detach().double().numpy()[0], 0.0
        v_w, v_b = np.zeros_like(w), 0.0
        for step, batch in enumerate(drawn):
            seen = x[rows[batch], head.columns].astype(float)
            wrong = (expit(seen @ w + b) - y[rows[batch]]) / len(batch)
            v_w, v_b = 0.9 * v_w + wrong @ seen, 0.9 * v_b + wrong.sum()
            rate = head.rate * (1 + np.cos(np.pi * step / steps)) / 2
            w, b = w - rate * v_w, b - rate * v_b
        np.testing.assert_allclose(after.weight.detach().numpy()[0], w, atol=1e-5)
        assert after.bias.item() == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_the_grid_finds_the_features_that_hold_the_signal(kind: str) -> None:
    rng = np.random.default_rng(2)
    if kind == "multilabel":
        y = (rng.random((400, 3)) < 0.4).astype(np.int8)
        y[:200, 2] = 0  # never seen in train
        y[5, 0] = -1
    else:
        y = rng.integers(0, 2 if kind == "binary" else 3, 400)
    x, units, parts = planted(np.maximum(y, 0), 40), units_of(y), thirds(400)
    settings = LinearSettings(epochs=8, batch=32)  # the signal is in the oldest block alone
    (prediction,), notes = answered(linear.HEAD, x, units, parts, settings)
    assert prediction.setting["blocks"] == 4
    proba, truth = prediction.proba, units.at(parts["test"]).indicator
    for j in (0, 1):
        assert roc_auc_score(truth[:, j], proba[:, j]) > 0.75
    if kind == "multilabel":
        assert np.isnan(proba[:, 2]).all()
        assert notes[0] == "'c' has no model: all or none of the train units carry it"
    else:
        np.testing.assert_allclose(proba.sum(axis=1), 1)


# --- attention -----------------------------------------------------------------------------


def bags(n: int, s: int, d: int) -> tuple[NDArray[np.float32], Units]:
    """Return slices (m, d) of n units of s to 2 s slices; in one of each sick unit is a lesion."""
    rng = np.random.default_rng(3)
    sizes, y = rng.integers(s, 2 * s, n), np.arange(n) % 2
    unit = rng.permutation(np.repeat(np.arange(n), sizes))
    x = rng.standard_normal((len(unit), d))
    for i in np.flatnonzero(y):
        x[rng.choice(np.flatnonzero(unit == i)), :3] += 4
    return x.astype(np.float32), replace(units_of(y), rows=np.arange(len(unit)), unit=unit)


def test_attention_finds_the_slice_that_the_mean_drowns() -> None:
    x, units = bags(120, 20, 16)
    parts = thirds(120)
    settings = AttentionSettings(epochs=12, hidden=16, rate=1e-2)
    (prediction,), notes = answered(attention.HEAD, x, units, parts, settings)
    assert notes == []
    means = np.stack([x[units.unit == i].mean(axis=0) for i in range(120)])
    (pooled,), _ = answered(probe.HEAD, means, units, parts, ProbeSettings(steps=5))
    truth = units.y[parts["test"]]
    ours, mean = (roc_auc_score(truth, p.proba[:, 1]) for p in (prediction, pooled))
    assert ours > 0.95
    assert ours > mean + 0.1


def test_attention_weighs_what_is_there_and_nothing_else() -> None:
    network = attention_fit.EvidenceAttention(5, 4, 1)
    slices, there = torch.randn(2, 6, 5), torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    z = torch.zeros(2, 6)  # has no say
    _, before = network(slices, there, z)
    torch.testing.assert_close(before, there / there.sum(dim=1, keepdim=True))  # the mean, at first
    torch.nn.init.constant_(network.sharpness, 0.1)
    logits, weights = network(slices, there, z)
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (weights[1, 2:] == 0).all()
    alone, _ = network(slices[1:, :2], there[1:, :2], z[1:, :2])
    torch.testing.assert_close(network(slices, there, z)[0][1:], alone)
    # by hand, slice by slice
    layers = (network.content, network.gate, network.evidence)
    v, u, w = (layer.weight.detach() for layer in layers)
    bias = [layer.bias.detach() for layer in layers]
    evidence = torch.stack([
        (w[0] * torch.tanh(v @ h + bias[0]) * torch.sigmoid(u @ h + bias[1])).sum() + bias[2][0]
        for h in slices[0]
    ])  # fmt: skip
    expected = torch.softmax(30 * 0.1 * evidence, dim=0)
    torch.testing.assert_close(weights[0].detach(), expected)
    torch.testing.assert_close(logits[0, 0].detach(), (expected * evidence).sum())


@pytest.mark.parametrize("sick", [0, 1])
def test_attention_finds_the_slice_whichever_class_it_speaks_for(sick: int) -> None:
    x, units = bags(160, 6, 16)
    planted_rows = {int(units.unit[row]): int(row) for row in np.flatnonzero(x[:, :3].sum(1) > 7)}
    units = replace(units, y=units.y if sick else 1 - units.y)
    parts = thirds(160)
    settings = AttentionSettings(epochs=6, hidden=16, rate=5e-3)
    weights = answered(attention.HEAD, x, units, parts, settings)[0][0].weights
    assert weights is not None
    test = parts["test"].tolist()
    with_lesion = [place for place, unit in enumerate(test) if unit in planted_rows]
    right = []
    for place in with_lesion:
        mine = np.flatnonzero(weights.unit == place)
        heeded = weights.rows[mine[weights.weight[mine].argmax()]]
        right.append(heeded == planted_rows[test[place]])
    assert np.mean(right) > 0.95


def test_weights_name_the_planted_slice_of_each_unit() -> None:
    x, units = bags(160, 6, 16)
    parts = thirds(160)
    planted_rows = {int(units.unit[row]): int(row) for row in np.flatnonzero(x[:, :3].sum(1) > 7)}
    for head, settings in (
        (attention.HEAD, AttentionSettings(epochs=6, hidden=16, rate=1e-2)),
        (transformer.HEAD, TransformerSettings(epochs=10, width=16, heads=2, rate=1e-2)),
    ):
        (prediction,), _ = answered(head, x, units, parts, settings)
        weights = prediction.weights
        assert weights is not None
        # every slice of every test unit, once
        at = np.isin(units.unit, parts["test"])
        assert sorted(weights.rows.tolist()) == np.flatnonzero(at).tolist()
        right = []
        for place, unit in enumerate(parts["test"].tolist()):
            mine = weights.unit == place
            assert weights.weight[mine].sum() == pytest.approx(1)
            if unit in planted_rows:
                heeded = weights.rows[mine][weights.weight[mine].argmax()]
                right.append(heeded == planted_rows[unit])
        assert np.mean(right) > 0.9, head.name


def test_the_transformer_knows_where_a_slice_lies() -> None:
    """Each unit has one lesion, above or below: its place alone tells one kind from the other."""
    rng = np.random.default_rng(9)
    y = np.arange(120) % 2
    x = rng.standard_normal((120, 8, 6)) * 0.3
    x[np.arange(120), rng.integers(0, 4, 120) + 4 * y, 0] += 4
    flat = x.reshape(960, 6).astype(np.float32)
    unit = np.arange(960) // 8
    units = replace(units_of(y), rows=np.arange(960), unit=unit)
    parts = thirds(120)
    truth = y[parts["test"]]
    settings = TransformerSettings(epochs=8, width=16, heads=2, rate=1e-2)
    (placed,), _ = answered(transformer.HEAD, flat, units, parts, settings)
    assert roc_auc_score(truth, placed.proba[:, 1]) > 0.95
    nowhere = replace(units, along=np.full(960, 0.5))
    (blind,), _ = answered(transformer.HEAD, flat, nowhere, parts, settings)
    assert roc_auc_score(truth, blind.proba[:, 1]) < 0.7


def test_places_along_a_volume_are_those_of_its_positions() -> None:
    table = pa.table(
        {
            "series": ["a", "b", "a", "a", None, "b", None, "c", "c", "c"],
            "position_mm": [10.0, None, 30.0, 15.0, None, None, 5.0, 3.0, None, 9.0],
        }
    )
    # by mm; by order without mm, or where one of them is not known; in the middle alone
    expected = [0.0, 0.0, 1.0, 0.25, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0]
    assert places_along(table).tolist() == expected


def test_what_cannot_be_trained_is_said() -> None:
    y = np.arange(80) % 2
    x, units, parts = planted(y, 10), units_of(y), thirds(80)
    said = answered(attention.HEAD, x, units, parts, AttentionSettings())
    assert said == ([], ["attention needs units of several slices: each has one; ask the probe"])
    one = units_of(np.where(np.arange(80) < 60, 0, y))
    assert answered(linear.HEAD, x, one, parts, LinearSettings(features="cls"))[0] == []


def test_a_number_is_predicted_in_its_own_units() -> None:
    rng = np.random.default_rng(7)
    age = 50 + 10 * rng.standard_normal(400)
    x = rng.standard_normal((400, 12)) + 3  # off the origin, as features are
    x[:, 2] += (age - 50) / 10
    units = replace(units_of(np.arange(400) % 2), y=age, kind="regression", classes=("age",))
    parts, x = thirds(400), x.astype(np.float32)
    settings = LinearSettings(features="cls", rates=(1e-4, 0.05, 10.0), epochs=30)
    ((chosen,), _) = answered(linear.HEAD, x, units, parts, settings)
    assert chosen.setting["lr"] == 0.05  # by the error on val; the others have not learnt
    truth = units.y[parts["test"]]
    assert chosen.proba.shape == (len(truth), 1)
    (ridge,), _ = answered(probe.HEAD, x, units, parts, ProbeSettings(steps=9))
    error, least, most = (
        np.abs(said - truth).mean() for said in (chosen.proba[:, 0], ridge.proba[:, 0], age.mean())
    )
    assert least <= error < least + 0.2 * (most - least)
    once = answered(linear.HEAD, x, replace(units, y=100 * age), parts, settings)[0][0].proba
    np.testing.assert_allclose(once, 100 * chosen.proba, rtol=1e-4)


def test_attention_finds_the_slice_that_tells_a_number() -> None:
    rng = np.random.default_rng(8)
    age = 50 + 10 * rng.standard_normal(120)
    x = rng.standard_normal((120, 6, 8))
    told = rng.integers(0, 6, 120)
    x[np.arange(120), told, 0] = 4  # which slice, and what it says
    x[np.arange(120), told, 1] = (age - 50) / 5
    units = replace(
        units_of(np.arange(120) % 2), y=age, kind="regression", classes=("age",),
        rows=np.arange(720), unit=np.arange(720) // 6,
    )  # fmt: skip
    parts, flat = thirds(120), x.reshape(720, 8).astype(np.float32)
    settings = AttentionSettings(hidden=16, epochs=20, rate=2e-2)
    ((weighed,), _) = answered(attention.HEAD, flat, units, parts, settings)
    truth = units.y[parts["test"]]
    pooled = x.mean(axis=1).astype(np.float32)
    alone = replace(units, rows=np.arange(120), unit=np.arange(120))
    (mean,), _ = answered(probe.HEAD, pooled, alone, parts, ProbeSettings(steps=9))
    errors = [np.abs(said.proba[:, 0] - truth).mean() for said in (weighed, mean)]
    assert errors[0] < 0.7 * errors[1]


# --- label efficiency ----------------------------------------------------------------------


def draws_of(point: Point, x: NDArray[np.float32], parts: Any) -> list[NDArray[np.float64]]:
    """Return what the probe of each draw says of test."""
    prediction = point.predict(x, parts["test"])
    assert prediction.draws == len(point.probes)
    return np.split(prediction.proba, prediction.draws)


def test_the_curve_goes_from_the_shots_asked_for_to_all_patients() -> None:
    y = np.arange(240) // 2 % 2  # 120 patients, 2 units each; 30 a class in train
    groups = np.arange(240) // 2
    x, parts = planted(y, 12), thirds(240)
    units = units_of(y, groups)
    settings = EfficiencySettings(shots=(1, 2, 4), steps=5, features="cls")
    points = list(efficiency.points(FitInput(x, units, parts, settings)))
    assert [point.shots for point in points] == [1, 2, 4, 8, 16, 30]
    assert [len(point.probes) for point in points] == [10, 10, 7, 3, 3, 1]
    assert [point.patients for point in points] == [2, 4, 8, 16, 32, 60]
    truth = y[parts["test"]]
    means = [
        np.mean([roc_auc_score(truth, proba[:, 1]) for proba in draws_of(point, x, parts)])
        for point in points
    ]
    assert means[-1] > means[0] + 0.05
    whole = probed_on_train(x, units, parts, settings)
    np.testing.assert_array_equal(points[-1].predict(x, parts["test"]).proba, whole.proba)


def test_the_curve_of_a_number_draws_from_every_quarter() -> None:
    rng = np.random.default_rng(9)
    age = 50 + 10 * rng.standard_normal(200)
    x = rng.standard_normal((200, 10)).astype(np.float32)
    x[:, 0] += (age - 50) / 5
    units = replace(units_of(np.arange(200) % 2), y=age, kind="regression", classes=("age",))
    parts = thirds(200)
    settings = EfficiencySettings(shots=(1, 4), steps=9, features="cls")
    points = list(efficiency.points(FitInput(x, units, parts, settings)))
    assert [(point.shots, point.patients) for point in points] == [
        (1, 4), (4, 16), (8, 32), (16, 64), (25, 100),
    ]  # fmt: skip
    truth = units.y[parts["test"]]
    errors = [
        np.mean([np.abs(said[:, 0] - truth).mean() for said in draws_of(point, x, parts)])
        for point in points
    ]
    assert errors[-1] < 0.8 * errors[0]


# --- on a device, and end to end -----------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a store of 60 patients, 4 slices each, and labels of patients."""
    rng = np.random.default_rng(5)
    patient = np.arange(240) // 4
    sick = rng.integers(0, 2, 60)[patient]
    cls = rng.standard_normal((240, 4, 8))
    cls[:, 3, 0] += 2 * sick
    make_store(tmp_path / "store", cls, [{"patient": f"P{p}"} for p in patient])
    a, b = rng.integers(0, 2, (2, 240))
    write_csv(tmp_path / "labels.csv", path=[f"f{i}.png" for i in range(240)], sick=sick, a=a, b=b)
    return tmp_path


def test_each_is_a_method_with_results_of_its_own(root: Path) -> None:
    tasks = {"t": {"labels": ["sick"], "level": "patient"}}
    small = {
        "linear": {"epochs": 10, "rates": [0.05]},
        "attention": {"epochs": 10, "hidden": 8},
        "efficiency": {"shots": [1, 4], "steps": 3, "features": "cls"},
    }
    methods = ("linear", "attention", "efficiency")
    found = evaluate(config_of(root, tasks=tasks, **small), methods)
    assert [result.method for result in found] == list(methods)
    grid, weighed, curve = found
    assert set(grid.scores[0].setting) == {"lr", "blocks", "avgpool"}
    assert set(weighed.scores[0].setting) == {"epochs"}
    assert weighed.settings["scaling"] == "standardise"
    for result in found:
        assert result.scores[-1].metrics["auroc"].value > 0.7
    shots = [score.setting["shots"] for score in curve.scores]
    assert shots[:3] == [1, 4, 8]
    low, high = (getattr(curve.scores[0].metrics["auroc"], side) for side in ("low", "high"))
    assert low < curve.scores[0].metrics["auroc"].value < high
    tables = [
        path.name.partition(".")[2] for path in root.glob("store/results/attention-*.parquet")
    ]
    assert sorted(tables) == ["parquet", "slices.parquet"]
    assert all(r.cached for r in evaluate(config_of(root, tasks=tasks, **small), methods))
    wider = {**small, "linear": {"epochs": 11, "rates": [0.05]}}
    again = evaluate(config_of(root, tasks=tasks, **wider), methods)
    assert [r.cached for r in again] == [False, True, True]


def test_on_a_device_scikit_learn_fits_tensors_and_says_the_same(root: Path) -> None:
    """In a process of its own: SciPy must hear of it first. The device is a CPU, through torch."""
    tasks = {"t": {"labels": ["sick"]}, "many": {"labels": ["a", "b"]}}
    asked = config_of(root, tasks=tasks, probe={"steps": 2})
    code = (
        "import sys\n"
        "from pipeline.config.root import Config\n"
        "from pipeline.evaluate import evaluate\n"
        "results = evaluate(Config.model_validate_json(sys.argv[1]), ['probe'], device='cpu')\n"
        "assert 'torch' in sys.modules and not any(r.cached for r in results)\n"
        "print(*(r.scores[0].metrics['brier'].value for r in results))"
    )
    command = [sys.executable, "-W", "error", "-c", code, asked.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path in (root / "store/results").iterdir():
        path.unlink()
    arrays = [r.scores[0].metrics["brier"].value for r in evaluate(asked, ["probe"])]
    assert [float(word) for word in done.stdout.split()] == pytest.approx(arrays, abs=1e-3)
    with pytest.raises(ConfigError, match="before SciPy is imported"):
        evaluate(config_of(root, tasks={"t": {"labels": ["a"]}}), ["probe"], device="cpu")


def test_two_heads_of_one_store_are_compared(root: Path) -> None:
    from pipeline.evaluation.compare import compare_stores

    asked = config_of(root, tasks={"t": {"labels": ["sick"], "level": "patient"}})
    knn, probed = evaluate(asked, ("knn", "probe"))
    store = root / "store"
    ((result, differences),) = compare_stores(store, store, ("knn", "probe"))
    assert result == probed.model_copy(update={"cached": False})
    (of_auroc,) = (d for d in differences if d.metric == "auroc")
    one, two = (r.scores[-1].metrics["auroc"].value for r in (knn, probed))
    assert of_auroc.difference.value == pytest.approx(two - one)
    with pytest.raises(LabelError, match="answered no task by knn and linear"):
        compare_stores(store, store, ("knn", "linear"))


# --- the perceptron ------------------------------------------------------------------------


def test_the_perceptron_finds_what_no_plane_parts() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 2, (300, 2))
    y = corner[:, 0] ^ corner[:, 1]
    x = rng.standard_normal((300, 8)).astype(np.float32) * 0.3
    x[:, :2] += 2 * corner - 1
    units, parts = units_of(y), thirds(300)
    known: Any = {"train": parts["train"], "val": parts["val"]}
    settings = MlpSettings(hidden=16, decays=(0.01,), epochs=12, rate=1e-2)
    state = torch.random.get_rng_state()
    model = mlp.HEAD.fit(FitInput(x, units, known, settings))
    (said,) = mlp.HEAD.predict(model, x, parts["test"]).predictions
    assert roc_auc_score(y[parts["test"]], said.proba[:, 1]) > 0.97
    assert said.setting["epochs"] <= 12
    # By a plane it is chance.
    plane = probe.HEAD.fit(FitInput(x, units, known, ProbeSettings(steps=3)))
    (flat,) = probe.HEAD.predict(plane, x, parts["test"]).predictions
    assert roc_auc_score(y[parts["test"]], flat.proba[:, 1]) < 0.7
    # What is drawn is of the seed alone, and nobody else's draws are moved by it.
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    again = mlp.HEAD.fit(FitInput(x, units, known, settings))
    (same,) = mlp.HEAD.predict(again, x, parts["test"]).predictions
    assert np.array_equal(same.proba, said.proba)
