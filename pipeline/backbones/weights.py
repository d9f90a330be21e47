"""Names of backbones, where their weights are, and which weights those are.

Torch-free, so that a run with nothing to embed never pays for importing it. The order of search:
the path in the config, radprobe's folder (RADPROBE_WEIGHTS), torch.hub's cache, Hugging Face's
cache, Hugging Face's hub. Nothing falls back to anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.backbones.models import (
    COMPARATORS,
    FAMILIES,
    Comparator,
    knows_of_timm,
    read_shape,
    read_timm_shape,
)
from pipeline.recipe import Architecture, Treatment
from stores.errors import WeightsError

# In a safetensors file's metadata: the random weights that a network was tuned from.
BEGAN = "radprobe_began"
SAFETENSORS = "model.safetensors"  # in a folder as Hugging Face saves it
HUB_FILES = ("config.json", "preprocessor_config.json", SAFETENSORS)
# What else a folder may hold weights as; the last is open_clip's.
BINARIES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """A published backbone: its shape, its official file and its Hugging Face repository."""

    architecture: Architecture
    file: str
    repository: str

    @property
    def url(self) -> str:
        """Return where the official file is published."""
        folder = self.file.replace("_reg4", "").removesuffix("_pretrain.pth")
        return f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{self.file}"


def _dinov2(letter: str, size: str, registers: int, **shape: Any) -> Published:
    file = f"dinov2_vit{letter}14{'_reg4' if registers else ''}_pretrain.pth"
    repository = f"facebook/dinov2-{'with-registers-' if registers else ''}{size}"
    return Published(Architecture(registers=registers, **shape), file, repository)


_SHAPES: dict[tuple[str, str], dict[str, Any]] = {
    ("s", "small"): {"dim": 384, "depth": 12, "heads": 6},
    ("b", "base"): {"dim": 768, "depth": 12, "heads": 12},
    ("l", "large"): {"dim": 1024, "depth": 24, "heads": 16},
    ("g", "giant"): {"dim": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}
BACKBONES: dict[str, Published] = {
    f"dinov2_vit{letter}14{suffix}": _dinov2(letter, size, registers, **shape)
    for (letter, size), shape in _SHAPES.items()
    for suffix, registers in (("", 0), ("_reg", 4))
}


@dataclass(frozen=True)
class Weights:
    """Weights that were found: their file (None for random), their identity, their network."""

    file: Path | None
    identity: str
    architecture: Architecture


def locate(
    name: str, weights: str | None, *, hub: bool = True, treatment: Treatment = "own"
) -> Weights:
    """Find a backbone's weights and say which they are, without loading them.

    name: one of BACKBONES or COMPARATORS, `hf:<folder or owner/name>`, or `timm:<name>`, which is
    hf:timm/<name>. weights: a file or Hugging Face folder, or `random:<seed>`, or None to search
    caches and, with `hub`, Hugging Face.
    treatment: see `pipeline.recipe.Treatment`.
    Raises WeightsError with the ways to get them.
    """
    found = _found(name, weights, hub=hub)
    if treatment == "own":
        return found
    plain = Architecture.model_fields
    change = {name: plain[name].default for name in ("mean", "std")} | {"treatment": treatment}
    return replace(found, architecture=found.architecture.model_copy(update=change))


def _found(name: str, weights: str | None, *, hub: bool) -> Weights:
    name = re.sub("^timm:", "hf:timm/", name)
    if name.startswith("hf:"):
        folder = _hub_folder(name.removeprefix("hf:"), hub=hub)
        architecture = _read_architecture(folder)
        if weights is not None and weights.startswith("random:"):
            return _random(weights, architecture)
        named = folder if weights is None else Path(weights)
        return _identified(_in_folder(named) if named.is_dir() else named, architecture)
    published = BACKBONES.get(name) or COMPARATORS.get(name)
    if published is None:
        raise WeightsError(
            f"There is no backbone {name!r}. Known: {', '.join((*BACKBONES, *COMPARATORS))}, "
            "hf:<folder or owner/name>, timm:<name>."
        )
    if weights is not None and weights.startswith("random:"):
        return _random(weights, published.architecture)
    if weights is None:
        return _identified(_search(name, published, hub=hub), published.architecture)
    path = Path(weights)
    return _identified(_in_folder(path) if path.is_dir() else path, published.architecture)


def _random(weights: str, architecture: Architecture) -> Weights:
    seed = weights.removeprefix("random:")
    if not seed.isdigit():
        raise WeightsError(
            f"Random weights are asked for as random:<seed>. Got {weights!r} instead."
        )
    return Weights(None, f"random:{int(seed)}", architecture)


def _identified(file: Path, architecture: Architecture) -> Weights:
    if not file.is_file():
        raise WeightsError(f"There is no weights file {str(file)!r}. Check backbone.weights.")
    return Weights(file, identity_of(file), architecture)


def identity_of(file: Path) -> str:
    """Return what a `Recipe` calls the weights in a file: by content, and random where they began.

    Raises WeightsError for a damaged safetensors file.
    """
    with file.open("rb") as stream:
        identity = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    if file.suffix != ".safetensors":
        return identity
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as content:
            began = (content.metadata() or {}).get(BEGAN, "")
    except SafetensorError as error:
        raise WeightsError(f"{str(file)!r} is no safetensors file ({error}).") from None
    return f"{began}+{identity}" if re.fullmatch(r"random:\d+", began) else identity


def _in_folder(folder: Path) -> Path:
    for name in (SAFETENSORS, *BINARIES):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"The folder {str(folder)!r} holds no model.safetensors or pytorch_model.bin. "
        "Name a weights file, or a folder as Hugging Face saves it."
    )


def weights_folder() -> Path:
    """Return radprobe's own folder of weights, there or not."""
    return Path(os.environ.get("RADPROBE_WEIGHTS", Path.home() / ".cache/radprobe/weights"))


def _search(name: str, published: Published | Comparator, *, hub: bool) -> Path:
    if isinstance(published, Comparator):
        return _search_hub(name, published, hub=hub)
    own = weights_folder()
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache/torch"))
    added = own / f"{name}.safetensors"
    for file in (own / published.file, added, torch_home / "hub/checkpoints" / published.file):
        if file.is_file():
            return file
    try:
        return _in_folder(_hub_folder(published.repository, hub=hub))
    except WeightsError as error:
        raise WeightsError(
            f"The weights of {name} are not here. {error} Three ways to get them:\n"
            f"  1. download {published.url}\n"
            "     and set backbone.weights to the file in the config;\n"
            f"  2. or `radprobe weights add` the file: it goes into {own} (RADPROBE_WEIGHTS);\n"
            f"  3. on a machine with a network: huggingface-cli download {published.repository}, "
            "then copy ~/.cache/huggingface here."
        ) from None


def _search_hub(name: str, comparator: Comparator, *, hub: bool) -> Path:
    repository = comparator.repository
    try:
        folder = _hub_folder(repository, hub=hub, files=(*HUB_FILES, *BINARIES))
        return _in_folder(folder)
    except WeightsError as error:
        raise WeightsError(
            f"The weights of {name} are not here. {error} Two ways to get them:\n"
            "  1. set backbone.weights to a folder or file of them in the config;\n"
            f"  2. on a machine with a network: huggingface-cli download {repository}, "
            "then copy ~/.cache/huggingface here."
        ) from None


def _hub_folder(repository: str, *, hub: bool, files: Sequence[str] = HUB_FILES) -> Path:
    """Return a local folder, or the cached or downloaded snapshot of a Hugging Face repository."""
    if Path(repository).expanduser().is_dir():
        return Path(repository).expanduser()
    # Imported late: it costs a quarter of a second that no other way pays.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for local_only in (True, False) if hub else (True,):
        try:
            return Path(
                snapshot_download(
                    repository, allow_patterns=list(files), local_files_only=local_only
                )
            )
        except HFValidationError:
            raise WeightsError(
                f"{repository!r} is neither a folder nor the name of a Hugging Face repository."
            ) from None
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = str(error).splitlines()[0]
    where = "cache, and the hub did not give it" if hub else "cache"
    raise WeightsError(f"{repository!r} is not in the Hugging Face {where} ({reason}).")


def _read_architecture(folder: Path) -> Architecture:
    """Read the shape from a Hugging Face folder's config.json (and mean and std beside it)."""
    file = folder / "config.json"
    config = _read_json(file)
    read = _reader(file, config)
    try:
        shape = read(config)
    except KeyError as error:
        raise WeightsError(f"{file} does not say {error}.") from None
    if (folder / "preprocessor_config.json").is_file():
        image = _read_json(folder / "preprocessor_config.json")
        shape |= {"mean": tuple(image["image_mean"]), "std": tuple(image["image_std"])}
    return Architecture(**shape)


def _reader(file: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what reads a shape from a config of its kind. Raises WeightsError for another."""
    if "pretrained_cfg" in config:
        name = str(config.get("architecture"))
        if not knows_of_timm(name):
            raise WeightsError(
                f"{file}: of timm's networks, vit_<size>_patch<p>_<side>, densenet, resnet and vgg "
                f"are known. Got {name!r} instead."
            )
        return read_timm_shape
    kind = config.get("model_type")
    own = (family for family in FAMILIES if family != "timm_wrapper")
    known = ("dinov2", "dinov2_with_registers", *own, "clip_vision_model")
    if kind not in known:
        raise WeightsError(
            f"{file}: model_type must be one of {', '.join(known)}. Got {kind!r} instead."
        )
    return _dinov2_shape if str(kind).startswith("dinov2") else read_shape


def _dinov2_shape(config: dict[str, Any]) -> dict[str, Any]:
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error}.") from None
