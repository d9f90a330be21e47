"""MedMNIST: one .npz a set, its images and labels as arrays of train, val and test.

The images are unpacked one by one, so that each is a file with a row of its own: a PNG, or a .npy
of a volume. Memory does not grow with the set.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.contracts import Contents, DataSet, Item
from pipeline.evaluation.splits import PARTS
from pipeline.io.formats.limits import as_unreadable, check_size
from stores.errors import ConfigError

CHEST = (
    "atelectasis",
    "cardiomegaly",
    "effusion",
    "infiltration",
    "mass",
    "nodule",
    "pneumonia",
    "pneumothorax",
    "consolidation",
    "edema",
    "emphysema",
    "fibrosis",
    "pleural",
    "hernia",
)
# Train, val, test, of the files as they have been since 2024 in every size (MedMNIST+).
PUBLISHED = {
    "pathmnist": (89_996, 10_004, 7_180),
    "chestmnist": (78_468, 11_219, 22_433),
    "dermamnist": (7_007, 1_003, 2_005),
    "octmnist": (97_477, 10_832, 1_000),
    "pneumoniamnist": (4_708, 524, 624),
    "retinamnist": (1_080, 120, 400),
    "breastmnist": (546, 78, 156),
    "bloodmnist": (11_959, 1_712, 3_421),
    "tissuemnist": (165_466, 23_640, 47_280),
    "organamnist": (34_561, 6_491, 17_778),
    "organcmnist": (12_975, 2_392, 8_216),
    "organsmnist": (13_932, 2_452, 8_827),
    "organmnist3d": (971, 161, 610),
    "nodulemnist3d": (1_158, 165, 310),
    "adrenalmnist3d": (1_188, 98, 298),
    "fracturemnist3d": (1_027, 103, 240),
    "vesselmnist3d": (1_335, 191, 382),
    "synapsemnist3d": (1_230, 177, 352),
}
# Until then the organ sets had copies of a few images, which were dropped.
WITH_COPIES = {
    "organamnist": (34_581, 6_491, 17_778),
    "organcmnist": (13_000, 2_392, 8_268),
    "organsmnist": (13_940, 2_452, 8_829),
}


def _find(folder: Path, out: Path) -> Contents:
    path = _archive(folder)
    name = path.stem.partition("_")[0]
    items: list[Item] = []
    try:
        for part in PARTS:
            items += _unpacked(path, part, out / "images")
    except Exception as error:
        known = as_unreadable(error, "unpacking")
        raise ConfigError(f"{path} is no archive of MedMNIST: {known.detail}.") from error
    by_part = Counter(item.part for item in items)
    counts = {f"{part} images": by_part[part] for part in PARTS}
    has_copies = tuple(counts.values()) == WITH_COPIES.get(name)
    given = (WITH_COPIES if has_copies else PUBLISHED).get(name)
    published = {} if given is None else dict(zip(counts, given, strict=True))
    columns = list(items[0].labels)
    volumes = items[0].path.endswith(".npy")
    task = {"labels": columns} | ({"level": "series"} if volumes else {})
    notes = [
        f"the images are unpacked under {out / 'images'}",
        "the set names no patients: each image counts as its own",
    ]
    if has_copies:
        notes.append("the file is of before 2024, with copies of a few images that were dropped")
    if given is None:
        notes.append(f"no published counts of {name!r} are known here")
    return Contents(
        out / "images", items, counts, published=published, tasks={name: task}, notes=notes
    )


def _archive(folder: Path) -> Path:
    archives = [folder] if folder.is_file() else sorted(folder.glob("*mnist*.npz"))
    if len(archives) != 1:
        raise ConfigError(
            f"{str(folder)!r} must be an .npz of MedMNIST, or a folder of one. Got {len(archives)} "
            f"({', '.join(path.name for path in archives[:3])}); name one file."
        )
    return archives[0]


def _unpacked(path: Path, part: Any, into: Path) -> Iterator[Item]:
    """Write the images of a part; yield each with its labels."""
    images = _rows(path, f"{part}_images")
    for i, (image, values) in enumerate(zip(images, _labels(path, part), strict=True)):
        name = f"{part}/{i:06d}{'.npy' if _is_volume(image) else '.png'}"
        _write(image, into / name)
        yield Item(name, f"{part} {i}", part, labels=values)


def _labels(path: Path, part: str) -> Iterator[dict[str, str]]:
    """Yield the labels of each image by column: one class, or findings."""
    for row in _rows(path, f"{part}_labels"):
        values = [str(value) for value in row.ravel().tolist()]
        yield dict(zip(_label_names(len(values)), values, strict=True))


def _label_names(count: int) -> Sequence[str]:
    """Return the columns of so many labels: a set has one class an image, or several findings."""
    if count == 1:
        return ["label"]
    if count == len(CHEST):
        return CHEST
    return [f"label {j}" for j in range(count)]


def _is_volume(image: NDArray[Any]) -> bool:
    return image.ndim == 3 and image.shape[-1] != 3


def _write(image: NDArray[Any], into: Path) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    if _is_volume(image):
        np.save(into, image)
    else:
        Image.fromarray(image).save(into)


def _rows(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """Yield the rows of one array of an .npz, read one after the other; nothing is unpickled."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        # The header by NumPy, the values row by row: `np.load` would take all of them at once.
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.kind not in "iufb" or len(shape) < 1:
            raise ValueError("an array in an order or of a type that the set does not have")
        inside = [int(size) for size in shape[1:]]
        row_bytes = math.prod(inside) * dtype.itemsize
        check_size(1, max(row_bytes, 1), 1, 1, 0, coded=False)  # a header may declare anything
        for _ in range(shape[0]):
            data = file.read(row_bytes)
            if len(data) < row_bytes:
                raise EOFError("the array ends early")
            yield np.frombuffer(data, dtype).reshape(inside)


MEDMNIST = DataSet(
    title="MedMNIST",
    source="medmnist.com",
    layout="pneumoniamnist.npz, or chestmnist_224.npz, ...: {train,val,test}_{images,labels}",
    find=_find,
    # Pictures, not HU: taken by minimum and maximum.
    data={"modality": {"**": "OT"}},
)
