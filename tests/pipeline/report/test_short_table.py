"""The short table of a paper: a line a task, in four formats."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from pipeline.report.short_table import ShortTable, files_of, short_table
from pipeline.report.sources import Source, open_sources
from pipeline.report.tables import MINUS
from pipeline.report.wording import RANDOM, interval, notes_once, units_text
from pipeline.results import Result
from tests.pipeline.report.test_report import collection


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collection(tmp_path_factory.mktemp("short"), 1)


@pytest.fixture(scope="module")
def sources(config: Path) -> list[Source]:
    return open_sources([config])


def test_a_line_a_task_has_the_main_score_of_each_method(sources: list[Source]) -> None:
    table = short_table(sources)
    answers = [a for a in sources[0].answers if isinstance(a, Result)]
    assert table.head[:5] == ("Task", "Cases", "Patients", "Positive", "Score")
    assert sorted(row[0] for row in table.rows) == sorted({a.task for a in answers})
    (sick,) = (row for row in table.rows if row[0] == "sick")
    cells = dict(zip(table.head, sick, strict=True))
    probe = next(a for a in answers if (a.task, a.method) == ("sick", "probe"))
    test = probe.counts["test"]
    assert cells["Cases"] == str(test.units)
    assert cells["Patients"].startswith(f"{test.patients}")
    assert cells["Positive"] == f"{test.positives['sick']} (sick)"
    assert cells["Score"] == "AUROC"
    assert cells["Linear probe"] == interval(probe.main_score.metrics["auroc"])
    assert "[" in cells["Linear probe"]
    assert "-" not in cells["Linear probe"]
    # A shortcut is asked of the probe alone.
    shortcut = dict(zip(table.head, next(r for r in table.rows if "/" in r[0]), strict=True))
    assert shortcut["Linear probe"]
    assert shortcut["kNN"] == ""


def test_the_four_formats_hold_the_same_cells() -> None:
    table = ShortTable(
        ("Task", "Cases", "Patients", "Positive", "Score", "kNN"),
        (("=a|b<c>_1", "12", "6 (few)", "3 (ill)", "AUROC", f"{MINUS}0.100 [{MINUS}0.80, 0.97]"),),
        (f"{RANDOM}: not of a trained network.", "store is of tiny_14."),
    )
    files = files_of(table)
    assert sorted(files) == ["short.csv", "short.html", "short.md", "short.tex"]
    head, row = csv.reader(io.StringIO(files["short.csv"]))
    assert tuple(head) == table.head
    assert row == ["'=a|b<c>_1", *table.rows[0][1:]]  # no formula
    assert "| =a\\|b<c>_1 | 12 |" in files["short.md"]
    assert "=a|b<c>\\_1 & 12 & 6 (few)" in files["short.tex"]
    assert "$-$0.100 [$-$0.80, 0.97]" in files["short.tex"]
    assert "{lllllr}" in files["short.tex"]
    assert "<td>=a|b&lt;c&gt;_1</td>" in files["short.html"]
    for name in ("short.md", "short.tex", "short.html"):
        assert RANDOM in files[name]


def test_of_several_stores_each_line_names_its_own(config: Path, tmp_path: Path) -> None:
    both = open_sources([config, collection(tmp_path, 2, strength=0.5)])
    table = short_table(both)
    assert table.head[0] == "Store"
    assert len(table.rows) == 2 * len(short_table(both[:1]).rows)
    assert len({row[0] for row in table.rows}) == 2


def test_a_note_is_said_once_with_all_that_have_it(sources: list[Source]) -> None:
    answers = [a for a in sources[0].answers if isinstance(a, Result) and a.method != "fewshot"]
    answers = [a for a in answers if "/" not in a.task]
    noted = [
        a.model_copy(update={"notes": ("of all", "of kNN") if a.method == "knn" else ("of all",)})
        for a in answers
    ]
    tasks = ", ".join(dict.fromkeys(a.task for a in noted))
    assert notes_once(noted) == [(tasks, "of all"), (f"{tasks} by kNN", "of kNN")]


@pytest.mark.parametrize(
    ("level", "said"), [("series", "24 series"), ("study", "24 studies"), ("image", "24 images")]
)
def test_units_stand_in_their_plural(level: str, said: str) -> None:
    assert units_text(level, 24, 12) == f"{said} of 12 patients"
    assert units_text("patient", 12, 12) == "12 patients"
