"""Small pictures of slices, through the recipe's window: what the network was shown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.preprocessing.prepare import one_thread, scale
from pipeline.recipe import Preprocess, of_volume
from pipeline.report.sources import Source
from pipeline.types import Slice
from stores.errors import UnreadableError
from stores.slices import slice_rows

SIDE = 96
QUALITY = 55
# Seconds for one file: a picture is not worth more.
TIME_LIMIT = 20.0


def pictures(source: Source, places: NDArray[np.int64]) -> dict[int, bytes]:
    """Return place -> WebP of at most SIDE x SIDE pixels, for those whose files can be read here.

    places: ascending, in `source.slices`. Empty without a config: the store does not know where
    its files are. A file that is gone or unreadable by now has no picture.
    """
    if source.config is None:
        return {}
    slices = slice_rows(source.names.revealed(source.slices.take(places)))
    rules = _by_slice(source.recipe.preprocess)
    # The slices of a file follow each other in the table: a request a file opens each once.
    requests = []
    for path, of_file in groupby(slices, key=lambda s: s.path):
        frames = tuple(s.frame for s in of_file)
        requests.append(Request(path, frames))
    root = source.config.data.root
    drawn: dict[int, bytes] = {}
    reading = read_files(root, requests, plane=rules.plane, time_limit_s=TIME_LIMIT)
    with one_thread(), closing(reading) as reads:
        for read, place, described in zip(reads, places.tolist(), slices, strict=True):
            if isinstance(read.item, Slice):
                drawn |= _picture(read.item, described.modality, rules, place)
    return drawn


def _picture(item: Slice, modality: str, rules: Preprocess, place: int) -> dict[int, bytes]:
    """Return the picture of a slice by its place; none where its pixels cannot be scaled."""
    try:
        grey = scale(item, modality, rules)
    except UnreadableError:
        return {}
    return {place: encode(grey.mul(255).round().byte().numpy())}


def encode(grey: NDArray[np.uint8]) -> bytes:
    """Return (1 or 3, H, W) as WebP, its longer side SIDE pixels."""
    image = Image.fromarray(grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=QUALITY)
    return sink.getvalue()


def _by_slice(rules: Preprocess) -> Preprocess:
    """Return rules whose range is the slice's own, where it would be that of a whole volume."""
    kinds: Sequence[str] = ("ct", "mr", "xray", "other")
    wide = {k: getattr(rules, k) for k in kinds if of_volume(getattr(rules, k))}
    # A map shows single slices: the rest of the volume is not read for a picture.
    narrow = {k: rule.model_copy(update={"scope": "slice"}) for k, rule in wide.items()}
    return rules.model_copy(update=narrow)
