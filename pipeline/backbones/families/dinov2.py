"""DINOv2, with and without registers: official .pth files, training checkpoints, Hugging Face's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones.families.base import Config, Family, Tensors, renamed
from pipeline.recipe import Architecture

POSITIONS = "embeddings.position_embeddings"
# Heads that training checkpoints carry beside the backbone.
_HEADS = re.compile(r"^(dino_head|ibot_head)\.")
_PREFIXES = ("module.", "backbone.", "dinov2.")
# Official name -> the network's own, but for what Hugging Face's files call otherwise.
_NAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^register_tokens$", "embeddings.register_tokens"),
    (r"^pos_embed$", POSITIONS),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    # FSDP training files say blocks.<chunk>.<i>, with i counted over the whole network.
    (r"^blocks\.(?:\d+\.)?(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)
# The name in Hugging Face's files -> the network's own. `weights_in` is two matrices in one.
_FILE_NAMES = (
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
)
_JOINT = ".mlp.weights_in."


@dataclass(frozen=True)
class _Dinov2(Family):
    """The family that the others are laid out like."""

    def read_shape(self, config: Config) -> dict[str, Any]:
        """Return what an Architecture is made of; with registers is another model type."""
        with_registers = config["model_type"] == "dinov2_with_registers"
        return {
            "dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "patch": config.get("patch_size", 14),
            "registers": config.get("num_register_tokens", 4) if with_registers else 0,
            "ffn": "swiglu" if config.get("use_swiglu_ffn") else "mlp",
            "mlp_ratio": config.get("mlp_ratio", 4),
            "eps": config.get("layer_norm_eps", 1e-6),
        }

    def read_tensors(self, tensors: Tensors, file: Path) -> dict[str, Any]:
        """Return the backbone's tensors, whatever a training run or a wrapper called them."""
        backbone: dict[str, Any] = {}
        for key, tensor in tensors.items():
            name = _without_prefixes(key)
            if not _HEADS.match(name):
                backbone[name] = tensor
        named = renamed(renamed(backbone, _NAMES), _FILE_NAMES)
        self.check_positions(named, tensors, file, "not a DINOv2 backbone")
        return _with_gates_apart(named)

    def config_values(self, architecture: Architecture, image_size: int) -> dict[str, Any]:
        """Return what the transformers config of an architecture is made of."""
        values = {
            "hidden_size": architecture.dim,
            "num_hidden_layers": architecture.depth,
            "num_attention_heads": architecture.heads,
            "mlp_ratio": architecture.mlp_ratio,
            "patch_size": architecture.patch,
            "image_size": image_size,
            "use_swiglu_ffn": architecture.ffn == "swiglu",
            "layer_norm_eps": architecture.eps,
        }
        if architecture.registers:
            values["num_register_tokens"] = architecture.registers
        return values

    def classes(self, transformers: Any, architecture: Architecture) -> tuple[Any, Any]:
        """Return the classes of config and network: registers have classes of their own."""
        if architecture.registers:
            return transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel
        return transformers.Dinov2Config, transformers.Dinov2Model


def _with_gates_apart(tensors: Tensors) -> dict[str, Any]:
    """Return tensors with SwiGLU's joint matrix as the two that the network has."""
    result: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if _JOINT in name:
            gate, up = tensor.chunk(2)
            result[name.replace(_JOINT, ".mlp.gate_proj.")] = gate
            result[name.replace(_JOINT, ".mlp.up_proj.")] = up
        else:
            result[name] = tensor
    return result


def _without_prefixes(key: str) -> str:
    while True:
        prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return key
        key = key.removeprefix(prefix)


FAMILY = _Dinov2(
    name="dinov2",
    config_class="Dinov2Config",
    model_class="Dinov2Model",
    norm="layernorm",
    positions=POSITIONS,
    resampling="dinov2",
    is_written_out=True,
)
