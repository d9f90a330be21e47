"""Several folders of images as one: a folder of links, whose names are the first of every path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

from stores.errors import ConfigError


def linked(store: Path, roots: Mapping[str, Path]) -> Path:
    """Return the folder, beside a store, that has a link to each root; it is made where it is not.

    It is called by what it links to and never altered, so that configs of other roots, or other
    machines, have folders of their own. Its name is hidden: no collection that the store lies in
    is searched there again. What reads no image needs none of it, and where it cannot be made
    whoever does read says that there is no such folder. Raises ConfigError for a link that leads
    elsewhere, which radprobe makes none of, and for one folder under two names.
    """
    _refuse_one_folder_twice(roots)
    targets = {name: str(root.absolute()) for name, root in roots.items()}
    digest = hashlib.sha256(json.dumps(targets, sort_keys=True).encode()).hexdigest()[:8]
    folder = store.with_name(f".{store.name}.roots-{digest}")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in targets.items():
            # Another process may be at it, with the same.
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(target, target_is_directory=True)
    for name, target in targets.items():
        link = folder / name
        if os.path.lexists(link) and not (link.is_symlink() and os.readlink(link) == target):
            raise ConfigError(
                f"{str(link)!r} must be a link to {target!r}, which data.root calls {name!r}, and "
                f"is something else. Delete the folder {str(folder)!r}; it is made again."
            )
    return folder


def _refuse_one_folder_twice(roots: Mapping[str, Path]) -> None:
    """Raise ConfigError where a root is another, or lies in one: an image would be two people's."""
    places = {name: Path(os.path.realpath(root)) for name, root in roots.items()}
    for (first, outer), (second, inner) in permutations(places.items(), 2):
        if outer == inner or outer in inner.parents:
            raise ConfigError(
                f"Each folder of data.root must have one name, or its images would count as those "
                f"of two sites. Got {first!r} and {second!r} for {str(inner)!r}; leave one out."
            )
