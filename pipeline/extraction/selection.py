"""Which files and folders of a collection are looked at, and which globs of the config did nothing.

Folders that nobody took for a part of the collection are left out: hidden ones, what systems and
tools keep for themselves, and radprobe's own stores. Each is a row of the file table, of the reason
`other`, so that it is counted and named.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.shared.bids import EXCLUDED, MODALITIES
from pipeline.shared.folders import hidden_kind
from pipeline.shared.globs import Globs
from pipeline.shared.paths import matcher, unescape_path

# The reason of what nobody took for an image.
OTHER = "other"
# How the detail of a folder begins that was left out; what it is follows.
LEFT_OUT = "left out: "
STORE = "a store of radprobe"
BIDS_GLOBS = frozenset({*EXCLUDED.values(), *MODALITIES})
# Paths that a glob is tried on for a hint of what was meant.
_TRIED = 100_000


class Selection:
    """What of a collection is wanted, by the globs of its config; it notes what each was good for.

    Threads may share it.
    """

    def __init__(self, data: Data) -> None:
        self._include = Globs(data.include)
        self._exclude = Globs(data.exclude)
        self._modality = Globs(tuple(data.modality))
        parts = [glob.split("/") for glob in data.include]
        self._named = frozenset(itertools.chain.from_iterable(parts))

    def wants(self, path: str) -> bool:
        """Return whether a file is included and not excluded, by its path relative to the root."""
        if not self._include.any(path) or self._exclude.any(path):
            return False
        if self._modality.idle:
            self._modality.first(path)
        return True

    def left_out(self, path: str) -> str | None:
        """Return what a folder is that is not searched, None for one that is."""
        name = path.rpartition("/")[2]
        kind = hidden_kind(name)
        if kind is None or name in self._named:
            return None
        # A glob that leaves such a folder out as well is no mistake.
        self._exclude.any(f"{path}/file")
        return kind

    def notes(self, paths: pa.ChunkedArray) -> list[str]:
        """Return a sentence for each glob without effect; paths: of the wanted files, as stored."""
        notes = [f"data.include: {glob!r} matches no file." for glob in self._include.idle]
        # Many a config excludes hidden files that most collections do not have.
        excluding = [glob for glob in self._exclude.idle if not _is_precaution(glob)]
        naming = [glob for glob in self._modality.idle if not _is_precaution(glob)]
        if not excluding and not naming:
            return notes
        some = [unescape_path(path) for path in paths.slice(0, _TRIED).to_pylist()]
        for glob in excluding:
            notes.append(f"data.exclude: {glob!r} matches no file.{_hint(glob, some)}")
        for glob in naming:
            if _matches_any(glob, some):
                notes.append(f"data.modality: {glob!r} comes behind a glob that matches the same.")
            else:
                notes.append(f"data.modality: {glob!r} matches no file.{_hint(glob, some)}")
        return notes


def left_out_folders(files: pa.Table) -> Counter[str]:
    """Return how many folders were left out, by what they are (FILE_SCHEMA)."""
    details = files["detail"].filter(pc.starts_with(files["detail"], LEFT_OUT))
    return Counter(detail.removeprefix(LEFT_OUT) for detail in details.to_pylist())


def set_aside(files: pa.Table) -> Counter[str]:
    """Return how many files were set aside, by reason (FILE_SCHEMA); no folder left out is one."""
    is_folder = pc.fill_null(pc.starts_with(files["detail"], LEFT_OUT), False)
    reasons = files["reason"].filter(pc.invert(is_folder)).drop_null()
    return Counter(reasons.to_pylist())


def _is_precaution(glob: str) -> bool:
    """Return whether a glob is of what a collection may have, and is no mistake where it has not.

    What a BIDS folder may have is filled in for every one (`pipeline.config.bids`).
    """
    return glob in BIDS_GLOBS or any(map(hidden_kind, glob.split("/")))


def _hint(glob: str, paths: Sequence[str]) -> str:
    """Return what was meant by a glob without effect, where something like it matches a path."""
    base = glob.removeprefix("./").strip("/")
    literal = base.replace("[", "[[]")
    for likely in (base, literal, f"{base}/**", f"**/{base}", f"**/{base}/**"):
        if likely != glob and _matches_any(likely, paths):
            return f" Did you mean {likely!r}?"
    if _matches_any(base.lower(), [path.lower() for path in paths]):
        return " Capitals and small letters are told apart."
    return ""


def _matches_any(glob: str, paths: Sequence[str]) -> bool:
    matches = matcher([glob])
    return any(matches(path) for path in paths)
