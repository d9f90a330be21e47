"""Backbones by name: where weights are, and the networks they make.

What loads networks is imported when it is asked for: looking for weights needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.backbones.load import (
        load_backbone,
        load_recipe_backbone,
        load_slice_network,
        load_volume_backbone,
    )

__all__ = [
    "load_backbone",
    "load_recipe_backbone",
    "load_slice_network",
    "load_volume_backbone",
]


def __getattr__(name: str) -> Any:
    """Import what loads networks, and torch with it, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.backbones import load

    return getattr(load, name)
