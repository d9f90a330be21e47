from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.data import SplitChoice
from pipeline.config.tasks import Task
from pipeline.evaluation.splits import (
    Split,
    check_column,
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
    for part in ("val", "test"):
        assert 4 <= len(split.patients[part]) <= 12


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("seed", range(5))
def test_each_side_has_half_to_one_and_a_half_of_its_share(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random((500, 3)) < [share, 0.3, 0.6]).astype(np.int8)
    units = units_of(y)
    (parts,) = make_split(units, SplitChoice(seed=seed)).parts_of(units.groups)
    rarest = y.sum(axis=0).argmin()
    expected = y.sum(axis=0)[rarest] / 5
    for part in ("val", "test"):
        got = y[parts[part]].sum(axis=0)[rarest]
        assert expected / 2 <= got <= max(expected * 1.5, 2)


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


def test_renamed_patients_are_split_alike_by_what_is_the_same_in_every_store() -> None:
    y, groups = RNG.integers(0, 2, 100), RNG.integers(0, 30, 100)
    renamed = RNG.permutation(30)[groups]
    keys = np.array([f"scan{i}" for i in range(100)])
    ours, theirs = (units_of(y, names) for names in (groups, renamed))
    (parts,), (same,) = (
        make_split(u, SplitChoice(), keys=keys).parts_of(u.groups) for u in (ours, theirs)
    )
    assert all(np.array_equal(parts[part], same[part]) for part in parts)


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
def test_the_order_of_rows_decides_nothing(kind: Any) -> None:
    y, groups = RNG.integers(0, 3, 200), RNG.integers(0, 60, 200)
    keys = np.array([f"scan{i}" for i in range(200)])
    order = RNG.permutation(200)
    choice = SplitChoice(kind=kind)
    first = make_split(units_of(y, groups), choice, keys=keys)
    assert make_split(units_of(y[order], groups[order]), choice, keys=keys[order]) == first


def test_dates_of_one_day_are_divided_alike_in_any_order() -> None:
    units = units_of(np.arange(60) % 2)
    dates = np.repeat(["2020-01-01", "2020-01-02", "2020-01-03"], 20)
    choice = SplitChoice(kind="date", column="when")
    order = RNG.permutation(60)
    turned = units_of(units.y[order], units.groups[order])
    assert make_split(units, choice, dates) == make_split(turned, choice, dates[order])


@pytest.mark.parametrize("seed", range(10))
def test_a_patient_more_moves_nobody(seed: int) -> None:
    y = np.arange(200) % 2
    choice = SplitChoice(kind="kfold", seed=seed)
    before = make_split(units_of(y), choice)
    after = make_split(units_of(np.append(y, seed % 2)), choice)
    for side, patients in before.patients.items():
        assert set(patients) <= set(after.patients[side])


def test_how_patients_came_in_decides_nothing() -> None:
    y = np.arange(100) % 2
    choice = SplitChoice(new="deal")
    split = make_split(units_of(y[:40]), choice)
    at_once = split_new_patients(split, units_of(y), choice)
    assert at_once is not None
    grown = split
    for n in range(41, 101):
        addition = split_new_patients(grown, units_of(y[:n]), choice)
        assert addition is not None
        grown = merged(grown, addition)
    assert grown == merged(split, at_once)


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
    share = np.unique(units.groups[y == 1]).size / 4
    assert share / 2 <= min(carried)
    assert max(carried) <= 1.5 * share


def test_a_number_is_stratified_by_quarter() -> None:
    units = units_of(RNG.integers(0, 2, 100))
    age = RNG.random(100) * 80
    units = replace(units, y=age, kind="regression", classes=("age",))
    (parts,) = make_split(units, SplitChoice()).parts_of(units.groups)
    for part in ("val", "test"):
        quarter = np.searchsorted(np.quantile(age, [0.25, 0.5, 0.75]), age[parts[part]])
        assert (np.bincount(quarter, minlength=4) >= 3).all()
        assert (np.bincount(quarter, minlength=4) <= 7).all()


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
    assert sum(len(patients) for patients in whole.patients.values()) == 100
    for part, patients in split.patients.items():
        assert set(patients) <= set(whole.patients[part])  # nobody was dealt again
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


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("2020-13-45", "a day of the calendar. 1 of 50 units"),
        ("20200230", "a day of the calendar. 1 of 50 units"),
        ("2020-31-12", "the wrong way round"),
        ("0000-01-01", "a day of the calendar"),
        ("12/31/2020", "must be YYYY-MM-DD.*for 1 of 50 units"),
        ("", "must be YYYY-MM-DD.*for 1 of 50 units"),
    ],
)
def test_what_is_no_day_is_not_split_by(odd: str, why: str) -> None:
    units = units_of(np.arange(50) % 2)
    choice = SplitChoice(kind="date", column="when")
    dates = (np.datetime64("2020-01-01") + np.arange(50)).astype("U10")
    split = make_split(units, choice, dates)
    dates[7] = odd
    with pytest.raises(LabelError, match=why) as refusal:
        make_split(units, choice, dates)
    assert not odd or odd not in str(refusal.value)
    # Nor is a split on file held against it.
    with pytest.raises(LabelError, match=why):
        check_column(split, units, dates, choice)


@pytest.mark.parametrize("days", [[50], [20, 30], [5, 5, 40]])
def test_patients_of_one_day_are_not_divided_by_date(days: list[int]) -> None:
    units = units_of(np.arange(50) % 2)
    choice = SplitChoice(kind="date", column="when")
    dates = np.repeat([f"2020-01-0{i + 1}" for i in range(len(days))], days)
    with pytest.raises(LabelError, match=f"{days[-1]} of 50 patients have the same last day"):
        make_split(units, choice, dates)


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
    assert [len(rows) for rows in found.values()][2] == 20
    assert 8 <= len(found["val"]) <= 24
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


# --- copies on one side ----------------------------------------------------------------------


def test_patients_who_are_linked_stand_on_one_side() -> None:
    units = units_of(np.arange(60) % 2)
    links = np.array([f"p{i // 3 * 3:05}" for i in range(60)])
    for kind in ("holdout", "kfold"):
        split = make_split(units, SplitChoice(kind=kind, group="duplicates"), linked=links)
        side = split.sides_of(units.groups)
        assert (side.reshape(20, 3) == side[::3, None]).all()
        assert (side >= 0).all()
    with pytest.raises(LabelError, match="patients without a copy of another. Got 1 instead"):
        make_split(units, SplitChoice(group="duplicates"), linked=np.array(["p"] * 60))


def test_a_new_patient_goes_where_his_copy_stands() -> None:
    units = units_of(np.arange(40) % 2)
    choice = SplitChoice(new="deal", group="duplicates")
    split = make_split(units_of(np.arange(20) % 2), choice)
    links = np.array([f"p{i % 20:05}" for i in range(40)])
    addition = split_new_patients(split, units, choice, linked=links)
    assert addition is not None
    whole = merged(split, addition).sides_of(units.groups)
    assert (whole[:20] == whole[20:]).all()


def test_a_split_before_there_was_a_choice_of_groups_has_its_name(tmp_path: Path) -> None:
    task = Task(labels=("a",))
    path = split_path(tmp_path, "t", task, SplitChoice())
    assert split_path(tmp_path, "t", task, SplitChoice(group="duplicates")) != path
    assert path.name == "t-bcf0df96.json"
    with pytest.raises(ValueError, match="one side in a split of kind 'site'"):
        SplitChoice(kind="site", column="x", group="duplicates")


# --- what a split was made of ----------------------------------------------------------------


def test_a_site_that_moved_is_refused_with_its_patients() -> None:
    units = units_of(np.arange(60) % 2)
    sites = np.array(["abcdef"[i % 6] for i in range(60)])
    choice = SplitChoice(kind="site", column="site")
    split = make_split(units, choice, sites)
    check_column(split, units, sites, choice)
    renamed = np.char.add("x", sites)  # the same division by other names
    check_column(split, units, renamed, choice)
    moved = sites.copy()
    other = next(i for i in range(1, 60) if split.sides_of(units.groups)[i] != split.sides_of(
        units.groups)[0])  # fmt: skip
    moved[0] = sites[other]
    with pytest.raises(LabelError, match="1 sites stand on two sides.*1 patients moved: p00000"):
        check_column(split, units, moved, choice)


def test_a_date_that_moved_is_refused_with_its_patients() -> None:
    units = units_of(np.arange(50) % 2)
    dates = (np.datetime64("2020-01-01") + np.arange(50)).astype(str)
    choice = SplitChoice(kind="date", column="when")
    split = make_split(units, choice, dates)
    check_column(split, units, dates, choice)
    swapped = dates.copy()
    swapped[[0, 49]] = dates[[49, 0]]
    with pytest.raises(LabelError, match="2 patients moved: p00000, p00049"):
        check_column(split, units, swapped, choice)
    inside = dates.copy()
    inside[[0, 1]] = dates[[1, 0]]  # both train, as before
    check_column(split, units, inside, choice)


def test_a_listed_part_that_moved_is_refused_with_its_patients() -> None:
    units = units_of(np.arange(50) % 2)
    parts = np.array(["train", "train", "train", "val", "test"] * 10)
    choice = SplitChoice(kind="list", file=Path("list.csv"))
    split = make_split(units, choice, parts)
    check_column(split, units, parts, choice)
    moved = parts.copy()
    moved[7] = "test"
    with pytest.raises(LabelError, match="1 patients moved: p00007"):
        check_column(split, units, moved, choice)
    no_val = np.array(["train", "train", "train", "train", "test"] * 10)
    check_column(make_split(units, choice, no_val), units, no_val, choice)
