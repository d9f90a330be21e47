"""Crops round the regions of a store, written as a collection of their own, to be embedded.

OUT/images/<modality>/<patient>/<row>-<structure>-<coverage>.npy    pixels as read, such as HU
OUT/crops.yaml                                                      the config that embeds them

A crop is the square round a structure in all slices of its volume, and a margin, as far as the
image goes. A name tells what the structure covers: of a mask that changed there is no crop until
they are written again, and one that did not change stays as it is, with its features.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from pipeline.annotations.regions import Regions, crop_file, region_name
from pipeline.config.data import Data
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.io.decode import read_slices
from pipeline.segmentation.region_sources import Rectangle, RegionSource, region_source
from pipeline.segmentation.regions import gather
from pipeline.shared.globs import Globs
from pipeline.shared.paths import collection_file
from pipeline.shared.pseudonyms import Names
from pipeline.types import Slice
from stores.contents import SLICES
from stores.errors import ConfigError, CorruptStoreError
from stores.features import FeatureStore
from stores.inside import is_store_name
from stores.leaving import leaving
from stores.slices import SliceRow, slice_rows

IMAGES = "images"
CONFIG = "crops.yaml"


@dataclass(frozen=True)
class WrittenCrops:
    """How many crops a folder has, how many of them are new, and the images that were lost.

    faults: the masks, or boxes, that cannot be used, in sentences.
    """

    config: Path
    crops: int
    new: int
    lost: tuple[str, ...]
    faults: tuple[str, ...]


def write_crops(config: Config, name: str, out: Path, margin_mm: float) -> WrittenCrops:
    """Write the crops of all regions of some masks or boxes, and the config that embeds them.

    Crops of structures that are gone, or cover something else by now, are removed. Of slices
    without spacing the margin is in pixels. Raises as `gather` does, and ConfigError for a name
    that the config does not have, or has twice, and for a folder that is for other images.
    """
    if (name in config.masks) == (name in config.boxes):
        raise ConfigError(
            f"Crops are of masks or boxes of the config, by a name that one of both has. Got "
            f"{name!r} instead; there are {', '.join([*config.masks, *config.boxes]) or 'none'}."
        )
    _check_folder(config, out)
    kind = "masks" if name in config.masks else "boxes"
    choice = RegionChoice.model_validate({kind: name})
    store = FeatureStore.open(config.store)
    with leaving(store) as written:
        written.append(out / IMAGES)
        faults = tuple(gather(config, store, choice).fault_lines())
        return _write_all(config, store, choice, out, margin_mm, faults)


def _check_folder(config: Config, out: Path) -> None:
    """Raise ConfigError where crops would lie among other images: old ones are removed from there.

    Nor may the collection that they are of find them as images of its own.
    """
    images = (out / IMAGES).resolve()
    if not (out / CONFIG).is_file() and images.is_dir() and any(images.iterdir()):
        raise ConfigError(
            f"{str(images)!r} holds files and no {CONFIG} stands beside it, so that they are no "
            "crops. Name a folder that is empty, or not there."
        )
    data = config.data
    for name, root in (data.roots or {"": data.root}).items():
        folder = root.resolve()
        if folder.is_relative_to(images) or _takes(data, name, folder, images):
            raise ConfigError(
                f"Crops in {str(out)!r} would be images of the collection in {str(root)!r}. Name a "
                "folder outside of it."
            )


def _takes(data: Data, name: str, root: Path, images: Path) -> bool:
    """Return whether what lies in a folder is of the collection. name: of one of several roots."""
    if not images.is_relative_to(root):
        return False
    crop = (name / images.relative_to(root) / "modality" / "patient" / "crop.npy").as_posix()
    return Globs(data.include).any(crop) and not Globs(data.exclude).any(crop)


def _write_all(
    config: Config,
    store: FeatureStore,
    choice: RegionChoice,
    out: Path,
    margin_mm: float,
    faults: tuple[str, ...],
) -> WrittenCrops:
    """Write the crops of the regions on file; see `write_crops`."""
    regions = Regions.of(config, store, choice)
    source = region_source(config, store, choice)
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    rows = {row.row: row for row in slice_rows(slices)}
    pieces = [piece for piece in regions.index.to_pylist() if piece["weight"]]
    boxes = _boxes(source, pieces)
    kept: dict[Path, None] = {}
    lost = []
    new = 0
    _write_config(config, out, slices)  # first: it says that what lies beside it are crops
    for row, of_slice in _by_row(pieces):
        pixels = _pixels(config, rows[row])
        if pixels is None:
            lost.append(f"row {row}")
            continue
        for piece in of_slice:
            box = boxes[_region(piece)]
            path = out / IMAGES / _place(rows[row], piece)
            kept[path] = None
            new += _write(path, _cut(pixels, box, rows[row], margin_mm))
    for path in (out / IMAGES).rglob("*.npy"):
        if path not in kept:
            path.unlink()
    return WrittenCrops(out / CONFIG, len(kept), new, tuple(lost), faults)


def _by_row(pieces: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield each slice's pieces: it is read once."""
    of_row: dict[int, list[dict[str, Any]]] = {}
    for piece in pieces:
        of_row.setdefault(piece["row"], []).append(piece)
    yield from of_row.items()


def _region(piece: dict[str, Any]) -> str:
    return region_name(piece["whole"], piece["structure"], piece["box"])


def _boxes(source: RegionSource, pieces: list[dict[str, Any]]) -> dict[str, Rectangle]:
    """Return the box of each region, over all slices that it is in."""
    boxes: dict[str, Rectangle] = {}
    for piece in pieces:
        one = source.rectangle(piece["row"], piece["structure"], piece["box"])
        other = boxes.get(_region(piece), one)
        boxes[_region(piece)] = (
            min(one[0], other[0]),
            max(one[1], other[1]),
            min(one[2], other[2]),
            max(one[3], other[3]),
        )
    return boxes


def _pixels(config: Config, row: SliceRow) -> NDArray[np.float32] | None:
    """Return the pixels (H, W) of a slice; None where its file cannot be read any more."""
    path = collection_file(config.data.root, row.path)
    item = next(iter(read_slices(path, [row.frame], config.preprocess.plane)))
    if not isinstance(item, Slice):
        return None
    pixels = item.pixels.astype(np.float32)
    # Padding is as dark as what is darkest: a crop has no place for what is none.
    return np.nan_to_num(pixels, nan=float(np.nanmin(pixels)))


def _cut(
    pixels: NDArray[np.float32], box: Rectangle, row: SliceRow, margin_mm: float
) -> NDArray[np.float32]:
    """Return the square round a box and a margin, as far as the image goes."""
    top, bottom, left, right = box
    margins = [margin_mm / (mm or 1.0) for mm in (row.spacing_y_mm, row.spacing_x_mm)]
    height = bottom - top + 2 * margins[0]
    width = right - left + 2 * margins[1]
    side = int(np.ceil(max(height, width)))
    first_y, last_y = _within((top + bottom) / 2, side, pixels.shape[0])
    first_x, last_x = _within((left + right) / 2, side, pixels.shape[1])
    return np.ascontiguousarray(pixels[first_y:last_y, first_x:last_x])


def _within(middle: float, side: int, length: int) -> tuple[int, int]:
    """Return the ends of a side round a middle, moved so that it lies within a length."""
    first = int(np.clip(round(middle - side / 2), 0, max(0, length - side)))
    return first, min(first + side, length)


def _place(row: SliceRow, piece: dict[str, Any]) -> Path:
    """Return where a crop lies in the folder. Raises CorruptStoreError where that leads out of it.

    Modality and patient stand in the slice table, which may be of a stranger.
    """
    patient = row.patient or "none"
    file = crop_file(row.row, piece["structure"], piece["coverage"])
    place = Path(row.modality) / patient / file
    if not is_store_name(place.as_posix()):
        raise CorruptStoreError(
            f"Row {row.row} of {SLICES} has a modality or patient that cannot name a folder. It "
            "was altered, or made to harm: take the store from where it came, again."
        )
    return place


def _write(path: Path, pixels: NDArray[np.float32]) -> bool:
    """Write an array, and return whether it is another than is there: files that stay are known."""
    sink = io.BytesIO()
    np.save(sink, pixels, allow_pickle=False)
    if path.is_file() and path.read_bytes() == sink.getvalue():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sink.getvalue())
    return True


def _write_config(config: Config, out: Path, slices: pa.Table) -> None:
    """Write the config that embeds the crops; one that is there stays, whoever changed it."""
    if (out / CONFIG).is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    modalities = sorted({name for name in slices["modality"].to_pylist() if name})
    preprocess = config.preprocess.model_dump(mode="json", exclude_defaults=True)
    preprocess |= {"crop": "region", "aspect": "pad"}
    settings = {
        "data": {
            "root": IMAGES,
            "modality": {f"{name}/**": name for name in modalities},
            "patient": "^[^/]+/([^/]+)/",
        },
        "backbone": config.backbone.model_dump(mode="json", exclude_defaults=True),
        "preprocess": preprocess,
        # As many blocks as the network of the config has: more may be than it is deep.
        "outputs": config.outputs.model_dump(mode="json", include={"blocks"}),
        "store": "store",
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    (out / CONFIG).write_text(f"# Crops round regions. `radprobe extract {CONFIG}`\n{text}")
