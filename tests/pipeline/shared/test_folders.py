from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.shared.folders import files_below
from tests.stores.test_odd import nest


def test_folders_are_searched_however_deep_they_lie(tmp_path: Path) -> None:
    nest(tmp_path / "deep", 1500)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").touch()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/2").touch()
    try:
        assert files_below(tmp_path) == ["a/1", "deep/" + "d/" * 1500 + "file"]
    finally:
        subprocess.run(["rm", "-r", tmp_path], check=True)  # pytest could not
