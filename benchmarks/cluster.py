"""One store by many processes, some of them killed: it must come out as if nothing had been.

    .venv/bin/python -m benchmarks.cluster shards
    .venv/bin/python -m benchmarks.cluster chaos --runs 5

shards: eight `--shard` processes, three of them killed (-9) at work. chaos: a dask cluster with an
address; a worker is killed every few seconds, and the scheduler once, to come back later.

Every run embeds the same collection, a slice taking at least --cost seconds. At the end the
features must be those of one process, bit for bit, verify must find nothing, and the receipts say
who embedded what: a part that was embedded twice is one whose first owner was killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.tiny import write_setup
from stores import FeatureStore
from stores.verify import verify
from tests.pipeline.processes import (
    Dask,
    at_work,
    bit_equal,
    committed,
    ended,
    extraction,
    opened,
    until,
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("show", choices=["shards", "chaos"])
    options.add_argument("--runs", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=4, help="of the dask cluster")
    options.add_argument("--cost", type=float, default=0.1, help="seconds a slice, at least")
    args = options.parse_args()
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = write_setup(root, patients=20, part_rows=4)
        began = time.perf_counter()
        ended(extraction(config, root / "calm"))
        calm = FeatureStore.open(root / "calm")
        parts, slices = len(committed(calm)), len(calm.slices())
        print(f"one process: {slices} slices, {parts} parts, {time.perf_counter() - began:.1f} s")
        for run in range(args.runs):
            rng, place = random.Random(args.seed + run), root / f"run{run}"
            place.mkdir()
            began = time.perf_counter()
            if args.show == "shards":
                said = shards(config, place / "store", rng, args.cost)
            else:
                said = chaos(config, place, rng, args.workers, args.cost)
            store = FeatureStore.open(place / "store")
            findings = [f for f in verify(store.path).findings if f.kind != "duplicate"]
            equal, whole = bit_equal(store, calm), len(committed(store)) == parts
            good += equal and whole and not findings
            print(
                f"seed {args.seed + run}: {time.perf_counter() - began:.1f} s, {said}; "
                f"{'complete' if whole else 'INCOMPLETE'}, "
                f"{'bit-equal' if equal else 'OTHER BITS'}, verify {findings or 'clean'}",
                flush=True,
            )
    print(f"{good} of {args.runs}: complete, bit-equal, verify clean")
    sys.exit(good != args.runs)


def shards(config: Path, path: Path, rng: random.Random, cost_s: float) -> str:
    """Run eight shards and kill three at work; return who embedded how many parts."""
    all_of = [extraction(config, path, "--shard", f"{i}/8", cost_s=cost_s) for i in range(1, 9)]
    running = {shard.pid: shard for shard in all_of}
    store, lost = opened(path), set()
    for number in range(1, 4):
        until(lambda enough=5 * number: len(committed(store)) >= enough)
        victim = rng.choice(until(lambda: sorted({*at_work(store)} & running.keys())))
        lost |= {i for i, holder in store.holders().items() if holder.name.endswith(f":{victim}")}
        os.kill(victim, signal.SIGKILL)
        running.pop(victim).communicate()
    done = {pid: ended(shard)["embedded"] for pid, shard in running.items()}
    receipts = committed(store).values()
    rows = Counter()
    for receipt in receipts:
        rows[int(receipt.by.rpartition(":")[2])] += receipt.embedded
    once = all(rows[pid] == embedded for pid, embedded in done.items())
    by = Counter(int(receipt.by.rpartition(":")[2]) in done for receipt in receipts)
    return (
        f"{by[True]} parts by the five that lived, {by[False]} by the three killed, of which "
        f"{len(lost)} more had to be done again; "
        f"{'each other part once' if once else 'SOME PARTS TWICE'}"
    )


def chaos(config: Path, place: Path, rng: random.Random, workers: int, cost_s: float) -> str:
    """Run on a dask cluster that is disturbed until the run ends."""
    kills = restarts = seen = 0
    with Dask(place, workers, cost_s) as cluster:
        run = extraction(config, place / "store", "--scheduler", cluster.address)
        store = opened(place / "store")
        parts = until(lambda: len(store.missing()))
        turn = rng.uniform(0.3, 0.6) * parts
        while run.poll() is None:
            time.sleep(rng.uniform(1, 5))
            if not restarts and len(committed(store)) > turn:
                cluster.kill_scheduler()
                time.sleep(rng.uniform(0, 5))
                cluster.start_scheduler()
                restarts = 1
            # Not before the last kill was made up for: on a slow machine nothing would be done.
            elif (done := len(committed(store))) > seen and (victims := at_work(store)):
                os.kill(rng.choice(victims), signal.SIGKILL)
                kills, seen = kills + 1, done
        ended(run)
    return f"{kills} workers killed, the scheduler restarted {restarts} times"


if __name__ == "__main__":
    main()
