"""Which mask files an image has by its path: by patterns of it, or by the entities of BIDS.

A mask of BIDS may say which image of a session it is of as the specification has it (run-2, acq-x),
or by the image's suffix, as its space or as a word (space-T1w, sub-01_T1w_desc-lesion_mask).
"""

from __future__ import annotations

import functools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config.segmentation import REGEX, Masks
from pipeline.shared.bids import (
    BESIDE,
    DERIVED,
    ENTITIES,
    MASKS,
    NATIVE,
    BidsName,
    is_below,
    parse_bids,
)
from pipeline.shared.folders import files_below
from pipeline.shared.paths import matcher, unescape_path
from stores.errors import ConfigError

log = logging.getLogger(__name__)

Sources = tuple[str, ...]  # the paths of a mask's files, under their root; "" for one of several
# What a pattern calls the parts of an image's path, besides the groups of an expression.
Parts = dict[str, str]
_WILD = re.compile(r"[*?]")


class _Patterns:
    """The patterns of a config for the mask files of an image, by the image's path."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._rules = [(key, _rule(key)) for key in masks.files]
        self._effective: set[str] = set()

    def of(self, path: str) -> Sources:
        """Return the patterns, filled, of the first rule that matches a path; () for none.

        Raises ConfigError for a pattern that cannot be filled.
        """
        for key, rule in self._rules:
            groups = rule(path)
            if groups is not None:
                self._effective.add(key)
                parts = _parts(path) | groups
                patterns = self._masks.each(self._masks.files[key])
                return tuple(_filled(pattern, parts) for pattern in patterns)
        return ()

    def images(self, paths: Sequence[str]) -> Iterator[tuple[str, Sources, list[str]]]:
        """Yield each rule that is of images: its glob, its patterns, the paths of the images."""
        of_rule: dict[str, list[str]] = {}
        for path in dict.fromkeys(paths):
            for key, rule in self._rules:
                if rule(path) is not None:
                    of_rule.setdefault(key, []).append(path)
                    break
        for key, images in of_rule.items():
            yield key, self._masks.each(self._masks.files[key]), images

    def warn_of_idle(self) -> None:
        """Log which rules have matched nothing so far."""
        for key in self._masks.files:
            if key not in self._effective:
                log.warning("masks.files: %r matches no image that none before it matches.", key)


@dataclass(frozen=True)
class Barren:
    """A pattern that finds no file: the glob of its images, and how many; absent: what it names."""

    images_glob: str
    pattern: str
    images: int
    absent: tuple[str, ...]


class MaskPaths:
    """The mask files that patterns of a config name for images. root: the folder of the masks."""

    def __init__(self, masks: Masks, root: Path) -> None:
        self._patterns = _Patterns(masks)
        self._root = root

    def sources(self, paths: Sequence[str]) -> list[Sources]:
        """Return the mask files of images (paths as stored); () where none of them is there.

        Raises ConfigError for a pattern that is none, and for one that fits several files.
        """
        # Once a file, not once a slice: each is looked for on the disk.
        sources = {path: self._there(path) for path in dict.fromkeys(paths)}
        self._patterns.warn_of_idle()
        return [sources[path] for path in paths]

    def named(self, paths: Sequence[str]) -> list[str]:
        """Return the mask files of images, whether they are there or not; "" among them."""
        return [source for path in dict.fromkeys(paths) for source in self._of(path)]

    def barren(self, paths: Sequence[str]) -> list[Barren]:
        """Return the patterns that are there for none of the images that they are of."""
        barren = []
        for key, patterns, images in self._patterns.images(paths):
            for i, pattern in enumerate(patterns):
                named = [self._file(self._patterns.of(path)[i]) for path in images]
                absent = [name for name in named if not self._is_there(name)]
                if len(absent) == len(images):
                    barren.append(Barren(key, pattern, len(images), tuple(filter(None, absent))))
        return barren

    def _is_there(self, named: str) -> bool:
        return bool(named) and (self._root / unescape_path(named)).exists()

    def _there(self, path: str) -> Sources:
        sources = self._of(path)
        return sources if any(map(self._is_there, sources)) else ()

    def _of(self, path: str) -> Sources:
        return tuple(map(self._file, self._patterns.of(path)))

    def _file(self, named: str) -> str:
        """Return the file that a name is of, which may have wildcards; "" for none."""
        if not _WILD.search(named):
            return named
        matches = _matcher(named)
        fitting = [file for file in self._listing.candidates(named) if matches(file)]
        if len(fitting) > 1:
            raise ConfigError(
                f"masks.files: a pattern fits {len(fitting)} files of one image. A mask is one "
                "file: make the pattern narrower, or give each structure a pattern of its own."
            )
        return fitting[0] if fitting else ""

    @functools.cached_property
    def _listing(self) -> _Listing:
        return _Listing(files_below(self._root))


class _Listing:
    """The files below a folder, by folder and by name, so that not each is tried on each image."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._by_folder: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            folder, _, name = file.rpartition("/")
            self._by_folder[folder].append(file)
            self._by_name[name].append(file)

    def candidates(self, pattern: str) -> Sequence[str]:
        """Return files among which all are that a pattern fits."""
        folder, _, name = pattern.rpartition("/")
        if not _WILD.search(folder):
            return self._by_folder.get(folder, ())
        return self._files if _WILD.search(name) else self._by_name.get(name, ())


def _rule(key: str) -> Callable[[str], Parts | None]:
    """Return what gives the named groups of a path that a glob, or an expression, matches."""
    if not key.startswith(REGEX):
        matches = matcher([key])
        return lambda path: {} if matches(path) else None
    expression = re.compile(key.removeprefix(REGEX))

    def groups(path: str) -> Parts | None:
        match = expression.fullmatch(path)
        return None if match is None else match.groupdict("")

    return groups


def _parts(path: str) -> Parts:
    image = PurePosixPath(path)
    folder = str(image.parent)
    # Of a compressed file both suffixes go.
    stem = image.name.removesuffix(".gz")
    return {
        "path": path,
        "folder": "" if folder == "." else folder,
        "name": image.name,
        "stem": stem.rpartition(".")[0] or stem,
    }


def _filled(pattern: str, parts: Parts) -> str:
    """Return a pattern with the parts of an image's path. Raises ConfigError."""
    try:
        return pattern.format(**parts)
    except (KeyError, IndexError, ValueError):
        known = ", ".join(f"{{{name}}}" for name in parts)
        raise ConfigError(
            f"masks.files: {pattern!r} must name a path by these alone: {known}."
        ) from None


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return whether a path fits a pattern; brackets, which paths of images may have, are such."""
    return matcher([pattern.replace("[", "[[]")])


# --- BIDS ----------------------------------------------------------------------------------


def bids_masks(masks: Masks, root: Path, paths: Sequence[str]) -> list[Sources]:
    """Return the mask files of images (paths as stored) by the entities of BIDS; () for none.

    A mask is of the same subject and session, and has no other label in an entity of images that it
    names; of several, the one that names most. Raises ConfigError where two are as near.
    """
    images = {path: parse_bids(path) for path in dict.fromkeys(paths)}
    contrasts = {image.suffix for image in images.values() if image}
    patterns = _Patterns(masks)
    by_session: dict[tuple[str, str], list[_Mask]] = defaultdict(list)
    for path in files_below(root):
        name = parse_bids(path)
        if name and name.suffix and name.extension not in BESIDE:
            by_session[name.subject, name.session].append(_Mask(path, name))
    sources: dict[str, Sources] = {}
    for path, image in images.items():
        if image is None or not image.suffix:
            sources[path] = ()
            continue
        of_image = [
            (mask, mask.nearness(image, contrasts))
            for mask in by_session[image.subject, image.session]
            if mask.is_of(image, contrasts)
        ]
        nearest = []
        for pattern in patterns.of(path) if masks.files else [""]:
            fitting = [(mask, near) for mask, near in of_image if mask.fits(pattern)]
            nearest.append(_nearest(fitting))
        sources[path] = tuple(nearest) if any(nearest) else ()
    patterns.warn_of_idle()
    return [sources[path] for path in paths]


@dataclass(frozen=True)
class _Mask:
    """A file that may be a mask. path: relative to the folder of the masks."""

    path: str
    name: BidsName

    def fits(self, pattern: str) -> bool:
        """Return whether it is one that a pattern asks for; without one, by its suffix alone.

        A pattern without a slash is of the file's name.
        """
        if not pattern:
            return self.name.suffix in MASKS
        return _matcher(pattern if "/" in pattern else f"**/{pattern}")(self.path)

    def is_of(self, image: BidsName, contrasts: set[str]) -> bool:
        """Return whether it may be of an image of its subject and session.

        contrasts: the suffixes of all images, one of which it may name as its image's.
        """
        named = self._contrasts & contrasts
        mine = self.name.entities
        return (
            is_below(self.name.dataset, image.home)
            and (not named or image.suffix in named)
            and all(image.entities.get(key) == mine[key] for key in mine.keys() & ENTITIES.keys())
        )

    def nearness(self, image: BidsName, contrasts: set[str]) -> tuple[bool, int]:
        """Return how near it is to an image that it may be of: more is nearer.

        First whether it lies in the same space, as far as is said, then how much it names.
        """
        named = self._contrasts & contrasts
        space = self.name.entities.get("space")
        is_same = space == image.entities.get("space") or space in {*named, *NATIVE}
        return is_same, len(named) + len(self.name.entities.keys() & ENTITIES.keys())

    @property
    def _contrasts(self) -> set[str]:
        """What it may name its image's suffix by."""
        entities = self.name.entities
        return {*self.name.words, entities.get("space", ""), entities.get("mod", "")}

    @property
    def kind(self) -> str:
        """What tells masks of one image apart, and names nobody."""
        derived = [f"{key}-{label}_" for key, label in self.name.entities.items() if key in DERIVED]
        return "".join(derived) + self.name.suffix + self.name.extension


def _nearest(masks: Sequence[tuple[_Mask, tuple[bool, int]]]) -> str:
    """Return the path of the nearest mask, "" for none. Raises ConfigError for two as near."""
    most = max((near for _, near in masks), default=None)
    nearest = [mask for mask, near in masks if near == most]
    if len(nearest) > 1:
        kinds = sorted({mask.kind for mask in nearest})
        raise ConfigError(
            f"An image has {len(nearest)} masks of its subject and session that fit it alike: "
            f"{', '.join(kinds)}. Say in masks.files which is meant, such as "
            f'{{"**": "*_{kinds[0]}"}} or {{"**": "derivatives/manual/**"}}, or give each '
            "structure a pattern of its own."
        )
    return nearest[0].path if nearest else ""
