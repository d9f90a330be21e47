"""Data sets by backbones by settings by seeds: plan them, run them, write the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.common import JsonOpt, err, out
from pipeline.commands.printing import RANDOM, print_line, print_lines

if TYPE_CHECKING:
    from pipeline.benchmark.collect import Gathered
    from pipeline.benchmark.run import Outcome, Planned

app = typer.Typer()


@app.command(epilog="Example: radprobe benchmark configs/paper.yaml --plan")
def benchmark(
    file: Annotated[
        Path, typer.Argument(help="The YAML file of data sets, backbones, settings and seeds.")
    ],
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what is there and what is missing; run nothing.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run these cells alone: globs over dataset/backbone/setting/seed."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to embed: auto, cpu, cuda (all GPUs), cuda:1.")
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Slices a forward pass; by the machine if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read files; by the machine if not.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Run every cell that is not on file, and write one table and one page of all that are.

    Killed at any moment, the same command goes on from there. Exits 1 where a cell failed.
    """
    from pipeline.benchmark.run import Outcome, on_file, plan_of, run
    from pipeline.benchmark.settings import absent, cells_of, load_benchmark
    from pipeline.extraction.embed import Speed

    settings = load_benchmark(file)
    cells = cells_of(settings, tuple(only) if only else ("**",))
    for name in absent(settings):
        err.print(f"{name} is left out: there is no {settings.datasets[name]}", soft_wrap=True)
    if plan:
        _show_plan(plan_of(cells), as_json)
        return
    from pipeline.benchmark.page import write_benchmark

    def report(line: str) -> None:
        print_line(err, line)

    ran = run(cells, Speed(device, batch_size, workers), report)
    # The page has all cells, also where --only left some out of this run.
    done = {outcome.cell.name: outcome for outcome in ran}
    every = [
        done.get(cell.name) or Outcome(cell, answers=on_file(cell)) for cell in cells_of(settings)
    ]
    gathered, page = write_benchmark(settings, every)
    if as_json:
        print(json.dumps(_as_json(ran, gathered, page), indent=1))
    else:
        _show(ran, gathered, page)
    if any(outcome.fault for outcome in ran):
        raise typer.Exit(1)


def _as_json(ran: Sequence[Outcome], gathered: Gathered, page: Path) -> dict[str, Any]:
    """Return what --json prints: each cell of this run, and the ranks over all cells."""
    ranking = gathered.ranking
    return {
        "page": str(page),
        "cells": [
            {
                "cell": outcome.cell.name,
                "answers": len(outcome.answers),
                "computed": outcome.computed,
                "embedded": outcome.embedded,
                "seconds": round(outcome.seconds, 3),
                "fault": outcome.fault,
            }
            for outcome in ran
        ],
        "ranks": dict(zip(ranking.names, ranking.mean_ranks, strict=False)),
        "friedman_p": ranking.p,
        "critical_difference": ranking.critical,
    }


def _show(ran: Sequence[Outcome], gathered: Gathered, page: Path) -> None:
    """Print the table of scores, mean ranks, what this run did, and where the page is."""
    from rich import box
    from rich.table import Table

    if gathered.random:
        out.print(RANDOM, style="bold yellow")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("data set", "task", "positive", "setting", "patients", *gathered.columns):
        table.add_column(column, overflow="fold")
    for question, by_backbone in gathered.scores.items():
        shots = "all" if question.shots is None else str(question.shots)
        entries = [by_backbone.get(name) for name in gathered.columns]
        values = [f"{entry.metric.value:.3f}" if entry else "" for entry in entries]
        positive = next(iter(by_backbone.values())).positive
        words = (question.dataset, question.task, positive, question.setting, shots)
        table.add_row(*words, *values)
    out.print(table)
    ranking = gathered.ranking
    ranks = zip(ranking.names, ranking.mean_ranks, strict=False)
    text = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks)
    if ranking.p is not None:
        text += f"; Friedman p = {ranking.p:.2g}, critical difference {ranking.critical:.2f}"
    lines = [f"Mean ranks: {text or ranking.unable}."]
    failed = [outcome for outcome in ran if outcome.fault]
    computed = sum(bool(outcome.computed) for outcome in ran)
    lines.append(
        f"{len(ran)} cells: {computed} computed, {len(ran) - computed - len(failed)} on file, "
        f"{len(failed)} failed; {sum(outcome.embedded for outcome in ran)} slices embedded."
    )
    lines += [f"Failed: {outcome.cell.name}: {outcome.fault}" for outcome in failed]
    lines.append(f"The page is {page}; the tables lie beside it.")
    print_lines(out, lines)


def _show_plan(plan: Sequence[Planned], as_json: bool) -> None:
    """Print what is there and what is missing, a line a store."""
    if as_json:
        print(json.dumps([asdict(each) for each in plan], indent=1))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (
        "data set",
        "store",
        "slices",
        "to embed",
        "hours",
        "cells",
        "on file",
        "hours ",
    ):
        table.add_column(column, justify="left" if column in ("data set", "store") else "right")
    for each in plan:
        counts = (f"{each.slices:,}", f"{each.embed:,}") if not each.fault else ("?", "?")
        cells = (str(each.cells), str(each.answered))
        hours = (_hours(None if each.fault else each.hours), _hours(each.head_hours))
        table.add_row(each.dataset, each.store, *counts, hours[0], *cells, hours[1])
    out.print(table)
    lines = _faults(plan)
    every: list[float | None] = []
    for each in plan:
        every += [each.hours, each.head_hours]
    lines.append(
        f"{sum(each.cells for each in plan)} cells, {sum(each.answered for each in plan)} on file; "
        f"{sum(hours or 0.0 for hours in every):.2f} hours to go, as far as known."
    )
    if None in every:
        lines.append(
            "? is not known: `radprobe doctor CONFIG --bench` measures a network's pace, and heads "
            "are timed by their first answer in the same setting."
        )
    print_lines(out, lines)


def _faults(plan: Sequence[Planned]) -> list[str]:
    """Return what is wrong, each once: weights that are not here are so for every data set."""
    faults: dict[str, dict[str, None]] = {}
    for each in plan:
        if each.fault:
            faults.setdefault(each.fault, {})[f"{each.dataset} by {each.backbone}"] = None
    return [f"{', '.join(stores)}: {fault}" for fault, stores in faults.items()]


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2f}"
