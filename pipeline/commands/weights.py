"""Networks' weights: which are known, which are here, and how they get here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from pipeline.commands.common import JsonOpt, busy, out
from pipeline.commands.printing import print_line

app = typer.Typer()
weights = typer.Typer(
    help="List, fetch, add and check the weights of networks.", no_args_is_help=True
)
app.add_typer(weights, name="weights")


@weights.command("list", epilog="Example: radprobe weights list")
def list_(as_json: JsonOpt = False) -> None:
    """List the known networks, and which are here."""
    from pipeline.backbones.registry import known
    from pipeline.backbones.weights import weights_folder

    every = known()
    if as_json:
        print(json.dumps([asdict(each) for each in every], indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "numbers a token", "registers", "about", "licence", "sha256", "here"):
        table.add_column(column, no_wrap=column != "here", overflow="fold")
    for each in every:
        about = (str(each.dim), str(each.registers), f"{each.megabytes:,} MB")
        table.add_row(each.name, *about, each.licence, each.sha256, each.file or "no")
    out.print(table)
    out.print(f"The folder of weights is {weights_folder()} (RADPROBE_WEIGHTS).", soft_wrap=True)


@weights.command(epilog="Example: radprobe weights fetch dinov2_vits14")
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `radprobe weights list`.")],
    mirror: Annotated[
        str | None, typer.Option("--from", help="Another address of the file.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Download a network's official file into the folder of weights, and check it."""
    from pipeline.backbones.registry import fetch

    with busy("downloading"):
        fetched = fetch(name, mirror)
    _print_checked(fetched, as_json)


@weights.command(epilog="Example: radprobe weights add ~/Downloads/dinov2_vits14_pretrain.pth")
def add(
    file: Annotated[Path, typer.Argument(help="A .pth or .safetensors file.")],
    as_json: JsonOpt = False,
) -> None:
    """Check a file of weights strictly and take it into the folder under its official name."""
    from pipeline.backbones.registry import add

    _print_checked(add(file), as_json)


@weights.command(epilog="Example: radprobe weights check dinov2_vits14")
def check(
    names: Annotated[list[str] | None, typer.Argument(help="All that are here, if none.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Load the weights that are here, and hold them against the checksums they came with."""
    from pipeline.backbones.registry import check

    with busy("checking"):
        every = list(check(names or []))
    if as_json:
        print(json.dumps([asdict(each) for each in every], indent=1))
    else:
        for each in every:
            verdict = each.fault or f"ok, sha256 {each.sha256}"
            print_line(out, f"{each.name}: {verdict}")
        if not every:
            out.print("No weights are here. `radprobe weights list` says where they would be.")
    if not every or any(each.fault for each in every):
        raise typer.Exit(1)


def _print_checked(done: object, as_json: bool) -> None:
    from pipeline.backbones.registry import Checked

    assert isinstance(done, Checked)
    if as_json:
        print(json.dumps(asdict(done), indent=1))
    else:
        print_line(out, f"{done.name} is {done.file}, sha256 {done.sha256}.")
