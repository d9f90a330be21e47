"""Loaded into a process, makes the network take COST_S more a slice, and the disk SYNC_S a file.

While there is a file STALLED, the disk takes no file at all.
"""

from __future__ import annotations

import os
import time

from torch import Tensor

from pipeline.backbones.load import Backbone, Features

_plain, _sync = Backbone.__call__, os.fsync


def _slowly(self: Backbone, x: Tensor) -> Features:
    time.sleep(float(os.environ["COST_S"]) * len(x))
    return _plain(self, x)


def _sync_slowly(descriptor: int) -> None:
    time.sleep(float(os.environ["SYNC_S"]))
    while os.path.exists(os.environ["STALLED"]):
        time.sleep(0.01)
    _sync(descriptor)


Backbone.__call__ = _slowly  # type: ignore[method-assign]
os.fsync = _sync_slowly
