"""Python processes without the seconds that their imports take: forked from one that has them.

`python -m tests.warm FD` is that one: it imports what a command would, and forks a process for each
request that comes over the connection. The process becomes what `python -c CODE ARGUMENTS` would
be: it has its own environment, working directory, streams and end, and whoever kills it kills it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
# Libraries alone: what a process changes of this project, it changes as it imports it.
LIBRARIES = (
    "distributed",
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "pydicom",
    "rich.progress",
    "scipy.stats",
    "sklearn.linear_model",
    "torch",
    "transformers.models.dinov2.modeling_dinov2",
    "typer",
    "yaml",
    "zarr",
)
_REQUEST_BYTES = 2**18


class WarmProcess:
    """A process as `subprocess.Popen` would have it, of those of its methods that tests use."""

    def __init__(
        self, code: str, *arguments: str, environment: Mapping[str, str], log: Path | None = None
    ) -> None:
        """Start `python -c CODE ARGUMENTS` in the root of the repository.

        log: the file that output is added to; without one, `stdout` and `stderr` read it.
        """
        self.args = [code, *arguments]
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outputs = self._log(log) if log else self._pipes()
        request = {"code": code, "arguments": arguments, "environment": dict(environment)}
        socket.send_fds(_server(), [json.dumps(request).encode()], [*outputs, theirs.fileno()])
        for output in outputs:
            os.close(output)
        theirs.close()
        self.pid = int(self._status.recv(64))

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all output, wait for the end, and return both. Raises subprocess.TimeoutExpired."""
        texts = ["", ""]

        def read(i: int, stream: IO[str]) -> None:
            with stream:
                texts[i] = stream.read()

        streams = [(i, s) for i, s in enumerate((self.stdout, self.stderr)) if s and not s.closed]
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = int(self._status.recv(64))
        self._status.close()

    def _log(self, path: Path) -> list[int]:
        return [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for _ in range(2)]

    def _pipes(self) -> list[int]:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        return [out_end, err_end]


@cache
def _server() -> socket.socket:
    """Return the connection to the process that forks, which is started the first time."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


# --- the process that forks, from here ------------------------------------------------------------


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request, and tell how each ended, until the connection ends.

    Returns None then; in a forked process, its request.
    """
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the process, who waits for it
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != control.fileno():
                poll.unregister(ready)
                pid, status = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(status, code)
                status.close()
                continue
            message, descriptors, _, _ = socket.recv_fds(control, _REQUEST_BYTES, 3)
            if not message:
                return None
            out, err, status_fd = descriptors
            pid = os.fork()
            if pid == 0:
                control.close()
                for descriptor, (_, status) in running.items():
                    os.close(descriptor)
                    status.close()
                os.dup2(out, 1)
                os.dup2(err, 2)
                for descriptor in descriptors:
                    os.close(descriptor)
                return dict(json.loads(message))
            os.close(out)
            os.close(err)
            status = socket.socket(fileno=status_fd)
            _tell(status, pid)
            handle = os.pidfd_open(pid)
            running[handle] = (pid, status)
            poll.register(handle, select.POLLIN)


def _tell(status: socket.socket, number: int) -> None:
    try:
        status.send(str(number).encode())
    except BrokenPipeError:
        return  # nobody waits for it any more


def main() -> None:
    """Import, serve, and become what was asked for."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        for name in LIBRARIES:
            importlib.import_module(name)
        request = serve(control)
    if request is None:
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
