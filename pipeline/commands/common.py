"""What all commands share: where they print, and the arguments that mean the same everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.printing import PlainConsole

# Where no terminal says its width, tables keep their lines whole.
out = PlainConsole(width=None if sys.stdout.isatty() else 120)
err = PlainConsole(stderr=True)

ConfigArg = Annotated[Path, typer.Argument(help="The YAML file that names data, store and tasks.")]
StorePath = Annotated[Path, typer.Argument(help="The folder of a store, or its URL.")]
RehashOpt = Annotated[
    bool, typer.Option("--rehash", help="Open every file, whatever its size and time say.")
]
StoreOpt = Annotated[
    Path | None, typer.Option(help="Use this store, a folder or a URL, instead of the config's.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
