"""The command line: exit codes, errors as one message, interrupts. Nothing imports it.

Exit codes: 0 success; 1 a finding (images that could not be read, ...); 2 wrong usage or config;
130 and 143 interrupted, with a store that resumes.
"""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from pipeline.commands import answering, demo, doctoring, extracting, keeping, reporting, scaling
from pipeline.commands.common import err
from stores.errors import RadprobeError, TooManyBadError

app = typer.Typer(
    name="radprobe",
    help="Embed a radiology collection once with DINOv2, then ask the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (extracting, scaling, answering, reporting, keeping, demo, doctoring):
    app.add_typer(group.app)


def main() -> NoReturn:
    """Run the command line; our own errors become one message and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        app()
    except RadprobeError as error:
        err.print(f"radprobe: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, TooManyBadError) else 2)
    sys.exit(0)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """End on Ctrl-C and SIGTERM: claims are given back on the way out, finished parts stay."""
    err.print("Interrupted. What was committed is kept; the same command goes on from there.")
    sys.exit(128 + number)
