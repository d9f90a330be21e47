"""The house: seven layers, imports that point down, and no circle, within folders as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("pipeline", "stores")
    for path in (ROOT / package).rglob("*.py")
}

# The lowest first. ">" within a layer: what stands right of it may import what stands left of it.
# "|": neither imports the other. Names of a comma share a step and may import each other one way.
LAYERS = """
stores
types, recipe, config, results, shared
io > preprocessing, annotations, backbones > inference
extraction | evaluation > segmentation, datasets > tuning
outlook > extract, evaluate, segment, tune
report, benchmark, studies, doctor, fitted
api, commands, cli
"""
# Heavy libraries and the only modules that may import them.
HOMES = {
    "torch": {
        "pipeline.backbones.families",  # inside functions: a family is declared without it
        "pipeline.backbones.dinov2",
        "pipeline.backbones.efficientnet_lite",
        "pipeline.backbones.load",
        "pipeline.backbones.positions",
        "pipeline.backbones.towers",
        "pipeline.backbones.i3resnet",
        "pipeline.backbones.volume_networks",
        "pipeline.preprocessing.volume_input",
        "pipeline.inference.raptor",
        "pipeline.inference.volumes",
        "pipeline.preprocessing.prepare",
        "pipeline.preprocessing.intensity",
        "pipeline.inference.forward",
        "pipeline.inference.lanes",
        "pipeline.inference.telemetry",
        "pipeline.doctor",
        "pipeline.shared.devices",
        "pipeline.studies",
        "pipeline.segmentation",
        "pipeline.tune",
        "pipeline.tuning",
        "pipeline.evaluation.batches",
        "pipeline.evaluation.heads.attention_fit",
        "pipeline.evaluation.heads.over_slices",
        "pipeline.evaluation.heads.transformer_fit",
        "pipeline.evaluation.heads.linear_fit",
        "pipeline.evaluation.heads.mlp_fit",
        "pipeline.evaluation.heads.objective",
        "pipeline.evaluation.heads.probe_fit",
    },
    "monai": {"pipeline.segmentation", "pipeline.backbones.families"},
    "transformers": {
        "pipeline.backbones.efficientnet_lite",
        "pipeline.backbones.families",
        "pipeline.backbones.towers",
        "pipeline.tuning",
    },
    "safetensors": {
        "pipeline.backbones.load",
        "pipeline.backbones.weights",
        "pipeline.fitted.folder",
        "pipeline.tuning",
    },
    "peft": {"pipeline.tuning"},
    "huggingface_hub": {"pipeline.backbones.weights"},
    "faiss": {
        "pipeline.evaluation.cards",
        "pipeline.evaluation.neighbours",
        "pipeline.extraction.exchange",
        "pipeline.doctor",
        "pipeline.segmentation.knn",
    },
    "lifelines": {"pipeline.evaluation.heads.cox"},  # inside functions: an optional extra
    "sklearn": {"pipeline.evaluation.heads.probe_fit", "pipeline.fitted.calibration"},
    "zarr": {"stores._build"},
    "highdicom": {"pipeline.segmentation.dicom_writer", "pipeline.fitted.dicom_report"},
    "fsspec": {"stores.bucket"},
    "cryptography": {"pipeline.shared.pseudonyms"},
    "distributed": {
        "pipeline.extraction.distributed.dask_run",
        "pipeline.extraction.distributed.clusters",
    },
    "dask_jobqueue": {"pipeline.extraction.distributed.clusters"},
    "SimpleITK": {"pipeline.io.formats.itk_volume"},
    "typer": {"pipeline.cli", "pipeline.commands"},
    "matplotlib": {"pipeline.report", "pipeline.benchmark.figures"},
    "jinja2": {"pipeline.report.page"},
    "rich": {"pipeline.commands"},
}


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax, parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(block: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """Yield all statements within a block; typing: those for type checkers as well."""
    if_typing = isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
    fields = ["handlers", "cases", "orelse", "finalbody"]
    if typing or not if_typing:
        fields.append("body")
    for field in fields:
        for statement in getattr(block, field, ()):
            yield statement
            yield from statements(statement, typing=typing)


@cache
def imports(path: Path) -> set[str]:
    """Return the modules a file imports, anywhere, for type checkers as well."""
    return imported(statements(tree_of(path), typing=True), path)


@cache
def runs(path: Path) -> set[str]:
    """Return the modules a file imports when it runs, within functions too."""
    return imported(statements(tree_of(path), typing=False), path)


def imported(nodes: Iterable[ast.AST], path: Path) -> set[str]:
    """Return the modules, and the names in them, that import statements name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            inside = {f"{node.module}.{name.name}" for name in node.names}
            # A module taken out of a package is imported, not what the package has by itself.
            names |= inside if inside <= set(MODULES) else inside | {node.module}
    return names


@cache
def imports_of_modules() -> dict[str, set[str]]:
    """Return which modules of ours each of them imports.

    When the first test asks: whoever collects the tests, or takes LAYERS from here, reads no file.
    """
    return {module: imports(path) & set(MODULES) for module, path in MODULES.items()}


def entry(module: str) -> str:
    """Return the room of the house that a module stands in: `stores`, or a name below pipeline."""
    package, _, rest = module.partition(".")
    return package if package == "stores" else rest.partition(".")[0]


def ranks() -> dict[str, tuple[int, int]]:
    """Return the layer of each room, and the step within it."""
    found = {}
    for layer, line in enumerate(LAYERS.strip().splitlines()):
        for step, names in enumerate(line.split(">")):
            for name in names.replace("|", ",").split(","):
                found[name.strip()] = layer, step
    return found


def strangers() -> set[frozenset[str]]:
    """Return the pairs of rooms of which neither imports the other."""
    sides = [side for line in LAYERS.splitlines() for side in line.split(">") if "|" in side]
    pairs = [pair for side in sides for pair in combinations(side.split("|"), 2)]
    return {frozenset(name.strip() for name in pair) for pair in pairs}


RANKS, STRANGERS = ranks(), strangers()


def reached(starts: set[str]) -> set[str]:
    """Return what modules import, and what that imports, to the end."""
    found, waiting = set(starts), list(starts)
    while waiting:
        new = imports_of_modules()[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_every_room_has_a_layer_and_every_name_a_room() -> None:
    assert {entry(module) for module in MODULES} - {""} == set(RANKS)


def test_imports_point_down() -> None:
    wrong = []
    for module, others in imports_of_modules().items():
        here = entry(module)
        for other in others:
            there = entry(other)
            if here == there or not there:
                continue
            if RANKS[there] > RANKS[here]:
                wrong.append(f"{module} imports {other}, which stands above it")
            if frozenset((here, there)) in STRANGERS:
                wrong.append(f"{module} imports {other}, and neither room imports the other")
    assert not wrong


def test_no_circle_of_modules_or_of_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in imports_of_modules().items():
        rooms.setdefault(entry(module), set()).update(entry(o) for o in others)
    for graph in (imports_of_modules(), rooms):
        order = dict(graph)
        while True:  # take away what imports nothing that is left
            leaves = {name for name, to in order.items() if not (to - {name}) & set(order)}
            if not leaves:
                break
            order = {name: to for name, to in order.items() if name not in leaves}
        assert not order, f"circles among {sorted(order)}"


def test_evaluation_imports_no_extraction_no_reading_no_backbone() -> None:
    starts = {module for module in MODULES if entry(module) in ("evaluation", "evaluate")}
    assert starts
    rooms = {entry(module) for module in reached(starts)}
    assert not rooms & {"extraction", "io", "preprocessing", "backbones", "inference"}


def test_segmentation_can_reach_no_network() -> None:
    starts = {module for module in MODULES if entry(module) in ("segmentation", "segment")}
    assert starts
    assert not {entry(module) for module in reached(starts)} & {"backbones", "inference"}


def test_no_cached_value_is_made_of_one_of_the_same_name() -> None:
    """`super().x` within a cached `x` files its own value, which stays where the rest fails."""
    within = [
        f"{path}:{node.lineno}"
        for path in MODULES.values()
        if "super()." in path.read_text(encoding="utf-8")
        for method in ast.walk(tree_of(path))
        if isinstance(method, ast.FunctionDef)
        and any("cached_property" in ast.unparse(each) for each in method.decorator_list)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == f"super().{method.name}"
    ]
    assert within == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in runs(path))
    }
    homes = HOMES[library]
    assert all(user in homes or user.rpartition(".")[0] in homes for user in users), users
    assert users, f"nobody imports {library}: its line in HOMES is dead"


def test_stores_know_no_pixels_and_no_torch() -> None:
    foreign = {"torch", "pydicom", "nibabel", "PIL", "sklearn", "faiss", "pipeline"}
    for module, path in MODULES.items():
        if module.startswith("stores."):
            assert not {name.partition(".")[0] for name in imports(path)} & foreign


def test_help_imports_no_more_than_its_words_and_a_flow_nothing_heavy() -> None:
    """One process for all: what the first has not imported, it has not for the next either."""
    code = (
        "import sys, pipeline.cli\n"
        "heavy = {'numpy', 'pydantic', 'pyarrow', 'yaml', 'torch'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'faiss', 'zarr', 'scipy', 'pydicom'}\n"
        "heavy |= {'nibabel', 'PIL', 'SimpleITK'}\n"
        "for flow in ('pipeline.extract', 'pipeline.evaluate', 'pipeline.datasets.demo'):\n"
        "    __import__(flow)\n"
        "    print(flow, sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "pipeline.extract []",
        "pipeline.evaluate []",
        "pipeline.datasets.demo []",
    ]
