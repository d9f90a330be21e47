"""Where the network's input lies in a slice of a collection."""

from __future__ import annotations

from pathlib import Path

from pipeline.io.decode import read_slices
from pipeline.preprocessing.content import body_box
from pipeline.recipe import Preprocess
from pipeline.segmentation.geometry import Placement, shown
from pipeline.shared.paths import collection_file
from pipeline.types import Slice
from stores.errors import UnreadableError
from stores.slices import SliceRow


def placement_of(row: SliceRow, root: Path, preprocess: Preprocess) -> Placement:
    """Return where the input lies in a slice, whose real path is under root.

    Raises UnreadableError where its image must be looked at and cannot be read.
    """
    body = None
    if preprocess.crop == "body":
        # Where the body lies is seen in the image alone, which is why it is read here.
        path = collection_file(root, row.path)
        item = next(iter(read_slices(path, [row.frame], preprocess.plane)))
        if not isinstance(item, Slice):
            raise UnreadableError(item.reason, f"its image: {item.detail}")
        body = body_box(item.pixels, row.modality)
    shows = shown(row.height, row.width, preprocess.aspect, body)
    return Placement((row.height, row.width), shows)
