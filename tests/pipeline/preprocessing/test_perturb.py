"""Slices seen otherwise, and heads that are fitted on one store and tested on another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from benchmarks import resumed
from pipeline.benchmark.collect import gather
from pipeline.benchmark.page import write_benchmark
from pipeline.benchmark.run import run
from pipeline.benchmark.settings import cells_of, load_benchmark
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import read_predictions
from pipeline.extraction.embed import Speed
from pipeline.preprocessing.perturb import OF_A_SLICE, viewed
from pipeline.preprocessing.prepare import prepare, prepare_batch
from pipeline.recipe import Architecture, Preprocess, Recipe, ViewName
from pipeline.results import Result
from pipeline.tune import tune
from pipeline.types import Slice
from stores import FeatureStore
from stores.errors import ConfigError, LabelError, RecipeMismatchError
from tests.pipeline import layouts
from tests.pipeline.collection import config_of, make_store, write_csv

N = 120


# --- pixels --------------------------------------------------------------------------------------


def picture(seed: int) -> NDArray[np.float32]:
    """Return a smooth picture (40, 48) of -1000 to 1000 with some padding."""
    y, x = np.mgrid[:40, :48] / 12 + seed
    pixels = (1000 * np.sin(x) * np.cos(y)).astype(np.float32)
    pixels[:2] = np.nan
    return pixels


@pytest.mark.parametrize("view", OF_A_SLICE)
def test_a_view_is_of_the_slice_alone_and_another(view: ViewName) -> None:
    item = Slice(0, picture(0))
    seen = viewed(item, view)
    np.testing.assert_array_equal(seen.pixels, viewed(item, view).pixels)
    assert seen.pixels.shape == item.pixels.shape
    assert np.isfinite(seen.pixels).all()
    known = np.isfinite(item.pixels)
    moved = np.abs(seen.pixels - item.pixels)[known]
    assert 10 < moved.mean() < 400
    assert viewed(item, "none") is item
    whole = Slice(0, np.nan_to_num(item.pixels).astype(np.int16))
    assert viewed(whole, view).pixels.dtype == np.float32


def test_views_change_what_the_network_sees_and_the_recipe() -> None:
    shape = Architecture(dim=48, depth=2, heads=3)
    plain = Recipe(architecture=shape, weights="random:0", image_size=56, blocks=1)
    digests, items = {plain.digest}, [Slice(0, picture(i)) for i in range(2)]
    assert "view" not in plain.canonical()
    grey = prepare(items[0], "CT", plain)
    for view in OF_A_SLICE:
        recipe = plain.model_copy(update={"preprocess": Preprocess(view=view)})
        digests.add(recipe.digest)
        assert Recipe.model_validate_json(recipe.canonical()) == recipe
        seen = prepare(items[0], "CT", recipe)
        assert float((seen - grey).abs().max()) > 0.05
        both = prepare_batch(items, ["CT", "CT"], recipe)
        assert float((both[0] - seen).abs().max()) < 1e-5
    assert len(digests) == 1 + len(OF_A_SLICE)


@pytest.mark.parametrize(
    ("modality", "rule"),
    [("CR", "minmax"), ("MR", "percentiles"), ("CR", "zscore"), ("CR", "file"), ("CT", "lung")],
)
def test_a_shift_is_seen_whatever_the_rule(modality: str, rule: str) -> None:
    shape = Architecture(dim=48, depth=2, heads=3)
    by_kind = {"CR": "xray", "MR": "mr", "CT": "ct"}[modality]
    preprocess = Preprocess.model_validate({by_kind: rule})
    plain = Recipe(
        architecture=shape, weights="random:0", image_size=56, blocks=1, preprocess=preprocess
    )
    shifted = plain.model_copy(
        update={"preprocess": preprocess.model_copy(update={"view": "shift"})}
    )
    item = Slice(0, picture(0))
    grey, seen = (prepare(item, modality, recipe) for recipe in (plain, shifted))
    moved = (seen - grey).mean()
    assert 0.02 < float(moved) * 0.225 < 0.2
    # A store of before keeps what it has: its text says nothing, and its digest stays.
    before = shifted.canonical().replace('"shift":"scaled",', "")
    assert before != shifted.canonical()
    old = Recipe.from_text(before)
    assert old.canonical() == before
    if rule in ("minmax", "file"):
        assert float((prepare(item, modality, old) - grey).abs().max()) < 1e-4


# --- fitted here, tested there -------------------------------------------------------------------


def write_stores(root: Path) -> tuple[Config, NDArray[Any], NDArray[Any]]:
    """Write a store, and in `other` one of the same slices in another order and with less noise.

    Return the config that tests the first on heads of the other, and the features of both.
    """
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 2
    sick = rng.integers(0, 2, N // 2)[patient]
    clean = rng.standard_normal((N, 1, 8))
    clean[:, 0, 0] += 3 * sick
    seen = clean + 0.5 * rng.standard_normal(clean.shape)
    names = [{"patient": f"P{p}"} for p in patient]
    make_store(root / "store", seen, names, images=np.arange(N))
    turned = np.arange(N)[::-1]
    make_store(root / "other", clean[turned], [names[i] for i in turned], images=turned)
    write_csv(root / "labels.csv", path=[f"f{i}.png" for i in range(N)], sick=sick)
    return asked_of(root, fit_on=root / "other"), seen, clean


def asked_of(root: Path, **more: Any) -> Config:
    return config_of(root, tasks={"sick": {"labels": ["sick"]}}, **more)


def metrics_of(result: Result) -> list[dict[str, Any]]:
    return [
        {name: metric.model_dump() for name, metric in score.metrics.items()}
        for score in result.scores
    ]


@pytest.mark.parametrize("level", ["image", "patient"])
def test_train_is_taken_from_the_one_store_and_test_from_the_other(
    level: str, tmp_path: Path
) -> None:
    config, seen, clean = write_stores(tmp_path)
    task = {"sick": {"labels": ["sick"], "level": level}}
    config = config.model_copy(update={"tasks": config_of(tmp_path, tasks=task).tasks})
    (cases,) = cases_of(config)
    cases.ensure_split()
    tested = cases.units.rows[np.isin(cases.units.unit, cases.folds[0]["test"])]
    mixed = clean.copy()
    mixed[tested] = seen[tested]
    (tmp_path / "mixed").mkdir()
    names = [{"patient": f"P{i // 2}"} for i in range(N)]
    make_store(tmp_path / "mixed/store", mixed, names, images=np.arange(N))
    (tmp_path / "mixed/labels.csv").write_text((tmp_path / "labels.csv").read_text())
    methods = ("knn", "probe", "fewshot")
    fitted = evaluate(config, methods)
    by_hand = evaluate(config_of(tmp_path / "mixed", tasks=task), methods)
    plain = evaluate(config.model_copy(update={"fit_on": None}), methods)
    for one, two, three in zip(fitted, by_hand, plain, strict=True):
        assert metrics_of(one) == metrics_of(two)
        assert metrics_of(one) != metrics_of(three)
        assert three.agreement is None
        assert not one.cached
        assert one.provenance.key != three.provenance.key
        assert f"agree by ICC {one.agreement:.3f}" in one.notes[0]
        assert not any("another store" in note for note in three.notes)
    with pytest.MonkeyPatch.context() as patch:  # what is on file is found without an array
        patch.setattr(FeatureStore, "array", lambda *_: pytest.fail("an array was opened"))
        again = evaluate(config, methods)
    assert all(result.cached for result in again)
    assert [a.agreement for a in again] == [a.agreement for a in fitted]


def test_agreement_is_the_icc_of_the_test_units_features(tmp_path: Path) -> None:
    config, seen, clean = write_stores(tmp_path)
    (result,) = evaluate(config, ["knn"])
    (cases,) = cases_of(config)
    rows = cases.units.rows[np.isin(cases.units.unit, cases.folds[0]["test"])]
    pairs = np.stack([seen[rows, 0], clean[rows, 0]], axis=1)
    assert result.agreement == pytest.approx(float(np.median(icc(pairs))), abs=1e-3)  # float16


def test_what_cannot_be_held_together_is_refused(tmp_path: Path) -> None:
    config, seen, _ = write_stores(tmp_path)
    names = [{"patient": f"P{i // 2}"} for i in range(N)]
    make_store(tmp_path / "wider", np.ones((N, 1, 16)), names)
    with pytest.raises(RecipeMismatchError, match="differ in architecture; only `preprocess`"):
        evaluate(config.model_copy(update={"fit_on": tmp_path / "wider"}))
    make_store(tmp_path / "fewer", seen[:100], names[:100], images=np.arange(100))
    with pytest.raises(LabelError, match="lacks 20 of the 120 slices"):
        evaluate(config.model_copy(update={"fit_on": tmp_path / "fewer"}))
    tuned = Config.model_validate(config.model_dump() | {"lora": {}})
    with pytest.raises(ConfigError, match="`fit_on`: leave it out"):
        tune(tuned)


# --- the axis of a benchmark ---------------------------------------------------------------------


def test_a_benchmark_tells_how_answers_hold(tmp_path: Path) -> None:
    sets = {"montgomery": lambda root: layouts.montgomery(root, 16)}
    file = resumed.prepare(tmp_path, sets)
    asked = yaml.safe_load(file.read_text()) | {"views": ["noise", "turn"]}
    asked["settings"] = {name: asked["settings"][name] for name in ("kNN", "few-shot")}
    asked["backbones"].pop("registers")
    file.write_text(yaml.safe_dump(asked))
    loaded = load_benchmark(file)
    cells = cells_of(loaded)
    assert len(cells) == 8  # by two backbones: kNN as it is and on two views, episodes as it is
    speed = Speed(device="cpu", workers=0)
    alone = cells_of(loaded, only=("*/tiny/kNN+noise/*",))
    (outcome,) = run(alone, speed, print)
    assert outcome.embedded == 32  # the view's store, and the one that heads are fitted on
    outcomes = run(cells, speed, print)
    assert not any(outcome.fault for outcome in outcomes)
    assert not any(o.computed or o.embedded for o in run(cells, speed, print))
    found = gather(outcomes)
    assert {(s.backbone, s.view) for s in found.steady} == {
        (backbone, view) for backbone in ("tiny", "shallow") for view in ("noise", "turn")
    }
    by = {outcome.cell.name: outcome for outcome in outcomes}
    for each in found.steady:
        pair = [by[f"montgomery/{each.backbone}/kNN{seen}/0"] for seen in ("", f"+{each.view}")]
        stores = [(o.cell.config.store, o.answers[0]) for o in pair]
        _, one, _ = read_predictions(*stores[0], None)  # type: ignore[arg-type]
        _, two, _ = read_predictions(*stores[1], None)  # type: ignore[arg-type]
        assert each.icc_scores == pytest.approx(np.nanmean(icc(np.stack([one, two], axis=1))))
        assert each.difference.value == pytest.approx(each.seen.value - each.plain.value, abs=1e-6)
        assert each.icc_features is not None
        assert each.icc_features < 1
    assert {q.setting for q in found.scores} == {"kNN", "few-shot"}
    only = [replace(o, answers=()) if o.cell.view == "none" else o for o in outcomes]
    assert not gather(only).scores  # what is seen otherwise stands in no table of scores
    _, page = write_benchmark(loaded, outcomes)
    assert "turn by 5 degrees" in page.read_text()
    assert "ICC of predictions" in (page.parent / "results.md").read_text()
    assert set(found.tidy["view"].to_pylist()) == {"none", "noise", "turn"}
