"""Do intervals cover, is chance chance, is leakage refused: seeded trials, end to end.

    python benchmarks/trials.py [TRIALS]      default: 100

A trial draws a collection of patients of several images each, whose features and labels follow a
known law, fits a probe on one set of patients and scores it on another with 95 % intervals. The
truth of each metric is what that same fitted probe scores on very many patients of the same law.
An interval that keeps its word covers it in about 95 of 100 trials; 90 to 99 is within chance for
100. Shuffled labels must give intervals of AUROC that cover 0.5. Copies of images on two sides of a
split must be refused.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.heads import probe_fit
from pipeline.evaluation.heads.contract import FitInput
from pipeline.evaluation.heads.probe import ProbeSettings
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.values import all_metrics
from pipeline.results import Tally
from stores.errors import LabelError
from tests.pipeline.collection import make_store

D, IMAGES, TRAIN, TEST, MANY = 16, 3, 160, 120, 20_000
LAWS = ("binary", "multiclass", "multilabel", "regression")
ONE = ProbeSettings(low=-1, high=-1, steps=1)


def collection(law: str, patients: int, rng: np.random.Generator, signal: float = 0.8):
    """Return features and units of a law: images of a patient share a label and a likeness."""
    patient = np.repeat(np.arange(patients), IMAGES)
    own = 0.7 * rng.standard_normal((patients, D))[patient]
    x = own + rng.standard_normal((len(patient), D))
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
    rows = np.arange(len(patient))
    groups = np.char.add("p", patient.astype(str))
    return x.astype(np.float32), Units(
        y, groups, classes, law, rows.astype(str), rows, rows, Tally()
    )


def say(x, units: Units, more_x, more: Units):
    """Return what a probe of (x, units) says of others."""
    y = np.concatenate([units.y, more.y])
    both = Units(
        y, np.concatenate([units.groups, more.groups]), units.classes, units.kind,
        np.arange(len(y)).astype(str), np.arange(len(y)), np.arange(len(y)), Tally(),
    )  # fmt: skip
    n = len(units.y)
    parts = {"train": np.arange(n), "val": np.arange(0, n, 2), "test": np.arange(n, len(y))}
    together = np.concatenate([x, more_x])
    model = probe_fit.fit(FitInput(together, both, parts, ONE), refit_on=("train",))
    (prediction,) = probe_fit.predict(model, together, parts["test"]).predictions
    return prediction.proba


def coverage(trials: int) -> None:
    print(f"\nplanted signal: of {trials} trials, how many intervals cover the truth")
    for law in LAWS:
        covered: dict[str, list[bool]] = defaultdict(list)
        width: dict[str, list[float]] = defaultdict(list)
        for trial in range(trials):
            rng = np.random.default_rng([LAWS.index(law), trial])
            x, units = collection(law, TRAIN, rng)
            test_x, test = collection(law, TEST, rng)
            many_x, many = collection(law, MANY, rng)
            proba = say(x, units, np.concatenate([test_x, many_x]), joined(test, many))
            n = len(test.y)
            found, _ = metrics.score(test, proba[:n])
            once = np.ones((len(many.y), 1))
            truth = all_metrics(many, proba[n:], once)
            for name, metric in found.items():
                covered[name].append(metric.low <= truth[name, ""][0] <= metric.high)
                width[name].append(metric.high - metric.low)
        for name, each in covered.items():
            print(
                f"  {law:11} {name:32} {sum(each):4} of {len(each)}   mean width "
                f"{np.mean(width[name]):.3f}",
                flush=True,
            )


def joined(one: Units, two: Units) -> Units:
    y = np.concatenate([one.y, two.y])
    groups = np.concatenate([one.groups, np.char.add("m", two.groups)])
    rows = np.arange(len(y))
    return Units(y, groups, one.classes, one.kind, rows.astype(str), rows, rows, Tally())


def shuffled(trials: int) -> None:
    for law in LAWS[:3]:
        hit, values = 0, []
        for trial in range(trials):
            rng = np.random.default_rng([10 + LAWS.index(law), trial])
            x, units = collection(law, TRAIN, rng, signal=0)
            test_x, test = collection(law, TEST, rng, signal=0)
            found, _ = metrics.score(test, say(x, units, test_x, test))
            metric = found["auroc"]
            hit += metric.low <= 0.5 <= metric.high
            values.append(metric.value)
        print(
            f"labels that say nothing, {law}: {hit} of {trials} intervals of AUROC cover 0.5; "
            f"mean AUROC {np.mean(values):.3f}",
            flush=True,
        )


# --- leakage, end to end -------------------------------------------------------------------


def leaked(folder: Path) -> None:
    """Ask a store in which an image of one patient is there again as another's."""
    n = 120
    x, _ = collection("binary", n, np.random.default_rng(3))
    x = x[::IMAGES]
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
            said = "answered"
        except LabelError as error:
            said = f"refused: {str(error).partition(':')[0]}"
        print(f"{copied} of {n} images are there again under another patient's id: {said}")


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        leaked(Path(folder))
    shuffled(trials)
    coverage(trials)


if __name__ == "__main__":
    main()
