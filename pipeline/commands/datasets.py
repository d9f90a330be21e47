"""Check a public data set's folder, and write the config that describes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import JsonOpt, busy, out
from pipeline.commands.printing import print_lines

if TYPE_CHECKING:
    from pipeline.datasets.describing import Described

app = typer.Typer()


@app.command(epilog="Example: radprobe dataset montgomery ~/MontgomerySet --out montgomery")
def dataset(
    name: Annotated[str | None, typer.Argument(help="Which; without one, all are listed.")] = None,
    folder: Annotated[Path | None, typer.Argument(help="The unpacked download.")] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Where config, labels and split are written.")
    ] = None,
    paper_split: Annotated[
        bool,
        typer.Option(
            "--paper-split",
            help="Deal the split by the rule of arXiv 2312.02366, where it has one.",
        ),
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Check a public data set as it was downloaded, and write a config that is ready to extract."""
    from stores.errors import ConfigError

    if name is None:
        _list(as_json)
        return
    if folder is None or to is None:
        raise ConfigError("Name the data set, its FOLDER and --out, where its config is written.")
    from pipeline.datasets.describing import describe

    with busy("counting files"):
        described = describe(name, folder, to, paper_split=paper_split)
    if as_json:
        shown = asdict(described) | {"config": str(described.config), "full": described.full}
        print(json.dumps(shown, indent=1))
    else:
        _print_described(described)
    if not described.full:
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    """Print the data sets that are known, and what each is looked for as."""
    from rich import box
    from rich.table import Table

    from pipeline.datasets.known import DATASETS

    if as_json:
        rows = {
            name: {"title": each.title, "source": each.source, "layout": each.layout}
            | {"published": dict(each.published), "unverified": each.unverified}
            for name, each in DATASETS.items()
        }
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "data set", "published", "is looked for as"):
        table.add_column(column, overflow="fold")
    for name, each in DATASETS.items():
        counts = ", ".join(f"{n:,} {what}" for what, n in each.published.items())
        table.add_row(name, each.title, counts, each.layout)
    out.print(table)


def _print_described(described: Described) -> None:
    """Print what is in a folder beside what was published, and what to do next."""
    lines = [f"{described.name}: {described.images} labelled files or folders."]
    for count in described.counts:
        if count.published is None:
            lines.append(f"{count.got:,} {count.what}.")
        elif count.full:
            lines.append(f"{count.got:,} {count.what}, as published.")
        else:
            lines.append(
                f"Not the full set: got {count.got:,} {count.what}, published {count.published:,}."
            )
    lines += [f"Note: {note}." for note in described.notes]
    if described.kept:
        lines.append(f"{described.config} was there and is left as it is; its tables are new.")
    lines.append(f"Next: radprobe extract {described.config}")
    print_lines(out, lines)
