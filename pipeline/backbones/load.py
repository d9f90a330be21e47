"""Names to networks: DINOv2 S/B/L/g with and without registers, exact to the official model.

transformers holds the architecture. Loading is ours: official .pth files, training checkpoints and
Hugging Face files all become one state dict under the names of the Hugging Face format, which is
then loaded strictly. Position embeddings are resampled once, at load, by the official rule; given
a grid of exactly its own size, transformers uses them as they are.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)
from transformers.utils import logging as transformers_logging

from pipeline.backbones.models import GRIDS
from pipeline.backbones.towers import Tower, family_model, family_options, family_state, renamed
from pipeline.backbones.weights import locate
from pipeline.recipe import Architecture, Features, Precision, Treatment
from stores.errors import WeightsError

POSITIONS = "embeddings.position_embeddings"
# The official code adds 0.1 to the grid before dividing, to dodge a rounding error in torch; the
# scale factor it gives moves the sampling positions, so it must be repeated for equal features.
INTERPOLATE_OFFSET = 0.1
# An untrained network: std of its weights, of its
# position embeddings, and the scale of its branches, small so that tokens keep the picture.
RANDOM_STD = 0.05
RANDOM_POSITION_STD = 0.2
RANDOM_LAYER_SCALE = 0.1

# Heads that training checkpoints carry beside the backbone.
_FOREIGN = re.compile(r"^(dino_head|ibot_head)\.")
_WRAPPERS = ("teacher", "model", "state_dict")
_PREFIXES = ("module.", "backbone.", "dinov2.")
# Official name -> Hugging Face name, within a block and outside.
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


class Backbone:
    """A network with its input size, mean and std.

    Called with x, float32 (b, 3, S, S), already normalised, on any device; returns Features in
    float32 on the network's device. precision: what matrices are multiplied in, as DINOv2's own
    evaluation does it (autocast); sums and the weights on file stay float32. compiled: by
    torch.compile, anew for each batch size.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        architecture: Architecture,
        image_size: int,
        blocks: int,
        precision: Precision = "float32",
        patch_blocks: int = 1,
        compiled: bool = False,
    ) -> None:
        self.architecture = architecture
        self.image_size = image_size
        self.blocks = blocks
        self.patch_blocks = patch_blocks
        self.precision = precision
        self.compiled = compiled
        self._model = model
        if compiled:
            model.compile(dynamic=False)

    @property
    def device(self) -> torch.device:
        """Return the device the network is on."""
        return next(self._model.parameters()).device

    @property
    def network(self) -> torch.nn.Module:
        """Return what is called, to be trained."""
        return self._model

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Features:
        """Return the features of a batch; refuses any shape but (b, 3, S, S)."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Features:
        """Return the features of a batch, which gradients can be taken of."""
        size = self.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"x must be (b, 3, {size}, {size}). Got {tuple(x.shape)} instead.")
        dtype = next(self._model.parameters()).dtype
        with self._autocast():
            output = self._model(x.to(self.device, dtype), output_hidden_states=True)
        norm = self._model.get_submodule("layernorm")
        hidden = output.hidden_states
        cls = torch.stack([norm(x[:, 0].to(dtype)) for x in hidden[-self.blocks :]], dim=1)
        # Token order: CLS, registers, patches row by row.
        first = 1 + self.architecture.registers
        tokens = output.last_hidden_state[:, first:].float()
        patch = tokens
        if self.patch_blocks > 1:
            earlier = hidden[-self.patch_blocks : -1]
            normed = [norm(x[:, first:].to(dtype)).float() for x in earlier]
            patch = torch.stack([*normed, tokens], dim=1)
        grid = size // self.architecture.patch
        patch = patch.unflatten(-2, (grid, grid))  # (b, h, w, d), or (b, l, h, w, d)
        return Features(cls=cls.float(), mean=tokens.mean(dim=1), patch=patch)

    def _autocast(self) -> torch.autocast:
        lower = self.precision != "float32"
        dtype = getattr(torch, self.precision) if lower else None
        return torch.autocast(self.device.type, dtype, enabled=lower)


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    image_size: int = 224,
    blocks: int = 4,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: Precision = "float32",
    patch_blocks: int = 1,
    compiled: bool = False,
    treatment: Treatment = "own",
) -> Backbone:
    """Load a backbone by name, as `pipeline.backbones.weights.locate` finds it, for square images.

    image_size: pixels, a multiple of the patch size; blocks, patch_blocks: CLS and patch tokens of
    the last l blocks; dtype: of the weights; precision: see Backbone; compiled: by torch.compile,
    at the first batch; treatment: see `pipeline.recipe.Treatment`.
    Raises WeightsError naming every missing, unexpected or misshapen key.
    """
    found = locate(name, None if weights is None else str(weights), treatment=treatment)
    architecture = found.architecture
    if image_size % architecture.patch:
        raise ValueError(
            f"image_size must be a multiple of {architecture.patch}. Got {image_size} instead."
        )
    if found.file is None:
        model = _random_model(architecture, image_size, int(found.identity.removeprefix("random:")))
    elif architecture.family != "dinov2":
        state = family_state(read_state(found.file), architecture, image_size, found.file)
        model = _strictly_loaded(architecture, image_size, state, found.file)
    else:
        state = hub_state(read_state(found.file), found.file)
        grid = image_size // architecture.patch
        antialias = architecture.registers > 0
        state[POSITIONS] = resample_positions(state[POSITIONS], grid, antialias=antialias)
        model = _strictly_loaded(architecture, image_size, state, found.file)
    if architecture.family != "dinov2":
        model = Tower(model, architecture)
    model.eval().requires_grad_(False)
    model = model.to(device=device, dtype=dtype)
    return Backbone(model, architecture, image_size, blocks, precision, patch_blocks, compiled)


def resample_positions(positions: Tensor, grid: int, *, antialias: bool) -> Tensor:
    """Resample position embeddings (1, 1 + g*g, d) to (1, 1 + grid*grid, d) by DINOv2's rule.

    Mirrors `interpolate_pos_encoding` of facebookresearch/dinov2 (vision_transformer.py): bicubic
    in float32; without registers by scale factor (grid + 0.1) / g and no antialias, with registers
    to the size itself with antialias.
    """
    count, dim = positions.shape[1] - 1, positions.shape[2]
    old = math.isqrt(count)
    if old * old != count:
        raise WeightsError(f"Position embeddings must be a square grid. Got {count} positions.")
    if old == grid:
        return positions
    table = positions[:, 1:].float().reshape(1, old, old, dim).permute(0, 3, 1, 2)
    if antialias:
        table = interpolate(table, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        scale = (grid + INTERPOLATE_OFFSET) / old
        table = interpolate(table, scale_factor=(scale, scale), mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(1, grid * grid, dim)
    return torch.cat([positions[:, :1], table.to(positions.dtype)], dim=1)


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a weights file as a flat dict of tensors. Never unpickles code."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        with warnings.catch_warnings():  # a refusal follows, and it is said better below
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{str(file)!r} is not a plain weights file: it is damaged, or holds objects that "
            "would run code. Save its state_dict alone, or as safetensors."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        why = str(error).partition(". ")[0]
        raise WeightsError(
            f"{str(file)!r} cannot be read as weights: {why}. It is damaged or "
            "was not copied whole; get it again."
        ) from None
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if key in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{str(file)!r} must hold a state dict: names and tensors.")
    return dict(content)


def hub_state(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return a state dict under the names of the Hugging Face format, prefixes stripped."""
    own = {
        name: value for key, value in state.items() if not _FOREIGN.match(name := _stripped(key))
    }
    found = renamed(own, _NAMES)
    if POSITIONS not in found:
        raise WeightsError(
            f"{str(file)!r} holds no position embeddings: it is not a DINOv2 backbone. "
            f"Its first keys: {', '.join(list(state)[:5])}."
        )
    return found


def _stripped(key: str) -> str:
    while True:
        prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return key
        key = key.removeprefix(prefix)


def _model(architecture: Architecture, image_size: int) -> tuple[type[Any], Any]:
    """Return the transformers class and config of an architecture."""
    if architecture.family != "dinov2":
        return family_model(architecture, image_size)
    shape = {
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
        config = Dinov2WithRegistersConfig(**shape, num_register_tokens=architecture.registers)
        return Dinov2WithRegistersModel, config
    return Dinov2Model, Dinov2Config(**shape)


def _strictly_loaded(
    architecture: Architecture, image_size: int, state: dict[str, Tensor], file: Path
) -> torch.nn.Module:
    """Build the network from a state dict; every key must fit."""
    cls, config = _model(architecture, image_size)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on keys comes back below, as an error
    try:
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **family_options(architecture),
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    faults = [
        f"{kind.removesuffix('_keys')}: {', '.join(sorted(map(str, info[kind])))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[kind]
    ]
    if faults:
        raise WeightsError(
            f"{str(file)!r} does not fit the network asked for (dim {architecture.dim}, depth "
            f"{architecture.depth}, {architecture.registers} registers). " + "; ".join(faults)
        )
    module: torch.nn.Module = model
    return module


def _random_model(architecture: Architecture, image_size: int, seed: int) -> torch.nn.Module:
    """Build an untrained network from a seed: the same numbers on every machine."""
    cls, config = _model(architecture, image_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the library draws initial values; ours follow
        model: torch.nn.Module = cls(config, **family_options(architecture))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                std = RANDOM_POSITION_STD if "position_embedding" in name else RANDOM_STD
                if parameter.ndim == 4 and architecture.family in GRIDS:
                    std = parameter[0].numel() ** -0.5  # many layers and no norm that is fitted
                parameter.normal_(0.0, std, generator=generator)
            elif "lambda" in name:
                parameter.fill_(RANDOM_LAYER_SCALE)
            elif "bias" in name:
                parameter.zero_()
            else:
                parameter.fill_(1.0)
    return model
