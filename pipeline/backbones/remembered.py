"""What weights files were found to be, remembered on this machine.

Whoever asks a store for an answer on file names weights of up to gigabytes: they are hashed once on
each machine, and again only where size, times or inode of the file say that it is another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from pipeline.backbones.weights import identity_of, stamp_of
from stores._disk import write_atomic

PLACE = "RADPROBE_CACHE"
_DEFAULT = "~/.cache/radprobe"


def remembered_identity(file: Path) -> str:
    """Return what `identity_of` does, of a file that is hashed only where it is not known.

    Raises WeightsError for a damaged safetensors file.
    """
    stamp = stamp_of(file)
    note = _note_of(file)
    known = _read(note)
    if known.get("stamp") == stamp:
        return known["identity"]
    identity = identity_of(file)
    # Not of a file that changed while it was hashed; and where nothing can be kept, nothing is.
    if stamp_of(file) == stamp:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, json.dumps({"stamp": stamp, "identity": identity}).encode())
    return identity


def _note_of(file: Path) -> Path:
    """Return where a file's identity is remembered: by its path, which may name a person."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()
    place = Path(os.environ.get(PLACE) or _DEFAULT).expanduser()
    # Beside radprobe's folder of weights, which is carried to other machines as it is.
    return place / "identities" / f"{digest[:32]}.json"


def _read(note: Path) -> dict[str, str]:
    """Return what a note says; nothing where it is none."""
    try:
        known = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
        return {}
    return known if known.keys() == {"stamp", "identity"} else {}
