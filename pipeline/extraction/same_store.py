"""A config held against its store where nothing is embedded: the same network, the same images.

`extract` refuses a store that another recipe made. Whoever asks such a store by that config would
be answered from another network's features, or another folder's, and not see it: so every command
that takes a config to a store asks here first. No weights are needed, and no image is decoded.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

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
from pipeline.extraction.selection import Selection
from pipeline.extraction.sync import DEMO_WEIGHTS, check_recipe, recipe_with
from pipeline.extraction.walk import walk
from pipeline.io.sniff import sniff
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.notes import Note
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import RecipeMismatchError, UnreadableError, WeightsError

# Slices of the store whose files are looked for under data.root: so many places, a run at each.
PLACES = 8
RUN = 8
# Files under data.root that are looked at for an image, where none of the store's is there.
LOOKED_AT = 100
# What a look at the tables of a store found.
IMPORTED = "imported"
OF_THIS_FOLDER = "of this folder"


def check_store(config: Config) -> None:
    """Refuse a config whose store was made by another recipe, or of another folder.

    Weights that are not on this machine are taken for those of the store where nothing says
    otherwise: the network by its name, trained or random. A store of imported features is what its
    own recipe says, and a folder that is not here is not looked for. Raises RecipeMismatchError
    with both values, StoreNotFoundError, WeightsError for a name that no network has, ConfigError.
    """
    store = FeatureStore.open(config.store)
    # Tables of millions of rows are looked into once, and again when they or the folder change.
    note = Note(
        "stores", f"{store.path.resolve()}\0{config.data.root.resolve()}", _stamp(config, store)
    )
    origin = note.read()
    # Imported features are of no files: their recipe is the user's word, and the config has none.
    if origin == IMPORTED or (origin is None and not len(store.files(["size"]))):
        note.write(IMPORTED)
        return
    recipe = recipe_of(store)
    weights = _configured_weights(config, recipe)
    check_recipe(store, recipe_with(config, weights or _weights_by_name(config, recipe)))
    if weights is None:
        _check_likely_weights(config, recipe, store)
    if origin is None:
        _check_root(config, store)
        note.write(OF_THIS_FOLDER)


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


def _stamp(config: Config, store: FeatureStore) -> str:
    """Return what changes with the tables of a store and with the folder of images."""
    root = config.data.root
    if not root.is_dir():
        return f"{store.version} no folder"
    about = root.stat()
    return f"{store.version} {about.st_dev} {about.st_ino}"


def _check_root(config: Config, store: FeatureStore) -> None:
    """Refuse a folder of images of which none is in the store. Raises RecipeMismatchError."""
    root = config.data.root
    # On a machine without the images there is nothing to be held against.
    if not root.is_dir():
        return
    paths = _some_paths(config, store)
    if not paths or any((root / unescape_path(path)).exists() for path in paths):
        return
    if _has_images(config):
        example = Names(store.path, config.data.paths).shown(paths[0])
        raise RecipeMismatchError(
            f"The store {store.place} was made of another folder: the config's data.root is "
            f"{str(root)!r}, which has images, and none of the store's, such as {example!r}. Set "
            "data.root to the folder that the store was made of, or name the store of this folder; "
            "if files were renamed, run `radprobe extract`."
        )


def _some_paths(config: Config, store: FeatureStore) -> list[str]:
    """Return the real paths of the files of some slices, from the first to the last."""
    names = Names(store.path, config.data.paths)
    if not names.has_key:
        return []
    end = store.slice_file.rows
    paths: dict[str, None] = {}
    for start in np.linspace(0, end, PLACES, endpoint=False).astype(int).tolist():
        for piece in store.slice_file.between(start, start + RUN, ["row", "path", "withdrawn"]):
            rows = names.revealed(piece).to_pylist()
            paths |= dict.fromkeys(row["path"] for row in rows if not row["withdrawn"])
    return list(paths)


def _has_images(config: Config) -> bool:
    """Return whether any of the first files of the collection is of a format that is known."""
    root = config.data.root
    tables = (table["path"].to_pylist() for table in walk(root, Selection(config.data)))
    files = itertools.chain.from_iterable(tables)
    return any(_is_image(root / unescape_path(path)) for path in itertools.islice(files, LOOKED_AT))


def _is_image(path: Path) -> bool:
    try:
        sniff(path)
    except UnreadableError:
        return False
    return True
