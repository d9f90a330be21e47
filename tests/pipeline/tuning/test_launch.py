"""A network tuned by several processes that share every step."""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluation.result_files import read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.shared import devices
from pipeline.tune import tune, tune_masks
from pipeline.tuning import launch
from pipeline.tuning.job import pick_devices
from pipeline.tuning.options import TuningOptions
from stores.errors import DeviceError
from tests.pipeline.processes import COMMAND, environment
from tests.pipeline.test_tune import APART
from tests.pipeline.tuning.test_masks import config_of, write_collection
from tests.waiting import until
from tests.warm import WarmProcess

NUMBER = {"light": {"labels": ["light"], "values": "number"}}
BLOCK = {"epochs": 2, "batch": 8, "at_once": 4, "augment": "mild"}
# The command line whose processes are forks of itself: it was forked with torch imported.
FORKING = f"from pipeline.tuning import launch; launch._START = 'fork'; {COMMAND}"


@pytest.fixture(scope="module", autouse=True)
def _server_of_forks() -> None:
    """Start the server that processes of this one are forks of, which takes seconds."""
    forkserver.set_forkserver_preload([launch.__name__])
    forkserver.ensure_running()


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A config whose collection is embedded."""
    path = write_collection(tmp_path, patients=9)
    extract(load_config(path), Speed(workers=0))
    return path


def forget(config: Config) -> None:
    """Remove all answers."""
    for folder in ("results", "segmentations"):
        for file in (config.store / folder).glob("*"):
            file.unlink()


def learning_numbers(collection: Path, **settings: Any) -> Config:
    """Return a config that trains biases on a number: no library for LoRA or masks to import."""
    return config_of(
        collection, tasks=NUMBER, masks={}, split=APART, lora=None, bitfit=BLOCK | settings
    )


def tune_by_two(collection: Path) -> None:
    """Tune by two processes that are forked with the libraries, whose answer is on file then."""
    altered = next(collection.parent.glob("altered-*.yaml"))
    options = ["--processes", "2", "--device", "cpu", "--workers", "0"]
    process = WarmProcess(FORKING, "tune", str(altered), *options, environment=environment())
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained


def test_two_processes_learn_what_one_learns(collection: Path) -> None:
    block = BLOCK | {"rank": 4}
    config = config_of(collection, tasks=NUMBER, masks={}, split=APART, lora=block)
    (alone,) = tune(config, device="cpu", workers=0)
    _, said_alone, _ = read_predictions(config.store, alone, 0)
    forget(config)
    tune_by_two(collection)
    (result,) = tune(config, device="cpu", processes=2, workers=0)
    assert result.cached
    _, said, _ = read_predictions(config.store, result, 0)
    assert result.tuned[0].device == "cpu + cpu"
    assert result.tuned[0].peak_bytes > 2**26
    assert result.counts == alone.counts
    np.testing.assert_allclose(result.tuned[0].history, alone.tuned[0].history, rtol=1e-3)
    np.testing.assert_allclose(said, said_alone, rtol=1e-3)
    assert not np.array_equal(said, said_alone)  # gradients were added in another order


def test_a_process_that_is_left_without_a_part_takes_the_step(collection: Path) -> None:
    """Where each step has one image, the second process learns from none."""
    block = BLOCK | {"batch": 1, "epochs": 1}
    config = config_of(collection, split=APART, lora=None, bitfit=block)
    (alone,) = tune_masks(config, device="cpu", workers=0)
    forget(config)
    tune_by_two(collection)
    (answer,) = tune_masks(config, device="cpu", processes=2, workers=0)
    assert answer.cached
    assert answer.tuned[0].identity == alone.tuned[0].identity
    assert answer.scores[-1].metrics["dice"] == alone.scores[-1].metrics["dice"]


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(collection: Path) -> None:
    config = learning_numbers(collection, epochs=3)
    altered = next(collection.parent.glob("altered-*.yaml"))
    (collection.parent / "images/00_0.png").write_bytes(b"")  # not to be read any more
    options = ["--processes", "2", "--device", "cpu", "--workers", "0", "--checkpoint-s", "0"]
    process = WarmProcess(FORKING, "tune", str(altered), *options, environment=environment())
    state = config.store / "runs"
    until(lambda: list(state.glob("*/all/checkpoint.safetensors")))
    children = until(lambda: _training(process.pid))
    os.kill(children[-1], signal.SIGKILL)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "One of 2 processes that tune the network ended" in complained
    assert "goes on from it" in complained
    assert "Traceback" not in complained
    until(lambda: not any(Path(f"/proc/{child}/cwd").exists() for child in children))
    (resumed,) = tune(config, device="cpu", processes=2, workers=0)
    assert resumed.tuned[0].resumed == 1
    assert any("slices were left out: empty" in note for note in resumed.notes)
    forget(config)
    tune_by_two(collection)
    (straight,) = tune(config, device="cpu", processes=2, workers=0)
    assert straight.cached
    assert straight.tuned[0].resumed == 0
    # Two processes end at the same bits each time, and where they were interrupted as well.
    assert straight.tuned[0].identity == resumed.tuned[0].identity


def _training(parent: int) -> list[int]:
    """Return the processes that a process has started to train, once they are both there."""
    children = sorted(child.pid for child in psutil.Process(parent).children())
    return children if len(children) == 2 else []


def test_each_process_wants_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(device: str, processes: int) -> TuningOptions:
        return TuningOptions(device, processes, 0, 300.0, None)

    def there(device: str) -> str:
        return "cuda:0" if device in ("auto", "cuda") else device

    monkeypatch.setattr(devices, "gpus", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(devices, "pick_device", there)
    assert pick_devices(options("auto", 1)) == ["cuda:0"]
    assert pick_devices(options("cuda", 2)) == ["cuda:0", "cuda:1"]
    assert pick_devices(options("cpu", 3)) == ["cpu"] * 3
    with pytest.raises(DeviceError, match=r"3 processes need a GPU each. There are 2"):
        pick_devices(options("auto", 3))
    with pytest.raises(DeviceError, match=r"There are 1 of --device cuda:1: cuda:1"):
        pick_devices(options("cuda:1", 2))
