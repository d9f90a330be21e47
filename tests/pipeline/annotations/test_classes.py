"""Which classes a column has, and which of two is positive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.annotations.classes import known_positive
from pipeline.annotations.labels import column_of, label_units, read_labels
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


def test_crosses_are_yes_where_an_empty_cell_is_no(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"Got 1 instead.*write `missing: zero` into the task"):
        ask(tmp_path, ["x", "", "X", ""])
    units = ask(tmp_path, ["x", "", "X", ""], missing="zero")
    assert units.classes == ("0", "1")
    assert units.y.tolist() == [1, 0, 1, 0]
    with pytest.raises(LabelError, match="Missing values can count as 0 only"):
        ask(tmp_path, ["x", "", "high", ""], missing="zero")


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


@pytest.mark.parametrize(
    ("values", "one", "why"),
    [
        (["no\xa0finding", "no finding", "tumour"], "no finding", "differ in spaces"),
        (["no  finding", "no finding", "tumour"], "no finding", "differ in spaces"),
        (["no fin\u200bding", "no finding", "tumour"], "no finding", "what cannot be seen"),
        (["sa\u0308uge", "säuge", "tumour", "none"], "säuge", "what cannot be seen"),
        (["01", "1", "2", "3"], "1", "one value, '1'"),
        (["+1", "1", "2", "3"], "1", "one value, '1'"),
        (["001", "01", "2", "3"], "01", "one value, '01'"),
        (["1.50", "1.5", "2", "3"], "1.5", "one value, '1.5'"),
    ],
)
def test_spellings_that_are_surely_one_value_are_one(
    tmp_path: Path, values: list[str], one: str, why: str
) -> None:
    units = ask(tmp_path, [*values, one])
    assert len(units.classes) == len(values) - 1
    assert one in units.classes
    assert units.y[0] == units.y[1] == units.y[-1]
    (note,) = units.notes
    assert why in note
    assert f"{one!r} (2 rows)" in note


def test_a_word_for_no_finding_is_known_however_its_spaces_are(tmp_path: Path) -> None:
    assert ask(tmp_path, ["no\xa0finding", "tumour"]).classes[1] == "tumour"


def test_zeros_and_words_for_no_are_one_finding_and_that_is_said(tmp_path: Path) -> None:
    units = ask(tmp_path, ["0", "no", "False", "1", "yes", "true", "1"])
    assert units.classes == ("0", "1")
    assert units.y.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert units.notes == (
        "'0' (1 rows), 'False' (1 rows), 'no' (1 rows) are one value, '0'",
        "'1' (2 rows), 'true' (1 rows), 'yes' (1 rows) are one value, '1'",
    )
    swapped = ask(tmp_path, ["0", "no", "y", "1"], positive="no")
    assert (swapped.classes, swapped.y.tolist()) == (("1", "0"), [1, 1, 0, 0])
    with pytest.raises(LabelError, match="-1 .uncertain"):
        ask(tmp_path, ["0", "no", "yes", "1", "-1"])
    # In one notation words stay what they are, as do letters that stand for other things.
    assert ask(tmp_path, ["no", "yes"]).classes == ("no", "yes")
    assert ask(tmp_path, ["f", "n", "m"]).classes == ("f", "m", "n")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (["0", "no", "1", "yes", "maybe"], "'0' (1 rows), 'no' (1 rows); '1' (1 rows), 'yes'"),
        (["no", "negative", "yes"], "'negative' (1 rows), 'no' (1 rows)"),
        (["0", "no", "covid"], "'0' (1 rows), 'no' (1 rows)"),
    ],
)
def test_two_words_of_one_meaning_beside_others_are_refused(
    tmp_path: Path, values: list[str], named: str
) -> None:
    with pytest.raises(LabelError, match="written in one way") as refusal:
        ask(tmp_path, values)
    assert named in str(refusal.value)
    assert len(ask(tmp_path, values, values="classes").classes) == len(values)


def test_nought_below_nought_is_nought(tmp_path: Path) -> None:
    table = pa.table({"path": [f"f{i}.png" for i in range(4)], "look": [-0.0, 0.0, 1.0, 2.0]})
    pq.write_table(table, tmp_path / "l.parquet")
    task = Task(labels=("look",))
    read = read_labels(Labels(file=tmp_path / "l.parquet"), [task])
    names = Told(tmp_path, "keep")
    status = np.ones(4, np.uint8)
    units = label_units(read, task, slices({}, {}, {}, {}), status, tmp_path, names)
    assert units.classes == ("0", "1", "2")


# --- nothing, or a class -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["<NA>", "NAN", "na", "N/A", "n/A", "Null", "nat", "-NaN", "#n/a", "1.#QNAN", "\u200b"]
)
def test_what_holds_nothing_is_no_class_in_any_case(tmp_path: Path, word: str) -> None:
    units = ask(tmp_path, ["no", "yes", word, "no", word])
    assert units.classes == ("no", "yes")
    assert units.tally.unlabelled_units == 2
    assert units.notes == (
        f"{word!r} (2 rows) of column 'look' say nothing: labels.empty lists them",
    )
    numbers = ask(tmp_path, ["1", "2.5", word, "4"], values="number")
    assert numbers.y.tolist() == [1, 2.5, 4]


@pytest.mark.parametrize(
    "values",
    [
        ["no", "yes", "unknown"], ["no", "None"], ["0", "1", "None"], ["no", "Unknown"],
        ["1", "2", "-9"], ["0", "1", "999"], ["yes", "no", "-1"], ["M", "F", "not  assessed"],
        ["benign", "malignant", "n.a."], ["yes", "no", "maybe", "?"], ["0", "9"],
    ],
)  # fmt: skip
def test_a_word_that_may_be_none_is_no_class_unless_that_is_said(
    tmp_path: Path, values: list[str]
) -> None:
    doubtful = values[-1]
    column = [*values, "NA", values[0]]
    with pytest.raises(LabelError, match="Whether a value is a class must be known") as refusal:
        ask(tmp_path, column)
    said = str(refusal.value)
    assert f"{doubtful!r} (1 rows)" in said
    # Either reading is in the message, as YAML that means it.
    as_empty = yaml.safe_load(said.split("`")[1])
    as_class = yaml.safe_load(said.split("`")[3])
    assert as_class == {"values": "classes"}
    positive = {} if len(values) > 2 else {"positive": doubtful}
    units = ask(tmp_path, column, **as_class, **positive)
    assert len(units.classes) == len(values)
    assert units.tally.unlabelled_units == 1
    if len(values) > 3 or "M" in values:
        return
    if len(values) == 3 and values[:2] != ["1", "2"]:
        assert set(ask(tmp_path, column, **as_empty).classes) == set(values[:-1])
    # Beside one other value it never is the finding unless the task names it.
    if len(values) == 2:
        with pytest.raises(LabelError, match="positive must be known"):
            ask(tmp_path, column, **as_class)


@pytest.mark.parametrize(
    "values",
    [
        ["none", "small", "large"],  # the demo's tumours
        ["none", "tumour"], ["none", "benign", "malignant"], ["8", "9"], ["-2", "-1", "1"],
    ],
)  # fmt: skip
def test_what_can_be_nothing_but_a_class_is_one(tmp_path: Path, values: list[str]) -> None:
    positive = {"positive": "9"} if values == ["8", "9"] else {}
    units = ask(tmp_path, [*values, values[0]], **positive)
    assert sorted(units.classes) == sorted(values)
    assert units.notes == ()


def test_among_many_classes_a_word_for_none_is_one_and_that_is_said(tmp_path: Path) -> None:
    values = ["glioma", "meningioma", "pituitary", "unknown", "unknown"]
    units = ask(tmp_path, values)
    assert units.classes == ("glioma", "meningioma", "pituitary", "unknown")
    (note,) = units.notes
    assert "'unknown' (2 rows) of column 'look' count as classes" in note
    assert ask(tmp_path, values, **yaml.safe_load(note.split("`")[1])).classes == units.classes[:3]
    # Of a shortcut no class is the finding: whether features tell it is asked all the same.
    shortcut = ask(tmp_path, ["M", "F", "unknown"], either_way=True)
    assert len(shortcut.classes) == 3
    assert "count as classes" in shortcut.notes[0]


def test_a_site_or_subgroup_that_is_not_known_is_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], site=["<NA>", "a", "nan"])
    read = read_labels(Labels(file=tmp_path / "l.csv"), [], ["site"])
    names = Told(tmp_path, "keep")
    assert column_of(read, "site", slices({}, {}, {}), tmp_path, names).tolist() == ["", "a", ""]


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
    "value", ["inf", "-inf", "1e999", "1e300", "Infinity", "NONE", "1_000", "12 mm", "3,5"]
)
def test_a_number_is_finite_and_plain(tmp_path: Path, value: str) -> None:
    with pytest.raises(LabelError, match="must hold finite numbers.*data row 3"):
        ask(tmp_path, ["1", "2", f'"{value}"', "4"], values="number")
    with pytest.raises(LabelError, match="another in data row 2 and 1 more; correct"):
        ask(tmp_path, ["1", f'"{value}"', "2", f'"{value}"'], values="number")
    numbers = ask(tmp_path, ["1", "-2.5", "3e2", ".5"], values="number")
    assert numbers.y.tolist() == [1, -2.5, 300, 0.5]


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (["61", "-999", "-999.0", "70"], "'-999' (2 rows)"), (["0.5", "-1", "2"], "'-1' (1 rows)"),
        (["0.5", "9", "2"], "'9' (1 rows)"),
        (["40", "50", "999", "-9"], "'-9' (1 rows), '999' (1 rows)"),
        (["-2", "-1", "3"], ""), (["5", "8", "9"], ""), (["99", "61", "70"], ""),
    ],
)  # fmt: skip
def test_a_code_among_numbers_is_told(tmp_path: Path, values: list[str], codes: str) -> None:
    told = [note for note in ask(tmp_path, values, values="number").notes if "as numbers" in note]
    assert [note.partition(" of column")[0] for note in told] == [codes] * bool(codes)
    if codes:
        empty = told[0].partition("write `")[2].partition("`")[0]
        clean = ask(tmp_path, values, values="number", **yaml.safe_load(empty))
        assert clean.tally.unlabelled_units > 0
        assert not [note for note in clean.notes if "as numbers" in note]


def test_one_number_and_a_column_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="at least two values.*Got 1"):
        ask(tmp_path, ["3.5", "3.50", "3.5"], values="number")
    with pytest.raises(ValueError, match="each column once. Got 'a' 2 times"):
        Task.model_validate({"labels": ["a", "b", "a"]})


def test_one_class_beside_empty_cells_says_what_was_taken_as_empty(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="Got 1 instead; 'NA' .2 rows.*labels.empty lists them"):
        ask(tmp_path, ["no", "NA", "no", "NA"])


def test_na_is_a_class_where_it_is_asked_for(tmp_path: Path) -> None:
    values = ["NA", "N1", "N0", "", "NA"]
    assert ask(tmp_path, values, positive="N1").tally.unlabelled_units == 3
    units = ask(tmp_path, values, empty=[])
    assert units.classes == ("N0", "N1", "NA")
    assert units.tally.unlabelled_units == 1  # an empty cell is empty all the same
    of_table = ask(tmp_path, values, join={"empty": ["n/a"]})
    assert of_table.classes == units.classes
