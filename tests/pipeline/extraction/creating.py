"""What processes of a test do at once; apart from the tests, for which they would load torch."""

from __future__ import annotations

from pipeline.config.root import Config
from pipeline.extraction.recipes import open_store
from pipeline.recipe import Recipe


def create(config: Config, recipe: Recipe) -> None:
    """Create a store, or open the one that another created."""
    assert open_store(config, recipe).recipe_text == recipe.canonical()
