"""`import radprobe`, `python -m radprobe`: from anywhere, whatever lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_folders_called_like_ours_do_not_matter(tmp_path: Path) -> None:
    for name in ("stores", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    code = "import radprobe; print(radprobe.load_config.__module__, radprobe.__version__)"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.startswith("pipeline.api "), done.stderr
    version = python("-m", "radprobe", "--version", cwd=tmp_path)
    assert version.stdout == f"radprobe {done.stdout.split()[1]}\n", version.stderr


def test_every_name_of_the_api_is_there() -> None:
    import radprobe
    from pipeline import api

    assert radprobe.__all__ == api.__all__
    assert all(getattr(radprobe, name) is getattr(api, name) for name in api.__all__)
