"""The feature store: what is on disk. Knows no pixels, no torch and no tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stores.features import ArraySpec, FeatureStore
    from stores.layout import Layout, PartRange

__all__ = ["ArraySpec", "FeatureStore", "Layout", "PartRange"]


def __getattr__(name: str) -> Any:
    """Import the store when it is asked for: reading processes need `stores.errors` alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stores import features, layout

    return getattr(layout if hasattr(layout, name) else features, name)
