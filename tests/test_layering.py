"""Imports point one way: cli > extract, evaluate > the other pipeline modules > types > stores."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    f"{package}.{path.stem}": path
    for package in ("pipeline", "stores")
    for path in (ROOT / package).glob("*.py")
    if path.stem != "__init__"
}

# A module may import its own level's modules only where the level says so, and any level below.
# `read` is the one door to the formats; underscored modules belong to the public one above them.
LEVELS = [
    {"cli"},
    {"extract", "evaluate", "compare", "search", "report", "plan", "exchange"},
    {"collection", "scoring"},
    {"cases"},
    {"embed"},
    {"discover", "labels", "demo"},
    {"read", "knn", "probe", "fewshot", "preprocess", "backbones"},
    {"splits", "metrics"},
    {"weights", "config"},
    {"questions"},
    {"types"},
]
# Heavy libraries and the only modules that may import them.
HOMES = {
    "torch": {"pipeline.backbones", "pipeline.preprocess", "pipeline.embed"},
    "transformers": {"pipeline.backbones"},
    "safetensors": {"pipeline.backbones"},
    "huggingface_hub": {"pipeline.weights"},
    "faiss": {"pipeline.knn", "pipeline.exchange"},
    "sklearn": {"pipeline.probe", "pipeline.metrics", "pipeline.splits", "pipeline.fewshot"},
    "zarr": {"stores._build"},
    "typer": {"pipeline.cli"},
    "rich": {"pipeline.cli", "pipeline.report", "pipeline._show_answers"},
}


def imports(path: Path) -> set[str]:
    """Return the modules a file imports, anywhere but for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unrun = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unrun:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def level(module: str) -> int:
    """Return how high a module stands: stores are lowest, a private module just below its door."""
    package, _, name = module.partition(".")
    if package == "stores":
        return -1
    return next((len(LEVELS) - i for i, names in enumerate(LEVELS) if name in names), 0)


def test_every_public_module_has_a_level() -> None:
    unplaced = [m for m in MODULES if level(m) == 0 and not m.partition(".")[2].startswith("_")]
    assert unplaced == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    package, _, name = module.partition(".")
    used = imports(MODULES[module]) & set(MODULES)
    if package == "stores":
        assert all(other.startswith("stores.") for other in used), used
        return
    if name.startswith("_"):  # may use its siblings, the types and the config, never a stage
        stages = {o for o in used if level(o) > level("pipeline.config")}
        assert stages <= {"pipeline.read"}, stages
        return
    for other in used:
        assert level(other) < level(module) or other.startswith("pipeline._"), (
            f"{module} (level {level(module)}) imports {other} (level {level(other)})"
        )


def test_nothing_imports_the_command_line() -> None:
    assert [m for m, path in MODULES.items() if "pipeline.cli" in imports(path)] == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert users <= HOMES[library]
    assert users, f"nobody imports {library}: its line in HOMES is dead"


def test_stores_know_no_pixels_and_no_torch() -> None:
    foreign = {"torch", "pydicom", "nibabel", "PIL", "sklearn", "faiss", "pipeline"}
    for module, path in MODULES.items():
        if module.startswith("stores."):
            assert not {name.partition(".")[0] for name in imports(path)} & foreign


@pytest.mark.parametrize("module", ["pipeline.extract", "pipeline.evaluate", "pipeline.cli"])
def test_starting_a_flow_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'faiss', 'zarr', 'scipy', 'pydicom'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
