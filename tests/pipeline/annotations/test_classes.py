"""Which classes a column has, and which of two is positive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.annotations.classes import known_positive
from pipeline.annotations.labels import label_units, read_labels
from pipeline.annotations.units import Units
from pipeline.config.data import Labels
from pipeline.config.tasks import Task
from stores.errors import LabelError
from tests.pipeline.annotations.test_labels import Told, slices
from tests.pipeline.collection import write_csv


def ask(root: Path, column: list[str], *, either_way: bool = False, **task: Any) -> Units:
    """Return the units of a column of values, one an image, each a patient's."""
    labels = Labels.model_validate({"file": root / "l.csv", **task.pop("join", {})})
    paths = [f"f{i}.png" for i in range(len(column))]
    write_csv(root / "l.csv", path=paths, look=column)
    question = Task.model_validate({"labels": ["look"], **task})
    table = slices(*({} for _ in column))
    status = np.ones(len(column), np.uint8)
    names = Told(root, "keep")
    read = read_labels(labels, [question])
    return label_units(read, question, table, status, root, names, either_way=either_way)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("yes", "no"), ("Yes", "no"), ("JA", "nein"), ("Positive", "negative"),
        ("ABNORMAL", "normal"), ("Malignant", "benign"), ("1", "0"), ("covid", "healthy"),
        ("malignant", "normal"), ("pneumonia", "Normal"), ("sick", "well"), ("y", "N"),
        ("case", "control"), ("2", "0"),
    ],
)  # fmt: skip
def test_known_words_say_which_is_positive(tmp_path: Path, positive: str, negative: str) -> None:
    units = ask(tmp_path, [negative, positive, negative, negative])
    shown = units.classes
    assert [name.lower() for name in shown] == [negative.lower(), positive.lower()]
    assert units.y.tolist() == [0, 1, 0, 0]
    assert known_positive((positive, negative)) == positive


@pytest.mark.parametrize("pair", [("dark", "bright"), ("M", "F"), ("1", "2"), ("yes", "ja")])
def test_of_two_other_words_none_is_silently_positive(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    values = [pair[0], pair[1], pair[1], pair[0], pair[0]]
    with pytest.raises(LabelError) as refusal:
        ask(tmp_path, values)
    said = str(refusal.value)
    assert f"'{pair[0]}' (3 rows)" in said
    assert f"'{pair[1]}' (2 rows)" in said
    # What is to be written is there, as YAML that means it.
    for name, indices in ((pair[0], [0, 3, 4]), (pair[1], [1, 2])):
        (line,) = [
            part for part in said.split("`") if part.startswith("positive:") and name in part
        ]
        units = ask(tmp_path, values, **yaml.safe_load(line))
        assert units.classes[1] == name
        assert np.flatnonzero(units.y).tolist() == indices


def test_a_shortcut_is_the_same_question_either_way(tmp_path: Path) -> None:
    assert ask(tmp_path, ["M", "F", "F"], either_way=True).classes == ("F", "M")


@pytest.mark.parametrize(
    ("written", "values", "positive"),
    [
        ("benign", ["malignant", "benign", "benign"], "benign"),
        ("BENIGN", ["malignant", "benign", "benign"], "benign"),
        ("no", ["Yes", "No", "No"], "No"),  # YAML reads it as a truth
        ("0", ["1", "0", "0"], "0"),
        ("2.0", ["1", "2", "2"], "2"),
        ("false", ["True", "False", "False"], "0"),  # read as zeros and ones
    ],
)
def test_the_task_names_it(tmp_path: Path, written: str, values: list[str], positive: str) -> None:
    task = yaml.safe_load(f"{{positive: {written}}}")
    units = ask(tmp_path, values, **task)
    assert units.classes[1] == positive
    assert units.y.tolist() == [0, 1, 1]


def test_a_positive_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="'maligant' instead.*'benign', 'malignant'"):
        ask(tmp_path, ["malignant", "benign"], positive="maligant")
    with pytest.raises(LabelError, match="positive names one of two classes.*'a', 'b', 'c'"):
        ask(tmp_path, ["a", "b", "c"], positive="a")
    for task in ({"labels": ["a", "b"]}, {"labels": ["a"], "values": "number"}):
        with pytest.raises(ValueError, match="positive names one of two classes"):
            Task.model_validate({**task, "positive": "1"})


def test_numbers_that_are_written_in_several_ways_are_one_and_that_is_said(tmp_path: Path) -> None:
    units = ask(tmp_path, ["1", "0", "1.0", "TRUE", "0", "1"])
    assert units.classes == ("0", "1")
    assert units.notes == ("'1' (2 rows), '1.0' (1 rows), 'TRUE' (1 rows) are one value, '1'",)
    of_three = ask(tmp_path, ["1", "0", "2.0", "2", "0", "1"])
    assert of_three.notes == ("'2' (1 rows), '2.0' (1 rows) are one value, '2'",)
    # As pandas writes a column with gaps: in one way.
    assert ask(tmp_path, ["1.0", "0.0", "1.0", ""]).notes == ()


def test_a_class_of_one_patient_among_many_may_be_a_typing_error(tmp_path: Path) -> None:
    units = ask(tmp_path, ["0", "1"] * 12 + ["2"])
    assert units.notes == ("class '2' has 1 unit of 1 patient: a typing error?",)
    # What may be a name is not told.
    named = ask(tmp_path, ["0", "1"] * 12 + ["Jane Doe"])
    assert named.notes == ("a class has 1 unit of 1 patient: a typing error?",)
    # Of few patients every class is rare, and three may train, validate and test.
    assert ask(tmp_path, ["0", "1"] * 4 + ["2"]).notes == ()
    assert ask(tmp_path, ["0", "1"] * 12 + ["2"] * 3).notes == ()


def test_values_that_differ_in_case_alone_are_one_and_that_is_said(tmp_path: Path) -> None:
    units = ask(tmp_path, ["Yes", "no", "YES", "yes", "Yes", "No", "no"])
    assert units.classes == ("no", "Yes")
    assert units.y.tolist() == [1, 0, 1, 1, 1, 0, 0]
    assert units.notes == (
        "'No' (1 rows), 'no' (2 rows) are one value, 'no': they differ in case alone",
        "'YES' (1 rows), 'Yes' (2 rows), 'yes' (1 rows) are one value, 'Yes': they differ in case "
        "alone",
    )
    three = ask(tmp_path, ["Glioma", "glioma", "meningioma", "pituitary"])
    assert three.classes == ("Glioma", "meningioma", "pituitary")
    assert three.kind == "multiclass"
    # Rows of one file that differ in case do not contradict each other.
    write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f0.png"], look=["Yes", "no", "yes"])
    task = Task(labels=("look",))
    read = read_labels(Labels(file=tmp_path / "l.csv"), [task])
    names = Told(tmp_path, "keep")
    table = slices({}, {})
    again = label_units(read, task, table, np.ones(2, np.uint8), tmp_path, names)
    assert again.y.tolist() == [1, 0]


# --- numbers and dates -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "what", "meant"),
    [
        ([str(20 + i % 60) for i in range(80)], "60 different numbers", "values: number"),
        ([f"{i / 7:.3f}" for i in range(12)], "12 different numbers", "values: number"),
        ([f"{40 + i % 30:03}Y" for i in range(90)], "30 different numbers", "values: number"),
        ([f"{i},5" for i in range(9)], "9 different numbers", "values: number"),
        ([*map(str, range(60, 90)), "unknown"] * 2, "31 different numbers", "values: number"),
        ([f"2021-0{1 + i % 9}-{10 + i % 19}" for i in range(99)], "dates", "kind: date"),
        ([f"{1 + i % 28}.3.1956" for i in range(99)], "28 different dates", "kind: date"),
        ([f"202103{1 + i % 28:02}" for i in range(99)], "28 different dates", "kind: date"),
        ([f"clear lungs, case {i}" for i in range(40)], "40 different texts", "few values"),
    ],
)
def test_a_column_of_numbers_or_dates_is_no_column_of_classes(
    tmp_path: Path, values: list[str], what: str, meant: str
) -> None:
    quoted = [f'"{value}"' for value in values]
    with pytest.raises(LabelError, match=what) as refusal:
        ask(tmp_path, quoted)
    said = str(refusal.value)
    assert meant in said
    assert "values: classes" in said
    assert not any(value in said for value in values if len(value) > 2)  # no one's date of birth
    units = ask(tmp_path, quoted, values="classes")
    assert units.kind == "multiclass"
    with pytest.raises(LabelError, match="A shortcut takes a column of few values"):
        ask(tmp_path, quoted, either_way=True)


@pytest.mark.parametrize(
    "values",
    [
        ["0", "1", "2", "3", "4"] * 2,  # grades
        [str(i) for i in range(20)] * 2,
        ["a", "b", "c", "d", "e", "f"],
        [f"organ {i}" for i in range(30)] * 4,
        ["1", "2", "3"],
    ],
)
def test_grades_and_names_are_classes(tmp_path: Path, values: list[str]) -> None:
    assert ask(tmp_path, values).kind == "multiclass"


@pytest.mark.parametrize(
    "value", ["inf", "-inf", "1e999", "1e300", "Infinity", "NAN", "1_000", "12 mm", "3,5"]
)
def test_a_number_is_finite_and_plain(tmp_path: Path, value: str) -> None:
    with pytest.raises(LabelError, match="must hold finite numbers.*data row 3"):
        ask(tmp_path, ["1", "2", f'"{value}"', "4"], values="number")
    numbers = ask(tmp_path, ["1", "-2.5", "3e2", ".5"], values="number")
    assert numbers.y.tolist() == [1, -2.5, 300, 0.5]


def test_na_is_a_class_where_it_is_asked_for(tmp_path: Path) -> None:
    values = ["NA", "N1", "N0", "", "NA"]
    assert ask(tmp_path, values, positive="N1").tally.unlabelled_units == 3
    units = ask(tmp_path, values, empty=[])
    assert units.classes == ("N0", "N1", "NA")
    assert units.tally.unlabelled_units == 1  # an empty cell is empty all the same
    of_table = ask(tmp_path, values, join={"empty": ["n/a"]})
    assert of_table.classes == units.classes
