"""A model that draws masks held against the masks of another collection."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.config.root import Config
from pipeline.extraction.same_store import check_store
from pipeline.fitted.draw import SLICES_AT_ONCE, labels_of
from pipeline.fitted.mask_model import MaskModel, features_of
from pipeline.fitted.predict import UNLIKE_AT
from pipeline.fitted.sources import check_recipe
from pipeline.fitted.units import units_from
from pipeline.fitted.unlike import evenly
from pipeline.fitted.validate import (
    MOST_COMPARED,
    AnyValidation,
    domain_auroc,
    key_notes,
    strange_units,
    unlike_share,
)
from pipeline.recipe import recipe_of
from pipeline.results import PartCount, Score
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.scores import UnitScores, summarise
from pipeline.segmentation.trials import score_unit
from pipeline.shared.arrays import Rows
from stores.errors import ConfigError, LabelError


class MaskValidation(AnyValidation):
    """How a model draws: its score is of each volume or image at its own resolution.

    The positives of count are units that have a structure.
    """


def validate_masks(
    model: MaskModel,
    config: Config,
    *,
    task: str | None = None,
    leave_out_known: bool = False,
    device: str = "auto",
) -> MaskValidation:
    """Hold a model against masks of a config, on the images of the config's store.

    task: the masks by their name; unset, those called like the model's. leave_out_known: leave out
    what the model has learnt from, instead of refusing it. Raises ConfigError or LabelError for
    other masks, RecipeMismatchError for other features.
    """
    name = _masks_named(model, config, task)
    check_store(config)
    cases = SegmentationCases.of(config, name)
    check_recipe(model, cases.store)
    _refuse_other_classes(model, cases)
    units = cases.task_cases.units
    numbers = strange_units(model, cases.store, units, leave_out_known)
    scored, scores = _scores(model, cases, numbers, device)
    lost = len(numbers) - len(scored)
    notes = [*units.notes, *key_notes(model.record, cases.store)]
    if lost:
        notes.append(f"{lost} units are not scored: their images cannot be read any more")
    overall, labels = summarise(scores, units.groups[scored], cases.masks.classes)
    # How far the images differ, by their mean tokens.
    x = features_of(cases.store, units_from(units, scored))
    p = model.references.p_values(model.references.distances_of(x))
    some = evenly(np.arange(len(scored)), MOST_COMPARED)
    truth = units.at(scored)
    positives = dict(zip(units.classes, truth.indicator.sum(axis=0).tolist(), strict=True))
    return MaskValidation(
        task=name,
        model=model.record.provenance.key,
        recipe=recipe_of(cases.store).digest,
        random=model.record.random,
        count=PartCount(
            units=len(scored), patients=len(np.unique(truth.groups)), positives=positives
        ),
        score=Score(setting=model.record.setting, metrics=overall, labels=labels),
        internal=model.record.score.metrics,
        unlike=unlike_share(p <= UNLIKE_AT, truth.groups),
        domain_auroc=domain_auroc(model.references, x[some], truth.patient[some]),
        left_out=len(units.ids) - len(numbers),
        tally=units.tally,
        notes=tuple(notes),
    )


def _masks_named(model: MaskModel, config: Config, name: str | None) -> str:
    """Return which masks of a config the model is held against."""
    there = config.masks
    if name is None:
        name = model.record.task if model.record.task in there else next(iter(there), "")
        if len(there) > 1 and name != model.record.task:
            raise ConfigError(
                f"The model draws {model.record.task!r}, and the config has the masks "
                f"{', '.join(there)}. Name those that are the same by --task."
            )
    if name not in there:
        raise ConfigError(
            f"The config has no masks {name!r}. It has: {', '.join(there) or 'none'}."
        )
    return name


def _refuse_other_classes(model: MaskModel, cases: SegmentationCases) -> None:
    """Raise LabelError, with both values, where masks are of other structures than the model's."""
    here = cases.masks.classes
    if here != model.record.classes:
        raise LabelError(
            f"{cases.task_cases.name} is of other masks than the model's {model.record.task}: "
            f"classes: {list(here)} here, {list(model.record.classes)} in the model. Both must be "
            "the same."
        )


def _scores(
    model: MaskModel, cases: SegmentationCases, numbers: Rows, device: str
) -> tuple[Rows, UnitScores]:
    """Return which of some units could be drawn on, and their scores."""
    scored = []
    scores = []
    for number, labels in _drawn(model, cases, numbers, device):
        scored.append(number)
        scores.append(score_unit(cases, cases.units[number], labels))
    if not scored:
        raise LabelError(f"No unit of {cases.task_cases.name!r} can be read any more.")
    return np.array(scored, np.int64), UnitScores.of(scores)


def _drawn(
    model: MaskModel, cases: SegmentationCases, numbers: Rows, device: str
) -> Iterator[tuple[int, list[Labels]]]:
    """Yield units, by number, with the label values (S, S) of their slices."""
    first = np.array(cases.units[int(numbers[0])].rows)
    head = model.head(cases.source, first, device)
    for some in np.array_split(numbers, -(-len(numbers) // SLICES_AT_ONCE)):
        rows = [np.array(cases.units[number].rows) for number in some.tolist()]
        labels = labels_of(head, cases.source, rows)
        for number, of_unit in zip(some.tolist(), rows, strict=True):
            if all(row in labels for row in of_unit.tolist()):
                yield number, [labels[row] for row in of_unit.tolist()]
