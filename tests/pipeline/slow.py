"""Loaded into a process, and into those that it starts: its network and its disk are slow.

It looks often at what the others do, so that nobody waits for that.

The environment says how: a slice takes the network COST_S more, and a file takes SYNC_S more to be
synced. While there is a file STALLED, no file is synced at all. While there is a file HOLD, of the
words `number store`, the network waits once the store has so many parts (see `Hold`).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PAUSE_S = 0.01
_PARENT = os.getppid()


class Hold:
    """Has networks wait once a store has so many parts, whatever the processes are at then."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def at(self, parts: int, store: Path) -> None:
        """Have the networks wait from so many committed parts on."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{parts} {store}")
        fresh.replace(self.path)

    def release(self) -> None:
        """Let the networks go on."""
        self.path.unlink()


def _is_held() -> bool:
    try:
        number, store = Path(os.environ["HOLD"]).read_text().split(" ", 1)
    except (FileNotFoundError, IsADirectoryError):  # there is none, or none is named
        return False
    return sum(1 for _ in Path(store, "parts").glob("[0-9]*.json")) >= int(number)


def _slow_network(load: ModuleType) -> None:
    plain = load.Backbone.__call__

    def slowly(self: Any, x: Any) -> Any:
        time.sleep(float(os.environ["COST_S"]) * len(x))
        # Not for ever where the tests have ended, and nobody is left to release it.
        while _is_held() and os.getppid() == _PARENT:
            time.sleep(_PAUSE_S)
        return plain(self, x)

    load.Backbone.__call__ = slowly


def _slow_children(processes: ModuleType) -> None:
    # Forked as well: they would take seconds to import what is imported somewhere.
    sys.executable = os.environ["INTERPRETER"]
    processes._CHILD = f"import {__name__}\n{processes._CHILD}"


def _often(**pauses_s: float) -> Callable[[ModuleType], None]:
    """Return what has a module look oftener at what others do: its pauses, by their names."""

    def set_pauses(module: ModuleType) -> None:
        for name, seconds in pauses_s.items():
            assert hasattr(module, name), name
            setattr(module, name, seconds)

    return set_pauses


def _slow_disk() -> None:
    plain = os.fsync

    def slowly(descriptor: int) -> None:
        time.sleep(float(os.environ["SYNC_S"]))
        while os.path.exists(os.environ["STALLED"]) and os.getppid() == _PARENT:
            time.sleep(_PAUSE_S)
        plain(descriptor)

    os.fsync = slowly


# Changed as soon as they are imported, and not imported for it: a network takes seconds to.
_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "pipeline.backbones.load": _slow_network,
    "pipeline.extraction.distributed.processes": _slow_children,
    "pipeline.extraction.distributed.shards": _often(_POLL_S=0.05, _WAIT_S=0.1),
    "pipeline.extraction.distributed.dask_run": _often(_POLL_S=0.05, _WORKERS_S=0.1, _CLAIMS_S=0.1),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Changes modules right after they were imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = _CHANGES.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)  # by the finders behind this one
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


# In the tests' own process, which only names a Hold, nothing is slow.
if "COST_S" in os.environ:
    _slow_disk()
    sys.meta_path.insert(0, _Finder())
