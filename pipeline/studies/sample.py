"""Some slices of a collection, read as a run would, without a store and without opening it all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.root import Config
from pipeline.extraction.discover import modality_of
from pipeline.extraction.selection import Selection
from pipeline.extraction.walk import walk
from pipeline.io.decode import read_frames, read_headers
from pipeline.preprocessing.content import check_finite
from pipeline.preprocessing.volume_range import Histogram
from pipeline.recipe import Preprocess, of_volume
from pipeline.shared.paths import unescape_path
from pipeline.types import Slice
from stores.errors import ConfigError, UnreadableError

# Of one file, however many slices it has: others are to be seen too.
_OF_A_FILE = 8


@dataclass(frozen=True)
class Sample:
    """Slices with their modalities, and what reading them took on one core.

    megabytes: of files, a file of many slices in proportion to those that were read.
    """

    items: list[Slice]
    modalities: list[str]
    seconds: float
    megabytes: float


def take_sample(config: Config, slices: int) -> Sample:
    """Read so many slices, a few more, or all there are, from files all over the collection.

    Raises ConfigError where not one can be read.
    """
    items: list[Slice] = []
    modalities: list[str] = []
    seconds = 0.0
    megabytes = 0.0
    plane = config.preprocess.plane
    for stored in _spread(config):
        relative = unescape_path(stored)
        path = config.data.root / relative
        try:
            headers = read_headers(path, plane)
        except UnreadableError:
            continue
        some = headers[:: max(1, len(headers) // _OF_A_FILE)][:_OF_A_FILE]
        began = time.perf_counter()
        reads = list(read_frames(path, [header.frame for header in some], plane))
        seconds += time.perf_counter() - began
        megabytes += path.stat().st_size / 1e6 * len(some) / len(headers)
        for header, read in zip(some, reads, strict=True):
            modality = header.modality or modality_of(config.data, relative)
            if isinstance(read.item, Slice) and _has_pixels(read.item):
                items.append(_by_itself(read.item, modality, config.preprocess))
                modalities.append(modality)
        if len(items) >= slices:
            break
    if not items:
        raise ConfigError(f"Not one slice can be read in {str(config.data.root)!r}.")
    return Sample(items, modalities, seconds, megabytes)


def _spread(config: Config) -> Iterator[str]:
    """Yield the files of a collection in an order that soon has been everywhere."""
    files = pa.concat_tables(walk(config.data.root, Selection(config.data)))
    paths = sorted(files["path"].filter(pc.is_null(files["reason"])).to_pylist())
    step = max(1, len(paths) // 64)
    for start in range(step):
        yield from paths[start::step]


def _has_pixels(item: Slice) -> bool:
    try:
        check_finite(item)
    except UnreadableError:
        return False
    return True


def _by_itself(item: Slice, modality: str, preprocess: Preprocess) -> Slice:
    """Return a slice that stands for its whole volume, where a rule asks for one."""
    rule = preprocess.rule(modality)
    if not of_volume(rule):
        return item
    histogram = Histogram()
    histogram.add(item.pixels)
    return replace(item, ends=histogram.ends(rule))
