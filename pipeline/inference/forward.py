"""Batches through preprocessing and the network, handed over in order.

On a CPU batches are computed side by side (see `lanes`), and handed over once those before them
are. On a GPU `run` returns while the card works: pixels go there from pinned memory and are
preprocessed in one stream, the network runs in another, the features come back in a third, and
what was computed is handed over one batch later. So the card computes a batch while this process
reads and stacks the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from pipeline.backbones.load import Backbone
from pipeline.inference.lanes import Lanes
from pipeline.inference.telemetry import Seconds, clock
from pipeline.preprocessing.prepare import prepare_batch
from pipeline.recipe import PatchTokens, Recipe
from pipeline.types import Slice
from stores.errors import DeviceError

log = logging.getLogger(__name__)

Values = dict[str, NDArray[Any]]  # output -> (b, ...) in the recipe's dtype
# How libraries below torch's allocator say that there is no memory left.
_NO_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # as its first handle says it
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
)
# Batches that a GPU has before it when a further one is handed in.
_IN_FLIGHT = 1
# Options of mallopt, in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class _Marks:
    """Events of a GPU that tell when its streams came past the stages of a batch."""

    began: torch.cuda.Event
    prepared: torch.cuda.Event
    entered: torch.cuda.Event  # the network
    left: torch.cuda.Event
    back: torch.cuda.Event  # the features, in this process's memory


@dataclass
class _BatchInFlight:
    """A batch on its way: what to do with its features, once they are there.

    items: whose pixels stay where they are meanwhile, since a GPU may read them there; of a CPU,
    none: its lane lets go of them. spent: what it took where it was computed; in a lane, beside so
    many others.
    """

    deliver: Callable[[Values], None]
    seconds: Seconds
    items: Sequence[Slice] = ()
    outputs: dict[str, Tensor] = field(default_factory=dict)
    spent: Seconds = field(default_factory=lambda: defaultdict(float))
    lane: Future[None] | None = None
    lanes: int = 1
    marks: _Marks | None = None

    def land(self) -> None:
        """Wait for the features and hand them over."""
        if self.marks is not None:
            self.marks.back.synchronize()
            milliseconds = self.marks.began.elapsed_time(self.marks.prepared)
            self.seconds["preprocess"] += milliseconds / 1000
            milliseconds = self.marks.entered.elapsed_time(self.marks.left)
            self.seconds["forward"] += milliseconds / 1000
        if self.lane is not None:
            self.lane.result()
        # Lanes work side by side: each counts for its share, so that a part's stages add up to
        # the time it took by the clock.
        for stage, spent in self.spent.items():
            self.seconds[stage] += spent / self.lanes
        self.deliver({name: value.numpy() for name, value in self.outputs.items()})


class Forward:
    """A network, and the batches that are on their way through it.

    A batch that does not fit into the device's memory is run in halves, and so are all that follow:
    `most` is how many slices are run at once. lanes: whether a CPU computes batches side by side;
    a compiled network never does. To be closed, on a CPU.
    """

    def __init__(
        self, network: Backbone, recipe: Recipe, batch_size: int, *, lanes: bool = True
    ) -> None:
        keep_memory()
        self.network = network
        self.recipe = recipe
        self.most = batch_size
        self._in_flight: deque[_BatchInFlight] = deque()
        self._lock = threading.Lock()  # of `most`
        device = network.device
        self._streams = Streams(device) if device.type == "cuda" else None
        in_lanes = lanes and device.type == "cpu" and not network.compiled
        self._lanes = Lanes() if in_lanes else None

    def run(
        self,
        items: Sequence[Slice],
        modalities: Sequence[str],
        deliver: Callable[[Values], None],
        seconds: Seconds,
    ) -> None:
        """Embed a batch; `deliver` gets its features now or in a later call, in order.

        seconds: where the time it takes is added. Raises DeviceError where one slice alone is too
        much for the device.
        """
        batch = _BatchInFlight(deliver, seconds, items if self._streams is not None else ())
        work = functools.partial(self._compute_in_pieces, items, modalities, batch)
        if self._lanes is None:
            work()
        else:
            batch.lane = self._lanes.start(work)
            batch.lanes = self._lanes.number
        self._queue(batch)

    def _compute_in_pieces(
        self, items: Sequence[Slice], modalities: Sequence[str], batch: _BatchInFlight
    ) -> None:
        """Compute a batch, in halves where memory runs out."""
        while True:
            most = self.most
            try:
                if self._streams is None:
                    self._compute(items, modalities, batch)
                else:
                    self._compute_on_gpu(self._streams, items, modalities, batch)
                return
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if min(most, len(items)) == 1:
                    raise DeviceError(
                        f"One slice alone is too much for the memory of {self.network.device} "
                        f"({str(error).splitlines()[0]}). Take a smaller network or image_size, or "
                        "--device cpu; or see what else uses that memory."
                    ) from None
            # Behind the handler, whose error still holds what was computed.
            self._halve(most, len(items))

    def pass_by(self, deliver: Callable[[Values], None]) -> None:
        """Call `deliver` without features, once all batches before are handed over."""
        self._queue(_BatchInFlight(deliver, {}))

    def flush(self) -> None:
        """Wait for all that is on its way, and hand it over."""
        while self._in_flight:
            self._in_flight.popleft().land()

    def _queue(self, batch: _BatchInFlight) -> None:
        """Note a batch as on its way, and hand over the oldest while there are too many."""
        self._in_flight.append(batch)
        allowed = 0 if self._streams is None else _IN_FLIGHT
        if self._lanes is not None:
            allowed = self._lanes.number  # and one that waits for the first lane to be free
        while len(self._in_flight) > allowed:
            self._in_flight.popleft().land()

    def close(self) -> None:
        """End the lanes; what is on its way is lost."""
        if self._lanes is not None:
            self._lanes.close()

    def _halve(self, most: int, batch: int) -> None:
        """Take fewer slices at once than `most` were of a batch, unless another lane has."""
        with self._lock:
            if self.most != most:
                return
            self.most = max(1, min(most, batch) // 2)
        log.warning(
            "A batch did not fit into the memory of %s: %d slices at once from now on.",
            self.network.device,
            self.most,
        )
        if self._streams is not None:
            # What is on its way holds memory of the card, which the cache gives back only then.
            self.flush()
            torch.cuda.empty_cache()

    def _pieces(
        self, items: Sequence[Slice], modalities: Sequence[str]
    ) -> Iterator[tuple[Sequence[Slice], Sequence[str]]]:
        for start in range(0, len(items), self.most):
            stop = start + self.most
            yield items[start:stop], modalities[start:stop]

    def _compute(
        self, items: Sequence[Slice], modalities: Sequence[str], batch: _BatchInFlight
    ) -> None:
        """Compute a batch on a CPU, or on a device other than NVIDIA's; done when this returns."""
        device = self.network.device
        pieces: list[dict[str, Tensor]] = []
        for some, of in self._pieces(items, modalities):
            # On the CPU: other devices lack float64.
            with clock(batch.spent, "preprocess"), record_function("preprocess"):
                x = prepare_batch(some, of, self.recipe)
            with clock(batch.spent, "forward"), record_function("forward"):
                arrays = self._features(x.to(device))
                pieces.append({name: value.cpu() for name, value in arrays.items()})
        batch.outputs = _joined(pieces)

    @torch.inference_mode()
    def _compute_on_gpu(
        self,
        streams: Streams,
        items: Sequence[Slice],
        modalities: Sequence[str],
        batch: _BatchInFlight,
    ) -> None:
        """Queue the work of a batch on a GPU, which goes on when this returns.

        Each stream waits for the one before by an event.
        """
        with streams.at(streams.to):
            began = streams.mark(streams.to)
            with record_function("preprocess"):
                xs = [
                    prepare_batch(some, of, self.recipe, self.network.device)
                    for some, of in self._pieces(items, modalities)
                ]
            prepared = streams.mark(streams.to)
        streams.main.wait_event(prepared)
        entered = streams.mark(streams.main)
        for x in xs:
            streams.keep(x, streams.main)
        with record_function("forward"):
            outputs = _joined([self._features(x) for x in xs])
        left = streams.mark(streams.main)
        with streams.at(streams.back):
            streams.back.wait_event(left)
            for name, value in outputs.items():
                batch.outputs[name] = streams.to_host(value)
                streams.keep(value, streams.back)
            back = streams.mark(streams.back)
        # Last: without marks, nothing waits for what a failure above left half queued.
        batch.marks = _Marks(began, prepared, entered, left, back)

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the recipe's arrays of a preprocessed batch, in their dtypes, on the device.

        A compiled network is given full batches alone: another size would be compiled anew, and its
        code be taken for full batches too from then on, with other bits.
        """
        count = len(x)
        recipe = self.recipe
        if self.network.compiled and count < self.most:
            x = torch.cat([x, x.new_zeros((self.most - count, *x.shape[1:]))])
        features = self.network(x)
        arrays: dict[str, Tensor] = {}
        dtype = getattr(torch, recipe.dtype)  # the store refuses what overflows it
        for name in recipe.outputs:
            if name == "patch":
                arrays |= coded(features.patch[:count], recipe.patch, dtype)
            else:
                arrays[name] = getattr(features, name)[:count].to(dtype)
        return arrays


class Streams:
    """The queues of work of one GPU: pixels in, the network (`main`), features out."""

    def __init__(self, device: torch.device) -> None:
        self.main = torch.cuda.current_stream(device)
        self.to = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def at(self, stream: torch.cuda.Stream) -> contextlib.AbstractContextManager[None]:
        """Queue what follows in a stream, and not in `main`."""
        return torch.cuda.stream(stream)

    def mark(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Return an event that comes once all is done that a stream has before it."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def keep(self, value: Tensor, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a tensor of another stream until this one is through with it."""
        value.record_stream(stream)

    def to_host(self, value: Tensor) -> Tensor:
        """Return a copy in pinned memory, which is filled once the stream comes to it."""
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device's memory ran out, whichever of its libraries says so.

    torch's allocator has an error of its own. cuBLAS, cuDNN and cuSOLVER, which allocate beside it,
    give their status, and CUDA its words; a CPU's allocator has words alone.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return any(words in message for words in _NO_MEMORY)


def coded(tokens: Tensor, how: PatchTokens, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return patch tokens (..., h, w, d) as the arrays that a store has of them.

    int8: round(x / s) with a scale s = max |x| / 127 for each token, as `stores.codes` reads it.
    """
    if how.pool > 1:
        *before, h, w, d = tokens.shape
        p = how.pool
        tokens = tokens.reshape(*before, h // p, p, w // p, p, d).mean(dim=(-4, -2))
    if how.coding == "plain":
        return {"patch": tokens.to(dtype)}
    scale = tokens.abs().amax(dim=-1, keepdim=True) / 127
    # Not finite stays not finite in the scale, which the store refuses.
    codes = (tokens / scale.clamp_min(torch.finfo(scale.dtype).tiny)).round().nan_to_num()
    return {"patch": codes.clamp(-127, 127).to(torch.int8), "patch_scale": scale[..., 0]}


def _joined(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the arrays of a batch that was computed in pieces."""
    if len(pieces) == 1:
        return pieces[0]
    arrays: dict[str, Tensor] = {}
    for name in pieces[0]:
        arrays[name] = torch.cat([piece[name] for piece in pieces])
    return arrays


def keep_memory() -> None:
    """Let glibc keep the memory of activations from batch to batch.

    By default it gives blocks above 32 MB back to the kernel at once and asks for them anew: those
    page faults cost a sixth of ViT-S's time at batches of 32 (measured).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
