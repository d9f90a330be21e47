"""What a model has learnt from: counted, and as digests by which images and patients are known."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.evaluation.cases import slices_of
from pipeline.fitted.folder import RECORD, TRAINING, read_arrays, read_verified
from pipeline.fitted.record import TrainedOn
from pipeline.shared.arrays import Rows
from pipeline.shared.pseudonyms import Names
from stores.errors import ModelError
from stores.features import FeatureStore

Digests = NDArray[np.uint8]
# Bytes of a sha256 that tell one from another.
DIGEST = 16


def trained_on(store: FeatureStore, units: Units, numbers: Rows) -> TrainedOn:
    """Count the units of a store, by number, that a model has learnt from."""
    sizes = np.bincount(units.unit, minlength=len(units.ids))[numbers]
    slices = store.slices(["row", "modality"])
    at = np.searchsorted(slices["row"].to_numpy(), units.rows[slices_of(units, numbers)])
    counts = slices["modality"].take(pa.array(at)).value_counts().to_pylist()
    modalities = {each["values"]: each["counts"] for each in counts}
    return TrainedOn(
        units=len(numbers),
        patients=len(np.unique(units.groups[numbers])),
        slices=(int(sizes.min()), int(sizes.max())),
        modalities=dict(sorted(modalities.items())),
        key=Names(store.path).pseudonym("key", "radprobe"),
    )


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


def models_that_know(patients: Iterable[str], folders: Iterable[Path]) -> list[Path]:
    """Return the models that lie in some folders and have learnt from any of some patients.

    patients: pseudonyms of the store that they were fitted on. What cannot be read is passed over.
    """
    wanted = {patient_digest(name).tobytes() for name in patients}
    places = {path.parent.resolve() for folder in folders for path in folder.glob(f"*/{RECORD}")}
    models = []
    for place in sorted(places):
        with contextlib.suppress(ModelError):
            learnt = read_arrays(place, read_verified(place), TRAINING)["patients"]
            if wanted & {digest.tobytes() for digest in learnt}:
                models.append(place)
    return models


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
