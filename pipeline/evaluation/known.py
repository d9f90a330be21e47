"""Units that were learnt from elsewhere: known again by digests of their pixels and patients.

Dims: n units, m slices.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.evaluation.cases import slices_of
from pipeline.shared.arrays import Rows
from pipeline.shared.pseudonyms import Names
from stores.features import FeatureStore

Digests = NDArray[np.uint8]
# Bytes of a sha256 that tell one from another.
DIGEST = 16


def training_digests(store: FeatureStore, units: Units, numbers: Rows) -> dict[str, Digests]:
    """Return what tells the images and patients of some units again: digests, sorted."""
    rows = units.rows[slices_of(units, numbers)]
    pixels = store.read("pixel_digest", rows)[:, :DIGEST]
    names = np.unique(units.groups[numbers]).tolist()
    patients = [patient_digest(name) for name in names]
    return {
        "pixels": np.unique(pixels, axis=0),
        "patients": np.unique(np.stack(patients), axis=0),
    }


def patient_digest(pseudonym: str) -> Digests:
    """Return (DIGEST,) what stands for a patient in a model: the digest of a keyed pseudonym."""
    digest = hashlib.sha256(f"radprobe patient {pseudonym}".encode()).digest()
    return np.frombuffer(digest[:DIGEST], np.uint8)


def known_units(
    store: FeatureStore, units: Units, training: dict[str, Digests]
) -> NDArray[np.bool_]:
    """Return (n,) which units are of patients a model has learnt from, by name or by any pixels.

    training: what `training_digests` gave. As in splits, a patient is known as a whole: whose one
    image has pixels that were learnt from is known in all others.
    """
    is_known = _by_pixels(store, units, training["pixels"])
    is_known |= _by_patient(units, training["patients"])
    return np.isin(units.groups, units.groups[is_known])


def _by_pixels(store: FeatureStore, units: Units, pixels: Digests) -> NDArray[np.bool_]:
    """Return (n,) which units hold an image that was learnt from."""
    digests = store.read("pixel_digest", units.rows)[:, :DIGEST]
    known = {digest.tobytes() for digest in pixels}
    is_known = np.array([digest.tobytes() in known for digest in digests])
    return np.bincount(units.unit, weights=is_known, minlength=len(units.ids)) > 0


def _by_patient(units: Units, patients: Digests) -> NDArray[np.bool_]:
    """Return (n,) which units are of a patient who was learnt from."""
    known = {digest.tobytes() for digest in patients}
    groups, of_group = np.unique(units.groups, return_inverse=True)
    is_known = np.array([patient_digest(name).tobytes() in known for name in groups.tolist()])
    return np.asarray(is_known[of_group])


def key_of(store: FeatureStore) -> str:
    """Return what tells the keys of stores apart, by which patients have their pseudonyms."""
    return Names(store.path).pseudonym("key", "radprobe")
