"""Stores of real files whose patch tokens are made up of the pixels, without a network."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backbones.weights import locate
from pipeline.config.root import Config
from pipeline.extraction.discover import discover
from pipeline.extraction.recipes import open_store
from pipeline.io.decode import read_slices
from pipeline.preprocessing.prepare import prepare_batch
from pipeline.recipe import Recipe
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names, hide_path, load_key, relabelled
from pipeline.types import Slice
from stores import FeatureStore

PATCH = 14


# A network of no weights, for configs and stores of planted tokens to agree on.
SHAPE = {
    "model_type": "dinov2",
    "hidden_size": 6,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
}


def config_of(root: Path, **more: Any) -> Config:
    """Return a config over root/images, its masks in root/masks, its store in root/store."""
    network = root / "network"
    network.mkdir(exist_ok=True)
    (network / "config.json").write_text(json.dumps(SHAPE))
    masks = {name: {"root": root / "masks", **own} for name, own in more.pop("masks").items()}
    return Config.model_validate(
        {
            "data": {"root": root / "images", "modality": {"**": "DX"}, "patient": r"(p\d+)"},
            "store": root / "store",
            "backbone": {
                "name": f"hf:{network}",
                "weights": "random:0",
                "image_size": 8 * PATCH,
            },
            "outputs": {"keep": ["patch"], "blocks": 1},
            "split": {"folds": 3},
            "masks": masks,
            **more,
        }
    )


def token_store(config: Config) -> FeatureStore:
    """Return the config's store, its tokens each the mean, spread and place of a patch (d = 6)."""
    recipe = Recipe(
        architecture=locate(config.backbone.name, "random:0").architecture,
        weights="random:0",
        image_size=config.backbone.image_size,
        blocks=1,
        outputs=config.outputs.keep,
        preprocess=config.preprocess,
    )
    store = open_store(config, recipe)
    if not len(store.slices()):
        _discover(config, store)
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    for part in store.missing():
        arrays = store.empty_part()
        for row in slices.filter(pa.compute.greater_equal(slices["row"], part.start)).to_pylist():
            if row["row"] >= part.stop or row["withdrawn"]:
                continue
            path = config.data.root / unescape_path(row["path"])
            (item,) = read_slices(path, [row["frame"]], config.preprocess.plane)
            assert isinstance(item, Slice), path
            image = prepare_batch([item], [row["modality"]], recipe)[0, 0].numpy()
            tokens = tokens_of(image)
            for name in config.outputs.keep:
                whole = tokens.mean(axis=(0, 1))
                arrays[name][row["row"] - part.start] = tokens if name == "patch" else whole
            arrays["status"][row["row"] - part.start] = 1
        claim = store.claim(part)
        assert claim is not None
        store.write(part, claim, arrays, {"failures": []})
        claim.release()
    return store


def _discover(config: Config, store: FeatureStore) -> None:
    """Write the tables of a new store, as `extract` would, in this process."""
    key = load_key(store.path)
    found = discover(config.data, key, plane=config.preprocess.plane, workers=0)
    rows = pa.array(range(len(found.slices)), pa.int64())
    slices = found.slices.set_column(0, found.slices.schema.field(0), rows)
    hide = functools.partial(hide_path, key)
    store.write_tables(relabelled(slices, hide), relabelled(found.files, hide))


def tokens_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (h, w, 6) of an image (S, S)."""
    grid = len(image) // PATCH
    patches = image.reshape(grid, PATCH, grid, PATCH).transpose(0, 2, 1, 3).reshape(grid, grid, -1)
    y, x = np.mgrid[:grid, :grid] / grid
    mean, spread = patches.mean(axis=2), patches.std(axis=2)
    return np.stack([mean, spread, y, x, mean * y, mean * x], axis=2).astype(np.float32)
