"""Logistic and ridge regression on frozen features. The one module that imports scikit-learn.

The features are not standardised, as in DINOv2's evaluation (eval/log_regression.py). They are
centred, which changes no model (the intercept is not penalised and takes it up) but lets L-BFGS
converge in several times fewer steps. They are divided by their common spread, with C multiplied by
its square, which is the same model too but lets features of any scale converge as far. Few are
fitted in float64, which costs little, many in float32; benchmarks/references.py shows how far
either is from a fit in float64 that goes on to the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from pipeline.annotations.units import Prediction, Units
from pipeline.config.heads import Probe
from pipeline.config.tasks import Part
from pipeline.evaluation.heads.modelled import modelled
from pipeline.evaluation.heads.ridge import ridge
from pipeline.evaluation.metrics.metrics import macro_auroc
from pipeline.shared.arrays import mean, moments, take_scaled

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Proba = NDArray[np.float64]
MAX_ITER = 1000
TOLERANCE = 1e-6  # where L-BFGS stops: the greatest slope of the mean loss
FEW = 2**22  # numbers: 32 MB in float64


def predict(
    x: Floats,
    units: Units,
    parts: Mapping[Part, Rows],
    settings: Probe,
    *,
    refit_on: Sequence[Part] = ("train", "val"),
    device: str | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Fit on train for each C, choose C on val, refit on train and val, score test; x (n, d).

    C is chosen by macro AUROC, the smaller of equals. Returns the prediction, and notes: labels
    without a model (for multi-label their column is NaN), how C was chosen, fits that stopped.
    device: of torch's, where scikit-learn fits classes through its array API; unset, numpy.
    """
    train, val, test = parts["train"], parts["val"], parts["test"]
    grid = 10 ** np.linspace(settings.low, settings.high, settings.steps)
    if units.kind == "regression":
        return _number(x, units.y, parts, 1 / grid, refit_on)
    able = modelled(units, train)
    if not able.enough:
        return [], able.notes
    on_val, stopped = probabilities(x, units, train, val, grid.tolist(), able.left_out, device)
    aurocs = np.array([macro_auroc(units.at(val), p) for p in on_val])
    best, said = _choose(aurocs, grid)
    refit = np.concatenate([parts[part] for part in refit_on])
    on_test, stopped_too = probabilities(x, units, refit, test, [best], able.left_out, device)
    if stopped + stopped_too:
        said.append(f"{stopped + stopped_too} fits stopped before they converged")
    return [Prediction({"C": best}, on_test[0])], able.notes + said


def _number(
    x: Floats, y: Proba, parts: Mapping[Part, Rows], grid: Proba, refit_on: Sequence[Part]
) -> tuple[list[Prediction], list[str]]:
    """Predict a number by ridge; the penalty alpha has the least squared error on val."""
    train, val, test = parts["train"], parts["val"], parts["test"]
    error = ((ridge(x, y, train, val, grid) - y[val]) ** 2).mean(axis=1)
    best = int(error.argmin())
    alpha, edge = grid[best], len(grid) > 1 and best in (0, len(grid) - 1)
    refit = np.concatenate([parts[part] for part in refit_on])
    said = ridge(x, y, refit, test, grid[best : best + 1])
    notes = [f"alpha = {alpha:.3g} is at the edge of the grid"] if edge else []
    return [Prediction({"alpha": float(alpha)}, said.T)], notes


def _choose(aurocs: Proba, grid: Proba) -> tuple[float, list[str]]:
    """Return the smallest of the best C, and what there is to say about it."""
    if np.isnan(aurocs).all():
        c = float(grid[np.abs(np.log(grid)).argmin()])
        return c, [f"C = {c:.3g} was not chosen: all val units have the same labels"]
    best = int(np.nanargmax(aurocs))
    c = float(grid[best])
    edge = len(grid) > 1 and best in (0, len(grid) - 1)
    return c, [f"C = {c:.3g} is at the edge of the grid"] if edge else []


def probabilities(
    x: Floats,
    units: Units,
    fit: Rows,
    score: Rows,
    grid: list[float],
    left_out: list[str],
    device: str | None = None,
) -> tuple[list[Proba], int]:
    """Fit on some units with each C in turn; return what they say of others, (q, c) a C.

    One multinomial model, or for multi-label one a label, NaN for labels `left_out`. Each fit
    starts from the one before. Also returns how many fits stopped before they converged.
    """
    truth = units.at(fit)
    centre, spread = moments(x, fit)
    inside, outside = (take_scaled(x, rows, centre, spread) for rows in (fit, score))
    grid = [c * spread**2 for c in grid]
    if units.kind != "multilabel":
        return _path(inside, truth.y, outside, grid, len(units.classes), device)
    proba = [np.full((len(score), len(units.classes)), np.nan) for _ in grid]
    stopped = 0
    for j, name in enumerate(units.classes):
        if name not in left_out:
            known = truth.known[:, j]
            own = inside if known.all() else take_scaled(inside, np.flatnonzero(known))
            each, n = _path(own, truth.y[known, j].astype(np.int64), outside, grid, 2, device)
            stopped += n
            for joint, alone in zip(proba, each, strict=True):
                joint[:, j] = alone[:, 1]
    return proba, stopped


def linear_head(
    x: Floats, units: Units, parts: Mapping[Part, Rows], settings: Probe, left_out: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Fit on train with the C that is best on val; return weight (o, d), bias (o,) and C.

    o: one output for two classes or a number, else one a class or label; zeros for those
    `left_out`.
    """
    train, val = parts["train"], parts["val"]
    grid = 10 ** np.linspace(settings.low, settings.high, settings.steps)
    if units.kind == "regression":
        return _number_head(x, units.y, train, val, grid)
    on_val, _ = probabilities(x, units, train, val, grid.tolist(), left_out)
    c, _ = _choose(np.array([macro_auroc(units.at(val), p) for p in on_val]), grid)
    truth = units.at(train)
    centre, spread = moments(x, train)
    inside = take_scaled(x, train, centre, spread)
    o = 1 if units.kind == "binary" else len(units.classes)
    weight, bias = np.zeros((o, x.shape[1])), np.zeros(o)
    model = LogisticRegression(C=c * spread**2, max_iter=MAX_ITER, tol=TOLERANCE)
    if units.kind == "multilabel":
        for j, name in enumerate(units.classes):
            if name not in left_out:
                known = truth.known[:, j]
                _fit(lambda j=j, known=known: model.fit(inside[known], truth.y[known, j]))  # type: ignore[misc]
                weight[j], bias[j] = model.coef_[0], model.intercept_[0]
    else:
        _fit(lambda: model.fit(inside, truth.y))
        fitted, shift = model.coef_, model.intercept_
        if o > 1 and len(model.classes_) == 2:  # train has two of more
            fitted, shift = np.concatenate([-fitted, fitted]) / 2, np.repeat(shift, 2) * [-0.5, 0.5]
        there = [0] if o == 1 else model.classes_
        weight[there], bias[there] = fitted, shift
    weight /= spread
    return weight, bias - weight @ centre, c


def _number_head(
    x: Floats, y: NDArray[np.float64], train: Rows, val: Rows, grid: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    errors = ((ridge(x, y, train, val, 1 / grid) - y[val]) ** 2).mean(axis=1)
    c = float(grid[errors.argmin()])
    centre = mean(x, train)
    model = Ridge(alpha=1 / c).fit(take_scaled(x, train, centre), y[train])
    weight = np.asarray(model.coef_, np.float64)[None]
    return weight, model.intercept_ - weight @ centre, c


def _path(
    x: NDArray[Any], y: Rows, queries: NDArray[Any], grid: list[float], c: int, device: str | None
) -> tuple[list[Proba], int]:
    """Return the probabilities (q, c) along a path of C, and how many fits stopped early."""
    if device is None and x.size <= FEW:
        x, queries = x.astype(np.float64), queries.astype(np.float64)
    model = LogisticRegression(max_iter=MAX_ITER, tol=TOLERANCE, warm_start=True)
    fitted, asked = _on(device, x), _on(device, queries)
    proba, stopped = [], 0
    for value in grid:
        model.set_params(C=value)
        with config_context(array_api_dispatch=device is not None):
            stopped += _fit(lambda: model.fit(fitted, y))
            found = model.decision_function(asked)
        logits = np.asarray(found if device is None else found.cpu(), np.float64)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        whole = np.zeros((len(queries), c))
        whole[:, model.classes_] = odds / odds.sum(axis=1, keepdims=True)
        proba.append(whole)
    return proba, stopped


def _on(device: str | None, x: NDArray[Any]) -> Any:
    """Return x, or a tensor of it on a device of torch's, which is imported for that alone."""
    if device is None:
        return x
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)).to(device)


def _fit(fit: Callable[[], object]) -> int:
    """Call a fit; return how many convergence warnings it raised, passing on all others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    other = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in other:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return len(caught) - len(other)
