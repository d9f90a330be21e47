"""Every line of docs/mistakes.md is true: each mistake gives its one message, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import _code_and_message
from stores.errors import ConfigError, TooManyBadError
from tests.mistakes import MARKS, MISTAKES, PAGE, Mistake, Project, line_of, told

LINES = PAGE.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("mistakes")
        patch.setenv("RADPROBE_WEIGHTS", str(root / "weights"))
        patch.setenv("COLUMNS", "200")
        yield Project(root)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_gives_its_message(project: Project, mistake: Mistake) -> None:
    code, said = told(project, mistake)
    assert code in (1, 2)
    assert "Traceback" not in said
    assert "fault of radprobe" not in said
    assert not [mark for mark in MARKS if mark in project.output]
    assert line_of(mistake, said) in LINES


def test_the_page_lists_no_other_mistake() -> None:
    rows = [line for line in LINES if line.startswith("| ")][1:]
    assert len(rows) == len(MISTAKES) >= 20


def test_debug_shows_where_it_came_from(project: Project) -> None:
    code, said = project.run("extract nowhere.yaml --debug")
    assert code == 2
    assert "Traceback (most recent call last)" in said
    assert said.endswith("There is no config file 'nowhere.yaml'. Check the path.")


def test_what_nobody_raised_on_purpose_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as lost:
        (tmp_path / "none").read_text()
    assert _code_and_message(lost.value)[0] == 2
    assert str(tmp_path / "none") in _code_and_message(lost.value)[1]
    assert "workers" in _code_and_message(MemoryError())[1]
    assert _code_and_message(KeyError("x"))[0] == 70
    assert [_code_and_message(e)[0] for e in (ConfigError("x"), TooManyBadError("y"))] == [2, 1]
