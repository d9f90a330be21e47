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


def opened_on(connect: Callable[[], Client], data: Data, plane: Plane, here: Open) -> Open:
    """Return what opens files by a cluster's workers, who see them under the same absolute path.

    here: what opens those of a task that was lost, and all where there is no worker.
    """
    absolute = data.model_copy(update={"root": data.root.absolute()})

    def headers(paths: Iterable[str]) -> Iterator[Headers]:
        with connect() as client:
            for some, task in _tasks(client, absolute, plane, paths):
                yield from here(some) if task is None else _answer(task, some, here)

    return headers


def at_worker(data: Data, plane: Plane, paths: list[str]) -> list[Headers]:
    """Return the headers of files, in a worker of a cluster. Raises where it sees none of them."""
    if not data.root.is_dir():  # which would set every file aside as vanished
        raise FileNotFoundError("the collection's folder")
    return list(opened_by(data, plane, 1)(paths))


def _tasks(
    client: Client, data: Data, plane: Plane, paths: Iterable[str]
) -> Iterator[tuple[list[str], Future | None]]:
    """Yield some paths after the others with their tasks, of which a bounded number is out."""
    out: deque[tuple[list[str], Future | None]] = deque()
    left = iter(paths)
    while some := list(itertools.islice(left, _FILES)):
        workers = len(client.nthreads())
        task = client.submit(at_worker, data, plane, some, pure=False) if workers else None
        out.append((some, task))
        while len(out) > WINDOW * workers:
            yield out.popleft()
    yield from out


def _answer(task: Future, paths: list[str], here: Open) -> Iterator[Headers]:
    try:
        found: list[Headers] = task.result()
    except Exception as error:  # its workers died, or the scheduler
        log.warning("%d files are opened here: %s", len(paths), type(error).__name__)
        return here(paths)
    return iter(found)
