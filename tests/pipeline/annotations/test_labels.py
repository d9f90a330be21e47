from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.label_report import join_report
from pipeline.annotations.labels import label_units, read_labels
from pipeline.annotations.units import Units
from pipeline.config.data import Labels
from pipeline.config.tasks import Task
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.errors import LabelError
from stores.slices import SLICE_SCHEMA
from stores.withdrawn import Withdrawn
from tests.pipeline.collection import write_csv


def slices(*rows: dict[str, Any]) -> pa.Table:
    filled = [
        {"row": i, "path": f"f{i}.png", "modality": "CR", "patient": f"patient-{i}", **row}
        for i, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(filled, schema=SLICE_SCHEMA)


class Told(Names):
    """Pseudonyms that can be read."""

    def pseudonym(self, kind: str, raw: str) -> str:
        return f"{kind}-{raw}"


def ask(
    file: Path,
    table: pa.Table,
    labels: tuple[str, ...] = ("sick",),
    level: Any = "image",
    modality: tuple[str, ...] | None = None,
    status: list[int] | None = None,
    **join: Any,
) -> Units:
    task = Task(labels=labels, level=level, modality=modality)
    by_row = np.array(status or [1] * len(table), np.uint8)
    read = read_labels(Labels(file=file, **join), [task])
    return label_units(read, task, table, by_row, file.parent, Told(file.parent, "keep"))


def test_the_nearest_named_path_wins(tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "l.csv",
        path=["a", "./a/b/", "a\\b\\c.dcm", str(tmp_path / "d.nii")],
        sick=[0, 1, 2, 3],
    )
    table = slices(*({"path": p} for p in ("a/x/y.dcm", "a/b/z.dcm", "a/b/c.dcm", "d.nii", "ab/q")))
    units = ask(file, table)
    assert units.y.tolist() == [0, 1, 2, 3]
    assert units.rows.tolist() == [0, 1, 2, 3]
    assert units.tally.unmatched_slices == 1
    assert units.tally.unmatched_slice_examples == ("ab/q",)


@pytest.mark.parametrize("by", ["patient", "study", "series"])
def test_joins_by_a_pseudonymised_id_and_volumes_share_their_series(
    tmp_path: Path, by: str
) -> None:
    file = write_csv(tmp_path / "l.csv", id=["7", "8", "9"], sick=["no", "yes", "yes"])
    second = f"{by}-8.2" if by == "series" else f"{by}-8"
    table = slices({by: f"{by}-7"}, {by: f"{by}-8"}, {by: second}, {by: None})
    units = ask(file, table, key="id", by=by)
    assert units.y.tolist() == [0, 1, 1]
    assert units.tally.unmatched_labels == 1
    assert units.tally.unmatched_label_examples == ("data row 3",)  # never the raw id


def test_a_volume_gives_its_label_to_every_slice_and_pools_at_series_level(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["v.nii", "w.nii"], sick=[1, 0])
    rows = [{"path": p, "series": s, "patient": s} for p, s in [("v.nii", "s"), ("w.nii", "t")] * 2]
    units = ask(file, slices(*rows), level="series")
    assert (units.ids.tolist(), units.unit.tolist()) == (["s", "t"], [0, 1, 0, 1])
    assert (units.y.tolist(), units.groups.tolist()) == ([1, 0], ["s", "t"])


@pytest.mark.parametrize(
    ("values", "classes", "kind"),
    [
        (["no", "yes", "no"], ("no", "yes"), "binary"),
        (["10", "9.0", "2"], ("2", "9", "10"), "multiclass"),
        (["1.0", "0.0", "1"], ("0", "1"), "binary"),
    ],
)
def test_the_kind_is_in_the_values(
    tmp_path: Path, values: list[str], classes: tuple[str, ...], kind: str
) -> None:
    file = write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=values)
    units = ask(file, slices({}, {}, {}))
    assert (units.classes, units.kind) == (classes, kind)


def test_parquet_and_csv_of_the_same_labels_are_the_same(tmp_path: Path) -> None:
    paths = ["f0.png", "f1.png", "f2.png"]
    csv = write_csv(tmp_path / "l.csv", path=paths, sick=["1", "", "0"])
    columns = {"path": paths, "sick": pa.array([1.0, None, 0.0])}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    task = Task(labels=("sick",))
    digests = {
        read_labels(Labels(file=file), [task]).digest(task)
        for file in (csv, tmp_path / "l.parquet")
    }
    assert len(digests) == 1
    assert ask(tmp_path / "l.parquet", slices({}, {}, {})).y.tolist() == [1, 0]


def test_a_digest_covers_what_its_task_reads_and_no_more(tmp_path: Path) -> None:
    task = Task(labels=("a",))

    def digest(**columns: list[int]) -> str:
        file = write_csv(tmp_path / "l.csv", path=["x", "y"], **columns)
        return read_labels(Labels(file=file), [task]).digest(task)

    before = digest(a=[0, 1], b=[0, 1])
    assert digest(a=[0, 1], b=[1, 1]) == before
    assert digest(a=[1, 1], b=[0, 1]) != before


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "l.csv",
        path=[f"f{i}.png" for i in range(7)] + ["gone.png"],
        sick=["0", "1", "", "NaN", "1", "0", "1", "1"],
    )
    table = slices({}, {}, {}, {}, {}, {}, {"modality": "CT"}, {})
    units = ask(file, table, modality=("CR",), status=[1, 1, 1, 1, 2, 0, 1, 3])
    assert units.rows.tolist() == [0, 1]
    tally = units.tally
    assert (tally.unlabelled_units, tally.unreadable_slices, tally.pending_slices) == (2, 1, 1)
    assert (tally.unmatched_labels, tally.unmatched_slices) == (1, 0)
    assert tally.unmatched_label_examples == ("gone.png",)
    assert (tally.unreadable_units, tally.unreadable_patients) == (1, 1)


@pytest.mark.parametrize("some", [True, False])
def test_units_without_features_are_told_with_why_where_labels_lack_for_them(
    tmp_path: Path, some: bool
) -> None:
    sick = ["0", "0", "1", "1"]
    file = write_csv(tmp_path / "l.csv", path=[f"f{i}.png" for i in range(4)], sick=sick)
    task = Task(labels=("sick",))
    names = Told(tmp_path, "keep")
    status = np.array([1 if some else 2, 1 if some else 2, 2, 2], np.uint8)
    why = {0: "truncated", 1: "truncated", 2: "truncated", 3: "not-a-volume"}
    table = read_labels(Labels(file=file), [task])
    with pytest.raises(LabelError) as refused:
        label_units(
            table, task, slices({}, {}, {}, {}), status, tmp_path, names, reasons=lambda: why
        )
    said = str(refused.value)
    lost = 2 if some else 4
    assert f"{lost} of 4 units with a label" in said
    assert f", of {count(lost, 'patient')}, have no features" in said
    assert f"{lost - 1} truncated, 1 not-a-volume" in said
    assert "radprobe failures" in said
    assert "missing: zero" not in said


def test_no_path_of_a_purged_slice_comes_back_by_what_is_left_out(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, 1, 1])
    units = ask(file, slices({}, {}, {"path": ""}), status=[1, 1, 3])
    assert units.tally.unmatched_label_examples == ("data row 3",)


def test_labels_of_withdrawn_patients_are_counted_as_that(tmp_path: Path) -> None:
    """By the patient column, a file that the column named, or a header; one row is just lost."""
    rows: dict[str, list[str]] = {
        "path": ["f0.png", "f1.png", "x.png", "y.png", "f2.png", "gone.png"],
        "sick": ["0", "1", "1", "0", "1", "1"],
        "who": ["a", "b", "w", "", "", ""],
    }
    file = write_csv(tmp_path / "l.csv", **rows)
    names = Told(tmp_path, "keep")
    table = slices({}, {}, {"withdrawn": True})
    task = Task(labels=("sick",), level="image")
    read = read_labels(Labels(file=file, patient="who"), [task])
    withdrawn = Withdrawn(
        frozenset({"patient-w", "patient-2"}), files={"patient-w": frozenset({"file-y.png"})}
    )
    status = np.array([1, 1, 3], np.uint8)
    units = label_units(read, task, table, status, tmp_path, names, withdrawn=withdrawn)
    tally = units.tally
    assert (tally.withdrawn_labels, tally.unmatched_labels) == (3, 1)
    assert tally.unmatched_label_examples == ("gone.png",)
    lines = join_report(read, table, tmp_path, names, withdrawn).lines()
    assert lines[0] == "Labels: 2 of 6 rows of 'l.csv' join 2 of 2 slices by path."
    assert lines[1] == "3 rows are of patients who were withdrawn."
    assert lines[2].startswith("1 row joins no slice: ")
    # By the patient's own id.
    file = write_csv(tmp_path / "p.csv", pid=["0", "1", "2", "9"], sick=[0, 1, 1, 1])
    read = read_labels(Labels(file=file, key="pid", by="patient"), [task])
    tally = label_units(read, task, table, status, tmp_path, names, withdrawn=withdrawn).tally
    assert (tally.withdrawn_labels, tally.unmatched_labels) == (1, 1)


def test_multilabel_takes_zeros_and_ones_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    paths = ["f0.png", "f1.png", "f2.png", "f3.png"]
    file = write_csv(tmp_path / "l.csv", path=paths, a=[1, 0, 1, ""], b=["1.0", "", "False", "nan"])
    units = ask(file, slices({}, {}, {}, {}), labels=("a", "b"))
    assert (units.kind, units.y.tolist()) == ("multilabel", [[1, 1], [0, -1], [1, 0]])
    assert units.known.tolist() == [[True, True], [True, False], [True, True]]
    assert units.indicator.tolist() == [[True, True], [False, False], [True, False]]
    assert (units.tally.unknown_labels, units.tally.unlabelled_units) == (1, 1)
    write_csv(file, path=paths, a=[1, 0, 1, 0], b=[1, 2, 0, 1])
    with pytest.raises(
        LabelError, match="must be 0, 1, -1 or empty.*'b' has another in data row 2"
    ):
        ask(file, slices({}, {}, {}, {}), labels=("a", "b"))


@pytest.mark.parametrize(
    ("uncertain", "missing", "expected"),
    [
        ("zero", "zero", [1, 0, 0, 0]),
        ("one", "leave-out", [1, 1, -1, 0]),
        ("leave-out", "leave-out", [1, -1, -1, 0]),
        ("leave-out", "zero", [1, -1, 0, 0]),
    ],
)
def test_what_is_unclear_means_what_the_policy_says(
    tmp_path: Path, uncertain: Any, missing: Any, expected: list[int]
) -> None:
    paths = [f"f{i}.png" for i in range(4)]
    file = write_csv(tmp_path / "l.csv", path=paths, a=["1", "-1.0", "", "0"], b=[0, 1, 0, 1])
    table = slices({}, {}, {}, {})
    many = ask(file, table, labels=("a", "b"), uncertain=uncertain, missing=missing)
    assert many.y[:, 0].tolist() == expected
    assert many.y[:, 1].tolist() == [0, 1, 0, 1]
    kept = [value for value in expected if value >= 0]
    one = ask(file, table, labels=("a",), uncertain=uncertain, missing=missing)
    assert (one.y.tolist(), one.classes) == (kept, ("0", "1"))
    assert one.tally.unlabelled_units == many.tally.unknown_labels == 4 - len(kept)
    assert many.tally.filled_labels == len(kept) - 2


def test_a_task_may_have_a_policy_of_its_own(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, -1, 1])
    task = Task(labels=("sick",), uncertain="one")
    read = read_labels(Labels(file=file, uncertain="zero"), [task])
    asked = (
        read,
        task,
        slices({}, {}, {}),
        np.ones(3, np.uint8),
        tmp_path,
        Names(tmp_path, "keep"),
    )
    assert label_units(*asked).y.tolist() == [0, 1, 1]


def test_an_uncertain_finding_is_never_guessed_and_a_grade_is_no_finding(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, -1, 1])
    with pytest.raises(LabelError, match="1 values of column 'sick' are -1.*data row 2.*uncertain"):
        ask(file, slices({}, {}, {}))
    write_csv(file, path=["f0.png", "f1.png", "f2.png"], sick=[-2, -1, 1])
    assert ask(file, slices({}, {}, {})).classes == ("-2", "-1", "1")
    write_csv(file, path=["f0.png", "f1.png", "f2.png"], sick=["no", "", "yes"])
    with pytest.raises(LabelError, match="only in a column of zeros and ones.*2 other values"):
        ask(file, slices({}, {}, {}), missing="zero")


def test_joins_by_a_dicom_tag_and_says_where_to_add_it(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", acc=["007", "8"], sick=["no", "yes"])
    key = "AccessionNumber"
    table = slices(
        {"tags": [(key, f"tag:{key}-007"), ("StudyID", "x")]},
        {"tags": [(key, f"tag:{key}-8")]},
        {"tags": None},
    )
    units = ask(file, table, key="acc", by=f"tag:{key}")
    assert (units.y.tolist(), units.rows.tolist()) == ([0, 1], [0, 1])
    assert units.tally.unmatched_slices == 1
    with pytest.raises(LabelError, match="'SeriesNumber' to data.tags and run `radprobe extract`"):
        ask(file, table, key="acc", by="tag:SeriesNumber")


def test_patients_from_the_label_column(tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, 1, 0], who=["7", "8", "7"]
    )
    unnamed = slices({"patient": None}, {"patient": None}, {"patient": None})
    units = ask(file, unnamed, patient="who")
    assert units.groups.tolist() == ["patient-7", "patient-8", "patient-7"]
    with pytest.raises(LabelError, match=r"3 labelled slices name no patient.*labels\.patient"):
        ask(file, unnamed)


def test_headers_and_column_must_group_alike(tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, 1, 0], who=["7", "8", "7"]
    )
    renamed = slices({"patient": "A"}, {"patient": "B"}, {"patient": "A"})
    assert ask(file, renamed, patient="who").groups.tolist() == [
        "patient-7",
        "patient-8",
        "patient-7",
    ]
    blanked = slices({"patient": "X"}, {"patient": "X"}, {"patient": "X"})
    with pytest.raises(LabelError, match=r"group 3 slices differently.*f0\.png"):
        ask(file, blanked, patient="who")
    units = ask(file, blanked, patient="who", headers="ignore")
    assert units.groups.tolist() == ["patient-7", "patient-8", "patient-7"]


def test_contradictions_are_refused(tmp_path: Path) -> None:
    paths = ["f0.png", "f1.png", "f0.png"]
    file = write_csv(tmp_path / "l.csv", path=paths, sick=[0, 1, 1])
    with pytest.raises(LabelError, match="1 rows .*data rows 1 and 3"):
        ask(file, slices({}, {}))
    write_csv(file, path=paths, sick=[0, 1, 0])
    assert ask(file, slices({}, {})).y.tolist() == [0, 1]
    write_csv(file, path=paths, sick=[0, 1, 0], who=["A", "B", "C"])
    with pytest.raises(
        LabelError, match=r"values \(1 of them with another patient in 'who'\), for"
    ):
        ask(file, slices({}, {}), patient="who")
    same = slices({"patient": "A"}, {"patient": "A"})
    with pytest.raises(
        LabelError, match=r"1 patient units hold slices with different labels.*f1\.png"
    ):
        ask(file, same, level="patient")
    write_csv(file, path=paths, sick=[1, 1, 1])
    with pytest.raises(LabelError, match="at least two values"):
        ask(file, slices({}, {}))


def test_a_series_of_two_patients_is_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["f0.png", "f1.png", "f2.png"], sick=[0, 0, 1])
    table = slices({"series": "s"}, {"series": "s"}, {"series": "t"})
    with pytest.raises(LabelError, match="1 series units hold slices with different patients"):
        ask(file, table, level="series")


def test_reports_in_cells_are_read_and_no_error_shows_a_cell(tmp_path: Path) -> None:
    # More than pyarrow reads at once: a cell of several lines lies across the cut.
    report = "FINDINGS: Mrs. EXAMPLE: clear lungs.\nIMPRESSION: none.\n" * 30
    rows = [f'f{i}.png,{i % 2},"{report}"' for i in range(1000)]
    file = tmp_path / "l.csv"
    file.write_text("\n".join(["path,sick,report", *rows]) + "\n")
    assert ask(file, slices({}, {}, {})).y.tolist() == [0, 1, 0]
    file.write_text("path,sick,who\nf0.png,0,Doe^Jane\nf1.png,1,Doe^Joan,,\n")
    with pytest.raises(LabelError, match="Expected 3 columns, got 5. Correct that row") as refusal:
        ask(file, slices({}, {}))
    assert "Doe" not in str(refusal.value)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no label file"):
        ask(tmp_path / "none.csv", slices({}))
    file = write_csv(tmp_path / "l.csv", path=["q"], sikc=[0])
    with pytest.raises(LabelError, match="no column 'sick'. Did you mean 'sikc'"):
        ask(file, slices({}))
    write_csv(file, path=["q"], sick=[0])
    with pytest.raises(LabelError, match=r"No row of .* has \['q'\], the store has \['f0.png'\]"):
        ask(file, slices({}))
    write_csv(file, path=["images/f1.png"], sick=[0])  # the file that is meant is shown
    with pytest.raises(LabelError, match=r"has \['images/f1.png'\], the store has \['f1.png'\]"):
        ask(file, slices({}, {}))
    write_csv(file, path=["f0.png"], sick=[0])
    with pytest.raises(LabelError, match="1 of them await extraction"):
        ask(file, slices({}), status=[0])
    for word, meant in (("XR", "DX"), ("ct", "CT")):
        with pytest.raises(LabelError, match=rf"'{word}' is no .*Did you mean '{meant}'.*\['CR'\]"):
            ask(file, slices({}), modality=("CR", word))
    with pytest.raises(LabelError, match=r"No slice has a modality of \['MR'\].*'CR'"):
        ask(file, slices({}), modality=("MR",))
    of_two = slices({}, {"modality": "MR"})
    meant = r"1 rows of .*l.csv' join slices, none of them of modality MR. Correct the task's mod"
    with pytest.raises(LabelError, match=meant):
        ask(file, of_two, modality=("MR",))


def test_paths_of_another_folder_are_told_by_the_prefix_that_would_join(tmp_path: Path) -> None:
    table = slices({"path": "notes.png"}, *({"path": f"cxr/images/{name}.png"} for name in "abcd"))
    columns = {"sick": [0, 1, 0], "who": ["p1", "p2", "p3"]}
    lacking = write_csv(
        tmp_path / "l.csv", path=[f"images/{name}.png" for name in "abc"], **columns
    )
    join = {"key": "path", "patient": "who"}
    kept = "with the prefix 'cxr/' 3 of 3 rows would join: 'images/a.png' is there as 'cxr/images"
    with pytest.raises(LabelError, match=kept):
        ask(lacking, table, **join)
    too_much = write_csv(
        tmp_path / "x.csv", path=[f"x/cxr/images/{n}.png" for n in "abc"], **columns
    )
    with pytest.raises(LabelError, match="without the prefix 'x/' 3 of 3 rows would join"):
        ask(too_much, table, **join)


def test_a_hidden_prefix_is_named_only_where_it_is_no_patients_name(tmp_path: Path) -> None:
    table = slices(
        {"path": "notes.png"}, *({"path": f"Doe^1/images/{name}.png"} for name in "abcd")
    )

    def refusal(who: list[str]) -> str:
        file = write_csv(
            tmp_path / "l.csv", path=["images/a.png", "images/b.png"], sick=[0, 1], who=who
        )
        task = Task(labels=("sick",))
        read = read_labels(Labels(file=file, patient="who"), [task])
        names = Told(tmp_path, "hide")
        with pytest.raises(LabelError) as refused:
            label_units(read, task, table, np.ones(5, np.uint8), tmp_path, names)
        return str(refused.value)

    deep = "names files 1 deep, the store has them 2 deep, 2 of 5 by the same name"
    one = refusal(["p1", "p1"])
    assert deep in one
    assert "; with the 1 folder that differs in front 2 of 2 rows would join" in one
    assert "Doe" not in one
    assert "; with the prefix 'Doe^1/' 2 of 2 rows would join" in refusal(["p1", "p2"])
