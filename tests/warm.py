"""Python processes without the seconds that their imports take: forked from one that has them.

`python -m tests.warm SOCKET OWNER READY LIBRARIES...` is that one: it imports what a command would,
and forks a process for each connection, which becomes what `python -c CODE ARGUMENTS` would be: it
has its own environment, working directory, streams and end, and whoever kills it kills it. A run of
the tests has one, whichever of its processes asks; it ends when their owner does, the process that
was first. The workers of pytest-xdist are forked from it too: then it imports what tests need.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
# Libraries alone: what a process changes of this project, it changes as it imports it.
LIBRARIES = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "distributed",
    "imagecodecs",
    "numpy",
    "pandas",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "pydantic.main",
    "pydantic.type_adapter",
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
# What tests import beside: of use where workers are forked, and half as long again to wait for.
OF_TESTS = (
    *LIBRARIES,
    "execnet",
    "faiss",
    "fsspec",
    "h5py",
    "highdicom",
    "hypothesis",
    "lifelines",
    "matplotlib.figure",
    "monai.losses",
    "nibabel",
    "openpyxl",
    "peft",
    "PIL.Image",
    "pytest",
    "scipy.ndimage",
    "sklearn.metrics",
    "SimpleITK",
    "transformers.modeling_utils",
)
_REQUEST_BYTES = 2**18
# Where it listens, by the number of its owner.
_PLACE = "RADPROBE_TESTS_WARM"
# What asks for a process where a command line needs a program.
INTERPRETER = Path(__file__).with_name("warm_python.py")


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
        outputs = self._log(log) if log else self._pipes()
        with open(os.devnull) as silence:
            streams = [silence.fileno(), *outputs]
            self._status = connect()
            send(self._status, code, arguments, environment, ROOT, streams)
        for output in outputs:
            os.close(output)
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


def share() -> None:
    """Have the processes that this one starts share its process that forks."""
    os.environ.setdefault(_PLACE, f"{tempfile.gettempdir()}/radprobe-warm-{os.getpid()}")


def connect(libraries: Sequence[str] = LIBRARIES) -> socket.socket:
    """Return a connection to the process that forks.

    libraries: what it imports, if it is started by this.
    """
    share()
    place = os.environ[_PLACE]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(place)
        except (FileNotFoundError, ConnectionRefusedError):
            _start(place, libraries)
            connection.connect(place)
    return connection


def send(
    connection: socket.socket,
    code: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    streams: Sequence[int],
) -> None:
    """Ask for a process with these three streams; its number comes back, and its exit code."""
    request = {
        "code": code,
        "arguments": arguments,
        "environment": dict(environment),
        "folder": str(folder),
    }
    socket.send_fds(connection, [json.dumps(request).encode()], list(streams))


@cache
def interpreter() -> str:
    """Return the path of a program that is called as Python is, and forks where that is by -c."""
    share()
    path = Path(f"{os.environ[_PLACE]}-{os.getpid()}.sh")
    # Without `site`: it needs the standard library alone.
    forks = f'exec "{sys.executable}" -S -E "{INTERPRETER}" "$@"'
    path.write_text(
        f'#!/bin/sh\ncase " $* " in *" -c "*) {forks};; esac\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    atexit.register(path.unlink)
    return str(path)


def _start(place: str, libraries: Sequence[str]) -> None:
    """Start the process that forks, and wait until it has what it forks with."""
    owner = place.rpartition("-")[2]
    ready, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", place, owner, str(theirs), *libraries],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Not the streams of who asks first: whoever reads them waits for all that write to them.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs,),
        start_new_session=True,  # Ctrl-C is for the owner
    )
    process.returncode = 0  # it is not waited for: it ends with its owner
    os.close(theirs)
    with open(ready, "rb") as pipe:
        assert pipe.read() == b"ready", "the process that forks did not start"


# --- the process that forks, from here ------------------------------------------------------------


def serve(listener: socket.socket, owner: int) -> dict[str, Any] | None:
    """Fork a process for each connection, and tell how each ended, until the owner ends.

    Returns None then; in a forked process, its request.
    """
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the process, who waits for it
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(owner, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready == owner:
                return None
            if ready != listener.fileno():
                poll.unregister(ready)
                pid, status = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(status, code)
                status.close()
                continue
            status, _ = listener.accept()
            message, streams, _, _ = socket.recv_fds(status, _REQUEST_BYTES, 3)
            if not message:  # who asked was killed meanwhile
                status.close()
                continue
            pid = os.fork()
            if pid == 0:
                listener.close()
                status.close()
                os.close(owner)
                for descriptor, (_, other) in running.items():
                    os.close(descriptor)
                    other.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                return dict(json.loads(message))
            for stream in streams:
                os.close(stream)
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
    place = sys.argv[1]
    owner = os.pidfd_open(int(sys.argv[2]))
    # Ignored where a shell has the tests in its background: what is forked hears of it even so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in sys.argv[4:]:
        importlib.import_module(name)
    gc.freeze()  # what is here stays: no process forked from this one need look through it
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)  # of a run that was killed, whose number came again
        listener.bind(place)
        listener.listen(128)
        with open(int(sys.argv[3]), "wb") as ready:
            ready.write(b"ready")
        request = serve(listener, owner)
    if request is None:
        os.unlink(place)
        os.unlink(f"{place}.lock")
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["-c", *request["arguments"]]
    _become(request["code"])


def _become(code: str) -> NoReturn:
    """Run code and end as Python does, but for taking every library apart.

    That is two seconds of processor for what the process shares with the one it was forked from.
    """
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        ended: object = None
    except SystemExit as end:
        ended = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        ended = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if ended is not None and not isinstance(ended, int):
        print(ended, file=sys.stderr)
        ended = 1
    # As Python ends: threads that are no daemons first, then what was registered, then the streams.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    os._exit(ended or 0)


if __name__ == "__main__":
    main()
