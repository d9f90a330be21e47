"""How probes are fitted: along a path of C, or of penalties. The one module with scikit-learn.

The features are not standardised, as in DINOv2's evaluation (eval/log_regression.py). They are
centred, which changes no model (the intercept is not penalised and takes it up) but lets L-BFGS
converge in several times fewer steps. They are divided by their common spread, with C multiplied by
its square, which is the same model too but lets features of any scale converge as far. Few are
fitted in float64, which costs little, many in float32; benchmarks/references.py shows how far
either is from a fit in float64 that goes on to the end.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from pipeline.annotations.units import Prediction, Truth, Units
from pipeline.config.tasks import Part
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    HeadState,
    Parts,
    Predicted,
    Rows,
)
from pipeline.evaluation.heads.modelled import modelled
from pipeline.evaluation.heads.probe import ProbeSettings
from pipeline.evaluation.heads.probe_state import LogisticProblem, LogisticState, ridge_state
from pipeline.evaluation.heads.ridge import RidgePath, fit_ridge
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.shared.arrays import mean, moments, softmax, take_scaled
from pipeline.shared.texts import plain_number

Proba = NDArray[np.float64]
MAX_ITER = 1000
TOLERANCE = 1e-6  # where L-BFGS stops: the greatest slope of the mean loss
# A fit has converged where one that goes on to a slope so many times less says the same of val, to
# within MOVED of a probability. Of classes that can be told apart the loss is flat long before a
# large C has its say: the slope alone does not tell.
FURTHER = 100
MOVED = 0.01
FEW = 2**22  # numbers: 32 MB in float64


class Fitted(Protocol):
    """What says something of units: `_Logistic` or `_Number`."""

    def predict(self, x: Floats, rows: Rows) -> Proba:
        """Return (q, c) what it says of the rows `rows` of x (n, d)."""
        ...


@dataclass(frozen=True)
class Probe:
    """A fitted probe, and the C or alpha that was chosen for it; no model where none can be.

    on_val (v, c): what the fit on train alone with that C says of val; None for a number.
    """

    fitted: Fitted | None
    setting: dict[str, float]
    notes: list[str]
    on_val: Proba | None = None


def fit(given: FitInput[ProbeSettings], refit_on: Sequence[Part] = ("train", "val")) -> Probe:
    """Fit as `fit_unchecked` does, and note where the fit with the chosen C has not converged."""
    probe = fit_unchecked(given, refit_on)
    return replace(probe, notes=[*probe.notes, *_moved_notes(given, probe)])


def fit_unchecked(
    given: FitInput[ProbeSettings],
    refit_on: Sequence[Part] = ("train", "val"),
) -> Probe:
    """Fit on train for each C, choose C on val by macro AUROC, and fit it again on `refit_on`.

    Of equals the C of the smaller log-loss is chosen: the smallest of many that rank alike would
    say nearly the same of every unit. Notes say which labels have no model, how C was chosen, and
    how many fits stopped early. On a device scikit-learn fits classes through its array API.
    """
    if given.units.kind == "regression":
        return _fit_number(given, refit_on)
    return _fit_classes(given, refit_on)


def predict(model: Probe, x: Floats, rows: Rows) -> Predicted:
    """Return probabilities, NaN for the labels without a model, or the number; x (n, d)."""
    if model.fitted is None:
        return Predicted([], model.notes)
    proba = model.fitted.predict(x, rows)
    return Predicted([Prediction(model.setting, proba, on_val=model.on_val)], model.notes)


def _fit_classes(given: FitInput[ProbeSettings], refit_on: Sequence[Part]) -> Probe:
    """Fit logistic regression, with the C that does best on val."""
    x = given.x
    units = given.units
    train = given.parts["train"]
    val = given.parts["val"]
    able = modelled(units, train)
    if not able.enough:
        return Probe(None, {}, able.notes)
    grid = _grid(given.settings)
    left_out = able.left_out
    device = given.device
    # Along the path of C each fit starts from the one before, which is most of the speed.
    on_val, stopped = probabilities(x, units, train, val, grid, left_out, device)
    best, notes = _choose(units.at(val), on_val, grid)
    c = float(grid[best])
    refit = _rows_of(given.parts, refit_on)
    model, stopped_again = _fit_one(x, units, refit, c, left_out, device)
    stopped += stopped_again
    if stopped:
        notes.append(f"{stopped} fits stopped before they converged")
    return Probe(model, {"C": c}, able.notes + notes, on_val[best])


def _moved_notes(given: FitInput[ProbeSettings], probe: Probe) -> list[str]:
    """Return a note where the chosen C, fitted on train further on, says other things of val.

    One more fit, from the start: for those alone who show notes. A number has none to be made.
    """
    if probe.on_val is None:
        return []
    units = given.units
    train = given.parts["train"]
    c = probe.setting["C"]
    left_out = modelled(units, train).left_out
    (goes_on,), _ = probabilities(
        given.x,
        units,
        train,
        given.parts["val"],
        np.array([c]),
        left_out,
        given.device,
        further=True,
    )
    moved = float(np.nanmax(np.abs(goes_on - probe.on_val)))
    if moved <= MOVED:
        return []
    return [
        f"the fit with C = {plain_number(c)} stopped before it converged: where it goes on, its "
        f"probabilities of val move by up to {moved:.2f}"
    ]


def _fit_number(given: FitInput[ProbeSettings], refit_on: Sequence[Part]) -> Probe:
    """Fit ridge regression, with the penalty alpha whose squared error on val is least."""
    x = given.x
    y = given.units.y
    penalties = 1 / _grid(given.settings)
    errors = _errors_on_val(x, y, given.parts, penalties)
    best = int(errors.argmin())
    alpha = float(penalties[best])
    refit = _rows_of(given.parts, refit_on)
    path = fit_ridge(x, y, refit, penalties[best : best + 1])
    notes = []
    if _at_edge(best, penalties):
        notes.append(f"alpha = {plain_number(alpha)} is at the edge of the grid")
    return Probe(_Number(path), {"alpha": alpha}, notes)


def _grid(settings: ProbeSettings) -> Proba:
    """Return every C that is tried (a,), ascending."""
    powers = np.linspace(settings.low, settings.high, settings.steps)
    return np.asarray(10**powers)


def _at_edge(best: int, grid: Proba) -> bool:
    """Return whether a choice is the first or last of several: a better one may lie beyond."""
    last = len(grid) - 1
    return last > 0 and best in (0, last)


def _rows_of(parts: Parts, names: Sequence[Part]) -> Rows:
    return np.concatenate([parts[part] for part in names])


def _choose(val: Truth, on_val: list[Proba], grid: Proba) -> tuple[int, list[str]]:
    """Return the place of the best C of a grid, and what there is to say about it.

    on_val: what the fit with each C says of the units of val.
    """
    best = best_of([quality(val, proba) for proba in on_val])
    if best is None:
        # The C nearest to 1, scikit-learn's own.
        distance = np.abs(np.log(grid))
        nearest = int(distance.argmin())
        reason = "was not chosen: all val units have the same labels"
        return nearest, [f"C = {plain_number(grid[nearest])} {reason}"]
    if _at_edge(best, grid):
        return best, [f"C = {plain_number(grid[best])} is at the edge of the grid"]
    return best, []


def _errors_on_val(
    x: Floats,
    y: Proba,
    parts: Parts,
    penalties: Proba,
) -> Proba:
    """Return (a,) the mean squared error on val of ridge regression with each penalty."""
    val = parts["val"]
    path = fit_ridge(x, y, parts["train"], penalties)
    wrong = path.predict(x, val) - y[val]
    errors: Proba = (wrong**2).mean(axis=1)
    return errors


@dataclass(frozen=True)
class _Number:
    """Ridge regression with one penalty."""

    path: RidgePath

    def predict(self, x: Floats, rows: Rows) -> Proba:
        """Return the numbers (q, 1)."""
        return self.path.predict(x, rows).T


# --- classes and labels --------------------------------------------------------------------


def probabilities(
    x: Floats,
    units: Units,
    fit: Rows,
    score: Rows,
    grid: Proba,
    left_out: list[str],
    device: str | None = None,
    *,
    further: bool = False,
) -> tuple[list[Proba], int]:
    """Fit on some units with each C of a grid; return what they say of others, (q, c) a C.

    One multinomial model, or for multi-label one a label, NaN for labels `left_out`. Each fit
    starts from the one before. further: fits go on where they would stop. Also returns how many
    fits stopped before they converged.
    """
    # What is fitted alone says how features are scaled.
    scale = _Scale.of(x, fit)
    queries = scale.apply(x, score)
    shape = (len(score), len(units.classes))
    proba = [np.full(shape, np.nan) for _ in grid]
    stopped = 0
    for problem in _problems(x, units, fit, scale, left_out):
        classifier = problem.classifier(device, TOLERANCE / FURTHER if further else TOLERANCE)
        fitted = classifier.prepared(problem.x)
        prepared_queries = classifier.prepared(queries)
        for joint, c in zip(proba, grid, strict=True):
            stopped += classifier.fit(fitted, problem.y, scale.of_scaled(c))
            of_problem = classifier.proba(prepared_queries)
            _put(of_problem, problem.label, joint)
    return proba, stopped


def _fit_one(
    x: Floats,
    units: Units,
    rows: Rows,
    c: float,
    left_out: list[str],
    device: str | None,
) -> tuple[_Logistic, int]:
    """Fit on the units `rows` with one C; also return how many fits stopped early."""
    scale = _Scale.of(x, rows)
    classifiers = []
    stopped = 0
    for problem in _problems(x, units, rows, scale, left_out):
        classifier = problem.classifier(device, TOLERANCE)
        fitted = classifier.prepared(problem.x)
        stopped += classifier.fit(fitted, problem.y, scale.of_scaled(c))
        classifiers.append((problem.label, classifier))
    return _Logistic(scale, classifiers, len(units.classes)), stopped


@dataclass(frozen=True)
class _Scale:
    """Where features are moved to before a fit: their mean (d,) to 0, their common spread to 1."""

    centre: Proba
    spread: float

    @classmethod
    def of(cls, x: Floats, rows: Rows) -> _Scale:
        return cls(*moments(x, rows))

    def of_scaled(self, c: float) -> float:
        """Return the C that makes of scaled features the model that c makes of them as they are."""
        return c * self.spread**2

    def apply(self, x: Floats, rows: Rows) -> Floats:
        return take_scaled(x, rows, self.centre, self.spread)


@dataclass(frozen=True)
class _Problem:
    """What one model is fitted to: features x (r, d), classes y (r,) below c.

    label: the number of the label it is of; None where classes exclude each other.
    """

    x: Floats
    y: Rows
    c: int
    label: int | None

    def classifier(self, device: str | None, tolerance: float) -> _Classifier:
        """Return a model that is not fitted yet; tolerance: the slope where a fit of it stops."""
        # Few numbers cost little in float64; a tensor stays what it is.
        wide = device is None and self.x.size <= FEW
        model = LogisticRegression(max_iter=MAX_ITER, tol=tolerance, warm_start=True)
        return _Classifier(model, self.c, wide, device)


def _put(proba: Proba, label: int | None, joint: Proba) -> None:
    """Write a model's probabilities (q, c) where they stand among those of all labels (q, c)."""
    if label is None:
        joint[:] = proba
    else:
        joint[:, label] = proba[:, 1]


def _problems(
    x: Floats,
    units: Units,
    rows: Rows,
    scale: _Scale,
    left_out: list[str],
) -> Iterator[_Problem]:
    """Yield one problem for exclusive classes, or one for each label that can be modelled."""
    truth = units.at(rows)
    inside = scale.apply(x, rows)
    if units.kind != "multilabel":
        yield _Problem(inside, truth.y, len(units.classes), None)
        return
    for j, name in enumerate(units.classes):
        if name in left_out:
            continue
        known = truth.known[:, j]
        # A copy only where units are left out: features may be most of the memory.
        of_known = inside
        if not known.all():
            of_known = take_scaled(inside, np.flatnonzero(known))
        y = truth.y[known, j].astype(np.int64)
        yield _Problem(of_known, y, 2, j)


@dataclass(frozen=True)
class _Classifier:
    """A logistic regression of c classes, on a device of torch's or by numpy; wide: in float64."""

    model: LogisticRegression
    c: int
    wide: bool
    device: str | None

    def prepared(self, x: Floats) -> Any:
        """Return features as the model takes them: of the right type, on the device."""
        if self.device is None:
            return x.astype(np.float64) if self.wide else x
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def fit(self, x: Any, y: Rows, c: float) -> int:
        """Fit from where the fit before ended; return how many fits stopped early: 0 or 1."""
        self.model.set_params(C=c)
        with config_context(array_api_dispatch=self.device is not None):
            return _convergence_warnings(lambda: self.model.fit(x, y))

    def proba(self, x: Any) -> Proba:
        """Return the probabilities (q, c); 0 for a class that was not among those fitted."""
        with config_context(array_api_dispatch=self.device is not None):
            decisions = self.model.decision_function(x)
        if self.device is not None:
            decisions = decisions.cpu()
        logits = np.asarray(decisions, np.float64)
        if logits.ndim == 1:  # of two classes scikit-learn gives the second's alone
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        proba = np.zeros((len(logits), self.c))
        proba[:, self.model.classes_] = softmax(logits)
        return proba


@dataclass(frozen=True)
class _Logistic:
    """Fitted classifiers, each with the label it is of: see `_Problem`."""

    scale: _Scale
    classifiers: list[tuple[int | None, _Classifier]]
    c: int

    def predict(self, x: Floats, rows: Rows) -> Proba:
        """Return the probabilities (q, c), NaN for labels without a model."""
        queries = self.scale.apply(x, rows)
        joint = np.full((len(rows), self.c), np.nan)
        for label, classifier in self.classifiers:
            proba = classifier.proba(classifier.prepared(queries))
            _put(proba, label, joint)
        return joint

    @property
    def state(self) -> LogisticState:
        """The same without scikit-learn's objects."""
        problems = []
        for label, classifier in self.classifiers:
            model = classifier.model
            problem = LogisticProblem(
                coef=_array(model.coef_),
                intercept=_array(model.intercept_),
                classes=_array(model.classes_).astype(np.int64),
                label=label,
            )
            problems.append(problem)
        return LogisticState(self.scale.centre, self.scale.spread, problems, self.c)


# --- filed -----------------------------------------------------------------------------------


def to_state(model: Probe, x: Floats) -> HeadState | None:
    """Return a fitted probe as arrays, none of which is of a single unit; None without a model."""
    match model.fitted:
        case _Number(path):
            return ridge_state(path, model.setting)
        case _Logistic():
            return model.fitted.state.to_state(model.setting)
        case _:
            return None


def _array(values: Any) -> NDArray[Any]:
    """Return what scikit-learn has fitted as an array, of a tensor's numbers too."""
    if not isinstance(values, np.ndarray):
        values = values.detach().cpu().numpy()
    return np.ascontiguousarray(values)


def _convergence_warnings(fit: Callable[[], object]) -> int:
    """Call a fit; return how many convergence warnings it raised, passing on all others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in others:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return len(caught) - len(others)


# --- a probe as the head of a network --------------------------------------------------------


class LinearHead(NamedTuple):
    """A probe as weight (o, d) and bias (o,) of the features as they are, and the C it has.

    o: one output for two classes or a number, else one a class or label.
    """

    weight: Proba
    bias: Proba
    c: float


def linear_head(
    x: Floats,
    units: Units,
    parts: Parts,
    settings: ProbeSettings,
    left_out: list[str],
) -> LinearHead:
    """Fit on train with the C that is best on val; zeros for the outputs `left_out`."""
    grid = _grid(settings)
    if units.kind == "regression":
        return _number_head(x, units.y, parts, grid)
    train = parts["train"]
    val = parts["val"]
    on_val, _ = probabilities(x, units, train, val, grid, left_out)
    best, _ = _choose(units.at(val), on_val, grid)
    c = float(grid[best])
    scale = _Scale.of(x, train)
    o = 1 if units.kind == "binary" else len(units.classes)
    weight = np.zeros((o, x.shape[1]))
    bias = np.zeros(o)
    model = LogisticRegression(C=scale.of_scaled(c), max_iter=MAX_ITER, tol=TOLERANCE)
    if units.kind == "multilabel":
        for problem in _problems(x, units, train, scale, left_out):
            _convergence_warnings(functools.partial(model.fit, problem.x, problem.y))
            weight[problem.label] = model.coef_[0]
            bias[problem.label] = model.intercept_[0]
    else:
        inside = scale.apply(x, train)
        _convergence_warnings(lambda: model.fit(inside, units.y[train]))
        outputs, fitted, shift = _by_output(model, o)
        weight[outputs] = fitted
        bias[outputs] = shift
    # Back from centred features of spread 1 to features as they are.
    weight /= scale.spread
    return LinearHead(weight, bias - weight @ scale.centre, c)


def _by_output(model: LogisticRegression, o: int) -> tuple[Any, Proba, Proba]:
    """Return of which outputs a model of exclusive classes is, and their weights and biases."""
    if o == 1:
        return [0], model.coef_, model.intercept_
    if len(model.classes_) == 2:  # train has two of more: half the difference is each one's
        weight = np.concatenate([-model.coef_, model.coef_]) / 2
        bias = np.repeat(model.intercept_, 2) * [-0.5, 0.5]
        return model.classes_, weight, bias
    return model.classes_, model.coef_, model.intercept_


def _number_head(
    x: Floats,
    y: Proba,
    parts: Parts,
    grid: Proba,
) -> LinearHead:
    """Fit ridge regression on train with the C = 1 / alpha that is best on val."""
    errors = _errors_on_val(x, y, parts, 1 / grid)
    c = float(grid[errors.argmin()])
    train = parts["train"]
    centre = mean(x, train)
    inside = take_scaled(x, train, centre)
    model = Ridge(alpha=1 / c).fit(inside, y[train])
    weight = np.asarray(model.coef_, np.float64)[None]
    return LinearHead(weight, model.intercept_ - weight @ centre, c)
