"""A network tuned on masks, with a linear head on its patch tokens, fold by fold."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.methods import Method
from pipeline.config.segmentation import Segment
from pipeline.evaluation.splits import Parts
from pipeline.results import Tuned
from pipeline.segmentation import heads
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.contracts import Rows, TokenSource
from pipeline.segmentation.linear import LinearTokenHead
from pipeline.segmentation.training import TrainedHead
from pipeline.segmentation.trials import Trial, trial
from pipeline.shared.texts import plain_number
from pipeline.tuning.fold import Fold, TunedFold, fold_name
from pipeline.tuning.goals import MaskGoal, predict_masks
from pipeline.tuning.job import TuningJob, open_job
from pipeline.tuning.launch import trained_again, tune_fold
from pipeline.tuning.options import TuningOptions
from pipeline.tuning.training import TrainVal
from stores.errors import ConfigError


@dataclass(frozen=True)
class _TunedHead:
    """A tuned network as a head; see `segmentation.contracts.FittedHead`.

    slices: each a unit of its own.
    """

    fold: TunedFold
    slices: Units
    notes: tuple[str, ...]

    @property
    def setting(self) -> dict[str, float]:
        """The epoch that is kept."""
        return {"epoch": float(self.fold.tuned.epoch)}

    @property
    def seconds(self) -> float:
        """Time of training."""
        return self.fold.tuned.seconds

    def predict(self, source: TokenSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row whose image can be read with its label values (S, S)."""
        training = self.fold.training
        units = _places(self.slices, rows)
        for batch in training.test_batches(units):
            yield from predict_masks(training.network, batch)


def tune_on_masks(
    cases: SegmentationCases, method: Method, name: str, options: TuningOptions
) -> tuple[list[Trial], tuple[Tuned, ...]]:
    """Tune in each fold, and score what the networks draw on their test units together.

    name: of the answer's file.
    """
    folds = cases.task_cases.folds
    slices = _slices_as_units(cases.task_cases.units)
    label = f"{cases.task_cases.name}: {method}"
    tuned: list[TunedFold] = []
    with open_job(cases.task_cases, method, name, options, label) as job:

        def fit(number: int, parts: Parts) -> _TunedHead:
            initial = cases.initial_head(method)
            head, notes = _new_head(job, cases.source, parts, initial)
            folder = fold_name(number, len(folds))
            fold = _tune_fold(job, cases, slices, parts, head, folder)
            tuned.append(fold)
            return _TunedHead(fold, slices, tuple(notes))

        # Within the job: a fold's network draws its test units once it is tuned.
        result = trial(cases, fit, [folds])
    notes = [*result.notes]
    for fold in tuned:
        notes += fold.notes
    lost = _lost_units(cases, tuned, folds)
    if lost:
        notes.append(f"{lost} test units are not scored: not all of their slices can be used")
    return [replace(result, notes=notes)], tuple(fold.tuned for fold in tuned)


def _slices_as_units(units: Units) -> Units:
    """Return units of which each slice is one: a network learns masks slice by slice."""
    return replace(units, unit=np.arange(len(units.rows)), ids=units.rows.astype(np.str_))


def _places(slices: Units, rows: Rows) -> Rows:
    """Return the numbers of the units that are the slices of some rows."""
    return np.searchsorted(slices.rows, rows)


def _new_head(
    job: TuningJob, source: TokenSource, parts: Parts, initial: Segment | None
) -> tuple[LinearTokenHead, list[str]]:
    """Return the head that training begins with, and what there is to say of it.

    initial: the head on cached tokens that it begins as; None for weights of the seed. Raises
    ConfigError where train or val has no slice.
    """
    for part in ("train", "val"):
        if not len(parts[part]):
            raise ConfigError(
                f"Masks are learnt on train, and val says when to end. There is none in {part}."
            )
    torch.manual_seed(job.settings.seed)
    dim = job.recipe.architecture.dim
    head = LinearTokenHead(dim, len(source.classes), source.image_size, norm=False)
    if initial is None:
        return head, []
    fitted = heads.fit(source, parts, initial, device=str(job.device))
    assert isinstance(fitted, TrainedHead)
    head.load_state_dict(fitted.network.state_dict())
    chosen = ", ".join(f"{name} = {plain_number(value)}" for name, value in fitted.setting.items())
    return head, [f"the head began as the linear one on cached tokens, {chosen}"]


def _tune_fold(
    job: TuningJob,
    cases: SegmentationCases,
    slices: Units,
    parts: Parts,
    head: LinearTokenHead,
    name: str,
) -> TunedFold:
    """Tune on the masks of the rows of train. name: of the fold's folder."""
    goal = functools.partial(MaskGoal, cases.source, job.settings, job.recipe.architecture)
    train = _places(slices, parts["train"])
    val = _places(slices, parts["val"])
    fold = Fold(job, head, "patch", TrainVal(slices, train, val), goal, name)
    return trained_again(fold, tune_fold(fold))


def _lost_units(
    cases: SegmentationCases, tuned: Sequence[TunedFold], folds: Sequence[Parts]
) -> int:
    """Return how many test units have a slice that cannot be used."""
    units = cases.task_cases.units
    bad: set[int] = set()
    for fold in tuned:
        bad |= fold.training.images.bad.keys()
    with_bad = units.unit[np.isin(units.rows, list(bad))]
    tested = np.concatenate([fold["test"] for fold in folds])
    return len(np.intersect1d(with_bad, tested))
