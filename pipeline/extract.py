"""FLOW 1: discover, read, preprocess, embed, write. The only place that runs a backbone.

Everything that can be known without a network is done first, so that a finished store costs a
look at the folder and no import of torch. `pipeline.extraction.embed` does the rest.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backbones.weights import Checkpoint
from pipeline.config.data import JobQueue
from pipeline.config.root import Config
from pipeline.datasets.demo import write_demo
from pipeline.extraction.discover import IDENTIFIER_IN_PATH, Open, opened_by
from pipeline.extraction.distributed.clusters import PATIENCE_S, Cluster, Scheduler, connections
from pipeline.extraction.distributed.processes import Processes, devices_of, embed_by_processes
from pipeline.extraction.distributed.shards import (
    LookRecord,
    Shard,
    alone,
    embed_ring,
    look_once,
    rules_of,
)
from pipeline.extraction.distributed.tasks import EmbedResult, Work, forget_failures
from pipeline.extraction.embed import BadLimit, Load, Progress, Speed, load_network
from pipeline.extraction.recipes import check_levels, locate_weights, open_store, recipe_with
from pipeline.extraction.selection import left_out_folders, set_aside
from pipeline.extraction.sync import Look, update_tables
from pipeline.inference.speed import sleep_while_waiting
from pipeline.io.pool import start_reader
from pipeline.outlook import Outlook, log_outlook, outlook_of
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.interruption import leaving_behind
from pipeline.shared.texts import count
from stores import FeatureStore, PartRange
from stores.errors import ConfigError
from stores.storage import storage_of


@dataclass(frozen=True)
class Summary:
    """What one run found, did and left aside; every count is of slices unless it says files.

    linked: slices that took the features of another slice with the same pixels. telling: slices
    whose path holds their patient's id or a UID, where the store keeps paths. unreadable_volumes:
    whose slices are unreadable, where volumes are embedded. folders_left_out: by what they are;
    notes: what of the config had no effect, as far as this run looked. bottleneck: a sentence on
    what took the time.
    """

    store: str
    weights: str
    slices: int
    embedded: int
    linked: int
    telling: int
    found: dict[str, int]
    unreadable: dict[str, int]
    unreadable_volumes: int
    files_set_aside: dict[str, int]
    folders_left_out: dict[str, int]
    notes: list[str]
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
    ahead: Callable[[Outlook], None] = log_outlook,
) -> Summary:
    """Embed whatever of the collection is not in the store yet.

    max_bad: the part of the collection (bad files and unreadable slices, over all slices and bad
    files) above which the run stops. Raises TooManyBadError then, RecipeMismatchError where the
    store was made by another recipe, WeightsError where the weights are not to be had, and
    ClusterError. What was committed before is kept. rehash: open every file, whatever its size and
    time say. where: the devices of this machine; one shard of several; the workers of a cluster.
    ahead: is given what labels, masks and split will come to, before anything is embedded.
    """
    storage = storage_of(config.store)
    if not isinstance(where, Processes) or (where.count or 1) > 1:
        storage.check_shareable()
    # A store at a URL has one writer at a time, and this process is it.
    if not storage.shareable:
        where = Processes(1)
    with storage.occupied(), _arrow_memory_from_system():
        return _extract(config, speed, progress, max_bad, rehash, where, ahead)


def _extract(
    config: Config,
    speed: Speed,
    progress: Progress,
    max_bad: float,
    rehash: bool,
    where: Shard | Processes | Cluster,
    ahead: Callable[[Outlook], None],
) -> Summary:
    started = time.perf_counter()
    check_levels(config)  # before the hours of embedding
    weights = locate_weights(config)
    recipe = recipe_with(config, weights)
    checkpoint = Checkpoint.of(config.backbone.name, weights)
    # A store whose network cannot be loaded would be in the way of the next try.
    tried = _TriedNetwork(recipe, checkpoint, where)
    store = open_store(config, recipe, functools.partial(tried.load, speed))
    # What an earlier run left half done comes first: a look that finds nothing new writes nothing.
    store.recover()
    work = Work(
        store=str(store.path.absolute()),
        backbone=checkpoint.name,
        weights=checkpoint.weights,
        root=str(config.data.root.absolute()),
        speed=speed,
        stamp=checkpoint.stamp,
    )
    run = _ExtractRun(config, store, work, progress, max_bad, rehash, ahead, tried.again)
    match where:
        case Shard():
            result = run.as_shard(where)
        case Processes():
            result = run.on_this_machine(where)
        case _:
            result = run.on_cluster(where)
    # Last: a writer that was killed meanwhile may have committed, and left its claim.
    store.sweep_committed()
    forget_failures(store)
    return _summary(run, result, recipe.weights, started)


class _TriedNetwork:
    """The network that a new store is to have, loaded for the try and, on a CPU, for the run too.

    where: by whom the store is filled. What another process or a card is to run is let go of.
    """

    def __init__(
        self, recipe: Recipe, checkpoint: Checkpoint, where: Shard | Processes | Cluster
    ) -> None:
        self._recipe = recipe
        self._checkpoint = checkpoint
        self._where = where
        self._network: Any = None

    def load(self, speed: Speed) -> None:
        """Load the network on the CPU; speed: of the run. Raises DeviceError, WeightsError."""
        start_reader(speed.header_workers)  # for the look at the folder, which comes next
        sleep_while_waiting()  # before torch is imported
        from pipeline.shared.devices import pick_device

        network = load_network(self._recipe, self._checkpoint, Speed("cpu"))
        if isinstance(self._where, Processes):
            devices = map(pick_device, devices_of(speed.device, self._where.count))
            if [*devices] == ["cpu"]:
                self._network = network

    def again(self, recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
        """Return the network for the run: the one that was tried, once. Raises WeightsError."""
        network = self._network
        self._network = None
        if network is None or speed.compiled:
            network = load_network(recipe, checkpoint, speed)
        return network


def _summary(run: _ExtractRun, result: _RunResult, weights: str, started: float) -> Summary:
    """Return what a run of these weights came to, which `started` then (`perf_counter`)."""
    store = run.store
    embedded = result.parts.embedded
    failed = sorted(result.parts.failed.items())
    keeps_paths = run.config.data.paths == "keep"
    files = _files(store)
    unreadable = _unreadable(store)
    return Summary(
        store=store.place,
        weights=weights,
        slices=len(store.live_rows()),
        embedded=embedded.rows,
        linked=embedded.linked,
        telling=_flagged(store, IDENTIFIER_IN_PATH) if keeps_paths else 0,
        found=result.counts,
        unreadable=dict(Counter(unreadable.values())),
        unreadable_volumes=_volumes(store, unreadable),
        files_set_aside=dict(set_aside(files)),
        folders_left_out=dict(left_out_folders(files)),
        notes=list(run.notes),
        parts_elsewhere=embedded.elsewhere,
        parts_failed=[f"part {index}: {why}" for index, why in failed],
        seconds={
            **embedded.seconds,
            "look": round(run.look_s, 3),
            "embed": round(run.embed_s, 3),
            "all": round(time.perf_counter() - started, 3),
        },
        bottleneck=embedded.bottleneck,
    )


def placement(
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


@contextlib.contextmanager
def _arrow_memory_from_system() -> Iterator[None]:
    """Have Arrow take its memory from the system, where what a look is through with goes back to.

    Its own pool keeps twice what the tables need.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@dataclass(frozen=True)
class _RunResult:
    """What a run came to. counts: how many slices came which way, by its look at the collection."""

    counts: dict[str, int]
    parts: EmbedResult = field(default_factory=EmbedResult)


@dataclass
class _ExtractRun:
    """One run of `extract`: a look at the collection, then what is missing, in one of three ways.

    load: gives the network where this process alone embeds. notes: what its look says of the
    config. look_s, embed_s: the seconds that both took.
    """

    config: Config
    store: FeatureStore
    work: Work
    progress: Progress
    max_bad: float
    rehash: bool
    ahead: Callable[[Outlook], None]
    load: Load
    notes: tuple[str, ...] = ()
    look_s: float = 0.0
    embed_s: float = 0.0

    def on_this_machine(self, processes: Processes) -> _RunResult:
        """Look, then embed on the devices of this machine."""
        counts = self._look(open_files=None)
        with self._clock("embed_s"):
            missing = self.store.missing()
            if not missing:
                return _RunResult(counts)
            limit = self._limit()
            with leaving_behind(functools.partial(_left_of, self.store, missing)):
                parts = embed_by_processes(
                    processes, self.work, self.store, missing, self.progress, limit, self.load
                )
            return _RunResult(counts, parts)

    def on_cluster(self, cluster: Cluster) -> _RunResult:
        """Look and embed on a cluster, which is connected to where there is something to do."""
        # Imported where a cluster is asked for: dask costs a second, and is told how much to log
        # before it is imported (`connections`).
        from pipeline.extraction.distributed.dask_headers import open_on_cluster
        from pipeline.extraction.distributed.dask_run import embed_on_cluster

        data = self.config.data
        plane = self.config.preprocess.plane
        # The jobs of a queue come when the queue has room; a scheduler's workers are there.
        patience_s = float("inf") if isinstance(cluster, JobQueue) else PATIENCE_S
        with connections(cluster, self.work.speed.device) as connect:
            locally = opened_by(data, plane, self.work.speed.header_workers)
            counts = self._look(open_on_cluster(connect, data, plane, locally))
            with self._clock("embed_s"):
                missing = self.store.missing()
                if not missing:
                    return _RunResult(counts)
                limit = self._limit()
                with leaving_behind(functools.partial(_left_of, self.store, missing)):
                    parts = embed_on_cluster(
                        connect, self.work, self.store, missing, self.progress, limit, patience_s
                    )
                return _RunResult(counts, parts)

    def as_shard(self, shard: Shard) -> _RunResult:
        """Embed together with other shards, of which one looks at the collection for all."""
        # Read before anything else: a look that is taken from now on, by whichever shard, is new
        # enough for this one.
        before = LookRecord.read(self.store)
        parts = EmbedResult()
        with alone(self.store, shard):
            # What the tables know comes first: a look at a large collection takes long, and GPUs
            # wait. Tables by other rules may know slices that this config does not want.
            if before.rules == rules_of(self.config) and not self.rehash:
                parts = self._ring(shard)
            counts = self._look_once(before)
            # Again, for what the look has added.
            return _RunResult(counts, parts.then(self._ring(shard)))

    def _look(self, open_files: Open | None) -> dict[str, int]:
        """Bring the store's tables up to the collection; return how many slices came which way."""
        with self._clock("look_s"):
            self._write_demo()
            # First of all: a run with nothing to do ends early, and what dead writers left (claims,
            # temporary files) is to be gone then as well.
            self.store.sweep()
            look = update_tables(
                self.config,
                self.store,
                rehash=self.rehash,
                workers=self.work.speed.header_workers,
                open_files=open_files,
            )
            self._report_outlook(look)
        self.notes = look.notes
        return look.counts

    def _look_once(self, before: LookRecord) -> dict[str, int]:
        """Have one shard look for all; return what this one found, nothing where another looked.

        The look itself, which knows every slice, is gone from memory when this returns.
        """
        with self._clock("look_s"):
            look = look_once(
                self.config,
                self.store,
                before,
                self._write_demo,
                rehash=self.rehash,
                workers=self.work.speed.header_workers,
            )
            if look is None:
                return {}
            self._report_outlook(look)
        self.notes = look.notes
        return look.counts

    def _report_outlook(self, look: Look) -> None:
        """Say what the config's labels, masks and split come to, while nothing is spent yet."""
        outlook = outlook_of(
            self.config,
            look.reconciled.slices,
            look.names,
            look.withdrawn,
            # Where nothing is to be embedded, the time that this takes would save none.
            read_masks=look.reconciled.added.num_rows > 0,
        )
        self.ahead(outlook)

    def _ring(self, shard: Shard) -> EmbedResult:
        with self._clock("embed_s"):
            return embed_ring(self.work, self.store, shard, self.progress, self._limit())

    def _write_demo(self) -> None:
        """Write the collection of a demo config, where it is not there yet."""
        demo = self.config.demo
        if demo is not None:
            write_demo(self.config.data.root, demo.patients, demo.seed)

    def _limit(self) -> BadLimit:
        """Return the limit of bad images, which the bad files of the look count towards."""
        reasons = set_aside(_files(self.store))
        bad = reasons.total() - reasons["other"]
        return BadLimit(seen=len(self.store.live_rows()) + bad, fraction=self.max_bad, bad=bad)

    @contextlib.contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)


def _left_of(store: FeatureStore, parts: Sequence[PartRange]) -> str:
    """Return what an interruption leaves of a run that is to fill some parts."""
    size = count(store.layout.part_rows, "slice")
    committed = len(parts) - len(store.without_receipt(parts))
    if not committed:
        return (
            f"Nothing was committed yet: that is done by parts, of up to {size} here. The same "
            "command begins with the first again."
        )
    return (
        f"{committed} of {count(len(parts), 'part')} of up to {size} were committed and are kept; "
        "the same command goes on from there."
    )


def _files(store: FeatureStore) -> pa.Table:
    """Return why files were set aside: the columns of the file table that say so."""
    return store.files(["reason", "detail"])


def _flagged(store: FeatureStore, flag: str) -> int:
    """Count the live slices that carry a flag."""
    slices = store.slices(["flags", "withdrawn"])
    live = slices["flags"].filter(pc.invert(slices["withdrawn"]))
    return int(pc.sum(pc.equal(pc.list_flatten(live), flag)).as_py() or 0)


def _unreadable(store: FeatureStore) -> dict[int, str]:
    """Return row -> reason of the store's unreadable live slices, from the receipts."""
    failures = store.failures()
    rows = np.array(list(failures), np.int64)
    live = rows[np.isin(rows, store.live_rows())]
    return {row: failures[row] for row in live.tolist()}


def _volumes(store: FeatureStore, rows: Iterable[int]) -> int:
    """Return of how many volumes rows are, in a store of what is said of volumes; else 0."""
    if recipe_of(store).level != "volume":
        return 0
    slices = store.slices(["row", "series"])
    return len(
        pc.unique(slices.filter(pc.is_in(slices["row"], pa.array([*rows], pa.int64())))["series"])
    )
