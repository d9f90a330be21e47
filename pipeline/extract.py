"""FLOW 1: discover, read, preprocess, embed, write. The only place that runs a backbone.

Everything that can be known without a network is done first, so that a finished store costs a
look at the folder and no import of torch. Then each part without a receipt is claimed, its slices
are read in order and embedded in batches that never cross a part, and it is committed whole: the
same rows give the same batches, and so the same bits, whether or not a run was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.discover import Discovery, discover, load_key
from pipeline.read import FileRead, Request, read_files
from pipeline.types import Failure, Recipe, Slice
from pipeline.weights import locate
from stores import ArraySpec, FeatureStore, PartRange
from stores.claims import Claim
from stores.errors import RecipeMismatchError, StoreNotFoundError, UnreadableError, WeightsError
from stores.features import OK, UNREADABLE
from stores.layout import default_part_rows
from stores.slices import Reconciled, reconcile

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.backbones import Backbone

log = logging.getLogger(__name__)

DEMO_WEIGHTS = "random:0"


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


@dataclass(frozen=True)
class Summary:
    """What one run found, did and left aside; every count is of slices unless it says files."""

    store: str
    weights: str
    slices: int
    embedded: int
    found: dict[str, int]
    unreadable: dict[str, int]
    files_set_aside: dict[str, int]
    parts_elsewhere: list[str]
    seconds: dict[str, float]

    @property
    def clean(self) -> bool:
        """True where every image found has features now."""
        bad_files = sum(n for reason, n in self.files_set_aside.items() if reason != "other")
        return not (bad_files or self.unreadable or self.parts_elsewhere)


def extract(config: Config, speed: Speed = Speed(), progress: Progress = Progress()) -> Summary:
    """Embed whatever of the collection is not in the store yet.

    Raises RecipeMismatchError where the store was made by another recipe, WeightsError where the
    weights are not to be had. What was committed before an interruption is kept.
    """
    started = time.perf_counter()
    if config.demo is not None:
        from pipeline.demo import write_demo

        write_demo(config.data.root, config.demo.patients, config.demo.seed)
    recipe, weights_file = make_recipe(config)
    store = open_store(config, recipe)
    found, discovery = _look(config, store)
    looked = time.perf_counter()
    embedded, elsewhere, seconds = _embed_missing(
        config, store, recipe, weights_file, speed, progress
    )
    reasons = Counter(r for r in discovery.files["reason"].to_pylist() if r is not None)
    live = found.slices.num_rows - sum(found.slices["withdrawn"].to_pylist())
    return Summary(
        store=str(store.path),
        weights=recipe.weights,
        slices=live,
        embedded=embedded,
        found={
            name: getattr(found, name)
            for name in ("same", "moved", "added", "changed", "withdrawn")
        },
        unreadable=dict(_unreadable(store)),
        files_set_aside=dict(reasons),
        parts_elsewhere=elsewhere,
        seconds={
            "look": round(looked - started, 3),
            **seconds,
            "all": round(time.perf_counter() - started, 3),
        },
    )


def make_recipe(config: Config) -> tuple[Recipe, Path | None]:
    """Return the recipe of a config and its weights file (None for random weights).

    Only a demo config may fall back to random weights, and keeps them once its store has them.
    """
    choice = config.backbone
    weights = choice.weights
    if config.demo is not None and weights is None and _has_random_weights(config.store):
        weights = DEMO_WEIGHTS
    try:
        found = locate(choice.name, weights)
    except WeightsError as error:
        if config.demo is None or weights is not None:
            raise
        log.warning("RANDOM WEIGHTS: the demo goes on with an untrained network. %s", error)
        found = locate(choice.name, DEMO_WEIGHTS)
    recipe = Recipe(
        architecture=found.architecture,
        weights=found.identity,
        image_size=choice.image_size,
        blocks=config.outputs.blocks,
        outputs=config.outputs.keep,
        dtype=config.outputs.dtype,
        preprocess=config.preprocess,
    )
    return recipe, found.file


def open_store(config: Config, recipe: Recipe) -> FeatureStore:
    """Open the config's store, or create it where there is none.

    Raises RecipeMismatchError naming each field that differs, with both values.
    """
    try:
        store = FeatureStore.open(config.store)
    except StoreNotFoundError:
        arrays = feature_arrays(recipe)
        row_bytes = sum(
            int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize for spec in arrays.values()
        )
        part_rows = config.outputs.part_rows or default_part_rows(row_bytes)
        load_key(config.store)  # before the store: a store without its key cannot be joined
        return FeatureStore.create(config.store, recipe.canonical(), arrays, part_rows)
    differences = list(_differences(json.loads(store.recipe_text), json.loads(recipe.canonical())))
    if differences:
        raise RecipeMismatchError(
            f"The store {store.path} was made by another recipe:\n"
            + "\n".join(
                f"  {name}: the store has {a!r}, the config asks {b!r}"
                for name, a, b in differences
            )
            + "\nTwo recipes never share a store: name another store, or undo the change."
        )
    return store


def feature_arrays(recipe: Recipe) -> dict[str, ArraySpec]:
    """Return the feature arrays that a recipe fills: name -> shape of a row, dtype."""
    dim, grid = recipe.architecture.dim, recipe.image_size // recipe.architecture.patch
    shapes = {"cls": (recipe.blocks, dim), "mean": (dim,), "patch": (grid, grid, dim)}
    return {name: ArraySpec(shapes[name], recipe.dtype) for name in recipe.outputs}


def _differences(have: Any, want: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, stored, asked) for each leaf in which two recipes differ."""
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted(have.keys() | want.keys()):
            yield from _differences(have.get(key), want.get(key), f"{name}.{key}" if name else key)
    elif have != want:
        yield name, have, want


def _has_random_weights(path: Path) -> bool:
    try:
        return Recipe.model_validate_json(FeatureStore.open(path).recipe_text).random
    except StoreNotFoundError:
        return False


# --- what there is ---------------------------------------------------------------------------


def _look(config: Config, store: FeatureStore) -> tuple[Reconciled, Discovery]:
    """Discover the collection and bring the store's tables up to it."""
    data, plane = config.data, config.preprocess.plane
    rules = json.dumps([plane, data.modality, data.patient], sort_keys=True).encode()
    slices, files = store.slices(), store.files()
    known = None
    if (files.schema.metadata or {}).get(b"rules") == rules:
        withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
        known = Discovery(files, slices.filter(~withdrawn))
    discovery = discover(data, load_key(store.path), known=known, plane=plane)
    digests = _FileDigests(store)
    found = reconcile(
        slices,
        discovery.slices,
        opened=_opened(discovery, known),
        digest_of=digests.of,
        hash_file=lambda path: _sha256(data.root / path),
        boundary=store.layout.next_boundary(slices["row"][-1].as_py() + 1 if len(slices) else 0),
    )
    after = discovery.files.replace_schema_metadata({b"rules": rules})
    if not (found.slices.equals(slices) and after.equals(files, check_metadata=True)):
        store.write_tables(found.slices, after)
    return found, discovery


def _opened(discovery: Discovery, known: Discovery | None) -> set[str]:
    """Return the paths whose size or time are not those that were last seen."""

    def stamps(files: Any) -> set[tuple[Any, ...]]:
        columns = (files[name].to_pylist() for name in ("path", "size", "mtime_ns"))
        return set(zip(*columns, strict=True))

    before = stamps(known.files) if known is not None else set()
    return {path for path, *_ in stamps(discovery.files) - before}


class _FileDigests:
    """The sha256 of the file each row was made from, read from the store once, if ever asked."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._digests: NDArray[np.uint8] | None = None

    def of(self, row: int) -> str | None:
        """Return a row's digest as hex; None where no file was read for it."""
        if self._digests is None:
            self._digests = self._store.read("file_digest")
        digest = self._digests[row]
        return bytes(digest).hex() if digest.any() else None


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _unreadable(store: FeatureStore) -> Counter[str]:
    """Count the store's unreadable live slices by reason, from the receipts."""
    slices = store.slices()
    withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
    live = set(slices["row"].to_numpy()[~withdrawn].tolist())
    counts: Counter[str] = Counter()
    for part in store.layout.parts(max(live, default=-1) + 1):
        receipt = store.receipt(part.index)
        failures = receipt["failures"] if receipt else []
        counts.update(failure["reason"] for failure in failures if failure["row"] in live)
    return counts


# --- embedding -------------------------------------------------------------------------------


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


def _embed_missing(
    config: Config,
    store: FeatureStore,
    recipe: Recipe,
    weights_file: Path | None,
    speed: Speed,
    progress: Progress,
) -> tuple[int, list[str], dict[str, float]]:
    """Embed every part without a receipt; return rows embedded, parts others hold, seconds."""
    missing = store.missing()
    if not missing:
        return 0, [], {}
    slices = _slices_by_part(store)
    progress.plan(sum(len(slices[part.index]) for part in missing))
    from pipeline.backbones import load_backbone

    backbone = load_backbone(
        config.backbone.name,
        weights_file or recipe.weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        device=_device(speed.device),
    )
    jobs: deque[_Job] = deque()
    reads = read_files(
        config.data.root,
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
            _fill(job, itertools.chain([first], items), backbone, recipe, speed, progress, jobs)
            _commit(store, job, backbone)
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


def _items(reads: Iterable[FileRead]) -> Iterator[tuple[str | None, Slice | Failure]]:
    """Flatten what was read: one (sha256 of the file, slice or failure) for each slice asked."""
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


def _fill(
    job: _Job,
    items: Iterator[tuple[str | None, Slice | Failure]],
    backbone: Backbone,
    recipe: Recipe,
    speed: Speed,
    progress: Progress,
    jobs: Iterable[_Job],
) -> None:
    """Read and embed the slices of one part, in batches that start and end within it."""
    from pipeline.preprocess import prepare

    batch: list[tuple[int, Tensor]] = []

    def flush() -> None:
        with job.clock("forward"):
            _embed(job, batch, backbone, recipe)
        batch.clear()
        for waiting in jobs:
            waiting.claim.beat()

    for slice_ in job.slices:
        row = slice_["row"]
        with job.clock("read"):
            digest, item = next(items)
        if digest is not None:
            job.put(row, file_digest=_bytes(digest))
        if isinstance(item, Failure):
            job.fail(row, item.reason, item.detail)
        else:
            job.put(row, pixel_digest=_bytes(pixel_digest(item.pixels)))
            try:
                with job.clock("preprocess"):
                    batch.append((row, prepare(item, slice_["modality"], recipe)))
            except UnreadableError as error:
                job.fail(row, error.reason, error.detail)
        if len(batch) == speed.batch_size:
            flush()
        progress.advance(1)
    if batch:
        flush()


def _embed(
    job: _Job, batch: Sequence[tuple[int, Tensor]], backbone: Backbone, recipe: Recipe
) -> None:
    """Run the network on one batch and put its outputs into the part."""
    import torch

    features = backbone(torch.stack([tensor for _, tensor in batch]))
    values = {name: getattr(features, name).cpu().numpy() for name in recipe.outputs}
    for i, (row, _) in enumerate(batch):
        with np.errstate(over="ignore"):  # the store refuses what overflows its dtype
            job.put(row, status=OK, **{name: value[i] for name, value in values.items()})


def _commit(store: FeatureStore, job: _Job, backbone: Backbone) -> None:
    """Hand a finished part to the store, with what a reader of the receipt may ask."""
    started = time.perf_counter()
    notes = {
        "failures": job.failures,
        "seconds": {name: round(value, 3) for name, value in job.seconds.items()},
        "device": str(backbone.device),
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
