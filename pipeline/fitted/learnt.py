"""What a model has learnt from: counted, and as digests by which images and patients are known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.units import Units
from pipeline.evaluation.cases import slices_of
from pipeline.evaluation.known import key_of, patient_digest
from pipeline.fitted.folder import RECORD, TRAINING, read_arrays, read_verified
from pipeline.fitted.record import TrainedOn
from pipeline.shared.arrays import Rows
from stores.errors import ModelError
from stores.features import FeatureStore


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
        key=key_of(store),
    )


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
