"""Files of weights: the same tensors and note are the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from pipeline.tuning.checkpoint import put


def test_equal_weights_are_equal_files_whatever_their_note(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4)}
    note = {"format": "pt", "radprobe_began": "random:0", "wörter": 'said "so"'}
    files = set()
    for number in range(16):
        path = tmp_path / f"{number}.safetensors"
        put(path, tensors, note)
        files.add(path.read_bytes())
    assert len(files) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == note
        assert torch.equal(file.get_tensor("b"), tensors["b"])
