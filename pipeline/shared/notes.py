"""What was found out once on this machine, kept for as long as what it was found of is the same.

To ask a store for an answer on file is to read a few files; what a config is held against by then
may be gigabytes of weights, or a table of millions of slices.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from stores._disk import write_atomic

PLACE = "RADPROBE_CACHE"
_DEFAULT = "~/.cache/radprobe"


@dataclass(frozen=True)
class Note:
    """A text about something, valid while its stamp is the same.

    kind: of note, a folder of its own. subject: what it is about, such as a path, which is hashed
    since it may name a person. stamp: what changes whenever the subject does.
    """

    kind: str
    subject: str
    stamp: str

    @property
    def _path(self) -> Path:
        digest = hashlib.sha256(self.subject.encode()).hexdigest()
        place = Path(os.environ.get(PLACE) or _DEFAULT).expanduser()
        return place / self.kind / f"{digest[:32]}.json"

    def read(self) -> str | None:
        """Return the text; None where there is none, or it is of another stamp."""
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(known, dict) or known.get("stamp") != self.stamp:
            return None
        text = known.get("text")
        return text if isinstance(text, str) else None

    def write(self, text: str) -> None:
        """Keep a text; where nothing can be kept, nothing is."""
        data = json.dumps({"stamp": self.stamp, "text": text}).encode()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, data)
