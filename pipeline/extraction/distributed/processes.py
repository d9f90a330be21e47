"""Parts over several processes of this machine, a device each: shards that look at nothing.

This process starts them, counts what they report line by line, and does at the end what those left
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pipeline
from pipeline.extraction.distributed.shards import Shard, embed_ring
from pipeline.extraction.distributed.tasks import (
    EmbedResult,
    Work,
    describe_error,
    embed_locally,
    live_slices,
    tally,
)
from pipeline.extraction.embed import BadLimit, Load, Progress, load_network
from pipeline.inference.speed import Speed, cores
from pipeline.inference.telemetry import processes_a_card
from pipeline.shared.interruption import end_in_order
from stores import FeatureStore, PartRange

log = logging.getLogger(__name__)

# What the processes report, and None when all have ended.
Messages = queue.SimpleQueue[dict[str, Any] | None]

_CHILD = "from pipeline.extraction.distributed.processes import child; child()"
# Where a card is there, one process alone embeds the first parts, one of so many, and at most so
# many: what that takes tells how many are to share it. Few parts are not worth another process.
_MEASURED_OF = 32
_MEASURED = 8
# How long a process is given to end the batch at work, and give its parts back.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Processes:
    """Processes of this machine: so many, or one a device."""

    count: int | None = None


def embed_by_processes(
    processes: Processes,
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
    load: Load = load_network,
) -> EmbedResult:
    """Embed the parts on the devices that work.speed.device names (`cuda`: all GPUs).

    load: gives the network where this process alone embeds.
    Returns what was added meanwhile (by the receipts), and the parts that failed with why.
    """
    works: Sequence[Work] = _work_by_process(work, processes.count)
    few = parts[: min(len(parts) // _MEASURED_OF, _MEASURED)]
    is_measured = processes.count is None and few and _card_of(works[0])
    if len(works) == 1 and not is_measured:
        return embed_locally(works[0], store, parts, progress, limit, load)
    limit.check()
    slices = live_slices(store)
    progress.plan(sum(slices[part.index] for part in parts))
    progress = replace(progress, plan=Progress.plan)  # the runs below do some of it each
    if not is_measured:
        return _embed_beside(works, store, parts, progress, limit)
    measured = embed_locally(works[0], store, few, progress, limit)
    works = _sharing_cards(works, measured.embedded.seconds)
    rest = parts[len(few) :]
    if len(works) == 1:
        return measured.then(embed_locally(works[0], store, rest, progress, limit))
    return measured.then(_embed_beside(works, store, rest, progress, limit))


def _embed_beside(
    works: Sequence[Work],
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
) -> EmbedResult:
    """Embed the parts by so many processes; what those leave undone, this one does."""
    failed: dict[int, str] = {}
    bottleneck = ""
    with _running(works) as messages:
        for message in iter(messages.get, None):
            progress.advance(message.get("slices", 0))
            limit.bad += message.get("bad", 0)
            limit.check()
            failed |= {int(index): why for index, why in message.get("failed", {}).items()}
            bottleneck = bottleneck or message.get("bottleneck", "")
    # By the receipts, and not by the messages: a process may have died between the two.
    embedded, _ = tally(store, [part.index for part in parts])
    result = EmbedResult(replace(embedded, bottleneck=bottleneck), failed)
    left = [part for part in store.without_receipt(parts) if part.index not in failed]
    if left:
        result = result.then(embed_locally(works[0], store, left, progress, limit))
    return result


def _card_of(work: Work) -> str | None:
    """Return the NVIDIA card that a process would take; None where it would take another device."""
    from pipeline.shared.devices import pick_device

    device = pick_device(work.speed.device)
    return device if device.startswith("cuda") else None


def _sharing_cards(works: Sequence[Work], seconds: Mapping[str, float]) -> Sequence[Work]:
    """Return the work of each process where as many share each card as keep it busy.

    works: one a card; seconds: what the first of them alone came to, with its card and readers.
    """
    from pipeline.shared.devices import room_on_card

    first = works[0]
    workers = first.speed.workers or max(1, cores() - 1)
    wanted = processes_a_card(seconds, workers)
    card = _card_of(first)
    if wanted == 1 or card is None:
        return works
    a_card = max(1, min(wanted, room_on_card(card)))
    log.info(
        "One process computed for %.0f %% of the time, its card for %.0f %%: %d share a card.",
        *(100 * seconds.get(of, 0.0) / seconds["all"] for of in ("processor", "forward")),
        a_card,
    )
    cards = ",".join(filter(None, map(_card_of, works)))
    # The readers of one are those of all: `workers` was of a process that has a card to itself.
    speed = replace(first.speed, device=cards, workers=max(1, workers // a_card))
    return _work_by_process(replace(first, speed=speed), a_card * len(works))


def _work_by_process(work: Work, count: int | None) -> list[Work]:
    """Return the work of each process: on its device, with its share of the reading processes."""
    speed = work.speed
    devices = devices_of(speed.device, count)
    if speed.workers is None and len(devices) > 1:
        speed = replace(speed, workers=max(1, (cores() - 1) // len(devices)))
    first = replace(speed, device=devices[0])
    # One trace alone: all would write the same file.
    others = [replace(speed, device=device, trace=None) for device in devices[1:]]
    return [replace(work, speed=each) for each in (first, *others)]


def devices_of(names: str, count: int | None) -> list[str]:
    """Return a device for each of `count` processes, in turn; without a count, one for each named.

    names: as `--device` has them, such as `auto`, `cuda` (all GPUs) or `cuda:0,cuda:1`.
    """
    devices = [name.strip() for name in names.split(",")]
    if names == "cuda" or (names == "auto" and count):
        from pipeline.shared.devices import gpus

        devices = gpus() or (["cpu"] if names == "auto" else devices)
    return [devices[i % len(devices)] for i in range(count or len(devices))]


# --- the processes, from here ------------------------------------------------------------------


@contextlib.contextmanager
def _running(works: Sequence[Work]) -> Iterator[Messages]:
    """Give a queue of what the processes report, and None at its end; none outlives the context."""
    messages: Messages = queue.SimpleQueue()
    children = [_start(each, Shard(i, len(works))) for i, each in enumerate(works, 1)]

    def listen() -> None:
        listeners = [threading.Thread(target=_listen, args=(c, messages)) for c in children]
        for thread in listeners:
            thread.start()
        for thread in listeners:
            thread.join()
        messages.put(None)

    thread = threading.Thread(target=listen, name="radprobe-fleet")
    thread.start()
    try:
        yield messages
    finally:
        # All are asked before any is waited for, so that they end at once and not in turn.
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
    # A child finds this very package, wherever it is started from.
    root = str(Path(pipeline.__file__).absolute().parents[1])
    search_path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
    if work.speed.device == "cpu":  # the processes are the parallelism
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // shard.of)))
    child = subprocess.Popen(
        # Not from where it is started: a folder there may be called like one of ours.
        [sys.executable, "-P", "-c", _CHILD],
        stdin=subprocess.PIPE,  # stays open: its end tells the child that its parent died
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdin is not None
    request = {"work": asdict(work), "shard": asdict(shard)}
    with contextlib.suppress(BrokenPipeError):  # its exit code tells
        child.stdin.write(json.dumps(request, default=str) + "\n")
        child.stdin.flush()
    return child


def _listen(child: subprocess.Popen[str], messages: Messages) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(ValueError):  # it was killed within a line
            messages.put(json.loads(line))
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
    end_in_order(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    work, shard = _read_request()
    # Only now: from here on nobody else reads standard input.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit = BadLimit(seen=1, fraction=float("inf"))  # the parent has one
    bad_reported = 0

    def advance(slices: int) -> None:
        nonlocal bad_reported
        _report(slices=slices, bad=limit.bad - bad_reported)
        bad_reported = limit.bad

    store = FeatureStore.open(work.store)
    try:
        result = embed_ring(work, store, shard, Progress(advance=advance), limit)
    except Exception as error:
        print(f"radprobe: {describe_error(error, work.root)}", file=sys.stderr)
        sys.exit(1)
    _report(failed=result.failed, bottleneck=result.embedded.bottleneck)


def _read_request() -> tuple[Work, Shard]:
    """Read what the parent wants done, as `_start` writes it."""
    request = json.loads(sys.stdin.readline())
    speed = Speed(**request["work"].pop("speed"))
    speed = replace(speed, trace=speed.trace and Path(speed.trace))
    return Work(**request["work"], speed=speed), Shard(**request["shard"])


def _report(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which stays open as long as the parent lives."""
    with contextlib.suppress(ValueError):  # this process ends by itself
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
