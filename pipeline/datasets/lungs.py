"""Montgomery and Shenzhen: chest X-rays with lung masks; the file's name says tuberculosis."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.contracts import Contents, DataSet, Item, Systematic, below, files_of
from pipeline.io.decode import read_headers
from stores.errors import ConfigError

# The values of both lungs in a mask.
LEFT = 1
RIGHT = 2


def _find_montgomery(folder: Path, out: Path) -> Contents:
    root = below(folder, "CXR_png", "ManualMask")
    items = []
    overlapping = 0
    for path in files_of(root / "CXR_png", "*.png"):
        left = root / "ManualMask" / "leftMask" / path.name
        right = root / "ManualMask" / "rightMask" / path.name
        mask = path.name if left.is_file() and right.is_file() else ""
        if mask:
            overlapping += _merge(left, right, out / "masks" / mask)
        items.append(_item(f"CXR_png/{path.name}", path.stem, mask))
    notes = [f"the masks of both lungs of an image are put together under {out / 'masks'}"]
    if overlapping:
        notes.append(f"{overlapping} pairs of masks overlap: the left one counts there")
    return Contents(root, items, _counts(items), masks=out / "masks", notes=notes)


def _merge(left: Path, right: Path, into: Path) -> bool:
    """Write one mask of two; return whether they overlap."""
    in_left = _marked(left)
    in_right = _marked(right)
    if in_left.shape != in_right.shape:
        raise ConfigError(
            f"{left} is {in_left.shape}, {right} is {in_right.shape}: they must be one size."
        )
    values = np.where(in_left, LEFT, np.where(in_right, RIGHT, 0)).astype(np.uint8)
    into.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(into)
    return bool((in_left & in_right).any())


def _marked(path: Path) -> NDArray[np.bool_]:
    """Return which pixels of a mask (H, W) are set."""
    read_headers(path)  # a file of too many pixels is refused before it is decoded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=("PNG",)) as image:
            values: NDArray[Any] = np.asarray(image.convert("L"))
    return np.asarray(values > 0)


def _find_shenzhen(folder: Path, out: Path) -> Contents:
    root = below(folder, "CXR_png")
    # The archive's own name, the other that is met, and the archive unpacked into its own name.
    masks: dict[str, Path] = {}
    for name in ("mask", "masks", "mask/mask"):
        masks |= {path.name: path for path in files_of(root / name, "*_mask.png")}
    items = []
    for path in files_of(root / "CXR_png", "*.png"):
        mask_file = masks.get(f"{path.stem}_mask.png")
        mask = mask_file.relative_to(root).as_posix() if mask_file else ""
        items.append(_item(f"CXR_png/{path.name}", path.stem, mask))
    notes = [] if masks else ["no masks are there: put the set's mask/ beside CXR_png"]
    return Contents(root, items, _counts(items), notes=notes)


def _item(path: str, stem: str, mask: str) -> Item:
    """Return an image by its name, such as MCUCXR_0001_0: 1 at the end is tuberculosis."""
    return Item(path, stem, mask=mask, labels={"tuberculosis": stem.rpartition("_")[2]})


def _counts(items: list[Item]) -> dict[str, int]:
    return {
        "images": len(items),
        "with tuberculosis": sum(item.labels["tuberculosis"] == "1" for item in items),
        "masks": sum(bool(item.mask) for item in items),
    }


_TASKS = {"tuberculosis": {"labels": ["tuberculosis"]}}
_DATA = {"include": ["CXR_png/*.png"], "modality": {"**": "DX"}}
MONTGOMERY = DataSet(
    title="Montgomery County",
    source="lhncbc.nlm.nih.gov, Tuberculosis Chest X-ray Image Data Sets",
    layout="MontgomerySet: CXR_png/*.png, ManualMask/leftMask/*.png, ManualMask/rightMask/*.png",
    find=_find_montgomery,
    data=_DATA,
    published={"images": 138, "with tuberculosis": 58, "masks": 138},
    tasks=_TASKS,
    values={LEFT: "left lung", RIGHT: "right lung"},
    unverified="that each image is of another patient",
    paper_split=Systematic(3, 4),
)
SHENZHEN = DataSet(
    title="Shenzhen",
    source="lhncbc.nlm.nih.gov, Tuberculosis Chest X-ray Image Data Sets; masks by Stirenko et al.",
    layout="ChinaSet_AllFiles: CXR_png/*.png; mask/*_mask.png beside it",
    find=_find_shenzhen,
    data=_DATA,
    published={"images": 662, "with tuberculosis": 336, "masks": 566},
    tasks=_TASKS,
    values="lung",
    unverified="that each image is of another patient",
    paper_split=Systematic(5, 5),
)
