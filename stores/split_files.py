"""Who stands on which side of a split, as a file tells it; see `pipeline.evaluation.splits`.

Here is what a purge needs to know of it: a split without a patient is a split, with its own digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Sides = Mapping[str, Sequence[str]]


def digest_of(patients: Sides) -> str:
    """Return the sha256 of who stands where (side -> patients), as hex."""
    # Sorted and without spaces: equal splits are equal text.
    text = json.dumps(patients, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names_any(text: str, patients: Collection[str]) -> bool:
    """Return whether a file names any of the patients."""
    return any(patient in text for patient in patients)


def text_without(text: str, patients: Collection[str]) -> str | None:
    """Return a split file without some patients; None where a side has no other.

    A split without a patient on a side is none: it is to be dealt anew.
    """
    document = json.loads(text)
    for each in (document, *document["additions"]):
        each["patients"] = _sides_without(each["patients"], patients)
        each["digest"] = digest_of(each["patients"])
    # What was dealt first must be a split by itself; what was added later need not.
    if not all(document["patients"].values()):
        return None
    return json.dumps(document, indent=1) + "\n"


def _sides_without(sides: Any, patients: Collection[str]) -> dict[str, list[str]]:
    return {side: [name for name in names if name not in patients] for side, names in sides.items()}
