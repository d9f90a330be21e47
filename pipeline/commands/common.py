"""What all commands share: where they print, and the arguments that mean the same everywhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Self

import typer

from pipeline.commands.printing import PlainConsole, print_line
from pipeline.shared.steps import listening_to_steps
from pipeline.shared.texts import count

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
_A_STORE = "The folder of a store, its URL, or the config that names it."
StorePath = Annotated[Path, typer.Argument(help=_A_STORE, callback=store_of)]
# As it was given: for commands to which it matters whether that was a config.
StoreOrConfig = Annotated[Path, typer.Argument(help=_A_STORE, metavar="STORE")]
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


# Where no terminal shows a bar, a line so often says how far a run is.
_LINE_EVERY_S = 60.0


class MinuteLines:
    """How far long work is, on stderr, a line a minute: for logs, which have no bar that moves.

    what: the work, which is named where no step of it is known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, what: str = "") -> None:
        self._clock = clock
        self._what = what
        self._told = ""
        self._began = self._last = clock()

    @property
    def is_due(self) -> bool:
        """Whether the last line is a minute old; then the next is as far away again."""
        now = self._clock()
        if now - self._last < _LINE_EVERY_S:
            return False
        self._last = now
        return True

    def tell(self, what: str, done: int, of: int) -> None:
        """Say that so many of something are done, where a line is due."""
        self._told = f"{what}: {done:,} of {of:,}."
        self.repeat()

    def repeat(self) -> None:
        """Say how far it is, where a line is due."""
        if self.is_due:
            print_line(err, self.text)

    @property
    def text(self) -> str:
        """How far it is, or for how long it has been at work."""
        return self._told or f"{self._what}: {duration(self._clock() - self._began)} so far."

    @contextmanager
    def watched(self) -> Iterator[Self]:
        """Have a line told of each minute of what works within, also while it makes no step."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_LINE_EVERY_S):
                self.repeat()

        teller = threading.Thread(target=repeat, daemon=True)
        teller.start()
        try:
            yield self
        finally:
            ended.set()
            teller.join()


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return count(round(seconds), "second")
    if seconds < 90 * 60:
        return count(round(seconds / 60), "minute")
    return f"{seconds / 3600:.2g} hours"


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show what a command is at and for how long, and the steps of what works within.

    Where stderr is no terminal, a line a minute. Nothing may be printed meanwhile.
    """
    if not err.is_terminal:
        with (
            MinuteLines(what=what).watched() as lines,
            listening_to_steps(lambda steps, done, of: lines.tell(f"{what}, {steps}", done, of)),
        ):
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

        def tell(steps: str, done: int, of: int) -> None:
            shown.update(line, description=f"{what}, {done} of {of} {steps}")

        with listening_to_steps(tell):
            yield
