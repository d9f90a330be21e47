"""Headers of many files by the workers of a dask cluster, some hundreds a task.

What a cluster does not answer is opened here: a first look asks nothing of it but speed.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.extraction.discover import Open, opened_by
from pipeline.extraction.distributed.scheduler import WINDOW
from pipeline.types import Header, Plane
from stores.errors import UnreadableError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

Headers = list[Header] | UnreadableError
# Files a task: a second of work or two, and few enough that all workers get some.
_FILES = 512


def open_on_cluster(connect: Callable[[], Client], data: Data, plane: Plane, locally: Open) -> Open:
    """Return what opens files by a cluster's workers, who see them under the same absolute path.

    locally: what opens those of a task that was lost, and all where there is no worker.
    """
    absolute = data.model_copy(update={"root": data.root.absolute()})

    def headers(paths: Iterable[str]) -> Iterator[Headers]:
        # Connected to only here: a collection that is known already needs no cluster.
        with connect() as client:
            for batch, future in _submitted(client, absolute, plane, paths):
                if future is None:
                    yield from locally(batch)
                else:
                    yield from _result(future, batch, locally)

    return headers


def headers_at_worker(data: Data, plane: Plane, paths: list[str]) -> list[Headers]:
    """Return the headers of files, in a worker of a cluster. Raises where it sees none of them."""
    if not data.root.is_dir():  # which would set every file aside as vanished
        raise FileNotFoundError("the collection's folder")
    return list(opened_by(data, plane, 1)(paths))


def _submitted(
    client: Client, data: Data, plane: Plane, paths: Iterable[str]
) -> Iterator[tuple[list[str], Future | None]]:
    """Yield batches of paths, in order, each with its task; None where there is no worker for it.

    A bounded number of tasks is in flight, whatever the number of paths.
    """
    in_flight: deque[tuple[list[str], Future | None]] = deque()
    left = iter(paths)
    while batch := list(itertools.islice(left, _FILES)):
        workers = len(client.nthreads())
        future = None
        if workers:
            future = client.submit(headers_at_worker, data, plane, batch, pure=False)
        in_flight.append((batch, future))
        # The oldest is waited for first: whoever takes these needs the order of the paths.
        while len(in_flight) > WINDOW * workers:
            yield in_flight.popleft()
    yield from in_flight


def _result(future: Future, paths: list[str], locally: Open) -> Iterator[Headers]:
    try:
        headers: list[Headers] = future.result()
    except Exception as error:  # its workers died, or the scheduler
        log.warning("%d files are opened here: %s", len(paths), type(error).__name__)
        return locally(paths)
    return iter(headers)
