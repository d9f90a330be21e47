"""How fast a machine is with a config: the network alone, reading alone, writing alone.

What is measured goes to where `plan` and `extract` find it (`pipeline.inference.throughput`).
"""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.backbones.load import Backbone, load_recipe_backbone
from pipeline.backbones.weights import Checkpoint
from pipeline.config.root import Config
from pipeline.extraction.recipes import feature_arrays, locate_weights, part_rows_of, recipe_with
from pipeline.inference.forward import keep_memory, out_of_memory
from pipeline.inference.lanes import Lanes
from pipeline.inference.speed import cores
from pipeline.inference.throughput import ForwardRate, ReadingRate, Throughput, save_throughput
from pipeline.recipe import Precision, Recipe
from pipeline.shared.devices import pick_device
from pipeline.studies.sample import take_sample
from stores import FeatureStore
from stores.features import OK
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

log = logging.getLogger(__name__)

# How much of each is measured: enough to tell, in seconds.
_SLICES = 64  # read
_WRITE_S = 3.0
_MOST_PARTS = 8
_MOST_BATCH = 1024
# A batch is worse where it is this much slower than the best so far; two of those end the search.
_WORSE = 0.9
_WORSE_ENOUGH = 2


def bench(
    config: Config,
    device: str = "auto",
    *,
    least_s: float = 1.0,
    compiled: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Throughput:
    """Measure a config on this machine, save what was measured, and return it.

    least_s: how long each setting is run at least. compiled: whether torch.compile is tried, which
    takes a minute. report: called with a line a measurement. Raises DeviceError, WeightsError,
    ConfigError.
    """
    weights = locate_weights(config)
    checkpoint = Checkpoint.of(config.backbone.name, weights)
    recipe = recipe_with(config, weights)
    device = pick_device(device)
    keep_memory()
    rates = list[ForwardRate]()
    for precision in _precisions(recipe, device):
        network = _load(recipe, checkpoint, device, precision)
        for rate in _batches(network, precision, least_s):
            rates.append(rate)
            report(_line(rate))
    if compiled:
        rate_compiled = _compiled(recipe, checkpoint, device, _fastest(rates, recipe), least_s)
        if rate_compiled is not None:
            rates.append(rate_compiled)
            report(_line(rate_compiled))
    sample = take_sample(config, _SLICES)
    reading = ReadingRate(
        root=str(config.data.root.absolute()),
        slices_per_s=len(sample.items) / sample.seconds,
        mb_per_s=sample.megabytes / sample.seconds,
    )
    report(f"reading  {reading.slices_per_s:10.1f} slices/s of a core, {reading.mb_per_s:.1f} MB/s")
    write_mb_per_s = _write_rate(config, recipe)
    report(f"writing  {write_mb_per_s:10.1f} MB/s")
    throughput = Throughput(
        device=device,
        card=_card(device),
        cores=cores(),
        forward=tuple(rates),
        reading=reading,
        write_mb_per_s=write_mb_per_s,
    )
    save_throughput(recipe, throughput)
    return throughput


# --- the network -------------------------------------------------------------------------------


def _line(rate: ForwardRate) -> str:
    compiled = ", compiled" if rate.compiled else ""
    name = f"{rate.precision}{compiled}, batch {rate.batch_size}"
    return f"network  {rate.slices_per_s:10.1f} slices/s  {name}"


def _precisions(recipe: Recipe, device: str) -> list[Precision]:
    """Return what is worth measuring: the precision of the recipe first."""
    lower: list[Precision] = ["bfloat16", "float16"] if device.startswith("cuda") else ["bfloat16"]
    return [recipe.precision, *(p for p in ("float32", *lower) if p != recipe.precision)]


def _fastest(rates: list[ForwardRate], recipe: Recipe) -> ForwardRate:
    """Return the fastest of those at the precision of the recipe."""
    at_precision = (rate for rate in rates if rate.precision == recipe.precision)
    return max(at_precision, key=lambda rate: rate.slices_per_s)


def _load(
    recipe: Recipe,
    checkpoint: Checkpoint,
    device: str,
    precision: Precision,
    *,
    compiled: bool = False,
) -> Backbone:
    at_precision = recipe.model_copy(update={"precision": precision})
    return load_recipe_backbone(at_precision, checkpoint, device=device, compiled=compiled)


def _batches(network: Backbone, precision: Precision, least_s: float) -> Iterator[ForwardRate]:
    """Yield batches of 1, 2, 4, ... until they no longer gain, or no longer fit."""
    size = 1
    best = 0.0
    worse = 0  # one after the other
    while size <= _MOST_BATCH and worse < _WORSE_ENOUGH:
        try:
            rate = forward_rate(network, size, least_s)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return
        yield ForwardRate(precision=precision, compiled=False, batch_size=size, slices_per_s=rate)
        worse = worse + 1 if rate < _WORSE * best else 0
        best = max(best, rate)
        size *= 2


def _compiled(
    recipe: Recipe, checkpoint: Checkpoint, device: str, best: ForwardRate, least_s: float
) -> ForwardRate | None:
    """Measure the compiled network at the best batch; None where it cannot be compiled here."""
    network = _load(recipe, checkpoint, device, recipe.precision, compiled=True)
    try:
        rate = forward_rate(network, best.batch_size, least_s)
    except Exception as error:  # no compiler, or one that fails: torch raises anything
        lines = str(error).splitlines() or [type(error).__name__]
        log.warning("torch.compile does not work here: %s", lines[0])
        return None
    return best.model_copy(update={"compiled": True, "slices_per_s": rate})


def forward_rate(network: Backbone, batch_size: int, least_s: float) -> float:
    """Return slices a second of the network alone, on tensors that lie ready; median of three.

    On a CPU in lanes, as `extract` runs it.
    """
    if network.device.type == "cpu" and not network.compiled:
        with closing(Lanes()) as lanes:
            measure = functools.partial(_rate, network, batch_size, least_s)
            rates = [lanes.start(measure) for _ in range(lanes.number)]
            return sum(rate.result() for rate in rates)
    return _rate(network, batch_size, least_s)


def _rate(network: Backbone, batch_size: int, least_s: float) -> float:
    size = network.image_size
    x = torch.randn((batch_size, 3, size, size), device=network.device)
    network(x)
    _wait(network.device)
    rates = []
    for _ in range(3):
        times = 0
        began = time.perf_counter()
        while not times or time.perf_counter() - began < least_s / 3:
            network(x)
            times += 1
            if times % 8 == 0:  # so that a GPU's queue does not outrun the clock
                _wait(network.device)
        _wait(network.device)
        rates.append(times * batch_size / (time.perf_counter() - began))
    return sorted(rates)[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# --- the disk ------------------------------------------------------------------------------------


def _write_rate(config: Config, recipe: Recipe) -> float:
    """Return MB/s of parts committed to the store's disk, in a folder that is removed."""
    place = config.store.absolute().parent
    while not place.is_dir():
        place = place.parent
    folder = Path(tempfile.mkdtemp(prefix=".radprobe-bench-", dir=place))
    try:
        store = _store_of_parts(folder / "store", config, recipe)
        arrays = _noise(store, recipe)
        megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        parts = 0
        began = time.perf_counter()
        while parts < _MOST_PARTS and (not parts or time.perf_counter() - began < _WRITE_S):
            part = store.layout.part(parts)
            claim = store.claim(part)
            assert claim is not None
            store.write(part, claim, arrays, {})
            claim.release()
            parts += 1
        return parts * megabytes / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store_of_parts(path: Path, config: Config, recipe: Recipe) -> FeatureStore:
    """Create a store as the config's would be, of _MOST_PARTS parts with one slice each."""
    rows = part_rows_of(config, recipe)
    store = FeatureStore.create(path, recipe.canonical(), feature_arrays(recipe), rows)
    blank = {"path": "", "frame": 0, "modality": "OT", "series": "", "withdrawn": False}
    slices = [{**blank, "row": (i + 1) * rows - 1} for i in range(_MOST_PARTS)]
    table = pa.Table.from_pylist(slices, schema=SLICE_SCHEMA)
    store.write_tables(table, FILE_SCHEMA.empty_table())
    return store


def _noise(store: FeatureStore, recipe: Recipe) -> dict[str, NDArray[Any]]:
    """Return the arrays of a part, full of what does not compress."""
    arrays = store.empty_part()
    rng = np.random.default_rng(0)
    for name in recipe.arrays:
        arrays[name][...] = rng.standard_normal(arrays[name].shape, np.float32)
    arrays["status"][...] = OK
    return arrays


def _card(device: str) -> str:
    """Return what the device is called by its maker."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return device
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, device)
