"""Who was withdrawn by name: the file `withdrawn.json`, read once into a type."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Withdrawn:
    """The patients (pseudonyms) who were withdrawn by name.

    purged: those of them whose numbers were taken out. files: of each, keyed hashes of the contents
    of files, and of the paths of those that no header names: they stay out where the labels are not
    at hand, and whatever they are called.
    """

    patients: frozenset[str] = frozenset()
    purged: frozenset[str] = frozenset()
    files: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Withdrawn:
        """Read the file; what a version does not write yet is empty.

        Raises KeyError, TypeError and ValueError where it is not as it is written.
        """
        document = json.loads(data)
        files = document.get("files", {})
        return cls(
            patients=_names(document["patients"]),
            purged=_names(document.get("purged", [])),
            files={patient: _names(hashes) for patient, hashes in files.items()},
        )

    def as_json(self) -> bytes:
        """Return the file; of what is empty, only the patients are written."""
        document: dict[str, object] = {"patients": sorted(self.patients)}
        if self.purged:
            document["purged"] = sorted(self.purged)
        if self.files:
            document["files"] = {name: sorted(self.files[name]) for name in sorted(self.files)}
        return json.dumps(document).encode()

    @property
    def all_files(self) -> frozenset[str]:
        """The keyed hashes of the files of all patients."""
        return frozenset().union(*self.files.values())

    def is_beyond(self, before: Withdrawn) -> bool:
        """Return whether any patient was withdrawn or purged since `before` was who is."""
        return bool(self.patients - before.patients or self.purged - before.purged)

    def adding(self, patients: Collection[str], files: Mapping[str, frozenset[str]]) -> Withdrawn:
        """Return this with more patients, and with more files of theirs."""
        merged = dict(self.files)
        for patient, hashes in files.items():
            merged[patient] = merged.get(patient, frozenset()) | hashes
        return replace(self, patients=self.patients | set(patients), files=merged)

    def without(self, patients: Collection[str]) -> Withdrawn:
        """Return this without some patients, who are let in again."""
        return Withdrawn(
            self.patients - set(patients),
            self.purged - set(patients),
            {name: hashes for name, hashes in self.files.items() if name not in patients},
        )

    def purging(self, patients: Collection[str]) -> Withdrawn:
        """Return this where the numbers of some of the patients are taken out."""
        return replace(self, purged=self.purged | (self.patients & set(patients)))


def _names(names: object) -> frozenset[str]:
    """Return a list of names as a set. Raises ValueError for what is none: it may be a stranger's.

    An empty name would be in every text that is searched for it.
    """
    if not isinstance(names, list):
        raise ValueError("no list of names")
    texts = [name for name in names if isinstance(name, str) and name]
    if len(texts) != len(names):
        raise ValueError("a name that is no text")
    return frozenset(texts)


NOBODY = Withdrawn()
