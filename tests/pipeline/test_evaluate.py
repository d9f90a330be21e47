from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from pipeline.annotations.units import Units
from pipeline.commands.printing import show_results
from pipeline.config.root import Config
from pipeline.evaluate import evaluate, on_file, tidy
from pipeline.evaluation import result_files
from pipeline.evaluation.compare import compare, compare_stores
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.pooling import read_features
from pipeline.evaluation.prediction_rows import prediction_rows
from pipeline.evaluation.result_files import filed, read_predictions, write_tidy
from pipeline.evaluation.splits import split_path
from pipeline.results import Result, Tally
from stores.errors import (
    ConfigError,
    CorruptStoreError,
    LabelError,
    StoreNotFoundError,
    UnansweredError,
)
from stores.verify import repair, verify
from tests.fresh import WITH_TORCH, said
from tests.pipeline.collection import config_of, make_store, write_csv

N = 240


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nobody who might write a damaged file anew."""
    monkeypatch.setattr("stores._disk._MOMENT_S", 0.001)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of 80 patients, 3 images each, and labels.

    `signal` leans on the last block's features, `noise` on nothing; `a`, `b` are multi-label.
    """
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 3
    signal = rng.integers(0, 2, 80)[patient]
    a, b, noise = (rng.integers(0, 2, N) for _ in range(3))
    cls = rng.standard_normal((N, 4, 16))
    cls[:, 3, 0] += 3 * signal
    cls[:, 3, 1] += 2 * a
    make_store(root / "store", cls, [{"patient": f"P{p}"} for p in patient])
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        signal=["sick" if s else "healthy" for s in signal],
        noise=noise,
        a=a,
        b=b,
    )
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Return a copy of `made`."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def answered(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of `made` whose tasks `signal` and `noise` are answered by kNN."""
    root = shutil.copytree(made, tmp_path_factory.mktemp("answered"), dirs_exist_ok=True)
    evaluate(config(root, "signal", "noise"), ["knn"])
    return root


def config(root: Path, *names: str, **more: Any) -> Config:
    tasks: dict[str, dict[str, Any]]
    tasks = {"signal": {"labels": ["signal"]}, "noise": {"labels": ["noise"]}}
    tasks["both"] = {"labels": ["a", "b"]}
    tasks["patients"] = {"labels": ["signal"], "level": "patient"}
    return config_of(root, tasks={name: tasks[name] for name in names}, **more)


def auroc(result: Result) -> tuple[float, float, float]:
    metric = result.main_score.metrics["auroc"]
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.value, metric.high


def test_a_planted_signal_is_found_and_noise_is_not(root: Path) -> None:
    results = evaluate(config(root, "signal", "noise"))
    assert [(r.task, r.method) for r in results] == [
        (task, method) for task in ("signal", "noise") for method in ("knn", "probe", "fewshot")
    ]
    for result in results:
        low, value, high = auroc(result)
        if result.task == "signal":
            assert value > 0.8
            assert low > 0.6
        elif result.method != "fewshot":
            assert low < 0.5 < high
        else:
            assert value == pytest.approx(0.5, abs=0.1)
    knn = results[0]
    assert knn.classes == ("healthy", "sick")
    assert [score.setting for score in knn.scores] == [{"k": 3}, {"k": 5}]
    patients = {part: count.patients for part, count in knn.counts.items()}
    assert sum(patients.values()) == 80
    assert all(8 <= patients[part] <= 24 for part in ("val", "test"))
    assert sum(sum(count.positives.values()) for count in knn.counts.values()) == N
    assert knn.provenance.random


def test_levels_pool_and_multilabel_scores_by_label(root: Path) -> None:
    patients, both = evaluate(config(root, "patients", "both"), ["probe"])
    assert sum(count.units for count in patients.counts.values()) == 80
    assert auroc(patients)[1] > 0.9
    labels = both.scores[0].labels
    assert labels["a"]["auroc"].value > 0.75 > labels["b"]["auroc"].value


def test_an_unchanged_rerun_is_found_and_what_changed_is_not(root: Path) -> None:
    first = evaluate(config(root, "signal", "noise"))
    again = evaluate(config(root, "signal", "noise"))
    assert not any(result.cached for result in first)
    assert again == [result.model_copy(update={"cached": True}) for result in first]

    wider = config(root, "signal", "noise", knn={"k": [3]})
    assert [r.cached for r in evaluate(wider)] == [False, True, True] * 2
    reseeded = config(root, "signal", split={"seed": 1})
    assert not any(r.cached for r in evaluate(reseeded))


def test_a_corrected_label_recomputes_its_task_alone_on_the_same_split(root: Path) -> None:
    before = evaluate(config(root, "signal", "noise"), ["knn"])
    file = root / "labels.csv"
    lines = file.read_text().splitlines()
    cells = lines[1].split(",")
    cells[2] = str(1 - int(cells[2]))
    file.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    after = evaluate(config(root, "signal", "noise"), ["knn"])
    assert [result.cached for result in after] == [True, False]
    assert after[1].provenance.split == before[1].provenance.split


def imported(config: Config) -> list[str]:
    """Return "all found in results/" and the heavy libraries that a fresh process imports."""
    code = (
        "import sys\n"
        "from pipeline.config.root import Config\n"
        "from pipeline.evaluate import evaluate\n"
        "print(all(r.cached for r in evaluate(Config.model_validate_json(sys.argv[1]))))\n"
        "from tests.fresh import LIBRARIES\n"
        "print(*sorted(LIBRARIES & set(sys.modules)))"
    )
    return said(code, config.model_dump_json()).split()


def test_a_rerun_imports_no_head_and_opens_no_array(root: Path) -> None:
    evaluate(config(root, "signal", "both"))
    assert imported(config(root, "signal", "both")) == ["True"]


def test_no_head_imports_torch(root: Path) -> None:
    libraries = set(imported(config(root, "both", "noise")))
    assert libraries >= {"False", "faiss", "sklearn"}
    assert not WITH_TORCH & libraries


def test_a_tampered_split_is_refused(root: Path) -> None:
    asked = config(root, "signal")
    evaluate(asked, ["knn"])
    path = split_path(root / "store", "signal", asked.tasks["signal"], asked.split)
    data = json.loads(path.read_text())
    data["patients"]["train"].append(data["patients"]["test"][0])
    path.write_text(json.dumps(data))
    with pytest.raises(LabelError, match="both 'train' and 'test'"):
        evaluate(asked, ["knn"])


def test_files_name_patients_by_pseudonym_only(root: Path) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    named = [f"{line},SECRET{i // 3}" for i, line in enumerate(lines[1:])]
    (root / "labels.csv").write_text("\n".join([lines[0] + ",who", *named]))
    evaluate(config(root, "signal", "patients", labels={"patient": "who"}))
    written = [p for f in ("results", "splits") for p in (root / "store" / f).iterdir()]
    files = 2 * 3 + 2 * 2 + 2 + 2  # results, predictions, splits, the tidy table twice
    assert len(written) == 2 * files  # and a checksum each
    for path in written:
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text = str(pq.read_table(path).to_pydict()).encode()
        assert b"SECRET" not in text


def test_tables_keep_every_number_whole_and_numbers_apart_from_classes(root: Path) -> None:
    ages = np.random.default_rng(1).integers(20, 80, N)
    lines = (root / "labels.csv").read_text().splitlines()
    aged = [f"{line},{age}" for line, age in zip(lines[1:], ages, strict=True)]
    (root / "labels.csv").write_text("\n".join([lines[0] + ",age", *aged]) + "\n")
    name = "the-signal-of-a-task-with-a-long-name"
    tasks = {name: {"labels": ["signal"]}, "age": {"labels": ["age"], "values": "number"}}
    results = evaluate(config_of(root, tasks=tasks), ["probe"])
    into = io.StringIO()
    show_results(Console(file=into, width=60), results)
    said = into.getvalue()
    assert "…" not in said
    assert said.count("Linear probe on cls") == 2
    for metric in (results[0].scores[0].metrics["auroc"], results[1].scores[0].metrics["mae"]):
        assert f"{metric.value:.3f} [{metric.low:.2f}, {metric.high:.2f}]" in said


def test_predictions_give_the_score_back(root: Path) -> None:
    result = evaluate(config(root, "signal"), ["probe"])[0]
    path = next((root / "store/results").glob("probe-*.parquet"))
    table = pq.read_table(path)
    assert table.num_rows == result.counts["test"].units
    expected = roc_auc_score(table["truth:sick"].to_numpy(), table["proba:sick"].to_numpy())
    assert auroc(result)[1] == pytest.approx(expected)


def test_predictions_for_people_are_by_path(root: Path) -> None:
    settings = config(root, "signal")
    result = evaluate(settings, ["probe"])[0]
    rows = prediction_rows(settings, [result]).to_pandas()
    assert len(rows) == result.counts["test"].units * len(result.classes)
    labels = pd.read_csv(root / "labels.csv").set_index("path")
    sick = rows[rows["class"] == "sick"].set_index("path")
    assert (sick["truth"] == (labels.loc[sick.index, "signal"] == "sick")).all()
    assert roc_auc_score(sick["truth"], sick["predicted"]) == pytest.approx(auroc(result)[1])
    assert rows["key"].isna().all()
    assert rows["fold"].isna().all()
    in_folds = config(root, "signal", split={"kind": "kfold", "folds": 3})
    rows = prediction_rows(in_folds, evaluate(in_folds, ["knn"])).to_pandas()
    assert {*rows["fold"]} == {0, 1, 2}


def test_two_heads_are_compared_on_the_same_units_only(root: Path) -> None:
    knn, probe, noise = evaluate(config(root, "signal"), ["knn", "probe"]) + evaluate(
        config(root, "noise"), ["probe"]
    )
    store = root / "store"
    found = {d.metric: d for d in compare((store, knn), (store, probe))}
    expected = auroc(probe)[1] - auroc(knn)[1]
    assert found["auroc"].difference.value == pytest.approx(expected)
    assert found["auroc"].p is not None
    same = compare((store, probe), (store, probe))
    assert {d.difference.value for d in same} == {0}
    with pytest.raises(LabelError, match="can be compared only on the same test units"):
        compare((store, probe), (store, noise))


def test_features_are_the_last_blocks_and_the_mean_over_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cls = rng.standard_normal((6, 4, 5)).astype(np.float16)
    store = make_store(tmp_path / "store", cls, [{} for _ in range(6)])
    unit = np.array([0, 1, 0, 2, 1])
    units = Units(
        ids=np.array(["x", "y", "z"]), y=np.array([0, 1, 0]), groups=np.array(["x", "y", "z"]),
        classes=("a", "b"), kind="binary", rows=np.array([0, 1, 2, 4, 5]), unit=unit, tally=Tally(),
    )  # fmt: skip
    wide = cls.astype(np.float32)[units.rows].reshape(5, 20)
    means = np.stack([wide[unit == i].mean(axis=0) for i in range(3)])
    np.testing.assert_allclose(read_features(store, units, "cls4"), means, atol=1e-6)
    np.testing.assert_allclose(read_features(store, units, "cls"), means[:, 15:], atol=1e-6)
    most = np.stack([wide[unit == i].max(axis=0) for i in range(3)])
    np.testing.assert_array_equal(read_features(store, units, "cls4", "max"), most)
    both = read_features(store, units, "cls+mean")
    np.testing.assert_allclose(both, np.tile(means[:, 15:], 2), atol=1e-6)


def test_batches_of_rows_change_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pool in ("mean", "max"):
        asked = config_of(
            root, tasks={"t": {"labels": ["signal"], "level": "patient", "pool": pool}}
        )
        whole = evaluate(asked, ["knn"])[0]
        for path in (root / "store/results").iterdir():
            path.unlink()
        with monkeypatch.context() as small:
            small.setattr("pipeline.evaluation.pooling.ROWS_AT_ONCE", 7)
            again = evaluate(asked, ["knn"])[0]
        assert not again.cached
        assert again.scores == whole.scores


def test_what_cannot_be_asked_is_said(root: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(config(root))
    with pytest.raises(StoreNotFoundError):
        evaluate(config(root, "signal").model_copy(update={"store": root / "none"}))
    store = make_store(root / "small", np.ones((4, 1, 3)), [{}] * 4)
    units = Units(
        ids=np.array(["x"]), y=np.array([0]), groups=np.array(["x"]), classes=("a", "b"),
        kind="binary", rows=np.array([0]), unit=np.array([0]), tally=Tally(),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"'cls4' need 4 blocks.*has 1 blocks"):
        read_features(store, units, "cls4")


def test_progress_names_each_answer(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(config(root, "signal"), ["knn", "probe"], progress=lambda *at: seen.append(at))
    assert seen == [("signal: knn", 0, 2), ("signal: probe", 1, 2)]


def test_a_head_that_trains_says_how_many_epochs_are_done(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    short = config(root, "signal", linear={"epochs": 3, "batch": 64, "rates": [0.1]})
    evaluate(short, ["linear"], progress=lambda *at: seen.append(at))
    assert seen[0] == ("signal: linear", 0, 1)
    assert list(dict.fromkeys(seen[1:])) == [("signal: linear, epochs", i, 3) for i in range(3)]


def test_the_tidy_table_holds_every_number_once(root: Path) -> None:
    results = evaluate(config(root, "signal", "both"))
    table = tidy(results)
    numbers = sum(
        len(metrics)
        for result in results
        for score in result.scores
        for metrics in (score.metrics, *score.labels.values())
    )
    assert table.num_rows == numbers
    names = ("task", "method", "setting", "metric", "label")
    assert len(set(zip(*(table[name].to_pylist() for name in names), strict=True))) == numbers
    row = next(r for r in table.to_pylist() if r["task"] == "both" and r["label"] == "a")
    assert row["random"]
    assert row["low"] <= row["value"] <= row["high"]


def test_subgroups_shortcuts_and_permutations_stand_beside_the_score(root: Path) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    sex, view = (np.random.default_rng(s).integers(0, 2, N) for s in (1, 2))
    rows = [f"{line},{'FM'[s]},{v}" for line, s, v in zip(lines[1:], sex, view, strict=True)]
    (root / "labels.csv").write_text("\n".join([lines[0] + ",sex,view", *rows]))
    task = {"labels": ["signal"], "subgroups": ["sex"], "shortcuts": ["sex", "view"]}
    asked = config_of(root, tasks={"t": {**task, "permutations": 200}})
    knn, probe, first, second = evaluate(asked, ["knn", "probe"])
    assert [result.task for result in (knn, probe, first, second)] == ["t", "t", "t/sex", "t/view"]
    assert first.classes == ("F", "M")
    assert {r.provenance.split for r in (probe, first, second)} == {probe.provenance.split}
    groups = probe.scores[0].subgroups
    assert set(groups) == {"sex=F", "sex=M"}
    assert sum(group.units for group in groups.values()) == probe.counts["test"].units
    for name in ("healthy", "sick"):
        carried = sum(group.positives[name] for group in groups.values())
        assert carried == probe.counts["test"].positives[name]
    truth, proba, _ = read_predictions(root / "store", probe, 0)
    name = f"probe-{probe.provenance.key[:16]}.parquet"
    units = np.array(pq.read_table(root / "store/results" / name)["unit"].to_pylist(), int)
    female = sex[units] == 0
    expected = roc_auc_score(truth.y[female], proba[female, 1])
    assert groups["sex=F"].metrics["auroc"].value == pytest.approx(expected)
    assert probe.scores[0].metrics["auroc"].p == pytest.approx(1 / 201)
    assert first.scores[0].metrics["auroc"].value == pytest.approx(0.5, abs=0.25)
    table = tidy([probe])
    assert set(table["subgroup"].to_pylist()) == {"", "sex=F", "sex=M"}
    assert all(result.cached for result in evaluate(asked, ["knn", "probe"]))
    many = {"labels": ["signal"], "subgroups": ["path"]}
    with pytest.raises(LabelError, match=r"at most 20 values. 'path' has \d\d"):
        evaluate(config_of(root, tasks={"t": many}), ["probe"])


def test_a_head_that_can_say_nothing_leaves_its_task_unanswered(root: Path) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    is_sick = [",sick," in line for line in lines[1:]]
    patient = np.arange(N) // 3
    healthy = np.unique(patient[~np.array(is_sick)])
    # All of the sick test, and one of the healthy; a place of the subgroup column is one patient's.
    part = [
        "test" if sick or p == healthy[0] else "train"
        for sick, p in zip(is_sick, patient, strict=True)
    ]
    write_csv(root / "list.csv", key=[f"f{i}.png" for i in range(N)], part=part)
    place = ["alone" if p == healthy[0] else "many" for p in patient]
    rows = [f"{line},{where}" for line, where in zip(lines[1:], place, strict=True)]
    (root / "labels.csv").write_text("\n".join([f"{lines[0]},place", *rows]))
    tasks = {"t": {"labels": ["signal"], "subgroups": ["place"]}}
    split = {"kind": "list", "file": root / "list.csv"}
    methods = ["knn", "probe", "efficiency", "fewshot"]
    with pytest.raises(UnansweredError) as refused:
        evaluate(config_of(root, tasks=tasks, split=split), methods)
    said = str(refused.value)
    assert "probe can say nothing of any test unit: 'healthy' has no model" in said
    assert "efficiency can say nothing of any test unit" in said
    assert "fewshot can say nothing of any test unit: 1 shots of all classes left out" in said
    (knn,) = refused.value.answers
    alone = knn.main_score.subgroups["place=alone"]
    # Of one patient a score says what he has.
    assert (alone.patients, alone.units, alone.metrics) == (1, 3, {})
    assert knn.main_score.subgroups["place=many"].metrics
    # The sick alone: balanced between what and what, nobody can say.
    part = ["test" if sick else "train" for sick in is_sick]
    write_csv(root / "list.csv", key=[f"f{i}.png" for i in range(N)], part=part)
    (of_one,) = evaluate(config_of(root, tasks=tasks, split=split), ["knn"])
    assert "balanced_accuracy" not in of_one.main_score.metrics
    assert "no balanced accuracy: all test units are of one class" in of_one.notes


def test_a_fold_without_a_class_leaves_its_task_unanswered_and_a_number_has_no_few_shot(
    root: Path,
) -> None:
    paths = [f"f{i}.png" for i in range(N)]
    rare = [int(i < 6) for i in range(N)]  # two patients, of whom one validates and one tests
    write_csv(root / "labels.csv", path=paths, rare=rare, size=np.arange(N) % 7)
    folds = {"kind": "kfold", "folds": 3}
    with pytest.raises(LabelError, match=r"probe can say nothing.*fold \d: '0' has no model"):
        evaluate(config_of(root, tasks={"t": {"labels": ["rare"]}}, split=folds), ["probe"])
    number = {"labels": ["size"], "values": "number"}
    (answer,) = evaluate(config_of(root, tasks={"t": number}), ["fewshot"])
    assert (answer.scores, answer.notes[0][:8]) == ((), "few-shot")


def test_copies_across_the_split_are_told_and_not_that_a_shortcut_has_no_split(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    images = np.arange(N) + 1
    images[1::2] = images[::2]  # of each picture the next patient has a copy
    slices = [{"patient": f"P{i}"} for i in range(N)]
    make_store(tmp_path / "store", rng.standard_normal((N, 4, 16)), slices, images=images)
    write_csv(
        tmp_path / "labels.csv",
        path=[f"f{i}.png" for i in range(N)],
        sick=rng.integers(0, 2, N),
        # Known of one patient of each pair, so that no copy is among them.
        alone=[rng.integers(0, 2) if i % 2 else "" for i in range(N)],
        view=rng.integers(0, 2, N),
    )
    tasks = {
        "sick": {"labels": ["sick"], "shortcuts": ["view"]},
        "alone": {"labels": ["alone"]},
    }
    with pytest.raises(UnansweredError, match=r"(?s)sick, sick/view: .*another side") as refused:
        evaluate(config_of(tmp_path, tasks=tasks), ["knn", "probe"])
    assert str(refused.value).count("another side") == 1
    assert [(r.task, r.method) for r in refused.value.answers] == [
        ("alone", "knn"),
        ("alone", "probe"),
    ]
    with pytest.raises(LabelError, match="another side"):
        evaluate(config_of(tmp_path, tasks={"sick": tasks["sick"]}), ["probe"])


def test_the_papers_few_shot_is_its_draw_and_the_probe(root: Path) -> None:
    paper = {"draw": "paper", "shots": [1, 12, 16], "features": "cls"}
    result = evaluate(config(root, "signal", fewshot=paper), ["fewshot"])[0]
    # A single unit is of one class: said, and no score made up for it.
    assert [score.setting["shots"] for score in result.scores] == [12, 16]
    assert any(note.startswith("1 shots: ") and "no model" in note for note in result.notes)
    assert {"shots", "C"} == set(result.scores[0].setting)
    assert result.scores[1].metrics["auroc"].value > 0.8
    truth, _, _ = read_predictions(root / "store", result, 1)
    assert len(truth.y) == result.counts["test"].units
    wider = config(root, "signal", fewshot=paper, probe={"steps": 3})
    assert not evaluate(wider, ["fewshot"])[0].cached


def test_the_tidy_table_is_on_file_and_grows_by_what_is_answered(root: Path) -> None:
    evaluate(config(root, "signal"), ["knn"])
    path = root / "store/results/results.parquet"
    first = pq.read_table(path)
    evaluate(config(root, "signal", "noise"), ["knn"])
    grown = pq.read_table(path)
    assert grown.filter(pc.field("task") == "signal").num_rows == first.num_rows
    assert set(grown["task"].to_pylist()) == {"signal", "noise"}
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == grown.to_pylist()
    stamp = path.stat().st_mtime_ns
    evaluate(config(root, "signal", "noise"), ["knn"])
    assert path.stat().st_mtime_ns == stamp


def test_two_stores_are_compared_on_every_task_both_answered(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    patient = np.arange(N) // 3
    other = tmp_path / "worse"
    make_store(other, rng.standard_normal((N, 4, 16)), [{"patient": f"P{p}"} for p in patient])
    names = ("signal", "noise", "both")
    evaluate(config(root, *names), ["knn", "probe"])
    with pytest.raises(StoreNotFoundError, match="no results"):
        compare_stores(root / "store", other)
    evaluate(config(root, *names).model_copy(update={"store": other}), ["probe"])
    found = compare_stores(other, root / "store")
    assert {(result.task, result.method) for result, _ in found} == {
        (name, "probe") for name in names
    }
    every = [d for _, differences in found for d in differences if d.p is not None]
    assert len(every) == 4  # two binary tasks and two labels
    signal = next(differences for result, differences in found if result.task == "signal")
    auroc_of = next(d for d in signal if d.metric == "auroc")
    assert auroc_of.difference.value > 0.2
    adjusted = holm([d.p for d in every if d.p is not None])
    assert [d.p_holm for d in every] == pytest.approx(adjusted)
    assert auroc_of.p_holm is not None


# --- answers on file that are damaged, lost, or written by two ---------------------------------


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_digit_of_an_answer_is_not_believed(root: Path) -> None:
    asked = config(root, "signal")
    before = evaluate(asked, ["knn"])[0]
    path = next((root / "store/results").glob("knn-*.json"))
    text = path.read_bytes()
    at = text.index(b'"value": 0.') + len(b'"value": 0.')
    path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    assert on_file(asked, ["knn"]) == []
    assert not list(filed(root / "store"))
    after = evaluate(asked, ["knn"])[0]
    assert not after.cached
    assert after.scores == before.scores
    assert evaluate(asked, ["knn"])[0].cached


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 9)])
@pytest.mark.parametrize("mend", [True, False])
@pytest.mark.parametrize(
    "which", ["results.parquet", "results.jsonl", "knn-*.parquet", "knn-*.json"]
)
def test_what_is_lost_of_answers_comes_back(
    answered: Path, tmp_path: Path, which: str, mend: bool, damage: Callable[[Path], None]
) -> None:
    """With `verify --repair` before the same command, and without."""
    root = shutil.copytree(answered, tmp_path, dirs_exist_ok=True)
    asked = config(root, "signal", "noise")
    path = sorted((root / "store/results").glob(which))[0]
    tidied = pq.read_table(root / "store/results/results.parquet")
    rows = sorted(map(str, tidied.drop_columns(["key"]).to_pylist()))
    damage(path)
    if mend:
        repair(root / "store")
    evaluate(asked, ["knn"])
    assert path.is_file()
    assert {finding.kind for finding in verify(root / "store").findings} == {"duplicate"}
    tidied = pq.read_table(root / "store/results/results.parquet")
    assert sorted(map(str, tidied.drop_columns(["key"]).to_pylist())) == rows


def test_of_two_that_publish_at_once_none_is_lost(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads the table before the other has written, and writes after."""
    asked = config(root, "signal")
    store = root / "store"
    knn = evaluate(asked, ["knn"])
    probe = evaluate(asked, ["probe"])
    for path in (store / "results").glob("results.*"):
        path.unlink()
    real = result_files.write_table

    def slow(path: Path, table: Any) -> None:
        monkeypatch.undo()
        write_tidy(store, knn)  # the other comes through meanwhile
        real(path, table)

    monkeypatch.setattr(result_files, "write_table", slow)
    write_tidy(store, probe)
    table = pq.read_table(store / "results/results.parquet")
    assert set(table["method"].to_pylist()) == {"knn", "probe"}


def test_an_answer_that_is_filed_while_another_publishes_is_in_the_table(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(root, "signal")
    store = root / "store"
    knn = evaluate(asked, ["knn"])
    real = result_files.write_table

    def slow(path: Path, table: Any) -> None:
        monkeypatch.undo()
        evaluate(asked, ["probe"])
        real(path, table)

    monkeypatch.setattr(result_files, "write_table", slow)
    write_tidy(store, knn)
    table = pq.read_table(store / "results/results.parquet")
    assert set(table["method"].to_pylist()) == {"knn", "probe"}


def test_a_damaged_part_is_an_error_and_no_answer_without_its_slices(root: Path) -> None:
    asked = config(root, "signal")
    evaluate(asked, ["knn"])
    flip(root / "store/parts/0000000.json")
    with pytest.raises(CorruptStoreError, match="Part 0 .* is damaged: its receipt is damaged"):
        evaluate(asked, ["knn"])


def test_a_split_that_is_no_split_is_said(root: Path) -> None:
    asked = config(root, "signal")
    evaluate(asked, ["knn"])
    path = next((root / "store/splits").glob("*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LabelError, match="delete it to deal the patients anew"):
        evaluate(asked, ["probe"])
