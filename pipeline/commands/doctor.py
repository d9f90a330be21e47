"""Look at the machine: what is missing on it, how fast it is, how far its numbers drift."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.common import JsonOpt, StoreOpt, err, out
from pipeline.commands.printing import RANDOM, print_line, print_lines

if TYPE_CHECKING:
    from pipeline.config.root import Config
    from pipeline.doctor.checks import Check
    from pipeline.studies.compression import Fidelity

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@app.command(
    epilog="Examples: radprobe doctor; radprobe doctor configs/demo.yaml --bench; "
    "radprobe doctor configs/demo.yaml --drift"
)
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A config, for its weights, its network and its disk.")
    ] = None,
    bench: Annotated[
        bool,
        typer.Option(
            "--bench", help="Measure network, reading and writing, for `plan`, `extract`."
        ),
    ] = False,
    drift: Annotated[
        bool,
        typer.Option("--drift", help="Tell how features move by batch, precision and device."),
    ] = False,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability", help="Tell how features move by noise, turns, JPEG: their ICC."
        ),
    ] = False,
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="Tell what patch tokens lose as float16, int8 or pooled: cosine, Dice.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="For what is measured: auto, cpu, cuda:1.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether --bench tries torch.compile.")
    ] = True,
    store: StoreOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Say what is missing on this machine, and what to do about it. Exits 1 on a failure."""
    from pipeline.config.loading import load_config
    from pipeline.doctor.examine import examine
    from pipeline.extraction.recipes import check_sees_slices
    from stores.errors import ConfigError

    settings = None if config is None else load_config(config, store)
    measured = bench or drift or stability or fidelity
    if measured and settings is None:
        raise ConfigError(
            "--bench, --drift, --stability and --fidelity need a CONFIG: the network and images "
            "to measure."
        )
    if settings is not None and measured:
        if drift or stability or fidelity:
            # Before the head of a table.
            check_sees_slices(settings, "Measuring how features move")
        if bench:
            _bench(settings, device, compiled, as_json)
        if drift:
            _drift(settings, device, as_json)
        if stability:
            _stability(settings, device, as_json)
        if fidelity:
            _fidelity(settings, device, as_json)
        return
    checks = []
    for check in examine(settings):
        checks.append(check)
        if not as_json:
            _print_check(check)
    failed = any(check.level == "failure" for check in checks)
    if as_json:
        print(json.dumps({"ready": not failed, "checks": [asdict(c) for c in checks]}, indent=1))
    if failed:
        raise typer.Exit(1)


def _print_check(check: Check) -> None:
    out.print(f"{check.level:<8}", style=_STYLES[check.level], end="")
    print_line(out, f"{check.name}: {check.found}")
    if check.level != "ok":
        print_lines(out, [f"        {line}" for line in check.remedy.splitlines()])


def _bench(config: Config, device: str, compiled: bool, as_json: bool) -> None:
    """Measure network, reading and writing; a line as soon as each is known."""
    from pipeline.inference.speed import sleep_while_waiting

    sleep_while_waiting()  # before torch is imported
    from pipeline.studies.speed import bench

    # With --json, stdout has one document and nothing else.
    console = err if as_json else out

    def report(line: str) -> None:
        print_line(console, line)

    measured = bench(config, device, compiled=compiled, report=report)
    if as_json:
        print(measured.model_dump_json(indent=1))
    else:
        report(
            f"On {measured.card}, {measured.cores} cores. Kept for `radprobe plan` and `extract`."
        )


def _drift(config: Config, device: str, as_json: bool) -> None:
    """Print how far features move by batch, precision and device."""
    from pipeline.studies.precision import drift

    head = (
        "Against float32, batch 1, cpu: cosine of CLS tokens, nearest neighbours.",
        f"{'device':<8}{'precision':<11}{'batch':>6}{'min':>11}{'mean':>11}{'moved':>8}",
    )
    lines = (
        (
            one,
            f"{one.device:<8}{one.precision:<11}{one.batch_size:>6}{one.cosine_min:>11.7f}"
            f"{one.cosine_mean:>11.7f}{one.moved:>8.1%}  of the {one.k} nearest",
        )
        for one in drift(config, device=device)
    )
    _print_measured(head, lines, as_json)


def _stability(config: Config, device: str, as_json: bool) -> None:
    """Print how far features move when images are seen otherwise."""
    from pipeline.studies.stability import stability

    head = (
        "Against the slices as they are: ICC(A,1) of the numbers of CLS tokens, cosine.",
        f"{'view':<28}{'median ICC':>11}{'5th pct':>9}{'cosine':>9}{'moved':>8}",
    )
    lines = (
        (
            one,
            f"{one.view:<28}{one.icc:>11.3f}{one.icc_low:>9.3f}{one.cosine_mean:>9.4f}"
            f"{one.moved:>8.1%}  of the {one.k} nearest",
        )
        for one in stability(config, device=device)
    )
    _print_measured(head, lines, as_json)


def _fidelity(config: Config, device: str, as_json: bool) -> None:
    """Print what patch tokens lose by each way to store them."""
    from pipeline.extraction.recipes import make_recipe
    from pipeline.studies.compression import fidelity

    tasks = list(config.masks)
    columns = f"{'kept as':<18}{'bytes a slice':>14}{'cosine':>10}{'least':>10}"
    columns += "".join(f"{task:>18}" for task in tasks)
    head: tuple[str, ...] = (
        "Against float32: cosine of patch tokens; Dice of a linear head on them, and what it lost.",
        columns,
    )
    if make_recipe(config)[0].random:
        head = (RANDOM, *head)
    lines = ((one, _fidelity_line(one, tasks)) for one in fidelity(config, device=device))
    _print_measured(head, lines, as_json)


def _fidelity_line(one: Fidelity, tasks: Sequence[str]) -> str:
    line = f"{one.way:<18}{one.bytes:>14,}{one.cosine_mean:>10.5f}{one.cosine_least:>10.5f}"
    for task in tasks:
        line += f"{one.dice[task]:>10.4f} {one.lost[task]:>+7.4f}"
    return line


def _print_measured(head: tuple[str, ...], lines: Iterable[tuple[Any, str]], as_json: bool) -> None:
    """Print measurements, each as soon as it is there, or all of them as one JSON document."""
    if as_json:
        print(json.dumps([asdict(one) for one, _ in lines], indent=1))
        return
    for line in head:
        out.print(line)
    for _, line in lines:
        out.print(line, highlight=False)
