from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.shared.notes import PLACE, Note


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a place that has no notes yet."""
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_note_is_of_its_subject_and_stamp_alone() -> None:
    note = Note("weights", "a", "1")
    assert note.read() is None
    note.write("found")
    assert note.read() == "found"
    assert Note("weights", "a", "2").read() is None
    assert Note("weights", "b", "1").read() is None
    assert Note("stores", "a", "1").read() is None
    note.write("found again")
    assert note.read() == "found again"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"stamp": "1"}', '{"stamp": "1", "text": 2}', "\x00"]
)
def test_a_note_that_is_damaged_is_none(place: Path, text: str) -> None:
    note = Note("weights", "a", "1")
    note.write("found")
    (file,) = (place / "weights").iterdir()
    file.write_text(text)
    assert note.read() is None


def test_its_place_names_nobody(place: Path) -> None:
    Note("weights", "/data/DOE_JOHN/model.pth", "1").write("found")
    (file,) = (place / "weights").iterdir()
    assert "DOE" not in file.name + file.read_text()


def test_where_nothing_can_be_kept_nothing_is(place: Path) -> None:
    place.write_text("a file in the place of the folder")
    note = Note("weights", "a", "1")
    note.write("found")
    assert note.read() is None
