"""Slices to committed parts: read ahead, preprocess, run the network, write.

Each part without a receipt is claimed, its slices are read in order and embedded in batches that
never cross a part, and it is committed whole: the same rows give the same batches, and so the same
bits, whether or not a run was interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.read import FileRead, Request, read_files
from pipeline.types import (
    Failure,
    FileWindow,
    IntensityKind,
    Preprocess,
    Recipe,
    Slice,
    intensity_kind,
    of_volume,
)
from pipeline.volumes import Name, Volumes
from stores import FeatureStore, PartRange
from stores.claims import Claim
from stores.duplicates import Originals
from stores.errors import ClaimedError, TooManyBadError, UnreadableError
from stores.features import OK, UNREADABLE

if TYPE_CHECKING:
    from pipeline.backbones import Backbone

log = logging.getLogger(__name__)

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
    """One claimed part on its way: its slices in row order, its arrays as they fill.

    survey: the volumes whose ranges are to be found first. left_out: the rows that those lack.
    """

    part: PartRange
    claim: Claim
    slices: list[dict[str, Any]]
    arrays: dict[str, NDArray[Any]]
    survey: dict[Name, list[dict[str, Any]]]
    left_out: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    links: dict[int, int] = field(default_factory=dict)  # row -> the row with the same pixels
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


@dataclass(frozen=True)
class Embedded:
    """What a run added: rows by a forward pass, rows linked to the same pixels, seconds a stage.

    elsewhere: the parts that other processes hold.
    """

    rows: int = 0
    linked: int = 0
    elsewhere: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


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
) -> Embedded:
    """Embed every part of the store without a receipt.

    backbone, weights: as `load_backbone` takes them; root: what the slices' paths are relative to,
    once `reveal` has told the real ones. Raises TooManyBadError at the limit.
    """
    limit.check()
    missing = store.missing()
    if not missing:
        return Embedded()
    slices = _slices_by_part(store)
    progress.plan(sum(len(slices[part.index]) for part in missing))
    network: Backbone | None = None
    jobs: deque[_Job] = deque()
    volumes = Volumes(recipe.preprocess, itertools.chain.from_iterable(slices.values()))
    reads = read_files(
        root,
        _requests(_jobs(store, missing, slices, volumes), jobs, reveal),
        plane=recipe.preprocess.plane,
        workers=speed.workers,
        time_limit_s=speed.time_limit_s,
    )
    originals = Originals(store, functools.partial(_rule, recipe.preprocess))
    embedded, linked, seconds = 0, 0, defaultdict[str, float](float)
    with _released(jobs), contextlib.closing(reads):
        items = _items(reads)
        for first in items:
            # Loaded once there is something to embed: other processes may hold every part.
            network = network or _load(backbone, weights, recipe, speed.device)
            job = jobs[0]
            filler = _Filler(
                job, store, network, recipe, speed.batch_size, progress, limit, originals, volumes
            )
            for _ in filler.fill(itertools.chain([first], items)):
                for waiting in jobs:
                    waiting.claim.beat()
            committed = _commit(store, job, network)
            originals.commit(written=committed)
            jobs.popleft().claim.release()
            if not committed:
                continue
            linked += len(job.links)
            embedded += int((job.arrays["status"] == OK).sum()) - len(job.links)
            for stage, spent in job.seconds.items():
                seconds[stage] += spent
    elsewhere = [f"part {part.index}: {store.owner(part)}" for part in store.missing()]
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    return Embedded(embedded, linked, elsewhere, rounded)


def _slices_by_part(store: FeatureStore) -> dict[int, list[dict[str, Any]]]:
    """Return the live slices of each part, in row order."""
    table = store.slices().select(["row", "path", "frame", "series", "modality", "withdrawn"])
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for slice_ in table.to_pylist():
        if not slice_["withdrawn"]:
            parts[slice_["row"] // store.layout.part_rows].append(slice_)
    return parts


def _jobs(
    store: FeatureStore,
    missing: Sequence[PartRange],
    slices: Mapping[int, list[dict[str, Any]]],
    volumes: Volumes,
) -> Iterator[_Job]:
    """Claim the missing parts one after the other; those another process holds are passed over."""
    for part in missing:
        claim = store.claim(part)
        if claim is not None:
            mine = slices[part.index]
            yield _Job(part, claim, mine, store.empty_part(), volumes.take(mine))


def _requests(
    jobs: Iterable[_Job], pulled: deque[_Job], reveal: Callable[[str], str]
) -> Iterator[Request]:
    """Yield what to read, a file once a part; a job enters `pulled` when its first file is asked.

    The reader pulls ahead of the network, so a part is claimed just before it is read. What must be
    surveyed comes before the part's own slices.
    """
    for job in jobs:
        pulled.append(job)
        for slices in ([s for volume in job.survey.values() for s in volume], job.slices):
            for path, group in itertools.groupby(slices, key=lambda slice_: slice_["path"]):
                yield Request(reveal(path), tuple(slice_["frame"] for slice_ in group))


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
    """Fills one part with features, in batches that start and end within it.

    Slices of known pixels take the features of the row that has them. They stay in the batch for
    the sake of the others, whose last bits may depend on its size; a batch of nothing else is not
    run.
    """

    job: _Job
    store: FeatureStore
    network: Backbone
    recipe: Recipe
    batch_size: int
    progress: Progress
    limit: BadLimit
    originals: Originals
    volumes: Volumes
    batch: list[tuple[int, Slice, str]] = field(default_factory=list)  # row, pixels, modality

    def fill(self, items: Iterator[Read]) -> Iterator[None]:
        """Take an item for each slice surveyed, and of the part; yield after volume and batch."""
        for name, slices in self.job.survey.items():
            with self.job.clock("survey"):
                pixels = (item for _, item in items)
                self.job.left_out += self.volumes.survey(name, slices, pixels)
            yield
        for slice_ in self.job.slices:
            with self.job.clock("read"):
                digest, item = next(items)
            self._take(slice_, digest, item)
            if len(self.batch) == self.batch_size:
                self._embed()
                yield
        if self.batch:
            self._embed()
            yield

    def _take(self, slice_: dict[str, Any], digest: str | None, item: Slice | Failure) -> None:
        """Put a slice into the batch, or why it cannot be read into the part."""
        from pipeline.preprocess import check

        row, modality = slice_["row"], slice_["modality"]
        if digest is not None:
            self.job.put(row, file_digest=_bytes(digest))
        try:
            if isinstance(item, Failure):
                raise UnreadableError(item.reason, item.detail)
            pixels = pixel_digest(item.pixels)
            self.job.put(row, pixel_digest=_bytes(pixels))
            check(item)
            self.batch.append((row, self.volumes.ranged(slice_, item), modality))
            original = self.originals.find(bytes.fromhex(pixels), modality, row)
            if original is not None:
                self.job.links[row] = original
        except UnreadableError as error:
            self.job.fail(row, error.reason, error.detail)
            self.limit.count()
            self.progress.advance(1)

    def _embed(self) -> None:
        """Put the features of the batch into the part."""
        rows = [row for row, _, _ in self.batch]
        if not self.job.links.keys() >= set(rows):
            self._run(rows)
        self._link([row for row in rows if row in self.job.links])
        self.progress.advance(len(self.batch))
        self.batch.clear()

    def _run(self, rows: list[int]) -> None:
        """Preprocess the batch on the network's device and run the network on it."""
        from pipeline.preprocess import prepare_batch

        _, items, modalities = zip(*self.batch, strict=True)
        with self.job.clock("preprocess"):
            x = prepare_batch(items, modalities, self.recipe, self.network.device)
        with self.job.clock("forward"):
            features = self.network(x)
            values = {name: getattr(features, name).cpu().numpy() for name in self.recipe.outputs}
        for i, row in enumerate(rows):
            with np.errstate(over="ignore"):  # the store refuses what overflows its dtype
                self.job.put(row, status=OK, **{name: value[i] for name, value in values.items()})

    def _link(self, rows: list[int]) -> None:
        """Give rows the features of their originals, of this part or of committed ones."""
        part, links = self.job.part, self.job.links
        far = [row for row in rows if not part.start <= links[row] < part.stop]
        for name in self.recipe.outputs:
            for row, value in zip(
                far, self.store.read(name, [links[row] for row in far]), strict=True
            ):
                self.job.put(row, status=OK, **{name: value})
            for row in set(rows) - set(far):
                value = self.job.arrays[name][links[row] - part.start]
                self.job.put(row, status=OK, **{name: value})


def _commit(store: FeatureStore, job: _Job, network: Backbone) -> bool:
    """Hand a finished part to the store, with what a reader of the receipt may ask.

    Returns False where another process took the part over and has it.
    """
    started = time.perf_counter()
    notes = {
        "failures": job.failures,
        "left_out": job.left_out,
        "links": sorted(job.links.items()),
        "seconds": {name: round(value, 3) for name, value in job.seconds.items()},
        "device": str(network.device),
        "versions": {name: version(name) for name in ("radprobe", "torch", "transformers")},
    }
    try:
        store.write(job.part, job.claim, job.arrays, notes)
    except ClaimedError as error:
        log.warning("%s Its work stands; this process goes on.", error)
        return False
    job.seconds["write"] += time.perf_counter() - started
    return True


def _rule(preprocess: Preprocess, modality: str) -> int | None:
    """Return a number for the intensity rule of a modality.

    None where the file or the volume has a say too: equal pixels may then look different.
    """
    rule = preprocess.rule(modality)
    if isinstance(rule, FileWindow) or of_volume(rule):
        return None
    return get_args(IntensityKind).index(intensity_kind(modality))


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """Return the sha256 of a slice's shape and float32 values: equal pictures, equal digests."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels, dtype="<f4").data)
    return digest.hexdigest()


def _bytes(digest: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)


def _load(name: str, weights: Path | str, recipe: Recipe, device: str) -> Backbone:
    from pipeline.backbones import load_backbone

    return load_backbone(
        name,
        weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        device=_device(device),
    )


def _device(name: str) -> str:
    """Return the torch device to use: `auto` is the first GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
