"""Patch tokens on their way into the store and back: blocks, grids, 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.api import features
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import Speed, extract
from pipeline.extraction.plan import plan
from pipeline.inference.forward import coded
from pipeline.recipe import PatchTokens
from pipeline.segmentation.tokens import Tokens
from stores import FeatureStore
from stores.errors import ConfigError, StoreError
from tests.phantoms import write_png
from tests.pipeline.models import write_tiny_folder

HERE = Speed(device="cpu", batch_size=4, workers=0)
PATCH: dict[str, Any] = {"plain": {}, "int8": {"coding": "int8"}, "pooled": {"pool": 2}}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, the last one of which is the first once more."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 60_000, (9, 50, 40), np.uint16)
    for i in range(10):
        write_png(root / f"x{i}.png", pictures[i % 9])
    return root


def make(folder: Path, root: Path, network: Path, **patch: Any) -> Config:
    folder.mkdir(exist_ok=True)
    content = {
        "data": {"root": str(root), "modality": {"*.png": "DX"}},
        "backbone": {"name": f"hf:{network}", "image_size": 56},
        "store": "store",
        "outputs": {"keep": ["mean", "patch"], "patch": patch, "dtype": "float32", "part_rows": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config(folder / "config.yaml")


def stored(config: Config) -> FeatureStore:
    assert extract(config, HERE).embedded == 9
    return FeatureStore.open(config.store)


def test_blocks_codes_and_grids_hold_the_same_tokens(
    tmp_path: Path, root: Path, network: Path
) -> None:
    rows = np.array([9, 0, 3])  # the first is a copy, linked across parts
    read = {}
    for name, how in PATCH.items():
        for blocks in (1, 5):
            store = stored(make(tmp_path / f"{name}{blocks}", root, network, blocks=blocks, **how))
            tokens = Tokens(store)
            assert tokens.blocks == blocks
            read[name, blocks] = tokens.read(rows)
            assert read[name, blocks].shape[:2] == (3, blocks)
            np.testing.assert_array_equal(tokens.read(rows[:1]), tokens.read(rows[1:2]))
    exact = read["plain", 5]
    np.testing.assert_allclose(exact[:, -1].mean(axis=(1, 2)), store.read("mean", rows), atol=1e-5)
    assert np.abs(exact[:, 0] - exact[:, -1]).max() > 1e-3
    for name in PATCH:
        np.testing.assert_allclose(read[name, 5][:, -1:], read[name, 1], atol=1e-5)
    most = np.abs(exact).max(axis=-1, keepdims=True)
    assert (np.abs(read["int8", 5] - exact) <= most / 254 * (1 + 1e-5)).all()
    assert np.abs(read["int8", 5] - exact).max() > 1e-4
    pooled = exact.reshape(3, 5, 2, 2, 2, 2, 48).mean(axis=(3, 5))
    np.testing.assert_allclose(read["pooled", 5], pooled, atol=1e-5)


def test_whoever_asks_for_features_gets_numbers(tmp_path: Path, root: Path, network: Path) -> None:
    store = stored(make(tmp_path, root, network, coding="int8"))
    assert store.array("patch").dtype == np.int8
    values, _ = features(store.path, "patch")
    assert values.dtype == np.float32
    np.testing.assert_allclose(
        values.mean(axis=(1, 2)), store.read("mean", np.arange(10)), atol=2e-3
    )


def test_a_plan_says_the_bytes_that_are_written(tmp_path: Path, root: Path, network: Path) -> None:
    sizes = {}
    for name, how in PATCH.items():
        config = make(tmp_path / name, root, network, blocks=5, **how)
        planned = plan(config)
        chunks = (stored(config).path / "features.zarr").rglob("c/**/*")
        files = [path.stat().st_size for path in chunks if path.is_file()]
        sizes[name] = sum(files)
        assert planned.bytes == sizes[name] - 4 * len(files)  # each with its checksum
    assert sizes["plain"] > 3.5 * sizes["int8"]
    assert sizes["plain"] > 3.5 * sizes["pooled"]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6])
def test_8_bits_are_wrong_by_half_a_step_at_most(scale: float) -> None:
    x = scale * torch.randn(2, 3, 3, 32, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 0
    x[0, 0, 1, 0] = 1000 * scale  # one large number makes its own token coarse, and no other
    kept = coded(x, PatchTokens(coding="int8"), torch.float16)
    assert kept["patch"].dtype == torch.int8
    back = kept["patch"].float() * kept["patch_scale"][..., None]
    bound = x.abs().amax(dim=-1, keepdim=True) / 254
    assert ((back - x).abs() <= bound * (1 + 1e-5)).all()
    assert (back[0, 0, 0] == 0).all()


def test_tokens_that_are_not_finite_are_refused(tmp_path: Path, root: Path, network: Path) -> None:
    store = stored(make(tmp_path, root, network, coding="int8"))
    x = torch.ones(8, 4, 4, 48)
    x[3, 0, 0, 0] = float("nan")
    scale = coded(x, PatchTokens(coding="int8"), torch.float32)["patch_scale"].numpy()
    part = store.layout.part(0)
    with pytest.raises(StoreError, match="patch_scale of part 0 holds values that are not finite"):
        store.array("patch_scale").fit(scale, part, np.ones(8, bool))


def test_a_store_without_patch_tokens_is_refused(tmp_path: Path, root: Path, network: Path) -> None:
    config = make(tmp_path, root, network)
    outputs = config.outputs.model_copy(update={"keep": ("mean",)})
    store = stored(config.model_copy(update={"outputs": outputs}))
    with pytest.raises(ConfigError, match=r"has none \(it has mean\)\. Extract a store with"):
        Tokens(store)
