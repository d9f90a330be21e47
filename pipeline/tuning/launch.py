"""One fold trained by a process a device, on this machine. This process starts and watches them."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessException, spawn

from pipeline.tuning.checkpoint import Run
from pipeline.tuning.fold import Fold
from pipeline.tuning.ranks import Ranks
from stores.errors import DeviceError, RadprobeError

# Others wait while the first looks at val; one that died is seen by the parent, not by waiting.
_PATIENCE = timedelta(days=1)


def train_together(fold: Fold) -> Run:
    """Train a fold by a process a device of its job; its state is then in the fold's folder.

    Raises what a process raised, DeviceError where one was killed; the others end with it.
    """
    said = get_context("spawn").SimpleQueue()
    heard: list[Run | BaseException] = []

    def listen() -> None:
        while not said.empty():
            match said.get():
                case (done, most):
                    fold.job.beat(done, most)
                case other:
                    heard.append(other)

    with tempfile.TemporaryDirectory() as meeting:
        plain = replace(fold, job=replace(fold.job, beat=_silent))
        args, size = (plain, Path(meeting) / "ranks", said), len(fold.job.devices)
        started = spawn(_train, args, nprocs=size, join=False)  # type: ignore[no-untyped-call]
        assert started is not None
        try:
            while not started.join(timeout=0.2):
                listen()
        except ProcessException as error:
            listen()
            for own in heard:
                if isinstance(own, BaseException):
                    raise own from None
            raise DeviceError(
                f"One of {size} processes that tune the network ended: {error}. What was "
                "learnt until the last checkpoint is kept, and the same command goes on from it; "
                "where memory ran out, with fewer --processes or a smaller at_once."
            ) from None
        finally:
            for process in started.processes:
                process.kill()
        listen()
    (run,) = heard
    assert isinstance(run, Run)
    return run


def _silent(done: int, most: int) -> None:
    """Say nothing."""


def _train(number: int, fold: Fold, meeting: Path, said: Any) -> None:
    """Be one of the processes; the first says how far it is, and what it made."""
    device, size = fold.job.devices[number], len(fold.job.devices)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    if sys.platform == "linux":  # a host name that leads nowhere is no hindrance
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=size,
        timeout=_PATIENCE,
    )
    job = replace(fold.job, devices=(device,), workers=-(-fold.job.workers // size))
    if number == 0:
        job = replace(job, beat=lambda done, most: said.put((done, most)))
    try:
        run = replace(fold, job=job).training(Ranks(number, size))[0].run()
    except (RadprobeError, torch.OutOfMemoryError) as error:
        said.put(error)
        raise
    if number == 0:
        said.put(run)
    with contextlib.suppress(RuntimeError):  # another has gone already
        dist.destroy_process_group()
