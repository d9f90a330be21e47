"""A run of training on disk, so that a killed one goes on to the same result.

What is drawn by chance in a step (order, slices, augmentation, dropout) depends on the seed and the
step's number alone: that number stands for every generator's state. One safetensors file holds the
trained parameters, the optimiser's state and a note with the rest, and is put there complete or not
at all; a second one holds the best epoch so far, which the first names.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.tuning.network import TunableNetwork
from stores._disk import sync, sync_folder, temporary_name, writing

STATE = "checkpoint.safetensors"
BEST = "best.safetensors"
# What a file is put in place within: whoever is withdrawn before it is not learnt from any more.
Filing = Callable[[], AbstractContextManager[None]]
# Keys of a checkpoint: of its metadata, and the prefixes of its tensors.
_NOTE = "note"
_MODEL = "model/"
_OPTIMIZER = "optimizer/"
_METADATA = "__metadata__"  # safetensors' name of the note in a file's header


@dataclass
class TrainingState:
    """How far training is. step: steps done; history: how good each epoch was on val.

    best: the epoch that is kept, from 1; 0 before the first; best_loss: its log-loss on val.
    resumed: how often it went on. bad: row -> why it could not be used. seconds: spent in all.
    peak_bytes: most memory, of the GPU, or of the process on a CPU.
    """

    step: int = 0
    history: list[float | None] = field(default_factory=list)
    best: int = 0
    best_loss: float = 0.0
    resumed: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0


def save(
    folder: Path,
    network: TunableNetwork,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    filing: Filing,
) -> None:
    """Put network, optimiser and state into a folder, in the place of an earlier checkpoint.

    Raises what `filing` does.
    """
    tensors: dict[str, Tensor] = _trained_tensors(network)
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{number}/{name}"] = value
    put(folder / STATE, tensors, {_NOTE: json.dumps(asdict(state))}, filing)


def load(folder: Path, network: TunableNetwork, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Bring network and optimiser to the state in a folder; a fresh state where there is none."""
    checkpoint = _read(folder / STATE, network)
    if checkpoint is None:
        return TrainingState()
    tensors, note = checkpoint
    restore(network, tensors)
    _restore_optimizer(optimizer, tensors)
    state = TrainingState(**json.loads(note[_NOTE]))
    # JSON's keys are text.
    state.bad = {int(row): reason for row, reason in state.bad.items()}
    state.resumed += 1
    return state


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set the optimiser's moments; its rates are those of the settings, as they are now."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            number, _, name = key.removeprefix(_OPTIMIZER).partition("/")
            moments.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def save_best(folder: Path, network: TunableNetwork, filing: Filing) -> None:
    """Put what is trained into a folder as the best so far. Raises what `filing` does."""
    put(folder / BEST, _trained_tensors(network), {}, filing)


def load_best(folder: Path, network: TunableNetwork) -> None:
    """Bring what is trained to the best epoch."""
    best = _read(folder / BEST, network)
    assert best is not None, f"{folder / BEST} belongs to its checkpoint"
    tensors, _ = best
    restore(network, tensors)


def _trained_tensors(network: TunableNetwork) -> dict[str, Tensor]:
    return {_MODEL + name: parameter for name, parameter in network.trained().items()}


def restore(network: TunableNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Set what is trained."""
    with torch.no_grad():
        for name, parameter in network.trained().items():
            parameter.copy_(tensors[_MODEL + name])


def put(
    path: Path,
    tensors: Mapping[str, Tensor],
    note: dict[str, str],
    filing: Filing = contextlib.nullcontext,
) -> None:
    """Write a safetensors file that is there complete, or not there. Raises what `filing` does."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = {}
            for name, value in tensors.items():
                plain[name] = value.detach().cpu().contiguous()
            save_file(plain, temporary, note)
            _order_note(temporary)
            # The bytes first, then the name: a name that stands after a crash has its bytes.
            sync(temporary)
            with filing():
                os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _order_note(path: Path) -> None:
    """Put the note of a safetensors file into the order of its keys.

    The library hashes them with a seed of the process's own: a note of two keys comes in either
    order, and files of the same tensors would have two digests, which stand for two networks.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if _METADATA not in header:
            return
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= size, "the header is the same but for its order"
        file.seek(8)
        file.write(ordered.ljust(size))


def _read(path: Path, network: TunableNetwork) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and note of a file; None where there is none that can be read and fits."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            note = dict(file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return None
    # A checkpoint of other settings lacks parameters: it is begun anew.
    needed = {_MODEL + name for name in network.trained()}
    if not needed <= tensors.keys():
        return None
    return tensors, note
