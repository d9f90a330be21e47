"""FLOW 2, segmentation: masks + split + cached patch tokens -> head -> scores. Runs no backbone.

An answer is a file named by all it depends on, as those of `evaluate` are: the head and its
settings, the masks by content, the split, the store's fingerprint. What a head predicts on the test
units is filed beside it, so that pictures and files of it need no second fit.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.evaluation.failures import Failures
from pipeline.evaluation.result_files import (
    MASKS,
    SEGMENTATIONS,
    UNITS,
    Computed,
    find_or_compute,
    publish,
    read_answer,
)
from pipeline.results import Segmented, Tuned
from pipeline.segmentation.cases import CONTRACT, Progress, SegmentationCases
from pipeline.segmentation.predictions import part_counts
from pipeline.shared.steps import listening_to_steps, titled
from stores._disk import files_in
from stores.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.segmentation.contracts import FittedHead
    from pipeline.segmentation.trials import Trial

LIBRARIES = ("radprobe", "numpy", "torch", "monai")
# Computes an answer, on the folds that the split has by then: trials, and what was tuned for them.
Compute = Callable[[], tuple[list["Trial"], tuple[Tuned, ...]]]


def segment(
    config: Config, *, device: str = "auto", progress: Progress | None = None
) -> list[Segmented]:
    """Answer for all masks of a config by every head, from `segmentations/` where nothing changed.

    device: of torch's, such as "cuda", where heads are trained; auto, the first GPU where there is
    one; an answer does not depend on it. Masks that cannot be answered for leave the others
    answered: then UnansweredError has those. Raises ConfigError where there is nothing to ask,
    StoreNotFoundError, LabelError, or DeviceError where there is no such device.
    """
    if not config.segment or not config.masks:
        raise ConfigError(
            "There is nothing to segment: the config must have `masks` (a name for what is to be "
            "segmented, with where its masks are) and `segment` (a name for each head)."
        )
    answers: list[Segmented] = []
    failures = Failures()
    for task in config.masks:
        with failures.of(task):
            cases = SegmentationCases.of(config, task, progress)
            for head in config.segment:
                if progress:
                    number = len(config.masks) * len(config.segment)
                    progress(f"{task}: {head}", len(answers), number)
                compute = functools.partial(compute_trials, cases, head, device)
                # A head may take hours: of each of its fits is told how far it is.
                with listening_to_steps(titled(progress, f"{task}: {head}")):
                    answers.append(answer(cases, head, compute))
    if answers:
        publish(config.store, answers)
    failures.raise_with(answers)
    return answers


def on_file(config: Config, heads: Iterable[str] | None = None) -> list[Segmented]:
    """Return those answers that `segment` would find; computes none. Raises as `segment` does.

    heads: by name, those of the config if not given; or methods that tune the network.
    """
    # To know an answer's name, masks are looked at: not where there is none to be named.
    if not files_in(config.store / SEGMENTATIONS, "*.json"):
        return []
    wanted = list(config.segment if heads is None else heads)
    answers: list[Segmented] = []
    for task in config.masks:
        cases = SegmentationCases.of(config, task)
        if not cases.task_cases.is_split:
            continue
        for head in wanted:
            filed = read_answer(cases.path(head), Segmented)
            if filed is not None:
                answers.append(filed)
    return answers


def answer(cases: SegmentationCases, head: str, compute: Compute) -> Segmented:
    """Return the answer that is on file, or compute it and file it."""
    path = functools.partial(cases.path, head)
    return find_or_compute(
        cases.task_cases, path, Segmented, lambda: _computed(cases, head, compute)
    )


def _computed(cases: SegmentationCases, head: str, compute: Compute) -> Computed[Segmented]:
    """Return a head's answer, with the tables of its predictions and of its units."""
    started = time.perf_counter()
    trials, tuned = compute()
    seconds = time.perf_counter() - started
    tables = {
        # Of the last trial, which has all training patients.
        MASKS: trials[-1].predicted,
        UNITS: pa.concat_tables([trial.units for trial in trials]),
    }
    return Computed(_segmented(cases, head, trials, tuned, seconds), tables)


def _segmented(
    cases: SegmentationCases,
    head: str,
    trials: Sequence[Trial],
    tuned: tuple[Tuned, ...],
    seconds: float,
) -> Segmented:
    """Return an answer with all that it came from."""
    task_cases = cases.task_cases
    settings = cases.settings(head)
    notes = [*task_cases.notes, *_distance_notes(cases)]
    for trial in trials:
        notes += trial.notes
    return Segmented(
        task=task_cases.name,
        head=head,
        method=settings.method if isinstance(settings, Segment) else head,
        classes=cases.masks.classes,
        level="volume" if task_cases.task.level == "series" else "image",
        settings=settings.model_dump(mode="json"),
        counts=part_counts(cases),
        tally=task_cases.units.tally,
        scores=tuple(trial.score for trial in trials),
        notes=tuple(dict.fromkeys(notes)),  # each once, however many trials have it
        provenance=task_cases.provenance(cases.key(head), CONTRACT, cases.masks.digest, LIBRARIES),
        seconds=seconds,
        tuned=tuned,
    )


def compute_trials(
    cases: SegmentationCases,
    head: str,
    device: str,
    keep: Callable[[FittedHead], object] | None = None,
) -> tuple[list[Trial], tuple[Tuned, ...]]:
    """Return the trials of a head; nothing is tuned for it. keep: as `head_trials` has it."""
    # Here and not above: an answer on file needs neither torch nor MONAI.
    from pipeline.segmentation.trials import head_trials

    # Where the store has no tokens this raises, before hours of work on another head.
    cases.source.tokens(cases.task_cases.units.rows[:1])
    return list(head_trials(cases, cases.config.segment[head], device, keep)), ()


def _distance_notes(cases: SegmentationCases) -> list[str]:
    """Return a note where HD95 and the tolerance of NSD are no millimetres."""
    pixels = sum(not unit.in_mm for unit in cases.units)
    if not pixels:
        return []
    some = "" if pixels == len(cases.units) else f" of {pixels} of {len(cases.units)} units"
    return [f"HD95 and the tolerance of NSD{some} are in pixels: the images name no spacing"]
