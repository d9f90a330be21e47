"""FLOW 3: labels or masks + split + images -> network trained further -> scores, and its weights.

On the slices, labels, masks, splits and metrics of `evaluate` and `segment`, so that an answer
stands beside those of frozen features. The tuned network is saved as a folder that
`backbone.weights` takes: a backbone with its own digest, of which `extract` makes another store.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import segment
from pipeline.annotations.levels import LEVELS
from pipeline.backbones.weights import SAFETENSORS
from pipeline.config.heads import TUNED
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.evaluate import answer
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.failures import Failures
from pipeline.evaluation.folds import OutOfFold
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import Answer, publish, result_path
from pipeline.extraction.recipes import check_sees_slices
from pipeline.results import Result, Score, Segmented, Tuned
from pipeline.segmentation.cases import SegmentationCases
from pipeline.tuning.options import CHECKPOINT_S, Progress, TuningOptions
from stores._disk import remove_folder
from stores.errors import ConfigError
from stores.features import RUNS, FeatureStore
from stores.inside import inside

if TYPE_CHECKING:
    from pipeline.segmentation.trials import Trial


def tune(
    config: Config,
    methods: Sequence[Method] | None = None,
    *,
    device: str = "auto",
    processes: int = 1,
    workers: int | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    progress: Progress | None = None,
) -> list[Result]:
    """Tune a network on each task by each method, or find the answer on file.

    methods: of TUNED, each a block of the config; all that are there if not given. device: of
    torch's; auto, the first GPU where there is one. processes: that share every step, each with a
    GPU of its own, or all with the CPU. workers: processes that read files. A run that was killed
    goes on from its last checkpoint, at most checkpoint_s seconds or an epoch before.
    A task that cannot be answered leaves the others answered: then UnansweredError has those.
    Raises ConfigError where there is nothing to tune, RecipeMismatchError, LabelError, DeviceError.
    """
    chosen = _methods(config, methods)
    options = TuningOptions(device, processes, workers, checkpoint_s, progress)
    results: list[Result] = []
    failures = Failures()
    for cases in cases_of(config, failures):
        for method in chosen:
            # Asked for each time it is needed: a split that takes in new patients changes it.
            path = functools.partial(result_path, cases, method)
            compute = functools.partial(_compute_labels, cases, method, path, options)
            find = functools.partial(answer, cases, method, compute)
            with failures.of(cases.name):
                _refuse_parts(cases)
                _refuse_survival(cases)
                results.append(_with_networks(cases.store, find, path))
    if results:
        publish(config.store, results)
    failures.raise_with(results)
    return results


def _refuse_parts(cases: Cases) -> None:
    """Raise ConfigError for cases that are no whole images: the network would see these."""
    if not LEVELS[cases.task.level].is_whole:
        raise ConfigError(
            f"{cases.name}: a network is tuned on whole images; its cases are {cases.task.level}s. "
            "Tune on their crops, by `radprobe crops`, or ask heads by `radprobe evaluate`."
        )


def _refuse_survival(cases: Cases) -> None:
    """Raise ConfigError for tasks of survival, which no network is tuned for."""
    if cases.task.time is not None:
        raise ConfigError(
            f"{cases.name}: a network is tuned on classes, labels or numbers, and this is a task "
            "of survival. Ask a head about it: `radprobe cox`."
        )


def tune_masks(
    config: Config,
    methods: Sequence[Method] | None = None,
    *,
    device: str = "auto",
    processes: int = 1,
    workers: int | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    progress: Progress | None = None,
) -> list[Segmented]:
    """Tune a network, with a linear head on its patch tokens, on the masks of a config.

    As `tune` on its tasks; the answers are filed and scored as those of `segment`.
    """
    chosen = _methods(config, methods)
    options = TuningOptions(device, processes, workers, checkpoint_s, progress)
    if not config.masks:
        raise ConfigError("There are no masks to tune on: the config must have `masks`.")
    answers: list[Segmented] = []
    for task in config.masks:
        cases = SegmentationCases.of(config, task)
        for method in chosen:
            path = functools.partial(cases.path, method)
            compute = functools.partial(_compute_masks, cases, method, path, options)
            find = functools.partial(segment.answer, cases, method, compute)
            answers.append(_with_networks(cases.store, find, path))
    publish(config.store, answers)
    return answers


def _methods(config: Config, methods: Sequence[Method] | None) -> Sequence[Method]:
    """Return the methods that are to tune: those given, or all that the config has a block of.

    Raises ConfigError where there is none, where the config lacks the block of one, and where
    it sees volumes.
    """
    check_sees_slices(config, "Tuning")
    if config.fit_on is not None:
        raise ConfigError(
            "A network is tuned on images, not on the features of a store. The config has "
            "`fit_on`: leave it out, or ask for knn, probe, linear or fewshot."
        )
    there = [name for name in TUNED if getattr(config, name) is not None]
    wanted = there if methods is None else methods
    lacking = set(wanted) - set(there)
    if not wanted or lacking:
        lacks = ", ".join(sorted(lacking)) or "any"
        raise ConfigError(
            f"The config must have a block of each method that is to tune: {', '.join(TUNED)}. "
            f"It lacks {lacks}; `lora: {{}}` takes the defaults."
        )
    return wanted


def _with_networks(
    store: FeatureStore, find: Callable[[], Answer], path: Callable[[], Path]
) -> Answer:
    """Return an answer whose networks are there, and drop the state of its runs.

    find: finds the answer on file, or computes it and files it; path: where it is filed.
    """
    answer = find()
    for tuned in answer.tuned:
        store.fetch_folder(tuned.weights)
    files = [inside(store.path, tuned.weights) / SAFETENSORS for tuned in answer.tuned]
    if not all(file.is_file() for file in files):
        # A network was removed. Without the answer's file it is made again.
        path().unlink()
        answer = find()
    # Last: until the answer is on file, a run that is killed goes on from this state.
    with contextlib.suppress(OSError):
        remove_folder(store.path / RUNS / path().stem)
    return answer


def _compute_labels(
    cases: Cases, method: Method, path: Callable[[], Path], options: TuningOptions
) -> tuple[list[Score], OutOfFold, tuple[Tuned, ...]]:
    """Tune on a task. path: of the answer, whose name its networks and its runs bear."""
    # Here and not above: an answer on file needs no torch.
    from pipeline.tuning.labels import tune_on_labels

    return tune_on_labels(cases, method, path().stem, options)


def _compute_masks(
    cases: SegmentationCases, method: Method, path: Callable[[], Path], options: TuningOptions
) -> tuple[list[Trial], tuple[Tuned, ...]]:
    """Tune on masks; see `_compute_labels`."""
    from pipeline.tuning.masks import tune_on_masks

    return tune_on_masks(cases, method, path().stem, options)
