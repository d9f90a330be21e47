"""What all commands share: where they print, and the arguments that mean the same everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.printing import PlainConsole
from pipeline.shared.epochs import listening_to_epochs

# Where no terminal says its width, tables keep their lines whole.
out = PlainConsole(width=None if sys.stdout.isatty() else 120)
err = PlainConsole(stderr=True)


def store_of(path: Path) -> Path:
    """Return the store that a path names; of a config, which is a file, its store."""
    if not path.is_file():
        return path
    from pipeline.config.loading import load_config  # not needed where a store is named

    return load_config(path).store


ConfigArg = Annotated[Path, typer.Argument(help="The YAML file that names data, store and tasks.")]
StorePath = Annotated[
    Path,
    typer.Argument(
        help="The folder of a store, its URL, or the config that names it.", callback=store_of
    ),
]
RehashOpt = Annotated[
    bool, typer.Option("--rehash", help="Open every file, whatever its size and time say.")
]
StoreOpt = Annotated[
    Path | None, typer.Option(help="Use this store, a folder or a URL, instead of the config's.")
]
PathsOpt = Annotated[
    bool,
    typer.Option("--paths", help="Name files by their real paths, which may name patients."),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show what a command is at and for how long, and the epochs of what trains within.

    Silent where stderr is no terminal. Nothing may be printed meanwhile.
    """
    if not err.is_terminal:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as shown:
        line = shown.add_task(what, total=None)

        def tell(done: int, of: int) -> None:
            shown.update(line, description=f"{what}, {done} of {of} epochs")

        with listening_to_epochs(tell):
            yield
