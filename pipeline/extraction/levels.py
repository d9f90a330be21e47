"""What rows are embedded by: slices, volumes, or planes of volumes; a line a kind of recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline import backbones
from pipeline.backbones.weights import Checkpoint
from pipeline.extraction.part import FillContext, PartFiller, PartInFlight
from pipeline.extraction.volume_part import VolumeFiller
from pipeline.inference.speed import Speed
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.inference.forward import Forward
    from pipeline.inference.volumes import VolumeForward


@dataclass(frozen=True)
class EmbeddingLevel:
    """How a network is loaded, how it is run, and what fills a part with what it says."""

    load: Callable[[Recipe, Checkpoint, Speed], Any]
    forward: Callable[[Any, Recipe, Speed], Forward | VolumeForward]
    filler: Callable[[PartInFlight, FillContext[Any]], PartFiller | VolumeFiller]


def _load_for_slices(recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
    return backbones.load_recipe_backbone(
        recipe, checkpoint, device=speed.device, compiled=speed.compiled
    )


def _slices_forward(network: Any, recipe: Recipe, speed: Speed) -> Forward:
    from pipeline.inference.forward import Forward  # with torch, once a part is claimed

    lanes = speed.trace is None  # a trace is of one thread
    return Forward(network, recipe, speed.batch_size or 1, lanes=lanes)


def _load_for_volumes(recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
    return backbones.load_volume_backbone(recipe, checkpoint, device=speed.device)


def _volumes_forward(network: Any, recipe: Recipe, speed: Speed) -> VolumeForward:
    from pipeline.inference.volumes import VolumeForward

    return VolumeForward(network, recipe)


def _load_for_planes(recipe: Recipe, checkpoint: Checkpoint, speed: Speed) -> Any:
    return backbones.load_slice_network(recipe, checkpoint, device=speed.device)


def _planes_forward(network: Any, recipe: Recipe, speed: Speed) -> VolumeForward:
    from pipeline.inference.raptor import PlanarNetwork
    from pipeline.inference.volumes import VolumeForward

    assert recipe.raptor is not None
    planar = PlanarNetwork(network, recipe, recipe.raptor, speed.batch_size or 1)
    return VolumeForward(planar, recipe)


LEVELS: dict[Literal["slices", "volumes", "planes"], EmbeddingLevel] = {
    "slices": EmbeddingLevel(_load_for_slices, _slices_forward, PartFiller),
    "volumes": EmbeddingLevel(_load_for_volumes, _volumes_forward, VolumeFiller),
    "planes": EmbeddingLevel(_load_for_planes, _planes_forward, VolumeFiller),
}
