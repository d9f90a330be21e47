"""A run of training on disk, so that a killed one goes on to the same result.

What is drawn by chance in a step (order, slices, augmentation, dropout) depends on the seed and the
step's number alone: that number stands for every generator's state. One safetensors file holds the
trained parameters, the optimiser's state and the note on the rest, and is put there whole or not at
all; a second one holds the best epoch so far, which the first names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.tuning.network import Network
from stores._disk import sync, sync_folder, temporary_name, writing

STATE, BEST = "checkpoint.safetensors", "best.safetensors"
_NOTE, _MODEL, _OPTIMIZER = "note", "model/", "optimizer/"


@dataclass
class Run:
    """How far training is. step: steps done; history: how good each epoch was on val.

    best: the epoch that is kept, from 1; 0 before the first. resumed: how often it went on. bad:
    row -> why it could not be used. seconds: spent in all. peak_bytes: most memory, of the GPU, or
    of the process on a CPU.
    """

    step: int = 0
    history: list[float | None] = field(default_factory=list)
    best: int = 0
    resumed: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0


def save(folder: Path, network: Network, optimizer: torch.optim.Optimizer, run: Run) -> None:
    """Put a run's state into a folder."""
    tensors: dict[str, Tensor] = {_MODEL + k: p for k, p in network.trained().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{number}/{name}"] = value
    put(folder / STATE, tensors, {_NOTE: json.dumps(asdict(run))})


def load(folder: Path, network: Network, optimizer: torch.optim.Optimizer) -> Run:
    """Bring network and optimiser to the state in a folder; a fresh run where there is none."""
    found = _read(folder / STATE, network)
    if found is None:
        return Run()
    tensors, note = found
    restore(network, tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            number, _, name = key.removeprefix(_OPTIMIZER).partition("/")
            state.setdefault(int(number), {})[name] = value
    plain = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": plain})
    run = Run(**json.loads(note[_NOTE]))
    run.bad = {int(row): why for row, why in run.bad.items()}  # JSON's keys are text
    run.resumed += 1
    return run


def save_best(folder: Path, network: Network) -> None:
    """Put what is trained into a folder as the best so far."""
    put(folder / BEST, {_MODEL + name: p for name, p in network.trained().items()}, {})


def load_best(folder: Path, network: Network) -> None:
    """Bring what is trained to the best epoch."""
    found = _read(folder / BEST, network)
    assert found is not None, f"{folder / BEST} belongs to its checkpoint"
    restore(network, found[0])


def restore(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Set what is trained."""
    with torch.no_grad():
        for name, parameter in network.trained().items():
            parameter.copy_(tensors[_MODEL + name])


def put(path: Path, tensors: Mapping[str, Tensor], note: dict[str, str]) -> None:
    """Write a safetensors file that is wholly there or not there."""
    temporary = path.with_name(temporary_name(path.name))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, temporary, note)
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


def _read(path: Path, network: Network) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and note of a file; None where there is none that can be read and fits."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            note = dict(file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return None
    fits = {_MODEL + name for name in network.trained()} <= tensors.keys()
    return (tensors, note) if fits else None
