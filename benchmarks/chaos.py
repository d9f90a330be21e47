"""Extractions that are killed at random moments: the store must come out as if nothing had been.

    .venv/bin/python -m benchmarks.chaos --runs 50

Each run embeds the same small collection into a store of its own with `radprobe extract`, killed
(-9) at random moments and started again until one ends by itself. A moment lies behind the first
claim of a process and behind a random one of the parts that are left, so that every kill falls
within the work, however busy the machine is; how many parts were committed at each is printed.
Every second run reads files in the process itself. Every fifth has two processes at once, one of
them killed; every seventh starts on a file system too small for the store, which is enlarged when a
process has said so (a tmpfs: needs root, is passed over without it). At the end the features must
be those of an undisturbed run, bit for bit, and verify must find nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked

import numpy as np

from benchmarks.crash import NETWORKS, done, forked, log_of, radprobe
from benchmarks.tiny import write_setup
from stores import FeatureStore
from stores.claims import holders
from stores.contents import CLAIMS, PARTS
from stores.verify import verify

FULL = "the disk is full"
MAX_STARTS = 40
_LOOK_S = 0.002


@dataclass
class Run:
    """What happened in one run. committed: how many parts there were at each kill."""

    number: int
    kind: str
    exits: Counter[str] = field(default_factory=Counter)
    committed: list[int] = field(default_factory=list)
    equal: bool = False
    clean: bool = False
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """True where the store came out as if nothing had been."""
        return self.equal and self.clean


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = list(chaos(Path(folder), args.runs, args.seed))
    good = sum(run.good for run in runs)
    kills = sum(len(run.committed) for run in runs)
    print(
        f"{good} of {len(runs)}: features bit-equal to the undisturbed ones, and verify clean; "
        f"{kills} kills fell within the work"
    )
    sys.exit(good != len(runs) or not kills)


def chaos(folder: Path, runs: int, seed: int, patients: int = 10) -> Iterator[Run]:
    """Do the runs, print a line each, yield what happened."""
    rng = random.Random(seed)
    for name in NETWORKS:  # seconds, in each process forked from here on
        importlib.import_module(name)
    config = done(forked(lambda: str(write_setup(folder, patients=patients, part_rows=16))))
    calm_s = 0.0
    for name in ("warm", "calm"):  # the first reads everything from the disk
        calm_s = undisturbed(config, folder / name)
    calm = FeatureStore.open(folder / "calm/store")
    parts = committed(folder / "calm")
    print(f"undisturbed: {calm_s:.1f} s of work, {len(calm.slices())} slices, {parts} parts")
    print(f"{'run':>3} {'kind':<10} {'starts':>6} {'full':>4} {'s':>5}  bits  verify  kills")
    for number in range(1, runs + 1):
        run = Run(number, kind_of(number))
        began = time.perf_counter()
        place = folder / f"run{number}"
        with disk(place, size(calm.path), small=run.kind == "full disk") as enlarge:
            disturb(config, place, run, rng, parts, calm_s / parts, enlarge)
            run.equal, run.clean = compare(calm, place / "store")
        run.seconds = time.perf_counter() - began
        kills = ", ".join(f"{committed}/{parts}" for committed in run.committed)
        print(
            f"{number:>3} {run.kind:<10} {run.exits.total():>6} {run.exits['full']:>4} "
            f"{run.seconds:>5.1f}  {'equal' if run.equal else 'OTHER'} "
            f"{'clean' if run.clean else 'DAMAGED'}   {kills}",
            flush=True,
        )
        yield run


def kind_of(number: int) -> str:
    """Return what a run goes through beside being killed."""
    if number % 7 == 0 and os.geteuid() == 0:
        return "full disk"
    return "two at once" if number % 5 == 0 else "alone"


def undisturbed(config: str, place: Path) -> float:
    """Extract into the store of a folder; return how long the work took, from the first claim."""
    place.mkdir()
    pid = start(config, place)
    wait_for_claim(pid, place)
    began = time.perf_counter()
    if code := wait_for_end(pid):
        raise RuntimeError(f"undisturbed, it ended with {code}: {log_of(place).read_text()}")
    return time.perf_counter() - began


def disturb(
    config: str,
    place: Path,
    run: Run,
    rng: random.Random,
    parts: int,
    part_s: float,
    enlarge: list[str],
) -> None:
    """Start and kill extractions until one ends well; parts: of a store that is whole."""
    log = log_of(place)
    workers = ("--workers", "0") if run.number % 2 else ()
    for attempt in range(MAX_STARTS):
        log.unlink(missing_ok=True)
        others = [start(config, place, *workers) for _ in range(run.kind == "two at once")]
        process = start(config, place, *workers)
        wait_for_claim(process, place)
        most = rng.randrange(committed(place), max(parts, committed(place) + 1))
        while committed(place) < most and ended(process) is None:
            time.sleep(_LOOK_S)
        # Later attempts are let live longer, so that every run ends.
        code = kill_after(process, rng.uniform(0, part_s * (1 + attempt / 4)))
        if code == -signal.SIGKILL:
            run.committed.append(committed(place))
        for other in others:
            wait_for_end(other)
        if code == 0:
            run.exits["done"] += 1
            return
        full = FULL in log.read_text()
        run.exits["full" if full else f"exit {code}"] += 1
        if full and enlarge:
            subprocess.run(enlarge, check=True)
            enlarge.clear()
    text = log.read_text()
    raise RuntimeError(f"run {run.number} did not end in {MAX_STARTS} starts: {run.exits}; {text}")


def committed(place: Path) -> int:
    """Return how many parts of the store in a folder are committed."""
    return len(list((place / "store" / PARTS).glob("*.json")))


# --- processes ---------------------------------------------------------------------------------


def start(config: str, place: Path, *options: str) -> int:
    """Start one extraction into the store of a folder, forked from this process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        store = str(place / "store")
        radprobe(place, "extract", config, "--store", store, "--device", "cpu", *options)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else code
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for_claim(pid: int, place: Path) -> None:
    """Wait until a process has claimed something of a store, or has ended."""
    while ended(pid) is None:
        if any(
            each.name.endswith(f":{pid}") for each in holders(place / "store" / CLAIMS).values()
        ):
            return
        time.sleep(_LOOK_S)


def kill_after(pid: int, seconds: float) -> int:
    """Kill a process after some time, unless it has ended; return its exit code."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline and ended(pid) is None:
        time.sleep(_LOOK_S)
    os.kill(pid, signal.SIGKILL)  # to who has ended it does nothing
    return wait_for_end(pid)


def ended(pid: int) -> object | None:
    """Return how a child has ended, which stays to be asked for; None where it lives."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def wait_for_end(pid: int) -> int:
    """Return the exit code of a child once it has ended."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


# --- what is left ------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(place: Path, needed: int, *, small: bool) -> Iterator[list[str]]:
    """Make the folder of a run; yield the command that enlarges its disk, if it is a small one."""
    place.mkdir()
    if not small:
        yield []
        return
    tiny = max(needed // 2, 200_000)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={tiny}", "none", str(place)], check=True)
    try:
        yield ["mount", "-o", f"remount,size={needed * 20}", str(place)]
    finally:
        unmount(place)


def unmount(place: Path, tries: int = 100) -> None:
    """Unmount a disk, once the readers of processes that were killed have ended as well."""
    while subprocess.run(["umount", str(place)], capture_output=True).returncode:
        tries -= 1
        if not tries:
            raise OSError(f"{place} is still in use.")
        time.sleep(0.1)


def compare(calm: FeatureStore, path: Path) -> tuple[bool, bool]:
    """Return whether a store holds the same bits as the calm one, and whether it is sound."""
    store = FeatureStore.open(path)
    columns = ["row", "path", "frame"]
    equal = store.slices().select(columns).equals(calm.slices().select(columns))
    for name in calm.arrays if equal else []:
        here, there = store.read(name), calm.read(name)
        equal = equal and np.array_equal(here, there, equal_nan=here.dtype.kind == "f")
    findings = [finding for finding in verify(path).findings if finding.kind != "duplicate"]
    for finding in findings:
        print(finding)
    return equal, not findings


def size(path: Path) -> int:
    """Return the bytes on disk under a folder, in blocks of 4 kB."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in path.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
