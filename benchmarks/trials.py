"""Do intervals cover, is chance chance, is leakage refused: seeded trials of known truth.

    python benchmarks/trials.py [TRIALS [SECTION ...]]      default: 200, all sections

Sections: leakage, null, coverage, validate, perfect, onesided, compare, segmentation, fewshot,
calibrate.

A trial draws a collection of patients of several images each, whose features and labels follow a
known law. Of a holdout, a model is fitted on other patients and scored on those; of k-fold, each
fold tests a model of the others. The truth of a metric is what those models score on very many
patients: of a holdout that one model's, of k-fold those of all folds together, as their folds are
scored, and of that the mean over trials, which is what cross-validation estimates (Bates, Hastie
and Tibshirani, JASA 2023). An interval that keeps its word covers it in 95 of 100 trials. A cell is
marked where it does not in 92.5 to 97.5, what chance does in 2.3 of 100 cases allowed. Models are
logistic regressions of a fixed penalty, by Newton's steps, so that thousands are cheap.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.stats import binom, norm

from pipeline.annotations.units import Truth, Units
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.heads import fewshot
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.calibration import calibration, net_benefit
from pipeline.evaluation.metrics.values import all_metrics, columns_of, metrics_over_folds
from pipeline.evaluation.stratify import folds_by_label
from pipeline.fitted.calibration import calibrate
from pipeline.fitted.validate import benefit_of, calibration_of, unlike_share
from pipeline.results import Metric, Tally
from pipeline.segmentation.scores import UnitScores, summarise
from stores.errors import LabelError
from tests.pipeline.collection import make_store

D, IMAGES, TRAIN, MANY, FOLDS = 16, 2, 160, 1500, 5
LAWS = ("binary", "multiclass", "multilabel", "regression")
PATIENTS = (10, 20, 50, 100)
LOW, HIGH = 92.5, 97.5
# Covered or not, trial by trial, by the row of a table and its column.
Table = dict[tuple[str, ...], dict[str, list[bool]]]


# --- collections and models ----------------------------------------------------------------


def collection(law: str, patients: int, rng: np.random.Generator, signal: float = 0.8):
    """Return features (n, d) and the truth: a patient's images share label and likeness."""
    patient = np.repeat(np.arange(patients), IMAGES)
    likeness = 0.7 * rng.standard_normal((patients, D))[patient]
    x = likeness + rng.standard_normal((len(patient), D))
    if law == "regression":
        y = (50 + 8 * rng.standard_normal(patients))[patient]
        x[:, 0] += signal * (y - 50) / 8
        classes = ("age",)
    elif law == "multilabel":
        y = (rng.random((patients, 3)) < [0.5, 0.3, 0.2]).astype(np.int8)[patient]
        x[:, :3] += signal * y
        classes = ("a", "b", "c")
    else:
        c = 2 if law == "binary" else 3
        y = rng.choice(c, patients, p=[0.6, 0.4] if c == 2 else [0.5, 0.3, 0.2])[patient]
        x += signal * np.eye(D)[y]
        classes = tuple(map(str, range(c)))
    return x, Truth(y, np.char.add("p", patient.astype(str)), classes, law)


def with_one(x):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def logistic(x, y):
    """Return the weights of a logistic regression with a penalty of 3 on all but the intercept."""
    x = with_one(x)
    penalty = np.append(np.full(x.shape[1] - 1, 3.0), 1e-6)
    w = np.zeros(x.shape[1])
    for _ in range(8):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        spread = np.maximum(p * (1 - p), 1e-6)
        curve = (x.T * spread) @ x + np.diag(penalty)
        w += np.linalg.solve(curve, x.T @ (y - p) - penalty * w)
    return w


def fitted(x, truth: Truth) -> Callable:
    """Return what a model of (x, truth) says of other features."""
    if truth.kind == "regression":
        penalty = np.append(np.full(x.shape[1], 3.0), 1e-6)
        one = with_one(x)
        w = np.linalg.solve(one.T @ one + np.diag(penalty), one.T @ truth.y)
        return lambda z: (with_one(z) @ w)[:, None]
    first = 1 if truth.kind == "binary" else 0
    ws = [logistic(x, each.astype(float)) for each in truth.indicator.T[first:]]

    def say(z):
        p = 1 / (1 + np.exp(-np.clip(with_one(z) @ np.stack(ws, axis=1), -30, 30)))
        if truth.kind == "binary":
            return np.concatenate([1 - p, p], axis=1)
        return p / p.sum(axis=1, keepdims=True) if truth.kind == "multiclass" else p

    return say


def folds_of(truth: Truth, seed: int):
    names, fold = folds_by_label(truth, FOLDS, seed)
    return fold[np.searchsorted(names, truth.groups)]


def out_of_fold(x, truth: Truth, fold):
    """Return what the models of the other folds say of each, and the models."""
    models = [fitted(x[fold != i], truth.at(fold != i)) for i in range(FOLDS)]
    proba = np.stack([model(x) for model in models])
    return proba[fold, np.arange(len(x))], models


def everybody(model: Callable, x, truth: Truth) -> dict[str, float]:
    return overall(all_metrics(truth, model(x), np.ones((len(x), 1))))


def everybody_by_all(models: list[Callable], x, truth: Truth) -> dict[str, float]:
    """Return what models score together, each on the same patients."""
    proba = np.concatenate([model(x) for model in models])
    model = np.repeat(np.arange(len(models)), len(x))
    each = truth.at(np.tile(np.arange(len(x)), len(models)))
    return overall(metrics_over_folds(each, proba, model, np.ones((len(proba), 1))))


def overall(values) -> dict[str, float]:
    return {name: float(value[0]) for (name, label), value in values.items() if not label}


# --- tables --------------------------------------------------------------------------------


def covers(metric: Metric, truth: float) -> bool:
    # Without an interval nothing is promised: the cell counts those that have one.
    return metric.low - 1e-12 <= truth <= metric.high + 1e-12


def show(title: str, table: Table) -> list[str]:
    """Print how many of 100 intervals cover, a row a question; return the cells that miss."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    print(f"\n{title}\n  {'':46}" + "".join(f"{name:>13}" for name in columns))
    missing = []
    for row, cells in table.items():
        line = f"  {' '.join(row):46}"
        for name in columns:
            each = cells.get(name, [])
            if not each:
                line += f"{'-':>13}"
                continue
            share = 100 * float(np.mean(each))
            misses = beyond_chance(sum(each), len(each))
            line += f"{share:>12.1f}{'*' if misses else ' '}"
            if misses:
                missing.append(f"{' '.join(row)}, {name}: {share:.1f} of {len(each)}")
        print(line, flush=True)
    return missing


def beyond_chance(covered: int, trials: int) -> bool:
    """Return whether so many would be covered by LOW or HIGH of 100 in fewer than 2.3 of 100 cases.

    Twice the standard error, exactly: of some cells only few trials have an interval.
    """
    chance = norm.sf(2)
    too_few = binom.cdf(covered, trials, LOW / 100) < chance
    too_many = binom.sf(covered - 1, trials, HIGH / 100) < chance
    return bool(too_few or too_many)


# --- sections ------------------------------------------------------------------------------


def coverage(trials: int) -> list[str]:
    table: Table = defaultdict(lambda: defaultdict(list))
    for law in LAWS:
        for patients in PATIENTS:
            for trial in range(trials):
                rng = np.random.default_rng([LAWS.index(law), patients, trial])
                x, truth = collection(law, TRAIN, rng)
                test_x, test = collection(law, patients, rng)
                many_x, many = collection(law, MANY, rng)
                model = fitted(x, truth)
                scores, _ = metrics.score(test, model(test_x))
                true = everybody(model, many_x, many)
                for name, metric in scores.items():
                    if metric.low is not None:
                        column = f"holdout {patients}"
                        table[law, name][column].append(covers(metric, true[name]))
            by_fold(law, patients, trials, table)
    return show("planted signal: intervals that cover the truth, of 100", table)


def by_fold(law: str, patients: int, trials: int, table: Table) -> None:
    each: dict[str, list[Metric]] = defaultdict(list)
    true: dict[str, list[float]] = defaultdict(list)
    for trial in range(trials):
        rng = np.random.default_rng([LAWS.index(law), patients, trial, 1])
        x, truth = collection(law, patients, rng)
        many_x, many = collection(law, MANY, rng)
        fold = folds_of(truth, trial)
        proba, models = out_of_fold(x, truth, fold)
        scores, _ = metrics.score(truth, proba, fold)
        for name, metric in scores.items():
            each[name].append(metric)
        for name, value in everybody_by_all(models, many_x, many).items():
            true[name].append(value)
    for name, of_trials in each.items():
        # Of models that call nobody positive a PPV is of nobody.
        mean = float(np.nanmean(true[name]))
        table[law, name][f"k-fold {patients}"] = [
            covers(metric, mean) for metric in of_trials if metric.low is not None
        ]


def null(trials: int) -> list[str]:
    table: Table = defaultdict(lambda: defaultdict(list))
    for law in LAWS[:3]:
        for patients in (20, 50, 100):
            small = defaultdict(list)
            for trial in range(trials):
                rng = np.random.default_rng([10 + LAWS.index(law), patients, trial])
                x, truth = collection(law, TRAIN, rng, signal=0)
                test_x, test = collection(law, patients, rng, signal=0)
                scores, _ = metrics.score(test, fitted(x, truth)(test_x), permutations=199)
                judge_null(scores, f"holdout {patients}", law, table, small)
                fold = folds_of(test, trial)
                proba, _ = out_of_fold(test_x, test, fold)
                scores, _ = metrics.score(test, proba, fold, permutations=199)
                judge_null(scores, f"k-fold {patients}", law, table, small)
            for name, p in small.items():
                print(
                    f"  {law:12} {name:13} p <= 0.05 in {100 * np.mean(p):.1f} of 100", flush=True
                )
    return show("labels that say nothing: intervals of AUROC that cover 0.5, of 100", table)


def judge_null(scores, column: str, law: str, table: Table, small) -> None:
    metric = scores.get("auroc")
    if metric is not None and metric.low is not None:
        table[law, "auroc"][column].append(covers(metric, 0.5))
        small[column].append(metric.p is not None and metric.p <= 0.05)


def perfect(trials: int) -> list[str]:
    """Two normal scores far apart, so that few patients are told apart by all of them."""
    table: Table = defaultdict(lambda: defaultdict(list))

    def probability(score, mu):
        above = score - mu / 2
        return np.where(above > 0, 0.5 + 0.49 * norm.cdf(above), 0.005 + 0.49 * norm.cdf(above))

    for mu in (3.0, 4.0):
        sick = np.repeat([True, False], [8000, 12000])
        p = probability(mu * sick + np.random.default_rng(1).standard_normal(len(sick)), mu)
        names = np.arange(len(sick)).astype(str)
        many = Truth(sick.astype(np.int64), names, ("n", "p"), "binary")
        true = everybody(lambda _, p=p: np.stack([1 - p, p], axis=1), names, many)
        for patients in (10, 20, 30, 50, 100):
            for trial in range(trials):
                rng = np.random.default_rng([trial, patients, int(mu)])
                sick = rng.random(patients) < 0.4
                if min(sick.sum(), (~sick).sum()) < 2:
                    continue
                p = probability(mu * sick + rng.standard_normal(patients), mu)
                test = Truth(sick.astype(np.int64), names[:patients], ("n", "p"), "binary")
                scores, _ = metrics.score(test, np.stack([1 - p, p], axis=1))
                for name, metric in scores.items():
                    if metric.low is not None:
                        row = (f"true AUROC {true['auroc']:.3f}", name)
                        table[row][str(patients)].append(covers(metric, true[name]))
    return show("all but perfect scores: intervals that cover the truth, of 100", table)


def one_sided_calls(trials: int) -> list[str]:
    """Models that call nearly everybody, or nobody, a fifth of whom are positive."""
    table: Table = defaultdict(lambda: defaultdict(list))
    for sensitivity, specificity in ((1.0, 0.0), (0.99, 0.05), (0.05, 0.99), (0.95, 0.6)):
        true = (sensitivity + specificity) / 2
        for patients in PATIENTS:
            for trial in range(trials):
                rng = np.random.default_rng([trial, patients, int(100 * sensitivity), 9])
                sick = rng.random(patients) < 0.2
                called = rng.random(patients) < np.where(sick, sensitivity, 1 - specificity)
                p = np.where(called, 0.9, 0.1)
                names = np.arange(patients).astype(str)
                test = Truth(sick.astype(np.int64), names, ("n", "p"), "binary")
                scores, _ = metrics.score(test, np.stack([1 - p, p], axis=1))
                metric = scores.get("balanced_accuracy")
                if metric is not None and metric.low is not None:
                    row = (f"sensitivity {sensitivity}, specificity {specificity}",)
                    table[row][str(patients)].append(covers(metric, true))
    title = "calls of nearly all or none: intervals of balanced accuracy that cover it, of 100"
    return show(title, table)


def compared(trials: int) -> list[str]:
    """Two sets of features of equal worth: the interval of their difference covers the truth.

    That is 0 of k-fold, over collections. Two models of a holdout differ by the chance of their
    training patients, as they do on very many patients.
    """
    table: Table = defaultdict(lambda: defaultdict(list))
    for signal in (0.0, 0.8):
        of = "signal" if signal else "no signal"
        for patients in PATIENTS:
            for trial in range(trials):
                rng = np.random.default_rng([patients, trial, int(10 * signal), 7])
                (x, other), truth = two_of_equal_worth(TRAIN, signal, rng)
                (test_x, test_other), test = two_of_equal_worth(patients, signal, rng)
                (many_x, many_other), many = two_of_equal_worth(MANY, signal, rng)
                model, model_of_other = fitted(x, truth), fitted(other, truth)
                first = everybody(model, many_x, many)
                second = everybody(model_of_other, many_other, many)
                true = {name: second[name] - first[name] for name in first}
                pair = model(test_x), model_of_other(test_other)
                judge_pair(test, pair, None, true, (of, f"holdout {patients}"), table)
                fold = folds_of(test, trial)
                pair = tuple(out_of_fold(z, test, fold)[0] for z in (test_x, test_other))
                nothing = dict.fromkeys(true, 0.0)
                judge_pair(test, pair, fold, nothing, (of, f"k-fold {patients}"), table)
    return show("two of equal worth: intervals of the difference that cover it, of 100", table)


def two_of_equal_worth(patients: int, signal: float, rng: np.random.Generator):
    x, truth = collection("binary", patients, rng, signal=0)
    other, _ = collection("binary", patients, rng, signal=0)
    seen = signal * np.eye(D)[truth.y]
    return (x + seen, other + seen), truth


def judge_pair(truth, pair, fold, true, cell: tuple[str, str], table: Table) -> None:
    of, column = cell
    for each in metrics.compare(truth, *pair, fold):
        if not each.label and each.difference.low is not None:
            table[of, each.metric][column].append(covers(each.difference, true[each.metric]))


def segmentation(trials: int) -> list[str]:
    """Dice of volumes that share their patient: the mean over all."""
    table: Table = defaultdict(lambda: defaultdict(list))
    classes = ("background", "organ")
    many, _ = dice_of(400_000, np.random.default_rng(5))
    for patients in (4, 6, 10, 20, 50, 100):
        for trial in range(trials):
            dice, groups = dice_of(patients, np.random.default_rng([trial, patients, 8]))
            scores = UnitScores({"dice": dice[:, None]}, np.ones((len(dice), 2, 2), np.int64))
            overall, _ = summarise(scores, groups, classes)
            table["dice",][str(patients)].append(covers(overall["dice"], float(many.mean())))
    return show("segmentation: intervals that cover the truth, of 100", table)


def dice_of(patients: int, rng: np.random.Generator):
    patient = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    of_patient = np.sqrt(0.6) * rng.standard_normal(patients)[patient]
    logit = 1.2 + 0.8 * (of_patient + np.sqrt(0.4) * rng.standard_normal(len(patient)))
    return 1 / (1 + np.exp(-logit)), patient.astype(str)


def few_shot(trials: int) -> list[str]:
    """Episodes of collections: the truth is the mean over very many collections."""
    table: Table = defaultdict(lambda: defaultdict(list))
    for patients in (40, 100):
        for shots, of_trials in episodes(patients, trials).items():
            for name in of_trials[0]:
                every = [metric[name] for metric in of_trials]
                mean = float(np.mean([metric.value for metric in every]))
                row = (f"{shots} shots", name)
                table[row][f"{patients} patients"] = [covers(each, mean) for each in every]
    return show("few-shot: intervals that cover the mean over collections, of 100", table)


def episodes(patients: int, trials: int) -> dict[int, list[dict[str, Metric]]]:
    by_shots: dict[int, list[dict[str, Metric]]] = defaultdict(list)
    settings = fewshot.FewShotSettings(shots=(1, 5), episodes=200)
    centre = np.random.default_rng(1).standard_normal((2, D)) * 0.45
    for trial in range(trials):
        rng = np.random.default_rng([trial, patients])
        patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        y = (patient % 2 == 0).astype(np.int64)
        likeness = 0.8 * rng.standard_normal((patients, D))[patient]
        x = centre[y] + likeness + 0.7 * rng.standard_normal((len(patient), D)) + 1
        side = np.repeat([2, 1, 0], [patients // 5, patients // 5, patients - 2 * (patients // 5)])
        side = rng.permutation(side)[patient]
        rows = np.arange(len(patient))
        groups = np.char.add("p", patient.astype(str))
        units = Units(y, groups, ("n", "p"), "binary", rows.astype(str), rows, rows, Tally())
        centre_of = np.zeros(D, np.float32)
        model = fewshot.Supports(units, settings, rows[side < 2], centre_of)
        for score in fewshot.score(model, x.astype(np.float32), rows[side == 2]).scores:
            by_shots[int(score.setting["shots"])].append(score.metrics)
    return by_shots


# --- models --------------------------------------------------------------------------------


def validated(trials: int) -> list[str]:
    """A fixed model, too extreme by 1.5, at its fixed operating point, elsewhere.

    Truth is what it has on very many patients of that collection, of which so many share a label.
    """
    table: Table = defaultdict(lambda: defaultdict(list))
    for law, offset in (("even", 0.0), ("rare", 2.2)):
        many, said = told_too_extremely(200_000, offset, np.random.default_rng(11))
        true = of_everybody(many, said)
        for patients in (30, 100):
            for trial in range(trials):
                rng = np.random.default_rng([patients, trial, int(10 * offset), 12])
                truth, proba = told_too_extremely(patients, offset, rng)
                if len(np.unique(truth.y)) < 2:
                    continue
                for name, metric in metrics_of_validation(truth, proba).items():
                    if metric.low is not None and name in true:
                        table[law, name][str(patients)].append(covers(metric, true[name]))
    return show("validate: intervals that cover the truth, of 100, by patients", table)


# From which probability on the model calls a unit.
POINT = 0.6


def told_too_extremely(patients: int, offset: float, rng: np.random.Generator):
    """Return two units each of some patients, and what a fixed model says of them."""
    who = np.repeat(np.arange(patients), 2)
    leaning = rng.normal(0, 1, patients)[who] + rng.normal(0, 0.3, len(who))
    y = (rng.random(len(who)) < 1 / (1 + np.exp(offset - leaning))).astype(np.int64)
    positive = 1 / (1 + np.exp(-1.5 * leaning))
    truth = Truth(y, np.char.add("p", who.astype(str)), ("no", "yes"), "binary")
    return truth, np.stack([1 - positive, positive], axis=1)


def points_of(proba):
    return np.tile([np.nan, POINT], (len(proba), 1))


def metrics_of_validation(truth: Truth, proba) -> dict[str, Metric]:
    """Return all that `validate` gives of two classes with an interval, by name."""
    joint, _ = metrics.score(truth, proba, thresholds=points_of(proba))
    each = dict(joint) | calibration_of(truth, proba)["yes"]
    for benefit in benefit_of(truth, proba, (0.2, 0.5))["yes"]:
        each[f"net benefit at {benefit.threshold:g}"] = benefit.decided
    # As many are unlike as the model calls: a share of units, whatever it is of.
    each["share unlike"] = unlike_share(proba[:, 1] >= 0.9, truth.groups)
    return each


def of_everybody(truth: Truth, proba) -> dict[str, float]:
    """Return the same of very many patients, without intervals."""
    ones = np.ones((len(truth.y), 1))
    true = overall(all_metrics(truth, proba, ones, points_of(proba)))
    (column,) = columns_of(truth, proba)
    true |= {name: float(value[0]) for name, value in calibration(column, ones).items()}
    decided, _ = net_benefit(column, (0.2, 0.5), ones)
    true |= {f"net benefit at {at:g}": float(decided[i][0]) for i, at in enumerate((0.2, 0.5))}
    return true | {"share unlike": float((proba[:, 1] >= 0.9).mean())}


def calibrated(trials: int) -> list[str]:
    """What makes probabilities right better: val, or folds of train and val. Prints log-losses.

    A model of train and val, made right on what a model of train says of val, or on what models of
    four fifths of the patients of both say of the fifth; on very many patients.
    """
    print(
        "\nlog-loss of very many patients less that of the model as it is, mean of trials (x 1000)"
    )
    for patients in (20, 40, 80, 160, 320):
        losses: dict[str, list[float]] = defaultdict(list)
        for trial in range(trials):
            rng = np.random.default_rng([patients, trial, 13])
            x, truth = collection("binary", patients, rng)
            many_x, many = collection("binary", MANY, rng)
            for how, made in made_right(x, truth, trial):
                losses[how].append(log_loss(many, made(many_x)))
        best = np.array(losses["as it is"])
        cells = [
            f"{how} {1000 * np.mean(np.array(each) - best):+.1f}" for how, each in losses.items()
        ]
        print(f"  {patients} patients of train and val: {', '.join(cells)}", flush=True)
    return []


def made_right(x, truth: Truth, seed: int) -> Iterator[tuple[str, Callable]]:
    """Yield how a model of all is made right, and what it then says of others."""
    fold = folds_of(truth, seed)
    is_val = fold == 0
    model = fitted(x, truth)
    yield "as it is", model
    on_val = fitted(x[~is_val], truth.at(~is_val))(x[is_val])
    crossed, _ = out_of_fold(x, truth, fold)
    for how, of, said in (("val", truth.at(is_val), on_val), ("folds", truth, crossed)):
        made, _ = calibrate(of, said)

        def right(z, made=made):
            return model(z) if made is None else made.apply(model(z), truth.classes, truth.kind)

        yield how, right


def log_loss(truth: Truth, proba) -> float:
    return -float(np.log(np.clip(proba[np.arange(len(proba)), truth.y], 1e-9, 1)).mean())


# --- leakage, end to end -------------------------------------------------------------------


def leaked(folder: Path) -> None:
    """Ask a store in which an image of one patient is there again as another's."""
    n = 120
    x, _ = collection("binary", n, np.random.default_rng(3))
    x = x[::IMAGES].astype(np.float32)
    for copied in (0, 1, 30):
        store, labels = folder / f"store{copied}", folder / "labels.csv"
        pictures = np.arange(n)
        pictures[n - copied :] = pictures[:copied]
        cls = np.repeat(x[pictures][:, None], 4, axis=1)
        make_store(store, cls, [{"patient": f"P{i}"} for i in range(n)], images=pictures + 1)
        lines = [f"f{i}.png,{p % 2},P{i}" for i, p in enumerate(pictures)]
        labels.write_text("\n".join(["path,sick,patient", *lines]) + "\n")
        config = Config.model_validate(
            {
                "data": {"root": folder, "paths": "keep"}, "store": store,
                "labels": {"file": labels, "patient": "patient"},
                "split": {"kind": "kfold"}, "tasks": {"t": {"labels": ["sick"]}},
            }
        )  # fmt: skip
        try:
            evaluate(config, ["knn"])
            outcome = "answered"
        except LabelError as error:
            outcome = f"refused: {str(error).partition(':')[0]}"
        print(f"{copied} of {n} images are there again under another patient's id: {outcome}")


def sections(trials: int) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    yield "null", lambda: null(trials)
    yield "coverage", lambda: coverage(trials)
    yield "validate", lambda: validated(trials)
    yield "perfect", lambda: perfect(trials)
    yield "onesided", lambda: one_sided_calls(trials)
    yield "compare", lambda: compared(trials)
    yield "segmentation", lambda: segmentation(trials)
    yield "fewshot", lambda: few_shot(trials)
    yield "calibrate", lambda: calibrated(trials)


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chosen = sys.argv[2:]
    missing: dict[str, list[str]] = {}
    if not chosen or "leakage" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            leaked(Path(folder))
    for name, run in sections(trials):
        if not chosen or name in chosen:
            missing[name] = run()
    print(f"\nCells outside {LOW} to {HIGH} by more than chance:")
    for name, cells in missing.items():
        print(f"  {name}: {'; '.join(cells) or 'none'}")


if __name__ == "__main__":
    main()
