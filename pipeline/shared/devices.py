"""The devices of this machine, as torch names them. Imports torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from stores.errors import DeviceError
from stores.uninterrupted import uninterrupted

# Ctrl-C in the middle of this import leaves half of torch, of which a process, such as a
# notebook's, can make nothing any more. Who imports torch for a run comes by here first.
with uninterrupted():
    import torch

_PORTABLE = 1  # cudaHostRegisterPortable: for all GPUs of the process
_CONTEXT_BYTES = 2**30  # what a process takes of a GPU beside its tensors, generously


def pick_device(name: str) -> str:
    """Return the torch device to use: `auto` is the first GPU where there is one.

    Raises DeviceError where it is not there.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says both of what it lacks
        raise DeviceError(
            f"There is no device {name!r} here: {str(error).splitlines()[0]} Take --device cpu."
        ) from None
    return "cuda:0" if name == "cuda" else name


def pinning(device: str) -> Callable[[int, int], Callable[[], None]] | None:
    """Return what has a GPU read memory without a copy (address, bytes); None on other devices.

    It returns what ends that, to be called before the memory is gone. Memory that CUDA cannot pin
    stays as it is: pixels are copied then.
    """
    return functools.partial(_pinned, device) if device.startswith("cuda") else None


def _pinned(device: str, address: int, size: int) -> Callable[[], None]:
    pinned = False
    with contextlib.suppress(RuntimeError), torch.cuda.device(device):
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = runtime.cudaHostRegister(address, size, _PORTABLE)
        pinned = int(error) == 0
    return (lambda: runtime.cudaHostUnregister(address)) if pinned else lambda: None


def room_on_card(device: str) -> int:
    """Return for how many processes as this one a GPU has memory, beside what it has to keep."""
    needed = torch.cuda.max_memory_reserved(device) + _CONTEXT_BYTES
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free // needed


def gpus() -> list[str]:
    """Return the GPUs of this machine as torch names them: cuda:0, cuda:1, ..."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
