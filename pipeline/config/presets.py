"""Presets: one word of a config that stands for ordinary settings, each of which can be given too.

A preset is data and nothing more: no other module asks which one was named. What a config gives
beside it wins, key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.config.heads import TUNED

PresetName = Literal["paper"]

# How the code of arXiv 2312.02366 trains networks; its learning rates of heads are a grid.
_TRAINING: dict[str, Any] = {
    "optimizer": "sgd",
    "rate": 1e-5,
    "head_rate": 1e-2,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "warmup": 0.0,
    "epochs": 10,
    "patience": 10,
    "batch": 128,
    "augment": "paper",
    "refit": "train+val",
}

# preset -> block of a config -> its settings
PRESETS: dict[PresetName, dict[str, dict[str, Any]]] = {
    "paper": {
        "backbone": {"treatment": "paper"},
        "knn": {"features": "cls", "multilabel": "mlknn-paper"},
        "probe": {"features": "cls"},
        "fewshot": {"draw": "paper"},
        "finetune": _TRAINING,
        "lora": _TRAINING
        | {
            "rank": 48,
            "alpha": 16.0,
            "dropout": 0.1,
            "targets": ("shared-qkv", "fc1", "fc2"),  # one layer makes q, k and v there
            "biases": "lora",
        },
        "bitfit": _TRAINING,
        "norm": _TRAINING,
        "frozen": _TRAINING,
    },
}
# Blocks that ask for something by being there: a preset fills them in and never adds them.
_ASKED_BY_NAME = frozenset(TUNED)


def expanded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config file holds with the settings of its `preset`, if it names one.

    A preset that is not known is left for the config's own check to refuse.
    """
    name: Any = config.get("preset")
    blocks = PRESETS.get(name, {})
    filled = dict(config)
    for block, settings in blocks.items():
        given = config.get(block, {})
        if block in _ASKED_BY_NAME and block not in config:
            continue
        # What is no mapping is a fault, which the check of that block names.
        if isinstance(given, Mapping):
            filled[block] = {**settings, **given}
    return filled
