"""Features equal those of the official DINOv2 implementation, to 1e-4 in float32.

The reference outputs are a file beside this one (parity/README.md tells where they are from); the
weights are made by recipe, `tests.pipeline.models.recipe_state`, so that nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backbones import load_backbone
from pipeline.recipe import BatchFeatures
from tests.pipeline.models import official_shapes, recipe_state

REFERENCE = Path(__file__).with_name("parity") / "vits14.npz"
EVERY = 3  # of the first 64 patch tokens, the file here has each third
FULL = os.environ.get("RADPROBE_PARITY")  # a folder with all of them
DIM, DEPTH = 384, 12
TOLERANCE = 1e-4
REGISTERS = {"vits14": 0, "vits14_reg": 4}


def name_of(case: tuple[str, int]) -> str:
    return f"{case[0]}_{case[1]}x{case[1]}"


def picture(size: int) -> torch.Tensor:
    """Return the input that the reference outputs were made from, (1, 3, size, size)."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the weights by recipe as official files, by model."""
    folder = tmp_path_factory.mktemp("official")
    paths = {}
    for model, registers in REGISTERS.items():
        paths[model] = folder / f"{model}.pth"
        torch.save(recipe_state(official_shapes(DIM, DEPTH, registers=registers)), paths[model])
    return paths


# The positions of a grid of 16 are resampled, by another rule with registers than without; a grid
# of 37 is the one that the weights come with.
@pytest.fixture(
    scope="module", params=[("vits14", 224), ("vits14", 518), ("vits14_reg", 224)], ids=name_of
)
def case(request: pytest.FixtureRequest, official: dict[str, Path]) -> tuple[str, BatchFeatures]:
    """Return the name of a reference output, and our features of its input."""
    model, size = request.param
    backbone = load_backbone(f"dinov2_{model}", official[model], image_size=size)
    return name_of(request.param), backbone(picture(size))


def differences(features: BatchFeatures, expected: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the largest difference from each reference output."""
    patches = features.patch[0].flatten(0, 1)
    ours = {
        "cls": features.cls[0, -1],
        "last4_cls": features.cls[0],
        "patch_mean": features.mean[0],
        "patch_first64": patches[:64],
        "patch_every_third_of_64": patches[:64:EVERY],
    }
    assert tuple(expected["patch_shape"]) == tuple(patches.shape)
    compared = set(expected) - {"patch_shape"}
    return {name: float(np.abs(ours[name].numpy() - expected[name]).max()) for name in compared}


def test_features_equal_the_official_model(case: tuple[str, BatchFeatures]) -> None:
    name, features = case
    with np.load(REFERENCE) as file:
        expected = {
            array.partition("/")[2]: file[array]
            for array in file.files
            if array.startswith(f"{name}/")
        }
    largest = differences(features, expected)
    assert sorted(largest) == ["last4_cls", "patch_every_third_of_64", "patch_mean"]
    assert max(largest.values()) <= TOLERANCE, largest


@pytest.mark.skipif(not FULL, reason="RADPROBE_PARITY (reference outputs) is not set")
def test_features_equal_all_reference_outputs(case: tuple[str, BatchFeatures]) -> None:
    name, features = case
    with np.load(Path(str(FULL)) / f"{name}.npz") as full, np.load(REFERENCE) as trimmed:
        largest = differences(features, full)
        assert sorted(largest) == ["cls", "last4_cls", "patch_first64", "patch_mean"]
        assert max(largest.values()) <= TOLERANCE, largest
        third = full["patch_first64"][::EVERY]
        assert np.array_equal(trimmed[f"{name}/patch_every_third_of_64"], third)
        assert np.array_equal(trimmed[f"{name}/last4_cls"], full["last4_cls"])
        assert np.array_equal(trimmed[f"{name}/patch_mean"], full["patch_mean"])
