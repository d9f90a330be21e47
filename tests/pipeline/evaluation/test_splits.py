from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.data import SplitChoice
from pipeline.config.tasks import Task
from pipeline.evaluation.splits import (
    Split,
    check_disjoint,
    extended_text,
    load_split,
    make_split,
    merged,
    split_new_patients,
    split_path,
    split_text,
)
from stores.errors import LabelError
from tests.pipeline.collection import units_of

RNG = np.random.default_rng(0)


def test_patients_stand_on_one_side_and_all_stand_somewhere() -> None:
    groups = RNG.integers(0, 40, 300)
    units = units_of(RNG.integers(0, 3, 300), groups)
    split = make_split(units, SplitChoice())
    sides = [set(side) for side in split.patients.values()]
    assert set().union(*sides) == set(units.groups)
    assert sum(map(len, sides)) == 40
    (parts,) = split.parts_of(units.groups)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(300))
    assert len(split.patients["test"]) == len(split.patients["val"]) == 8


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_labels_are_spread_evenly(share: float) -> None:
    y = (RNG.random((500, 3)) < [share, 0.3, 0.6]).astype(np.int8)
    units = units_of(y)
    (parts,) = make_split(units, SplitChoice()).parts_of(units.groups)
    expected = y.sum(axis=0) / 5
    for part in ("val", "test"):
        got = y[parts[part]].sum(axis=0)
        assert abs(got - expected)[0] <= 1  # the rarest is exact
        assert (abs(got - expected) <= 4).all()


def test_a_rare_label_trains_first_then_tests_then_validates() -> None:
    for carried, parts_with in [
        (1, {"train"}),
        (2, {"train", "test"}),
        (3, {"train", "test", "val"}),
    ]:
        units = units_of((np.arange(50) < carried).astype(np.int64))
        (parts,) = make_split(units, SplitChoice()).parts_of(units.groups)
        assert {part for part, rows in parts.items() if units.y[rows].any()} == parts_with


def test_the_seed_and_nothing_else_decides() -> None:
    units = units_of(RNG.integers(0, 2, 60))
    assert make_split(units, SplitChoice()) == make_split(units, SplitChoice())
    assert make_split(units, SplitChoice()) != make_split(units, SplitChoice(seed=1))


def test_renamed_patients_are_split_alike() -> None:
    y, groups = RNG.integers(0, 2, 100), RNG.integers(0, 30, 100)
    renamed = RNG.permutation(30)[groups]
    ours, theirs = (units_of(y, names) for names in (groups, renamed))
    (parts,), (same,) = (make_split(u, SplitChoice()).parts_of(u.groups) for u in (ours, theirs))
    assert all(np.array_equal(parts[part], same[part]) for part in parts)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(LabelError, match="into 5 folds .* Got 4"):
        make_split(units_of(np.array([0, 1, 0, 1])), SplitChoice())


def test_a_patient_on_both_sides_is_refused_also_from_a_file(tmp_path: Path) -> None:
    split = make_split(units_of(RNG.integers(0, 2, 20)), SplitChoice())
    file = tmp_path / "split.json"
    file.write_text(split_text(split, "task", SplitChoice()))
    assert load_split(file) == split
    data = json.loads(file.read_text())
    leaked = data["patients"]["test"][0]
    data["patients"]["train"].append(leaked)
    file.write_text(json.dumps(data))
    with pytest.raises(LabelError, match=f"both 'train' and 'test'.*{leaked}"):
        load_split(file)
    data["patients"]["test"].remove(leaked)  # now disjoint, but no longer what was dealt
    file.write_text(json.dumps(data))
    with pytest.raises(LabelError, match="was altered"):
        load_split(file)


def test_an_empty_side_is_refused_and_an_unknown_patient_stands_nowhere() -> None:
    split = Split({"train": ("a",), "val": ("b",), "test": ("c",)})
    assert split.sides_of(np.array(["a", "b", "c", "d"])).tolist() == [0, 1, 2, -1]
    with pytest.raises(LabelError, match="No unit of the task belongs to a 'test' patient"):
        split.parts_of(np.array(["a", "b"]))
    with pytest.raises(LabelError, match="no patient in 'val'"):
        check_disjoint(Split({"train": ("a",), "val": (), "test": ("c",)}))


def test_every_fold_tests_once_and_the_next_validates() -> None:
    y, groups = RNG.integers(0, 2, 200), RNG.integers(0, 50, 200)
    units, choice = units_of(y, groups), SplitChoice(kind="kfold", folds=4)
    folds = make_split(units, choice).parts_of(units.groups)
    assert sorted(np.concatenate([turn["test"] for turn in folds])) == list(range(200))
    for turn, after in zip(folds, folds[1:] + folds[:1], strict=True):
        assert np.array_equal(turn["val"], after["test"])
        assert sorted(np.concatenate(list(turn.values()))) == list(range(200))
        sides = [set(units.groups[rows]) for rows in turn.values()]
        assert sum(map(len, sides)) == len(set().union(*sides))
    carried = [np.unique(units.groups[t["test"]][y[t["test"]] == 1]).size for t in folds]
    assert max(carried) - min(carried) <= 2


def test_a_number_is_stratified_by_quarter() -> None:
    units = units_of(RNG.integers(0, 2, 100))
    age = RNG.random(100) * 80
    units = replace(units, y=age, kind="regression", classes=("age",))
    (parts,) = make_split(units, SplitChoice()).parts_of(units.groups)
    for part in ("val", "test"):
        quarter = np.searchsorted(np.quantile(age, [0.25, 0.5, 0.75]), age[parts[part]])
        assert np.bincount(quarter).tolist() == [5, 5, 5, 5]


def test_new_patients_are_dealt_to_the_sides_that_stand(tmp_path: Path) -> None:
    units = units_of(np.arange(100) % 2)
    early = units_of(np.arange(60) % 2)
    choice = SplitChoice(new="deal")
    split = make_split(early, choice)
    assert split_new_patients(split, early, choice) is None
    with pytest.raises(LabelError, match=r"40 of the task's 100 patients.*split\.new"):
        split_new_patients(split, units, SplitChoice())
    assert split_new_patients(split, units, SplitChoice(new="leave-out")) is None
    addition = split_new_patients(split, units, choice)
    assert addition is not None
    whole = merged(split, addition)
    assert [len(whole.patients[part]) for part in ("train", "val", "test")] == [60, 20, 20]
    for part, patients in split.patients.items():
        assert set(patients) <= set(whole.patients[part])  # nobody was dealt again
    (parts,) = whole.parts_of(units.groups)
    assert [int(units.y[rows].sum()) for rows in parts.values()] == [30, 10, 10]
    file = tmp_path / "split.json"
    file.write_text(extended_text(split_text(split, "t", choice), addition))
    assert load_split(file) == whole
    assert whole.digest != split.digest
    data = json.loads(file.read_text())
    side = next(side for side, added in data["additions"][0]["patients"].items() if added)
    data["additions"][0]["patients"][side].pop()
    file.write_text(json.dumps(data))
    with pytest.raises(LabelError, match="was altered"):
        load_split(file)


def test_a_site_stands_on_one_side() -> None:
    site = np.repeat(list("abcdefg"), [60, 40, 30, 20, 20, 20, 10])
    units = units_of(RNG.integers(0, 2, 200))
    choice = SplitChoice(kind="site", column="site")
    (parts,) = make_split(units, choice, site).parts_of(units.groups)
    sites = {part: set(site[rows]) for part, rows in parts.items()}
    assert sum(map(len, sites.values())) == len(set().union(*sites.values())) == 7
    assert 100 <= len(parts["train"]) <= 140
    few = np.repeat(list("abc"), [180, 10, 10])
    (parts,) = make_split(units, choice, few).parts_of(units.groups)
    assert sorted(len(rows) for rows in parts.values()) == [10, 10, 180]
    with pytest.raises(LabelError, match=r"at least three sites. Got 2 instead"):
        make_split(units, choice, np.repeat(["a", "b"], 100))
    twice = units_of(units.y, np.arange(200) // 2)
    with pytest.raises(LabelError, match="1 patients have more than one site"):
        make_split(twice, choice, np.repeat(list("abc"), [101, 49, 50]))


def test_the_latest_test_and_nothing_later_is_fitted() -> None:
    days = RNG.permutation(200)
    dates = (np.datetime64("2020-01-01") + days).astype(str)
    units = units_of(RNG.integers(0, 2, 200), np.arange(200) // 2)
    choice = SplitChoice(kind="date", column="when")
    (parts,) = make_split(units, choice, dates).parts_of(units.groups)
    last = np.maximum.reduceat(days, np.arange(0, 200, 2))
    sides = [np.unique(rows // 2) for rows in parts.values()]
    assert [len(patients) for patients in sides] == [60, 20, 20]
    assert last[sides[0]].max() < last[sides[1]].min()
    assert last[sides[1]].max() < last[sides[2]].min()
    assert days[parts["train"]].max() < last[sides[2]].min()
    with pytest.raises(LabelError, match="must be YYYY-MM-DD"):
        make_split(units, choice, np.array(["May 4"] * 200))


def test_an_official_list_is_followed() -> None:
    units = units_of(RNG.integers(0, 2, 100), np.arange(100) // 2)
    parts = np.repeat(["train", "val", "test", ""], [60, 20, 10, 10])
    choice = SplitChoice(kind="list", file=Path("list.csv"))
    split = make_split(units, choice, parts)
    (found,) = split.parts_of(units.groups)
    assert [rows.tolist() for rows in found.values()] == [
        list(range(60)), list(range(60, 80)), list(range(80, 90)),
    ]  # fmt: skip
    no_val = np.repeat(["train", "test"], [80, 20])
    (found,) = make_split(units, choice, no_val).parts_of(units.groups)
    assert [len(rows) for rows in found.values()] == [64, 16, 20]
    assert found["test"].tolist() == list(range(80, 100))
    parts[1] = "test"
    with pytest.raises(LabelError, match="1 patients have more than one part of the split list"):
        make_split(units, choice, parts)


def test_what_a_split_needs_is_asked_for() -> None:
    for wrong in (
        {"kind": "list"}, {"kind": "site"}, {"column": "site"}, {"kind": "date", "file": "x"},
        {"kind": "site", "column": "x", "new": "deal"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="needs|takes no|cannot be dealt"):
            SplitChoice.model_validate(wrong)


def test_the_file_is_named_by_the_question(tmp_path: Path) -> None:
    task = Task(labels=("a",))
    path = split_path(tmp_path, "lung/left", task, SplitChoice())
    assert path.parent == tmp_path / "splits"
    assert path.name.startswith("lung_left-")
    assert split_path(tmp_path, "lung/left", task, SplitChoice(seed=1)) != path
    lenient = SplitChoice(new="deal", allow=("duplicates",))
    assert split_path(tmp_path, "lung/left", task, lenient) == path
    listed = SplitChoice(kind="list", file=tmp_path / "list.csv")
    with pytest.raises(LabelError, match="no split list"):
        split_path(tmp_path, "t", task, listed)
    (tmp_path / "list.csv").write_text("key,part\n")
    before = split_path(tmp_path, "t", task, listed)
    (tmp_path / "list.csv").write_text("key,part\na,train\n")
    assert split_path(tmp_path, "t", task, listed) != before
    assert split_path(tmp_path, "lung/left", Task(labels=("b",)), SplitChoice()) != path
    assert split_path(tmp_path, "lung/left", Task(labels=("a",), pool="max"), SplitChoice()) == path
