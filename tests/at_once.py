"""Functions called by processes of their own at one and the same moment."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S, until
from tests.warm import WarmProcess

CODE = "import sys; from tests.at_once import call; call(*sys.argv[1:])"


def at_once(function: Callable[..., None], *calls: Sequence[Any]) -> None:
    """Call a function of a module once with each of these arguments; each call must return."""
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start")
        processes = []
        for arguments in calls:
            what = base64.b64encode(pickle.dumps((function, arguments))).decode()
            processes.append(WarmProcess(CODE, what, str(start), environment=os.environ))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has imported what it needs
        start.touch()
        ends = [(process.communicate(PATIENCE_S)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * len(calls), ends


def call(what: str, start: str) -> None:
    """Do a call as soon as the others can: what a process does."""
    function, arguments = pickle.loads(base64.b64decode(what))  # noqa: S301 - of the test itself
    print("ready", flush=True)
    until(Path(start).exists, pause_s=0.001)
    function(*arguments)
