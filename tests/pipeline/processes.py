"""Extractions as real processes: the command line, and a dask cluster with an address."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from distributed import LocalCluster

from stores import FeatureStore
from stores.receipt import Receipt
from tests.pipeline.slow import Hold
from tests.waiting import PATIENCE_S, until
from tests.warm import WarmProcess, interpreter

ROOT = Path(__file__).parents[2]
SLOW = "tests.pipeline.slow"
_PAUSE_S = 0.3  # before a worker that ended is started again
COMMAND = "from pipeline.cli import main; main()"
# It looks often at what the others do, and is as slow as its environment says.
OFTEN = f"import {SLOW}; {COMMAND}"
# What the environment says of dask was read in another process, which this one was forked from.
_DASK = "import dask, runpy; dask.config.refresh(); runpy.run_module('{}', run_name='__main__')"
_started: list[WarmProcess] = []


def environment(
    cost_s: float = 0.0,
    sync_s: float = 0.0,
    stalled: Path | None = None,
    hold: Hold | None = None,
) -> dict[str, str]:
    """Return the environment of a process in which a slice, and to sync a file, take so long.

    stalled: a file; while it is there, no file is synced at all. hold: where the network waits.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COST_S": str(cost_s),
        "SYNC_S": str(sync_s),
        "STALLED": str(stalled or ""),
        "HOLD": str(hold.path) if hold else "",
        "INTERPRETER": interpreter(),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([SLOW]),
    }


def extraction(
    config: Path,
    store: Path,
    *options: str,
    cost_s: float = 0.0,
    sync_s: float = 0.0,
    stalled: Path | None = None,
    hold: Hold | None = None,
) -> WarmProcess:
    """Start `radprobe extract` on the CPU into a store."""
    arguments = ["extract", str(config), "--store", str(store), "--device", "cpu", "--json"]
    arguments += ["--batch-size", "4", "--workers", "1", *options]
    slowed = environment(cost_s, sync_s, stalled, hold)
    process = WarmProcess(OFTEN, *arguments, environment=slowed)
    _started.append(process)
    return process


@atexit.register
def kill_all() -> None:
    """Kill the extractions that still run: those of a test or benchmark that failed."""
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def ended(process: WarmProcess, code: int = 0) -> dict[str, Any]:
    """Wait for an extraction that must end with a code; return its summary."""
    said, complained = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, (process.returncode, said[-2000:], complained[-4000:])
    return dict(json.loads(said)) if said else {}


def opened(path: Path) -> FeatureStore:
    """Return a store, as soon as it is there."""
    until((path / "manifest.json").exists)
    return FeatureStore.open(path)


def at_work(store: FeatureStore) -> list[int]:
    """Return the processes of this host that hold parts."""
    return sorted({int(holder.name.rpartition(":")[2]) for holder in store.holders().values()})


def committed(store: FeatureStore) -> dict[int, Receipt]:
    """Return the receipts of a store by part."""
    receipts = {}
    for path in (store.path / "parts").glob("[0-9]*.json"):
        receipts[int(path.stem)] = Receipt.parse(json.loads(path.read_text()))
    return receipts


def kill_one(store: FeatureStore, after: int) -> int:
    """Kill (-9) a process that holds a part, once so many parts are committed; return its id."""
    until(lambda: len(committed(store)) >= after)
    victim = until(lambda: at_work(store))[0]
    os.kill(victim, signal.SIGKILL)
    return int(victim)


def bit_equal(a: FeatureStore, b: FeatureStore) -> bool:
    """Return whether two stores hold the same rows and the same bits."""
    columns = ["row", "path", "frame"]
    same = a.slices().select(columns).equals(b.slices().select(columns))
    return same and all(
        np.array_equal(a.read(name), b.read(name), equal_nan=array.dtype.kind == "f")
        for name, array in a.arrays.items()
    )


def cluster_of(workers: int) -> LocalCluster:
    """Return a cluster in this process, of so many workers of one thread."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
    )


class Dask:
    """A scheduler with an address, and workers that are started again whenever they end."""

    def __init__(
        self, folder: Path, workers: int, cost_s: float = 0.0, hold: Hold | None = None
    ) -> None:
        self.folder = folder
        self.environment = environment(cost_s, hold=hold)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = self._scheduler()
        self._workers: set[WarmProcess] = set()
        self._is_over = False
        self._lock = threading.Lock()  # of both
        self._keepers = [threading.Thread(target=self._keep_worker) for _ in range(workers)]
        for keeper in self._keepers:
            keeper.start()

    def __enter__(self) -> Dask:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._is_over = True
            for worker in self._workers:
                worker.kill()
        for keeper in self._keepers:
            keeper.join()
        self.kill_scheduler()

    def kill_scheduler(self) -> None:
        """Kill (-9) the scheduler: nobody listens at its address any more."""
        self.scheduler.kill()
        self.scheduler.wait()

    def start_scheduler(self) -> None:
        """Start another scheduler at the address, which listens a second or so later."""
        self.scheduler = self._scheduler()

    def _scheduler(self) -> WarmProcess:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        return self._start("dask_scheduler", *where)

    def _keep_worker(self) -> None:
        """Start a worker, and another whenever it has ended."""
        options = [self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        options += ["--local-directory", str(self.folder / "scratch")]
        while True:
            with self._lock:
                if self._is_over:
                    return
                worker = self._start("dask_worker", *options)
                self._workers.add(worker)
            worker.wait()
            with self._lock:
                self._workers.remove(worker)
            time.sleep(_PAUSE_S)

    def _start(self, program: str, *options: str) -> WarmProcess:
        code = _DASK.format(f"distributed.cli.{program}")
        log = self.folder / "dask.log"
        return WarmProcess(code, *options, environment=self.environment, log=log)
