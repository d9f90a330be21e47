"""Draw docs/neighbours.png, the README's picture, from the demo's store.

Run after `make extract`: .venv/bin/python docs/picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from pipeline.config.loading import load_config
from pipeline.io.decode import read_slices
from pipeline.preprocessing.prepare import scale
from pipeline.recipe import recipe_of
from pipeline.shared.arrays import unit_length
from pipeline.shared.pseudonyms import Names
from pipeline.types import Slice
from stores import FeatureStore

ROOT = Path(__file__).parents[1]
NEIGHBOURS = 5


def main() -> None:
    """Show a query of each modality beside its nearest slices of other patients."""
    config = load_config(ROOT / "configs/demo.yaml")
    store = FeatureStore.open(config.store)
    recipe = recipe_of(store)
    table = Names(store.path).revealed(store.slices())
    slices = [s for s in table.to_pylist() if not s["withdrawn"]]
    x = unit_length(store.read("mean", [s["row"] for s in slices]).astype(np.float32))
    queries = [_middle(slices, modality) for modality in ("CT", "MR", "DX")]

    figure, axes = plt.subplots(3, 1 + NEIGHBOURS, figsize=(9.6, 5.4), facecolor="black")
    for line, query in zip(axes, queries, strict=True):
        others = [i for i, s in enumerate(slices) if _source(s) != _source(slices[query])]
        nearest = sorted(others, key=lambda i: -float(x[i] @ x[query]))[:NEIGHBOURS]
        shown = [query, *nearest]
        titles = ["query", *(f"{float(x[i] @ x[query]):.4f}" for i in nearest)]
        for axis, i, title in zip(line, shown, titles, strict=True):
            (item,) = read_slices(config.data.root / slices[i]["path"], [slices[i]["frame"]])
            assert isinstance(item, Slice)
            axis.imshow(scale(item, slices[i]["modality"], recipe.preprocess)[0], cmap="gray")
            axis.set_title(title, color="white", fontsize=9)
            axis.axis("off")
    stamp = " (RANDOM WEIGHTS, not DINOv2's)" if recipe.random else ""
    figure.suptitle(f"Nearest slices in other files, from the cache{stamp}", color="white")
    figure.tight_layout()
    figure.savefig(ROOT / "docs/neighbours.png", dpi=100, facecolor="black")


def _middle(slices: list[dict[str, object]], modality: str) -> int:
    found = [i for i, s in enumerate(slices) if s["modality"] == modality]
    return found[len(found) // 2]


def _source(slice_: dict[str, object]) -> object:
    """Return what a slice may not be its own neighbour in: its series, or its file."""
    return slice_["series"] or slice_["path"]


if __name__ == "__main__":
    main()
