"""One store by many processes: shards, worker processes, a dask cluster; some of them killed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from distributed import Client

from pipeline.config.data import JobQueue
from pipeline.config.loading import load_config
from pipeline.extract import extract
from pipeline.extraction.distributed import dask_run
from pipeline.extraction.distributed.clusters import job_queue
from pipeline.extraction.distributed.tasks import Work, WorkerOutcome
from pipeline.extraction.embed import BadLimit, Progress, Speed
from stores import FeatureStore
from stores.verify import verify
from tests.phantoms import write_png
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import (
    Dask,
    at_work,
    bit_equal,
    cluster_of,
    committed,
    ended,
    extraction,
    kill_all,
    kill_one,
    opened,
)
from tests.pipeline.slow import Hold
from tests.waiting import PATIENCE_S, until

PARTS = 12
HERE = Speed(device="cpu", batch_size=4, workers=1)


@pytest.fixture(autouse=True)
def nothing_goes_on_running() -> Iterator[None]:
    yield
    kill_all()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a collection of 12 parts of 4 pictures, and what names it."""
    folder = tmp_path_factory.mktemp("scale")
    rng = np.random.default_rng(0)
    for i in range(4 * PARTS):
        write_png(folder / f"data/{i:02}.png", rng.integers(0, 255, (40, 40), np.uint8))
    content = {
        "data": {"root": "data", "paths": "keep"},  # stores of several keys are compared
        "backbone": {"name": f"hf:{write_tiny_folder(folder / 'tiny')}", "image_size": 28},
        "store": "store",
        "outputs": {"part_rows": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def alone(config: Path) -> FeatureStore:
    """Return the store that one process makes."""
    alone = config.parent / "alone"
    assert extract(load_config(config, alone), HERE).clean
    return FeatureStore.open(alone)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """Return what has the networks of other processes wait."""
    return Hold(tmp_path / "hold")


def is_as_if_nothing_had_been(store: FeatureStore, alone: FeatureStore) -> None:
    assert bit_equal(store, alone)
    assert sorted(committed(store)) == list(range(PARTS))
    assert verify(store.path).findings == []
    assert not list(store.claims.iterdir())


def writers(store: FeatureStore) -> set[str]:
    """Return the processes that committed the parts of a store."""
    return {receipt.by for receipt in committed(store).values()}


def unwritable(alone: FeatureStore, part: int, folder: Path) -> Path:
    """Return a copy of a store with nothing committed, a folder in place of a part's chunk."""
    path = folder / "store"
    shutil.copytree(alone.path, path)
    shutil.copy(alone.path.with_name("alone.key"), path.with_name("store.key"))
    for receipt in (path / "parts").glob("*.json"):
        receipt.unlink()
    chunk_of(path, part).unlink()
    chunk_of(path, part).mkdir()
    return path


def chunk_of(store: Path, part: int) -> Path:
    return store / f"features.zarr/mean/c/{part}/0"


def test_shards_take_over_what_a_killed_one_left(
    config: Path, alone: FeatureStore, tmp_path: Path, hold: Hold
) -> None:
    path = tmp_path / "store"
    hold.at(2, path)
    shards = [extraction(config, path, "--shard", f"{i}/3", hold=hold) for i in (1, 2, 3)]
    victim = kill_one(opened(path), after=2)
    hold.release()
    (dead,) = (shard for shard in shards if shard.pid == victim)
    assert dead.wait() == -signal.SIGKILL
    done = [ended(shard) for shard in shards if shard is not dead]
    dead.communicate()
    store = FeatureStore.open(path)
    is_as_if_nothing_had_been(store, alone)
    by = [receipt.by for receipt in committed(store).values()]
    assert sum(summary["embedded"] for summary in done) == 4 * sum(
        not name.endswith(f":{victim}") for name in by
    )
    assert all(summary["clean"] for summary in done)


def test_what_a_slow_disk_still_writes_is_waited_for_and_not_done_twice(
    config: Path, alone: FeatureStore, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    stalled = tmp_path / "stalled"
    slow = extraction(config, path, "--shard", "1/2", sync_s=0.02, stalled=stalled)
    until(lambda: at_work(opened(path)))
    # However late the other starts: the disk of the first stands still until it is at work.
    stalled.touch()
    fast = extraction(config, path, "--shard", "2/2")
    until(lambda: any(name.endswith(f":{fast.pid}") for name in writers(opened(path))))
    stalled.unlink()
    done = [ended(fast), ended(slow)]
    store = FeatureStore.open(path)
    is_as_if_nothing_had_been(store, alone)
    assert sum(summary["embedded"] for summary in done) == 4 * PARTS
    assert [summary["clean"] for summary in done] == [True, True]
    assert {name.rpartition(":")[2] for name in writers(store)} == {str(slow.pid), str(fast.pid)}


def test_a_part_that_no_process_can_write_is_named_and_the_rest_is_done(
    config: Path, alone: FeatureStore, tmp_path: Path
) -> None:
    path = unwritable(alone, 7, tmp_path)
    said = ended(extraction(config, path, "--processes", "2"), 1)
    (failed,) = said["parts_failed"]
    assert failed.startswith("part 7: IsADirectoryError")
    assert sorted(committed(FeatureStore.open(path))) == [i for i in range(PARTS) if i != 7]
    assert said["embedded"] == 4 * (PARTS - 1)


def test_worker_processes_are_ended_and_killed_and_the_work_goes_on(
    config: Path, alone: FeatureStore, tmp_path: Path, hold: Hold
) -> None:
    path = tmp_path / "store"
    hold.at(2, path)
    first = extraction(config, path, "--processes", "2", hold=hold)
    store = opened(path)
    until(lambda: len(committed(store)) >= 2 and len(at_work(store)) == 2)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    assert first.stderr is not None
    # Behind what it said of the collection.
    interrupted = next(line for line in first.stderr if "Interrupted" in line)
    # Each ends after the batch that it is at. Should they be quicker than the signal that reaches
    # them, there is still work left.
    hold.at(PARTS // 2, path)
    _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 143
    assert "goes on from there" in interrupted
    assert "Traceback" not in said
    alive = [each for each in family if each.is_running()]
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    kept = len(committed(store))
    hold.at(kept + 1, path)
    second = extraction(config, path, "--processes", "2", hold=hold)
    kill_one(store, after=kept + 1)
    hold.release()
    assert ended(second)["embedded"] == 4 * (PARTS - kept)
    is_as_if_nothing_had_been(store, alone)


def test_a_cluster_whose_scheduler_is_lost_and_a_part_that_nobody_can_write(
    config: Path, alone: FeatureStore, tmp_path: Path
) -> None:
    path = unwritable(alone, 7, tmp_path)
    store = FeatureStore.open(path)
    with Dask(tmp_path, workers=2, cost_s=0.05) as cluster:
        run = extraction(config, path, "--scheduler", cluster.address)
        until(lambda: len(committed(store)) >= 2)
        cluster.kill_scheduler()
        cluster.start_scheduler()
        kill_one(store, after=5)
        (failed,) = ended(run, 1)["parts_failed"]
        assert failed.startswith("part 7: IsADirectoryError")
        assert sorted(committed(store)) == [i for i in range(PARTS) if i != 7]
    chunk_of(path, 7).rmdir()
    again = extract(load_config(config, path), HERE)
    assert (again.embedded, again.parts_failed) == (4, [])
    is_as_if_nothing_had_been(store, alone)


def test_a_part_is_not_kept_for_workers_that_have_died(
    alone: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed on one, and the others it was meant for were gone when its turn came."""
    tried = tmp_path / "tried"

    def embed_at_worker(work: Work, parts: tuple[int, ...]) -> tuple[str, WorkerOutcome]:
        if tried.exists():
            return "tcp://127.0.0.1:2", WorkerOutcome()
        tried.touch()
        return "tcp://127.0.0.1:1", WorkerOutcome(undone=parts, error="ValueError: no")

    def stale(run: dask_run._ClusterRun) -> int:
        run.workers = ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]
        return 1

    monkeypatch.setattr(dask_run, "embed_at_worker", embed_at_worker)
    monkeypatch.setattr(dask_run._ClusterRun, "_count_workers", stale)
    work = Work(str(alone.path), "", "", "", Speed(device="cpu"))
    with cluster_of(1) as cluster:
        result = dask_run.embed_on_cluster(
            lambda: Client(cluster, set_as_default=False),
            work, alone, [alone.layout.part(3)], Progress(), BadLimit(1, 1.0),
        )  # fmt: skip
    assert tried.exists()
    assert result.failed == {}


# --- jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "lines"),
    [
        (
            "slurm",
            {"queue": "gpu", "walltime": "02:00:00", "memory": "8GB"},
            ["#SBATCH -J radprobe", "#SBATCH -p gpu", "#SBATCH -t 02:00:00", "#SBATCH -n 1"],
        ),
        (
            "pbs",
            {"queue": "gpu", "walltime": "02:00:00", "memory": "8GB", "cores": 4},
            ["#PBS -N radprobe", "#PBS -q gpu", "#PBS -l walltime=02:00:00", "ncpus=4"],
        ),
    ],
)
def test_a_job_is_one_worker_of_one_thread(
    kind: str, options: dict[str, object], lines: list[str]
) -> None:
    choice = JobQueue.model_validate({"kind": kind, "workers": 3, "options": options})
    with job_queue(choice, "cuda") as cluster:
        script = cluster.job_script()
    for line in lines:
        assert line in script
    assert "--nthreads 1" in script.splitlines()[-1]
    assert "--resources GPU=1" in script
