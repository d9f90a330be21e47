"""Extractions that are killed at random moments: the store must come out as if nothing had been.

    .venv/bin/python -m benchmarks.chaos --runs 50

Each run embeds the same small collection into a store of its own with `radprobe extract`, killed
(-9) at random moments and started again until one ends by itself. Every fifth run has two processes
at once, one of them killed; every seventh starts on a file system too small for the store, which is
enlarged when a process has said so (a tmpfs: needs root, is passed over without it). At the end the
features must be those of an undisturbed run, bit for bit, and verify must find nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.tiny import write_setup
from stores import FeatureStore
from stores.verify import verify

FULL = "the disk is full"
MAX_STARTS = 40


@dataclass
class Run:
    """What happened in one run."""

    number: int
    kind: str
    exits: Counter[str] = field(default_factory=Counter)
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
    print(f"{good} of {len(runs)}: features bit-equal to the undisturbed ones, and verify clean")
    sys.exit(good != len(runs))


def chaos(folder: Path, runs: int, seed: int, patients: int = 10) -> Iterator[Run]:
    """Do the runs, print a line each, yield what happened."""
    rng = random.Random(seed)
    config = write_setup(folder, patients=patients, part_rows=16)
    started = time.perf_counter()
    start(config, folder / "calm").wait()
    calm_s = time.perf_counter() - started
    calm = FeatureStore.open(folder / "calm")
    print(
        f"undisturbed: {calm_s:.1f} s, {len(calm.slices())} slices, {size(calm.path) / 1e6:.2f} MB"
    )
    print(f"{'run':>3} {'kind':<10} {'starts':>6} {'killed':>6} {'full':>4} {'s':>5}  bits  verify")
    for number in range(1, runs + 1):
        run = Run(number, kind_of(number))
        began = time.perf_counter()
        place = folder / f"run{number}"
        with disk(place, size(calm.path), small=run.kind == "full disk") as enlarge:
            disturb(config, place / "store", run, rng, calm_s, enlarge)
            run.equal, run.clean = compare(calm, place / "store")
        run.seconds = time.perf_counter() - began
        starts, killed, full = run.exits.total(), run.exits["killed"], run.exits["full"]
        print(
            f"{number:>3} {run.kind:<10} {starts:>6} {killed:>6} {full:>4} "
            f"{run.seconds:>5.1f}  {'equal' if run.equal else 'OTHER'} "
            f"{'clean' if run.clean else 'DAMAGED'}",
            flush=True,
        )
        yield run


def kind_of(number: int) -> str:
    """Return what a run goes through beside being killed."""
    if number % 7 == 0 and os.geteuid() == 0:
        return "full disk"
    return "two at once" if number % 5 == 0 else "alone"


def disturb(
    config: Path, store: Path, run: Run, rng: random.Random, calm_s: float, enlarge: list[str]
) -> None:
    """Start and kill extractions until one ends well."""
    for attempt in range(MAX_STARTS):
        others = [start(config, store) for _ in range(run.kind == "two at once")]
        process = start(config, store)
        # Later attempts are let live longer, so that every run ends.
        limit = rng.uniform(0.2, calm_s * (1 + attempt / 4))
        try:
            _, text = process.communicate(timeout=limit)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            _, text = process.communicate()
            code = -9
        for other in others:
            other.communicate()
        if code == 0:
            run.exits["done"] += 1
            return
        full = FULL in text
        run.exits["full" if full else "killed" if code == -9 else f"exit {code}"] += 1
        if full and enlarge:
            subprocess.run(enlarge, check=True)
            enlarge.clear()
    raise RuntimeError(f"run {run.number} did not end in {MAX_STARTS} starts: {run.exits}; {text}")


def start(config: Path, store: Path) -> subprocess.Popen[str]:
    """Start one extraction."""
    code = "from pipeline.cli import main; main()"
    arguments = ["extract", str(config), "--store", str(store), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        subprocess.run(["umount", str(place)], check=True)


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
