"""Images of patients who were withdrawn by name: whose a slice is, and that it stays out.

By its headers or the path rule, by the label file, by a path that a label file gave to one of them,
and by its content: an image without a name that has the bytes of one of theirs is theirs, whatever
it is called now.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.label_file import read_labels
from pipeline.annotations.patients import patients_by_labels
from pipeline.config.root import Config
from pipeline.shared.pseudonyms import Names
from stores._types import Mask
from stores.errors import LabelError
from stores.slices import where
from stores.withdrawn import Withdrawn

log = logging.getLogger(__name__)

# Path -> sha256 of its bytes now; None where they cannot be read.
HashFile = Callable[[str], str | None]


def hash_of_path(names: Names, path: str) -> str:
    """Return the keyed hash by which a withdrawn patient's file is known again."""
    return names.pseudonym("file", path)


def hash_of_content(names: Names, digest: str) -> str:
    """Return the keyed hash by which the bytes of a withdrawn patient's file are known again."""
    return names.pseudonym("content", digest)


@dataclass(frozen=True)
class KeptOut:
    """Looks for the images of withdrawn patients in a collection."""

    config: Config
    names: Names
    hash_file: HashFile

    def without(
        self, slices: pa.Table, withdrawn: Withdrawn, as_before: Callable[[], pa.Array]
    ) -> tuple[pa.Table, Withdrawn]:
        """Return the slices (real paths) that are of none of the patients withdrawn by name.

        as_before: tells the paths whose content is as it was, and need not be asked. The files
        that labels or content give to a patient are among `withdrawn` as it comes back: they stay
        out where the labels are not at hand, and where their numbers were purged.
        """
        if not withdrawn.patients:
            return slices, withdrawn
        patients = pa.array(sorted(withdrawn.patients))
        by_headers = pc.is_in(slices["patient"], patients).to_numpy()
        of_labels = pa.array(self._patients_by_labels(slices), pa.string())
        by_labels = pc.is_in(of_labels, patients).to_numpy(zero_copy_only=False) & ~by_headers
        labelled = pa.table({"patient": of_labels, "path": slices["path"]})
        withdrawn = withdrawn.adding((), self._files_of(labelled.filter(pa.array(by_labels))))
        if not withdrawn.files:
            return where(slices, pa.array(~(by_headers | by_labels))), withdrawn
        nameless = pc.and_(pc.is_null(slices["patient"]), pc.is_null(of_labels))
        unknown = pc.and_(nameless, pc.invert(pc.is_in(slices["path"], as_before())))
        withdrawn = withdrawn.adding((), self._copies(slices.filter(unknown), withdrawn))
        by_path = self._by_path(slices, withdrawn.all_files)
        return where(slices, pa.array(~(by_headers | by_labels | by_path))), withdrawn

    def rows_of(self, stored: pa.Table, withdrawn: Withdrawn) -> frozenset[int]:
        """Return the rows of a slice table (real paths) that are of patients withdrawn by name."""
        if not withdrawn.patients:
            return frozenset()
        gone = stored.filter(stored["withdrawn"])
        theirs = pc.is_in(gone["patient"], pa.array(sorted(withdrawn.patients))).to_numpy()
        theirs |= self._by_path(gone, withdrawn.all_files)
        return frozenset(gone["row"].filter(pa.array(theirs)).to_pylist())

    def _by_path(self, slices: pa.Table, hashes: frozenset[str]) -> Mask:
        """Return (m,) which slices are of files that are a withdrawn patient's."""
        paths = pc.unique(slices["path"]).to_pylist()
        gone = [path for path in paths if hash_of_path(self.names, path) in hashes]
        return np.asarray(pc.is_in(slices["path"], pa.array(gone, pa.string())))

    def _files_of(self, labelled: pa.Table) -> dict[str, frozenset[str]]:
        """Return the hashes of the files that a label file gives to patients, by patient."""
        of_each = labelled.group_by("patient").aggregate([("path", "distinct")]).to_pylist()
        hashes = {}
        for each in of_each:
            hashes[each["patient"]] = frozenset(
                one for path in each["path_distinct"] for one in self._hashes(path)
            )
        return hashes

    def _hashes(self, path: str) -> Iterator[str]:
        yield hash_of_path(self.names, path)
        digest = self.hash_file(path)
        if digest is not None:
            yield hash_of_content(self.names, digest)

    def _copies(self, slices: pa.Table, withdrawn: Withdrawn) -> Mapping[str, frozenset[str]]:
        """Return the hashes of paths whose content is that of a withdrawn patient's file."""
        owners = {one: patient for patient, each in withdrawn.files.items() for one in each}
        copies: dict[str, set[str]] = defaultdict(set)
        for path in pc.unique(slices["path"]).to_pylist():
            digest = self.hash_file(path)
            owner = owners.get(hash_of_content(self.names, digest)) if digest else None
            if owner is not None:
                copies[owner].add(hash_of_path(self.names, path))
        return {patient: frozenset(each) for patient, each in copies.items()}

    def _patients_by_labels(self, slices: pa.Table) -> NDArray[np.object_]:
        """Return (m,) whom the label file gives each slice to, None for nobody."""
        config = self.config
        if config.labels is not None and config.labels.patient is not None:
            try:
                table = read_labels(config.labels, [])
                return patients_by_labels(table, slices, config.data.root, self.names)
            except LabelError as error:
                log.warning(
                    "Later images of withdrawn patients are kept out by their headers, paths and "
                    "contents alone, since labels cannot be asked: %s",
                    error,
                )
        return np.full(len(slices), None, dtype=object)
