"""A config held against its store where nothing is embedded: the same network, the same images.

`extract` refuses a store that another recipe made. Whoever asks such a store by that config would
be answered from another network's features, or another folder's, and not see it: so every command
that takes a config to a store asks here first. No weights are needed, and no image is decoded.
"""

from __future__ import annotations

import hashlib
import json
import logging

from pipeline.backbones.models import COMPARATORS
from pipeline.backbones.weights import (
    BACKBONES,
    Weights,
    WeightsSource,
    find_weights,
    identity_of,
    stamp_of,
    treated,
)
from pipeline.config.root import Config
from pipeline.extraction.recipes import DEMO_WEIGHTS, check_recipe, recipe_with
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.notes import Note
from stores import FeatureStore
from stores.errors import RecipeMismatchError, WeightsError

log = logging.getLogger(__name__)

# What a look at the tables of a store found; or sentences on slices that are left out or gone.
IMPORTED = "imported"
OF_THIS_FOLDER = "of this folder"


def check_store(config: Config) -> None:
    """Refuse a config whose store was made by another recipe, or of another folder, or read so.

    What it leaves out of what the store has, and what is not there any more, is logged.

    Weights that are not on this machine are taken for those of the store where nothing says
    otherwise: the network by its name, trained or random. A store of imported features is what its
    own recipe says, and a folder that is not here is not looked for. Raises RecipeMismatchError
    with both values, StoreNotFoundError, WeightsError for a name that no network has, ConfigError.
    So is the config refused that heads are fitted on.
    """
    if isinstance(config.fit_on, Config):
        check_store(config.fit_on)
    store = FeatureStore.open(config.store)
    # Tables of millions of rows are looked into once, and again when they or the folder change.
    about = (str(store.path.resolve()), str(config.data.root.resolve()), _rules_digest(config))
    note = Note("stores", "\0".join(about), _stamp(config, store))
    origin = note.read()
    files = store.files(["path", "size"]) if origin is None else None
    # Imported features are of no files: their recipe is the user's word, and the config has none.
    if origin == IMPORTED or (files is not None and not len(files)):
        note.write(IMPORTED)
        return
    recipe = recipe_of(store)
    weights = _configured_weights(config, recipe)
    check_recipe(store, recipe_with(config, weights or _weights_by_name(config, recipe)))
    if weights is None:
        _check_likely_weights(config, recipe, store)
    if files is not None:
        # Where tables are to be read, and not to ask for an answer on file.
        from pipeline.extraction.same_folder import check_folder
        from pipeline.extraction.same_rules import check_rules

        sentences = [check_folder(config, store, files), check_rules(config, store, files)]
        origin = " ".join(filter(None, sentences)) or OF_THIS_FOLDER
        note.write(origin)
    if origin != OF_THIS_FOLDER:
        log.warning("%s", origin)


# --- the network -----------------------------------------------------------------------------


def _configured_weights(config: Config, recipe: Recipe) -> Weights | None:
    """Return the weights that a config asks for; None where they are not on this machine.

    recipe: the store's: a demo that had to go without trained weights goes on without them.
    """
    choice = config.backbone
    weights = choice.weights
    if config.demo is not None and weights is None and recipe.random:
        weights = DEMO_WEIGHTS
    try:
        source = find_weights(choice.name, weights, hub=False, treatment=choice.treatment)
    except WeightsError:
        if not _is_known_or_of_a_folder(choice.name):
            raise
        return None
    return Weights(source.file, _identity(source), source.architecture, "")


def _is_known_or_of_a_folder(name: str) -> bool:
    return name in BACKBONES or name in COMPARATORS or name.startswith(("hf:", "timm:"))


def _weights_by_name(config: Config, recipe: Recipe) -> Weights:
    """Return what is known of weights that are not here: the network of that name.

    recipe: the store's, whose values stand for what only the files would say.
    """
    name = config.backbone.name
    published = BACKBONES.get(name) or COMPARATORS.get(name)
    architecture = recipe.architecture
    if published is not None:
        architecture = treated(published.architecture, config.backbone.treatment)
    return Weights(None, recipe.weights, architecture, "")


def _check_likely_weights(config: Config, recipe: Recipe, store: FeatureStore) -> None:
    """Refuse a store of random weights where a config asks for others, which are not here.

    Raises RecipeMismatchError. A file may hold what was tuned from random weights, as the store
    then says; a seed by itself is in none.
    """
    weights = config.backbone.weights
    if recipe.seeded or (recipe.random and weights is None):
        wanted = weights or f"the published weights of {config.backbone.name}"
        raise RecipeMismatchError(
            f"The store {store.place} was made by another recipe:\n  weights: the store has "
            f"{recipe.weights!r}, the config asks {wanted!r} (not on this machine)\n"
            "Two recipes never share a store: name another store, or ask for its weights by "
            "backbone.weights."
        )


def _identity(source: WeightsSource) -> str:
    if source.file is None:
        return f"random:{source.seed}"
    stamp = stamp_of(source.file)
    note = Note("identities", str(source.file.resolve()), stamp)
    identity = note.read()
    if identity is None:
        identity = identity_of(source.file)
        # Not of a file that changed while it was hashed.
        if stamp_of(source.file) == stamp:
            note.write(identity)
    return identity


# --- the images ------------------------------------------------------------------------------


def _rules_digest(config: Config) -> str:
    """Return the sha256 of all of a config that `check_rules` holds against a store."""
    rules = {"include", "exclude", "modality", "patient", "study", "leave_out", "paths"}
    data = config.data.model_dump(mode="json", include=rules)
    by_labels = config.labels is not None and config.labels.patient is not None
    # Not sorted: of globs the first counts.
    return hashlib.sha256(json.dumps([data, by_labels]).encode()).hexdigest()


def _stamp(config: Config, store: FeatureStore) -> str:
    """Return what changes with the tables of a store and with the folder of images."""
    root = config.data.root
    if not root.is_dir():
        return f"{store.version} no folder"
    about = root.stat()
    # A folder made anew may be given the number of the one that was removed: not its ctime.
    return f"{store.version} {about.st_dev} {about.st_ino} {about.st_ctime_ns}"
