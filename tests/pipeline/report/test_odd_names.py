"""Names of tasks, labels and classes are anybody's: printed and drawn, they are text."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.commands.printing import PlainConsole, show_results
from pipeline.config.loading import load_config
from pipeline.evaluate import evaluate
from pipeline.report.page import write_report
from tests.pipeline.collection import make_store, write_csv

CODE = "<script>document.title='PWNED'</script><img src=x onerror=alert(1)>-->"
ODD = [
    CODE,
    "l[/x][red]",
    r"$\badmacro{$",
    "a\x0bb\x1b[31m\x1b]0;title\x07",
    "two\nlines",
    "=cmd|'/c calc'!A1",
    "x" * 300,
    "日" * 300,
    "../../up",
    "$",
]
# Of these there is a figure more, whose names are drawn as all are.
SUBGROUPS = ODD[:4]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a config with a task a name, each of two classes of that name."""
    root = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    n = 30
    sick = np.arange(n) % 2
    cls = rng.standard_normal((n, 1, 8))
    cls[:, 0, 0] += 4 * sick
    images = np.arange(n) + 1
    make_store(root / "store", cls, [{"patient": f"p{i}"} for i in range(n)], images=images)
    columns = {}
    tasks = {}
    for name in ODD:
        # A CSV's header has no line end: only the task is called so.
        column = name.replace("\n", " ")
        columns[column] = [f"{column}{'+' if each else '-'}" for each in sick]
        positive = f"{column}+"
        tasks[name] = {"labels": [column], "positive": positive}
        if name in SUBGROUPS:
            tasks[name]["subgroups"] = [column]
    paths = [f"f{i}.png" for i in range(n)]
    write_csv(root / "labels.csv", path=paths, **columns)
    settings = {
        "data": {"root": "data"},
        "backbone": {"weights": "random:0"},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": tasks,
        "knn": {"k": [3], "features": "cls"},
        "split": {"folds": 3, "allow": ["duplicates", "near-duplicates"]},
    }
    (root / "data").mkdir()
    (root / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root / "c.yaml"


def test_odd_names_are_text(config: Path, tmp_path: Path) -> None:
    settings = load_config(config)
    assert list(settings.tasks) == ODD
    results = evaluate(settings, ["knn"])
    text = io.StringIO()
    show_results(PlainConsole(file=text, width=120), results)
    printed = text.getvalue()
    assert not {"\x1b", "\x07", "\x0b"} & set(printed)
    for shown in ("l[/x][red]", r"$\badmacro{$", "a\\x0bb\\x1b[31m", "two\\nlines", CODE):
        assert shown in printed
    assert [each.cached for each in evaluate(settings, ["knn"])] == [True] * len(ODD)

    figures = tmp_path / "figures"
    write_report([config], tmp_path / "r.html", figures)
    page = (tmp_path / "r.html").read_text()
    assert "<script>document" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    curves = [path.name for path in figures.glob("*-curves.svg")]
    assert len(curves) == sum("/" not in name for name in ODD)  # what has one is a shortcut
    assert not [path for path in tmp_path.rglob("*") if not path.resolve().is_relative_to(tmp_path)]
    inside = {path.parent.name for path in settings.store.rglob("*.json")}
    assert inside <= {
        "splits",
        "results",
        "store",
        "parts",
        "features.zarr",
        "status",
        "mean",
        "cls",
        "file_digest",
        "pixel_digest",
    }
