"""Every network beside DINOv2: tiny ones of the same classes, saved as Hugging Face saves them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.backbones.families import FAMILIES, MODEL_TYPES, VOLUME_FAMILIES, family_of
from pipeline.backbones.load import load_backbone
from pipeline.backbones.models import COMPARATORS
from pipeline.backbones.registry import count_parameters, fetch, known
from pipeline.backbones.towers import network_parts
from pipeline.config.tuning import NormTune
from pipeline.recipe import FamilyName, Recipe, recipe_of
from pipeline.tuning.network import TunableNetwork, make_trainable
from pipeline.tuning.saving import save_network
from stores import FeatureStore
from stores.errors import WeightsError
from tests.fresh import said
from tests.pipeline.backbones.test_backbones import picture

ROOT = Path(__file__).parents[3]
TIMM = importlib.util.find_spec("timm") is not None
SIZE = 64
SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": SIZE,
    "patch_size": 16,
}
_SAM = {k: v for k, v in SHAPE.items() if k != "intermediate_size"} | {
    "mlp_dim": 96,
    "window_size": 2,
    "global_attn_indexes": [2],
    "output_channels": 32,
}
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 48], "depths": [1, 1, 2, 1]}
_DECODER = {f"decoder_{name}": value for name, value in _TEXT.items() if name != "vocab_size"}


def _mae(model: Any, x: Tensor) -> Tensor:
    model.vit.config.mask_ratio = 0.0
    noise = torch.arange(16.0).expand(len(x), -1)
    return model.vit(x, noise=noise).last_hidden_state


def _clip(model: Any, x: Tensor) -> Tensor:
    return model.vision_model.post_layernorm(model.vision_model(x).last_hidden_state)


def _sam(model: Any, x: Tensor) -> Tensor:
    hidden = model.vision_encoder(x, output_hidden_states=True).hidden_states[-1].flatten(1, 2)
    return torch.cat([hidden.mean(dim=1, keepdim=True), hidden], dim=1)


def _resnet(model: Any, x: Tensor) -> Tensor:
    output = model.resnet(x)
    pooled, grid = output.pooler_output.flatten(1), output.last_hidden_state.flatten(2)
    return torch.cat([pooled[:, None], grid.transpose(1, 2)], dim=1)


# family -> a whole model as it is published, and the tokens that its library gives
MADE: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SHAPE)),
        lambda model, x: model.vit(x).last_hidden_state,
    ),
    "vit_mae": (lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**SHAPE, **_DECODER)), _mae),
    "vit_msn": (
        lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SHAPE)),
        lambda model, x: model(x).last_hidden_state,
    ),
    "clip": (
        lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=SHAPE, text_config=_TEXT)),
        _clip,
    ),
    "sam": (lambda: hf.SamModel(hf.SamConfig(vision_config=_SAM)), _sam),
    "resnet": (lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**_STAGES)), _resnet),
    "dinov3_vit": (
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SHAPE, num_register_tokens=4)),
        lambda model, x: model(x).last_hidden_state,
    ),
}


def saved(family: str, folder: Path) -> tuple[Path, Any]:
    """Save a tiny model of a family, its weights far from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MADE[family][0]().eval()
        for name, parameter in model.named_parameters():
            if "decoder_pos_embed" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]})
    )
    return folder, model


# --- the registry --------------------------------------------------------------------------------


def test_every_family_is_declared_once_and_can_be_in_a_recipe() -> None:
    assert tuple(FAMILIES) == get_args(FamilyName)
    assert [family_of(name).name for name in FAMILIES] == list(FAMILIES)
    without = {"timm_wrapper", *VOLUME_FAMILIES}
    assert set(MODEL_TYPES.values()) | without == FAMILIES.keys()
    # Networks that are written out have their own tests, as those of volumes; timm's, those below.
    elsewhere = {"dinov2", "efficientnet_lite", *without}
    assert MADE.keys() == FAMILIES.keys() - elsewhere


def test_asking_for_a_family_imports_that_alone_and_no_torch() -> None:
    """One process asks for each in turn, and forgets what that has brought of ours."""
    code = (
        "import json, sys, pipeline.backbones.families as f\n"
        "from tests.fresh import WITH_TORCH\n"
        "before, brought = {*sys.modules}, {}\n"
        "for name in f.FAMILIES:\n"
        "    f.family_of(name)\n"
        "    new = {m for m in {*sys.modules} - before if m.startswith('pipeline')}\n"
        "    brought[name] = sorted(new), sorted(WITH_TORCH & sys.modules.keys())\n"
        "    for module in new:\n"
        "        del sys.modules[module]\n"
        "print(json.dumps(brought))"
    )
    brought = json.loads(said(code))
    assert brought.keys() == FAMILIES.keys()
    for name, (modules, with_torch) in brought.items():
        needed = ["pipeline.backbones.families.volume"] if name in VOLUME_FAMILIES else []
        assert modules == sorted([FAMILIES[name], *needed])
        assert not with_torch


# --- their features ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(MADE))
def test_features_equal_the_librarys_own_pass(family: str, tmp_path: Path) -> None:
    folder, model = saved(family, tmp_path)
    x = picture(SIZE, count=3)
    with torch.inference_mode():
        theirs = MADE[family][1](model, x)
    blocks = 1 if family == "resnet" else 2
    backbone = load_backbone(f"hf:{folder}", image_size=SIZE, blocks=blocks)
    got = backbone(x)
    side, registers = SIZE // backbone.architecture.patch, backbone.architecture.registers
    assert got.cls.shape == (3, blocks, 48)
    assert got.patch.shape == (3, side, side, 48)
    assert torch.allclose(got.cls[:, -1], theirs[:, 0], atol=1e-5)
    patches = theirs[:, 1 + registers :]
    assert torch.allclose(got.patch.flatten(1, 2), patches, atol=1e-5)
    assert torch.allclose(got.mean, patches.mean(dim=1), atol=1e-5)
    assert backbone.architecture.mean == (0.4, 0.5, 0.6)
    assert torch.equal(got.cls, backbone(x).cls)
    alone = backbone(x[1:2])
    assert torch.allclose(alone.cls[0], got.cls[1], atol=1e-5)
    assert torch.allclose(alone.patch[0], got.patch[1], atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "vit_mae", "vit_msn", "clip"])
def test_positions_are_resampled_as_the_library_does(family: str, tmp_path: Path) -> None:
    folder, model = saved(family, tmp_path)
    tower: Any = {"vit": "vit", "vit_mae": "vit", "clip": "vision_model"}.get(family)
    tower = getattr(model, tower) if tower else model
    tower.config.mask_ratio = 0.0
    extra = {"noise": torch.arange(36.0)[None]} if family == "vit_mae" else {}
    x = picture(96)
    with torch.inference_mode():
        theirs = tower(x, interpolate_pos_encoding=True, **extra).last_hidden_state
        if family == "clip":
            theirs = tower.post_layernorm(theirs)
    got = load_backbone(f"hf:{folder}", image_size=96, blocks=1)(x)
    assert torch.allclose(got.patch.flatten(1, 2), theirs[:, 1:], atol=1e-5)
    assert torch.allclose(got.cls[:, 0], theirs[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", sorted(MADE))
def test_a_key_too_few_or_too_many_is_named(family: str, tmp_path: Path) -> None:
    folder, _ = saved(family, tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    ends = {
        "sam": "vision_encoder.layers.0.attn.qkv.bias",
        "resnet": "embedder.embedder.normalization.bias",
        "dinov3_vit": "norm.bias",
        "clip": "post_layernorm.bias",
    }
    known = next(key for key in state if key.endswith(ends.get(family, "layernorm.bias")))
    lacking = {key: value for key, value in state.items() if key != known}
    save_file(lacking | {"stray.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    blocks = 1 if family == "resnet" else 2
    with pytest.raises(WeightsError, match=r"missing: .*bias; unexpected: stray\.weight"):
        load_backbone(f"hf:{folder}", image_size=SIZE, blocks=blocks)


def in_timms_words(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a ViT of transformers under the names of timm's."""
    plain = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    found = {theirs: state[f"vit.{ours}"] for theirs, ours in plain.items()}
    for end in ("weight", "bias"):
        found[f"patch_embed.proj.{end}"] = state[
            f"vit.embeddings.patch_embeddings.projection.{end}"
        ]
        for i in range(SHAPE["num_hidden_layers"]):
            block, layer = f"blocks.{i}", f"vit.encoder.layer.{i}"
            found[f"{block}.attn.qkv.{end}"] = torch.cat(
                [state[f"{layer}.attention.attention.{k}.{end}"] for k in ("query", "key", "value")]
            )
            for theirs, ours in (
                ("norm1", "layernorm_before"),
                ("attn.proj", "attention.output.dense"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                found[f"{block}.{theirs}.{end}"] = state[f"{layer}.{ours}.{end}"]
    return found


def test_biomedclip_is_read_from_an_open_clip_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = saved("vit", tmp_path / "vit")
    own = in_timms_words(load_file(folder / "model.safetensors"))
    other = {"visual.head.proj.weight": torch.zeros(8, 48), "logit_scale": torch.ones(())}
    other |= {"text.transformer.embeddings.word_embeddings.weight": torch.zeros(9, 8)}
    held = {f"visual.trunk.{name}": value for name, value in own.items()} | other
    theirs = tmp_path / "biomedclip"
    theirs.mkdir()
    torch.save(held, theirs / "open_clip_pytorch_model.bin")
    entry = COMPARATORS["biomedclip_base"]
    small = read_shape_of(folder) | {"mean": entry.architecture.mean}
    shape = entry.architecture.model_copy(update=small)
    monkeypatch.setitem(COMPARATORS, "biomedclip_base", replace(entry, architecture=shape))
    x = picture(SIZE, count=2)
    with torch.inference_mode():
        expected = model.vit(x).last_hidden_state
    got = load_backbone("biomedclip_base", theirs, image_size=SIZE, blocks=1)(x)
    assert torch.allclose(got.cls[:, 0], expected[:, 0], atol=1e-5)
    assert torch.allclose(got.patch.flatten(1, 2), expected[:, 1:], atol=1e-5)
    lacking = {k: v for k, v in held.items() if k != "visual.trunk.norm.bias"}
    torch.save(lacking, theirs / "open_clip_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"missing: layernorm\.bias"):
        load_backbone("biomedclip_base", theirs, image_size=SIZE, blocks=1)


def read_shape_of(folder: Path) -> dict[str, Any]:
    """Return the shape of a saved ViT, with the eps that it has."""
    shape = family_of("vit").read_shape(json.loads((folder / "config.json").read_text()))
    return {k: v for k, v in shape.items() if k in ("dim", "depth", "heads", "settings", "eps")}


def as_timm_saves(name: str, folder: Path, **options: Any) -> Any:
    """Make a network of timm's, its weights far from their initial values, and save it."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, **options).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    about = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    config = {"architecture": name, "num_features": model.num_features, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("name", ["densenet201", "vgg19", "resnet18"])
def test_a_grid_of_timms_equals_its_own_pass(name: str, tmp_path: Path) -> None:
    model = as_timm_saves(name, tmp_path / "network")
    x = picture(SIZE, count=3)
    with torch.inference_mode():
        grid = model.forward_features(x)
    backbone = load_backbone(f"hf:{tmp_path / 'network'}", image_size=SIZE, blocks=1)
    got = backbone(x)
    scale = float(grid.abs().max())
    assert got.patch.shape == (3, 2, 2, grid.shape[1])
    assert torch.allclose(got.patch, grid.permute(0, 2, 3, 1), atol=1e-5 * scale)
    assert torch.allclose(got.cls[:, 0], grid.mean(dim=(2, 3)), atol=1e-5 * scale)
    assert torch.allclose(backbone(x[1:2]).cls[0], got.cls[1], atol=1e-5 * scale)
    assert backbone.architecture.std == (0.2, 0.25, 0.3)


def test_a_grid_of_timms_is_trained_saved_and_read_back(tmp_path: Path) -> None:
    as_timm_saves("densenet121", tmp_path / "network")
    backbone = load_backbone(f"hf:{tmp_path / 'network'}", image_size=SIZE, blocks=1)
    network = TunableNetwork(backbone, torch.nn.Linear(1024, 1), "cls")
    make_trainable(network, NormTune())
    for parameter in network.trained().values():
        parameter.data += 0.1
    to = tmp_path / "tuned"
    save_network(network.body, network.head, backbone.architecture, "sha256:" + 64 * "0", to)
    (tmp_path / "network/model.safetensors").unlink()
    again = load_backbone(f"hf:{tmp_path / 'network'}", to, image_size=SIZE, blocks=1)
    x = picture(SIZE, count=2)
    assert torch.equal(again(x).patch, backbone(x).patch)


def test_a_vit_of_timms_equals_its_own_pass(tmp_path: Path) -> None:
    model = as_timm_saves("vit_tiny_patch16_224", tmp_path / "network", img_size=SIZE)
    x = picture(SIZE, count=2)
    with torch.inference_mode():
        tokens = model.forward_features(x)
    got = load_backbone(f"hf:{tmp_path / 'network'}", image_size=SIZE, blocks=1)(x)
    assert torch.allclose(got.cls[:, 0], tokens[:, 0], atol=1e-4)
    assert torch.allclose(got.patch.flatten(1, 2), tokens[:, 1:], atol=1e-4)


@pytest.mark.skipif(TIMM, reason="timm is installed")
def test_where_timm_is_not_installed_the_extra_is_named() -> None:
    with pytest.raises(WeightsError, match=r"densenet201 .*pip install 'radprobe\[timm\]'"):
        load_backbone("densenet_201", "random:0", blocks=1)


def test_a_network_of_timms_of_another_kind_is_named(tmp_path: Path) -> None:
    config = {"architecture": "swin_tiny", "num_features": 768}
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": about}))
    with pytest.raises(WeightsError, match="Got 'swin_tiny' instead"):
        load_backbone(f"hf:{tmp_path}")


def test_sam_takes_its_own_size_alone(tmp_path: Path) -> None:
    folder, _ = saved("sam", tmp_path)
    with pytest.raises(ValueError, match="must be 64: .* Got 96"):
        load_backbone(f"hf:{folder}", image_size=96)
    shape = load_backbone(f"hf:{folder}", image_size=SIZE).architecture
    with pytest.raises(ValueError, match="must be 64, the only one"):
        Recipe(architecture=shape, weights="random:0", image_size=96, blocks=1)


def test_as_the_paper_means_imagenet_and_no_final_norm(tmp_path: Path) -> None:
    folder, model = saved("vit", tmp_path)
    x = picture(SIZE)
    with torch.inference_mode():
        before = model.vit(x, output_hidden_states=True).hidden_states[-1]
    paper = load_backbone(f"hf:{folder}", image_size=SIZE, blocks=1, treatment="paper")
    assert torch.allclose(paper(x).cls[:, 0], before[:, 0], atol=1e-5)
    assert paper.architecture.mean == (0.485, 0.456, 0.406)
    own = load_backbone(f"hf:{folder}", image_size=SIZE, blocks=1)
    digests = {
        Recipe(architecture=each.architecture, weights="random:0", image_size=SIZE, blocks=1).digest
        for each in (own, paper)
    }
    assert len(digests) == 2


@pytest.mark.parametrize("name", sorted(COMPARATORS))
def test_every_name_gives_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry, made narrow and shallow, with random weights."""
    entry = COMPARATORS[name]
    sizes = {"mlp_dim": 96, "intermediate_size": 96, "image_size": 64, "window_size": 2}
    sizes |= {"hidden_sizes": [8, 16, 24, 48], "depths": [1, 1, 1, 1], "embedding_size": 8}
    sizes |= {"global_attn_indexes": [1]}
    shape = entry.architecture
    if shape.family == "timm_wrapper" and not TIMM:
        pytest.skip("timm is not installed")
    size = 4 * shape.patch if shape.family == "dinov2" else 64
    narrow: dict[str, Any] = {"depth": min(2, shape.depth), "heads": min(3, shape.heads)}
    if "architecture" not in shape.settings:  # which are as wide as they are
        narrow["dim"] = 48
    narrow["settings"] = {k: sizes.get(k, v) for k, v in shape.settings.items()}
    if shape.patch == 14:
        size = 56
    small = replace(entry, architecture=shape.model_copy(update=narrow))
    monkeypatch.setitem(COMPARATORS, name, small)
    x = picture(size, count=2)
    one, again, other = (
        load_backbone(name, f"random:{seed}", image_size=size, blocks=1)(x) for seed in (1, 1, 2)
    )
    side = size // shape.patch
    assert one.patch.shape == (2, side, side, small.architecture.dim)
    assert torch.equal(one.cls, again.cls)
    assert torch.isfinite(one.cls).all()
    assert not torch.allclose(one.cls, other.cls)
    assert not torch.allclose(one.cls[0], one.cls[1], atol=1e-3)


@pytest.mark.parametrize("name", sorted(n for n in COMPARATORS if n != "rad_dino"))
def test_the_table_has_the_published_sizes(name: str) -> None:
    entry = COMPARATORS[name]
    if entry.architecture.family == "timm_wrapper" and not TIMM:
        pytest.skip("timm is not installed")
    cls, config, options = network_parts(entry.architecture, entry.image_size)
    with torch.device("meta"):
        made = cls(config, **options)
        count = sum(parameter.numel() for parameter in made.parameters())
    assert count / 1e6 == pytest.approx(entry.millions, rel=0.005)


def test_rad_dino_is_as_large_as_dinov2s_base() -> None:
    shape = COMPARATORS["rad_dino"].architecture
    assert count_parameters(shape) / 1e6 == pytest.approx(COMPARATORS["rad_dino"].millions, 1e-3)


def test_the_folder_of_weights_knows_comparators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    about = {each.name: each for each in known()}
    assert about.keys() > COMPARATORS.keys()
    assert about["rad_dino"].licence == "MIT"
    assert about["openclip_huge"].url.endswith("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    with pytest.raises(WeightsError, match="huggingface-cli download facebook/vit-mae-large"):
        fetch("mae_large")
    with pytest.raises(WeightsError, match="Leave --from out"):
        fetch("mae_large", "http://mirror")


def test_a_comparator_goes_through_extract_and_store(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from pipeline.config.loading import load_config
    from pipeline.extract import extract

    network, _ = saved("clip", tmp_path / "network")
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        pixels = rng.integers(0, 255, (80, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{name}.png")
    (tmp_path / "c.yaml").write_text(
        "data: {root: data}\nstore: store\noutputs: {blocks: 2, keep: [cls, mean, patch]}\n"
        f'backbone: {{name: "hf:{network}", image_size: {SIZE}}}\n'
    )
    extract(load_config(tmp_path / "c.yaml"))
    store = FeatureStore.open(tmp_path / "store")
    recipe = recipe_of(store)
    assert recipe.architecture.family == "clip"
    assert recipe.architecture.std == (0.2, 0.25, 0.3)


def test_the_documented_table_is_the_codes() -> None:
    text = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
    for name, entry in COMPARATORS.items():
        a = entry.architecture
        cells = (f"`{name}`", entry.repository, a.dim, a.patch, entry.image_size)
        row = " | ".join(map(str, (*cells, entry.feature, _short(a.mean), _short(a.std))))
        assert f"| {row} | {entry.licence} | {entry.unchecked} |" in text, row


def _short(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(round(v, 4) for v in values))
