"""Slices to committed parts: read ahead, preprocess, run the network, write.

Each part without a receipt is claimed, its slices are read in order and embedded in batches that
never cross a part, and it is committed whole: the same rows give the same batches, and so the same
bits, whether or not a run was interrupted. The stages go on at once, each a bounded way ahead:

    claimed, requested   ->   read           ->   embedded          ->   committed
    `UpcomingParts`           processes           lanes, or a GPU        a thread
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.backbones.weights import Checkpoint
from pipeline.extraction.levels import LEVELS
from pipeline.extraction.part import FillContext, PartInFlight, rule_number
from pipeline.extraction.progress import BadLimit as BadLimit
from pipeline.extraction.progress import Progress as Progress
from pipeline.extraction.upcoming import UpcomingParts
from pipeline.extraction.volume_part import plane_of
from pipeline.extraction.writer import Writer
from pipeline.inference.speed import Speed as Speed
from pipeline.inference.speed import sleep_while_waiting
from pipeline.inference.telemetry import bottleneck, clock, tracing
from pipeline.io.pool import start_reader
from pipeline.io.read_queue import open_read_queue
from pipeline.io.types import FrameRead
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.interruption import end_if_told
from pipeline.shared.paths import collection_file
from pipeline.shared.versions import versions_of
from pipeline.types import Plane
from stores import FeatureStore, PartRange
from stores._process import me, name_of
from stores.duplicates import Originals
from stores.errors import ClaimedError
from stores.slices import SliceRow

log = logging.getLogger(__name__)

Load = Callable[[Recipe, Checkpoint, Speed], Any]


@dataclass(frozen=True)
class Embedded:
    """What a run added: rows by a forward pass, rows linked to the same pixels, seconds a stage.

    elsewhere: the parts that other processes hold. bottleneck: a sentence on what took the time.
    """

    rows: int = 0
    linked: int = 0
    elsewhere: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bottleneck: str = ""


def load_network(recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
    """Load the network of a recipe on the device that `speed` names. Raises WeightsError."""
    return LEVELS[recipe.sees].load(recipe, checkpoint, speed)


@dataclass(frozen=True)
class EmbedSettings:
    """How parts of a store are embedded; all that changes feature values is in its recipe.

    checkpoint: the weights of the recipe. root: what the slices' paths are relative to, once
    `reveal` has given the real ones. limit: counts what cannot be read. load: gives the network.
    """

    checkpoint: Checkpoint
    root: Path
    reveal: Callable[[str], str]
    limit: BadLimit
    speed: Speed = field(default_factory=Speed)
    progress: Progress = field(default_factory=Progress)
    load: Load = load_network


def embed_missing(
    store: FeatureStore, settings: EmbedSettings, parts: Sequence[PartRange] | None = None
) -> Embedded:
    """Embed the parts of the store without a receipt: all, or those of `parts` in their order.

    Raises TooManyBadError at the limit, DeviceError, WeightsError; what was committed stays.
    """
    settings.limit.check()
    missing = store.missing() if parts is None else store.without_receipt(parts)
    if not missing:
        return Embedded()
    pa.default_memory_pool().release_unused()  # a look takes more than what comes of it
    start_reader(settings.speed.header_workers)  # while torch is imported
    sleep_while_waiting()  # before torch is imported
    with EmbeddingRun(store, missing, settings) as run:
        run.embed()
    return run.summary()


class EmbeddingRun:
    """The parts of one run, from their claim to their commit; a context that ends with the run.

    It owns the reading processes and the writer's thread from its beginning, the lanes from the
    first part on, and the claims of all parts that are not committed. However it ends, they end.
    """

    def __init__(
        self, store: FeatureStore, parts: Sequence[PartRange], settings: EmbedSettings
    ) -> None:
        """Choose speed settings and look up the slices of the parts; nothing is opened yet."""
        from pipeline.shared.devices import pick_device

        self.recipe = recipe_of(store)
        self._level = LEVELS[self.recipe.sees]
        self.speed = settings.speed.chosen(pick_device(settings.speed.device), self.recipe)
        # Asked before hours are spent, not at the first commit.
        self._versions = versions_of(("radprobe", "torch", "transformers"))
        self._store = store
        self._parts = parts
        self._settings = settings
        self._upcoming = UpcomingParts(store, parts, self.recipe.preprocess, settings.reveal)
        self._in_flight: list[PartInFlight] = []  # begun, not committed
        self._context: FillContext[Any] | None = None  # once the network is there
        self._requested = 0
        self._counted_at = 0.0  # when a part's time was last counted
        self._loaded_at = 0.0  # by the clock of this process's processor time
        # Of what was committed; written by the writer's thread, read once that has ended.
        self._rows = 0
        self._linked = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        settings.progress.plan(self._upcoming.slices.counts.total())

    def __enter__(self) -> EmbeddingRun:
        """Start the writer's thread and the readers, which have nothing to do yet."""
        from pipeline.shared.devices import pinning

        with contextlib.ExitStack() as stack:
            # Closed in the opposite order: first what fills parts, then what commits them; and the
            # claims last, since a part may be somebody else's as soon as its claim is gone.
            stack.callback(self._release_claims)
            self._writer = stack.enter_context(contextlib.closing(Writer(self._commit)))
            reads = open_read_queue(
                self._settings.root,
                plane=self.recipe.preprocess.plane,
                workers=self.speed.workers or 0,
                time_limit_s=self.speed.time_limit_s,
                pin=pinning(self.speed.device),
                at_once=self.speed.batch_size or 1,
            )
            self._reads = stack.enter_context(contextlib.closing(reads))
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End all threads and processes; what was filled and not committed is lost."""
        self._opened.close()

    def embed(self) -> None:
        """Fill part after part from what is read, and commit them."""
        self._counted_at = time.perf_counter()
        with tracing(self.speed.trace) as note_batch:
            while (job := self._next_part()) is not None:
                context = self._start()
                for _ in self._level.filler(job, context).fill(self._read()):
                    self._beat()
                    note_batch()
                self._count_time(job)
                # Its pixels are known to the parts that follow, whose rows may be linked to its.
                context.originals.commit()
                # Its last batches may still be computed: it is handed over behind them.
                context.forward.pass_by(functools.partial(self._hand_over, job))
            if self._context is not None:
                self._context.wait_for_commits()
                # Of no part: each is counted before it is handed over to a writer that may be slow.
                self._seconds["all"] += time.perf_counter() - self._counted_at
                self._seconds["processor"] = time.process_time() - self._loaded_at

    def summary(self) -> Embedded:
        """Return what the run added, once it has ended."""
        left = self._store.without_receipt(self._parts)
        elsewhere = [f"part {part.index}: {self._store.owner(part)}" for part in left]
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        sentence = bottleneck(seconds, self._rows, self.speed, self.recipe)
        return Embedded(self._rows, self._linked, elsewhere, seconds, sentence)

    # --- what is read ----------------------------------------------------------------------

    def _next_part(self) -> PartInFlight | None:
        """Return the next part to fill; None where none is left that others do not have."""
        self._request()
        if not self._upcoming.waiting:
            return None
        self._start()  # before the part leaves `waiting`: the time is counted to the first
        job = self._upcoming.waiting.popleft()
        self._in_flight.append(job)
        return job

    def _read(self) -> Iterator[FrameRead]:
        """Yield what was read, in the order of the requests, and request more before each wait."""
        while True:
            self._request()
            yield self._reads.get()

    def _request(self) -> None:
        """Have files read while the readers have room and few parts wait."""
        while self._reads.has_room():
            request = self._upcoming.next_request()
            if request is None:
                return
            self._reads.put(request)
            self._requested += 1
            if self._requested == self.speed.workers:
                self._start()  # while each reader starts and reads its first file

    # --- the network -----------------------------------------------------------------------

    def _start(self) -> FillContext[Any]:
        """Load the network, once, and return what all parts share.

        Not before a part is claimed: others may have all of them.
        """
        if self._context is not None:
            return self._context
        batch_size = self.speed.batch_size or 1
        with clock(self._upcoming.waiting[0].seconds, "load"):
            network = self._settings.load(self.recipe, self._settings.checkpoint, self.speed)
            forward = self._level.forward(network, self.recipe, self.speed)
            self._opened.callback(forward.close)
        self._loaded_at = time.process_time()
        originals = _known_pixels(self._store)
        originals.forget()  # what a run that failed had begun

        def wait_for_commits() -> None:
            forward.flush()  # hands over the parts whose batches were still computed
            self._writer.drain()

        self._context = FillContext(
            store=self._store,
            forward=forward,
            batch_size=batch_size,
            progress=self._settings.progress,
            limit=self._settings.limit,
            originals=originals,
            volumes=self._upcoming.volumes,
            wait_for_commits=wait_for_commits,
            plane_of=self._plane_of,
        )
        return self._context

    def _plane_of(self, slice_: SliceRow) -> Plane:
        path = collection_file(self._settings.root, self._settings.reveal(slice_.path))
        return plane_of(path, slice_.frame, self.recipe.preprocess.plane)

    # --- parts that are filled -------------------------------------------------------------

    def _beat(self) -> None:
        """Say that this process is alive, to those who wait for its parts."""
        for job in [*self._upcoming.waiting, *self._in_flight]:  # the writer takes parts out
            job.claim.beat()

    def _count_time(self, job: PartInFlight) -> None:
        """Add the time since another part was counted: all parts together take all of it."""
        now = time.perf_counter()
        job.seconds["all"] += now - self._counted_at
        self._counted_at = now

    def _hand_over(self, job: PartInFlight, _: object) -> None:
        """Give a filled part to the writer."""
        assert self._context is not None
        end_if_told()  # what the signal broke into may stand in the part as a fault of a file
        job.at_once = min(self._context.forward.most, self._context.batch_size)
        self._count_time(job)
        with clock(self._seconds, "stall"):
            self._writer.put(job, self._beat)

    def _commit(self, job: PartInFlight) -> None:
        """Write a filled part, with what a reader of the receipt may ask. In the writer's thread.

        Where another process took the part over and has it, its work stands.
        """
        began = time.perf_counter()
        notes = {
            "failures": job.failures,
            "left_out": job.left_out,
            "ranges": [[row, *ends] for row, ends in job.ranges.items()],
            "links": sorted(job.links.items()),
            "seconds": {name: round(value, 6) for name, value in job.seconds.items()},
            "device": self.speed.device,
            "by": name_of(me()),
            "batch_size": {"asked": self.speed.batch_size, "at_once": job.at_once},
            "versions": self._versions,
        }
        try:
            receipt = self._store.write(job.part, job.claim, job.arrays, notes)
        except ClaimedError as error:
            log.warning("%s Its work stands; this process goes on.", error)
        else:
            # By the receipt: slices that were withdrawn meanwhile are not in it.
            self._rows += receipt.embedded
            self._linked += len(receipt.links)
            for stage, spent in job.seconds.items():
                self._seconds[stage] += spent
            self._seconds["write"] += time.perf_counter() - began
        # Behind the receipt: whoever claims the part from now on sees that it is done. A crash in
        # between leaves a claim of a dead process, which others take over.
        self._in_flight.remove(job)
        job.claim.release()

    def _release_claims(self) -> None:
        """Give back the parts that were not committed."""
        for job in [*self._upcoming.waiting, *self._in_flight]:
            job.claim.release()


@functools.lru_cache(maxsize=1)
def _known_pixels(store: FeatureStore) -> Originals:
    """Return which rows first held which pixels; read once, by a look at every part."""
    preprocess = recipe_of(store).preprocess
    # Asked of every slice, of few modalities.
    return Originals(store, functools.cache(functools.partial(rule_number, preprocess)))
