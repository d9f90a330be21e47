"""The regions that a model of structures is asked about: those of masks of the target's config."""

from __future__ import annotations

from pathlib import Path

from pipeline.annotations.regions import Regions
from pipeline.config.root import Config
from pipeline.config.tasks import Task
from pipeline.fitted.sources import Source
from pipeline.segmentation.regions import gather
from stores.errors import ConfigError


def regions_of(question: Task, source: Source) -> Regions | None:
    """Return the regions of a source, gathered anew; None for a question of whole images.

    What is no region, and why, is noted. Raises ConfigError where the source has no config with
    such masks, and as `gather` does.
    """
    if question.region is None:
        return None
    if source.config is None:
        raise _no_masks(question.region.name, source.store.path)
    check_masks(question, source.config)
    source.notes.extend(gather(source.config, source.store, question.region).notes)
    return Regions.of(source.config, source.store, question.region)


def check_target(question: Task, target: Path) -> None:
    """Raise ConfigError where regions are asked about and a target can be no config: it has none.

    Before anything of it is embedded.
    """
    if question.region is not None and question.region.pool == "crop":
        raise ConfigError(
            "The model sees crops of regions, and new regions have none yet. Fit one by tokens: "
            "`pool: mean`, max or moments."
        )
    if question.region is not None and not target.is_file():
        raise _no_masks(question.region.name, target)


def _no_masks(masks: str, target: Path) -> ConfigError:
    return ConfigError(
        f"The model is asked about structures of {masks!r}. Name a config that has them, "
        f"not a store or a folder: got {str(target)!r}."
    )


def check_masks(question: Task, config: Config) -> None:
    """Raise ConfigError where a config lacks the masks, or structures, that are asked about."""
    assert question.region is not None
    name = question.region.name
    if question.region.boxes is not None:
        if name not in config.boxes:
            raise ConfigError(
                f"The model is asked about the boxes {name!r}. The config's boxes are "
                f"{', '.join(config.boxes) or 'none'}."
            )
        return
    masks = config.masks.get(name)
    if masks is None:
        raise ConfigError(
            f"The model is asked about structures of the masks {name!r}. The config's masks are "
            f"{', '.join(config.masks) or 'none'}."
        )
    lacking = [each for each in question.region.structures if each not in masks.classes]
    if lacking:
        raise ConfigError(
            f"The model is asked about {lacking[0]!r}. The masks {name!r} of the config have "
            f"{', '.join(masks.classes[1:])}."
        )
