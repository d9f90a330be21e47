"""Every head and statistic against a reference on the same arrays: the largest differences.

    python benchmarks/references.py

References are scikit-learn, scipy, or the published formula stated plainly, one case at a time in
float64. A block says how far the probe is, in float32 and in float64, from one in float64 that goes
on until the slope is a thousandth of ours. The last one chooses C by our rule, by DINOv2's and by
AUROC with the smallest C of equals, on ten seeds of five laws, and says what test scores then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import permutation_test
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression, Ridge

from pipeline.annotations.units import Units
from pipeline.evaluation.heads import knn, probe, probe_fit
from pipeline.evaluation.heads.contract import fit_and_predict
from pipeline.evaluation.heads.knn import KnnSettings
from pipeline.evaluation.heads.probe import ProbeSettings
from pipeline.evaluation.heads.ridge import fit_ridge
from pipeline.evaluation.metrics import metrics, null, paired
from pipeline.evaluation.metrics.operating import thresholds_of
from pipeline.evaluation.metrics.quality import best_of, quality
from pipeline.evaluation.metrics.values import all_metrics
from pipeline.results import Tally

Array = np.ndarray
SHIFT = 3.0  # features of a ViT lie far from the origin
Row = tuple[str, str, float]


def units_of(y: Array, kind: str, groups: Array | None = None) -> Units:
    n = len(y)
    width = y.shape[1] if y.ndim == 2 else 1 if kind == "regression" else int(y.max()) + 1
    names = np.arange(n).astype(str)
    groups = names if groups is None else groups.astype(str)
    rows = np.arange(n)
    return Units(y, groups, tuple(map(str, range(width))), kind, names, rows, rows, Tally())


def features(y: Array, d: int = 64, seed: int = 0) -> Array:
    """Return features (n, d) of a falling spectrum, far from the origin, that lean to y."""
    x = np.random.default_rng(seed).standard_normal((len(y), d)) * np.linspace(1, 0.05, d)
    signal = y if y.ndim == 2 else np.eye(int(y.max()) + 1)[y]
    x[:, : signal.shape[1]] += signal
    return (x + SHIFT).astype(np.float32)


def halves(n: int) -> dict[str, Array]:
    return dict(
        zip(("train", "val", "test"), np.split(np.arange(n), [n // 2, n * 3 // 4]), strict=True)
    )


# --- neighbours ----------------------------------------------------------------------------


def vote_of_dinov2(x: Array, y: Array, known: Array, test: Array, k: int, most: int) -> Array:
    """Return DINOv2's votes (eval/knn.py), a query at a time, for one k of which `most` is last."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    votes = np.zeros((len(test), y.shape[1]))
    for row, i in zip(votes, test, strict=True):
        cosine = unit[known] @ unit[i]
        nearest = np.argsort(-cosine)[:most]
        weights = np.exp(cosine[nearest] / 0.07) / np.exp(cosine[nearest] / 0.07).sum()
        row += (weights[:k, None] * y[known[nearest[:k]]]).sum(axis=0)
    return votes


def ml_knn(
    x: Array, y: Array, groups: Array, known: Array, test: Array, k: int, leak: bool
) -> Array:
    """Return Zhang and Zhou's posterior, eqs. 1 to 3 with s = 1; `leak`: oneself is a neighbour."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)

    def carrying(i: int, own: bool) -> Array:
        order = known[np.argsort(-(unit[known] @ unit[i]), kind="stable")]
        others = order if own else order[groups[order] != groups[i]]
        return y[others[:k]].sum(axis=0)

    inside = np.array([carrying(i, leak) for i in known])
    out = np.empty((len(test), y.shape[1]))
    for j in range(y.shape[1]):
        has = y[known, j] == 1
        prior = (1 + has.sum()) / (2 + len(known))
        c = np.bincount(inside[has, j], minlength=k + 1)
        c_not = np.bincount(inside[~has, j], minlength=k + 1)
        for t, i in enumerate(test):
            n = carrying(i, False)[j]
            yes = prior * (1 + c[n]) / (k + 1 + c.sum())
            no = (1 - prior) * (1 + c_not[n]) / (k + 1 + c_not.sum())
            out[t, j] = yes / (yes + no)
    return out


def neighbours() -> Iterator[Row]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 1200)
    x, parts, ks = features(y), halves(1200), (5, 20, 200)
    known, one_hot = np.concatenate([parts["train"], parts["val"]]), np.eye(3)[y]
    found = list(
        fit_and_predict(
            knn.HEAD, x, units_of(y, "multiclass"), parts, KnnSettings(k=ks)
        ).predictions
    )
    votes = {k: vote_of_dinov2(x, one_hot, known, parts["test"], k, max(ks)) for k in ks}
    for k, each in zip(ks, found, strict=True):
        expected = votes[k] / votes[k].sum(axis=1, keepdims=True)
        yield f"kNN, DINOv2's vote, k = {k}", "plain numpy", gap(each.proba, expected)
    many = (rng.random((800, 4)) < 0.3).astype(np.int8)
    x, parts, groups = features(many), halves(800), np.arange(800) // 2
    known, units = (
        np.concatenate([parts["train"], parts["val"]]),
        units_of(many, "multilabel", groups),
    )
    for name, leak in (("mlknn", False), ("mlknn-paper", True)):
        found = list(
            fit_and_predict(
                knn.HEAD, x, units, parts, KnnSettings(k=(10,), multilabel=name)
            ).predictions
        )
        expected = ml_knn(x, many, groups, known, parts["test"], 10, leak)
        yield f"ML-kNN ({name}), k = 10", "the paper's formulas", gap(found[0].proba, expected)


# --- probes --------------------------------------------------------------------------------


def probes() -> Iterator[Row]:
    for c, kind in ((2, "binary"), (4, "multiclass")):
        y = np.random.default_rng(c).integers(0, c, 2000)
        x, parts, units = features(y), halves(2000), units_of(y, kind)
        (ours,) = fit_and_predict(probe.HEAD, x, units, parts, ProbeSettings()).predictions
        chosen, wide = ours.setting["C"], x.astype(np.float64)
        both = np.concatenate([parts["train"], parts["val"]])
        aurocs = {}
        for value in 10 ** np.linspace(-6, 5, 45):
            said = fitted(wide, y, parts["train"], value).predict_proba(wide[parts["val"]])
            aurocs[value] = metrics.macro_auroc(units.at(parts["val"]), said)
        worse = max(aurocs.values()) - aurocs[chosen]
        yield f"probe, {c} classes: val AUROC at its C, of 45", "scikit-learn, each cold", worse
        expected = fitted(wide, y, both, chosen).predict_proba(wide[parts["test"]])
        yield (
            f"probe, {c} classes: probabilities",
            "scikit-learn, float64",
            gap(ours.proba, expected),
        )
        truth = units.at(parts["test"])
        a, b = (metrics.macro_auroc(truth, p) for p in (ours.proba, expected))
        yield f"probe, {c} classes: test AUROC", "scikit-learn, float64", abs(a - b)
    y = np.random.default_rng(5).standard_normal(600) * 10 + 50
    x = features(np.random.default_rng(6).integers(0, 2, 600)).astype(np.float32)
    for alpha in (1e-2, 1.0, 1e3):
        path = fit_ridge(x, y, np.arange(400), np.array([alpha]))
        (ours_,) = path.predict(x, np.arange(400, len(x)))
        model = Ridge(alpha=alpha, solver="svd").fit(x[:400].astype(float), y[:400])
        yield f"ridge, alpha = {alpha:g}", "scikit-learn", gap(ours_, model.predict(x[400:]))


def fitted(x: Array, y: Array, rows: Array, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=20000, tol=1e-9).fit(x[rows], y[rows])


# --- statistics ----------------------------------------------------------------------------


def statistics() -> Iterator[Row]:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 5, 400)
    z = rng.standard_normal((400, 5)) + 1.2 * np.eye(5)[y]
    proba = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    said, truth = proba.argmax(axis=1), units_of(y, "multiclass")
    ours, by_class = metrics.score(truth, proba)
    one_hot = np.eye(5)[y]
    expected = {
        "auroc": reference.roc_auc_score(y, proba, multi_class="ovr"),
        "average_precision": reference.average_precision_score(one_hot, proba),
        "accuracy": reference.accuracy_score(y, said),
        "balanced_accuracy": reference.balanced_accuracy_score(y, said),
        "f1": reference.f1_score(y, said, average="macro"),
        "mcc": reference.matthews_corrcoef(y, said),
        "quadratic_kappa": reference.cohen_kappa_score(y, said, weights="quadratic"),
        "brier": reference.brier_score_loss(y, proba, scale_by_half=True),
        "auroc_micro": reference.roc_auc_score(one_hot, proba, average="micro"),
        "average_precision_micro": reference.average_precision_score(
            one_hot, proba, average="micro"
        ),
    }
    for name, value in expected.items():
        yield name, "scikit-learn", abs(ours[name].value - value)
    each = reference.f1_score(y, said, average=None)
    yield "f1 by class", "scikit-learn", gap([by_class[str(i)]["f1"].value for i in range(5)], each)
    yield from binary(rng)
    age = rng.standard_normal(200) * 10 + 50
    guess = age + rng.standard_normal(200) * 6
    ours, _ = metrics.score(replace(units_of(age, "regression"), classes=("age",)), guess[:, None])
    yield "r2", "scikit-learn", abs(ours["r2"].value - reference.r2_score(age, guess))
    yield "mae", "scikit-learn", abs(ours["mae"].value - reference.mean_absolute_error(age, guess))


def binary(rng: np.random.Generator) -> Iterator[Row]:
    y = rng.random(300) < 0.4
    sure = np.clip(np.round(rng.random(300) * 0.7 + 0.3 * y, 2), 0, 1)  # with ties
    truth, proba = units_of(y.astype(np.int64), "binary"), np.stack([1 - sure, sure], axis=1)
    ours, _ = metrics.score(truth, proba)
    fpr, tpr, _ = reference.roc_curve(y, sure, drop_intermediate=False)
    best = tpr[fpr <= 0.1 + 1e-9].max()
    yield (
        "sensitivity at specificity 0.9", "scikit-learn's ROC curve",
        abs(ours["sensitivity_at_specificity_0.9"].value - best),
    )  # fmt: skip
    yield (
        "f1 of the positive",
        "scikit-learn",
        abs(ours["f1"].value - reference.f1_score(y, sure > 0.5)),
    )
    yield from calibration(y, rng.random(300) ** 2)
    yield from intervals(y, sure)


def calibration(y: Array, sure: Array) -> Iterator[Row]:
    truth, proba = units_of(y.astype(np.int64), "binary"), np.stack([1 - sure, sure], axis=1)
    ours, _ = metrics.score(truth, proba)
    observed, predicted = calibration_curve(y, sure, n_bins=15)
    sizes = np.bincount((sure * 15).astype(int), minlength=15)
    ece = (sizes[sizes > 0] * abs(observed - predicted)).sum() / len(y)
    yield "ece", "scikit-learn's calibration curve", abs(ours["ece"].value - ece)
    curve = metrics.reliability(truth, proba)[""]
    yield "reliability curve", "scikit-learn", gap([b.observed for b in curve], observed)


def intervals(y: Array, sure: Array) -> Iterator[Row]:
    truth = units_of(y.astype(np.int64), "binary")
    ours, _ = metrics.score(truth, np.stack([1 - sure, sure], axis=1))
    for name, of in (("auroc", reference.roc_auc_score), ("brier", reference.brier_score_loss)):
        drawn = scipy_bootstrap(
            (y, sure), of, paired=True, vectorized=False, n_resamples=2000, method="percentile",
            rng=np.random.default_rng(7),
        ).confidence_interval  # fmt: skip
        got = [ours[name].low, ours[name].high]
        yield f"interval of {name} (another seed)", "scipy.stats.bootstrap", gap(got, drawn)
    other = np.clip(sure + np.random.default_rng(8).normal(0, 0.1, len(y)), 0, 1)
    _, covariance = paired.delong(y, np.stack([sure, other]), np.arange(len(y)))
    expected = delong_as_written(y, np.stack([sure, other]))
    yield "DeLong's covariance", "eqs. 4 to 8, pair by pair", gap(covariance, expected)
    drawn = null.permuted_aurocs(y, sure, np.arange(len(y)), 4000)
    p = permutation_test(
        (y,), lambda each: reference.roc_auc_score(each, sure), permutation_type="pairings",
        n_resamples=2000, alternative="greater", rng=np.random.default_rng(9),
    ).null_distribution  # fmt: skip
    sides = [np.percentile(each, [2.5, 50, 97.5]) for each in (drawn, p)]
    yield "permutation null, its 2.5th to 97.5th", "scipy.stats.permutation_test", gap(*sides)
    # The worked example of Holm's method: 0.005 x 4, 0.01 x 3, then the greatest so far
    yield (
        "Holm",
        "worked by hand",
        gap(paired.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]),
    )


def delong_as_written(y: Array, values: Array) -> Array:
    pairs = [[[(a > b) + (a == b) / 2 for b in v[~y]] for a in v[y]] for v in values]
    v10, v01 = np.mean(pairs, axis=2), np.mean(pairs, axis=1)
    return np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]


# --- precision -----------------------------------------------------------------------------


def precision() -> Iterator[Row]:
    """Yield how far the probe is from one that goes on to the end, in float32 and in float64.

    The labels lean to every direction of the spectrum, so that the best C is inside the grid.
    """
    for n, d in ((2000, 384), (6000, 768)):
        rng = np.random.default_rng(n)
        x = rng.standard_normal((n, d)) * np.geomspace(1, 0.02, d)
        logits = x @ (rng.standard_normal(d) / np.geomspace(1, 0.02, d))
        y = (rng.random(n) < 1 / (1 + np.exp(-4 * logits / logits.std()))).astype(np.int64)
        single, units, parts = (x + SHIFT).astype(np.float32), units_of(y, "binary"), halves(n)
        double = single.astype(np.float64)
        with to_the_end():
            of_val, chosen, of_test = aurocs_of(double, units, parts)
        for name, each in (("float32", single), ("float64", double)):
            probe_fit.FEW = 0  # or float32 is for more features than these
            val, c, test = aurocs_of(each, units, parts)
            what, against = f"probe in {name}, {n} x {d}", "float64 to the end"
            yield f"{what}: val AUROC at any of 45 C", against, gap(val, of_val)
            yield f"{what}: decades between C", against, abs(np.log10(c / chosen))
            yield f"{what}: test AUROC ({test:.3f})", against, abs(test - of_test)


@contextmanager
def to_the_end() -> Iterator[None]:
    """Let fits go on until the slope is a thousandth of what the probe stops at."""
    usual = probe_fit.TOLERANCE, probe_fit.MAX_ITER
    probe_fit.TOLERANCE, probe_fit.MAX_ITER = usual[0] / 1000, 20 * usual[1]
    yield
    probe_fit.TOLERANCE, probe_fit.MAX_ITER = usual


def aurocs_of(x: Array, units: Units, parts: dict[str, Array]) -> tuple[list[float], float, float]:
    """Return the AUROC on val at each of 45 C, the C chosen, and the AUROC on test."""
    grid = 10 ** np.linspace(-6, 5, 45)
    said, _ = probe_fit.probabilities(x, units, parts["train"], parts["val"], grid, [])
    (found,) = fit_and_predict(probe.HEAD, x, units, parts, ProbeSettings()).predictions
    val, test = (units.at(parts[part]) for part in ("val", "test"))
    aurocs = [metrics.macro_auroc(val, p) for p in said]
    return aurocs, found.setting["C"], metrics.macro_auroc(test, found.proba)


# --- choices -------------------------------------------------------------------------------

GRID = 10 ** np.linspace(-6, 5, 45)  # DINOv2's
SEEDS = 10
# Units, features, how far apart two classes are, and how common the second is.
CHOICES = (
    (150, 384, 0.5, 0.5),
    (150, 384, 0.25, 0.3),
    (200, 768, 0.25, 0.3),
    (600, 384, 0.25, 0.1),
    (2000, 384, 0.15, 0.3),
)


def choices() -> None:
    """Print what C by each rule scores on test, the means over seeds."""
    print(f"\nC on val by three rules, means of {SEEDS} seeds; C: the median, in powers of ten")
    head = ("rule", "C", "AUROC", "accuracy", "balanced", "at Youden", "Brier")
    for n, d, apart, share in CHOICES:
        print(f"{n} units of {d} numbers, {share:.0%} positive, {apart} apart")
        print("    {:24}{:>6}{:>9}{:>10}{:>10}{:>11}{:>8}".format(*head))
        by_rule: dict[str, list[list[float]]] = {}
        for seed in range(SEEDS):
            for rule, scores in scores_by_rule(n, d, apart, share, seed).items():
                by_rule.setdefault(rule, []).append(scores)
        for rule, scores in by_rule.items():
            c = np.median(np.array(scores)[:, 0])
            means = np.mean(np.array(scores)[:, 1:], axis=0)
            form = "    {:24}{:6.1f}{:9.3f}{:10.3f}{:10.3f}{:11.3f}{:8.3f}"
            print(form.format(rule, c, *means), flush=True)


def scores_by_rule(n: int, d: int, apart: float, share: float, seed: int) -> dict[str, list[float]]:
    """Return by rule: log10 C, then AUROC, accuracy and others of test."""
    rng = np.random.default_rng([n, d, seed])
    y = (rng.random(n) < share).astype(np.int64)
    spread = np.geomspace(1, 0.05, d)
    noise = rng.standard_normal((n, d)) * spread
    signal = apart * (rng.standard_normal((2, d)) * spread)[y]
    x = (noise + signal + 2 * rng.standard_normal(d)).astype(np.float32)
    cuts = [int(0.6 * n), int(0.8 * n)]
    parts = dict(zip(("train", "val", "test"), np.split(np.arange(n), cuts), strict=True))
    units = units_of(y, "binary")
    on_val, _ = probe_fit.probabilities(x, units, parts["train"], parts["val"], GRID, [])
    val = units.at(parts["val"])
    aurocs = [metrics.macro_auroc(val, proba) for proba in on_val]
    top_1 = [np.mean(proba.argmax(axis=1) == val.y) for proba in on_val]
    chosen = best_of([quality(val, proba) for proba in on_val])
    places = {
        "AUROC, then log-loss": chosen,
        "top-1, smallest (DINOv2)": int(np.argmax(top_1)),
        "AUROC, smallest": int(np.nanargmax(aurocs)),
    }
    return {
        rule: [np.log10(GRID[place]), *scores_at(x, units, parts, GRID[place])]
        for rule, place in places.items()
        if place is not None
    }


def scores_at(x: Array, units: Units, parts: dict[str, Array], c: float) -> list[float]:
    """Return what the probe of one C scores on test."""
    settings = ProbeSettings(low=np.log10(c), high=np.log10(c), steps=1)
    (prediction,) = fit_and_predict(probe.HEAD, x, units, parts, settings).predictions
    val, test = (units.at(parts[part]) for part in ("val", "test"))
    points = thresholds_of(val, prediction.on_val, "youden")
    at_points = np.tile(points, (len(test.y), 1))
    once = np.ones((len(test.y), 1))
    at_half = all_metrics(test, prediction.proba, once)
    at_point = all_metrics(test, prediction.proba, once, at_points)
    names = ("auroc", "accuracy", "balanced_accuracy")
    scores = [float(at_half[name, ""][0]) for name in names]
    balanced = float(at_point["balanced_accuracy", ""][0])
    return [*scores, balanced, float(at_half["brier", ""][0])]


def gap(ours: object, theirs: object) -> float:
    return float(np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).max())


def main() -> None:
    warnings.simplefilter("ignore")
    blocks: tuple[Callable[[], Iterator[Row]], ...] = (neighbours, probes, statistics, precision)
    print(f"{'what':58} {'against':34} largest difference")
    for block in blocks:
        for what, against, difference in block():
            print(f"{what:58} {against:34} {difference:.1e}", flush=True)
    choices()


if __name__ == "__main__":
    main()
