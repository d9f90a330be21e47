from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.backbones import remembered
from pipeline.backbones.remembered import PLACE, remembered_identity
from pipeline.backbones.weights import identity_of


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Return the files that are hashed from now on, in a place that remembers none yet."""
    files: list[Path] = []

    def counted(file: Path) -> str:
        files.append(file)
        return identity_of(file)

    monkeypatch.setattr(remembered, "identity_of", counted)
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    return files


def test_a_file_is_hashed_once_and_again_when_it_is_another(
    hashed: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    first = remembered_identity(file)
    assert first == identity_of(file)
    assert remembered_identity(file) == first
    assert hashed == [file]
    file.write_bytes(b"two")  # of one size
    assert remembered_identity(file) == identity_of(file) != first
    assert hashed == [file, file]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stamp": 1}', "\x00"])
def test_a_note_that_is_damaged_is_none(hashed: list[Path], tmp_path: Path, text: str) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    remembered_identity(file)
    (note,) = (tmp_path / "cache/identities").iterdir()
    note.write_text(text)
    assert remembered_identity(file) == identity_of(file)
    assert hashed == [file, file]


def test_where_nothing_can_be_kept_it_is_hashed_each_time(
    hashed: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    assert remembered_identity(file) == remembered_identity(file) == identity_of(file)
    assert hashed == [file, file]
