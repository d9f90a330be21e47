"""Label tables as people have them: every one below says the same, and is read as the same."""

from __future__ import annotations

import codecs
import csv
import datetime
import gzip
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.label_file import read_labels
from pipeline.annotations.labels import label_units
from pipeline.annotations.tables import read_table
from pipeline.annotations.units import Units
from pipeline.config.data import Labels, SplitChoice
from pipeline.config.tasks import Task
from pipeline.evaluation.splits import make_split
from stores.errors import LabelError
from tests.pipeline.annotations.test_labels import Told, ask, slices
from tests.pipeline.collection import write_csv

# Umlauts, a report of two lines with a comma, and a semicolon within a cell.
ROWS = [
    ["Path", "Sick ", "größe", "seen", "report"],
    ["f0.png", "ja", "3,5", "03.04.2024", "clear;\nno finding, none"],
    ["f1.png", "nein", "12", "31.12.2023", 'she said "no"'],
    ["f2.png", "ja", "0,25", "1.1.2024", ""],
]
COLUMNS = ["path", "sick", "größe", "seen"]
TASK = Task(labels=("sick", "größe", "seen"))


def text(separator: str, line_end: str = "\r\n") -> str:
    """Return the rows as a spreadsheet would save them."""
    lines = []
    for row in ROWS:
        cells = ['"' + cell.replace('"', '""') + '"' for cell in row]
        lines.append(separator.join(cells))
    return line_end.join(lines) + line_end


def write_excel(path: Path, rows: list[list[Any]], title: str = "") -> Path:
    book = openpyxl.Workbook()
    if title:
        book.active.append([title])
        book.create_sheet()
    for row in rows:
        book.worksheets[-1].append(row)
    book.save(path)
    return path


def excel_rows() -> list[list[Any]]:
    """Return the rows as cells of Excel: dates and numbers as such."""
    days = [datetime.datetime.strptime(row[3], "%d.%m.%Y") for row in ROWS[1:]]
    numbers: list[Any] = [3.5, 12, 0.25]
    rows: list[list[Any]] = [list(ROWS[0])]
    for row, number, day in zip(ROWS[1:], numbers, days, strict=True):
        rows.append([row[0], row[1], number, day, row[4]])
    return rows


def test_semicolons_tabs_marks_and_encodings_are_one_table(tmp_path: Path) -> None:
    files = {
        "semicolon.csv": text(";").encode("utf-8-sig"),
        "tab.tsv": text("\t").encode(),
        "unicode.txt": codecs.BOM_UTF16_LE + text("\t").encode("utf-16-le"),
        "unmarked.txt": text(";").encode("utf-16-be"),
        "mac.csv": text(";", "\r").encode(),
        "windows.csv": text(";").encode("cp1252"),
        "bars.csv": text("|", "\n").encode(),
        "small.csv.gz": gzip.compress(text(";").encode()),
    }
    wanted = [["f0.png", "f1.png", "f2.png"], ["ja", "nein", "ja"], ["3,5", "12", "0,25"]]
    wanted.append(["2024-04-03", "2023-12-31", "2024-01-01"])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        table = read_labels(Labels(file=tmp_path / name, dates="day.month.year"), [TASK])
        assert [table.columns[column].tolist() for column in COLUMNS] == wanted, name
        assert table.comma
        notes = ["read as Windows-1252, since line 1 is not UTF-8: save it as CSV UTF-8 to be sure"]
        assert list(table.notes) == (notes if name == "windows.csv" else [])


def test_parquet_is_read_whatever_wrote_its_text_and_within_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "l.parquet"
    names = pa.array(["a.png", "b.png"] * 50)
    columns = {
        "path": names.cast(pa.string_view()),  # polars
        "sex": names.dictionary_encode(),  # a category of pandas
        "d.o.b": names.cast(pa.large_string()),
    }
    pq.write_table(pa.table(columns), file, row_group_size=10)
    read = read_table(file, [*columns]).columns
    assert read == dict.fromkeys(columns, names.to_pylist())
    pq.write_table(pa.table({"path": ["x" * 2**20] * 2**9}), file, compression="zstd")
    with pytest.raises(LabelError, match="asks for more than .* bytes of memory"):
        read_table(file, ["path"])


def test_a_workbook_and_parquet_with_timestamps_say_what_a_csv_says(tmp_path: Path) -> None:
    rows = excel_rows()
    book = write_excel(tmp_path / "l.xlsx", rows)
    by_column = list(zip(*rows[1:], strict=True))
    columns = {
        name.strip().lower(): values for name, values in zip(rows[0], by_column, strict=True)
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    plain = tmp_path / "l.csv"
    plain.write_text(
        "path,sick,größe,seen\nf0.png,ja,3.5,2024-04-03\nf1.png,nein,12,2023-12-31\n"
        "f2.png,ja,0.25,2024-01-01\n",
        encoding="utf-8",
    )
    digests = {
        read_labels(Labels(file=file), [TASK]).digest(TASK)
        for file in (book, tmp_path / "l.parquet", plain)
    }
    assert len(digests) == 1
    # No comma parts cells in either.
    assert read_labels(Labels(file=book), [TASK]).comma
    assert read_labels(Labels(file=tmp_path / "l.parquet"), [TASK]).comma


def test_ids_truths_and_moments_of_a_workbook(tmp_path: Path) -> None:
    file = tmp_path / "l.xlsx"
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["id", "sick", "seen", "n"])
    sheet.append([12, True, datetime.datetime(2024, 4, 3, 13, 30), 2.0])
    sheet.append([13, False, None, "#N/A"])
    sheet.append([None, None, None, None])  # rows that Excel has touched
    sheet["A2"].number_format = "00000"
    book.save(file)
    table = read_labels(Labels(file=file, key="id", by="patient"), [], ["sick", "seen", "n"])
    assert table.columns["id"].tolist() == ["00012", "13"]
    assert table.columns["sick"].tolist() == ["true", "false"]
    assert table.columns["seen"].tolist() == ["2024-04-03 13:30:00", ""]
    assert table.columns["n"].tolist() == ["2", "#N/A"]


def test_the_sheet_that_has_the_columns_is_read(tmp_path: Path) -> None:
    file = write_excel(tmp_path / "l.xlsx", ROWS, title="Cohort of the spring")
    table = read_labels(Labels(file=file), [Task(labels=("sick",))])
    assert table.columns["sick"].tolist() == ["ja", "nein", "ja"]
    assert table.notes == ("read from sheet 2, the first that has the columns",)
    with pytest.raises(LabelError, match="no column 'sicker'. Did you mean 'Sick '"):
        read_labels(Labels(file=file), [Task(labels=("sicker",))])


def test_columns_are_found_in_any_case_and_two_of_a_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text("PATH,Is  Sick,look,Look\nf0.png,1,a,b\n")
    table = read_labels(Labels(file=file), [], ["is sick", "Look", "look"])
    assert [table.columns[n].tolist() for n in ("path", "is sick", "Look", "look")] == [
        ["f0.png"],
        ["1"],
        ["b"],
        ["a"],
    ]
    with pytest.raises(LabelError, match="has 2 columns 'LOOK', in one case or several"):
        read_labels(Labels(file=file), [], ["LOOK"])
    with pytest.raises(LabelError, match=r"no column 'LOK'. Did you mean 'L?l?ook'"):
        read_labels(Labels(file=file), [], ["LOK"])


def test_decimal_commas_are_numbers_where_no_comma_parts_cells(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"

    def read(cells: str) -> Units:
        rows = [f"f{i}.png;{cell}" for i, cell in enumerate(cells.split())]
        file.write_text("\n".join(["path;age", *rows]) + "\n")
        task = Task(labels=("age",), values="number")
        table = read_labels(Labels(file=file), [task])
        status = np.ones(3, np.uint8)
        names = Told(tmp_path, "keep")
        return label_units(table, task, slices({}, {}, {}), status, tmp_path, names)

    def numbers(cells: str) -> Any:
        return read(cells).y.tolist()

    assert numbers("3,5 12 -0,25") == [3.5, 12.0, -0.25]
    assert numbers("3.5 12 -0.25") == [3.5, 12.0, -0.25]
    with pytest.raises(LabelError, match="in one way. Column 'age' has numbers with a comma"):
        numbers("3,5 1.200 4")
    with pytest.raises(LabelError, match="must hold finite numbers.*data row 3"):
        numbers("3,5 4 1.200,5")
    # A thousand, or one? It is read as before, and said.
    for cells in ("1.200 12 2.345", "1,200 12 2,345"):
        assert "all 2 decimals of column 'age' have three digits" in read(cells).notes[0]
    for cells in ("1.200 12 2.34", "0.123 1.234 5", "1.200 12 5"):
        assert not read(cells).notes


def test_findings_with_decimal_commas_are_findings(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text("path;sick\nf0.png;1,0\nf1.png;0,0\nf2.png;\n")
    assert ask(file, slices({}, {}, {})).classes == ("0", "1")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["f0.png,0,Doe^Jane", "f1.png,1,Doe^Joan,,"], "line 3: Expected 3 columns, got 5"),
        (['f0.png,0,"Doe^Jane', 'of two lines"', "f1.png,1"], "line 4: Expected 3 .* got 2"),
        (["f0.png,0,a", 'f1.png,1,"Doe^Jane', "f2.png,0,b"], "line 3: a quoted cell is not closed"),
        (["f0.png,0,a", 'f1.png,1,"Doe"^Jane'], "line 3: a quoted cell is not closed, or text"),
    ],
)
def test_a_torn_table_says_its_line_and_no_cell(tmp_path: Path, rows: list[str], why: str) -> None:
    file = tmp_path / "l.csv"
    file.write_text("\n".join(["path,sick,who", *rows]) + "\n")
    with pytest.raises(LabelError, match=why) as refusal:
        ask(file, slices({}, {}))
    assert "Doe" not in str(refusal.value)
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"path,sick\nM\xc3\xbcller\xff,1\n", "line 2 is no text in UTF-8. Save the table"),
        (b"path,sick\n\x81\x8d,1\n", "line 2 is no text in UTF-8"),
        (b"\x93\x00\x00\xff\x01" * 50, "no table of text"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "Excel file of before 2007"),
        (b"PK\x03\x04" + bytes(600), "an archive, but no whole Excel workbook"),
        (b"PAR1" + bytes(600), "no whole Parquet file"),
    ],
)
def test_what_is_no_table_says_what_it_may_be(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "l.csv"
    file.write_bytes(data)
    with pytest.raises(LabelError, match=f"{file.name}' cannot be read: .*{why}") as refusal:
        ask(file, slices({}, {}))
    assert "ller" not in str(refusal.value)


def test_a_workbook_that_was_cut_is_refused(tmp_path: Path) -> None:
    data = write_excel(tmp_path / "l.xlsx", [["path", "sick"]] + [["f0.png", 1]] * 900).read_bytes()
    for size in range(10, len(data), len(data) // 20):
        (tmp_path / "l.xlsx").write_bytes(data[:size])
        with pytest.raises(LabelError, match="cannot be read"):
            ask(tmp_path / "l.xlsx", slices({}, {}))


# --- keys ----------------------------------------------------------------------------------


def by_patient(file: Path, *patients: str) -> Units:
    table = slices(*({"patient": f"patient-{name}"} for name in patients))
    return ask(file, table, key="id", by="patient")


def test_ids_join_with_the_zeros_that_a_spreadsheet_took(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", id=["7", "12", "100"], sick=["no", "yes", "yes"])
    units = by_patient(file, "007", "012", "100")
    assert units.y.tolist() == [0, 1, 1]
    assert units.tally.unmatched_labels == 0
    (note,) = units.notes
    assert note == "2 keys of column 'id' join with leading zeros, which a spreadsheet takes away"
    write_csv(file, id=["0007", "012"], sick=["no", "yes"])
    units = by_patient(file, "7", "12")
    assert units.notes == (
        "2 keys of column 'id' join without the leading zeros that they have in the table",
    )


def test_a_key_that_two_could_mean_joins_nobody(tmp_path: Path) -> None:
    # Two patients of the store, two rows of the table, and one that has its own row already.
    file = write_csv(
        tmp_path / "l.csv", id=["7", "1", "01", "12", "0012", "5"], sick=[0, 1, 0, 1, 1, 0]
    )
    units = by_patient(file, "007", "0007", "001", "12", "05", "44")
    assert units.rows.tolist() == [3, 4]  # 12 as written, 05 by its zero
    assert units.tally.unmatched_labels == 4
    assert units.tally.unmatched_slices == 4


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_one_character_or_two_join(tmp_path: Path, forms: tuple[str, str]) -> None:
    in_table, on_disk = (
        [unicodedata.normalize(form, name) for name in ("Müller/a.png", "Åse/b.png")]
        for form in forms
    )
    file = write_csv(tmp_path / "l.csv", path=in_table, sick=["no", "yes"])
    units = ask(file, slices(*({"path": path} for path in on_disk)))
    assert units.y.tolist() == [0, 1]
    assert "2 keys of column 'path' join with accents written in one" in units.notes[0]


def test_a_folder_that_ends_in_nought_is_that_folder(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", path=["1.0", "1", "2.0"], sick=["no", "yes", "yes"])
    units = ask(file, slices(*({"path": f"{name}/a.png"} for name in ("1.0", "1", "2"))))
    assert units.y.tolist() == [0, 1, 1]
    assert units.notes == (
        "1 keys of column 'path' join without the .0 that they have in the table",
    )


def test_identical_rows_count_once(tmp_path: Path) -> None:
    paths = ["f0.png", "f1.png", "f0.png", "gone.png", "gone.png"]
    file = write_csv(tmp_path / "l.csv", path=paths, sick=[0, 1, 0, 1, 1])
    units = ask(file, slices({}, {}))
    assert units.y.tolist() == [0, 1]
    assert units.tally.unmatched_labels == 1
    assert units.tally.unmatched_label_examples == ("gone.png",)


# --- dates ---------------------------------------------------------------------------------


def test_days_before_months_are_split_by_once_the_config_says_so(tmp_path: Path) -> None:
    days = [f"{day}.{month}.2024" for month, day in ((1, 31), (2, 1), (3, 2), (12, 1))]
    days += ["05/01/2023", "6-2-2023"]
    file = write_csv(tmp_path / "l.csv", path=[f"f{i}.png" for i in range(6)], day=days)
    choice = SplitChoice(kind="date", column="day", folds=6)
    units = Units.unlabelled(np.array(list("abcdef")), np.arange(6), np.arange(6))
    table = read_labels(Labels(file=file, dates="day.month.year"), [], ["day"])
    split = make_split(units, choice, table.columns["day"].astype(np.str_))
    assert split.patients["test"] == ("d",)
    assert split.patients["val"] == ("c",)
    table = read_labels(Labels(file=file), [], ["day"])
    with pytest.raises(LabelError, match="for 6 of 6 units.*dates: day.month.year"):
        make_split(units, choice, table.columns["day"].astype(np.str_))


def test_a_day_that_is_none_stays_as_it_is_and_an_id_is_no_day(tmp_path: Path) -> None:
    cells = ["31.2.2024", "1.2.2024 13:30", "1.2.20245", "1.2/2024"]
    file = write_csv(tmp_path / "l.csv", id=["1.2.2024", "b", "c", "d"], seen=cells)
    labels = Labels(file=file, key="id", by="study", dates="day.month.year")
    table = read_labels(labels, [], ["seen"])
    assert table.columns["id"][0] == "1.2.2024"
    assert table.columns["seen"].tolist() == [
        "31.2.2024",
        "2024-02-01 13:30",
        "1.2.20245",
        "1.2/2024",
    ]


def test_a_moment_counts_as_its_day(tmp_path: Path) -> None:
    units = Units.unlabelled(np.array(list("abc")), np.arange(3), np.arange(3))
    moments = np.array(["2024-01-03 10:00:00", "20240102", "2024-01-01T23:59"])
    split = make_split(units, SplitChoice(kind="date", column="x", folds=3), moments)
    assert split.patients == {"train": ("c",), "val": ("b",), "test": ("a",)}


def test_a_large_table_of_reports_is_read(tmp_path: Path) -> None:
    report = "FINDINGS: Mrs. EXAMPLE: clear lungs.\nIMPRESSION: none.\n" * 30
    file = tmp_path / "l.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=";")
        writer.writerow(["path", "sick", "report"])
        writer.writerows([f"f{i}.png", i % 2, report] for i in range(6000))
    assert ask(file, slices({}, {}, {})).y.tolist() == [0, 1, 0]
