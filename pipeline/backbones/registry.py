"""The folder of weights: what is known, what is here, and how a file comes in.

A file that comes in is loaded strictly first, gets its official name, and next to it its sha256 as
`sha256sum -c` reads it. On a closed cluster the folder (RADPROBE_WEIGHTS) is carried in as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import backbones
from pipeline.backbones.families import family_of
from pipeline.backbones.families.dinov2 import POSITIONS
from pipeline.backbones.models import COMPARATORS, Comparator
from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.backbones.weights import BACKBONES, Weights, find_weights, locate, weights_folder
from pipeline.recipe import Architecture
from stores._disk import file_sha256, writing
from stores.errors import WeightsError

LICENCE = "Apache-2.0"
# Of none of these files: what was fetched or added is known by its own sha256 from then on.
SHA256 = "not published"
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")


@dataclass(frozen=True)
class KnownBackbone:
    """One backbone: its shape, and the file of its weights, if there is one here.

    parameters: of a comparator, to three figures.
    """

    name: str
    dim: int
    depth: int
    registers: int
    parameters: int
    megabytes: int
    licence: str
    sha256: str
    url: str
    file: str | None


@dataclass(frozen=True)
class Checked:
    """What came of a file of weights: fault is empty where it loads and is what it was."""

    name: str
    file: str
    sha256: str
    fault: str


def known() -> list[KnownBackbone]:
    """Return every backbone by name, DINOv2's first, and where its weights are here."""
    rows: list[KnownBackbone] = []
    for name, published in BACKBONES.items():
        shape = published.architecture
        parameters = count_parameters(shape)
        rows.append(_known(name, shape, parameters, LICENCE, published.url))
    for name, comparator in COMPARATORS.items():
        shape = comparator.architecture
        parameters = round(comparator.millions * 1e6)
        rows.append(_known(name, shape, parameters, comparator.licence, _page(comparator)))
    for name, volume in VOLUME_NETWORKS.items():
        parameters = round(volume.millions * 1e6)
        rows.append(_known(name, volume.architecture, parameters, volume.licence, volume.page))
    return rows


def _known(
    name: str, shape: Architecture, parameters: int, licence: str, url: str
) -> KnownBackbone:
    try:
        file = find_weights(name, None, hub=False).file
    except WeightsError:
        file = None
    return KnownBackbone(
        name=name,
        dim=shape.dim,
        depth=shape.depth,
        registers=shape.registers,
        parameters=parameters,
        megabytes=round(parameters * 4 / 1e6),  # float32
        licence=licence,
        sha256=SHA256,
        url=url,
        file=None if file is None else str(file),
    )


def _page(comparator: Comparator) -> str:
    return f"https://huggingface.co/{comparator.repository}"


def count_parameters(shape: Architecture, grid: int = 37) -> int:
    """Return how many numbers an official file of this shape holds; grid: of its positions."""
    d = shape.dim
    # Patches (3 colours and a bias), positions with that of CLS, and CLS, mask and register tokens.
    embeddings = 3 * d * shape.patch**2 + d + d * (1 + grid * grid) + d * (2 + shape.registers)
    if shape.ffn == "mlp":
        hidden = shape.mlp_ratio * d
        ffn = 2 * d * hidden + hidden + d
    else:
        # SwiGLU's hidden width, a multiple of 8: SwiGLUFFNFused of facebookresearch/dinov2.
        hidden = (int(shape.mlp_ratio * d * 2 / 3) + 7) // 8 * 8
        ffn = 2 * hidden * (d + 1) + d * (hidden + 1)
    attention = 4 * d * (d + 1)  # query, key, value and projection
    norms = 4 * d  # two, with weight and bias
    scales = 2 * d
    return embeddings + shape.depth * (attention + ffn + norms + scales) + 2 * d


# --- in ----------------------------------------------------------------------------------------


def add(source: Path) -> Checked:
    """Take a file of weights into the folder, under the name of the backbone that it fits.

    Raises WeightsError where it fits none of BACKBONES, or another file stands in its place.
    """
    if not source.is_file():
        raise WeightsError(
            f"There is no weights file {str(source)!r}. Give a .pth or .safetensors file."
        )
    return _take_in(source, identify(source))


def _take_in(source: Path, name: str) -> Checked:
    """Copy a file that was loaded into the folder, under a backbone's official name."""
    folder = weights_folder()
    digest = file_sha256(source)
    safe = source.suffix == ".safetensors"
    target = folder / (f"{name}.safetensors" if safe else BACKBONES[name].file)
    if target.exists() and file_sha256(target) != digest:
        raise WeightsError(
            f"{str(target)!r} is there with another content: stores made by it know it by that. "
            "Move it away first, if the new file is meant to take its place."
        )
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            # Renamed into place: whoever looks for weights never sees a file that is half there.
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                os.replace(shutil.copyfile(source, Path(temporary) / target.name), target)
        _note(target).write_text(f"{digest}  {target.name}\n", encoding="ascii")
    return Checked(name, str(target), digest, "")


def identify(source: Path) -> str:
    """Return which backbone a file holds, after loading it strictly. Raises WeightsError."""
    from pipeline.backbones.load import read_state

    state = family_of("dinov2").read_tensors(read_state(source), source)
    dim, depth, registers = _shape(state)
    for name, published in BACKBONES.items():
        shape = published.architecture
        if (dim, depth, registers) == (shape.dim, shape.depth, shape.registers):
            # Strictly: a file with one tensor too few has the same three numbers.
            backbones.load_backbone(name, source, image_size=shape.patch)
            return name
    raise WeightsError(
        f"{str(source)!r} is of dim {dim}, depth {depth} and {registers} registers, which no known "
        f"backbone is ({', '.join(BACKBONES)}). A network of your own is named in the config: "
        "backbone.name: hf:<folder as Hugging Face saves it>."
    )


def _shape(state: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return dim, depth and registers of a state dict under Hugging Face names."""
    dim = int(state[POSITIONS].shape[-1])
    blocks = [int(match[1]) for key in state if (match := _BLOCK.match(key))]
    registers = state.get("embeddings.register_tokens")
    return dim, max(blocks, default=-1) + 1, 0 if registers is None else int(registers.shape[1])


def fetch(name: str, url: str | None = None) -> Checked:
    """Download a backbone's official file (or `url`, a mirror's) into the folder.

    Raises WeightsError where there is no such backbone, no network, or the file is another.
    """
    if name in COMPARATORS:
        return _fetch_from_hub(name, url)
    if name not in BACKBONES:
        names = ", ".join((*BACKBONES, *COMPARATORS))
        raise WeightsError(f"There is no backbone {name!r}. Known: {names}.")
    address = url or BACKBONES[name].url
    folder = weights_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / Path(address).name
        _download(address, file)
        # Before it is taken in: nothing of another network comes under an official name.
        fits = identify(file)
        if fits != name:
            raise WeightsError(f"{address} holds {fits}, not {name}; nothing was kept.")
        return _take_in(file, name)


def _download(address: str, file: Path) -> None:
    """Bring a file here. Raises WeightsError where it cannot be had."""
    try:
        with urllib.request.urlopen(address, timeout=60) as response, file.open("wb") as target:
            shutil.copyfileobj(response, target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise WeightsError(
            f"{address} cannot be fetched: {error}. On a machine with a network, download it "
            "there, carry the file here, and run `radprobe weights add FILE`."
        ) from None


def _fetch_from_hub(name: str, url: str | None) -> Checked:
    """Bring a comparator into Hugging Face's cache, and check that it loads."""
    if url is not None:
        raise WeightsError(
            f"{name} comes from {_page(COMPARATORS[name])} alone. Leave --from out; a folder of it "
            "that is here is named in the config: backbone.weights."
        )
    weights = locate(name, None)
    assert weights.file is not None
    digest = weights.identity.removeprefix("sha256:")
    fault = _fault(name, weights.file, digest)
    if fault:
        raise WeightsError(f"{str(weights.file)!r} is not {name}: {fault}")
    return Checked(name, str(weights.file), digest, "")


# --- checked -----------------------------------------------------------------------------------


def check(names: list[str]) -> Iterator[Checked]:
    """Yield for each backbone with weights here whether they load and are what was added.

    names: which must be here; none for all that are. Raises WeightsError for one that is not.
    """
    if names:
        # All of them first: one that is missing is told before minutes of loading.
        here: Iterable[Weights | None] = [locate(name, None, hub=False) for name in names]
    else:
        names = [*BACKBONES, *COMPARATORS]
        here = map(_located, names)
    for name, weights in zip(names, here, strict=True):
        if weights is not None and weights.file is not None:
            digest = weights.identity.removeprefix("sha256:")
            yield Checked(name, str(weights.file), digest, _fault(name, weights.file, digest))


def _located(name: str) -> Weights | None:
    """Return the weights of a backbone that are here, hashed; None where there are none."""
    try:
        return locate(name, None, hub=False)
    except WeightsError:
        return None


def _fault(name: str, file: Path, digest: str) -> str:
    """Say what is wrong with a file of weights; nothing where it loads and is what it was."""
    note = _note(file)
    if note.is_file():
        noted = note.read_text("ascii").split()[0]
        if noted != digest:
            return (
                f"its sha256 is {digest}, and was {noted} when it came here: fetch or add it anew"
            )
    try:
        # Loading is the test, at the size that costs least; SAM takes no other than its own.
        if name in BACKBONES:
            size = BACKBONES[name].architecture.patch
            backbones.load_backbone(name, file, image_size=size)
        else:
            size = COMPARATORS[name].image_size
            backbones.load_backbone(name, file, image_size=size, blocks=1)
    except WeightsError as error:
        return str(error)
    return ""


def _note(file: Path) -> Path:
    """Return the file that has the checksum with which a file came here."""
    return file.with_name(f"{file.name}.sha256")
