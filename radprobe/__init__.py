"""Embed a radiology collection once with DINOv2, then ask the cache: see `pipeline.api`.

    import radprobe

    config = radprobe.load_config("my.yaml")
    radprobe.extract(config)
    results = radprobe.evaluate(config, ["probe"])

The packages `pipeline` and `stores` lie beside this one. Another folder of such a name, where
Python was started, is not taken for them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HOME = Path(__file__).resolve().parents[1]
_PACKAGES = ("stores", "pipeline")


def _import_ours() -> None:
    """Import the packages beside this one under their names, whatever else has such a name.

    Raises ImportError where a package of another's was imported by such a name before.
    """
    before = list(sys.path)
    # First for as long as the packages are imported: what lies in them is then found through them.
    sys.path.insert(0, str(_HOME))
    try:
        for name in _PACKAGES:
            package = importlib.import_module(name)
            places = [Path(place).resolve() for place in package.__path__]
            if _HOME / name not in places:
                raise ImportError(
                    f"radprobe has a package {name!r}, and another one of that name was imported "
                    f"from {[str(place) for place in places]}. Import radprobe before it, or "
                    "rename it."
                )
    finally:
        sys.path[:] = before


_import_ours()

if TYPE_CHECKING:
    from pipeline.api import (
        Config,
        Features,
        FeatureStore,
        Speed,
        TaskData,
        data,
        discover,
        evaluate,
        extract,
        features,
        fit,
        load_config,
        load_model,
    )

__all__ = [
    "Config",
    "FeatureStore",
    "Features",
    "Speed",
    "TaskData",
    "data",
    "discover",
    "evaluate",
    "extract",
    "features",
    "fit",
    "load_config",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Return a name of `pipeline.api`, which is imported when the first is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("radprobe")
    if name not in __all__:
        raise AttributeError(f"module 'radprobe' has no attribute {name!r}")
    return getattr(importlib.import_module("pipeline.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
