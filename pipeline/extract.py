"""FLOW 1: discover, read, preprocess, embed, write. The only place that runs a backbone.

Everything that can be known without a network is done first, so that a finished store costs a
look at the folder and no import of torch. `pipeline.extraction.embed` does the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import JobQueue
from pipeline.config.root import Config
from pipeline.extraction.discover import IDENTIFIER_IN_PATH, Open, opened_by
from pipeline.extraction.distributed.clusters import PATIENCE_S, Cluster, Scheduler, connections
from pipeline.extraction.distributed.processes import Processes, embed_by
from pipeline.extraction.distributed.shards import Looks, Shard, embed_ring, look_once, rules_of
from pipeline.extraction.distributed.tasks import Work, add, forget_failures
from pipeline.extraction.embed import BadLimit, Embedded, Progress, Speed
from pipeline.extraction.sync import make_recipe, open_store, settle
from pipeline.inference.speed import cores
from stores import FeatureStore
from stores.errors import ConfigError
from stores.storage import storage_of


@dataclass(frozen=True)
class Summary:
    """What one run found, did and left aside; every count is of slices unless it says files.

    linked: slices that took the features of another slice with the same pixels. telling: slices
    whose path holds their patient's id or a UID, where the store keeps paths. bottleneck: a
    sentence on what took the time.
    """

    store: str
    weights: str
    slices: int
    embedded: int
    linked: int
    telling: int
    found: dict[str, int]
    unreadable: dict[str, int]
    files_set_aside: dict[str, int]
    parts_elsewhere: list[str]
    parts_failed: list[str]
    seconds: dict[str, float]
    bottleneck: str

    @property
    def clean(self) -> bool:
        """True where every image found has features now."""
        return self.done_here and not self.parts_elsewhere

    @property
    def done_here(self) -> bool:
        """True where every image has features, or will have from a process that is at it."""
        bad_files = sum(n for reason, n in self.files_set_aside.items() if reason != "other")
        lost = bad_files or self.unreadable or self.parts_failed
        return not lost


def extract(
    config: Config,
    speed: Speed = Speed(),  # noqa: B008 (frozen)
    progress: Progress = Progress(),  # noqa: B008 (frozen)
    *,
    max_bad: float = 1.0,
    rehash: bool = False,
    where: Shard | Processes | Cluster = Processes(),  # noqa: B008 (frozen)
) -> Summary:
    """Embed whatever of the collection is not in the store yet.

    max_bad: the part of the collection (bad files and unreadable slices, over all slices and bad
    files) above which the run stops. Raises TooManyBadError then, RecipeMismatchError where the
    store was made by another recipe, WeightsError where the weights are not to be had, and
    ClusterError. What was committed before is kept. rehash: open every file, whatever its size and
    time say. where: the devices of this machine; one shard of several; the workers of a cluster.
    """
    storage = storage_of(config.store)
    if not isinstance(where, Processes) or (where.count or 1) > 1:
        storage.check_shareable()
    if not storage.shareable:
        where = Processes(1)
    with storage.occupied(), _frugal():
        return _extract(config, speed, progress, max_bad, rehash, where)


def _extract(
    config: Config,
    speed: Speed,
    progress: Progress,
    max_bad: float,
    rehash: bool,
    where: Shard | Processes | Cluster,
) -> Summary:
    started = time.perf_counter()
    recipe, weights_file = make_recipe(config)
    store = open_store(config, recipe)
    weights = weights_file or recipe.weights
    work = Work(
        store=str(store.path.absolute()),
        backbone=config.backbone.name,
        weights=str(weights),
        root=str(config.data.root.absolute()),
        speed=speed,
    )
    run = _Run(config, store, work, progress, max_bad, rehash)
    match where:
        case Shard():
            found, done, failed = run.as_shard(where)
        case Processes():
            found, done, failed = run.here(where)
        case _:
            found, done, failed = run.on(where)
    forget_failures(store)
    reasons = _set_aside(store)
    return Summary(
        store=store.place,
        weights=recipe.weights,
        slices=len(store.live_rows()),
        embedded=done.rows,
        linked=done.linked,
        telling=_flagged(store, IDENTIFIER_IN_PATH) if config.data.paths == "keep" else 0,
        found=found,
        unreadable=dict(_unreadable(store)),
        files_set_aside=dict(reasons),
        parts_elsewhere=done.elsewhere,
        parts_failed=[f"part {index}: {why}" for index, why in sorted(failed.items())],
        seconds={
            **done.seconds,
            "look": round(run.look_s, 3),
            "embed": round(run.embed_s, 3),
            "all": round(time.perf_counter() - started, 3),
        },
        bottleneck=done.bottleneck,
    )


def placed(
    config: Config, shard: str | None, processes: int | None, scheduler: str | None
) -> Shard | Processes | Cluster:
    """Return where to embed: as the one option given says (`I/N`, ...), or else the config.

    Raises ConfigError for more than one.
    """
    given = [each for each in (shard, processes, scheduler) if each is not None]
    if len(given) > 1:
        raise ConfigError("--shard, --processes and --scheduler exclude each other: give one.")
    if shard is not None:
        return Shard.parse(shard)
    if processes is not None:
        return Processes(processes)
    if scheduler is not None:
        return Scheduler(scheduler)
    return config.scale or Processes()


# What was found, what was added, and the parts that failed with why.
Done = tuple[dict[str, int], Embedded, dict[int, str]]


@contextlib.contextmanager
def _frugal() -> Iterator[None]:
    """Have Arrow take its memory from the system, where what a look is through with goes back to.

    Its own pool keeps twice what the tables need.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@dataclass
class _Run:
    """One run: a look at the collection, and what is missing then."""

    config: Config
    store: FeatureStore
    work: Work
    progress: Progress
    max_bad: float
    rehash: bool
    look_s: float = 0.0
    embed_s: float = 0.0

    def here(self, where: Processes) -> Done:
        """Look, then embed on this machine: what was found, added, and failed."""
        found = self._look(None)
        with self._clock("embed_s"):
            missing = self.store.missing()
            if not missing:
                return found, Embedded(), {}
            limit = self._limit()
            return found, *embed_by(where, self.work, self.store, missing, self.progress, limit)

    def on(self, cluster: Cluster) -> Done:
        """Look and embed on a cluster, which is connected to where there is something to do."""
        # Imported where it is asked for: dask costs a second.
        from pipeline.extraction.distributed.dask_headers import opened_on
        from pipeline.extraction.distributed.dask_run import embed_on

        data, plane = self.config.data, self.config.preprocess.plane
        patience_s = float("inf") if isinstance(cluster, JobQueue) else PATIENCE_S
        with connections(cluster, self.work.speed.device) as connect:
            here = opened_by(data, plane, self._header_workers())
            found = self._look(opened_on(connect, data, plane, here))
            with self._clock("embed_s"):
                missing = self.store.missing()
                if not missing:
                    return found, Embedded(), {}
                asked = connect, self.work, self.store, missing, self.progress, self._limit()
                return found, *embed_on(*asked, patience_s)

    def _look(self, elsewhere: Open | None) -> dict[str, int]:
        with self._clock("look_s"):
            self._write_demo()
            self.store.sweep()
            workers = self._header_workers()
            found = settle(
                self.config, self.store, rehash=self.rehash, workers=workers, elsewhere=elsewhere
            )
        return found.counts

    def as_shard(self, shard: Shard) -> Done:
        """Embed beside others, after one look for all of them."""
        before, done, failed = Looks.read(self.store), Embedded(), dict[int, str]()
        # What the tables know comes first: a look at a large collection takes long, and GPUs wait.
        if before.rules == rules_of(self.config) and not self.rehash:
            done, failed = self._ring(shard)
        with self._clock("look_s"):
            settled = look_once(
                self.config,
                self.store,
                before,
                self._write_demo,
                rehash=self.rehash,
                workers=self._header_workers(),
            )
        found = settled.counts if settled else {}
        del settled  # which knows every slice
        more, lost = self._ring(shard)
        return found, add(done, more), failed | lost

    def _ring(self, shard: Shard) -> tuple[Embedded, dict[int, str]]:
        with self._clock("embed_s"):
            return embed_ring(self.work, self.store, shard, self.progress, self._limit())

    def _write_demo(self) -> None:
        if self.config.demo is not None:
            from pipeline.datasets.demo import write_demo

            write_demo(self.config.data.root, self.config.demo.patients, self.config.demo.seed)

    def _header_workers(self) -> int:
        workers = self.work.speed.workers
        return cores() if workers is None else workers

    def _limit(self) -> BadLimit:
        reasons = _set_aside(self.store)
        bad = reasons.total() - reasons["other"]
        return BadLimit(seen=len(self.store.live_rows()) + bad, fraction=self.max_bad, bad=bad)

    @contextlib.contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)


def _set_aside(store: FeatureStore) -> Counter[str]:
    """Count the files that were set aside by reason."""
    counts = pc.value_counts(store.files(["reason"])["reason"].drop_null()).to_pylist()
    return Counter({each["values"]: each["counts"] for each in counts})


def _flagged(store: FeatureStore, flag: str) -> int:
    """Count the live slices that carry a flag."""
    slices = store.slices(["flags", "withdrawn"])
    live = slices["flags"].filter(pc.invert(slices["withdrawn"]))
    return int(pc.sum(pc.equal(pc.list_flatten(live), flag)).as_py() or 0)


def _unreadable(store: FeatureStore) -> Counter[str]:
    """Count the store's unreadable live slices by reason, from the receipts."""
    failures = store.failures()
    lost = np.array(list(failures), np.int64)
    return Counter(failures[row] for row in lost[np.isin(lost, store.live_rows())].tolist())
