"""Whether a folder's file system keeps what stores rely on, how fast and how full it is.

Tried for real, in a folder next to the store that is removed again: network and cloud file systems
promise much that their mounts then do not keep.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.doctor.checks import Check, Severity
from stores._disk import sync_folder, write_atomic, write_new

_LITTLE_SPACE = 10 * 2**30  # bytes
_NO_SPACE = 2**30
_SLOW_MB_PER_S = 50.0
# What the speed is measured with: pieces of the size of a store's chunks.
_PIECE = 16 * 2**20
_PIECES = 4
_RACERS = 8  # that link one name at once
_SWAPS = 50  # of one file, while another thread reads it
_CLOCK_S = 60.0  # beyond it, claims of other hosts look dead too early or too late

_LOCAL = "Put the store on another file system (a local disk, NFS, Lustre), or use one process."


def disk(store: Path) -> Iterator[Check]:
    """Yield checks of the file system on which a store is or would be."""
    place = store.absolute()
    while not place.is_dir():
        place = place.parent
    yield _space(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".radprobe-doctor-", dir=place))
    except OSError as error:
        remedy = "Name another folder as `store`, or have it made writable."
        yield Check("store's folder", "failure", f"{place} cannot be written: {error}", remedy)
        return
    try:
        yield _speed(folder)
        for name, attempt, remedy in (
            ("hard links", _links_exclude, _LOCAL),
            ("atomic rename", _rename_is_atomic, _LOCAL),
            ("fsync", _syncs, "Without it a power cut may lose what was committed."),
            ("clock", _clock_agrees, "Set the clocks of machine and file server (NTP)."),
        ):
            yield _tried(name, attempt, folder, remedy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _space(place: Path) -> Check:
    free = shutil.disk_usage(place).free
    level: Severity = "failure" if free < _NO_SPACE else "warning" if free < _LITTLE_SPACE else "ok"
    remedy = "" if level == "ok" else "`radprobe plan CONFIG` tells how much a store takes."
    kind = _file_system(place)
    return Check("disk space", level, f"{free / 1e9:.1f} GB free at {place}{kind}", remedy)


def _file_system(place: Path) -> str:
    """Return the kind of file system in brackets, where Linux tells."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    above: list[tuple[int, str]] = []
    for line in mounts:
        mounted_at, kind = line.split()[1:3]
        if place.is_relative_to(mounted_at):
            above.append((len(mounted_at), kind))
    # The innermost mount is the one whose path is longest.
    return f" ({max(above)[1]})" if above else ""


def _speed(folder: Path) -> Check:
    data = os.urandom(_PIECE)
    try:
        began = time.perf_counter()
        for i in range(_PIECES):
            write_new(folder / f"piece{i}", data)
        rate = _PIECES * _PIECE / 1e6 / (time.perf_counter() - began)
    except OSError as error:
        return Check("disk speed", "failure", str(error), "Make room, or name another folder.")
    slow = rate < _SLOW_MB_PER_S
    remedy = "A GPU may wait for it: put the store on a faster disk." if slow else ""
    return Check("disk speed", "warning" if slow else "ok", f"{rate:.0f} MB/s with fsync", remedy)


def _tried(name: str, attempt: Callable[[Path], str | None], folder: Path, remedy: str) -> Check:
    """Return how a promise of the file system stands, which `attempt` puts to the test."""
    try:
        fault = attempt(folder)
    except OSError as error:
        fault = str(error)
    return Check(name, "failure", fault, remedy) if fault else Check(name, "ok", "as it should be")


def _links_exclude(folder: Path) -> str | None:
    """Say what is wrong where not exactly one of several that link one name succeeds."""
    gate = threading.Barrier(_RACERS)

    def race(i: int) -> bool:
        mine = folder / f"racer{i}"
        mine.write_bytes(b"")
        gate.wait()  # all link at once
        try:
            os.link(mine, folder / "goal")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(_RACERS) as racers:
        winners = sum(racers.map(race, range(_RACERS)))
    return None if winners == 1 else f"{winners} of {_RACERS} that linked one name succeeded"


def _rename_is_atomic(folder: Path) -> str | None:
    """Say what is wrong where a reader finds a file gone or half while it is replaced."""
    path = folder / "swapped"
    texts = [bytes([65 + i]) * 65536 for i in range(2)]
    write_atomic(path, texts[0])
    over = threading.Event()
    faults: list[str] = []

    def read() -> None:
        while not over.is_set():
            try:
                if path.read_bytes() not in texts:
                    faults.append("half written")
            except FileNotFoundError:
                faults.append("missing")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(_SWAPS):
            write_atomic(path, texts[i % 2])
    finally:
        over.set()
        reader.join()
    return f"a file that was replaced was seen {faults[0]}" if faults else None


def _syncs(folder: Path) -> str | None:
    """Raise OSError where a file, or a folder's entries, cannot be forced to disk."""
    write_new(folder / "synced", b"data")
    sync_folder(folder)
    return None


def _clock_agrees(folder: Path) -> str | None:
    """Say what is wrong where the file server's clock is not this machine's."""
    path = folder / "dated"
    before = time.time()
    path.write_bytes(b"")
    with contextlib.suppress(OSError):  # some mounts refuse; the write has dated it, too
        os.utime(path)
    off = path.stat().st_mtime - before
    return None if abs(off) < _CLOCK_S else f"the file system's is {off:+.0f} s off this machine's"
