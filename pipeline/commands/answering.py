"""Ask a store: scores of every task, nearest studies, stores side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from pipeline.commands.common import ConfigArg, JsonOpt, StoreOpt, StorePath, out
from pipeline.commands.show import show_differences, show_hits, show_results
from stores.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.questions import Level, Method


app = typer.Typer()


@app.command(epilog="Example: radprobe evaluate configs/demo.yaml --json")
def evaluate(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Answer every task of the config from the store: kNN, logistic probe and few-shot."""
    _answer(config, store, ("knn", "probe", "fewshot"), as_json)


@app.command(epilog="Example: radprobe knn configs/demo.yaml")
def knn(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Score each test case by its nearest neighbours among the training cases."""
    _answer(config, store, ("knn",), as_json)


@app.command(epilog="Example: radprobe probe configs/demo.yaml")
def probe(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Fit a logistic regression on the training cases and score the test cases."""
    _answer(config, store, ("probe",), as_json)


@app.command(epilog="Example: radprobe fewshot configs/demo.yaml")
def fewshot(config: ConfigArg, store: StoreOpt = None, as_json: JsonOpt = False) -> None:
    """Score nearest centroids of a few patients a class, over many episodes."""
    _answer(config, store, ("fewshot",), as_json)


@app.command(epilog="Example: radprobe search configs/demo.yaml ct/0042 --k 5")
def search(
    config: ConfigArg,
    query: Annotated[str, typer.Argument(help="A row, a path of the collection, a pseudonym.")],
    k: Annotated[int, typer.Option(min=1, help="How many neighbours.")] = 10,
    level: Annotated[str, typer.Option(help="image, series, study or patient.")] = "series",
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Find the nearest series of a slice, file, folder or patient; its own patient is left out."""
    from pipeline.config import load_config
    from pipeline.search import is_random, search

    settings = load_config(config, store)
    hits = search(settings, query, k=k, level=_level(level))
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
    else:
        show_hits(out, hits, is_random(settings))


@app.command(epilog="Example: radprobe compare stores/vits14 stores/vitb14")
def compare(
    first: StorePath,
    second: StorePath,
    as_json: JsonOpt = False,
) -> None:
    """Say what the second store scores above the first, on tasks that both have answered."""
    from pipeline.compare import compare_stores

    found = compare_stores(first, second)
    if as_json:
        rows = [
            {"task": result.task, "method": result.method, **difference.model_dump(mode="json")}
            for result, differences in found
            for difference in differences
        ]
        print(json.dumps(rows, indent=1))
    else:
        show_differences(out, found)


def _level(name: str) -> Level:
    """Return a level by name."""
    from pipeline.questions import Level

    known: tuple[Level, ...] = get_args(Level)
    for level in known:
        if level == name:
            return level
    raise ConfigError(f"--level must be one of {', '.join(known)}. Got {name!r} instead.")


def _answer(config: Path, store: Path | None, methods: Sequence[Method], as_json: bool) -> None:
    from pipeline.config import load_config
    from pipeline.evaluate import evaluate

    results = evaluate(load_config(config, store), methods)
    if as_json:
        print(json.dumps([result.model_dump(mode="json") for result in results], indent=1))
    else:
        show_results(out, results)
