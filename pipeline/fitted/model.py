"""A model as it is used: from features to probabilities, and how unlike they are to its own.

Dims: n units, m slices, d features, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, SliceWeights, Units
from pipeline.config.heads import declared
from pipeline.evaluation.covariates import ColumnTexts
from pipeline.evaluation.heads.contract import Head, HeadState, Predictor
from pipeline.evaluation.pooling import FittedScaling, read_features, read_slice_features
from pipeline.fitted.folder import HEAD, TRAINING, UNLIKE, parameters_of, read_arrays, read_verified
from pipeline.fitted.record import FiledRecord, ModelRecord
from pipeline.fitted.units import unit_chunks
from pipeline.fitted.unlike import References
from pipeline.shared.arrays import Floats
from stores.errors import ModelError
from stores.features import FeatureStore

Doubles = NDArray[np.float64]
# What stands before the names of a scaling's arrays, beside those of the head.
SCALING = "scaling."


R_co = TypeVar("R_co", bound=FiledRecord, covariant=True)


@dataclass(frozen=True)
class FiledModel(Generic[R_co]):
    """A model that was read from its folder. Its arrays are read when they are first needed."""

    path: Path
    record: R_co

    @property
    def classes_(self) -> NDArray[np.str_]:
        """(c,): the names of what it tells apart."""
        return np.array(self.record.classes, np.str_)

    @cached_property
    def references(self) -> References:
        """The features that new ones are held against."""
        arrays = read_arrays(self.path, self.record, UNLIKE)
        return References(
            features=arrays["features"],
            patient=arrays["patient"],
            distances=arrays["distances"],
            k=self.record.unlike.neighbours,
        )

    @cached_property
    def training(self) -> dict[str, NDArray[np.uint8]]:
        """Digests of what the model has learnt from: `pixels` and `patients`, (., 16) bytes."""
        return read_arrays(self.path, self.record, TRAINING)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return read_arrays(self.path, self.record, HEAD)


@dataclass(frozen=True)
class Answer:
    """What a model says of units. proba (n, c); distances (n,): how far each is; weights: how much
    each of their slices counted, of heads that say so.
    """

    proba: Doubles
    distances: Doubles
    weights: SliceWeights | None


@dataclass(frozen=True)
class Model(FiledModel[ModelRecord]):
    """A model of a task. `classes_` are the names of the columns of `proba`."""

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read a model's folder and hold every file of it against its digest.

        Raises ModelError for one that is missing, damaged or of another version, or draws masks.
        """
        record = read_verified(path)
        if not isinstance(record, ModelRecord):
            raise ModelError(
                f"The model {str(path)!r} draws masks ({', '.join(record.structures)}), and one of "
                "a task is asked for."
            )
        return cls(path, record)

    @property
    def sees(self) -> Literal["units", "slices"]:
        """Whether the head sees features of units, or of each of their slices."""
        return self.record.sees

    @cached_property
    def scaling(self) -> FittedScaling:
        """How features are scaled before the head sees them."""
        of_scaling = {}
        for name, array in self._arrays.items():
            if name.startswith(SCALING):
                of_scaling[name.removeprefix(SCALING)] = array.astype(np.float64, copy=False)
        return FittedScaling(self.record.scaling.kind, **of_scaling)

    @cached_property
    def predictor(self) -> Predictor:
        """What the head says of units."""
        of_head = {}
        for name, array in self._arrays.items():
            if not name.startswith(SCALING):
                of_head[name] = array
        with parameters_of(self.path):
            return self._from_state()(HeadState(of_head, self.record.head))

    def _from_state(self) -> Callable[[HeadState], Predictor]:
        """Return what makes the head again that the model has the parameters of."""
        if self.record.tuned:
            # Here and not above: it needs torch.
            from pipeline.tuning.tuned import from_state

            return from_state
        head = declared(self.record.method)
        assert isinstance(head, Head)
        assert head.from_state is not None
        return head.from_state

    # --- what it says ----------------------------------------------------------------------

    def proba(self, x: Floats, units: Units) -> Doubles:
        """Return (n, c) what the head says of units; see `predict`. For a number (n, 1)."""
        return self.predict(x, units).proba

    def predict(self, x: Floats, units: Units) -> Prediction:
        """Return what the head says of units by the model's setting, from unscaled features.

        x (n, d) of units, or (m, d) of their slices where the head sees those. Raises ModelError
        for features of another width.
        """
        width = self.width
        if x.ndim != 2 or x.shape[1] != width:
            raise ModelError(
                f"The model {str(self.path)!r} takes features (n, {width}), "
                f"{self.record.features!r} of its recipe. Got {x.shape} instead."
            )
        predictions = self.predictor(self.scaling.apply(x), units)
        for prediction in predictions:
            if prediction.setting == self.record.setting:
                return prediction
        raise ModelError(
            f"The head of {str(self.path)!r} has no setting {self.record.setting}. It has "
            f"{[prediction.setting for prediction in predictions]}; fit the model again."
        )

    @property
    def width(self) -> int:
        """How many numbers the head sees of a unit: its features, and columns beside them."""
        return int(self.references.features.shape[1]) + self.record.covariates.width

    def of_store(
        self, store: FeatureStore, units: Units, columns: ColumnTexts | None = None
    ) -> tuple[Doubles, Doubles]:
        """Return (n, c) what the head says of units of a store, and (n,) how far each is."""
        answer = self.answer(store, units, columns)
        return answer.proba, answer.distances

    def answer(
        self, store: FeatureStore, units: Units, columns: ColumnTexts | None = None
    ) -> Answer:
        """Return all that is said of units of a store.

        columns: of its slices, where the model sees any. Each unit must have a slice with features;
        so many are read as are held at a time.
        """
        proba = []
        distances = []
        weights = []
        for some in unit_chunks(units):
            pooled = self.features_of(store, some)
            x = pooled
            if self.sees == "slices":
                x = read_slice_features(store, some, self.record.features)
            prediction = self.predict(self._with_columns(x, some, columns), some)
            proba.append(prediction.proba)
            distances.append(self.references.distances_of(pooled))
            if prediction.weights is not None:
                weights.append((prediction.weights, len(some.ids)))
        return Answer(
            np.concatenate(proba),
            np.concatenate(distances),
            SliceWeights.joined(weights) if weights else None,
        )

    def _with_columns(self, x: Floats, units: Units, columns: ColumnTexts | None) -> Floats:
        """Return features x of units, or of their slices, with the columns that the model sees."""
        covariates = self.record.covariates
        if not covariates.columns:
            return x
        assert columns is not None
        numbers = covariates.encode(columns.of_units(units))
        if self.sees == "slices":
            numbers = numbers[units.unit]
        return np.concatenate([x, numbers], axis=1)

    def features_of(self, store: FeatureStore, units: Units) -> Floats:
        """Return (n, d) the features of units of a store, pooled and not scaled."""
        record = self.record
        return read_features(store, units, record.features, record.question.pool)
