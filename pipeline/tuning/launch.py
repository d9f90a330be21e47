"""One fold trained by this process, or by a process a device that this one starts and watches."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessException, start_processes

from pipeline.tuning.checkpoint import TrainingState
from pipeline.tuning.fold import Fold, TunedFold
from pipeline.tuning.options import ReportSteps, report_nothing
from pipeline.tuning.ranks import Ranks
from stores._disk import remove_folder
from stores.errors import DeviceError, RadprobeError

# Others wait while the first looks at val; one that died is seen by the parent, not by waiting.
_PATIENCE = timedelta(days=1)
_POLL_S = 0.2
# Forks of a process that has imported all and begun nothing: no thread, and no context of a GPU.
_START = "forkserver"


# What is behind the name of a fold's network that val chose, until it is trained again.
_CHOSEN = "-chosen"


def tune_fold(fold: Fold) -> TunedFold:
    """Train a fold's network on train, by one process or by several, until val ends it; save it."""
    if fold.job.settings.refit == "none":
        return _tuned(fold)
    return _tuned(replace(fold, name=f"{fold.name}{_CHOSEN}"))


def trained_again(fold: Fold, chosen: TunedFold) -> TunedFold:
    """Return the network that tests: the one val chose, or where settings say so one of both parts.

    That is trained anew on train and val, for as many epochs as val chose.
    """
    if fold.job.settings.refit == "none":
        return chosen
    data = fold.data
    both = np.concatenate([data.train, data.val])
    again = _tuned(replace(fold, data=replace(data, train=both, until=chosen.tuned.epoch)))
    remove_folder(fold.job.saved / f"{fold.name}{_CHOSEN}")
    tuned = again.tuned.model_copy(
        update={
            "history": chosen.tuned.history,
            "resumed": chosen.tuned.resumed + again.tuned.resumed,
            "seconds": chosen.tuned.seconds + again.tuned.seconds,
        }
    )
    return replace(again, tuned=tuned)


def _tuned(fold: Fold) -> TunedFold:
    if len(fold.job.devices) == 1:
        return TunedFold.of(fold)
    return TunedFold.of(fold, train_together(fold))


def train_together(fold: Fold) -> TrainingState:
    """Train a fold by a process a device of its job; its state is then in the fold's folder.

    Raises what a process raised, DeviceError where one was killed; the others end with it.
    """
    context = get_context(_START)
    # The server of forks imports this once, and torch with it: two seconds a process are saved.
    context.set_forkserver_preload([__name__])
    inbox = _Inbox(context.SimpleQueue(), fold.job.report_steps)
    size = len(fold.job.devices)
    # What reports the steps belongs to this process, and may not be picklable.
    silent = replace(fold, job=replace(fold.job, report_steps=report_nothing))
    with tempfile.TemporaryDirectory() as meeting:
        args = (silent, Path(meeting) / "ranks", inbox.queue)
        processes = start_processes(  # type: ignore[no-untyped-call]
            _train, args, nprocs=size, join=False, start_method=_START
        )
        assert processes is not None
        try:
            while not processes.join(timeout=_POLL_S):
                inbox.read()
        except ProcessException as error:
            # An error that a process sent before it ended says more than that it ended.
            inbox.read()
            for raised in inbox.errors:
                raise raised from None
            raise DeviceError(
                f"One of {size} processes that tune the network ended: {error}. What was "
                "learnt until the last checkpoint is kept, and the same command goes on from it; "
                "where memory ran out, with fewer --processes or a smaller at_once."
            ) from None
        finally:
            # However this ends: the others would wait for the lost one's gradients.
            for process in processes.processes:
                process.kill()
        inbox.read()
    (state,) = inbox.states
    return state


@dataclass
class _Inbox:
    """What the processes have sent: steps, which are reported, errors, and the final state."""

    queue: Any
    report_steps: ReportSteps
    errors: list[BaseException] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)

    def read(self) -> None:
        """Take all messages that are there."""
        while not self.queue.empty():
            match self.queue.get():
                case (done, most):
                    self.report_steps(done, most)
                case TrainingState() as state:
                    self.states.append(state)
                case error:
                    self.errors.append(error)


def _train(number: int, fold: Fold, meeting: Path, outbox: Any) -> None:
    """Be one of the processes; the first sends how far it is, and the state it ended with.

    meeting: a path at which the processes find each other.
    """
    device = fold.job.devices[number]
    size = len(fold.job.devices)
    _join_group(number, size, device, meeting)
    job = replace(fold.job, devices=(device,), workers=-(-fold.job.workers // size))
    if number == 0:
        job = replace(job, report_steps=lambda done, most: outbox.put((done, most)))
    try:
        training, _ = replace(fold, job=job).training(Ranks(number, size))
        state = training.run()
    except (RadprobeError, torch.OutOfMemoryError) as error:
        outbox.put(error)
        raise
    if number == 0:
        outbox.put(state)
    with contextlib.suppress(RuntimeError):  # another has gone already
        dist.destroy_process_group()


def _join_group(number: int, size: int, device: torch.device, meeting: Path) -> None:
    """Let this process exchange with the others, on its device and its part of the cores."""
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
