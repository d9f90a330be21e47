"""`python -c CODE ARGUMENTS` by the process that forks, for who must start a program by its path.

Written for a Python of the standard library alone, so that it costs little itself. SIGTERM goes on
to the process; what it ends with, this one ends with.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Have the process forked, and end as it does."""
    spec = importlib.util.spec_from_file_location("warm", Path(__file__).with_name("warm.py"))
    assert spec is not None
    assert spec.loader is not None
    warm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(warm)
    code, *arguments = sys.argv[sys.argv.index("-c") + 1 :]
    connection = warm.connect()
    warm.send(connection, code, arguments, os.environ, Path.cwd(), [0, 1, 2])
    number = int(connection.recv(64))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(number, signal.SIGTERM))
    for stream in (0, 1):
        os.close(stream)  # the other end sees what the process does with its own
    ended = int(connection.recv(64))
    if ended < 0:
        os.kill(os.getpid(), -ended)
    sys.exit(ended)


if __name__ == "__main__":
    main()
