"""The command line: exit codes, errors as one message, interrupts.

Only `python -m radprobe` imports it.

Exit codes: 0 success; 1 a finding (images that could not be read, ...); 2 wrong usage or config;
70 a fault of radprobe itself; 130 and 143 interrupted, with a store that resumes. `--debug`,
anywhere on the line, shows where an error came from.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command_name, get_group
from typer.models import CommandInfo, TyperInfo

from pipeline.commands import (
    benchmark,
    cluster,
    datasets,
    demo,
    doctor,
    evaluation,
    extract,
    models,
    report,
    store,
    weights,
)
from pipeline.commands.common import err
from pipeline.commands.printing import print_line, print_lines
from pipeline.shared.interruption import end_if_told, end_in_order, left_behind, pass_over
from pipeline.shared.private import without_files
from pipeline.shared.texts import printable
from stores.errors import RadprobeError, TooManyBadError

DEBUG = "--debug"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What people type who know other tools, and what it is called here.
_CALLED_HERE = {
    "embed": "`radprobe extract CONFIG` embeds every slice once",
    "features": "`radprobe extract CONFIG` makes features, and `radprobe export` writes them out",
    "train": "`radprobe fit` makes a model of an answer, `radprobe tune` trains the network itself",
    "test": "`radprobe evaluate CONFIG` scores every task on its test patients",
    "score": "`radprobe evaluate CONFIG` scores every task on its test patients",
    "infer": "`radprobe predict MODEL FOLDER` says what a model makes of new images",
    "classify": "`radprobe predict MODEL FOLDER` says what a model makes of new images",
}


class _Making(Mapping[str, Any]):
    """The commands by their names, each made once it is first asked for.

    A line asks for one, and to make all of them takes longer than many of them take to run.
    """

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], Any]] = {}

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Add a command, and what makes it."""
        self._makers[name] = functools.cache(make)

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


_COMMANDS = _Making()


class _Commands(TyperGroup):
    """The commands by their names, and by those of other tools the way to ours."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _COMMANDS  # type: ignore[assignment]  # none is added any more

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command of a line. Fails where there is none."""
        if args[0] in _CALLED_HERE:
            ctx.fail(f"No such command '{args[0]}': {_CALLED_HERE[args[0]]}.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="radprobe",
    cls=_Commands,
    help="Embed a radiology collection once with DINOv2, then ask the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Every command has --help with an example. --debug, anywhere on the line, shows where "
    "an error came from. --install-completion makes the shell complete commands and options.",
)
# The groups of `radprobe --help`, each with the modules whose commands stand in it.
_GROUPS = {
    "Embed": (extract,),
    "Ask": (evaluation,),
    "Models": (models,),
    "Look": (report, benchmark),
    "Keep": (store,),
    "Scale": (cluster,),
    "Prepare": (weights, datasets, demo, doctor),
}


def _add_commands(title: str, of: typer.Typer) -> None:
    """Add what a module has of commands, and of groups of them, to `_COMMANDS`."""
    for command in of.registered_commands:
        command.rich_help_panel = title
        assert command.callback is not None
        name = command.name or get_command_name(command.callback.__name__)
        _COMMANDS.add(name, functools.partial(_made, name, commands=[command]))
    for group in of.registered_groups:
        group.rich_help_panel = title
        assert group.name is not None
        _COMMANDS.add(group.name, functools.partial(_made, group.name, groups=[group]))


def _made(
    name: str, *, commands: Sequence[CommandInfo] = (), groups: Sequence[TyperInfo] = ()
) -> Any:
    """Return what typer makes of one command, or of one group of them."""
    alone = typer.Typer(rich_markup_mode=app.rich_markup_mode)
    alone.registered_commands += commands
    alone.registered_groups += groups
    return get_group(alone).commands[name]


for title, modules in _GROUPS.items():
    for module in modules:
        _add_commands(title, module.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"radprobe {version('radprobe')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version, and end.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; an error becomes one message, and with --debug a traceback too."""
    # Or pydantic opens every installed package's metadata in search of plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    handler = _Handler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # A library's warning quotes what it found in a file: a name, a date of birth.
    warnings.showwarning = _show_warning
    end_in_order(*_SIGNALS, say=_say_interrupted)
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        app(arguments, prog_name="radprobe")
    except Exception as error:
        end_if_told()
        if len(arguments) < len(sys.argv) - 1:
            print_lines(err, _traceback(error))
        code, message = _code_and_message(error)
        print_line(err, f"radprobe: {without_files(message)}", style="red")
        sys.exit(code)
    finally:
        pass_over(*_SIGNALS)  # Python's own end comes now
    sys.exit(0)


def _code_and_message(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    if isinstance(error, RadprobeError):
        return 1 if isinstance(error, TooManyBadError) else 2, str(error)
    if isinstance(error, MemoryError):
        return (
            2,
            "The memory is used up. Take fewer --workers, a smaller --batch-size or image_size.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return (
            2,
            f"{error.filename!r} cannot be used: {error.strerror}. Check the path and its rights.",
        )
    kind = type(error).__name__
    # Not its words, which may quote a cell or a name.
    return 70, f"A fault of radprobe: {kind}. {DEBUG} says where; please report it."


class _Handler(logging.Handler):
    """Writes to standard error as it is now: a bar that is shown there makes room for the line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record."""
        print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    """Logs a message without control characters, and without names of files of the collection."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(without_files(super().format(record)))


def _show_warning(
    message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    """Tell of a library's warning by its kind alone."""
    logging.getLogger(__name__).info("A warning of a library: %s", category.__name__)


def _traceback(error: BaseException) -> Iterator[str]:
    """Yield the lines that say where an error came from, the first cause first.

    Of errors that are not radprobe's, only the kind is told: their words may quote what was read.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _traceback(cause)
        yield ""
        yield "which led to:"
    yield "Traceback (most recent call last):"
    for lines in traceback.format_tb(error.__traceback__):
        yield lines.rstrip("\n")
    words = f": {without_files(str(error))}" if isinstance(error, RadprobeError) else ""
    yield f"{type(error).__module__}.{type(error).__qualname__}{words}"


def _say_interrupted() -> None:
    """Say what an interruption leaves: claims are given back on the way out."""
    print_line(err, f"Interrupted. {left_behind()}")
