"""Which modalities the slices of a collection have, and which files name none."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import Data
from pipeline.extraction.discover import IMAGE_SUFFIXES, UNKNOWN_MODALITY, PathRules
from pipeline.shared.paths import unescape_path
from pipeline.shared.texts import count

# Globs that a note proposes: more kinds of files are better looked at one by one.
_MOST_GLOBS = 3
# Kinds of files that hold pictures, which are X-rays more often than anything else.
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def modalities_of(slices: pa.Table) -> dict[str, int]:
    """Return how many slices each modality has, the commonest first (SLICE_SCHEMA)."""
    return dict(Counter(slices["modality"].to_pylist()).most_common())


def unnamed_note(data: Data, slices: pa.Table) -> list[str]:
    """Return a sentence on the slices of which neither file nor config names the modality, if any.

    slices: SLICE_SCHEMA, with the real paths, none of them withdrawn.
    """
    # Of a DICOM file, which has a UID, the header says OT: that is a modality it names.
    is_unnamed = pc.and_(
        pc.equal(slices["modality"], UNKNOWN_MODALITY), pc.is_null(slices["instance"])
    )
    slices_of = Counter(slices["path"].filter(is_unnamed).to_pylist())
    rules = PathRules(data)
    files = {path: n for path, n in slices_of.items() if not rules.names(unescape_path(path))}
    if not files:
        return []
    total = count(sum(files.values()), "slice")
    of_files = count(len(files), "file names", "files name")
    return [
        f"{total} of {of_files} no modality and are scaled as `other`, CT too, without "
        f"its window. Say what they are, such as `data.modality: {{{_globs(files)}}}`, or OT to "
        "leave it so."
    ]


def _globs(files: dict[str, int]) -> str:
    """Return globs that match some files (path -> slices), the most slices first, as YAML."""
    kinds: Counter[str] = Counter()
    for path, slices in files.items():
        kinds[_suffix(path)] += slices
    shown = [kind for kind, _ in kinds.most_common(_MOST_GLOBS)]
    return ", ".join(f'"**/*{kind}": {"DX" if kind in _PICTURES else "CT"}' for kind in shown)


def _suffix(path: str) -> str:
    """Return a file's suffix as it is spelt; "" for one that is no image's, and may be a name."""
    name = PurePosixPath(path).name
    known = [suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)]
    return name[-len(max(known, key=len)) :] if known else ""
