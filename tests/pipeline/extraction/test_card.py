"""What a card is handed, and when: by a device whose clock stands for a real one's."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbones.load import load_backbone
from pipeline.inference.forward import Forward, Values
from pipeline.io.idle import IDLE
from pipeline.io.read_queue import open_read_queue
from pipeline.io.slots import is_in_slot
from pipeline.io.types import Request
from pipeline.recipe import Architecture, Recipe
from pipeline.shared.devices import pinning
from pipeline.types import Slice
from tests import phantoms
from tests.pipeline.models import write_tiny_folder

BATCH = 4
PASS_S = 0.05  # of the network, by the device's clock


class Clock:
    """The time that this process has: it goes on where something is read or waited for."""

    now = 0.0


class Event:
    """Comes at a time; copies that come with it are filled then, and not before."""

    def __init__(self, clock: Clock, at: float, copies: list[tuple[torch.Tensor, torch.Tensor]]):
        self.at = at
        self._clock = clock
        self._copies = copies

    @torch.inference_mode()
    def synchronize(self) -> None:
        self._clock.now = max(self._clock.now, self.at)
        for host, value in self._copies:
            host.copy_(value)

    def elapsed_time(self, later: Event) -> float:
        return 1000 * (later.at - self.at)


class Stream:
    """Is through with what it has at a time of its own."""

    def __init__(self) -> None:
        self.until = 0.0

    def wait_event(self, event: Event) -> None:
        self.until = max(self.until, event.at)


class DeviceClock:
    """The streams of a device that computes at once, and says so once its clock comes to it."""

    def __init__(self, clock: Clock) -> None:
        self.main, self.to, self.back = Stream(), Stream(), Stream()
        self.kept: list[tuple[torch.Tensor, Stream]] = []
        self._clock = clock
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def at(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self, stream: Stream) -> Event:
        stream.until = max(stream.until, self._clock.now)
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        if stream is self.back:
            copies, self._copies = self._copies, []
        return Event(self._clock, stream.until, copies)

    def keep(self, value: torch.Tensor, stream: Stream) -> None:
        self.kept.append((value, stream))

    def to_host(self, value: torch.Tensor) -> torch.Tensor:
        host = torch.full_like(value, torch.nan)
        self._copies.append((host, value))
        return host


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("network"), depth=1)


def on_card(network: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Forward:
    """Return a Forward of a device by whose clock the network takes PASS_S a batch."""
    forward = on_cores(network)
    streams: Any = DeviceClock(clock)
    forward._streams = streams
    features = forward._features

    def timed(x: torch.Tensor) -> dict[str, torch.Tensor]:
        streams.main.until += PASS_S
        return features(x)

    monkeypatch.setattr(forward, "_features", timed)
    return forward


def on_cores(network: Path) -> Forward:
    recipe = Recipe(
        architecture=Architecture(dim=48, depth=1, heads=3),
        weights="random:0",
        image_size=56,
        dtype="float32",
        blocks=1,
    )
    return Forward(load_backbone(f"hf:{network}", image_size=56), recipe, BATCH, lanes=False)


def slices(count: int) -> list[Slice]:
    rng = np.random.default_rng(0)
    return [Slice(0, rng.integers(-1000, 400, (40, 44)).astype(np.int16)) for _ in range(count)]


def spent() -> dict[str, float]:
    return {"preprocess": 0.0, "forward": 0.0}


@pytest.mark.parametrize(
    ("reading_s", "all_s"),
    [(0.04, 0.04 + 6 * PASS_S), (0.06, 6 * 0.06 + PASS_S)],
    ids=["the network binds", "reading binds"],
)
def test_a_card_computes_a_batch_while_the_next_is_read(
    network: Path, monkeypatch: pytest.MonkeyPatch, reading_s: float, all_s: float
) -> None:
    clock = Clock()
    seconds = spent()
    came: list[Values] = []
    items = slices(6 * BATCH)
    with closing(on_card(network, clock, monkeypatch)) as forward:
        for start in range(0, len(items), BATCH):
            clock.now += reading_s
            forward.run(items[start : start + BATCH], ["CT"] * BATCH, came.append, seconds)
            assert len(came) == start // BATCH  # one is on its way
        forward.flush()
    assert clock.now == pytest.approx(all_s)
    assert seconds["forward"] == pytest.approx(6 * PASS_S)
    expected: list[Values] = []
    with closing(on_cores(network)) as forward:
        for start in range(0, len(items), BATCH):
            forward.run(items[start : start + BATCH], ["CT"] * BATCH, expected.append, spent())
    for want, got in zip(expected, came, strict=True):
        assert all(want[name].tobytes() == got[name].tobytes() for name in want)


def test_pixels_stay_until_the_card_is_through_with_them(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(on_card(network, Clock(), monkeypatch)) as forward:
        items = slices(BATCH)
        pixels = [weakref.ref(item.pixels) for item in items]
        forward.run(items, ["CT"] * BATCH, lambda values: None, spent())
        del items
        assert all(one() is not None for one in pixels)
        forward.flush()
        assert all(one() is None for one in pixels)


@pytest.fixture
def none_idle() -> Iterator[None]:
    IDLE.close()
    yield
    IDLE.close()


@pytest.mark.usefixtures("none_idle")
def test_a_card_reads_the_memory_of_each_reader_for_as_long_as_it_is_there(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 10 * BATCH
    for k in range(count):
        phantoms.write_png(tmp_path / f"{k:02d}.png", np.full((40, 40), k, np.uint8))
    pinned: dict[int, int] = {}
    ended: list[int] = []

    def pin(address: int, size: int) -> Any:
        assert address not in pinned
        pinned[address] = size
        return lambda: ended.append(address)

    came: list[Values] = []
    forward = on_card(network, Clock(), monkeypatch)
    with closing(forward), closing(open_read_queue(tmp_path, workers=2, pin=pin)) as reads:
        for k in range(count):
            reads.put(Request(f"{k:02d}.png", (0,)))
        for _ in range(count // BATCH):
            items = [reads.get().item for _ in range(BATCH)]
            for item in items:
                assert isinstance(item, Slice)
                assert is_in_slot(item.pixels)
                assert any(at <= item.pixels.ctypes.data < at + pinned[at] for at in pinned)
            forward.run(items, ["CT"] * BATCH, came.append, spent())
        assert not ended
        forward.flush()
    assert len(came) == count // BATCH
    assert 1 <= len(pinned) <= 2
    # Kept for the next pool, whose card may be the same: pinned once.
    with closing(open_read_queue(tmp_path, workers=2, pin=pin)) as reads:
        reads.put(Request("00.png", (0,)))
        held = reads.get().item
    del items, item
    IDLE.close()
    gc.collect()
    assert len(ended) == len(pinned) - 1  # one has pixels that are held
    del held, reads
    gc.collect()
    assert sorted(ended) == sorted(pinned)
    assert "radprobe-slots" not in Path("/proc/self/maps").read_text()


class Runtime:
    """CUDA's functions that pin memory, of which the first gives an error."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, *what: int) -> int:  # noqa: N802
        self.calls.append(what)
        return self.error

    def cudaHostUnregister(self, *what: int) -> int:  # noqa: N802
        self.calls.append(what)
        return 0


@pytest.mark.parametrize(("error", "ended"), [(0, [(4096,)]), (1, [])])
def test_memory_that_cuda_does_not_pin_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: int, ended: list[tuple[int]]
) -> None:
    runtime = Runtime(error)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    assert pinning("cpu") is None
    pin = pinning("cuda:1")
    assert pin is not None
    unpin = pin(4096, 100)
    assert runtime.calls == [(4096, 100, 1)]
    unpin()
    assert runtime.calls[1:] == ended
