"""The feature store: what is on disk. Knows no pixels, no torch and no tasks."""

from stores.features import ArraySpec, FeatureStore
from stores.layout import Layout, PartRange

__all__ = ["ArraySpec", "FeatureStore", "Layout", "PartRange"]
