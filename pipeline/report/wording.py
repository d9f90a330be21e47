"""What methods, metrics and settings are called where people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.config.heads import declared

if TYPE_CHECKING:
    from pipeline.results import Metric, Result, Segmented

RANDOM = "RANDOM WEIGHTS"
# In the order of the table's columns; those that no result has are left out.
METRICS = {
    "auroc": "AUROC",
    "average_precision": "Avg. precision",
    "balanced_accuracy": "Bal. accuracy",
    "accuracy": "Accuracy",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "quadratic_kappa": "Quadratic kappa",
    "r2": "R²",
    "mae": "MAE",
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95, mm (or pixels)",
    "nsd": "NSD",
    "dice_ceiling": "Dice ceiling",
    "paper_dice": "Paper's Dice",
    "paper_jaccard": "Paper's Jaccard",
    "fit_seconds": "Training, s",
}
# Of fewer test patients a score says little, and that is said beside it.
FEW_PATIENTS = 20
# The one number that stands for an answer: the first of these that it has.
HEADLINE = ("auroc", "r2", "balanced_accuracy", "accuracy")


def method_title(method: str) -> str:
    """Return what a head, or a way to tune the network, is called."""
    return declared(method).title


def setting_text(setting: Mapping[str, float]) -> str:
    """Return a setting as people write it."""
    return ", ".join(f"{name} = {_number(value)}" for name, value in setting.items())


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1 and value == int(value) else f"{value:.3g}"


def few_text(result: Result | Segmented) -> str:
    """Return what is said beside a score of few test patients, and what would help; "" of others.

    Below FEW_PATIENTS an interval is wide, and one patient more may turn the answer.
    """
    test = result.counts["test"]
    if test.patients >= FEW_PATIENTS:
        return ""
    others = result.counts["train"].patients + result.counts["val"].patients
    # Where folds test in turn everybody is tested already, and more than train and val are.
    if test.patients > others:
        return f" (few: below {FEW_PATIENTS} patients)"
    return f" (few: below {FEW_PATIENTS} patients; split: {{kind: kfold}} tests all)"


def spread(metric: Metric) -> tuple[float, float] | None:
    """Return the ends of a metric's interval, where it has one."""
    if metric.low is None or metric.high is None:
        return None
    return metric.low, metric.high


def interval(metric: Metric) -> str:
    """Return a metric with its interval: 0.861 [0.82, 0.90]."""
    ends = spread(metric)
    return f"{metric.value:.3f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 slice, 1,204 slices."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
