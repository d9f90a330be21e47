"""Parts over several processes of this machine, a device each: shards that look at nothing.

This process starts them, counts what they say line by line, and does at the end what those left
undone that died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.extraction.distributed.shards import Shard, embed_ring
from pipeline.extraction.distributed.tasks import Work, add, embed_here, live_slices, tally, told
from pipeline.extraction.embed import BadLimit, Embedded, Progress
from pipeline.inference.speed import Speed, cores
from stores import FeatureStore, PartRange

log = logging.getLogger(__name__)

Said = queue.SimpleQueue[dict[str, Any] | None]

_CHILD = "from pipeline.extraction.distributed.processes import child; child()"
# How long a process is given to end the batch at work, and give its parts back.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Processes:
    """Processes of this machine: so many, or one a device."""

    count: int | None = None


def embed_by(
    processes: Processes,
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
) -> tuple[Embedded, dict[int, str]]:
    """Embed the parts on the devices that work.speed.device names (`cuda`: all GPUs).

    Returns what was added meanwhile (by the receipts), and the parts that failed with why.
    """
    works = _dealt(work, processes.count)
    if len(works) == 1:
        return embed_here(works[0], store, parts, progress, limit)
    limit.check()
    slices = live_slices(store)
    progress.plan(sum(slices[part.index] for part in parts))
    failed, bottleneck = dict[int, str](), ""
    with _started(works) as said:
        for message in iter(said.get, None):
            progress.advance(message.get("slices", 0))
            limit.bad += message.get("bad", 0)
            limit.check()
            failed |= {int(index): why for index, why in message.get("failed", {}).items()}
            bottleneck = bottleneck or message.get("bottleneck", "")
    done, _ = tally(store, [part.index for part in parts])
    done = replace(done, bottleneck=bottleneck)
    left = [part for part in store.without_receipt(parts) if part.index not in failed]
    if left:
        more, lost = embed_here(works[0], store, left, progress, limit)
        done, failed = add(done, more), failed | lost
    return done, failed


def _dealt(work: Work, count: int | None) -> list[Work]:
    """Return the work of each process: on its device, with its share of the reading processes."""
    named, speed = work.speed.device, work.speed
    devices = [each.strip() for each in named.split(",")]
    if named == "cuda" or (named == "auto" and count):
        from pipeline.inference.forward import gpus

        devices = gpus() or (["cpu"] if named == "auto" else devices)
    devices = [devices[i % len(devices)] for i in range(count or len(devices))]
    if speed.workers is None and len(devices) > 1:
        speed = replace(speed, workers=max(1, (cores() - 1) // len(devices)))
    return [
        replace(work, speed=replace(speed, device=device, trace=None if i else speed.trace))
        for i, device in enumerate(devices)
    ]


# --- the processes, from here ------------------------------------------------------------------


@contextlib.contextmanager
def _started(works: Sequence[Work]) -> Iterator[Said]:
    """Give a queue of what the processes say, and None at its end; none outlives the context."""
    said: Said = queue.SimpleQueue()
    children = [_start(each, Shard(i, len(works))) for i, each in enumerate(works, 1)]

    def listen() -> None:
        listeners = [threading.Thread(target=_listen, args=(c, said)) for c in children]
        for thread in listeners:
            thread.start()
        for thread in listeners:
            thread.join()
        said.put(None)

    thread = threading.Thread(target=listen, name="radprobe-fleet")
    thread.start()
    try:
        yield said
    finally:
        for child in children:
            child.terminate()
        for child in children:
            _end(child)
        thread.join()
    for child, each in zip(children, works, strict=True):
        if child.returncode:
            log.warning(
                "A process on %s ended with exit code %d; what it left is done now.",
                each.speed.device,
                child.returncode,
            )


def _start(work: Work, shard: Shard) -> subprocess.Popen[str]:
    package = str(Path(__file__).absolute().parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if work.speed.device == "cpu":  # the processes are the parallelism
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // shard.of)))
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,  # stays open: its end tells the child that its parent died
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdin is not None
    asked = {"work": asdict(work), "shard": asdict(shard)}
    with contextlib.suppress(BrokenPipeError):  # its exit code tells
        child.stdin.write(json.dumps(asked, default=str) + "\n")
        child.stdin.flush()
    return child


def _listen(child: subprocess.Popen[str], said: Said) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(ValueError):  # it was killed within a line
            said.put(json.loads(line))
    child.wait()


def _end(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


# --- a process, from within ---------------------------------------------------------------------


def child() -> None:
    """Embed a shard as standard input says, and print what comes of it: the other end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    speed = Speed(**asked["work"].pop("speed"))
    speed = replace(speed, trace=speed.trace and Path(speed.trace))
    work = Work(**asked["work"], speed=speed)
    limit, counted = BadLimit(seen=1, fraction=float("inf")), 0  # the parent has one

    def advance(slices: int) -> None:
        nonlocal counted
        _say(slices=slices, bad=limit.bad - counted)
        counted = limit.bad

    store, shard = FeatureStore.open(work.store), Shard(**asked["shard"])
    try:
        done, failed = embed_ring(work, store, shard, Progress(advance=advance), limit)
    except Exception as error:
        print(f"radprobe: {told(error, work.root)}", file=sys.stderr)
        sys.exit(1)
    _say(failed=failed, bottleneck=done.bottleneck)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which stays open as long as the parent lives."""
    with contextlib.suppress(ValueError):  # this process ends by itself
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
