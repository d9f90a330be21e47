"""Imports point one way: cli > extract, evaluate > the other pipeline modules > types > stores."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("pipeline", "stores")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__init__"
}

# The highest first. A module imports levels below its own, and modules of its own folder.
LEVELS = [
    {"cli"},
    {"commands", "api"},
    {"benchmark"},
    {"report", "tune", "retest"},
    {
        "extract",
        "evaluate",
        "doctor",
        "compare",
        "search",
        "plan",
        "exchange",
        "failures",
        "segment",
        "status",
        "datasets",
    },
    {"fleet", "scale", "opening"},
    {"shards"},
    {"collection", "scoring", "deal", "segmentation.asked", "segmentation.exporting"},
    {"work", "clusters", "slurm"},
    {"tasks.cases"},
    {"embed", "tables"},
    {"embedding"},
    {"tuning"},
    {"segmentation"},
    {"discover", "demo", "heads", "tasks", "registry"},
    {"walk"},
    {"volumes", "preprocess", "backbones", "stats", "phantoms", "neighbours"},
    {"holding"},
    {"families"},
    {"intensity", "views"},
    {"read"},
    {"reading"},
    {"formats"},
    {"names", "weights", "config"},
    {"questions", "comparators"},
    {"types"},
]
# Imports that point up, each for a reason: `read` is one door for its callers, and the processes
# behind it read through the same door.
DOORS = {
    ("pipeline.io.pool", "pipeline.io.decode"),
    ("pipeline.io.process", "pipeline.io.decode"),
    ("pipeline.io.worker", "pipeline.io.decode"),
}
# Heavy libraries and the only modules that may import them.
HOMES = {
    "torch": {
        "pipeline.backbones.load",
        "pipeline.backbones.towers",
        "pipeline.preprocessing.prepare",
        "pipeline.preprocessing.intensity",
        "pipeline.inference.forward",
        "pipeline.inference.lanes",
        "pipeline.inference.telemetry",
        "pipeline.doctor",
        "pipeline.segmentation",
        "pipeline.tune",
        "pipeline.tuning",
        "pipeline.evaluation.heads.attention",
        "pipeline.evaluation.heads.linear",
        "pipeline.evaluation.heads.objective",
        "pipeline.evaluation.heads.probe",
    },
    "monai": {"pipeline.segmentation"},
    "transformers": {"pipeline.backbones.load", "pipeline.backbones.towers", "pipeline.tuning"},
    "safetensors": {"pipeline.backbones.load", "pipeline.tuning", "pipeline.backbones.weights"},
    "peft": {"pipeline.tuning"},
    "huggingface_hub": {"pipeline.backbones.weights"},
    "faiss": {
        "pipeline.evaluation.neighbours",
        "pipeline.extraction.exchange",
        "pipeline.doctor",
        "pipeline.segmentation.knn",
    },
    "sklearn": {"pipeline.evaluation.heads.probe"},
    "zarr": {"stores._build"},
    "highdicom": {"pipeline.segmentation.dicom_writer"},
    "fsspec": {"stores.bucket"},
    "cryptography": {"pipeline.shared.pseudonyms"},
    "distributed": {
        "pipeline.extraction.distributed.dask_run",
        "pipeline.extraction.distributed.clusters",
    },
    "dask_jobqueue": {"pipeline.extraction.distributed.clusters"},
    "typer": {"pipeline.cli", "pipeline.commands"},
    "matplotlib": {"pipeline.report", "pipeline.benchmark.figures"},
    "jinja2": {"pipeline.report.page"},
    "rich": {"pipeline.commands"},
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


def level(module: str) -> int | None:
    """Return how high a module stands, by its own name or else its folder's; stores are lowest."""
    package, _, name = module.partition(".")
    if package == "stores":
        return -1
    for candidate in (name, name.partition(".")[0]):
        for depth, names in enumerate(LEVELS):
            if candidate in names:
                return len(LEVELS) - depth
    return None


def test_every_module_has_a_level_and_every_level_modules() -> None:
    assert [module for module in MODULES if level(module) is None] == []
    named = {name for names in LEVELS for name in names}
    assert [
        n for n in named if not any(f"{m}.".startswith(f"pipeline.{n}.") for m in MODULES)
    ] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    folder = module.rpartition(".")[0]
    for other in imports(MODULES[module]) & set(MODULES):
        beside = other.rpartition(".")[0] == folder != "pipeline"
        below = (level(other) or 0) < (level(module) or 0)
        assert beside or below or (module, other) in DOORS, f"{module} imports {other}"


def test_nothing_imports_the_command_line() -> None:
    assert [m for m, path in MODULES.items() if "pipeline.cli" in imports(path)] == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    homes = HOMES[library]
    assert all(user in homes or user.rpartition(".")[0] in homes for user in users), users
    assert users, f"nobody imports {library}: its line in HOMES is dead"


def test_stores_know_no_pixels_and_no_torch() -> None:
    foreign = {"torch", "pydicom", "nibabel", "PIL", "sklearn", "faiss", "pipeline"}
    for module, path in MODULES.items():
        if module.startswith("stores."):
            assert not {name.partition(".")[0] for name in imports(path)} & foreign


def test_nothing_of_segmentation_can_reach_a_backbone() -> None:
    reached = {m for m in MODULES if m.startswith("pipeline.segmentation.")}
    assert reached
    reached.add("pipeline.segment")
    waiting = list(reached)
    while waiting:
        found = (imports(MODULES[waiting.pop()]) & set(MODULES)) - reached
        reached |= found
        waiting += found
    assert "pipeline.types" in reached
    assert not reached & {
        "pipeline.backbones.load",
        "pipeline.extraction.embed",
        "pipeline.inference.forward",
    }


def test_help_imports_no_more_than_its_words() -> None:
    code = (
        "import sys, pipeline.cli\n"
        "heavy = {'numpy', 'pydantic', 'pyarrow', 'yaml', 'torch'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["pipeline.extract", "pipeline.evaluate", "pipeline.cli", "pipeline.datasets.demo"]
)
def test_starting_a_flow_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'faiss', 'zarr', 'scipy', 'pydicom'}\n"
        "heavy |= {'nibabel', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
