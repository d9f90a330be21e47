"""Several devices of one machine, a process each: claims share the parts out among them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.embed import Progress, Speed
from pipeline.embedding.speed import cores
from pipeline.extract import Summary, extract

log = logging.getLogger(__name__)

_CHILD = "from pipeline.fleet import child; child()"


def extract_on_all(
    config: Config,
    speed: Speed,
    progress: Progress = Progress(),  # noqa: B008 (frozen)
    *,
    max_bad: float = 1.0,
    rehash: bool = False,
) -> Summary:
    """Embed as `extract` does, on each device that speed.device names (`cuda`: all GPUs).

    This process takes the first. What a process leaves undone that dies is done at the end.
    """
    devices = _devices(speed.device)
    if len(devices) == 1:
        return extract(config, speed, progress, max_bad=max_bad, rehash=rehash)
    if config.demo is not None:  # before several would write it at once
        from pipeline.demo import write_demo

        write_demo(config.data.root, config.demo.patients, config.demo.seed)
    if speed.workers is None:
        speed = replace(speed, workers=max(1, (cores() - 1) // len(devices)))
    own = replace(speed, device=devices[0])
    others = [replace(speed, device=device, trace=None) for device in devices[1:]]
    children = [_start(config, each, max_bad) for each in others]
    try:
        mine = extract(config, own, progress, max_bad=max_bad, rehash=rehash)
        done = [_answer(child) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    last = extract(config, own, progress, max_bad=max_bad)
    return replace(
        last,
        found=mine.found,
        embedded=mine.embedded + last.embedded + sum(each["embedded"] for each in done),
        linked=mine.linked + last.linked + sum(each["linked"] for each in done),
        seconds=mine.seconds,
        bottleneck=mine.bottleneck,
    )


def child() -> None:
    """Extract as standard input says, and print what was done: the other end of `_start`."""
    asked = json.load(sys.stdin)
    speed = Speed(**asked["speed"])
    summary = extract(Config.model_validate(asked["config"]), speed, max_bad=asked["max_bad"])
    print(json.dumps({"embedded": summary.embedded, "linked": summary.linked}))


def _start(config: Config, speed: Speed, max_bad: float) -> subprocess.Popen[str]:
    asked = {"config": config.model_dump(mode="json"), "speed": asdict(speed), "max_bad": max_bad}
    # The folder stays the caller's, since a config's paths may be relative to it.
    path = [
        str(Path(__file__).absolute().parents[1]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    text, _ = process.communicate()
    if process.returncode:
        log.warning(
            "A process ended with exit code %d; what it left is done now.", process.returncode
        )
        return {"embedded": 0, "linked": 0}
    return dict(json.loads(text))


def _devices(name: str) -> list[str]:
    if name == "cuda":
        from pipeline.embedding.forward import gpus

        return gpus() or [name]
    return [each.strip() for each in name.split(",")]
