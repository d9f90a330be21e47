"""FLOW 3: labels or masks + split + images -> network trained further -> scores, and its weights.

On the slices, labels, masks, splits and metrics of `evaluate` and `segment`, so that an answer
stands beside those of frozen features. The tuned network is saved as a folder that
`backbone.weights` takes: a backbone with its own digest, of which `extract` makes another store.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import segment
from pipeline.annotations.units import Prediction, Units
from pipeline.backbones.weights import SAFETENSORS
from pipeline.config.heads import TUNED
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.config.tuning import Tuning
from pipeline.evaluate import answer
from pipeline.evaluation.cases import Cases, cases_of
from pipeline.evaluation.folds import OutOfFold, join_folds
from pipeline.evaluation.result_files import Answer, publish, result_path
from pipeline.evaluation.scoring import scores_of
from pipeline.evaluation.splits import Parts
from pipeline.extraction.sync import differences, make_recipe
from pipeline.results import Result, Score, Segmented, Tuned
from pipeline.segmentation.cases import Asked
from stores.errors import ConfigError, DeviceError, LabelError, RecipeMismatchError
from stores.features import RUNS, FeatureStore

if TYPE_CHECKING:
    from pipeline.evaluation.heads.objective import Objective
    from pipeline.segmentation.contracts import Source
    from pipeline.tuning.fold import Fold, Job, Made

FOLDER = "tuned"  # in the store
CHECKPOINT_S = 300.0

# what is being tuned, steps done, of how many at most
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class How:
    """Where and how networks are tuned: nothing of it is of an answer."""

    device: str
    processes: int
    workers: int | None
    checkpoint_s: float
    progress: Progress | None

    def beat(self, said: str) -> Callable[[int, int], None]:
        """Return what is called with steps done and steps at most."""
        return functools.partial(self.progress, said) if self.progress else lambda *_: None


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
    Raises ConfigError where there is nothing to tune, RecipeMismatchError, LabelError, DeviceError.
    """
    asked, how = _asked(config, methods), How(device, processes, workers, checkpoint_s, progress)
    results: list[Result] = []
    for cases in cases_of(config):
        for method in asked:
            path = functools.partial(result_path, cases, method)  # a new split changes it
            compute = functools.partial(_classes, cases, method, path, how)
            answered = functools.partial(answer, cases, method, compute)
            results.append(_whole(cases.store, answered, path))
    publish(config.store, results)
    return results


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
    asked, how = _asked(config, methods), How(device, processes, workers, checkpoint_s, progress)
    if not config.masks:
        raise ConfigError("There are no masks to tune on: the config must have `masks`.")
    found: list[Segmented] = []
    for task in config.masks:
        question = Asked.of(config, task)
        for method in asked:
            path = functools.partial(question.path, method)
            compute = functools.partial(_masks, question, method, path, how)
            answered = functools.partial(segment.answer, question, method, compute)
            found.append(_whole(question.store, answered, path))
    publish(config.store, found)
    return found


def _asked(config: Config, methods: Sequence[Method] | None) -> Sequence[Method]:
    if config.fit_on is not None:
        raise ConfigError(
            "A network is tuned on images, not on the features of a store. The config has "
            "`fit_on`: leave it out, or ask for knn, probe, linear or fewshot."
        )
    given = [name for name in TUNED if getattr(config, name) is not None]
    asked = given if methods is None else methods
    if not asked or set(asked) - set(given):
        lacks = ", ".join(sorted(set(asked) - set(given))) or "any"
        raise ConfigError(
            f"The config must have a block of each method that is to tune: {', '.join(TUNED)}. "
            f"It lacks {lacks}; `lora: {{}}` takes the defaults."
        )
    return asked


def _whole(store: FeatureStore, answered: Callable[[], Answer], path: Callable[[], Path]) -> Answer:
    """Return an answer whose networks are there, and drop the state of its runs."""
    found = answered()
    for each in found.tuned:
        store.bring(each.weights)
    if any(not (store.path / each.weights / SAFETENSORS).is_file() for each in found.tuned):
        path().unlink()  # a network was removed: it is made again
        found = answered()
    shutil.rmtree(store.path / RUNS / path().stem, ignore_errors=True)
    return found


@contextlib.contextmanager
def _job(
    config: Config, store: FeatureStore, method: Method, name: str, how: How, said: str
) -> Iterator[Job]:
    """Give what the folds of an answer share; name: of the answer's file.

    Raises RecipeMismatchError where the store is not of the network to be tuned, DeviceError.
    """
    recipe, weights = make_recipe(config)
    found = differences(store, recipe)
    if found:
        fields = "; ".join(f"{name}: {a!r}, {b!r}" for name, a, b in found)
        raise RecipeMismatchError(
            f"The store {store.path} is not of the network and preprocessing that the config "
            f"asks to tune (store's, config's): {fields}. Run `radprobe extract` first."
        )
    if recipe.preprocess.view == "thick":
        raise ConfigError(
            "A network is tuned on slices, each read by itself. The config has preprocess.view: "
            "thick, which needs their neighbours: take another view, or none."
        )
    import torch

    from pipeline.inference.speed import Speed
    from pipeline.tuning.fold import Job

    settings: Tuning = getattr(config, method)
    names = _devices(how)
    devices = tuple(map(torch.device, names))
    workers = Speed(workers=how.workers).chosen(names[0], recipe).workers or 0
    with torch.random.fork_rng():
        try:
            yield Job(
                config, store, recipe, weights, settings, devices, workers,
                store.path / FOLDER / name, store.path / RUNS / name, how.checkpoint_s,
                how.beat(said),
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"{settings.at_once} images at once do not fit into the memory of {names[0]}. "
                f"Set {method}.at_once to fewer: gradients add up to the same batch."
            ) from None


def _devices(how: How) -> list[str]:
    """Return the device of each process. Raises DeviceError where there are too few."""
    from pipeline.inference.forward import gpus, pick_device

    first = pick_device(how.device)
    if first == "cpu" or how.processes == 1:
        return [first] * how.processes
    found = gpus() if how.device in ("auto", "cuda") else [first]
    if len(found) < how.processes:
        raise DeviceError(
            f"{how.processes} processes need a GPU each. There are {len(found)} of --device "
            f"{how.device}: {', '.join(found)}. Take fewer --processes, or --device cuda for all."
        )
    return found[: how.processes]


def _made(fold: Fold) -> Made:
    """Train a fold's network, by one process or by several, and save it."""
    from pipeline.tuning.fold import Made

    if len(fold.job.devices) == 1:
        return Made.of(fold)
    from pipeline.tuning.launch import train_together

    return Made.of(fold, train_together(fold))


def _fold(i: int, turns: Sequence[Any]) -> str:
    return f"fold-{i}" if len(turns) > 1 else "all"


# --- classes and numbers -------------------------------------------------------------------------


def _classes(
    cases: Cases, method: Method, path: Callable[[], Path], how: How
) -> tuple[list[Score], OutOfFold, tuple[Tuned, ...]]:
    """Tune in each fold; score what the networks say of their test units together."""
    if cases.task.pool != "mean" and len(cases.units.rows) > len(cases.units.ids):
        raise LabelError(
            f"A network is tuned on the mean of a unit's slices. Got pool: {cases.task.pool} in "
            f"the task {cases.name!r} instead; take mean, or level: image."
        )
    said = f"{cases.name}: {method}"
    with _job(cases.config, cases.store, method, path().stem, how, said) as job:
        made = [
            _learnt(job, cases, parts, _fold(i, cases.folds)) for i, parts in enumerate(cases.folds)
        ]
    tests = [rows for _, _, rows, _ in made]
    tested = join_folds([(predictions, notes) for predictions, notes, _, _ in made], tests)
    tuned = tuple(each for _, _, _, each in made if each is not None)
    return (scores_of(cases, tested) if tested.predictions else []), tested, tuned


def _learnt(
    job: Job, cases: Cases, parts: Parts, fold: str
) -> tuple[list[Prediction], list[str], NDArray[np.int64], Tuned | None]:
    """Tune on train, and let the network say what test is.

    Returns predictions, notes, the test units that could be read, and what was made.
    """
    import torch

    from pipeline.evaluation.heads.objective import Objective
    from pipeline.tuning.fold import Fold
    from pipeline.tuning.goals import Labels
    from pipeline.tuning.network import blocks_of

    units, settings = cases.units, job.settings
    fit = Objective.of(units, parts["train"])
    if not fit.enough or not len(parts["val"]):
        notes = fit.notes if len(parts["val"]) else ["tuning needs val, to say when to end"]
        return [], notes, parts["test"], None
    shape = job.recipe.architecture
    width = shape.dim * (blocks_of(settings.features) + ("mean" in settings.features))
    torch.manual_seed(settings.seed)
    head = torch.nn.Linear(width, fit.outputs)
    torch.nn.init.normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    notes = list(fit.notes)
    if settings.start == "probe":
        notes.append(_from_probe(head, cases, parts, settings, fit))
    labels = functools.partial(Labels, units, parts["val"], fit, settings, shape)
    sides = parts["train"], parts["val"]
    made = _made(Fold(job, head, settings.features, units, *sides, labels, fold))
    goal = made.training.goal
    assert isinstance(goal, Labels)
    for each in made.training.looks(parts["test"]):
        goal.see(made.training.network, *each)
    proba, there = goal.said()
    notes += made.notes
    if not there.all():
        notes.append(f"{(~there).sum()} test units are not scored: none of their slices")
    if all(value is None for value in made.tuned.history):
        notes.append("the last epoch is kept: all val units have the same labels")
    found = [Prediction({"epoch": made.tuned.epoch}, proba)]
    return found, notes, parts["test"][there], made.tuned


def _from_probe(head: Any, cases: Cases, parts: Parts, settings: Tuning, fit: Objective) -> str:
    """Let the head be the probe of the cached features; return what was chosen for it."""
    import torch

    from pipeline.evaluation.heads.probe import HEAD as PROBE
    from pipeline.evaluation.heads.probe_fit import linear_head

    x = cases.features(settings, parts)
    probe = cases.config.settings_of(PROBE)
    weight, bias, c = linear_head(x, cases.units, parts, probe, fit.left_out)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / fit.spread))
        head.bias.copy_(torch.from_numpy((bias - fit.middle) / fit.spread))
    return f"the head began as the probe of C = {c:.3g}"


# --- masks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawing:
    """A tuned network as a head; see `segmentation.contracts.Fitted`.

    slices: each a unit of its own.
    """

    made: Made
    slices: Units
    notes: tuple[str, ...]

    @property
    def setting(self) -> dict[str, float]:
        """The epoch that is kept."""
        return {"epoch": float(self.made.tuned.epoch)}

    @property
    def seconds(self) -> float:
        """Time of training."""
        return self.made.tuned.seconds

    def predict(
        self, source: Source, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row whose image can be read with its label values (S, S)."""
        from pipeline.tuning.goals import drawn

        places = np.searchsorted(self.slices.rows, rows)
        for ask, x, kept in self.made.training.looks(places):
            yield from drawn(self.made.training.network, ask.rows[kept], x)


def _masks(
    asked: Asked, method: Method, path: Callable[[], Path], how: How, turns: Sequence[Parts]
) -> tuple[list[segment.Trial], tuple[Tuned, ...]]:
    """Tune in each fold, and score what the networks draw on their test units together."""
    made: list[Made] = []
    units = asked.cases.units
    m = len(units.rows)
    slices = replace(units, unit=np.arange(m), ids=units.rows.astype(np.str_))
    said = f"{asked.cases.name}: {method}"
    with _job(asked.config, asked.store, method, path().stem, how, said) as job:

        def fit(i: int, parts: Parts) -> _Drawing:
            begun = asked.begun_as(method)
            each, notes = _outlined(job, asked, parts, slices, begun, _fold(i, turns))
            made.append(each)
            return _Drawing(each, slices, tuple(notes))

        trial = segment.trial(asked, fit, [turns])
    notes = [*trial.notes, *(note for each in made for note in each.notes)]
    bad = np.isin(units.rows, [row for each in made for row in each.training.images.bad])
    tests = np.concatenate([turn["test"] for turn in turns])
    if lost := len(np.intersect1d(units.unit[bad], tests)):
        notes.append(f"{lost} test units are not scored: not all of their slices can be used")
    return [replace(trial, notes=notes)], tuple(each.tuned for each in made)


def _outlined(
    job: Job,
    asked: Asked,
    parts: Parts,
    slices: Units,
    begun: Segment | None,
    fold: str,
) -> tuple[Made, list[str]]:
    """Tune on the masks of the rows of train; slices: each a unit. Raises ConfigError.

    begun: the head on cached tokens that the network's begins as.
    """
    import torch

    from pipeline.segmentation import heads
    from pipeline.segmentation.token_heads import Linear
    from pipeline.segmentation.training import Trained
    from pipeline.tuning.fold import Fold
    from pipeline.tuning.goals import Outlines

    for part in ("train", "val"):
        if not len(parts[part]):
            raise ConfigError(
                f"Masks are learnt on train, and val says when to end. There is none in {part}."
            )
    source, shape = asked.source, job.recipe.architecture
    torch.manual_seed(job.settings.seed)
    head = Linear(shape.dim, len(source.classes), source.image_size, norm=False)
    notes = []
    if begun is not None:
        fitted = heads.fit(source, parts, begun, device=str(job.device))
        assert isinstance(fitted, Trained)
        head.load_state_dict(fitted.network.state_dict())
        chosen = ", ".join(f"{name} = {value:.3g}" for name, value in fitted.setting.items())
        notes.append(f"the head began as the linear one on cached tokens, {chosen}")
    outlines = functools.partial(Outlines, source, job.settings, shape)
    sides = np.searchsorted(slices.rows, parts["train"]), np.searchsorted(slices.rows, parts["val"])
    return _made(Fold(job, head, "patch", slices, *sides, outlines, fold)), notes
