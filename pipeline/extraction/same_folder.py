"""The folder of images that a config names against the files that a store was made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.root import Config
from pipeline.extraction.selection import Selection
from pipeline.extraction.walk import walk
from pipeline.io.sniff import sniff
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores import FeatureStore
from stores.errors import RecipeMismatchError, UnreadableError

# Slices of the store whose files are looked for under data.root: so many places, a run at each.
PLACES = 8
RUN = 8
# Files under data.root that are looked at for an image, where none of the store's is there.
LOOKED_AT = 100


def check_folder(config: Config, store: FeatureStore, files: pa.Table) -> str:
    """Refuse a folder of images of which none is in the store; return what is missing there, or "".

    Raises RecipeMismatchError.

    files: path and size of the store's files. Those of another collection may have the same names,
    but not the same sizes as well.
    """
    root = config.data.root
    # On a machine without the images there is nothing to be held against.
    if not root.is_dir():
        return ""
    paths = _some_paths(config, store)
    here = [path for path in paths if (root / unescape_path(path)).exists()]
    if here:
        _check_sizes(config, store, files, here)
        return _missing(config, store, len(paths) - len(here), len(paths))
    if paths and _has_images(config):
        example = Names(store.path, config.data.paths).in_message(*next(iter(paths.items())))
        raise RecipeMismatchError(
            f"The store {store.place} was made of another folder: the config's data.root is "
            f"{str(root)!r}, which has images, and none of the store's, such as {example}. Set "
            "data.root to the folder that the store was made of, or name the store of this folder; "
            "if files were renamed, run `radprobe extract`."
        )
    return ""


def _missing(config: Config, store: FeatureStore, gone: int, looked_at: int) -> str:
    """Return a sentence on files of the store that are not under data.root; "" where all are."""
    if not gone:
        return ""
    return (
        f"{gone} of {count(looked_at, 'file')} of the store {store.place} that were looked for are "
        f"not under data.root {str(config.data.root)!r}. Answers are of them too: set data.root to "
        "the folder that the store was made of, or run `radprobe extract`, which withdraws them."
    )


def _check_sizes(config: Config, store: FeatureStore, files: pa.Table, paths: list[str]) -> None:
    """Refuse files of which none has the size that it had. Raises RecipeMismatchError."""
    names = Names(store.path, config.data.paths)
    in_store = {names.shown(path): path for path in paths}
    files = files.filter(pc.is_in(files["path"], pa.array(in_store)))
    sizes = {in_store[row["path"]]: row["size"] for row in files.to_pylist()}
    root = config.data.root
    if sizes and all((root / unescape_path(p)).stat().st_size != n for p, n in sizes.items()):
        raise RecipeMismatchError(
            f"The store {store.place} was made of other files: none of {len(sizes)} under the "
            f"config's data.root {str(root)!r} that were looked at has the size that it had. Set "
            "data.root to the folder that the store was made of, or name the store of this folder; "
            "if the files were replaced, run `radprobe extract`."
        )


def _some_paths(config: Config, store: FeatureStore) -> dict[str, int]:
    """Return the real paths of some slices, from the first to the last, each with its row."""
    names = Names(store.path, config.data.paths)
    if not names.has_key:
        return {}
    end = store.slice_file.rows
    paths: dict[str, int] = {}
    for start in np.linspace(0, end, PLACES, endpoint=False).astype(int).tolist():
        for piece in store.slice_file.between(start, start + RUN, ["row", "path", "withdrawn"]):
            rows = names.revealed(piece).to_pylist()
            for row in rows:
                if not row["withdrawn"]:
                    paths.setdefault(row["path"], row["row"])
    return paths


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
