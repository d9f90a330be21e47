"""Extraction by many processes: the script of an array job, and how far a store is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import ConfigArg, JsonOpt, StoreOrConfig, out, store_of
from pipeline.commands.printing import print_line, print_lines

if TYPE_CHECKING:
    from pipeline.extraction.distributed.status import Status

app = typer.Typer()

# Processes at work that are listed; the others are counted.
_SHOWN = 20


@app.command(epilog="Example: radprobe slurm my.yaml --tasks 16 > my.sbatch")
def slurm(
    config: ConfigArg,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks the array has.")] = 8,
    chain: Annotated[
        bool,
        typer.Option(
            "--chain",
            help="Print a script for bash instead, which submits the array, and evaluate and "
            "segment to follow it, as far as the config asks for them.",
        ),
    ] = False,
) -> None:
    """Print a SLURM array script that extracts in shards, to be edited and given to sbatch."""
    from pipeline.config.loading import load_config
    from pipeline.extraction.distributed.slurm import array_script, chain_script
    from stores.storage import storage_of

    # An error shows here, not in each task's log.
    settings = load_config(config)
    storage_of(settings.store).check_shareable()
    if chain:
        steps = {"evaluate": settings.tasks, "segment": settings.masks and settings.segment}
        text = chain_script(config, tasks, [step for step, is_wanted in steps.items() if is_wanted])
    else:
        text = array_script(config, tasks)
    print(text, end="")


@app.command(epilog="Example: watch radprobe status demo/store")
def status(target: StoreOrConfig, as_json: JsonOpt = False) -> None:
    """Say how far a store is: parts done, at work and failed, rate and time left."""
    from pipeline.extraction.distributed.status import Status, status
    from stores.errors import StoreNotFoundError

    store = store_of(target)
    try:
        state = status(store)
    except StoreNotFoundError:
        # A folder may be misspelt; a config says where its store will be.
        if store == target:
            raise
        state = Status.before(store)
    if as_json:
        print(json.dumps(asdict(state), indent=1))
    else:
        _print_status(state)


def _print_status(state: Status) -> None:
    """Print how far a store is: what is done, who is at work, and what failed."""
    if not state.is_there:
        print_line(
            out,
            f"There is no store at {state.store} yet: `radprobe extract` makes it once its network "
            "has loaded.",
        )
        return
    lines = [
        f"{state.slices_done} of {state.slices} slices done, in {state.parts_done} of "
        f"{state.parts} parts."
        if state.slices
        else "No slice is known yet: the collection is looked at first."
    ]
    if state.modalities:
        each = ", ".join(f"{number} {name}" for name, number in state.modalities.items())
        lines.append(f"Slices by modality: {each}.")
    if state.slices_per_s is not None and state.seconds_left is not None:
        left = _duration(state.seconds_left)
        lines.append(f"{state.slices_per_s:.1f} slices/s of late: about {left} left.")
    by = sorted({each.by for each in state.running})
    for name in by[:_SHOWN]:
        claims = [each for each in state.running if each.by == name]
        parts = ", ".join(str(each.part) for each in claims)
        # The oldest claim, and the newest sign of life: a process has one, whatever it is at.
        since = _duration(max(each.for_s for each in claims))
        silent = _duration(min(each.silent_s for each in claims))
        lines.append(f"{name}: at part {parts} for {since}, last sign of life {silent} ago")
    if len(by) > _SHOWN:
        lines.append(f"and {len(by) - _SHOWN} more processes at work")
    if state.writer is not None:
        since = _duration(state.writer.for_s)
        silent = _duration(state.writer.silent_s)
        lines.append(f"{state.writer.by} writes there for {since}, last sign of life {silent} ago")
    if state.parts_done < state.parts and not (state.running or state.writer):
        lines.append("Nobody is at it: `radprobe extract` goes on.")
    lines += [f"part {each.part} failed: {each.reason}" for each in state.failed]
    print_lines(out, lines)


def _duration(seconds: float) -> str:
    """Return a duration in words: 41 s, 12 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
