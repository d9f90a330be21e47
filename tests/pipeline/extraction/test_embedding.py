"""Reading, the network and writing at once: what goes wrong in one of them loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.weights import Checkpoint
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import (
    BadLimit,
    Embedded,
    EmbeddingRun,
    EmbedSettings,
    Progress,
    Speed,
    embed_missing,
    load_network,
)
from pipeline.extraction.plan import plan
from pipeline.extraction.recipes import make_recipe, open_store
from pipeline.extraction.sync import update_tables
from pipeline.extraction.writer import Writer
from pipeline.inference.forward import Forward, Values
from pipeline.inference.throughput import (
    ForwardRate,
    ReadingRate,
    Throughput,
    load_throughput,
    measured_batch,
    save_throughput,
)
from pipeline.recipe import Architecture, Recipe
from pipeline.shared.pseudonyms import load_key, reveal_path
from pipeline.types import Slice
from stores import FeatureStore
from stores.errors import DeviceError, UnwritableError
from tests.phantoms import volume, write_series
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.test_extract import arrays_of, write_config
from tests.warm import interpreter

HERE = Speed(device="cpu", batch_size=4, workers=0)
ROWS = 20


@pytest.fixture(autouse=True)
def two_lanes() -> Iterator[None]:
    """Have passes run side by side, as on two cores, whatever the tests otherwise compute on."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(tmp_path: Path, network: Path) -> Path:
    """Write 20 slices in 20 files, and a config that makes parts of 8 rows of them."""
    write_series(tmp_path / "data/ct", volume(ROWS, 40, 44))
    return write_config(tmp_path, tmp_path / "data", network)


def in_store(config: Path, name: str) -> Config:
    return load_config(config, config.with_name(name))


def embed_with(
    config: Config, speed: Speed, wrap: Callable[[Backbone], Backbone]
) -> tuple[FeatureStore, Embedded]:
    """Embed what the config's store lacks through a network of one's own."""
    recipe, file = make_recipe(config)
    store = open_store(config, recipe)
    update_tables(config, store, workers=0)
    checkpoint = Checkpoint(config.backbone.name, str(file or recipe.weights))
    settings = settings_of(config, store, checkpoint)
    settings = dataclasses.replace(
        settings, speed=speed, load=lambda *request: wrap(load_network(*request))
    )
    return store, embed_missing(store, settings)


def settings_of(config: Config, store: FeatureStore, checkpoint: Checkpoint) -> EmbedSettings:
    return EmbedSettings(
        checkpoint=checkpoint,
        root=config.data.root,
        reveal=functools.partial(reveal_path, load_key(store.path)),
        limit=BadLimit(seen=ROWS, fraction=1.0),
        speed=HERE,
    )


def receipts(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((store / "parts").glob("*.json"))]


def claims(store: Path) -> list[Path]:
    return list((store / "claims").glob("*.claim.*"))


# --- the writer's thread -------------------------------------------------------------------------


def test_what_the_writer_raises_reaches_its_owner_and_nothing_more_is_done() -> None:
    done: list[int] = []

    def work(piece: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        if piece == 2:
            raise OSError("the disk is gone")
        done.append(piece)

    writer = Writer(work)
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012 (at whichever call)
        for piece in (1, 2, 3, 4):
            writer.put(piece, lambda: None)
        writer.drain()
    with pytest.raises(OSError, match="the disk is gone"):
        writer.drain()
    writer.close()
    assert done == [1]


def test_a_writer_that_is_closed_ends_its_piece_and_drops_those_behind() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def work(piece: int) -> None:
        begun.set()
        go_on.wait()
        done.append(piece)

    writer = Writer(work)
    writer.put(1, lambda: None)
    begun.wait()
    writer.put(2, lambda: None)
    closing = threading.Thread(target=writer.close)
    closing.start()
    writer._closing.wait()
    go_on.set()
    closing.join()
    assert done == [1]


def test_a_disk_that_fails_in_the_thread_ends_the_run_with_claims_given_back(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = FeatureStore.write, []

    def full(self: FeatureStore, part: Any, *rest: Any) -> dict[str, Any]:
        calls.append(threading.current_thread().name)
        if part.index == 1:
            raise UnwritableError("no space is left")
        return plain(self, part, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", full)
        with pytest.raises(UnwritableError, match="no space"):
            extract(in_store(config, "store"), HERE)
    assert set(calls) == {"radprobe-write"}
    store = config.with_name("store")
    assert [receipt["part"] for receipt in receipts(store)] == [0]
    assert not claims(store)
    assert extract(in_store(config, "store"), HERE).embedded == ROWS - 8
    extract(in_store(config, "undisturbed"), HERE)
    assert_same(store, config.with_name("undisturbed"))


def assert_same(a: Path, b: Path) -> None:
    want, got = (arrays_of(FeatureStore.open(path)) for path in (b, a))
    for name, values in want.items():
        assert values.tobytes() == got[name].tobytes(), name


def test_a_part_that_another_took_over_is_left_to_it(config: Path) -> None:
    """Its claim is beaten while it waits for the writer: the work of the other stands."""
    settings = in_store(config, "store")

    def steal(network: Backbone) -> Backbone:
        claim = next(path for path in claims(settings.store) if ".claim.0" in path.name)
        claim.with_name(claim.name.replace(".claim.0", ".claim.1")).write_text(
            json.dumps({"host": "elsewhere", "pid": 1, "place": "x", "birth": 1})
        )
        return network

    store, done = embed_with(settings, HERE, steal)
    assert len(done.elsewhere) == 1
    assert len(receipts(store.path)) == 2
    assert done.rows < ROWS


def test_a_part_whose_slices_are_all_withdrawn_meanwhile_shifts_nothing(config: Path) -> None:
    extract(in_store(config, "undisturbed"), HERE)
    settings = in_store(config, "store")
    recipe, file = make_recipe(settings)
    store = open_store(settings, recipe)
    update_tables(settings, store, workers=0)
    parts = store.missing()
    table, seen = store.slices().to_pylist(), store.tables()
    gone = [row | {"withdrawn": row["row"] // 8 == 1} for row in table]
    store.write_tables(type(seen.slices).from_pylist(gone, schema=seen.slices.schema), seen.files)
    checkpoint = Checkpoint(settings.backbone.name, str(file or recipe.weights))
    done = embed_missing(store, settings_of(settings, store, checkpoint), parts)
    assert done.rows == ROWS - 8
    want, got = (
        FeatureStore.open(config.with_name(n)).read("cls") for n in ("undisturbed", "store")
    )
    assert want[:8].tobytes() == got[:8].tobytes()
    assert want[16:ROWS].tobytes() == got[16:ROWS].tobytes()


# --- opened and closed ---------------------------------------------------------------------------


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "radprobe" in thread.name}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_fails_in_the_middle_ends_all_that_it_opened(
    workers: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = in_store(config, "store")
    recipe, file = make_recipe(settings)
    store = open_store(settings, recipe)
    update_tables(settings, store, workers=0)
    checkpoint = Checkpoint(settings.backbone.name, str(file or recipe.weights))
    cores = torch.get_num_threads()
    at_work: set[str] = set()

    def stop(slices: int) -> None:
        at_work.update(threads())
        raise KeyboardInterrupt

    embedding = dataclasses.replace(
        settings_of(settings, store, checkpoint),
        speed=dataclasses.replace(HERE, workers=workers),
        progress=Progress(advance=stop),
    )
    with (
        pytest.raises(KeyboardInterrupt),
        EmbeddingRun(store, store.missing(), embedding) as run,
    ):
        run.embed()
    assert {"radprobe-write", "radprobe-lane_0"} <= at_work
    assert ("radprobe-read" in at_work) == (workers > 0)
    assert threads() == set()
    assert torch.get_num_threads() == cores
    assert not claims(store.path)
    assert run.summary().rows == 0


def test_no_network_is_loaded_where_others_have_every_part(config: Path) -> None:
    settings = in_store(config, "store")
    recipe, file = make_recipe(settings)
    store = open_store(settings, recipe)
    update_tables(settings, store, workers=0)
    others = [store.claim(part) for part in store.missing()]
    assert all(others)

    def load(*_: object) -> Backbone:
        raise AssertionError("a network was loaded")

    checkpoint = Checkpoint(settings.backbone.name, str(file or recipe.weights))
    embedding = dataclasses.replace(settings_of(settings, store, checkpoint), load=load)
    done = embed_missing(store, embedding)
    assert (done.rows, len(done.elsewhere)) == (0, 3)


# --- memory of the card --------------------------------------------------------------------------


def no_memory(card: str = "") -> None:
    """Do what fails for want of memory: an allocation here, or what a card's libraries raise."""
    if card == "torch":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if card:
        raise RuntimeError(card)
    torch.empty(2**50, dtype=torch.uint8)


class Scarce(Backbone):
    """A network on a card that has room for so many slices at once."""

    room = 1
    card = ""

    def __call__(self, x: torch.Tensor) -> Any:
        if len(x) > self.room:
            no_memory(self.card)
        return super().__call__(x)


def scarce(room: int, network: Backbone, card: str = "") -> Backbone:
    small = Scarce(network._model, network.architecture, network.image_size, network.blocks)
    small.room, small.card = room, card
    return small


@pytest.mark.parametrize("room", [1, 3])
def test_a_batch_too_large_for_the_card_is_halved_and_nothing_is_lost(
    room: int, config: Path
) -> None:
    extract(in_store(config, "undisturbed"), HERE)
    speed = dataclasses.replace(HERE, batch_size=8)
    store, done = embed_with(in_store(config, "store"), speed, functools.partial(scarce, room))
    assert done.rows == ROWS
    want, got = (
        arrays_of(FeatureStore.open(p)) for p in (config.with_name("undisturbed"), store.path)
    )
    assert want["status"].tobytes() == got["status"].tobytes()
    assert want["pixel_digest"].tobytes() == got["pixel_digest"].tobytes()
    for name in ("cls", "mean"):
        np.testing.assert_allclose(got[name][:ROWS], want[name][:ROWS], atol=2e-3)
    at_once = {1: 1, 3: 2}[room]
    assert [r["batch_size"] for r in receipts(store.path)] == [{"asked": 8, "at_once": at_once}] * 3


@pytest.mark.parametrize(
    "card",
    [
        "torch",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
    ],
)
def test_whichever_library_of_a_card_lacks_memory_the_batch_is_halved(
    card: str, config: Path
) -> None:
    speed = dataclasses.replace(HERE, batch_size=8)
    wrap = functools.partial(scarce, 4, card=card)
    store, done = embed_with(in_store(config, "store"), speed, wrap)
    assert done.rows == ROWS
    assert {r["batch_size"]["at_once"] for r in receipts(store.path)} == {4}


def test_another_error_of_the_network_is_raised_and_halves_nothing(config: Path) -> None:
    wrap = functools.partial(scarce, 4, card="CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        embed_with(in_store(config, "store"), dataclasses.replace(HERE, batch_size=8), wrap)


def test_one_slice_too_large_for_the_card_ends_the_run_in_words(config: Path) -> None:
    with pytest.raises(DeviceError, match="One slice alone is too much"):
        embed_with(in_store(config, "store"), HERE, functools.partial(scarce, 0))
    assert not claims(config.with_name("store"))
    assert extract(in_store(config, "store"), HERE).embedded == ROWS


# --- numbers -------------------------------------------------------------------------------------


def through(
    network: Path, slices: int, *, compiled: bool = False, lanes: bool = True, **recipe: Any
) -> list[Values]:
    """Return the features of seeded slices, in batches of 4, through `Forward`."""
    shape = Architecture(dim=48, depth=5, heads=3)
    wanted = Recipe(
        architecture=shape, weights="random:0", image_size=56, dtype="float32", **recipe
    )
    backbone = load_backbone(
        f"hf:{network}", image_size=56, precision=wanted.precision, compiled=compiled
    )
    found = list[Values]()
    rng = np.random.default_rng(0)
    items = [Slice(0, rng.integers(-1000, 400, (40, 44)).astype(np.int16)) for _ in range(slices)]
    with contextlib.closing(Forward(backbone, wanted, 4, lanes=lanes)) as forward:
        for start in range(0, slices, 4):
            some = items[start : start + 4]
            forward.run(some, ["CT"] * len(some), found.append, dict.fromkeys(STAGES, 0.0))
        forward.flush()
    return found


STAGES = ("preprocess", "forward")


@pytest.mark.parametrize("cores", [1, 3, 8])
def test_bits_and_order_are_the_same_on_however_many_cores(cores: int, network: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = through(network, 30, lanes=False)
        torch.set_num_threads(cores)
        beside = through(network, 30)
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert len(alone) == len(beside) == 8
    for want, got in zip(alone, beside, strict=True):
        assert all(want[name].tobytes() == got[name].tobytes() for name in want)


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 1e-2), ("float16", 2e-3)])
def test_lower_precision_stays_by_float32(precision: str, most: float, network: Path) -> None:
    """Relative norm of the difference, as docs/ARCHITECTURE.md states it."""
    for full, low in zip(
        through(network, 6), through(network, 6, precision=precision), strict=True
    ):
        for name, want in full.items():
            off = np.linalg.norm(low[name] - want) / np.linalg.norm(want)
            assert 0 < off < most, name


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own modules
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_equals_the_eager_one_and_sees_one_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = write_tiny_folder(tmp_path / "flat", depth=1)
    eager = through(network, 6, blocks=1)
    sizes: list[int] = []
    plain = Backbone.__call__

    def noting(self: Backbone, x: torch.Tensor) -> Any:
        sizes.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(Backbone, "__call__", noting)
    for want, got in zip(eager, through(network, 6, compiled=True, blocks=1), strict=True):
        for name, values in want.items():
            assert got[name].shape == values.shape
            np.testing.assert_allclose(got[name], values, atol=1e-5)
    assert sizes == [4, 4]


# --- telling -------------------------------------------------------------------------------------


def test_receipts_tell_where_the_time_went(config: Path) -> None:
    began = time.perf_counter()
    summary = extract(in_store(config, "store"), HERE)
    whole = time.perf_counter() - began
    parts = receipts(config.with_name("store"))
    assert len(parts) == 3
    for receipt in parts:
        spent = receipt["seconds"]
        assert {"wait", "read", "preprocess", "forward", "all"} <= spent.keys()
        assert all(0 < spent[name] < whole for name in ("read", "forward", "all")), (spent, whole)
        assert 0 < receipt["write_s"] < whole
        assert receipt["batch_size"] == {"asked": 4, "at_once": 4}
        assert receipt["device"] == "cpu"
    # Of all parts together: a lane may be at the next part before the last is handed over.
    total = {name: sum(receipt["seconds"][name] for receipt in parts) for name in (*STAGES, "all")}
    assert total["preprocess"] + total["forward"] <= total["all"] + 0.01
    assert sum("load" in receipt["seconds"] for receipt in parts) == 1
    # With the wait for the last part's commit, which no receipt tells of.
    assert round(total["all"], 3) < summary.seconds["all"] <= whole
    assert plan(in_store(config, "store")).hours_by == "store"


def test_a_trace_of_the_first_batches_is_written(config: Path, tmp_path: Path) -> None:
    trace = tmp_path / "traces/first.json"
    extract(in_store(config, "store"), dataclasses.replace(HERE, trace=trace))
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"preprocess", "forward"} <= names
    assert any("scaled_dot_product" in str(name) for name in names)


# --- what was measured ---------------------------------------------------------------------------


def test_what_was_measured_gives_batch_size_and_hours(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = in_store(config, "store")
    recipe, _ = make_recipe(settings)
    assert measured_batch(recipe, "cpu", compiled=False) is None
    assert plan(settings).hours_by == "nothing"
    ways = [("float32", False, 2, 5.0), ("float32", False, 4, 10.0), ("float32", True, 8, 20.0)]
    fields = ("precision", "compiled", "batch_size", "slices_per_s")
    measured = Throughput(
        device="cpu",
        card="a processor",
        cores=2,
        forward=tuple(
            ForwardRate.model_validate(dict(zip(fields, way, strict=True))) for way in ways
        ),
        reading=ReadingRate(
            root=str(settings.data.root.absolute()), slices_per_s=5.0, mb_per_s=1.0
        ),
        write_mb_per_s=1e9,
    )
    save_throughput(recipe, measured)
    assert load_throughput(recipe) == measured
    assert Speed().chosen("cpu", recipe).batch_size == 4
    assert Speed(compiled=True).chosen("cpu", recipe).batch_size == 8
    planned = plan(settings)
    assert planned.hours_by == "bench"
    # A CPU does one thing after the other: 20 slices at 10/s, and at 5/s on each of two cores.
    assert planned.hours == pytest.approx((ROWS / 10 + ROWS / 5 / 2) / 3600, rel=1e-6)


# --- several devices -----------------------------------------------------------------------------


# A process that embeds once each of the two holds a part, or has committed one.
WAITS = """
import json
from pathlib import Path
from pipeline.backbones.load import Backbone
from tests.waiting import until
plain = Backbone.__call__
def both_are_at_work():
    if list(Path("store/parts").glob("*.json")):
        return True
    claims = Path("store/claims").glob("*.claim.*")
    return len({json.loads(claim.read_text())["pid"] for claim in claims}) == 2
def waiting(self, x):
    until(both_are_at_work)
    return plain(self, x)
Backbone.__call__ = waiting
from pipeline.extraction.distributed.processes import child
child()
"""


def test_two_devices_share_a_run_from_any_folder(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    monkeypatch.setattr("pipeline.extraction.distributed.processes._CHILD", WAITS)
    monkeypatch.setattr("sys.executable", interpreter())
    settings = load_config(Path("config.yaml"))  # whose paths are relative then
    told: list[int] = []
    summary = extract(
        settings, dataclasses.replace(HERE, device="cpu,cpu"), Progress(told.append, told.append)
    )
    assert (summary.embedded, summary.clean) == (ROWS, True)
    assert (told[0], sum(told[1:])) == (ROWS, ROWS)
    store = config.with_name("store")
    by = {receipt["by"] for receipt in receipts(store)}
    assert len(by) == 2
    assert not any(name.endswith(f":{os.getpid()}") for name in by)
    assert not claims(store)
    extract(in_store(config, "undisturbed"), HERE)
    assert_same(store, config.with_name("undisturbed"))


DIES = """
import os, signal
import pipeline.backbones.load
def dying(self, x):
    os.kill(os.getpid(), signal.SIGKILL)
pipeline.backbones.load.Backbone.__call__ = dying
from pipeline.extraction.distributed.processes import child
child()
"""


def test_what_a_process_leaves_that_is_killed_is_done_at_the_end(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(config.parent)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.extraction.distributed.processes._CHILD", DIES)
        patch.setattr("sys.executable", interpreter())
        two = dataclasses.replace(HERE, device="cpu,cpu")
        summary = extract(in_store(config, "store"), two)
    assert (summary.embedded, summary.clean) == (ROWS, True)
    assert "exit code -9" in caplog.text
    assert not claims(config.with_name("store"))
    extract(in_store(config, "undisturbed"), HERE)
    assert_same(config.with_name("store"), config.with_name("undisturbed"))
