"""The devices of this machine, as torch names them. Imports torch."""

from __future__ import annotations

import torch

from stores.errors import DeviceError


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


def gpus() -> list[str]:
    """Return the GPUs of this machine as torch names them: cuda:0, cuda:1, ..."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
