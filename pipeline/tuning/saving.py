"""A tuned network as files: a folder as Hugging Face saves it, which `backbone.weights` takes."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.backbones.weights import BEGAN, SAFETENSORS, identity_of
from pipeline.recipe import Architecture
from pipeline.tuning.checkpoint import Filing, put
from stores._disk import (
    CHECKSUM,
    TEMPORARY,
    file_sha256,
    remove_folder,
    sweep_temporaries,
    sync,
    sync_folder,
    temporary_name,
    write_new,
)

HEAD = "head.safetensors"
PREPROCESSOR = "preprocessor_config.json"


def save_network(
    body: nn.Module,
    head: nn.Linear,
    architecture: Architecture,
    origin: str,
    to: Path,
    filing: Filing = contextlib.nullcontext,
) -> str:
    """Save a network, LoRA's updates added in, and its head; return its weights' identity.

    origin: the identity of the weights it was tuned from; that they were random stays with it. The
    folder is there complete or not at all; each file has its checksum beside it. Raises what
    `filing` does.
    """
    # Not for the processes that share the training: the library takes seconds to import.
    from transformers.utils import logging as transformers_logging

    from pipeline.backbones.towers import as_library_model

    model = as_library_model(body, architecture)
    sweep_temporaries(to.parent.glob(f"{TEMPORARY}*"))  # of runs that were killed here
    temporary = to.with_name(temporary_name(to.name))
    transformers_logging.disable_progress_bar()
    model.save_pretrained(temporary, max_shard_size="1TB")
    if origin.startswith("random:"):
        _mark_random(temporary / SAFETENSORS, origin)
    image = {"image_mean": architecture.mean, "image_std": architecture.std}
    (temporary / PREPROCESSOR).write_text(json.dumps(image, indent=1))
    put(temporary / HEAD, {"weight": head.weight, "bias": head.bias}, {})
    _seal(temporary)
    # Only now under its name, with all its bytes on the disk.
    with filing():
        if to.exists():  # of a run that was killed before its answer was filed
            remove_folder(to)
        os.replace(temporary, to)
    sync_folder(to.parent)
    return identity_of(to / SAFETENSORS)


def _mark_random(weights: Path, origin: str) -> None:
    """Write into a file that its weights began as random ones."""
    began, _, _ = origin.partition("+")
    put(weights, load_file(weights), {"format": "pt", BEGAN: began})


def _seal(folder: Path) -> None:
    """Bring the files of a folder to the disk, each with its checksum, for the same readers."""
    # safetensors leaves files to their owner alone; this one is as the user's umask has it.
    mode = (folder / PREPROCESSOR).stat().st_mode
    for path in sorted(folder.iterdir()):
        path.chmod(mode)
        sync(path)
        line = f"{file_sha256(path)}  {path.name}\n"
        write_new(path.with_name(path.name + CHECKSUM), line.encode())
    sync_folder(folder)


def changed_parameters(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Return the parameters that are not as they were, by name."""
    old = dict(before.named_parameters())
    changed = []
    for name, parameter in after.named_parameters():
        if not torch.equal(parameter.detach().cpu(), old[name].detach().cpu()):
            changed.append(name)
    return tuple(changed)
