"""Dask clusters: a scheduler somewhere, or jobs of a batch system.

With `dask_run` the home of dask. A worker is one process of one thread.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.data import JobQueue
from stores.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from distributed import Client

# How long a scheduler that was lost, or a first worker, is waited for.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Scheduler:
    """A dask scheduler that runs already, by its address, with the workers that it has."""

    address: str


Cluster = Scheduler | JobQueue


@contextlib.contextmanager
def connections(cluster: Cluster, device: str) -> Iterator[Callable[[], Client]]:
    """Give what connects to a cluster; one that is ours to start is started at the first call."""
    with contextlib.ExitStack() as stack:
        # Once for all connections: one that is lost leaves the jobs as they are, and a run with
        # nothing to do submits none.
        @functools.cache
        def started(choice: JobQueue) -> Any:
            cluster = stack.enter_context(job_queue(choice, device))
            # A job that is lost (preempted, out of time, its node down) is submitted again.
            cluster.adapt(minimum_jobs=choice.workers, maximum_jobs=choice.workers)
            return cluster

        def connect() -> Client:
            _quieten()  # before distributed is imported, which reads its config then
            if isinstance(cluster, Scheduler):
                return _reach(cluster.address)
            return _client(started(cluster))

        yield connect


def _quieten() -> None:
    """Have dask log errors alone, here and in the processes it starts, unless its config says."""
    import dask

    if dask.config.get("logging.distributed", None) is None:  # not set, and not imported yet
        start = "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED"
        dask.config.set({"logging.distributed": "error", start: "error"})


def _client(cluster: Any, **options: Any) -> Client:
    """Return a client of a scheduler (by its address) or of a cluster."""
    # Imported where it is connected to: dask costs a second, and a finished store needs none.
    from distributed import Client

    return Client(cluster, set_as_default=False, **options)


def _reach(address: str) -> Client:
    """Return a client of a running scheduler, waiting for it to come (back)."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _client(address, timeout=10)
        except (OSError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"No dask scheduler answers at {address!r} since {PATIENCE_S:g} s. Start it "
                    "(`dask scheduler`), or check the address. What was committed is kept."
                ) from error
            time.sleep(1)  # nothing tells of a scheduler that comes but a connection to it
        except ValueError as error:
            raise ConfigError(f"A scheduler is named as tcp://host:8786. {error}") from None


def job_queue(choice: JobQueue, device: str) -> Any:
    """Return a cluster of a batch system, no job of which is submitted yet.

    A job is one worker process of one thread, whatever the options say of cores. Raises
    ConfigError where dask-jobqueue is not installed or refuses the options.
    """
    try:
        import dask_jobqueue
    except ImportError:
        raise ConfigError(
            "`scale` needs dask-jobqueue: pip install 'radprobe[slurm]' on this machine. Or start "
            "shards yourself: `radprobe slurm CONFIG` writes the script."
        ) from None
    kinds = {
        "slurm": dask_jobqueue.SLURMCluster,
        "pbs": dask_jobqueue.PBSCluster,
        "lsf": dask_jobqueue.LSFCluster,
        "sge": dask_jobqueue.SGECluster,
    }
    options = dict(choice.options)
    extra = [*options.pop("worker_extra_args", []), "--nthreads", "1"]
    if device.startswith("cuda"):
        extra += ["--resources", "GPU=1"]
    # The user's options stand over what comes before them, and under what comes after.
    settings = {"cores": 1, "job_name": "radprobe", **options, "processes": 1}
    try:
        return kinds[choice.kind](
            **settings,
            worker_extra_args=extra,
            scheduler_options={"dashboard": False, "dashboard_address": ":0"},
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scale.options: dask-jobqueue refuses them: {error}") from None
