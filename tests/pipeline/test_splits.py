from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import SplitChoice
from pipeline.splits import Split, check_disjoint, deal, load_split, split_path, split_text
from pipeline.types import Task
from stores.errors import LabelError
from tests.pipeline.collection import units_of

RNG = np.random.default_rng(0)


def test_patients_stand_on_one_side_and_all_stand_somewhere() -> None:
    groups = RNG.integers(0, 40, 300)
    units = units_of(RNG.integers(0, 3, 300), groups)
    split = deal(units, SplitChoice())
    sides = [set(side) for side in split.patients.values()]
    assert set().union(*sides) == set(units.groups)
    assert sum(map(len, sides)) == 40
    parts = split.parts_of(units.groups)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(300))
    assert len(split.patients["test"]) == len(split.patients["val"]) == 8


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_labels_are_spread_evenly(share: float) -> None:
    y = (RNG.random((500, 3)) < [share, 0.3, 0.6]).astype(np.int8)
    units = units_of(y)
    parts = deal(units, SplitChoice()).parts_of(units.groups)
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
        parts = deal(units, SplitChoice()).parts_of(units.groups)
        assert {part for part, rows in parts.items() if units.y[rows].any()} == parts_with


def test_the_seed_and_nothing_else_decides() -> None:
    units = units_of(RNG.integers(0, 2, 60))
    assert deal(units, SplitChoice()) == deal(units, SplitChoice())
    assert deal(units, SplitChoice()) != deal(units, SplitChoice(seed=1))


def test_renamed_patients_are_split_alike() -> None:
    y, groups = RNG.integers(0, 2, 100), RNG.integers(0, 30, 100)
    renamed = RNG.permutation(30)[groups]
    ours, theirs = (units_of(y, names) for names in (groups, renamed))
    parts, same = (deal(units, SplitChoice()).parts_of(units.groups) for units in (ours, theirs))
    assert all(np.array_equal(parts[part], same[part]) for part in parts)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(LabelError, match="into 5 folds .* Got 4"):
        deal(units_of(np.array([0, 1, 0, 1])), SplitChoice())


def test_a_patient_on_both_sides_is_refused_also_from_a_file(tmp_path: Path) -> None:
    split = deal(units_of(RNG.integers(0, 2, 20)), SplitChoice())
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


def test_an_unknown_patient_and_an_empty_side_are_refused() -> None:
    split = Split({"train": ("a",), "val": ("b",), "test": ("c",)})
    with pytest.raises(LabelError, match=r"1 of the task's 4 patients.*Delete"):
        split.parts_of(np.array(["a", "b", "c", "d"]))
    with pytest.raises(LabelError, match="No unit of the task belongs to a 'test' patient"):
        split.parts_of(np.array(["a", "b"]))
    with pytest.raises(LabelError, match="no patient in 'val'"):
        check_disjoint(Split({"train": ("a",), "val": (), "test": ("c",)}))


def test_the_file_is_named_by_the_question(tmp_path: Path) -> None:
    task = Task(labels=("a",))
    path = split_path(tmp_path, "lung/left", task, SplitChoice())
    assert path.parent == tmp_path / "splits"
    assert path.name.startswith("lung_left-")
    assert split_path(tmp_path, "lung/left", task, SplitChoice(seed=1)) != path
    assert split_path(tmp_path, "lung/left", Task(labels=("b",)), SplitChoice()) != path
    assert split_path(tmp_path, "lung/left", Task(labels=("a",), pool="max"), SplitChoice()) == path
