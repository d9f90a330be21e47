"""The command line: exit codes, errors as one message, interrupts. Nothing imports it.

Exit codes: 0 success; 1 a finding (images that could not be read, ...); 2 wrong usage or config;
70 a fault of radprobe itself; 130 and 143 interrupted, with a store that resumes. `--debug`,
anywhere on the line, shows where an error came from.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

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
from pipeline.commands.printing import print_line
from stores.errors import RadprobeError, TooManyBadError

DEBUG = "--debug"

app = typer.Typer(
    name="radprobe",
    help="Embed a radiology collection once with DINOv2, then ask the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Every command has --help with an example. --debug, anywhere on the line, shows where "
    "an error came from. --install-completion makes the shell complete commands and options.",
)
for group in (
    extract,
    cluster,
    evaluation,
    models,
    report,
    store,
    weights,
    datasets,
    benchmark,
    demo,
    doctor,
):
    app.add_typer(group.app)


def _print_version(asked: bool) -> None:
    if asked:
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
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        app(arguments, prog_name="radprobe")
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        code, message = _code_and_message(error)
        print_line(err, f"radprobe: {message}", style="red")
        sys.exit(code)
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
            f"{error.filename} cannot be used: {error.strerror}. Check the path and its rights.",
        )
    kind = type(error).__name__
    return 70, f"A fault of radprobe: {kind}: {error}. {DEBUG} says where; please report it."


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """End on Ctrl-C and SIGTERM: claims are given back on the way out, finished parts stay."""
    err.print("Interrupted. What was committed is kept; the same command goes on from there.")
    sys.exit(128 + number)
