"""How units are divided, end to end: what is refused, what is filed, what a new patient does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.evaluate import evaluate
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.results import Result
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError, UnansweredError
from tests.pipeline.collection import config_of, make_store, write_csv

N = 120


def collection(root: Path, images: Any = None, labelled: int = N) -> Path:
    """Write a store of 60 patients, 2 images each, with a signal and columns to split by."""
    rng = np.random.default_rng(0)
    patient = np.arange(N) // 2
    signal = rng.integers(0, 2, 60)[patient]
    cls = rng.standard_normal((N, 4, 8))
    cls[:, 3, 0] += 3 * signal
    if not (root / "store").exists():
        make_store(root / "store", cls, [{"patient": f"P{p}"} for p in patient], images=images)
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(labelled)],
        signal=signal[:labelled],
        age=np.round(40 + 10 * cls[:labelled, 3, 1], 2),
        site=[f"site{p % 5}" for p in patient[:labelled]],
        date=[f"2020-{1 + p // 28:02}-{1 + p % 28:02}" for p in patient[:labelled]],
    )
    return root


def ask(root: Path, *methods: Any, labels: str = "signal", **more: Any) -> list[Result]:
    tasks = {"t": {"labels": [labels], **more.pop("task", {})}}
    return evaluate(config_of(root, tasks=tasks, **more), methods or ["probe"])


def copies(at: list[int], level: str = "image") -> Any:
    images = np.arange(1, N + 1)
    images[at] = images[at[0]]
    return images


def test_a_copy_on_the_other_side_is_refused_unless_allowed_by_name(tmp_path: Path) -> None:
    root = collection(tmp_path, copies(list(range(0, N, 2))))
    with pytest.raises(
        LabelError, match=r"60 units have the pixels.*rows \[0, 2, 4\].*split\.allow"
    ) as refused:
        ask(root)
    # All of them at once, by their rows where paths are hidden; what is refused is not filed.
    listed = {int(row) for row in re.findall(r"row (\d+)", str(refused.value))}
    assert listed == set(range(0, N, 2))
    assert not list((root / "store").glob("splits/*"))
    with pytest.raises(LabelError, match="60 units have the pixels"):
        ask(root, split={"kind": "kfold"})
    allowed = ask(root, split={"allow": ["duplicates"]})
    assert not allowed[0].cached
    assert any(note.startswith("60 units have the pixels of units") for note in allowed[0].notes)
    with pytest.raises(LabelError):  # what was allowed once is asked again
        ask(root)
    # pooled, a patient is no copy for one shared slice of two
    assert ask(root, task={"level": "patient"})[0].level == "patient"


def test_copies_can_be_kept_on_one_side(tmp_path: Path) -> None:
    images = np.arange(1, N + 1)
    images[40:60] = images[:20]  # ten patients are there again under other names
    root = collection(tmp_path, images)
    with pytest.raises(LabelError, match="have the pixels"):
        ask(root, split={"kind": "kfold"})
    split = {"kind": "kfold", "group": "duplicates"}
    result = ask(root, split=split)[0]
    assert result.counts["test"].patients == 60
    _, _, fold = read_predictions(root / "store", result, 0)
    assert fold is not None
    units = predicted_units(root / "store", result, 0).astype(int)
    fold_of = dict(zip(units.tolist(), fold.tolist(), strict=True))
    assert all(fold_of[i] == fold_of[i + 40] for i in range(20))
    assert ask(root, split=split)[0].cached


def test_near_copies_can_be_kept_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cls = rng.standard_normal((80, 4, 16))
    cls[60:] = cls[:20] + 0.02 * rng.standard_normal((20, 4, 16))
    make_store(tmp_path / "store", cls, [{} for _ in cls], images=np.arange(80) + 1)
    write_csv(
        tmp_path / "labels.csv",
        path=[f"f{i}.png" for i in range(80)],
        signal=np.arange(80) % 2,
        patient=[f"P{i}" for i in range(80)],
    )
    named = {"labels": {"patient": "patient"}, "tasks": {"t": {"labels": ["signal"]}}}
    with pytest.raises(LabelError, match="all but copies") as refused:
        evaluate(config_of(tmp_path, **named), ["knn"])
    assert re.search(r"\n  all but equal: row \d+, row \d+$", str(refused.value), re.MULTILINE)
    assert "~" not in str(refused.value)
    config = config_of(tmp_path, split={"kind": "kfold", "group": "duplicates"}, **named)
    (result,) = evaluate(config, ["knn"])
    assert not any("copies" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
def test_a_store_that_grew_otherwise_is_split_alike(tmp_path: Path, kind: str) -> None:
    tested = []
    order = np.random.default_rng(4).permutation(40)
    for name, rows in (("one", np.arange(40)), ("other", order)):
        root = tmp_path / name
        cls = np.random.default_rng(0).standard_normal((40, 4, 8))[rows]
        slices = [{"path": f"f{i}.png", "patient": f"P{i // 2}"} for i in rows]
        make_store(root / "store", cls, slices)
        write_csv(root / "labels.csv", path=[f"f{i}.png" for i in range(40)],
                  signal=np.arange(40) // 2 % 2)  # fmt: skip
        (result,) = ask(root, "knn", split={"kind": kind})
        _, _, fold = read_predictions(root / "store", result, 0)
        units = rows[predicted_units(root / "store", result, 0).astype(int)]
        folds = np.zeros(len(units), int) if fold is None else fold
        tested.append(sorted(zip(units.tolist(), folds.tolist(), strict=True)))
    assert tested[0] == tested[1]


@pytest.mark.parametrize("kind", ["site", "date"])
def test_a_column_that_changed_is_refused_with_who_moved(tmp_path: Path, kind: str) -> None:
    root = collection(tmp_path)
    split = {"kind": kind, "column": kind}
    ask(root, split=split)
    assert ask(root, split=split)[0].cached
    lines = (root / "labels.csv").read_text().splitlines()
    head, rows = lines[0], [line.split(",") for line in lines[1:]]
    place = head.split(",").index(kind)
    columns = [row[place] for row in rows]
    for row, value in zip(rows, columns[::-1] if kind == "date" else columns[24:] + columns[:24],
                          strict=True):  # fmt: skip
        row[place] = value
    for i in (0, 1):  # one patient at the site of another
        if kind == "site":
            rows[i][place] = next(v for v in columns if v != rows[i][place])
    (root / "labels.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    patients = {Names(root / "store").pseudonym("patient", f"P{i}") for i in range(60)}
    with pytest.raises(LabelError, match=f"made of the {kind} of each patient.* moved") as refused:
        ask(root, split=split)
    assert any(patient in str(refused.value) for patient in patients)


@pytest.mark.parametrize("level", ["image", "patient"])
def test_a_column_divides_patients_whole_at_every_level(tmp_path: Path, level: str) -> None:
    root = collection(tmp_path)
    day = [f"2020-{1 + i // 28:02}-{1 + i % 28:02}" for i in range(N)]
    file, at = root / "labels.csv", {"task": {"level": level}}
    own = {"path": [f"f{i}.png" for i in range(N)], "signal": np.arange(N) // 2 % 2}
    by_site: Any = {"kind": "site", "column": "site"}
    two_sites = [f"site{i // 2 % 5}" for i in range(N)]
    two_sites[1] = "site3"
    write_csv(file, **own, site=two_sites)
    with pytest.raises(LabelError, match=r"1 patients have more than one site, for example '\w+' "):
        ask(root, split=by_site, **at)
    # Nobody knows whether these are of a site that tests.
    write_csv(file, **own, site=["" if i in (1, 8, 9) else f"site{i // 2 % 5}" for i in range(N)])
    with pytest.raises(LabelError, match="2 of 60 have images of none"):
        ask(root, split=by_site, **at)
    # A patient's date is his last: of the two days of each, here and there.
    write_csv(file, **own, day=day)
    ask(root, split={"kind": "date", "column": "day"}, **at)
    dealt = [json.loads(path.read_text()) for path in (root / "store/splits").glob("*.json")]
    pseudonym = Names(root / "store").pseudonym
    assert [split["patients"]["test"] for split in dealt] == [
        sorted(pseudonym("patient", f"P{i}") for i in range(48, 60))
    ]


def test_a_patient_is_listed_in_one_part_at_every_level(tmp_path: Path) -> None:
    root = collection(tmp_path)
    parts = np.array(["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    parts[41] = "test"  # the second image of a patient who trains
    listed = write_csv(root / "list.csv", key=[f"f{i}.png" for i in range(N)], part=parts)
    split = {"kind": "list", "file": listed}
    with pytest.raises(LabelError, match="1 patients have more than one part"):
        ask(root, split=split, task={"level": "patient"})


def test_a_task_that_fails_leaves_the_others_answered(tmp_path: Path) -> None:
    root = collection(tmp_path)
    tasks = {
        "bad": {"labels": ["nowhere"]},
        "good": {"labels": ["signal"]},
        "odd": {"labels": ["site"], "values": "number"},
    }
    with pytest.raises(UnansweredError, match="not be answered: bad, odd") as failed:
        evaluate(config_of(root, tasks=tasks), ["knn", "probe"])
    assert "bad: The label file" in str(failed.value)
    assert str(failed.value).count("must hold finite numbers") == 1
    assert [result.method for result in failed.value.answers] == ["knn", "probe"]
    assert {result.task for result in failed.value.answers} == {"good"}
    assert (root / "store/results/results.parquet").is_file()
    with pytest.raises(LabelError, match="no column 'nowhere'"):
        evaluate(config_of(root, tasks={"bad": tasks["bad"]}), ["knn"])


def test_copies_of_one_patient_and_unknown_digests_are_no_leak(tmp_path: Path) -> None:
    images = np.arange(N) // 2
    images[:20] = 0
    assert ask(collection(tmp_path, images))[0].scores


def test_every_fold_tests_and_metrics_are_means_over_folds(tmp_path: Path) -> None:
    root = collection(tmp_path)
    knn, probe, few = ask(root, "knn", "probe", "fewshot", split={"kind": "kfold", "folds": 4})
    assert knn.counts["test"].units == probe.counts["test"].units == N
    # Each fold chose a k on its val; where they differ, what they chose is a score of its own.
    assert [score.setting for score in knn.scores[:2]] == [{"k": 3}, {"k": 5}]
    differ = any(note.startswith("chosen by fold: k = ") for note in knn.notes)
    assert [score.setting for score in knn.scores[2:]] == [{}] * differ
    if differ:
        assert knn.main_score is knn.scores[2]
    assert few.notes[0] == "only the first fold is asked"
    if probe.scores[0].setting == {}:
        assert any(note.startswith("chosen by fold: C = ") for note in probe.notes)
    truth, proba, fold = read_predictions(root / "store", probe, 0)
    assert fold is not None
    each = [roc_auc_score(truth.y[fold == i], proba[fold == i, 1]) for i in range(4)]
    metric = probe.scores[0].metrics["auroc"]
    assert metric.value == pytest.approx(np.mean(each))
    assert metric.low is not None
    assert metric.low > 0.7
    whose = [set(truth.groups[fold == i]) for i in range(4)]
    assert sum(map(len, whose)) == len(set().union(*whose)) == 60


@pytest.mark.parametrize("kind", ["site", "date"])
def test_a_label_column_divides(tmp_path: Path, kind: str) -> None:
    result = ask(collection(tmp_path), split={"kind": kind, "column": kind})[0]
    assert sum(count.patients for count in result.counts.values()) == 60
    assert result.counts["test"].patients == 12


def test_an_official_list_divides_by_path_and_a_wrong_part_is_named(tmp_path: Path) -> None:
    root = collection(tmp_path)
    parts = ["train"] * 60 + ["val"] * 20 + ["test"] * 40
    write_csv(root / "list.csv", key=[f"./f{i}.png" for i in range(N)], part=parts)
    split = {"kind": "list", "file": root / "list.csv"}
    result = ask(root, split=split)[0]
    assert [count.units for count in result.counts.values()] == [60, 20, 40]
    write_csv(root / "list.csv", key=["f0.png"], part=["training"])
    with pytest.raises(LabelError, match=r"train, val or test. Got 1 other values"):
        ask(root, split=split)


def test_a_new_patient_has_a_way_in_that_deals_nobody_again(tmp_path: Path) -> None:
    root = collection(tmp_path, labelled=80)
    before = ask(root)[0]
    collection(root)
    with pytest.raises(LabelError, match=r"20 of the task's 60 patients.*split\.new"):
        ask(root)
    left = ask(root, split={"new": "leave-out"})[0]
    assert sum(count.patients for count in left.counts.values()) == 40
    dealt = ask(root, split={"new": "deal"})[0]
    assert sum(count.patients for count in dealt.counts.values()) == 60
    assert dealt.counts["test"].patients == 12
    assert len({before.provenance.split, dealt.provenance.split}) == 2
    assert ask(root, split={"new": "deal"})[0].cached
    assert len(list((root / "store/splits").glob("*.json"))) == 1


def test_a_number_is_asked_for(tmp_path: Path) -> None:
    root = collection(tmp_path)
    task = {"values": "number"}
    knn, probe, few = ask(root, "knn", "probe", "fewshot", labels="age", task=task)
    assert (probe.kind, probe.classes) == ("regression", ("age",))
    assert probe.scores[0].metrics["r2"].value > 0.8
    assert probe.scores[0].metrics["mae"].value < 5
    assert knn.scores[0].metrics.keys() == {"r2", "mae", "rmse", "correlation"}
    assert few.notes == ("few-shot episodes need classes: a number has none",)
    truth, said, _ = read_predictions(root / "store", probe, 0)
    assert np.abs(truth.y - said[:, 0]).mean() == pytest.approx(
        probe.scores[0].metrics["mae"].value
    )
    text = (root / "labels.csv").read_text().replace("f0.png,0,", "f0.png,0,old-")
    text = text.replace("f0.png,1,", "f0.png,1,old-")
    (root / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match="must hold finite numbers.*data row 1"):
        ask(root, labels="age", task=task)
    with pytest.raises(ValueError, match="must have one label column"):
        ask(root, task={"values": "number", "labels": ["age", "signal"]})


def test_scaling_and_pooling_are_named_in_the_result(tmp_path: Path) -> None:
    root = collection(tmp_path)
    task = {"level": "patient", "pool": "gem3"}
    result = ask(root, task=task, probe={"scaling": "whiten", "components": 5})[0]
    assert result.question.pool == "gem3"
    assert (result.settings["scaling"], result.settings["components"]) == ("whiten", 5)
    plain = ask(root, task=task)[0]
    assert not plain.cached
    assert plain.scores != result.scores
