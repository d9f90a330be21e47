"""How fast a machine is with a config: the network alone, reading alone, writing alone.

What is measured is kept where `plan` and `extract` find it (`embedding.pace`).
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

import numpy as np
import pyarrow as pa
import torch

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.extraction.sync import feature_arrays, make_recipe, part_rows_of
from pipeline.inference.forward import keep_memory, out_of_memory, pick_device
from pipeline.inference.lanes import Lanes
from pipeline.inference.speed import cores
from pipeline.inference.throughput import Forward, Pace, Reading, save_pace
from pipeline.recipe import Precision, Recipe
from pipeline.studies.sample import take_sample
from stores import FeatureStore
from stores.features import OK
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

log = logging.getLogger(__name__)

_SLICES = 64  # read
_WRITE_S = 3.0
_MOST_PARTS = 8
_MOST_BATCH = 1024
# A batch this much slower than the best so far ends the search.
_WORSE = 0.9


def bench(
    config: Config,
    device: str = "auto",
    *,
    least_s: float = 1.0,
    compiled: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Pace:
    """Measure a config on this machine, keep it, and return it.

    least_s: how long each setting is run at least. compiled: whether torch.compile is tried, which
    takes a minute. tell: called with a line a measurement. Raises DeviceError, WeightsError,
    ConfigError.
    """
    recipe, file = make_recipe(config)
    device = pick_device(device)
    keep_memory()
    forward = list[Forward]()
    for precision in _precisions(recipe, device):
        network = _load(config, file or recipe.weights, recipe, device, precision)
        for way in _batches(network, precision, least_s):
            forward.append(way)
            tell(_line(way))
    own = (way for way in forward if way.precision == recipe.precision)
    best = max(own, key=lambda way: way.slices_per_s)
    faster = None
    if compiled:
        faster = _compiled(config, file or recipe.weights, recipe, device, best, least_s)
    if faster is not None:
        forward.append(faster)
        tell(_line(faster))
    sample = take_sample(config, _SLICES)
    reading = Reading(
        root=str(config.data.root.absolute()),
        slices_per_s=len(sample.items) / sample.seconds,
        mb_per_s=sample.megabytes / sample.seconds,
    )
    tell(f"reading  {reading.slices_per_s:10.1f} slices/s of a core, {reading.mb_per_s:.1f} MB/s")
    write = _write_rate(config, recipe)
    tell(f"writing  {write:10.1f} MB/s")
    pace = Pace(
        device=device,
        card=_card(device),
        cores=cores(),
        forward=tuple(forward),
        reading=reading,
        write_mb_per_s=write,
    )
    save_pace(recipe, pace)
    return pace


def _line(way: Forward) -> str:
    name = f"{way.precision}{', compiled' if way.compiled else ''}, batch {way.batch_size}"
    return f"network  {way.slices_per_s:10.1f} slices/s  {name}"


def _precisions(recipe: Recipe, device: str) -> list[Precision]:
    """Return what is worth measuring: the recipe's own first."""
    lower: list[Precision] = ["bfloat16", "float16"] if device.startswith("cuda") else ["bfloat16"]
    return [recipe.precision, *(p for p in ("float32", *lower) if p != recipe.precision)]


def _load(
    config: Config,
    weights: Path | str,
    recipe: Recipe,
    device: str,
    precision: Precision,
    *,
    compiled: bool = False,
) -> Backbone:
    return load_backbone(
        config.backbone.name,
        weights,
        image_size=recipe.image_size,
        blocks=recipe.blocks,
        patch_blocks=recipe.patch.blocks,
        device=device,
        precision=precision,
        compiled=compiled,
        treatment=recipe.architecture.treatment,
    )


def _batches(network: Backbone, precision: Precision, least_s: float) -> Iterator[Forward]:
    """Yield batches of 1, 2, 4, ... until they no longer gain, or no longer fit."""
    size, best, worse = 1, 0.0, 0
    while size <= _MOST_BATCH and worse < 2:
        try:
            rate = forward_rate(network, size, least_s)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return
        yield Forward(precision=precision, compiled=False, batch_size=size, slices_per_s=rate)
        worse = worse + 1 if rate < _WORSE * best else 0
        best, size = max(best, rate), 2 * size


def _compiled(
    config: Config,
    weights: Path | str,
    recipe: Recipe,
    device: str,
    best: Forward,
    least_s: float,
) -> Forward | None:
    """Measure the compiled network at the best batch; None where it cannot be compiled here."""
    network = _load(config, weights, recipe, device, recipe.precision, compiled=True)
    try:
        rate = forward_rate(network, best.batch_size, least_s)
    except Exception as error:  # no compiler, or one that fails: torch raises anything
        said = str(error).splitlines() or [type(error).__name__]
        log.warning("torch.compile does not work here: %s", said[0])
        return None
    return best.model_copy(update={"compiled": True, "slices_per_s": rate})


def forward_rate(network: Backbone, batch_size: int, least_s: float) -> float:
    """Return slices a second of the network alone, on tensors that lie ready; median of three.

    On a CPU in lanes, as `extract` runs it.
    """
    if network.device.type == "cpu" and not network.compiled:
        with closing(Lanes()) as lanes:
            own = functools.partial(_rate, network, batch_size, least_s)
            started = [lanes.start(own) for _ in range(lanes.number)]
            return sum(each.result() for each in started)
    return _rate(network, batch_size, least_s)


def _rate(network: Backbone, batch_size: int, least_s: float) -> float:
    size = network.image_size
    x = torch.randn((batch_size, 3, size, size), device=network.device)
    network(x)
    _wait(network.device)
    rates = []
    for _ in range(3):
        began, times = time.perf_counter(), 0
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


def _write_rate(config: Config, recipe: Recipe) -> float:
    """Return MB/s of parts committed to the store's disk."""
    place = config.store.absolute().parent
    while not place.is_dir():
        place = place.parent
    folder = Path(tempfile.mkdtemp(prefix=".radprobe-bench-", dir=place))
    try:
        specs, rows = feature_arrays(recipe), part_rows_of(config, recipe)
        store = FeatureStore.create(folder / "store", recipe.canonical(), specs, rows)
        n = _MOST_PARTS * rows
        blank = {"path": "", "frame": 0, "modality": "OT", "series": "", "withdrawn": False}
        table = pa.Table.from_pylist(
            [{**blank, "row": (i + 1) * rows - 1} for i in range(n // rows)], schema=SLICE_SCHEMA
        )
        store.write_tables(table, FILE_SCHEMA.empty_table())
        arrays, rng = store.empty_part(), np.random.default_rng(0)
        for name in specs:
            arrays[name][...] = rng.standard_normal(arrays[name].shape, np.float32)
        arrays["status"][...] = OK
        size, began, parts = sum(a.nbytes for a in arrays.values()), time.perf_counter(), 0
        while parts < _MOST_PARTS and (not parts or time.perf_counter() - began < _WRITE_S):
            part = store.layout.part(parts)
            claim = store.claim(part)
            assert claim is not None
            store.write(part, claim, arrays, {})
            claim.release()
            parts += 1
        return parts * size / 1e6 / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
