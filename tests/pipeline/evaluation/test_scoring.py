"""A task from labels to tables: what is positive, where it is called, which setting counts."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import recall_score

from pipeline.commands.printing import show_differences, show_results
from pipeline.config.root import Config
from pipeline.evaluate import evaluate, tidy
from pipeline.evaluation.compare import compare
from pipeline.evaluation.metrics.operating import threshold_of
from pipeline.evaluation.result_files import predictions_path, read_predictions, read_thresholds
from pipeline.report import tables
from pipeline.report.sources import Source
from pipeline.results import Result
from stores import FeatureStore
from tests.pipeline.collection import config_of, make_store, write_csv

N = 240
PROBE: dict[str, Any] = {"high": 1, "steps": 8, "features": "cls"}


def printed(results: list[Result], config: Config | None = None) -> str:
    into = io.StringIO()
    show_results(Console(file=into, width=250), results, config)
    return into.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a store of 240 patients, a fifth of them malignant in one feature."""
    rng = np.random.default_rng(1)
    sick = np.arange(N) % 5 == 1
    cls = rng.standard_normal((N, 1, 16))
    cls[sick, 0, :4] += 0.9
    make_store(tmp_path / "store", cls, [{"patient": f"P{i}"} for i in range(N)])
    write_labels(tmp_path, sick, "malignant", "benign")
    return tmp_path


def write_labels(root: Path, sick: NDArray[np.bool_], yes: str, no: str) -> None:
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        look=[yes if each else no for each in sick],
        a=(np.arange(N) % 3 == 0).astype(int),
        b=sick.astype(int),
        sex=["FM"[i % 2] for i in range(N)],
    )


def config(root: Path, **task: Any) -> Config:
    more = task.pop("more", {})
    small = {"knn": {"k": [3, 5, 30], "features": "cls"}, "probe": PROBE}
    tasks = {"t": {"labels": ["look"], **task}}
    return config_of(root, tasks=tasks, **{**small, **more})


def numbers(result: Result) -> dict[str, float]:
    return {name: metric.value for name, metric in result.main_score.metrics.items()}


def test_one_question_has_one_answer_however_it_is_spelt(root: Path) -> None:
    sick = np.arange(N) % 5 == 1
    spellings = [
        ("1", "0"), ("malignant", "benign"), ("malignant", "normal"), ("Yes", "no"),
        ("covid", "healthy"), ("aye", "zero"),
    ]  # fmt: skip
    answers = []
    for yes, no in spellings:
        write_labels(root, sick, yes, no)
        positive = {"positive": "aye"} if yes == "aye" else {}
        folds = {"split": {"kind": "kfold", "folds": 3}}
        few = {"probe": PROBE | {"low": -1, "high": 1, "steps": 2}}
        answers.append(evaluate(config(root, **positive, more=folds | few), ["knn", "probe"]))
    for answer in answers:
        for first, same in zip(answers[0], answer, strict=True):
            assert numbers(same) == pytest.approx(numbers(first), abs=1e-9)


def test_every_table_names_the_positive_and_how_many_carry_it(root: Path, tmp_path: Path) -> None:
    results = evaluate(config(root, subgroups=["sex"]), ["knn", "probe"])
    test = results[0].counts["test"]
    carry = test.positives["malignant"]
    named = f"malignant ({carry} of {test.units})"
    for result in results:
        assert result.positive is not None
        written = json.loads(result.model_dump_json())["positive"]
        assert written == {"name": "malignant", "units": carry, "patients": carry}
    assert named in printed(results)
    into = io.StringIO()
    store = root / "store"
    differences = compare((store, results[0]), (store, results[1]))
    pairs = [(results[1], differences)]
    show_differences(Console(file=into, width=250), pairs, ("a network", "another"))
    assert named in into.getvalue()
    assert "No p: DeLong's" not in into.getvalue()
    without = [each.model_copy(update={"p": None}) for each in differences]
    into = io.StringIO()
    show_differences(Console(file=into, width=250), [(results[1], without)], ("mean", "whole"))
    assert "Second (whole) less first (mean)" in into.getvalue()
    assert "No p: DeLong's is of AUROCs of one model" in into.getvalue()
    source = Source("s", FeatureStore.open(store), None)
    lines = tables.lines_of([source])
    assert named in tables.markdown(lines, random=False)
    assert named in tables.latex(lines, random=False)
    rows = tidy(results).to_pylist()
    assert {(row["positive"], row["positives"]) for row in rows if not row["subgroup"]} == {
        ("malignant", carry)
    }
    in_groups = {row["subgroup"]: row["positives"] for row in rows if row["subgroup"]}
    assert sum(in_groups.values()) == carry


def test_a_rare_finding_is_called_where_val_says(root: Path) -> None:
    (result,) = evaluate(config(root), ["probe"])
    score = result.main_score
    ((threshold,),) = score.operating_points.values()
    assert 0 < threshold < 0.5
    assert score.metrics["sensitivity"].value > 0.5
    assert score.metrics["balanced_accuracy"].value > 0.7
    truth, proba, _ = read_predictions(root / "store", result)
    called = proba[:, 1] >= threshold
    assert score.metrics["sensitivity"].value == recall_score(truth.y, called)
    assert (read_thresholds(root / "store", result)[:, 1] == threshold).all()
    said = printed([result])
    assert "By finding, at the operating point that val chose" in said
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        metric = score.metrics[name]
        assert f"{metric.value:.3f} [{metric.low:.2f}, {metric.high:.2f}]" in said
    assert f"{threshold:.3g}" in said
    assert "Youden" in said


def test_the_rule_is_the_tasks(root: Path) -> None:
    by_rule = {}
    rules: dict[str, Any] = {
        "youden": "youden",
        "likeliest": "likeliest",
        "sensitive": {"sensitivity": 1.0},
        "specific": {"specificity": 1.0},
    }
    for name, rule in rules.items():
        (by_rule[name],) = evaluate(config(root, operating_point=rule), ["probe"])
    point = {name: result.main_score.operating_points for name, result in by_rule.items()}
    assert point["likeliest"] == {}
    assert point["sensitive"][""] < point["youden"][""] < point["specific"][""]
    aurocs = {result.main_score.metrics["auroc"].value for result in by_rule.values()}
    assert len(aurocs) == 1
    rates = {name: numbers(result) for name, result in by_rule.items()}
    assert rates["sensitive"]["sensitivity"] >= rates["youden"]["sensitivity"]
    assert rates["specific"]["specificity"] >= rates["youden"]["specificity"]
    assert "above 0.5" in printed([by_rule["likeliest"]])
    assert "sensitivity 1" in printed([by_rule["sensitive"]])
    assert not any("called above 0.5" in note for note in by_rule["likeliest"].notes)


def test_folds_and_labels_have_points_of_their_own(root: Path) -> None:
    kfold = {"split": {"kind": "kfold", "folds": 4}}
    (two,) = evaluate(config(root, more=kfold), ["probe"])
    assert len(two.main_score.operating_points[""]) == 4
    both = {"labels": ["a", "b"], "more": kfold}
    (many,) = evaluate(config(root, **both), ["probe"])
    points = many.main_score.operating_points
    assert {name: len(each) for name, each in points.items()} == {"a": 4, "b": 4}
    table = pq.read_table(predictions_path(root / "store", many))
    for name in "ab":
        assert sorted(set(table[f"threshold:{name}"].to_pylist())) == sorted(set(points[name]))
        sensitivity = many.main_score.labels[name]["sensitivity"]
        assert sensitivity.low is not None
        assert f"t: {name}" in printed([many])
        assert f"{many.counts['test'].positives[name]} of {N}" in printed([many])
    (curve,) = evaluate(
        config(root, more={"efficiency": {"shots": [8], "draws": 3, "high": 1, "steps": 4}}),
        ["efficiency"],
    )
    assert len(curve.scores[0].operating_points[""]) == 3
    assert len(curve.main_score.operating_points[""]) == 1


def test_k_that_val_chose_stands_for_the_answer(root: Path) -> None:
    results = evaluate(config(root), ["knn", "probe"])
    knn = results[0]
    assert [score.setting["k"] for score in knn.scores] == [3, 5, 30]
    assert knn.main_score.setting == {"k": 30}
    few = {"knn": {"k": [30, 3, 5], "features": "cls"}}
    (other,) = evaluate(config(root, more=few), ["knn"])
    assert other.main_score.metrics == knn.main_score.metrics
    assert other.chosen == 0
    assert "k = 30 *" in printed([other])
    (auroc,) = [
        d
        for d in compare((root / "store", other), (root / "store", results[1]))
        if d.metric == "auroc"
    ]
    expected = numbers(results[1])["auroc"] - numbers(other)["auroc"]
    assert auroc.difference.value == pytest.approx(expected)


def test_where_val_has_one_side_the_positive_is_called_above_half_and_that_is_said(
    root: Path,
) -> None:
    parts = ["val" if i % 5 == 0 else "test" if i % 4 == 1 else "train" for i in range(N)]
    write_csv(root / "split.csv", key=[f"f{i}.png" for i in range(N)], part=parts)
    split = {"split": {"kind": "list", "file": str(root / "split.csv")}}
    (result,) = evaluate(config(root, more=split), ["probe"])
    assert result.main_score.operating_points == {}
    assert any("'malignant' is called above 0.5: val says nothing" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
def test_an_operating_point_that_chance_chose_is_told(root: Path, kind: str) -> None:
    rng = np.random.default_rng(4)
    write_labels(root, rng.random(N) < 0.4, "malignant", "benign")
    asked = {"tasks": {"t": {"labels": ["look"]}}, "split": {"kind": kind}}
    config = config_of(root, knn={"k": [5]}, **asked)
    (result,) = evaluate(config, ["knn"])
    (note,) = [each for each in result.notes if "operating point" in each]
    assert note.startswith(
        "the operating point of 'malignant' cannot be told from one by chance: val"
    )
    assert re.search(r"AUROC of 0\.\d\d \[0\.\d\d, \d\.\d\d\] \(of \d+ patients\)", note)
    assert "everybody, or nobody" in note
    assert ("in folds" in note) == (kind == "kfold")
    assert "operating point of 'malignant' cannot be told from" in " ".join(
        printed([result]).split()
    )
    # Where val says where to call, and where no point is chosen, nothing is told.
    likeliest = {"tasks": {"t": {"labels": ["look"], "operating_point": "likeliest"}}}
    (result,) = evaluate(config_of(root, knn={"k": [5]}, **asked | likeliest), ["knn"])
    assert not [each for each in result.notes if "operating point" in each]


def test_what_has_no_interval_is_noted(root: Path) -> None:
    six = np.arange(N) % 40 == 1  # on five folds
    write_labels(root, six, "malignant", "benign")
    config = config_of(
        root,
        tasks={"t": {"labels": ["look"]}},
        knn={"k": [5]},
        split={"kind": "kfold"},
    )
    (result,) = evaluate(config, ["knn"])
    metrics = result.main_score.metrics
    assert metrics["auroc"].low is not None
    assert metrics["average_precision"].low is None
    without = "no interval of average precision, sensitivity at specificity 0.9"
    assert f"{without}: of patients so few, or so alike, it would not keep its word" in result.notes


def test_spellings_are_said_in_the_result(root: Path) -> None:
    text = (root / "labels.csv").read_text().replace("malignant", "Malignant", 1)
    (root / "labels.csv").write_text(text)
    (result,) = evaluate(config(root), ["probe"])
    assert result.classes == ("benign", "malignant")
    assert any("'Malignant' (1 rows)" in note and "one value" in note for note in result.notes)


def test_a_threshold_of_val_is_what_the_head_said_of_val(root: Path) -> None:
    """By hand: the probe of train alone, its probabilities of val, and Youden's threshold."""
    from pipeline.evaluation.heads.contract import FitInput
    from pipeline.evaluation.heads.probe import HEAD, ProbeSettings
    from pipeline.evaluation.questions import cases_of

    asked = config(root)
    (result,) = evaluate(asked, ["probe"])
    (cases,) = cases_of(asked)
    parts, units = cases.folds[0], cases.units
    settings = ProbeSettings.model_validate(PROBE)
    x = cases.features(settings, parts)
    model = HEAD.fit(FitInput(x, units, {"train": parts["train"], "val": parts["val"]}, settings))
    positive = units.y[parts["val"]] == 1
    expected = threshold_of(positive, model.on_val[:, 1], "youden")
    assert result.main_score.operating_points[""] == (expected,)


def test_subgroups_sizes_and_the_place_of_predictions_are_printed(root: Path) -> None:
    task = {"labels": ["look"], "subgroups": ["sex"], "shortcuts": ["sex"]}
    config = config_of(root, tasks={"t": task})
    results = evaluate(config, ["probe"])
    said = printed(results, config)
    groups = results[0].main_score.subgroups
    assert set(groups) == {"sex=F", "sex=M"}
    for name, group in groups.items():
        (line,) = [line for line in said.splitlines() if f" {name} " in line]
        assert f"{group.units} images of {group.patients} patients" in line
        auroc = group.metrics["auroc"]
        assert f"{auroc.value:.3f} [{auroc.low:.2f}, {auroc.high:.2f}]" in line
    train, val = (results[0].counts[part] for part in ("train", "val"))
    sizes = (
        f"trained on {train.units} images of {train.patients} patients, validated on {val.units}"
    )
    assert said.count(f"t: {sizes}") == 1
    assert said.count(": trained on ") == 1  # a shortcut stands on the split of its task
    assert f"What was predicted of each test unit is in {root / 'store/results'}" in said
    (alone,) = evaluate(config_of(root, tasks={"t": {"labels": ["look"]}}), ["knn"])
    path = predictions_path(root / "store", alone)
    assert path.is_file()
    assert f"is in {path}." in printed([alone], config)
    folds = config_of(root, tasks={"t": {"labels": ["look"]}}, split={"kind": "kfold"})
    assert "patients in the first fold." in printed(evaluate(folds, ["knn"]), folds)
