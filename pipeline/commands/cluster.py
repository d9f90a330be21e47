"""Extraction by many processes: the script of an array job, and how far a store is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import ConfigArg, JsonOpt, StorePath, out

if TYPE_CHECKING:
    from pipeline.extraction.distributed.status import Status

app = typer.Typer()

# Processes at work that are listed; the others are counted.
_SHOWN = 20


@app.command(epilog="Example: radprobe slurm my.yaml --tasks 16 > my.sbatch")
def slurm(
    config: ConfigArg,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks the array has.")] = 8,
) -> None:
    """Print a SLURM array script that extracts in shards, to be edited and given to sbatch."""
    from pipeline.config.loading import load_config
    from pipeline.extraction.distributed.slurm import array_script
    from stores.storage import storage_of

    # An error is told here, not by each task.
    storage_of(load_config(config).store).check_shareable()
    print(array_script(config, tasks), end="")


@app.command(epilog="Example: watch radprobe status demo/store")
def status(store: StorePath, as_json: JsonOpt = False) -> None:
    """Say how far a store is: parts done, at work and failed, rate and time left."""
    from pipeline.extraction.distributed.status import status

    found = status(store)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    lines = [
        f"{found.slices_done} of {found.slices} slices done, in {found.parts_done} of "
        f"{found.parts} parts."
    ]
    if found.slices_per_s is not None and found.seconds_left is not None:
        left = _told(found.seconds_left)
        lines.append(f"{found.slices_per_s:.1f} slices/s of late: about {left} left.")
    by = sorted({each.by for each in found.running})
    for name in by[:_SHOWN]:
        held = [each for each in found.running if each.by == name]
        parts = ", ".join(str(each.part) for each in held)
        lines.append(
            f"{name}: at part {parts} for {_told(max(each.for_s for each in held))}, "
            f"last sign of life {_told(min(each.silent_s for each in held))} ago"
        )
    if len(by) > _SHOWN:
        lines.append(f"and {len(by) - _SHOWN} more processes at work")
    if found.writer is not None:
        lines.append(
            f"{found.writer.by} writes there for {_told(found.writer.for_s)}, last sign of life "
            f"{_told(found.writer.silent_s)} ago"
        )
    if found.parts_done < found.parts and not (found.running or found.writer):
        lines.append("Nobody is at it: `radprobe extract` goes on.")
    lines += [f"part {each.part} failed: {each.reason}" for each in found.failed]
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _told(seconds: float) -> str:
    """Return a duration in words: 41 s, 12 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
