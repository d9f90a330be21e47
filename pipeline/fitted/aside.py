"""Images that are not in a store, embedded as those of the store were, and thrown away."""

from __future__ import annotations

import contextlib
import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.data import Data
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.search import Hit, UnknownQueryError, search, search_elsewhere
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.record import backbone_of
from pipeline.recipe import recipe_of
from stores.errors import ConfigError
from stores.features import FeatureStore


def search_anything(
    config: Config,
    query: str,
    *,
    k: int = 10,
    level: Level = "series",
    speed: Speed = Speed(),  # noqa: B008 (frozen)
) -> list[Hit]:
    """Return the k nearest units of what a query names in the store, or of an image elsewhere.

    Raises as `search` does, and ConfigError for a folder without images.
    """
    try:
        return search(config, query, k=k, level=level)
    except UnknownQueryError:
        if not Path(query).exists():
            raise
    with embedded_aside(config, Path(query), speed) as queries:
        return search_elsewhere(config, queries, k=k, level=level)


@contextlib.contextmanager
def embedded_aside(config: Config, path: Path, speed: Speed) -> Iterator[FeatureStore]:
    """Yield a store of an image file, or of a folder of them, that is gone at the end.

    config: the one that the store of the others was made by; where all files without a modality
    had one there, these have it too. Raises ConfigError where no image can be read.
    """
    data = config.data
    modality = data.modality
    if len(set(modality.values())) == 1:
        modality = {"**": next(iter(modality.values()))}
    recipe = recipe_of(FeatureStore.open(config.store))
    root = path if path.is_dir() else path.parent
    # A file's name may hold what a pattern takes for its own.
    include = ("**",) if path.is_dir() else (glob.escape(path.name),)
    with tempfile.TemporaryDirectory(prefix="radprobe-") as temporary:
        aside = config.model_copy(
            update={
                "data": Data(root=root, include=include, modality=modality, patient=data.patient),
                "backbone": backbone_of(config.backbone, recipe),
                "store": Path(temporary) / "store",
                "demo": None,
                "masks": {},
                "scale": None,
            }
        )
        summary = extract(aside, speed)
        if not summary.slices:
            raise ConfigError(
                f"{str(path)!r} holds no image that can be read: there is nothing to search by."
            )
        yield FeatureStore.open(aside.store)
