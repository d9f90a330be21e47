"""Names to networks: DINOv2 S/B/L/g with and without registers, exact to the official model.

`dinov2` is the network; transformers holds the others, and is imported for them alone. Official
.pth files, training checkpoints and Hugging Face files all become one state dict under the names of
the network, which is then loaded strictly. `families` says what differs from family to family.
"""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.backbones import dinov2
from pipeline.backbones.dinov2 import BlockTokens
from pipeline.backbones.families import family_of
from pipeline.backbones.positions import resample_as_transformers, resample_positions
from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.backbones.weights import (
    Checkpoint,
    WeightsSource,
    check_weights,
    find_weights,
    stamp_of,
)
from pipeline.recipe import Architecture, BatchFeatures, Precision, Recipe, Treatment
from stores.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from pipeline.backbones.volume_networks import VolumeBackbone

# An untrained network: std of its weights and of its position embeddings, and the scale of its
# branches, small so that tokens keep the picture.
RANDOM_STD = 0.05
RANDOM_POSITION_STD = 0.2
RANDOM_LAYER_SCALE = 0.1

# Where training checkpoints have the network, among other things.
_WRAPPERS = ("teacher", "model", "state_dict")


class Backbone:
    """A network with its input size, mean and std.

    Called with x, float32 (b, 3, S, S), already normalised, on any device; returns BatchFeatures in
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
        """The device that the network is on."""
        return next(self._model.parameters()).device

    @property
    def network(self) -> torch.nn.Module:
        """The module that computes the tokens, for those who train it."""
        return self._model

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> BatchFeatures:
        """Return the features of a batch; refuses any shape but (b, 3, S, S)."""
        return self.forward(x)

    def forward(self, x: Tensor) -> BatchFeatures:
        """Return the features of a batch, which gradients can be taken of."""
        size = self.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"x must be (b, 3, {size}, {size}). Got {tuple(x.shape)} instead.")
        dtype = next(self._model.parameters()).dtype
        with self._autocast():
            tokens: BlockTokens = self._model(x.to(self.device, dtype))
        norm = self._model.get_submodule("layernorm")
        blocks = tokens.blocks
        cls = torch.stack([norm(x[:, 0].to(dtype)) for x in blocks[-self.blocks :]], dim=1)
        # Token order: CLS, registers, patches row by row.
        first = 1 + self.architecture.registers
        last = tokens.last[:, first:].float()  # through the norm already
        patch = last
        if self.patch_blocks > 1:
            earlier = blocks[-self.patch_blocks : -1]
            normed = [norm(x[:, first:].to(dtype)).float() for x in earlier]
            patch = torch.stack([*normed, last], dim=1)
        grid = size // self.architecture.patch
        patch = patch.reshape(*patch.shape[:-2], grid, grid, -1)  # (b, h, w, d), or (b, l, h, w, d)
        return BatchFeatures(cls=cls.float(), mean=last.mean(dim=1), patch=patch)

    def _autocast(self) -> torch.autocast:
        # Disabled, and not left out, for float32: a caller's autocast must not reach the network.
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
    """Load a backbone by name (see `weights.find_weights`) for square images of one size.

    image_size: pixels, a multiple of the patch size; blocks, patch_blocks: CLS and patch tokens of
    the last l blocks; dtype: of the weights; precision: see Backbone; compiled: by torch.compile,
    at the first batch; treatment: see `pipeline.recipe.Treatment`.
    Raises WeightsError naming and counting missing, unexpected and misshapen keys.
    """
    if name in VOLUME_NETWORKS:
        raise ConfigError(f"{name} sees volumes and no slices: extract by a config that names it.")
    given = None if weights is None else str(weights)
    source = find_weights(name, given, treatment=treatment)
    model = _network_of(source, image_size).to(device=device, dtype=dtype)
    return Backbone(
        model, source.architecture, image_size, blocks, precision, patch_blocks, compiled
    )


def load_recipe_backbone(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    compiled: bool = False,
) -> Backbone:
    """Load the backbone of a recipe, sure that its weights are the ones that the recipe names.

    Raises WeightsError where the checkpoint holds others, by content, or is replaced meanwhile, and
    ConfigError where the network sees volumes and no slices.
    """
    if recipe.level != "slice":
        raise ConfigError(
            f"{recipe.architecture.name} sees whole volumes: it can be extracted and evaluated, "
            "and is neither tuned nor measured. Name a network of slices in backbone.name, and "
            "keep other outputs than volume."
        )
    return load_slice_network(recipe, checkpoint, device=device, compiled=compiled)


def load_slice_network(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    compiled: bool = False,
) -> Backbone:
    """Load a recipe's network of slices, whatever it is shown; see `load_recipe_backbone`."""
    model, architecture = _recipe_network(recipe, checkpoint, device)
    return Backbone(
        model,
        architecture,
        recipe.image_size,
        recipe.blocks,
        recipe.precision,
        recipe.patch.blocks,
        compiled,
    )


def _recipe_network(
    recipe: Recipe, checkpoint: Checkpoint, device: str | torch.device
) -> tuple[torch.nn.Module, Architecture]:
    """Return the network of a recipe on a device. Raises WeightsError."""
    treatment = recipe.architecture.treatment
    source = find_weights(checkpoint.name, checkpoint.weights, treatment=treatment)
    stamp = check_weights(source, checkpoint, recipe.weights)
    model = _network_of(source, recipe.image_size).to(device=device, dtype=torch.float32)
    # Checked again behind the read: what was loaded is what was there at both moments.
    if source.file is not None and stamp_of(source.file) != stamp:
        raise WeightsError(
            f"The weights {str(source.file)!r} changed while they were read. Run the same command "
            "again once nothing writes them any more."
        )
    return model, source.architecture


def load_volume_backbone(
    recipe: Recipe, checkpoint: Checkpoint, *, device: str | torch.device = "cpu"
) -> VolumeBackbone:
    """Load the 3D network of a recipe, as `load_recipe_backbone` does one of slices."""
    from pipeline.backbones.volume_networks import VolumeBackbone

    model, architecture = _recipe_network(recipe, checkpoint, device)
    return VolumeBackbone(model, architecture, recipe.precision)


def _network_of(source: WeightsSource, image_size: int) -> torch.nn.Module:
    """Return a network with its weights, on the CPU, not to be trained."""
    architecture = source.architecture
    if image_size % architecture.patch:
        raise ConfigError(
            f"image_size must be a multiple of {architecture.patch}. Got {image_size} instead."
        )
    maker = _maker_of(architecture)
    if source.file is None:
        model = maker.empty_network(architecture, image_size)
        _fill_randomly(model, source.seed or 0, family_of(architecture.family).is_grid)
    else:
        state = _read_tower(source.file, architecture, image_size)
        model = maker.loaded_network(architecture, image_size, state, source.file)
    if maker is not dinov2:
        model = maker.Tower(model, architecture)
    network: torch.nn.Module = model.eval().requires_grad_(False)
    return network


def _maker_of(architecture: Architecture) -> Any:
    """Return the module that makes networks of a family."""
    family = family_of(architecture.family)
    if family.is_written_out:
        return dinov2
    # Its library takes seconds to import, and DINOv2 needs it not.
    return importlib.import_module(family.maker)


def _read_tower(file: Path, architecture: Architecture, image_size: int) -> dict[str, Tensor]:
    """Return a file's state dict as its network takes it, for images of one size."""
    family = family_of(architecture.family)
    state = family.read_tensors(read_state(file), file)
    if family.positions is not None:
        table = state[family.positions]
        grid = image_size // architecture.patch
        match family.resampling:
            case "dinov2":
                antialias = architecture.registers > 0
                table = resample_positions(table, grid, antialias=antialias)
            case "transformers":
                table = resample_as_transformers(table, grid)
        state[family.positions] = table
    return state


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a weights file as a flat dict of tensors. Never unpickles code."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        with warnings.catch_warnings():  # a refusal follows, and it is said better below
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # weights_only: tensors and plain containers; anything else is refused, not run.
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
    # Training checkpoints nest: {"teacher": {"backbone.cls_token": ...}}.
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if key in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{str(file)!r} must hold a state dict: names and tensors.")
    return dict(content)


def _fill_randomly(model: torch.nn.Module, seed: int, is_grid: bool) -> None:
    """Make an untrained network from a seed: the same numbers on every machine."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # By name: the order in which a library registers its modules is no promise.
        for name, parameter in sorted(model.named_parameters()):
            _draw(name, parameter, generator, is_grid)


def _draw(name: str, parameter: Tensor, generator: torch.Generator, is_grid: bool) -> None:
    """Fill one parameter of an untrained network."""
    if parameter.ndim > 1:
        std = RANDOM_POSITION_STD if "position_embedding" in name else RANDOM_STD
        if parameter.ndim >= 4 and is_grid:
            std = parameter[0].numel() ** -0.5  # many layers and no norm that is fitted
        parameter.normal_(0.0, std, generator=generator)
    elif "lambda" in name:
        parameter.fill_(RANDOM_LAYER_SCALE)
    elif "bias" in name:
        parameter.zero_()
    else:
        parameter.fill_(1.0)
