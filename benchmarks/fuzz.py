"""Read 10,000 mutated files and print what came out: `python benchmarks/fuzz.py [COUNT] [SEED]`.

A crash of a decoder costs its worker and is counted; a crash of the run would end this script.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import fuzzing


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzzing.run(Path(folder), count, seed, workers=2)
    seconds = time.monotonic() - started
    for outcome, n in found.most_common():
        print(f"{n:7d}  {outcome}")
    crashed = sum(n for outcome, n in found.items() if "crash" in outcome)
    hung = sum(n for outcome, n in found.items() if "time-limit" in outcome)
    here, below = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{count} files, seed {seed}, {seconds:.0f} s; crashes of the run 0, hangs of the run 0")
    print(f"decoders crashed on {crashed} files and took too long on {hung}: each one failed file")
    print(f"peak memory: {here:.0f} MiB this process, {below:.0f} MiB the largest worker")


if __name__ == "__main__":
    main()
