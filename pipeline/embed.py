"""Slices to committed parts: read ahead, preprocess, run the network, write.

Each part without a receipt is claimed, its slices are read in order and embedded in batches that
never cross a part, and it is committed whole: the same rows give the same batches, and so the same
bits, whether or not a run was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.read import FileRead, Request, read_files
from pipeline.types import Failure, Recipe, Slice
from stores import FeatureStore, PartRange
from stores.claims import Claim
from stores.errors import TooManyBadError, UnreadableError
from stores.features import OK, UNREADABLE

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.backbones import Backbone

Read = tuple[str | None, Slice | Failure]  # sha256 of the file, what became of one slice


@dataclass(frozen=True)
class Speed:
    """Settings that change how fast features come, and no value beyond rounding."""

    device: str = "auto"
    batch_size: int = 32
    workers: int = 1
    time_limit_s: float = 60.0


@dataclass(frozen=True)
class Progress:
    """Who is told how far a run is: `plan` once, how many slices; `advance`, how many more."""

    plan: Callable[[int], None] = lambda slices: None
    advance: Callable[[int], None] = lambda slices: None


@dataclass
class BadLimit:
    """Stops a run when more than a fraction of the slices and files seen are bad."""

    seen: int
    fraction: float
    bad: int = 0

    def check(self) -> None:
        """Raise TooManyBadError where the limit is passed."""
        if self.bad > self.fraction * self.seen:
            raise TooManyBadError(
                f"{self.bad} of {self.seen} slices and image files cannot be read, more than the "
                f"{self.fraction:g} that --max-bad allows. What was committed is kept; see "
                "files.parquet and the receipts in parts/ for the reasons."
            )

    def count(self) -> None:
        """Count one more bad slice."""
        self.bad += 1
        self.check()


@dataclass
class _Job:
    """One claimed part on its way: its slices in row order, its arrays as they fill."""

    part: PartRange
    claim: Claim
    slices: list[dict[str, Any]]
    arrays: dict[str, NDArray[Any]]
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def put(self, row: int, **values: Any) -> None:
        """Set values of one row, array by array."""
        for name, value in values.items():
            self.arrays[name][row - self.part.start] = value

    def fail(self, row: int, reason: str, detail: str) -> None:
        """Mark one row as unreadable and keep why."""
        self.put(row, status=UNREADABLE)
        self.failures.append({"row": row, "reason": reason, "detail": detail})

    @contextlib.contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage's seconds."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def embed_missing(
    store: FeatureStore,
    recipe: Recipe,
    backbone: str,
    weights: Path | str,
    root: Path,
    speed: Speed,
    progress: Progress,
    limit: BadLimit,
) -> tuple[int, list[str], dict[str, float]]:
    """Embed every part of the store without a receipt.

    backbone, weights: as `load_backbone` takes them; root: what the slices' paths are relative to.
    Returns how many rows were embedded, the parts that other processes hold, seconds by stage.
    Raises TooManyBadError at the limit.
    """
    limit.check()
    missing = store.missing()
    if not missing:
        return 0, [], {}
    slices = _slices_by_part(store)
    progress.plan(sum(len(slices[part.index]) for part in missing))
    from pipeline.backbones import load_backbone

    network = load_backbone(
        backbone,
        weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        device=_device(speed.device),
    )
    jobs: deque[_Job] = deque()
    reads = read_files(
        root,
        _requests(_jobs(store, missing, slices), jobs),
        plane=recipe.preprocess.plane,
        workers=speed.workers,
        time_limit_s=speed.time_limit_s,
    )
    embedded, seconds = 0, defaultdict[str, float](float)
    with _released(jobs):
        items = _items(reads)
        for first in items:
            job = jobs[0]
            filler = _Filler(job, network, recipe, speed.batch_size, progress, limit)
            for _ in filler.fill(itertools.chain([first], items)):
                for waiting in jobs:
                    waiting.claim.beat()
            _commit(store, job, network)
            jobs.popleft().claim.release()
            embedded += int((job.arrays["status"] == OK).sum())
            for stage, spent in job.seconds.items():
                seconds[stage] += spent
    elsewhere = [f"part {part.index}: {store.owner(part)}" for part in store.missing()]
    return embedded, elsewhere, {name: round(value, 3) for name, value in seconds.items()}


def _slices_by_part(store: FeatureStore) -> dict[int, list[dict[str, Any]]]:
    """Return the live slices of each part, in row order."""
    table = store.slices().select(["row", "path", "frame", "modality", "withdrawn"])
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for slice_ in table.to_pylist():
        if not slice_["withdrawn"]:
            parts[slice_["row"] // store.layout.part_rows].append(slice_)
    return parts


def _jobs(
    store: FeatureStore, missing: Sequence[PartRange], slices: Mapping[int, list[dict[str, Any]]]
) -> Iterator[_Job]:
    """Claim the missing parts one after the other; those another process holds are passed over."""
    for part in missing:
        claim = store.claim(part)
        if claim is not None:
            yield _Job(part, claim, slices[part.index], store.empty_part())


def _requests(jobs: Iterable[_Job], pulled: deque[_Job]) -> Iterator[Request]:
    """Yield what to read, a file once a part; a job enters `pulled` when its first file is asked.

    The reader pulls ahead of the network, so a part is claimed just before it is read.
    """
    for job in jobs:
        pulled.append(job)
        for path, group in itertools.groupby(job.slices, key=lambda slice_: slice_["path"]):
            yield Request(path, tuple(slice_["frame"] for slice_ in group))


def _items(reads: Iterable[FileRead]) -> Iterator[Read]:
    """Flatten what was read: one item for each slice asked, in that order."""
    for read in reads:
        for item in read.items:
            yield read.sha256, item


@contextlib.contextmanager
def _released(jobs: deque[_Job]) -> Iterator[None]:
    """Give back the claims of parts that were not committed, whatever ended the run."""
    try:
        yield
    finally:
        for job in jobs:
            job.claim.release()


@dataclass
class _Filler:
    """Fills one part with features, in batches that start and end within it."""

    job: _Job
    network: Backbone
    recipe: Recipe
    batch_size: int
    progress: Progress
    limit: BadLimit
    batch: list[tuple[int, Tensor]] = field(default_factory=list)

    def fill(self, items: Iterator[Read]) -> Iterator[None]:
        """Take one item for each of the part's slices; yield after each batch."""
        for slice_ in self.job.slices:
            with self.job.clock("read"):
                digest, item = next(items)
            self._take(slice_["row"], slice_["modality"], digest, item)
            if len(self.batch) == self.batch_size:
                self._embed()
                yield
        if self.batch:
            self._embed()
            yield

    def _take(self, row: int, modality: str, digest: str | None, item: Slice | Failure) -> None:
        """Put a slice into the batch, or why it cannot be read into the part."""
        from pipeline.preprocess import prepare

        if digest is not None:
            self.job.put(row, file_digest=_bytes(digest))
        try:
            if isinstance(item, Failure):
                raise UnreadableError(item.reason, item.detail)
            self.job.put(row, pixel_digest=_bytes(pixel_digest(item.pixels)))
            with self.job.clock("preprocess"):
                self.batch.append((row, prepare(item, modality, self.recipe)))
        except UnreadableError as error:
            self.job.fail(row, error.reason, error.detail)
            self.limit.count()
            self.progress.advance(1)

    def _embed(self) -> None:
        """Run the network on the batch and put its outputs into the part."""
        import torch

        with self.job.clock("forward"):
            features = self.network(torch.stack([tensor for _, tensor in self.batch]))
            values = {name: getattr(features, name).cpu().numpy() for name in self.recipe.outputs}
        for i, (row, _) in enumerate(self.batch):
            with np.errstate(over="ignore"):  # the store refuses what overflows its dtype
                self.job.put(row, status=OK, **{name: value[i] for name, value in values.items()})
        self.progress.advance(len(self.batch))
        self.batch.clear()


def _commit(store: FeatureStore, job: _Job, network: Backbone) -> None:
    """Hand a finished part to the store, with what a reader of the receipt may ask."""
    started = time.perf_counter()
    notes = {
        "failures": job.failures,
        "seconds": {name: round(value, 3) for name, value in job.seconds.items()},
        "device": str(network.device),
        "versions": {name: version(name) for name in ("radprobe", "torch", "transformers")},
    }
    store.write(job.part, job.claim, job.arrays, notes)
    job.seconds["write"] += time.perf_counter() - started


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """Return the sha256 of a slice's shape and float32 values: equal pictures, equal digests."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels, dtype="<f4").data)
    return digest.hexdigest()


def _bytes(digest: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)


def _device(name: str) -> str:
    """Return the torch device to use: `auto` is the first GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
