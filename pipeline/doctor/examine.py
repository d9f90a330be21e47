"""All checks of a machine, for a config where one is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config.root import Config
from pipeline.doctor.checks import Check, codecs, gpu, limits, software, weights
from pipeline.doctor.disk import disk


def examine(config: Config | None = None) -> Iterator[Check]:
    """Yield what was looked at, a line a check: the software, the machine, the store's disk.

    Without a config, weights and disk are those that a config of defaults would use: all networks,
    and the folder one is in.
    """
    ready = True
    for check in software():
        ready = ready and check.level != "failure"
        yield check
    if ready:  # what follows needs the libraries
        yield from gpu()
        yield from codecs()
    yield from limits()
    if config is None:
        yield from weights(None, None)
        yield from disk(Path.cwd() / "store")
        return
    yield _collection(config)
    yield from weights(config.backbone.name, config.backbone.weights)
    yield from disk(config.store)


def _collection(config: Config) -> Check:
    absent = [folder for folder in config.data.roots.values() if not folder.is_dir()]
    root = absent[0] if absent else config.data.root
    if root.is_dir():
        return Check("collection", "ok", str(root))
    if config.demo is not None:
        return Check("collection", "ok", f"{root}, which the first extract writes")
    return Check("collection", "failure", f"{root} is no folder", "Set data.root to the images.")
