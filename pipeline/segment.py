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
from pipeline.evaluation.result_files import SEGMENTATIONS, answer_in, publish, write_table
from pipeline.results import Segmented, Tuned
from pipeline.segmentation.cases import CONTRACT, Progress, SegmentationCases
from pipeline.segmentation.contracts import Parts
from pipeline.segmentation.predictions import part_counts
from stores._disk import write_checked
from stores.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.segmentation.trials import Trial

LIBRARIES = ("radprobe", "numpy", "torch", "monai")


def segment(
    config: Config, *, device: str = "auto", progress: Progress | None = None
) -> list[Segmented]:
    """Answer for all masks of a config by every head, from `segmentations/` where nothing changed.

    device: of torch's, such as "cuda", where heads are trained; auto, the first GPU where there is
    one; an answer does not depend on it. Raises ConfigError where there is nothing to ask,
    StoreNotFoundError, LabelError, or DeviceError where there is no such device.
    """
    if not config.segment or not config.masks:
        raise ConfigError(
            "There is nothing to segment: the config must have `masks` (a name for what is to be "
            "segmented, with where its masks are) and `segment` (a name for each head)."
        )
    answers: list[Segmented] = []
    for task in config.masks:
        cases = SegmentationCases.of(config, task, progress)
        for head in config.segment:
            if progress:
                progress(f"{task}: {head}", len(answers), len(config.masks) * len(config.segment))
            compute = functools.partial(_compute_heads, cases, head, device)
            answers.append(answer(cases, head, compute))
    publish(config.store, answers)
    return answers


def on_file(config: Config, heads: Iterable[str] | None = None) -> list[Segmented]:
    """Return those answers that `segment` would find; computes none. Raises as `segment` does.

    heads: by name, those of the config if not given; or methods that tune the network.
    """
    wanted = config.segment if heads is None else heads
    found: list[Segmented | None] = []
    # To know an answer's name, masks are looked at: not where there is none to be named.
    if any((config.store / SEGMENTATIONS).glob("*.json")):
        for task in config.masks:
            cases = SegmentationCases.of(config, task)
            if cases.task_cases.is_split:
                found += [answer_in(cases.path(head), Segmented) for head in wanted]
    return [answer for answer in found if answer is not None]


def answer(
    cases: SegmentationCases,
    head: str,
    compute: Callable[[Sequence[Parts]], tuple[list[Trial], tuple[Tuned, ...]]],
) -> Segmented:
    """Return the answer that is on file, or compute it and file it.

    compute: turns of the split -> trials, and what was tuned for them.
    """
    turns = cases.task_cases.turns  # may add new patients to the split, and so change the key
    path = cases.path(head)
    found = answer_in(path, Segmented)
    if found is not None:
        return found
    started = time.perf_counter()
    trials, tuned = compute(turns)
    scores = tuple(trial.score for trial in trials)
    settings = cases.settings(head)
    notes = [*cases.task_cases.notes, *_distance_notes(cases)]
    for trial in trials:
        notes += trial.notes
    found = Segmented(
        task=cases.task_cases.name,
        head=head,
        method=settings.method if isinstance(settings, Segment) else head,
        classes=cases.masks.classes,
        level="volume" if cases.task_cases.task.level == "series" else "image",
        settings=settings.model_dump(mode="json"),
        counts=part_counts(cases, turns),
        tally=cases.task_cases.units.tally,
        scores=scores,
        notes=tuple(dict.fromkeys(notes)),
        provenance=cases.task_cases.provenance(
            cases.key(head), CONTRACT, cases.masks.digest, LIBRARIES
        ),
        seconds=time.perf_counter() - started,
        tuned=tuned,
    )
    path.parent.mkdir(exist_ok=True)
    write_table(path.with_suffix(".masks.parquet"), trials[-1].predicted)
    write_table(path.with_suffix(".units.parquet"), pa.concat_tables([t.units for t in trials]))
    write_checked(path, found.model_dump_json(indent=1).encode())
    return found


def _compute_heads(
    cases: SegmentationCases, head: str, device: str, folds: Sequence[Parts]
) -> tuple[list[Trial], tuple[Tuned, ...]]:
    """Return the trials of a head; nothing is tuned for it."""
    # Here and not above: an answer on file needs neither torch nor MONAI.
    from pipeline.segmentation.trials import head_trials

    # Where the store has no tokens this raises, before hours of work on another head.
    cases.source.tokens(cases.task_cases.units.rows[:1])
    return list(head_trials(cases, cases.config.segment[head], folds, device)), ()


def _distance_notes(cases: SegmentationCases) -> list[str]:
    """Return a note where HD95 and the tolerance of NSD are no millimetres."""
    pixels = sum(not unit.in_mm for unit in cases.units)
    if not pixels:
        return []
    some = "" if pixels == len(cases.units) else f" of {pixels} of {len(cases.units)} units"
    return [f"HD95 and the tolerance of NSD{some} are in pixels: the images name no spacing"]
