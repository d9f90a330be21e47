"""The folder of weights: what is known, what is here, and how a file comes in.

A file that comes in is loaded strictly first, gets its official name, and beside it its sha256 as
`sha256sum -c` reads it. On a closed cluster the folder (RADPROBE_WEIGHTS) is carried in as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones.models import COMPARATORS, Comparator
from pipeline.backbones.weights import BACKBONES, Weights, locate, weights_folder
from pipeline.recipe import Architecture
from stores._disk import writing
from stores.errors import WeightsError

LICENCE = "Apache-2.0"
# Of none of these files: what was fetched or added is known by its own sha256 from then on.
SHA256 = "not published"
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")


@dataclass(frozen=True)
class Known:
    """One backbone: its shape, and the file that was found here, if any.

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


def known() -> list[Known]:
    """Return every backbone by name, DINOv2's first, and where its weights are here."""
    own = {
        name: (each.architecture, count_parameters(each.architecture), LICENCE, each.url)
        for name, each in BACKBONES.items()
    }
    others = {
        name: (each.architecture, round(each.millions * 1e6), each.licence, _page(each))
        for name, each in COMPARATORS.items()
    }
    return [_known(name, *about) for name, about in (own | others).items()]


def _known(name: str, shape: Architecture, parameters: int, licence: str, url: str) -> Known:
    here = _here(name)
    return Known(
        name=name,
        dim=shape.dim,
        depth=shape.depth,
        registers=shape.registers,
        parameters=parameters,
        megabytes=round(parameters * 4 / 1e6),  # float32
        licence=licence,
        sha256=SHA256,
        url=url,
        file=None if here is None else str(here.file),
    )


def _page(comparator: Comparator) -> str:
    return f"https://huggingface.co/{comparator.repository}"


def count_parameters(shape: Architecture, grid: int = 37) -> int:
    """Return how many numbers an official file of this shape holds; grid: of its positions."""
    d = shape.dim
    embeddings = 3 * d * shape.patch**2 + d + d * (1 + grid * grid) + d * (2 + shape.registers)
    if shape.ffn == "mlp":
        hidden = shape.mlp_ratio * d
        ffn = 2 * d * hidden + hidden + d
    else:
        hidden = (int(shape.mlp_ratio * d * 2 / 3) + 7) // 8 * 8
        ffn = 2 * hidden * (d + 1) + d * (hidden + 1)
    attention, norms, scales = 4 * d * (d + 1), 4 * d, 2 * d
    return embeddings + shape.depth * (attention + ffn + norms + scales) + 2 * d


def _here(name: str) -> Weights | None:
    try:
        return locate(name, None, hub=False)
    except WeightsError:
        return None


def add(source: Path) -> Checked:
    """Take a file of weights into the folder, under the name of the backbone that it fits.

    Raises WeightsError where it fits none of BACKBONES, or another file stands in its place.
    """
    if not source.is_file():
        raise WeightsError(
            f"There is no weights file {str(source)!r}. Give a .pth or .safetensors file."
        )
    name = identify(source)
    folder, digest = weights_folder(), _sha256(source)
    safe = source.suffix == ".safetensors"
    target = folder / (f"{name}.safetensors" if safe else BACKBONES[name].file)
    _refuse_other(target, digest)
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                os.replace(shutil.copyfile(source, Path(aside) / target.name), target)
        _note(target).write_text(f"{digest}  {target.name}\n", encoding="ascii")
    return Checked(name, str(target), digest, "")


def _refuse_other(target: Path, digest: str) -> None:
    if target.exists() and _sha256(target) != digest:
        raise WeightsError(
            f"{str(target)!r} is there with another content: stores made by it know it by that. "
            "Move it away first, if the new file is meant to take its place."
        )


def identify(source: Path) -> str:
    """Return which backbone a file holds, after loading it strictly. Raises WeightsError."""
    from pipeline.backbones.load import hub_state, load_backbone, read_state

    shape = _shape(hub_state(read_state(source), source))
    for name, published in BACKBONES.items():
        a = published.architecture
        if shape == (a.dim, a.depth, a.registers):
            load_backbone(name, source, image_size=a.patch)
            return name
    dim, depth, registers = shape
    raise WeightsError(
        f"{str(source)!r} is of dim {dim}, depth {depth} and {registers} registers, which no known "
        f"backbone is ({', '.join(BACKBONES)}). A network of your own is named in the config: "
        "backbone.name: hf:<folder as Hugging Face saves it>."
    )


def _shape(state: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return dim, depth and registers of a state dict under Hugging Face names."""
    dim = int(state["embeddings.position_embeddings"].shape[-1])
    blocks = [int(found[1]) for key in state if (found := _BLOCK.match(key))]
    registers = state.get("embeddings.register_tokens")
    return dim, max(blocks, default=-1) + 1, 0 if registers is None else int(registers.shape[1])


def fetch(name: str, url: str | None = None) -> Checked:
    """Download a backbone's official file (or `url`, a mirror's) into the folder.

    Raises WeightsError where there is no such backbone, no network, or the file is another.
    """
    if name in COMPARATORS:
        return _fetch_from_hub(name, url)
    if name not in BACKBONES:
        known = ", ".join((*BACKBONES, *COMPARATORS))
        raise WeightsError(f"There is no backbone {name!r}. Known: {known}.")
    address, folder = url or BACKBONES[name].url, weights_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        file = Path(aside) / Path(address).name
        try:
            with urllib.request.urlopen(address, timeout=60) as answer, file.open("wb") as into:
                shutil.copyfileobj(answer, into)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise WeightsError(
                f"{address} cannot be fetched: {error}. On a machine with a network, download it "
                "there, carry the file here, and run `radprobe weights add FILE`."
            ) from None
        held = identify(file)
        if held != name:
            raise WeightsError(f"{address} holds {held}, not {name}; nothing was kept.")
        return add(file)


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


def check(names: list[str]) -> Iterator[Checked]:
    """Yield for each backbone with weights here whether they load and are what was added.

    names: which must be here; none for all that are. Raises WeightsError for one that is not.
    """
    every = names or [*BACKBONES, *COMPARATORS]
    found = [locate(n, None, hub=False) for n in names] if names else map(_here, every)
    for name, weights in zip(every, found, strict=True):
        if weights is not None and weights.file is not None:
            digest = weights.identity.removeprefix("sha256:")
            yield Checked(name, str(weights.file), digest, _fault(name, weights.file, digest))


def _fault(name: str, file: Path, digest: str) -> str:
    note = _note(file)
    if note.is_file() and (was := note.read_text("ascii").split()[0]) != digest:
        return f"its sha256 is {digest}, and was {was} when it came here: fetch or add it anew"
    from pipeline.backbones.load import load_backbone

    try:
        if name in BACKBONES:
            load_backbone(name, file, image_size=BACKBONES[name].architecture.patch)
        else:
            load_backbone(name, file, image_size=COMPARATORS[name].image_size, blocks=1)
    except WeightsError as error:
        return str(error)
    return ""


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
