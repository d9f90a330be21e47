"""Heads fitted on one collection and tested on another: A -> B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import radprobe
from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import count_of, evaluate, on_file
from pipeline.evaluation.compare import newest
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.fitted.fit import fit
from pipeline.fitted.units import units_from
from stores.errors import ConfigError, LabelError, RecipeMismatchError
from tests.pipeline.fitted.test_validate import N, collection, config

METHODS = ("knn", "probe")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return collection(folder / "a", 1), collection(folder / "b", 2)


def paired(there: Config, here: Config) -> Config:
    return here.model_copy(update={"fit_on": there})


def write_config(root: Path, name: str = "config", **more: Any) -> Path:
    content = {
        "data": {"root": "."},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": {"sick": {"labels": ["sick"]}},
        "knn": {"k": [3, 5]},
        "probe": {"low": -3, "high": 1, "steps": 3},
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | more))
    return path


def test_a_pair_is_a_model_of_the_one_asked_of_the_test_units_of_the_other(
    sites: tuple[Path, Path], tmp_path: Path
) -> None:
    there, here = map(config, sites)
    (result,) = evaluate(paired(there, here), ["probe"])
    model = fit(there, tmp_path / "model", method="probe")
    (cases,) = cases_of(here)
    cases.ensure_split()
    test = cases.folds[0]["test"]
    expected, _ = model.of_store(cases.store, units_from(cases.units, test))
    truth, proba, fold = read_predictions(here.store, result)
    np.testing.assert_allclose(proba, expected, atol=1e-9)
    assert (predicted_units(here.store, result) == cases.units.ids[test]).all()
    assert (truth.y == cases.units.y[test]).all()
    assert fold is None
    # The operating point is of val there, the subgroups are of the units here.
    assert result.main_score.operating_points == {"": (model.record.thresholds["yes"],)}
    assert set(result.main_score.subgroups) == {"sex=f", "sex=m"}
    learnt = model.record.counts
    assert result.counts == {**learnt, "test": count_of(cases.units.at(test))}
    assert (result.task, result.configured_task) == ("sick fitted on a", "sick")
    text = "fitted on train and val of a, and tested on test of b"
    assert any(text in note for note in result.notes)
    assert any("another key than a" in note for note in result.notes)


def test_a_pair_is_filed_by_all_that_it_depends_on_and_is_no_answer_of_the_store_alone(
    sites: tuple[Path, Path],
) -> None:
    there, here = map(config, sites)
    (own,) = evaluate(here, ["knn"])
    first = evaluate(paired(there, here), ["knn"])
    assert [each.cached for each in evaluate(paired(there, here), ["knn"])] == [True]
    assert on_file(paired(there, here), ["knn"])[0].provenance == first[0].provenance
    # Another split there is another model.
    seed = there.split.model_copy(update={"seed": 5})
    (other,) = evaluate(paired(there.model_copy(update={"split": seed}), here), ["knn"])
    assert not other.cached
    assert other.provenance.key != first[0].provenance.key
    results = newest(here.store)
    assert results["sick", "knn"].provenance.key == own.provenance.key
    assert all(result.fitted_on is None for result in results.values())


def test_each_fold_is_tested_by_what_the_fold_there_was_fitted_for(
    sites: tuple[Path, Path],
) -> None:
    there, here = map(config, sites)
    folds = here.split.model_copy(update={"kind": "kfold", "folds": 3})
    (result,) = evaluate(paired(there, here.model_copy(update={"split": folds})), ["knn"])
    _, _, fold = read_predictions(here.store, result)
    assert result.counts["test"].units == N
    assert set(fold.tolist()) == {0, 1, 2}  # type: ignore[union-attr]


def test_what_does_not_fit_together_is_refused_with_both_values(
    sites: tuple[Path, Path], tmp_path: Path
) -> None:
    there, here = map(config, sites)
    wide = config(collection(tmp_path / "wide", 3, d=16))
    with pytest.raises(RecipeMismatchError, match=r"dim=12.* there, .*dim=16.* here"):
        evaluate(paired(there, wide), ["knn"])
    grades = config(sites[1], labels=["grade"], subgroups=[])
    with pytest.raises(
        LabelError, match=r"multiclass here, binary in a; classes: .*'2'. here, .*'yes'. in a"
    ):
        evaluate(paired(there, grades), ["knn"])
    by_patient = config(sites[1], level="patient")
    with pytest.raises(LabelError, match="level: patient here, image in a"):
        evaluate(paired(there, by_patient), ["knn"])
    by_greatest = config(sites[1], pool="max")
    with pytest.raises(LabelError, match="pool: max here, mean in a"):
        evaluate(paired(there, by_greatest), ["knn"])
    named = there.model_copy(update={"tasks": {"ill": there.tasks["sick"]}})
    with pytest.raises(ConfigError, match="lacks sick; it has ill"):
        evaluate(paired(named, here), ["knn"])
    copied = config(collection(tmp_path / "copied", 4, images=1000 + np.arange(N)))
    with pytest.raises(LabelError, match="by their patients or pixels: scores would be leaked"):
        evaluate(paired(there, copied), ["knn"])
    # A collection by itself: who tests is in train.
    other_deal = here.model_copy(update={"split": here.split.model_copy(update={"seed": 9})})
    with pytest.raises(LabelError, match="are of patients whom heads are fitted on"):
        evaluate(paired(other_deal, here), ["knn"])
    assert not list((copied.store / "results").glob("*.json"))


def test_data_is_of_the_store_alone(sites: tuple[Path, Path]) -> None:
    a, b = (load_config(write_config(site)) for site in sites)
    alone = radprobe.data(b, "sick")
    beside = radprobe.data(paired(a, b), "sick")
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_on_names_a_config_beside_it(sites: tuple[Path, Path]) -> None:
    a, b = sites
    there = write_config(a)
    here = write_config(b, "from_a", fit_on="../a/config.yaml")
    config = load_config(here)
    assert config.fit_on == load_config(there)
    write_config(b)
    write_config(a, "round", fit_on="../b/round.yaml")
    with pytest.raises(ConfigError, match="which has `fit_on` itself"):
        load_config(write_config(b, "round", fit_on="../a/round.yaml"))


def test_compare_says_what_fitting_elsewhere_costs(sites: tuple[Path, Path]) -> None:
    a, b = (write_config(site) for site in sites)
    for path in (a, b):
        evaluate(load_config(path), METHODS)
    runner = CliRunner()
    ran = runner.invoke(app, ["compare", str(a), str(b), "--across"])
    assert ran.exit_code == 0, ran.output
    words = " ".join(ran.output.split())
    assert "Tested on b: fitted on it less fitted on a" in words
    assert "sick: tested on" in words
    ran = runner.invoke(app, ["compare", str(a), str(b), "--across", "--json"])
    rows = json.loads(ran.stdout)
    aurocs = {row["methods"][0]: row for row in rows if row["metric"] == "auroc"}
    assert set(aurocs) == {*METHODS}
    away, home = (score["value"] for score in aurocs["knn"]["scores"])
    assert aurocs["knn"]["difference"]["value"] == pytest.approx(home - away)
    assert aurocs["knn"]["fitted_on"] == ["a", "b"]
    # The config that names the other is the same question.
    named = write_config(sites[1], "from_a", fit_on="../a/config.yaml")
    ran = runner.invoke(app, ["compare", str(named), str(b), "--json"])
    same = [row["difference"] for row in json.loads(ran.stdout) if row["metric"] == "auroc"]
    assert same == [row["difference"] for row in aurocs.values()]
    unanswered = write_config(sites[1], "seed", split={"seed": 77})
    ran = runner.invoke(app, ["compare", str(a), str(unanswered), "--across"])
    assert "has answered no task by heads on features" in str(ran.exception)
    heads = ["--heads", "knn", "probe"]
    ran = runner.invoke(app, ["compare", str(a), str(b), "--across", "--json", *heads])
    assert {tuple(row["methods"]) for row in json.loads(ran.stdout)} == {("knn", "probe")}
