from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, interpolate, layer_norm, linear, scaled_dot_product_attention

from pipeline.backbones import weights
from pipeline.backbones.dinov2 import empty_network
from pipeline.backbones.families import family_of
from pipeline.backbones.load import load_backbone, read_state
from pipeline.backbones.positions import resample_positions
from pipeline.backbones.towers import as_library_model
from pipeline.backbones.weights import BACKBONES, PublishedBackbone
from pipeline.recipe import Architecture
from stores.errors import WeightsError
from tests.pipeline.models import TINY, official_shapes, recipe_state, write_tiny_folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a small network under a name, so that official files of its size load."""
    published = PublishedBackbone(Architecture(**TINY), "tiny.pth", "nobody/tiny")
    monkeypatch.setitem(weights.BACKBONES, "tiny", published)
    return "tiny"


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def picture(size: int, count: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((count, 3, size, size), dtype=np.float32))


# --- the official rules at any size ----------------------------------------------------------


def plain_forward(
    state: dict[str, torch.Tensor], x: torch.Tensor, heads: int, registers: int
) -> torch.Tensor:
    """State DINOv2's forward pass directly, from its published code's rules; all tokens out."""
    dim = state["cls_token"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    grid = x.shape[-1] // 14
    projection = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tokens = torch.nn.functional.conv2d(x, *projection, stride=14).flatten(2).transpose(1, 2)
    table = state["pos_embed"][:, 1:].reshape(1, 37, 37, dim).permute(0, 3, 1, 2)
    if registers:
        table = interpolate(table, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        table = interpolate(table, scale_factor=(grid + 0.1) / 37, mode="bicubic")
    tokens = tokens + table.flatten(2).transpose(1, 2)
    parts = [state["cls_token"] + state["pos_embed"][:, :1], tokens]
    if registers:
        parts.insert(1, state["register_tokens"])
    h = torch.cat([part.expand(len(x), -1, -1) for part in parts], dim=1)

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(h, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def dense(h: torch.Tensor, name: str) -> torch.Tensor:
        return linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(depth):
        block = f"blocks.{i}"
        qkv = dense(norm(h, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, dim // heads)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + state[f"{block}.ls1.gamma"] * dense(attended, f"{block}.attn.proj")
        inner = norm(h, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in state:
            gate, value = dense(inner, f"{block}.mlp.w12").chunk(2, dim=-1)
            out = dense(torch.nn.functional.silu(gate) * value, f"{block}.mlp.w3")
        else:
            out = dense(gelu(dense(inner, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        h = h + state[f"{block}.ls2.gamma"] * out
    return norm(h, "norm")


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_every_architecture_follows_the_official_rules(
    registers: int, swiglu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B/14, L/14 and g/14 by structure: the same rules at another width, depth and MLP."""
    shape = {"dim": 96, "depth": 4, "heads": 6}
    architecture = Architecture(**shape, registers=registers, ffn="swiglu" if swiglu else "mlp")
    monkeypatch.setitem(
        weights.BACKBONES, "small", PublishedBackbone(architecture, "x.pth", "nobody/x")
    )
    state = recipe_state(official_shapes(96, 4, registers=registers, swiglu=swiglu))
    x = picture(98, count=2)
    expected = plain_forward(state, x, heads=6, registers=registers)
    features = load_backbone("small", saved(tmp_path / "x.pth", state), image_size=98)(x)
    assert torch.allclose(features.cls[:, -1], expected[:, 0], atol=1e-5)
    patches = expected[:, 1 + registers :]
    assert torch.allclose(features.patch.flatten(1, 2), patches, atol=1e-5)
    assert torch.allclose(features.mean, patches.mean(dim=1), atol=1e-5)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_published_shapes_count_the_published_parameters(name: str) -> None:
    """Parameter counts of the model cards (22.06 M, 86.58 M, 304.37 M, 1136.48 M)."""
    a = BACKBONES[name].architecture
    shapes = official_shapes(a.dim, a.depth, registers=a.registers, swiglu=a.ffn == "swiglu")
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    expected = {384: 22_056_576, 768: 86_580_480, 1024: 304_368_640, 1536: 1_136_480_768}
    assert count == expected[a.dim] + a.registers * a.dim
    assert a.dim // a.heads == 64


# --- what one pass gives ----------------------------------------------------------------------


def test_shapes_and_order(tiny: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "t.pth", recipe_state(official_shapes(TINY["dim"], TINY["depth"])))
    backbone = load_backbone(tiny, file, image_size=56, blocks=4)
    features = backbone(picture(56, count=3))
    assert features.cls.shape == (3, 4, 48)
    assert features.mean.shape == (3, 48)
    assert features.patch.shape == (3, 4, 4, 48)
    last = load_backbone(tiny, file, image_size=56, blocks=1)(picture(56, count=3))
    assert torch.equal(last.cls[:, 0], features.cls[:, -1])
    moved = picture(56)
    moved[:, :, :14, 14:28] += 5  # the patch of row 0, column 1
    change = (backbone(moved).patch - backbone(picture(56)).patch).abs().sum(dim=-1)[0]
    assert change.argmax().item() == 1


@pytest.mark.parametrize("shape", [(1, 3, 56, 70), (1, 1, 56, 56), (3, 56, 56)])
def test_another_shape_is_refused(tiny: str, shape: tuple[int, ...]) -> None:
    backbone = load_backbone(tiny, "random:0", image_size=56)
    with pytest.raises(ValueError, match=r"\(b, 3, 56, 56\)"):
        backbone(torch.zeros(shape))


def test_a_batch_gives_what_its_slices_give_alone(tiny: str) -> None:
    backbone = load_backbone(tiny, "random:0", image_size=56)
    x = picture(56, count=64)
    together = backbone(x)
    for i in (0, 31, 63):
        alone = backbone(x[i : i + 1])
        assert torch.allclose(alone.cls[0], together.cls[i], atol=2e-5)
        assert torch.allclose(alone.patch[0], together.patch[i], atol=2e-5)


def test_image_size_must_fit_the_patches(tiny: str) -> None:
    with pytest.raises(ValueError, match="multiple of 14. Got 225"):
        load_backbone(tiny, "random:0", image_size=225)


def test_random_weights_are_the_same_each_time_and_differ_by_seed(tiny: str) -> None:
    before = torch.random.get_rng_state()
    x = picture(56, count=2)
    one, again, other = (
        load_backbone(tiny, f"random:{seed}", image_size=56)(x).cls for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one[0], one[1], atol=1e-2)
    assert torch.isfinite(one).all()
    assert torch.equal(torch.random.get_rng_state(), before)


# --- loading ----------------------------------------------------------------------------------

WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "plain": lambda s: s,
    "teacher": lambda s: {"teacher": {f"backbone.{k}": v for k, v in s.items()}},
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "module.backbone": lambda s: {f"module.backbone.{k}": v for k, v in s.items()},
    "heads beside": lambda s: s | {"dino_head.mlp.0.weight": torch.zeros(2)},
    "chunked": lambda s: {
        k.replace("blocks.", f"blocks.{int(k.split('.')[1]) // 2}.", 1)
        if k.startswith("blocks.")
        else k: v
        for k, v in s.items()
    },
}


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_every_official_wrapping_loads_to_the_same_features(
    wrapping: str, tiny: str, tmp_path: Path
) -> None:
    state = recipe_state(official_shapes(TINY["dim"], TINY["depth"]))
    plain = load_backbone(tiny, saved(tmp_path / "plain.pth", state), image_size=56)
    file = saved(tmp_path / "wrapped.pth", WRAPPINGS[wrapping](state))
    wrapped = load_backbone(tiny, file, image_size=56)
    assert torch.equal(plain(picture(56)).cls, wrapped(picture(56)).cls)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_hugging_face_folder_equals_its_own_library(registers: int, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_tiny_folder(tmp_path / "hf", registers=registers)
    x = picture(70, count=2)  # the folder's own grid: no resampling on either side
    with torch.inference_mode():
        theirs = AutoModel.from_pretrained(folder)(x).last_hidden_state
    ours = load_backbone(f"hf:{folder}", image_size=70)
    assert ours.architecture.mean == (0.5, 0.5, 0.5)
    assert ours.architecture.registers == registers
    assert torch.allclose(ours(x).cls[:, -1], theirs[:, 0], atol=1e-5)
    assert torch.allclose(ours(x).patch.flatten(1, 2), theirs[:, 1 + registers :], atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_the_network_is_that_of_the_library_to_the_bit(registers: int, ffn: str) -> None:
    """On one machine both call the same operations in the same order."""
    architecture = Architecture(dim=128, depth=3, heads=2, registers=registers, ffn=ffn)
    ours = empty_network(architecture, 70)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    theirs = as_library_model(ours, architecture).eval()
    x = picture(70, count=2)
    with torch.inference_mode():
        expected = theirs(x, output_hidden_states=True)
        tokens = ours(x)
    assert torch.equal(tokens.last, expected.last_hidden_state)
    for block, theirs_of_it in zip(tokens.blocks[::-1], expected.hidden_states[::-1], strict=False):
        assert torch.equal(block, theirs_of_it)


@pytest.mark.parametrize("registers", [0, 4])
def test_patch_tokens_of_several_blocks_are_those_after_the_last_norm(
    registers: int, tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder = write_tiny_folder(tmp_path / "hf", registers=registers)
    x = picture(70, count=2)
    model = AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        hidden = model(x, output_hidden_states=True).hidden_states
        theirs = torch.stack([model.layernorm(h)[:, 1 + registers :] for h in hidden[-3:]], dim=1)
    ours = load_backbone(f"hf:{folder}", image_size=70, patch_blocks=3)(x)
    assert ours.patch.shape == (2, 3, 5, 5, 48)
    assert torch.allclose(ours.patch.flatten(2, 3), theirs, atol=1e-5)
    last = load_backbone(f"hf:{folder}", image_size=70)(x)
    assert torch.equal(last.patch, ours.patch[:, -1])
    assert torch.equal(last.mean, ours.mean)


def test_weights_trained_at_another_size_are_resampled(tiny: str, tmp_path: Path) -> None:
    state = recipe_state(official_shapes(TINY["dim"], TINY["depth"], grid=16))
    backbone = load_backbone(tiny, saved(tmp_path / "t.pth", state), image_size=56)
    assert backbone(picture(56)).patch.shape == (1, 4, 4, 48)


def test_positions_of_the_right_grid_are_left_alone() -> None:
    table = torch.randn(1, 26, 8)
    assert resample_positions(table, 5, antialias=False) is table
    with pytest.raises(WeightsError, match="square grid. Got 24"):
        resample_positions(torch.zeros(1, 25, 8), 3, antialias=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("blocks.3.ls1.gamma"), r"missing: encoder\.layer\.3\.layer_scale1"),
        (lambda s: s.update({"neck.weight": torch.zeros(2)}), "unexpected: neck.weight"),
        (lambda s: s.update({"norm.bias": torch.zeros(47)}), "mismatched: .*layernorm.bias"),
    ],
)
def test_a_key_too_few_too_many_or_misshapen_is_named(
    change: Callable[[dict[str, torch.Tensor]], object], named: str, tiny: str, tmp_path: Path
) -> None:
    state = recipe_state(official_shapes(TINY["dim"], TINY["depth"]))
    change(state)
    with pytest.raises(WeightsError, match=named):
        load_backbone(tiny, saved(tmp_path / "bad.pth", state), image_size=56)


def test_weights_of_another_size_are_refused(tiny: str, tmp_path: Path) -> None:
    other = saved(tmp_path / "x.pth", recipe_state(official_shapes(96, TINY["depth"])))
    with pytest.raises(WeightsError, match="dim 48, depth 5, 0 registers.*mismatched"):
        load_backbone(tiny, other, image_size=56)
    with_registers = recipe_state(official_shapes(TINY["dim"], TINY["depth"], registers=4))
    with pytest.raises(WeightsError, match="unexpected: embeddings.register_tokens"):
        load_backbone(tiny, saved(tmp_path / "r.pth", with_registers), image_size=56)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/radprobe-was-here",)


def test_a_pickle_is_never_run(tiny: str, tmp_path: Path) -> None:
    trace = Path("/tmp/radprobe-was-here")
    trace.unlink(missing_ok=True)
    for name, write in {
        "bomb.pth": lambda path: torch.save({"model": _Bomb()}, path),
        "bare.pth": lambda path: path.write_bytes(pickle.dumps(_Bomb())),
    }.items():
        write(tmp_path / name)
        with pytest.raises(WeightsError, match="run code|cannot be read"):
            load_backbone(tiny, tmp_path / name, image_size=56)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "words.pth", "empty.pth"])
def test_a_damaged_file_is_said(name: str, tiny: str, tmp_path: Path) -> None:
    good = saved(tmp_path / "good.pth", recipe_state(official_shapes(48, 5))).read_bytes()
    content = {"cut": good[: len(good) // 2], "words": b"hello", "empty": b""}
    (tmp_path / name).write_bytes(content[name.split(".")[0]])
    with pytest.raises(WeightsError, match=name):
        load_backbone(tiny, tmp_path / name, image_size=56)


def test_something_else_than_a_state_dict_is_said(tmp_path: Path) -> None:
    file = saved(tmp_path / "list.pth", [torch.zeros(1)])
    with pytest.raises(WeightsError, match="must hold a state dict"):
        read_state(file)
    file = saved(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="not a DINOv2 backbone. Its first keys: conv1"):
        family_of("dinov2").read_tensors(read_state(file), file)
