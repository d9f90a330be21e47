"""An answer to masks: the head that `segment` fitted for it, filed as a model."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import segment
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.evaluation.heads.contract import HeadState
from pipeline.evaluation.known import training_digests
from pipeline.evaluation.result_files import KEY_LENGTH, publish
from pipeline.extraction.same_store import check_store
from pipeline.fitted.card import card_text
from pipeline.fitted.filing import FiledNetwork, fold_notes, references_of
from pipeline.fitted.folder import (
    CARD,
    HEAD,
    TRAINING,
    UNLIKE,
    array_bytes,
    check_free,
    write_model,
)
from pipeline.fitted.learnt import trained_on
from pipeline.fitted.mask_model import MaskModel, features_of
from pipeline.fitted.record import MaskRecord, Unlike, backbone_of
from pipeline.fitted.units import units_from
from pipeline.recipe import recipe_of
from pipeline.results import Segmented
from pipeline.segmentation import heads
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.contracts import FileableHead, FittedHead, Parts
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.predictions import read_predicted
from pipeline.shared.arrays import Floats, Rows
from stores.errors import ConfigError, LabelError

# A model that draws more of the test pixels otherwise than its answer does is not the answer's.
MOST_DIFFERENT = 1e-3


def fit_masks(
    config: Config,
    out: Path,
    *,
    task: str | None = None,
    method: str | None = None,
    device: str | None = None,
) -> MaskModel:
    """Make the model of an answer to masks and write its folder; the answer is found or computed.

    task: the masks, by their name in the config, where it has several. method: a head by its name
    there or by its method; unset, the config's only one. Raises ConfigError for what no model comes
    of, OccupiedError where `out` is taken, and as `segment` does. Nothing is written then.
    """
    check_free(out)  # before hours of work
    task = masks_named(config, task)
    name, settings = _head_named(config, method)
    config = config.model_copy(
        update={"masks": {task: config.masks[task]}, "segment": {name: settings}}
    )
    check_store(config)
    cases = SegmentationCases.of(config, task)
    where = device or "auto"
    fitted: list[FittedHead] = []
    compute = functools.partial(segment.compute_trials, cases, name, where, fitted.append)
    result = segment.answer(cases, name, compute)
    publish(config.store, [result])
    # Of an answer that was on file no head is there: it is fitted once more.
    head = fitted[0] if fitted else heads.fit(cases.source, _rows(cases), settings, device=where)
    if not isinstance(head, FileableHead):
        raise ConfigError(f"The head {name!r} ({settings.method}) cannot be filed.")
    state = head.to_state()
    units = cases.task_cases.units
    folds = cases.task_cases.folds
    learnt_from = np.concatenate([folds[0]["train"], folds[0]["val"]])
    # What is filed is held against the answer, not what was fitted.
    test = cases.rows_of(folds[0]["test"])
    filed = heads.from_state(state, cases.source, test, settings, device=where)
    filing = MaskFiling(
        cases=cases,
        result=result,
        method=settings.method,
        drawn_by=settings,
        setting=dict(head.setting),
        state=state,
        x=features_of(cases.store, units_from(units, learnt_from)),
        learnt_from=learnt_from,
        difference=share_differing(cases, result, filed.predict(cases.source, test)),
    )
    record, files = mask_record_and_files(filing)
    return MaskModel(out, write_model(out, record, files))


# --- what is asked for -----------------------------------------------------------------------


def masks_named(config: Config, name: str | None) -> str:
    """Return which masks of a config a model is made of."""
    if name is None and len(config.masks) == 1:
        (name,) = config.masks
    if name is None or name not in config.masks:
        got = "none is named" if name is None else f"got {name!r}"
        raise ConfigError(
            f"A model draws one kind of masks: {got}, the config has "
            f"{', '.join(config.masks) or 'none'}. Name one by --task."
        )
    return name


def _head_named(config: Config, name: str | None) -> tuple[str, Segment]:
    """Return the head that a name, or a method, means: one of the config, or a method's defaults.

    Raises ConfigError naming what there is.
    """
    there = config.segment
    if name is None and len(there) == 1:
        (name,) = there
    if name is not None and name in there:
        return name, there[name]
    of_method = [each for each, settings in there.items() if settings.method == name]
    if len(of_method) == 1:
        return of_method[0], there[of_method[0]]
    if name in SEGMENTATION_HEADS and not of_method:
        assert name is not None
        return name, Segment(method=name)
    got = "none is named" if name is None else f"got {name!r}"
    raise ConfigError(
        f"Masks are drawn by one head: {got}. Name one by --method: of the config "
        f"{', '.join(there) or 'none'}, or {', '.join(SEGMENTATION_HEADS)}."
    )


# --- what is filed ---------------------------------------------------------------------------


def _rows(cases: SegmentationCases) -> Parts:
    """Return the rows that a model learns from: those of the first fold."""
    fold = cases.task_cases.folds[0]
    return {part: cases.rows_of(fold[part]) for part in ("train", "val")}


@dataclass(frozen=True)
class MaskFiling:
    """All that a model of masks is made of.

    drawn_by: settings by which the head is made again of its state; x (l, d): mean tokens of the
    units learnt_from (l,). difference: the share of test pixels that it draws otherwise than its
    answer. tuned: of a tuned network.
    """

    cases: SegmentationCases
    result: Segmented
    method: str
    drawn_by: Segment
    setting: dict[str, float]
    state: HeadState
    x: Floats
    learnt_from: Rows
    difference: float
    tuned: FiledNetwork | None = None


def mask_record_and_files(
    filing: MaskFiling,
) -> tuple[MaskRecord, Mapping[str, bytes | Path]]:
    """Return a model's record, without digests, and its other files."""
    cases = filing.cases
    result = filing.result
    tuned = filing.tuned
    units = cases.task_cases.units
    numbers = np.arange(len(filing.x))
    patient = units.patient[filing.learnt_from]
    references = references_of(result.task, filing.x, numbers, patient)
    recipe = recipe_of(cases.store) if tuned is None else tuned.recipe
    backbone = backbone_of(cases.config.backbone, recipe) if tuned is None else tuned.backbone
    record = MaskRecord(
        task=result.task,
        method=filing.method,
        name=result.head,
        classes=result.classes,
        level=result.level,
        settings=result.settings,
        setting=filing.setting,
        drawn_by=filing.drawn_by,
        about=dict(filing.state.about),
        recipe=recipe,
        backbone=backbone,
        counts=result.counts,
        trained_on=trained_on(cases.store, units, filing.learnt_from),
        score=result.scores[-1],
        unlike=Unlike(neighbours=references.k, references=len(references.features)),
        difference=filing.difference,
        notes=(*result.notes, *fold_notes(len(cases.task_cases.folds))),
        provenance=result.provenance,
        tuned=tuned is not None,
        files={},
    )
    files: dict[str, bytes | Path] = {
        HEAD: array_bytes(filing.state.arrays),
        UNLIKE: array_bytes(references.arrays),
        TRAINING: array_bytes(training_digests(cases.store, units, filing.learnt_from)),
        CARD: card_text(record).encode(),
    }
    return record, files | dict(tuned.files if tuned else {})


def share_differing(
    cases: SegmentationCases, result: Segmented, drawn: Iterable[tuple[int, Labels]]
) -> float:
    """Return the share of the test pixels that a model draws otherwise than its answer.

    drawn: label values (S, S) by row. Raises LabelError where it is more than rounding: the model
    would not be the answer's.
    """
    answered = read_predicted(cases, result.head)
    different = 0
    pixels = 0
    for row, labels in drawn:
        if row in answered:
            different += int((labels != answered[row]).sum())
            pixels += labels.size
    share = different / max(pixels, 1)
    if share > MOST_DIFFERENT:
        raise LabelError(
            f"{result.task}: fitted again, {result.head} draws {share:.2%} of the pixels otherwise "
            "than the answer on file, which another machine, device or library made. Delete the "
            f"answer in the store's segmentations ({result.provenance.key[:KEY_LENGTH]}) and fit "
            "again."
        )
    return share
