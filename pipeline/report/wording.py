"""What methods, metrics and settings are called where people read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal

from pipeline.config.heads import declared
from pipeline.shared.few import FEW_PATIENTS
from pipeline.shared.texts import count as count
from pipeline.shared.texts import plain_number

if TYPE_CHECKING:
    from pipeline.config.tasks import OperatingRule
    from pipeline.results import Metric, PairedUnits, Result, Score, Segmented

# What a table is of, which decides on its metrics.
TableKind = Literal["classes", "numbers", "survival", "masks"]
RANDOM = "RANDOM WEIGHTS"
# In the order of the table's columns; those that no result has are left out.
METRICS = {
    "auroc": "AUROC",
    "average_precision": "Avg. precision",
    "balanced_accuracy": "Bal. accuracy",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "quadratic_kappa": "Quadratic kappa",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "correlation": "Correlation",
    "c_harrell": "Harrell's C",
    "c_uno": "Uno's C",
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95, mm (or pixels)",
    "nsd": "NSD",
    "dice_ceiling": "Dice ceiling",
    "paper_dice": "Paper's Dice",
    "paper_jaccard": "Paper's Jaccard",
    "fit_seconds": "Training, s",
}
# What each says, for whoever meets it for the first time.
GLOSSARY = {
    "auroc": "How often a case that has the finding gets a higher probability than one that has "
    "not: 1 is always, 0.5 is chance.",
    "average_precision": "The precision in the mean over all thresholds; chance is how common the "
    "finding is.",
    "balanced_accuracy": "The mean share of each class that is told right: 0.5 of two is chance.",
    "accuracy": "The share of cases told right; where one class is common, calling all so is high.",
    "sensitivity": "Of cases with the finding, the share that is called.",
    "specificity": "Of cases without the finding, the share that is not called.",
    "ppv": "Of cases that are called, the share that has the finding, as common as it is here.",
    "npv": "Of cases that are not called, the share that has it not, as common as it is here.",
    "f1": "The harmonic mean of sensitivity and PPV.",
    "brier": "The mean squared distance of probabilities from 0 and 1: 0 is best.",
    "ece": "How far probabilities are from how often they came true, in the mean: 0 is best.",
    "quadratic_kappa": "Agreement on an ordered scale beyond chance: 1 is all, 0 is chance.",
    "r2": "The share of the variance that is predicted: 1 is all, 0 is no better than the mean.",
    "mae": "How far the number is off, in the mean, in the label's own unit.",
    "rmse": "The root of the mean squared distance, in the label's own unit: what is far off "
    "counts more.",
    "correlation": "How well predicted and true numbers lie on any one line (Pearson): 1 is "
    "exactly, 0 is not at all.",
    "c_harrell": "Of two of whom one had the event first, how often that one got the higher risk: "
    "1 is always, 0.5 is chance. Who was censored early counts less.",
    "c_uno": "The same as if nobody had been censored, so that studies watched for other times "
    "compare.",
    "dice": "Twice the overlap of predicted and true structure over the sum of both: 1 is equal.",
    "iou": "The overlap of predicted and true structure over what either has: 1 is equal.",
    "hd95": "The distance within which 95 % of one outline lies from the other: 0 is equal.",
    "nsd": "The share of both outlines that lies within the tolerance of the other: 1 is equal.",
    "dice_ceiling": "The Dice that resizing alone leaves of a perfect answer.",
    "paper_dice": "The Dice of all pixels of all test slices together, at the size of the input.",
    "paper_jaccard": "The overlap, in the same way.",
    "fit_seconds": "How long the head was trained.",
}
# Those that have no column in a table of answers, and may stand in a list of all.
_OTHER_METRICS = {
    "mcc": "MCC",
    "sensitivity_at_specificity_0.9": "Sensitivity at specificity 0.9",
}
# The one number that stands for an answer: the first of these that it has.
HEADLINE = ("auroc", "r2", "c_harrell", "balanced_accuracy", "accuracy")


# Letters of a key: some take four bytes, and a file's name has 255.
_MOST = 40


def metric_title(name: str) -> str:
    """Return what a metric is called."""
    return METRICS.get(name) or _OTHER_METRICS.get(name, name)


def method_title(method: str) -> str:
    """Return what a head, or a way to tune the network, is called."""
    return declared(method).title


def units_text(level: str, units: int, patients: int) -> str:
    """Return how many units there are, and of how many patients: 24 series of 24 patients."""
    if level == "patient":
        return count(units, "patient")
    plural = {"series": "series", "study": "studies"}.get(level, "")
    return f"{count(units, level, plural)} of {count(patients, 'patient')}"


def key_of(task: str) -> str:
    """Return a task's name as it may stand in the name of a file and in an id of the page."""
    key = "".join(c if c.isalnum() else "-" for c in task)
    if len(key) <= _MOST:
        return key
    digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{key[:_MOST]}-{digest[:8]}"


def setting_text(setting: Mapping[str, float]) -> str:
    """Return a setting as people write it; none is that of each fold's choice."""
    if not setting:
        return "chosen by fold"
    return ", ".join(f"{name} = {plain_number(value)}" for name, value in setting.items())


def table_kind(result: Result | Segmented) -> TableKind:
    """Return with which others an answer stands in one table: those that have metrics in common."""
    # Here: `radprobe --help` reads this module, and needs no pydantic for it.
    from pipeline.results import Segmented

    if isinstance(result, Segmented):
        return "masks"
    of_kind: dict[str, TableKind] = {"regression": "numbers", "survival": "survival"}
    return of_kind.get(result.kind, "classes")


def positive_text(result: Result | Segmented, label: str = "") -> str:
    """Return which of two classes is positive and how many test units carry it, of how many.

    Of survival the event. Of a label alone the numbers: its name stands beside them. "" where
    nothing is positive.
    """
    test = result.counts["test"]
    if label:
        known = test.units - test.unknown.get(label, 0)
        carried = test.positives.get(label)
        return "" if carried is None else f"{carried} of {known}"
    name = positive_name(result)
    return f"{name} ({test.positives[name]} of {test.units})" if name else ""


def positive_name(result: Result | Segmented) -> str:
    """Return which of two classes is positive, or the event; "" where there is no one such."""
    # Here: `radprobe --help` reads this module, and needs no pydantic for it.
    from pipeline.results import Result

    has_one = isinstance(result, Result) and result.kind in ("binary", "survival")
    return result.classes[-1] if has_one else ""


def point_text(score: Score, label: str = "") -> str:
    """Return from which probability on a unit is called positive, of several models the median."""
    points = score.operating_points.get(label, ())
    if not points:
        return ""
    middle = f"{median(points):.3g}"
    if len(points) == 1:
        return middle
    return f"{middle} ({min(points):.3g} to {max(points):.3g})"


def rule_text(rule: OperatingRule) -> str:
    """Return by what an operating point is chosen on val."""
    if isinstance(rule, str):
        return {"youden": "Youden", "likeliest": "above 0.5"}[rule]
    reached = rule.model_dump(exclude_none=True)
    return ", ".join(f"{name} {value:g}" for name, value in reached.items())


def few_text(result: Result | Segmented) -> str:
    """Return what is said beside a score of few test patients; "" of others."""
    return " (few)" if result.counts["test"].patients < FEW_PATIENTS else ""


def few_note(results: Iterable[Result | Segmented]) -> str:
    """Return what `few_text` means, and what would help; "" where no score is of few."""
    few = [result for result in results if few_text(result)]
    if not few:
        return ""
    advice = "" if all(map(_all_test, few)) else "; `split: {kind: kfold}` tests all patients"
    return f"(few): a score of fewer than {FEW_PATIENTS} test patients says little{advice}."


def _all_test(result: Result | Segmented) -> bool:
    """Return whether folds test in turn: more patients test then than train and validate."""
    counts = result.counts
    return counts["test"].patients > counts["train"].patients + counts["val"].patients


def spread(metric: Metric) -> tuple[float, float] | None:
    """Return the ends of a metric's interval, where it has one."""
    if metric.low is None or metric.high is None:
        return None
    return metric.low, metric.high


def interval(metric: Metric) -> str:
    """Return a metric with its interval: 0.861 [0.82, 0.90]."""
    ends = spread(metric)
    return f"{metric.value:.3f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def ends_text(metric: Metric) -> str:
    """Return the ends of a metric's interval: 0.82–0.90, and -0.31 to 0.20; "" for none."""
    ends = spread(metric)
    if ends is None:
        return ""
    # Between signs a dash would be one more.
    between = " to " if ends[0] < 0 else "\N{EN DASH}"
    return f"{ends[0]:.2f}{between}{ends[1]:.2f}"


def sentence(
    task: str,
    metrics: Mapping[str, Metric],
    tested: str,
    classes: Sequence[str] = (),
) -> str:
    """Return how an answer did in one plain sentence, without its full stop.

    tested: on whom, such as "41 patients". classes: of two classes the negative and the positive
    one, where a threshold was chosen.
    """
    name = next((name for name in METRICS if name in metrics), None)
    if name is None:
        return f"{task}: tested on {tested}, without a score"
    text = f"{task}: {METRICS[name]} {interval(metrics[name])} on {tested}"
    if len(classes) != 2 or "sensitivity" not in metrics or "specificity" not in metrics:
        return text
    negative, positive = classes
    return (
        f"{text}; at the chosen threshold {metrics['sensitivity'].value:.0%} of {positive!r} and "
        f"{metrics['specificity'].value:.0%} of {negative!r} are told right"
    )


def answer_sentence(result: Result | Segmented) -> str:
    """Return how an answer did in one plain sentence, without its full stop."""
    # Here: `radprobe --help` reads this module, and needs no pydantic for it.
    from pipeline.results import Result

    patients = count(result.counts["test"].patients, "patient")
    if isinstance(result, Result):
        score = result.main_score
        classes = result.classes if result.kind == "binary" and score.operating_points else ()
        by = method_title(result.method).lower()
    else:
        score = result.scores[-1]
        classes = ()
        by = result.head
    return sentence(f"{result.task}, {by}", score.metrics, patients, classes)


def notes_once(answers: Sequence[Result | Segmented]) -> list[tuple[str, str]]:
    """Return each note of some answers once, with the tasks and methods that have it.

    Where all of a task's methods have it, they are not named.
    """
    methods: dict[str, list[str]] = {}
    with_note: dict[str, dict[str, list[str]]] = {}
    for answer in answers:
        method = method_of(answer)
        methods.setdefault(answer.task, []).append(method)
        for note in dict.fromkeys(answer.notes):
            with_note.setdefault(note, {}).setdefault(answer.task, []).append(method)
    notes = []
    for note, of_note in with_note.items():
        tasks_by: dict[str, list[str]] = {}
        for task, some in of_note.items():
            by = "" if some == methods[task] else f" by {' and '.join(some)}"
            tasks_by.setdefault(by, []).append(task)
        whose = [f"{', '.join(tasks)}{by}" for by, tasks in tasks_by.items()]
        notes.append(("; ".join(whose), note))
    return notes


def method_of(answer: Result | Segmented) -> str:
    """Return what answered; a config names its heads of segmentation itself."""
    # Here: `radprobe --help` reads this module, and needs no pydantic for it.
    from pipeline.results import Segmented

    return answer.head if isinstance(answer, Segmented) else method_title(answer.method)


def units_alone(units: PairedUnits | None, level: str) -> list[str]:
    """Return a text for each of two answers that was tested on units which the other was not.

    level: of the units, whose ids are row numbers where they are images.
    """
    if units is None:
        return []
    sides = (
        ("first", units.first_only, units.first_only_examples),
        ("second", units.second_only, units.second_only_examples),
    )
    texts = []
    for side, number, examples in sides:
        if number:
            names = ", ".join(f"row {name}" if level == "image" else name for name in examples)
            more = f" and {number - len(examples)} more" if number > len(examples) else ""
            texts.append(f"{number} tested in the {side} alone ({names}{more})")
    return texts
