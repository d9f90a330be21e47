"""Slices to committed parts: read ahead, preprocess, run the network, write.

Each part without a receipt is claimed, its slices are read in order and embedded in batches that
never cross a part, and it is committed whole: the same rows give the same batches, and so the same
bits, whether or not a run was interrupted. Reading, the network and writing each go on while the
others do: files are read by processes ahead of need, a GPU works while the next batch is stacked
(`embedding.forward`), and parts are written by a thread while the next ones are embedded.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.extraction.part import Filler, Job, Run, rule_number
from pipeline.extraction.progress import BadLimit as BadLimit
from pipeline.extraction.progress import Progress as Progress
from pipeline.extraction.slices import PartSlices
from pipeline.extraction.writer import Writer
from pipeline.inference.speed import Speed as Speed
from pipeline.inference.speed import sleep_while_waiting
from pipeline.inference.telemetry import bottleneck, clock, tracing
from pipeline.io.reader import read_files
from pipeline.io.types import FrameRead, Request
from pipeline.preprocessing.volume_range import Kept, Volumes
from pipeline.recipe import Recipe, recipe_of
from stores import FeatureStore, PartRange
from stores._process import me, name_of
from stores.duplicates import Originals
from stores.errors import ClaimedError

if TYPE_CHECKING:
    from pipeline.backbones.load import Backbone

log = logging.getLogger(__name__)

# Parts that are claimed and asked of the readers before their turn.
AHEAD = 2

Load = Callable[[str, Path | str, Recipe, Speed], "Backbone"]


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


def embed_missing(
    store: FeatureStore,
    recipe: Recipe,
    backbone: str,
    weights: Path | str,
    root: Path,
    reveal: Callable[[str], str],
    speed: Speed,
    progress: Progress,
    limit: BadLimit,
    parts: Sequence[PartRange] | None = None,
    load: Load | None = None,
) -> Embedded:
    """Embed the parts of the store without a receipt: all, or those of `parts` in their order.

    backbone, weights: as `load_backbone` takes them; root: what the slices' paths are relative to,
    once `reveal` has told the real ones; load: gives the network, `load_network` by default. Raises
    TooManyBadError at the limit, DeviceError.
    """
    limit.check()
    missing = store.missing() if parts is None else store.without_receipt(parts)
    if not missing:
        return Embedded()
    pa.default_memory_pool().release_unused()  # a look takes more than what comes of it
    sleep_while_waiting()
    from pipeline.inference.forward import pick_device

    speed = speed.chosen(pick_device(speed.device), recipe)
    slices = PartSlices(store, missing, recipe.preprocess.by_volume)
    progress.plan(slices.counts.total())
    volumes = Volumes(recipe.preprocess, slices.joined, functools.partial(_ranges, store))
    network = functools.partial(load or load_network, backbone, weights, recipe, speed)
    flow = _Flow(store, recipe, speed, progress, limit, volumes, network)
    jobs = _jobs(store, missing, slices, volumes, recipe.preprocess.thickens)
    reads = read_files(
        root,
        _begun(_requests(jobs, flow, reveal), flow),
        plane=recipe.preprocess.plane,
        workers=speed.workers or 0,
        time_limit_s=speed.time_limit_s,
    )
    with flow, contextlib.closing(reads):
        flow.embed(reads)
    left = store.without_receipt(missing)
    elsewhere = [f"part {part.index}: {store.owner(part)}" for part in left]
    seconds = {name: round(value, 3) for name, value in flow.seconds.items()}
    said = bottleneck(seconds, flow.rows, speed, recipe)
    return Embedded(flow.rows, flow.linked, elsewhere, seconds, said)


@dataclass
class _Flow:
    """The parts of one run, from their claim to their commit; a context that ends with the run.

    load: gives the network. waiting: claimed and asked of the readers, in order; held: these, and
    all that are not committed yet. since: when a part's time was last counted. rows, linked,
    seconds: of what was committed.
    """

    store: FeatureStore
    recipe: Recipe
    speed: Speed
    progress: Progress
    limit: BadLimit
    volumes: Volumes
    load: Callable[[], Backbone]
    waiting: deque[Job] = field(default_factory=deque)
    held: list[Job] = field(default_factory=list)
    since: float = 0.0
    rows: int = 0
    linked: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __enter__(self) -> _Flow:
        self._writer = Writer(self._commit)
        return self

    def __exit__(self, *_: object) -> None:
        """Give back the claims of parts that were not committed, whatever ended the run."""
        self._writer.close()
        for job in self.held:
            job.claim.release()
        if "run" in self.__dict__:
            self.run.forward.close()

    def take_on(self, job: Job) -> None:
        """Note a part that was claimed and whose files are being asked for."""
        self.held.append(job)
        self.waiting.append(job)

    def embed(self, reads: Iterator[FrameRead]) -> None:
        """Fill part after part from what is read, and commit them."""
        run: Run | None = None
        self.since = time.perf_counter()
        with tracing(self.speed.trace) as step:
            while True:
                began = time.perf_counter()
                first = next(reads, None)
                if first is None:
                    break
                waited = time.perf_counter() - began - self.waiting[0].seconds.get("load", 0.0)
                run, job = self.run, self.waiting.popleft()
                job.seconds["wait"] += waited
                for _ in Filler(job, run).fill(itertools.chain([first], reads)):
                    self._beat()
                    step()
                self._count(job)
                run.originals.commit()
                run.forward.pass_by(functools.partial(self._hand_over, job))
            if run is not None:
                run.settle()

    @functools.cached_property
    def run(self) -> Run:
        """What all parts share; made, and the network loaded, once there is a part to embed."""
        from pipeline.inference.forward import Forward

        with clock(self.waiting[0].seconds, "load"):
            lanes = self.speed.trace is None  # a trace is of one thread
            network, size = self.load(), self.speed.batch_size or 1
            forward = Forward(network, self.recipe, size, lanes=lanes)

        def settle() -> None:
            forward.flush()
            self._writer.settle()

        originals = _known_pixels(self.store)
        originals.forget()  # what a run that failed had begun
        batch_size, progress, limit = self.speed.batch_size or 1, self.progress, self.limit
        return Run(
            self.store, forward, batch_size, progress, limit, originals, self.volumes, settle
        )

    def _beat(self) -> None:
        """Say that this process is alive, to those who wait for its parts."""
        for job in list(self.held):  # the writer's thread takes parts out
            job.claim.beat()

    def _count(self, job: Job) -> None:
        """Add the time since another part was counted: all parts together take all of it."""
        now = time.perf_counter()
        job.seconds["all"] += now - self.since
        self.since = now

    def _hand_over(self, job: Job, _: object) -> None:
        """Give a filled part to the writer."""
        job.most = min(self.run.forward.most, self.run.batch_size)
        self._count(job)
        with clock(self.seconds, "stall"):
            self._writer.put(job, self._beat)

    def _commit(self, job: Job) -> None:
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
            "batch_size": {"asked": self.speed.batch_size, "at_once": job.most},
            "versions": {name: version(name) for name in ("radprobe", "torch", "transformers")},
        }
        try:
            self.store.write(job.part, job.claim, job.arrays, notes)
        except ClaimedError as error:
            log.warning("%s Its work stands; this process goes on.", error)
        else:
            self.rows += job.embedded
            self.linked += len(job.links)
            for stage, spent in job.seconds.items():
                self.seconds[stage] += spent
            self.seconds["write"] += time.perf_counter() - began
        self.held.remove(job)
        job.claim.release()


@functools.lru_cache(maxsize=1)
def _known_pixels(store: FeatureStore) -> Originals:
    """Return which rows first held which pixels; read once, by a look at every part."""
    preprocess = recipe_of(store).preprocess
    return Originals(store, functools.partial(rule_number, preprocess))


def _ranges(store: FeatureStore, rows: Iterable[int]) -> Kept:
    """Return the ranges of volumes that the receipts of some rows' parts tell."""
    found: Kept = {}
    for index in sorted({row // store.layout.part_rows for row in rows}):
        receipt = store.receipt(index)
        ranges = () if receipt is None else receipt.ranges
        found |= {volume.row: (volume.low, volume.high) for volume in ranges}
    return found


def _jobs(
    store: FeatureStore,
    missing: Sequence[PartRange],
    slices: PartSlices,
    volumes: Volumes,
    thickens: Callable[[str], bool],
) -> Iterator[Job]:
    """Claim the missing parts one after the other; those another process holds are passed over."""
    for part in missing:
        # Looked at first: where many share a store, most parts are done when their turn comes. And
        # a part may have lost all its slices since it was given out: nothing would be read for it.
        if not slices.counts[part.index] or store.receipts.believed(part.index) is not None:
            continue
        claim = store.claim(part)
        if claim is not None:
            mine = slices.of(part)
            yield Job(part, claim, mine, volumes.take(mine), slices.beside(mine, thickens))


def _requests(
    jobs: Iterator[Job], flow: _Flow, reveal: Callable[[str], str]
) -> Iterator[Request | None]:
    """Yield what to read, a file once a part; a job is taken on when its first file is asked.

    The reader pulls ahead of the network, so a part is claimed just before it is read; None while
    enough are, since others may have nothing to do. What must be surveyed comes before the part's
    own slices.
    """
    while True:
        while len(flow.waiting) >= AHEAD:
            yield None
        job = next(jobs, None)
        if job is None:
            return
        flow.take_on(job)
        own = [each for s in job.slices for each in (s, *job.beside.get(s["row"], ()))]
        for slices in ([s for volume in job.survey.values() for s in volume], own):
            for path, group in itertools.groupby(slices, key=lambda slice_: slice_["path"]):
                yield Request(reveal(path), tuple(slice_["frame"] for slice_ in group))


def _begun(requests: Iterator[Request | None], flow: _Flow) -> Iterator[Request | None]:
    """Pass requests on; the network is loaded while the readers start and read their first files.

    And not before: others may hold every part.
    """
    for asked, request in enumerate(requests, 1):
        yield request
        if asked == flow.speed.workers:
            flow.run  # noqa: B018 (made once)


def load_network(name: str, weights: Path | str, recipe: Recipe, speed: Speed) -> Backbone:
    """Load the network of a recipe on the device that `speed` names."""
    from pipeline.backbones.load import load_backbone

    return load_backbone(
        name,
        weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        patch_blocks=recipe.patch.blocks,
        device=speed.device,
        precision=recipe.precision,
        compiled=speed.compiled,
        treatment=recipe.architecture.treatment,
    )
