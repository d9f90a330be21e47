"""What processes of a test do at once; apart from the tests, for which they would load torch."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier

from pipeline.config.root import Config
from pipeline.extraction.recipes import open_store
from pipeline.recipe import Recipe


def create(config: Config, recipe: Recipe, start: Barrier) -> None:
    """Create a store as soon as the others do."""
    start.wait()
    assert open_store(config, recipe).recipe_text == recipe.canonical()
