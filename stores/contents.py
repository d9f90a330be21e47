"""What a store holds, told once: its files, its folders, its arrays and the states of a row.

Whoever makes, checks, copies or purges a store goes by the table `FOLDERS`: a new folder is one
line there, and every list of folders follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# The files that nothing can compute again are named by the manifest, and kept a second time.
MANIFEST = "manifest.json"
RECIPE = "recipe.json"
SLICES = "slices.parquet"
FILES = "files.parquet"
WITHDRAWN_PATIENTS = "withdrawn.json"
# The files at the top of a store.
TOP_FILES = (MANIFEST, RECIPE, SLICES, FILES, WITHDRAWN_PATIENTS)

FEATURES = "features.zarr"
# The attribute of features.zarr by which a store knows the key of its pseudonyms again.
KEY_CHECK = "key_check"
PARTS = "parts"
COPIES = "copies"
CLAIMS = "claims"
# What runs leave for each other and for `status`. No result depends on it.
RUNS = "runs"
RESULTS = "results"
SPLITS = "splits"
# Which patients a label file names rows after, of which the images say nothing.
PATIENTS = "patients"
MASKS = "masks"
REGIONS = "regions"
TUNED = "tuned"


@dataclass(frozen=True)
class Folder:
    """One folder of a store, and what is done with it.

    derived: it holds what was computed from the store, each file with its checksum beside it.
    travels: it is in a bucket too, and goes along when the store is copied.
    of_patients: a patient's data went into it, so that a purge empties it. from_start: a store of
    no rows has it.
    """

    name: str
    derived: bool = False
    travels: bool = False
    of_patients: bool = False
    from_start: bool = False


FOLDERS = (
    Folder(PARTS, travels=True, from_start=True),
    Folder(FEATURES, travels=True),  # made by zarr; a purge takes rows out of it
    Folder(COPIES, travels=True),  # made with the manifest
    Folder(CLAIMS, from_start=True),  # of processes of one machine: they mean nothing elsewhere
    Folder(RUNS),
    Folder(RESULTS, derived=True, travels=True, of_patients=True, from_start=True),
    # A purge takes the patient out of these. Where the others stand stays known, so that an answer
    # computed again is comparable; and so does whom a label file names, so that they can be found.
    Folder(SPLITS, derived=True, travels=True, from_start=True),
    Folder(PATIENTS, derived=True, travels=True),
    Folder("segmentations", derived=True, travels=True, of_patients=True),
    Folder(MASKS, derived=True, of_patients=True),  # made anew from the mask files where gone
    Folder(REGIONS, derived=True, of_patients=True),  # made anew from masks and tokens where gone
    Folder(TUNED, derived=True, travels=True, of_patients=True),
)
DERIVED = tuple(folder.name for folder in FOLDERS if folder.derived)
TRAVELLING = tuple(folder.name for folder in FOLDERS if folder.travels)
PUBLISHED = tuple(folder.name for folder in FOLDERS if folder.derived and folder.travels)

# What a row holds, by the array `status`.
VOID = 0
OK = 1
UNREADABLE = 2
WITHDRAWN = 3


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: the shape of a row and its dtype."""

    row_shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


# Arrays every store has beside its features. A digest is the 32 bytes of a sha256.
LEDGER = {
    "status": ArraySpec((), "uint8"),
    "file_digest": ArraySpec((32,), "uint8"),
    "pixel_digest": ArraySpec((32,), "uint8"),
}


def chunk_file(chunk: str) -> str:
    """Return the name within the store of a chunk (`cls/c/0/0/0`)."""
    return f"{FEATURES}/{chunk}"


def folder_of(name: str) -> str:
    """Return the folder at the top of a store that a file is in."""
    return name.partition("/")[0]


def is_large(name: str) -> bool:
    """Return whether a derived file is a network, which is moved by itself and when asked for."""
    return name.endswith(".safetensors")
