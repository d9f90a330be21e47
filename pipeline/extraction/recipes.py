"""A config's recipe, and the store that it names: opened, made, or refused."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.annotations.levels import check_of_volumes
from pipeline.backbones.volume_models import VOLUME_NETWORKS
from pipeline.backbones.weights import Weights, locate
from pipeline.config.root import Config
from pipeline.recipe import Raptor, Recipe, VolumeInput, Window, recipe_of
from pipeline.shared.pseudonyms import HIDDEN, key_check, load_key, reveal_path
from stores import ArraySpec, FeatureStore
from stores.errors import (
    ConfigError,
    OccupiedError,
    RecipeMismatchError,
    StoreNotFoundError,
    WeightsError,
)
from stores.features import check_free, stored_key_check
from stores.layout import default_part_rows

log = logging.getLogger(__name__)

DEMO_WEIGHTS = "random:0"
# Of the paths of a store that does not know its key yet, so many are tried by it.
_PATHS_TRIED = 1000
Difference = tuple[str, Any, Any]  # field, what the store has, what the config asks


def make_recipe(config: Config) -> tuple[Recipe, Path | None]:
    """Return the recipe of a config and its weights file (None for random weights).

    Reads the file whole, for its digest. Raises WeightsError where the weights are not to be had,
    and ConfigError for settings that do not fit the network.
    """
    weights = locate_weights(config)
    return recipe_with(config, weights), weights.file


def locate_weights(config: Config) -> Weights:
    """Find and hash the weights of a config; a demo alone may fall back to random ones.

    Raises WeightsError.
    """
    choice = config.backbone
    weights = choice.weights
    # A demo store of random weights keeps them: weights that are to be had by now would make
    # another recipe, and the next run of the same config would be refused.
    if config.demo is not None and weights is None and _has_random_weights(config.store):
        weights = DEMO_WEIGHTS
    try:
        return locate(choice.name, weights, treatment=choice.treatment)
    except WeightsError as error:
        if config.demo is None or weights is not None:
            raise
        log.warning("RANDOM WEIGHTS: the demo goes on with an untrained network. %s", error)
    return locate(choice.name, DEMO_WEIGHTS, treatment=choice.treatment)


def recipe_with(config: Config, weights: Weights) -> Recipe:
    """Return the recipe of a config whose weights were found.

    Raises ConfigError for settings that do not fit the network.
    """
    choice = config.backbone
    given: dict[str, Any] = {
        "image_size": choice.image_size,
        "blocks": config.outputs.blocks,
        "outputs": config.outputs.keep,
        "preprocess": config.preprocess,
    }
    if choice.name in VOLUME_NETWORKS:
        given |= _of_volumes(config)
    elif sees_volumes(config) or config.outputs.raptor != Raptor():
        given |= _of_planes(config)
    try:
        return Recipe(
            architecture=weights.architecture,
            weights=weights.identity,
            dtype=config.outputs.dtype,
            precision=choice.precision,
            patch=config.outputs.patch,
            **given,
        )
    except ValidationError as error:  # what a config cannot know before its network is known
        faults = [str(fault["ctx"]["error"]) for fault in error.errors() if "ctx" in fault]
        raise ConfigError("\n".join(faults) or str(error)) from None


def _of_volumes(config: Config) -> dict[str, Any]:
    """Return what a recipe says where the network is a 3D one, by a config that leaves it open.

    Raises ConfigError for keys that a network of slices alone has.
    """
    name = config.backbone.name
    published = VOLUME_NETWORKS[name].input
    volume = config.preprocess.volume or published
    if "raptor" in config.outputs.model_fields_set:
        raise ConfigError(
            "outputs.raptor says how a network of slices sees volumes. Got it for the 3D network "
            f"{name} instead, which sees them itself: leave it out."
        )
    # A model that embeds a folder by its recipe has the side there.
    side = config.backbone.image_size
    if "image_size" in config.backbone.model_fields_set and side != volume.size[0]:
        voxels = " x ".join(map(str, volume.size))
        raise ConfigError(
            f"backbone.image_size is of networks of slices. Got {side} for "
            f"the 3D network {name} instead, which sees {voxels} voxels: leave it out."
        )
    outputs = config.outputs.keep if "keep" in config.outputs.model_fields_set else ("volume",)
    return {
        "image_size": volume.size[0],
        "blocks": 1,
        "outputs": outputs,
        "preprocess": config.preprocess.model_copy(update={"volume": volume}),
    }


def _of_planes(config: Config) -> dict[str, Any]:
    """Return what a recipe says where a network of slices sees volumes, by Raptor.

    Raises ConfigError where nothing says which HU become 0 and 1.
    """
    preprocess = config.preprocess
    if preprocess.volume is None:
        if not isinstance(preprocess.ct, Window):
            raise ConfigError(
                "Volumes are scaled by one window. Got preprocess.ct of kind "
                f"{preprocess.ct.kind} instead; name a window there, such as lung."
            )
        side = config.backbone.image_size
        volume = VolumeInput(
            fit="shrink",
            size=(side, side, side),
            window=(preprocess.ct.low, preprocess.ct.high),
        )
        preprocess = preprocess.model_copy(update={"volume": volume})
    return {"blocks": 1, "preprocess": preprocess, "raptor": config.outputs.raptor}


def sees_volumes(config: Config) -> bool:
    """Return whether a config embeds whole volumes."""
    return config.backbone.name in VOLUME_NETWORKS or "volume" in config.outputs.keep


def check_sees_slices(config: Config, what: str) -> None:
    """Raise ConfigError where a config embeds whole volumes.

    what: what needs a network that sees slices, as the message begins.
    """
    if sees_volumes(config):
        how = "a 3D network" if config.backbone.name in VOLUME_NETWORKS else "Raptor's vectors"
        raise ConfigError(
            f"{what} needs a network that sees slices. Got {config.backbone.name} instead, which "
            f"sees whole volumes ({how}). Ask heads about its vectors, by `radprobe evaluate`; or "
            "name a network of slices in another config, with a store of its own and `outputs: "
            "{keep: [cls, mean]}`."
        )


def check_levels(config: Config) -> None:
    """Raise ConfigError for tasks that the features of a config, once embedded, say nothing of."""
    if sees_volumes(config):
        for name, task in config.tasks.items():
            check_of_volumes(name, task.level)


def seen_by_volume(config: Config) -> Callable[[str], bool]:
    """Return whether what is made of a slice of a modality depends on its volume as well."""
    if sees_volumes(config):
        return lambda modality: True
    return config.preprocess.by_volume


def open_store(
    config: Config, recipe: Recipe, before_creating: Callable[[], object] | None = None
) -> FeatureStore:
    """Open the config's store, or create it where there is none.

    before_creating: called where there is none; where it raises, none is made.

    Raises RecipeMismatchError naming each field that differs, with both values.
    """
    try:
        store = FeatureStore.open(config.store)
    except StoreNotFoundError:
        check_free(config.store)  # before anything else is found wrong: the place comes first
        if before_creating is not None:
            before_creating()
        store = create_store(config, recipe)
    _check_key(store)
    check_recipe(store, recipe)
    return store


def check_recipe(store: FeatureStore, recipe: Recipe) -> None:
    """Raise RecipeMismatchError, naming each field that differs, where a store is of another."""
    fields = differences(store, recipe)
    if fields:
        lines = [
            f"  {name}: the store has {have!r}, the config asks {want!r}"
            for name, have, want in fields
        ]
        raise RecipeMismatchError(
            f"The store {store.place} was made by another recipe:\n"
            + "\n".join(lines)
            + "\nTwo recipes never share a store: name another store, or undo the change."
        )


def create_store(config: Config, recipe: Recipe) -> FeatureStore:
    """Create the config's store, or open the one that another process created meanwhile."""
    arrays = feature_arrays(recipe)
    part_rows = part_rows_of(config, recipe)
    try:
        check_free(config.store)
        # The key comes before the store: a crash between the two leaves a key alone, which the next
        # run takes; a store without its key could never be joined to labels again.
        check = key_check(load_key(config.store))
        return FeatureStore.create(config.store, recipe.canonical(), arrays, part_rows, check)
    except OccupiedError as error:
        try:
            return FeatureStore.open(config.store)
        except StoreNotFoundError:  # something else lies there
            raise error from None


def _check_key(store: FeatureStore) -> None:
    """Raise ConfigError where the key is another store's; have the store know it from now on."""
    key = load_key(store.path)
    if stored_key_check(store.path) is not None:
        return
    # Made before keys were checked: hidden paths tell whose they are.
    paths = store.slices(["path"])["path"].slice(0, _PATHS_TRIED).to_pylist()
    hidden = [path for path in paths if path.startswith(HIDDEN)]
    if hidden and not any(reveal_path(key, path) != path for path in hidden):
        raise ConfigError(
            f"The key beside the store {store.place} reveals none of its paths: it is another "
            "store's. Put back the one that was."
        )
    store.keep_key_check(key_check(key))


def feature_arrays(recipe: Recipe) -> dict[str, ArraySpec]:
    """Return the feature arrays that a recipe fills: name -> shape of a row, dtype."""
    return {name: ArraySpec(shape, dtype) for name, (shape, dtype) in recipe.arrays.items()}


def part_rows_of(config: Config, recipe: Recipe) -> int:
    """Return the rows of a part that a new store would have."""
    row_bytes = sum(
        int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize
        for spec in feature_arrays(recipe).values()
    )
    return config.outputs.part_rows or default_part_rows(row_bytes)


def differences(store: FeatureStore, recipe: Recipe) -> list[Difference]:
    """Return each field in which a store's recipe is another one."""
    have = json.loads(store.recipe_text)
    with contextlib.suppress(ValidationError):  # of other fields, as another version makes it
        # What a recipe leaves out at its default is named with that default.
        have = Recipe.from_text(store.recipe_text).model_dump(mode="json")
    return list(_leaves(have, recipe.model_dump(mode="json")))


def recipe_differences(have: Recipe, want: Recipe) -> list[Difference]:
    """Return each field in which two recipes differ, with both values."""
    return list(_leaves(have.model_dump(mode="json"), want.model_dump(mode="json")))


def _leaves(have: Any, want: Any, name: str = "") -> Iterator[Difference]:
    """Yield the leaves in which two JSON values differ, named by their path: `preprocess.plane`."""
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted(have.keys() | want.keys()):
            yield from _leaves(have.get(key), want.get(key), f"{name}.{key}" if name else key)
    elif have != want:
        yield name, have, want


def _has_random_weights(path: Path) -> bool:
    try:
        return recipe_of(FeatureStore.open(path)).random
    except StoreNotFoundError:
        return False
