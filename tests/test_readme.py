"""What the README says is done as it says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from pipeline.config.loading import load_config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.recipe import Recipe
from stores import FeatureStore
from tests.phantoms import volume, write_png, write_series
from tests.pipeline.models import write_tiny_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Return demo/store, embedded by configs/demo.yaml, from where the README's code runs."""
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 200, (40, 40), np.uint8)
        write_png(tmp_path / f"data/p{i}.png", pixels + 50 * np.uint8(i % 2))
    write_series(tmp_path / "data/ct", volume(5))
    lines = ["path,bright,patient", *(f"p{i}.png,{i % 2},{i}" for i in range(12))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    tiny = write_tiny_folder(tmp_path / "tiny")
    config = tmp_path / "configs/demo.yaml"
    config.parent.mkdir()
    config.write_text(
        "data: {root: ../data}\nstore: ../demo/store\n"
        f"backbone: {{name: 'hf:{tiny}', image_size: 56}}\n"
        "labels: {file: ../labels.csv, patient: patient}\nsplit: {folds: 3}\n"
        "tasks: {chest: {labels: [bright]}}\n"
    )
    extract(load_config(config), Speed(device="cpu", workers=0))
    monkeypatch.chdir(tmp_path)
    return FeatureStore.open(tmp_path / "demo/store")


def test_the_store_is_read_without_radprobe_as_it_says(demo: FeatureStore) -> None:
    code, _ = blocks("python")
    assert "radprobe" not in code
    seen: dict[str, np.ndarray] = {}
    exec(compile(code, "README.md", "exec"), seen)
    assert np.array_equal(seen["cls"], demo.read("cls", range(17)))
    assert np.array_equal(seen["mean"], demo.read("mean", range(17)))


def test_a_notebook_does_as_it_says(demo: FeatureStore) -> None:
    _, code = blocks("python")
    seen: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), seen)
    assert seen["x"].shape == (17, 4 * 48)
    taught = seen["task"].part == "train"
    assert {len(x) for x, _ in seen["batches"]} == {taught.sum()}
    assert len(seen["lazy"]) == len(seen["slices"]) == 17
    assert [result.task for result in seen["results"]] == ["chest"]


def test_the_notebook_of_a_store(demo: FeatureStore) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    notebook = json.loads((ROOT / "docs/store.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) == 4
    seen: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "store.ipynb", "exec"), seen)
    assert seen["nearest"][0] == 0
    assert seen["plane"].shape == (17, 2)
    assert [result.task for result in seen["results"]] == ["chest"]


def test_its_config_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(text)
    config = load_config(tmp_path / "my.yaml")
    assert config.backbone.image_size % 14 == 0
    assert Recipe.model_fields.keys() >= {"preprocess", "weights"}
    assert set(config.tasks) == {"pneumonia", "findings"}


def test_its_commands_exist() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in set(re.findall(r"^make ([a-z]+)", "\n".join(blocks("")), flags=re.MULTILINE)):
        assert f"make {target}" in done.stdout
    from pipeline.cli import app

    commands = typer.main.get_command(app)
    assert isinstance(commands, typer.core.TyperGroup)
    listed = set(re.findall(r"^\| `radprobe ([a-z-]+)", README, flags=re.MULTILINE))
    assert listed <= commands.commands.keys()


def test_its_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 10_000


def test_every_proof_of_the_formats_is_a_test() -> None:
    text = (ROOT / "docs/FORMATS.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 50
    assert [name for name in named if f"def {name}(" not in tests] == []
