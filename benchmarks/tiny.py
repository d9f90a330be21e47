"""A small collection and a tiny network for the benchmarks of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.datasets.demo import write_demo
from tests.pipeline.models import write_tiny_folder


def write_setup(folder: Path, *, patients: int = 10, part_rows: int = 32, **settings: Any) -> Path:
    """Write a demo collection, a tiny network and the config that names both; return the config."""
    write_demo(folder / "collection", patients, seed=0)
    write_tiny_folder(folder / "network")
    content = {
        "data": {
            "root": "collection",
            "paths": "keep",  # so that stores of other keys can be compared
            "exclude": ["masks/**"],
            "modality": {"cxr/**": "DX", "mr/**": "MR"},
        },
        "backbone": {"name": f"hf:{folder / 'network'}", "image_size": 56},
        "store": "store",
        "outputs": {"part_rows": part_rows},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content | settings))
    return path
