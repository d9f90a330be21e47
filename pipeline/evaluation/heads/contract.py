"""What a head is: settings, `fit` and `predict`, and what it declares about itself.

`pipeline.config.heads` lists the heads, and says how to add one. A head is fitted once for each
fold that tests, on train and val, and then predicts the units of test:

- `fit(given)` gets a `FitInput` and returns a model, whatever the head likes that to be. It never
  sees which units test.
- `predict(model, x, rows)` returns a `Predicted` of the units `rows`. A model need not hold the
  features: `predict` is handed the same x again.
- What a model that was fitted on train alone says of val goes along (`Prediction.on_val`): from
  which probability on a unit is called positive is chosen by it. Of several settings the one that
  val chose is marked (`chosen`); `metrics.quality` says what is better.
- What cannot be fitted or predicted is a note, and no error: the next setting, or fold, goes on. A
  task that nothing at all is said of is not answered, and the notes are the reason.
- What is drawn by chance is seeded by the settings, so that an answer is the same each time.
- A head whose model can be filed has `to_state` and `from_state`: what it learnt as arrays and a
  few words, and from these a `Predictor` of units of any other collection, which says what
  `predict` says.

Dims: n units, m slices, d features, q units that are predicted, c classes or labels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Units
from pipeline.config.base import HeadSettings
from pipeline.config.heads import Declaration
from pipeline.config.tasks import Part
from pipeline.results import Score

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Parts = Mapping[Part, Rows]
S = TypeVar("S", bound=HeadSettings)
S_co = TypeVar("S_co", bound=HeadSettings, covariant=True)
T = TypeVar("T", bound=HeadSettings)
M = TypeVar("M")
# What a filed model says of units: from their features, or those of their slices in the order of
# `units.rows`, a prediction for each setting that the head tried. No label of the units is read.
Predictor = Callable[[Floats, Units], list[Prediction]]


@dataclass(frozen=True)
class HeadState:
    """What a fitted head has learnt, as it can be filed and read by whoever has numpy.

    arrays: by name; about: what is no array, as JSON has it. Nothing in either names a patient.
    """

    arrays: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitInput(Generic[S_co]):
    """What a head is fitted on.

    x: the features (n, d) of all units; of a head that sees slices, those of all slices (m, d), in
    the order of `units.rows`. parts: the unit numbers of train and of val. device: of torch's; None
    is the CPU, without torch where that can be. others: settings of the heads that this one's are
    `built_on`, by name.
    """

    x: Floats
    units: Units
    parts: Parts
    settings: S_co
    device: str | None = None
    others: Mapping[str, HeadSettings] = field(default_factory=dict)

    def settings_of(self, other: Declaration[T]) -> T:
        """Return the settings of a head that this one is built on."""
        settings = self.others[other.name]
        assert isinstance(settings, other.settings)
        return settings

    @property
    def train_and_val(self) -> Rows:
        """The units of train, then those of val."""
        return np.concatenate([self.parts["train"], self.parts["val"]])


@dataclass(frozen=True)
class Predicted:
    """What a model says of the units it was asked to predict.

    predictions: one for each setting that the head tries; an iterator may make them one by one.
    notes: what was left out or chosen, and why. scores: in the place of predictions, of a head that
    measures itself. applies: whether the head can be asked about such units at all, and few-shot
    episodes of a number cannot: a note says so, and is the whole answer.
    """

    predictions: Iterable[Prediction] = ()
    notes: Sequence[str] = ()
    scores: Sequence[Score] | None = None
    applies: bool = True


@dataclass(frozen=True, kw_only=True)
class Head(Declaration[S], Generic[S, M]):
    """A head, as it declares itself.

    fit, predict: see above. sees: features of units, or of each of their slices. folds: where folds
    test in turn, whether all are asked or the first alone. to_state: of a model and the features
    that it was fitted on, or None where that model says nothing; from_state: the way back. Unset of
    a head whose answers come from no single model.
    """

    fit: Callable[[FitInput[S]], M]
    predict: Callable[[M, Floats, Rows], Predicted]
    sees: Literal["units", "slices"] = "units"
    folds: Literal["all", "first"] = "all"
    to_state: Callable[[M, Floats], HeadState | None] | None = None
    from_state: Callable[[HeadState], Predictor] | None = None


def fit_input(
    x: Floats,
    units: Units,
    parts: Parts,
    settings: S,
    device: str | None = None,
    others: Mapping[str, HeadSettings] | None = None,
) -> FitInput[S]:
    """Return what a head is fitted on: never which units test, which it must not know."""
    known: Parts = {"train": parts["train"], "val": parts["val"]}
    return FitInput(x, units, known, settings, device, others or {})


def fit_and_predict(
    head: Head[S, Any],
    x: Floats,
    units: Units,
    parts: Parts,
    settings: S,
    device: str | None = None,
    others: Mapping[str, HeadSettings] | None = None,
) -> Predicted:
    """Fit a head on train and val, and return what it says of the units of test."""
    model = head.fit(fit_input(x, units, parts, settings, device, others))
    return head.predict(model, x, parts["test"])


def deferred(address: str) -> Callable[..., Any]:
    """Return a function that is imported when it is called, because it needs a heavy library.

    address: of the function, such as "pipeline.evaluation.heads.probe_fit.fit".
    """
    module, _, name = address.rpartition(".")

    def call(*args: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **keywords)

    return call
