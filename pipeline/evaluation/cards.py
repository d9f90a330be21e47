"""FAISS on NVIDIA GPUs, for whoever asks for a device: the same searches, by the same call.

Unset, or "cpu", the processor searches. "cuda" is all GPUs of this machine, each of which has a
share of the queries; "cuda:1" is one. Only faiss-gpu has them: faiss-cpu installs into the same
folder, and of the two, the one that was installed last is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import faiss
import numpy as np

from pipeline.shared.arrays import Floats, Rows
from stores.errors import DeviceError

# Queries (q, d), references (n, d), k and FAISS's metric -> values and places (q, k), best first.
Search = Callable[[Floats, Floats, int, int], tuple[Floats, Rows]]

# Neighbours that FAISS's kernels find at most for a query, and lists that they look through.
MOST = 2048
INSTALL = "`pip uninstall -y faiss-cpu faiss-gpu`, then `pip install faiss-gpu`"


def search_on(device: str | None, k: int) -> Search:
    """Return the exact search for k neighbours on a device. Raises DeviceError.

    More than FAISS's kernels give are searched for by the processor.
    """
    numbers = cards_of(device)
    if not numbers or k > MOST:
        return _on_processor
    return functools.partial(_on_cards, numbers)


def cards_of(device: str | None) -> tuple[int, ...]:
    """Return the numbers of the GPUs that a device of torch's names; none for the processor.

    Raises DeviceError where FAISS cannot use them.
    """
    if device is None or not device.startswith("cuda"):
        return ()
    there = number_of_cards()
    if not there:
        raise DeviceError(f"FAISS finds no GPU for --device {device}: {why_none()}")
    _, _, number = device.partition(":")
    if not number:
        return tuple(range(there))
    if int(number) >= there:
        raise DeviceError(f"FAISS finds {there} GPUs, and no {device}.")
    return (int(number),)


def number_of_cards() -> int:
    """Return how many GPUs FAISS can use: 0 in its build for processors."""
    count: int = getattr(faiss, "get_num_gpus", lambda: 0)()
    return count


def installed() -> list[str]:
    """Return which of FAISS's packages are installed; two of them overwrite each other."""
    names = {dist.metadata["Name"] or "" for dist in metadata.distributions()}
    return sorted(name for name in names if name.startswith(("faiss-cpu", "faiss-gpu")))


def why_none() -> str:
    """Return why FAISS finds no GPU, and what to do."""
    packages = installed()
    if len(packages) > 1:
        return (
            f"{' and '.join(packages)} are both installed, into the same folder, and the last one "
            f"counts. {INSTALL}."
        )
    if hasattr(faiss, "StandardGpuResources"):
        return "the driver shows it none. See nvidia-smi and CUDA_VISIBLE_DEVICES."
    return f"its build for processors is installed. {INSTALL}."


def on_card(index: Any, device: str | None) -> Any:
    """Return a copy of an index on the first GPU of a device, or the index where that has none.

    Raises DeviceError, and RuntimeError where FAISS has no kernels for such an index.
    """
    numbers = cards_of(device)
    if not numbers:
        return index
    return faiss.index_cpu_to_gpu(_resources(numbers[0]), numbers[0], index)


@functools.cache
def _resources(number: int) -> Any:
    """Return the working memory that FAISS has on a GPU, made once."""
    return faiss.StandardGpuResources()


def _on_processor(queries: Floats, references: Floats, k: int, metric: int) -> tuple[Floats, Rows]:
    values, places = faiss.knn(queries, references, k, metric)
    return values, places


def _on_cards(
    numbers: tuple[int, ...], queries: Floats, references: Floats, k: int, metric: int
) -> tuple[Floats, Rows]:
    """Search for a share of the queries on each GPU, all at once."""
    shares = np.array_split(queries, min(len(numbers), len(queries)))

    def search(number: int, share: Floats) -> tuple[Floats, Rows]:
        values, places = faiss.knn_gpu(
            _resources(number), share, references, k, metric=metric, device=number
        )
        return values, places

    with ThreadPoolExecutor(len(numbers)) as threads:
        nearest = list(threads.map(search, numbers, shares))  # as many as there are shares
    values, places = zip(*nearest, strict=True)
    return np.concatenate(values), np.concatenate(places)
