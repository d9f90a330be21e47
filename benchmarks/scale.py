"""What many workers and many parts cost: efficiency, scheduling, metadata, tables.

    .venv/bin/python -m benchmarks.scale efficiency   workers 1 to 16, a slice taking a fixed time
    .venv/bin/python -m benchmarks.scale scheduling   10 to 100,000 parts through a dask scheduler
    .venv/bin/python -m benchmarks.scale metadata     operations on a store, a part (strace)
    .venv/bin/python -m benchmarks.scale tables       what a process pays for a large store

The network sleeps, so that the cores of one machine stand for many GPUs. `docs/scale.md` draws the
conclusions.
"""

from __future__ import annotations

import argparse
import itertools
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.recheck import embed as commit_made_up
from pipeline.extraction.distributed import dask_run
from pipeline.extraction.distributed.clusters import Scheduler, connections
from pipeline.extraction.distributed.tasks import Work, WorkerOutcome
from pipeline.extraction.embed import BadLimit, Progress, Speed
from pipeline.extraction.slices import PartSlices
from stores import ArraySpec, FeatureStore
from stores.duplicates import Originals
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA
from tests.phantoms import write_png
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import ROOT, Dask, committed, ended, environment, extraction

PART = 8  # slices a part, where they are embedded
# Each process reads for itself: so many more would take the cores of this machine for their start.
HERE = ("--workers", "0")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("show", choices=["efficiency", "scheduling", "metadata", "tables"])
    options.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    options.add_argument("--cost", type=float, default=0.25, help="seconds a slice")
    options.add_argument("--each", type=int, default=12, help="parts a worker")
    options.add_argument("--parts", type=int, nargs="*", default=[10, 1000, 100_000])
    options.add_argument("--slices", type=int, default=1_000_000)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        match args.show:
            case "efficiency":
                efficiency(Path(folder), args.workers, args.cost, args.each)
            case "scheduling":
                scheduling(Path(folder), args.parts)
            case "metadata":
                metadata(Path(folder), [16, 64, 256])
            case "tables":
                tables(Path(folder), args.slices)


# --- efficiency ----------------------------------------------------------------------------------


def efficiency(folder: Path, workers: Sequence[int], cost_s: float, each: int) -> None:
    """Print the share of their time that workers spend in the network, once all have begun."""
    print(f"a slice takes {cost_s} s, a part {PART} slices, {each} parts a worker")
    print(f"{'workers':>7} {'by':<6} {'parts':>5} {'slices/s':>8} {'of ideal':>8}")
    for count in workers:
        config = write_collection(folder / f"{count}", count * each)
        for how in ("shards", "dask"):
            store = config.parent / how
            if how == "shards":
                runs = [
                    extraction(config, store, *HERE, "--shard", f"{i}/{count}", cost_s=cost_s)
                    for i in range(1, count + 1)
                ]
                for run in runs:
                    ended(run)
            else:
                with Dask(config.parent, count, cost_s) as cluster:
                    ended(extraction(config, store, *HERE, "--scheduler", cluster.address))
            rate, parts = steady(FeatureStore.open(store), count)
            share = rate * cost_s / count
            print(f"{count:>7} {how:<6} {parts:>5} {rate:>8.2f} {share:>8.0%}", flush=True)


def steady(store: FeatureStore, workers: int) -> tuple[float, int]:
    """Return slices a second, and of how many parts: from when all work until one has no more."""
    times: dict[str, list[float]] = {}
    for index, receipt in committed(store).items():
        when = store.receipts.path(index).stat().st_mtime
        times.setdefault(receipt.by, []).append(when)
    if len(times) < workers:
        return float("nan"), 0  # some began too late
    begin, end = max(map(min, times.values())), min(map(max, times.values()))
    parts = sum(begin < when <= end for each in times.values() for when in each)
    return (parts * PART / (end - begin) if parts > workers else float("nan")), parts


def write_collection(folder: Path, parts: int) -> Path:
    rng = np.random.default_rng(0)
    for i in range(parts * PART):
        write_png(folder / f"data/{i // 100:04}/{i:06}.png", rng.integers(0, 255, (16, 16), "u1"))
    content = {
        "data": {"root": "data"},
        "backbone": {"name": f"hf:{write_tiny_folder(folder / 'network')}", "image_size": 14},
        "store": "store",
        "outputs": {"part_rows": PART},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


# --- scheduling ----------------------------------------------------------------------------------


def no_work(work: Work, parts: Sequence[int]) -> tuple[str, WorkerOutcome]:
    """Stand for `embed_at_worker`: everything is done already."""
    return "a worker", WorkerOutcome()


def scheduling(folder: Path, parts: Sequence[int]) -> None:
    """Print what the schedulers and the client cost a part, two workers doing nothing."""
    dask_run.embed_at_worker = no_work
    print(f"{'parts':>7} {'s':>7} {'ms a part':>9}  peak memory of the run (MiB)")
    for count in parts:
        seconds = scheduled(empty_store(folder / f"{count}", count, 1), count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count:>7} {seconds:>7.2f} {1000 * seconds / count:>9.3f}  {peak:.0f}", flush=True)


def scheduled(store: FeatureStore, parts: int) -> float:
    """Return the seconds from when the first part is back until all are."""
    work = Work(str(store.path), "", "", "", Speed(device="cpu", workers=0))
    back: list[float] = []
    progress = Progress(advance=lambda slices: back.append(time.perf_counter()))
    ranges = [store.layout.part(i) for i in range(parts)]
    with (
        Dask(store.path.parent, 2) as cluster,
        connections(Scheduler(cluster.address), "cpu") as connect,
    ):
        dask_run.embed_on_cluster(connect, work, store, ranges, progress, BadLimit(1, 1.0))
    return back[-1] - back[0]


def empty_store(path: Path, parts: int, part_rows: int) -> FeatureStore:
    """Return a store of so many parts of which none is embedded."""
    arrays = {"cls": ArraySpec((1, 4), "float16"), "mean": ArraySpec((4,), "float16")}
    store = FeatureStore.create(path, "{}", arrays, part_rows)
    n = parts * part_rows
    columns = {
        "row": np.arange(n), "path": [f"{i // 1000:06}/{i:09}.dcm" for i in range(n)],
        "frame": np.zeros(n, np.int64), "modality": ["CT"] * n, "withdrawn": np.zeros(n, bool),
    }  # fmt: skip
    for name, of in (("patient", 500), ("study", 200), ("series", 100)):
        columns[name] = [f"{name[:2]}-{i // of:024x}" for i in range(n)]
    have = {**{field.name: pa.nulls(n, field.type) for field in SLICE_SCHEMA}, **columns}
    store.write_tables(pa.table(have, schema=SLICE_SCHEMA), FILE_SCHEMA.empty_table())
    return store


# --- metadata ------------------------------------------------------------------------------------


def metadata(folder: Path, parts: Sequence[int]) -> None:
    """Print the operations on the store's folder for each further part, and the files of a part."""
    counted: dict[int, Counter[str]] = {}
    for count in parts:
        config = write_collection(folder / f"{count}", count)
        counted[count] = operations(config, config.parent / "store")
        shutil.rmtree(config.parent / "data")
    names = sorted(set().union(*counted.values()), key=lambda n: -counted[parts[-1]][n])
    spans = list(itertools.pairwise(parts))
    print(f"{'a part':<12}" + "".join(f"{f'{a} to {b}':>12}" for a, b in spans))
    for name in [*names, "all"]:
        row = [(total(counted[b], name) - total(counted[a], name)) / (b - a) for a, b in spans]
        print(f"{name:<12}" + "".join(f"{each:>12.1f}" for each in row))
    store = folder / f"{parts[-1]}/store"
    files = sum(path.is_file() for path in store.rglob("*"))
    folders = sum(path.is_dir() for path in store.rglob("*"))
    print(f"files a part {files / parts[-1]:.2f}, folders a part {folders / parts[-1]:.2f}")


def total(counts: Counter[str], name: str) -> int:
    return counts.total() if name == "all" else counts[name]


def operations(config: Path, store: Path) -> Counter[str]:
    """Return the system calls of one shard that name or list what is in the store, or sync it."""
    log = config.parent / "strace"
    arguments = ["extract", str(config), "--store", str(store), "--device", "cpu"]
    code = "from pipeline.cli import main; main()"
    subprocess.run(
        ["strace", "-f", "-y", "-o", str(log), "-e", "trace=%file,fsync,getdents64",
         sys.executable, "-c", code, *arguments, "--workers", "0", "--shard", "1/1"],
        check=True, env=environment(0), cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if str(store) + "/" in line or f"{store}>" in line:
            found = re.match(r"\d+\s+(\w+)\(", line)
            if found:
                counts[found[1]] += 1
    return counts


# --- tables --------------------------------------------------------------------------------------


def tables(folder: Path, slices: int) -> None:
    """Print what each process pays for a store of so many slices, in time and memory."""
    rows = 1024
    store = empty_store(folder / "store", -(-slices // rows), rows)
    commit_made_up(store)
    print(f"{slices} slices, {-(-slices // rows)} parts, all caches warm")
    before, again = memory(), FeatureStore.open(store.path)
    timed("read the slice table", again.slices)
    print(f"{'its memory':<44} {memory() - before:>8.0f} MiB")
    timed("slices of 64 parts", lambda: PartSlices.of_parts(again, again.layout.parts(64 * rows)))
    timed("which parts are missing", again.missing)
    timed("status of every row", again.status)
    timed("known pixels (once a process)", lambda: Originals(again, lambda modality: 0))


def timed(what: str, call: object) -> None:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    print(f"{what:<44} {time.perf_counter() - began:>8.2f} s", flush=True)


def memory() -> float:
    """Return the memory of this process now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
