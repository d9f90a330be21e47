"""Reading processes that are killed at random moments: no picture lost or changed, no memory left.

    .venv/bin/python -m benchmarks.killed_readers [--kills 200] [--readers 3]

Real DICOM, gzipped NIfTI and PNG (see `benchmarks.images`) are read again and again, while one
reader after the other is killed (-9), whatever it is at; one picture of five is held for a while.
Each picture must be the one that an undisturbed reading gave, by pixels and digests, or a failure
that says that its reader was killed twice at this file. At the end the memory of all readers must
have gone with them: no mapping, no file and no child may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import signal
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.images import write_images
from pipeline.io.idle import IDLE
from pipeline.io.reader import read_files
from pipeline.io.slots import is_in_slot
from pipeline.io.types import FrameRead, Request
from pipeline.types import Failure, Slice

SLICES = 24  # of each kind
HELD = 24  # pictures at a time, at the most
APART = 40  # pictures between two kills, at the most


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--readers", type=int, default=3)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        requests = collection(root)
        expected = list(read_files(root, requests, workers=0))
        counts = disturbed(root, requests, expected, args.kills, args.readers, args.seed)
    IDLE.close()
    gc.collect()
    left = Path("/proc/self/maps").read_text().count("radprobe-slots")
    files = sum("radprobe-slots" in name for name in open_files())
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"left: {left} mappings, {files} open files, {len(children())} children")
    bad = counts["wrong"] or counts["failed otherwise"] or left or files or children()
    raise SystemExit(1 if bad else 0)


def collection(root: Path) -> list[Request]:
    """Write files of each kind; return a request for each, of all its slices."""
    requests: list[Request] = []
    for kind in ("dicom", "nifti.gz", "png"):
        for path in sorted(write_images(root / kind, kind, SLICES).iterdir()):
            frames = tuple(range(SLICES)) if kind == "nifti.gz" else (0,)
            requests.append(Request(f"{kind}/{path.name}", frames))
    return requests


def disturbed(
    root: Path,
    requests: list[Request],
    expected: list[FrameRead],
    kills: int,
    readers: int,
    seed: int,
) -> Counter[str]:
    """Read until so many readers were killed; return how many pictures came which way."""
    rng = np.random.default_rng(seed)
    counts = Counter[str](dict.fromkeys(("kills", "pictures", "in slots", "killed twice"), 0))
    counts.update({"wrong": 0, "failed otherwise": 0})
    held: deque[Slice] = deque(maxlen=HELD)
    next_kill = int(rng.integers(1, APART))
    endless = itertools.chain.from_iterable(itertools.repeat(requests))
    with contextlib.closing(read_files(root, endless, workers=readers)) as reads:
        for number, read in enumerate(reads):
            if number == next_kill:
                next_kill += int(rng.integers(1, APART))
                if pids := children():  # none where all that were left have just died
                    os.kill(int(rng.choice(pids)), signal.SIGKILL)
                    counts["kills"] += 1
                    if counts["kills"] % 25 == 0:
                        print(f"{counts['kills']} kills, {number} pictures", flush=True)
            counts["pictures"] += 1
            counts[what_came(read, expected[number % len(expected)])] += 1
            if isinstance(read.item, Slice):
                counts["in slots"] += is_in_slot(read.item.pixels)
                if rng.random() < 0.2:
                    held.append(read.item)
            if counts["kills"] >= kills:
                break
    del counts["right"]
    return counts


def what_came(read: FrameRead, expected: FrameRead) -> str:
    """Return whether a picture is the expected one."""
    if isinstance(read.item, Failure):
        return "killed twice" if read.item.reason == "killed" else "failed otherwise"
    assert isinstance(expected.item, Slice)
    digests = (read.file_digest, read.pixel_digest)
    same = digests == (expected.file_digest, expected.pixel_digest)
    same = same and np.array_equal(read.item.pixels, expected.item.pixels)
    return "right" if same else "wrong"


def children() -> list[int]:
    """Return the processes that this one has started."""
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            pids += map(int, (task / "children").read_text().split())
    return pids


def open_files() -> Iterator[str]:
    """Yield what this process has open."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            yield os.readlink(entry)


if __name__ == "__main__":
    main()
