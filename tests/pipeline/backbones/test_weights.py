from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.backbones.weights import BACKBONES, locate
from stores.errors import WeightsError
from tests.fresh import said
from tests.pipeline.models import write_tiny_folder

# What torch is imported by, of what is imported.
WITH_IT = "import sys; from tests.fresh import WITH_TORCH; print(WITH_TORCH & sys.modules.keys())"


@pytest.fixture(autouse=True)
def _no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point every cache at an empty folder, so that this machine's weights decide nothing."""
    monkeypatch.setenv("RADPROBE_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


def test_identity_is_the_content_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "b.pth").write_bytes(b"weights")
    (tmp_path / "c.pth").write_bytes(b"others")
    a, b, c = (locate("dinov2_vits14", str(tmp_path / f"{x}.pth")).identity for x in "abc")
    assert a == b == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert a != c


def test_nothing_falls_back_and_the_error_says_the_three_ways() -> None:
    with pytest.raises(WeightsError) as caught:
        locate("dinov2_vitb14_reg", None, hub=False)
    message = str(caught.value)
    assert (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"
        in message
    )
    assert "RADPROBE_WEIGHTS" in message
    assert "huggingface-cli download facebook/dinov2-with-registers-base" in message


@pytest.mark.parametrize("folder", ["own", "torch/hub/checkpoints"])
def test_caches_are_searched(folder: str, tmp_path: Path) -> None:
    file = tmp_path / folder / BACKBONES["dinov2_vits14"].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert locate("dinov2_vits14", None, hub=False).file == file


def test_a_hugging_face_folder_says_its_own_shape(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny", registers=4)
    found = locate(f"hf:{folder}", None)
    assert found.file == folder / "model.safetensors"
    assert (found.architecture.dim, found.architecture.registers) == (48, 4)
    assert found.architecture.std == (0.25, 0.25, 0.25)


# The shape of a network of the width that is put in.
DINOV2 = (
    '{"model_type": "dinov2", "num_hidden_layers": 5, "num_attention_heads": 3, "hidden_size": %s}'
)


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("dinov2_vits16", None, "no backbone 'dinov2_vits16'. Known: dinov2_vits14"),
        ("dinov2_vits14", "/nowhere/x.pth", "no weights file '/nowhere/x.pth'"),
        ("dinov2_vits14", "random:please", "random:<seed>, such as random:0. Got 'random:please'"),
        ("dinov2_vits14", "random", "random:<seed>, such as random:0. Got 'random'"),
        ("hf:not a repository", None, "neither a folder nor the name"),
    ],
)
def test_wrong_names_are_said(name: str, weights: str | None, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        locate(name, weights, hub=False)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="must be one of dinov2, .* Got 'bert'"):
        locate(f"hf:{tmp_path}", None)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="config.json does not say 'hidden_size'"):
        locate(f"hf:{tmp_path}", None)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", '{"a":' * 100_000, "cannot be read: nested too deep"),
        ("config.json", "5", "config.json' cannot be read"),
        ("config.json", DINOV2 % '"wide"', "config.json describes no network"),
        ("config.json", DINOV2 % "null", "config.json describes no network"),
        ("config.json", DINOV2 % "[1]", "config.json describes no network"),
        ("preprocessor_config.json", "{}", "preprocessor_config.json does not say 'image_mean'"),
        ("preprocessor_config.json", '{"image_mean": 5, "image_std": 5}', "describes no network"),
        (
            "preprocessor_config.json",
            '{"image_mean": ["a", 1, 2], "image_std": [0, 0, 0]}',
            "describes no network",
        ),
    ],
)
def test_a_strangers_network_is_no_fault_of_radprobe(
    tmp_path: Path, file: str, text: str, says: str
) -> None:
    (tmp_path / "config.json").write_text(DINOV2 % 48)
    (tmp_path / file).write_text(text)
    with pytest.raises(WeightsError, match=says):
        locate(f"hf:{tmp_path}", "random:0")


def test_finding_weights_needs_no_torch() -> None:
    code = "import pipeline.backbones.weights as w; w.locate('dinov2_vits14', 'random:0'); "
    assert said(code + WITH_IT) == "set()\n"


def test_a_folder_of_another_family_is_read_without_torch(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    code = f"import pipeline.backbones.weights as w; w.locate('hf:{folder}', None); "
    assert said(code + WITH_IT) == "set()\n"


def test_the_package_loads_networks_and_imports_torch_for_that_alone() -> None:
    code = (
        f"import pipeline.backbones as b; {WITH_IT}; "
        "print(b.load_backbone.__module__, hasattr(b, 'nothing')); "
        # The library that has all networks takes seconds, in every process that embeds.
        "b.load_backbone('dinov2_vits14', 'random:0', image_size=28); "
        "print({'transformers', 'peft'} & sys.modules.keys())"
    )
    assert said(code).split() == ["set()", "pipeline.backbones.load", "False", "set()"]
