"""FLOW 3: labels + split + images -> network trained further -> scores, and its weights.

On the slices, labels, splits and metrics of `evaluate`, so that an answer stands beside those of
frozen features. The tuned network is saved as a folder that `backbone.weights` takes: a backbone
with its own digest, of which `extract` makes another store.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.collection import differences, make_recipe
from pipeline.config import Config, Tuning
from pipeline.evaluate import answer, cases_of, result_path
from pipeline.questions import Method, Prediction, Result, Score, Tuned
from pipeline.scoring import scores_of
from pipeline.tables import publish
from pipeline.tasks.cases import Cases, Parts
from pipeline.tasks.folds import Tested, together
from pipeline.weights import SAFETENSORS
from stores.errors import ConfigError, DeviceError, LabelError, RecipeMismatchError
from stores.features import RUNS

if TYPE_CHECKING:
    from pipeline.tuning.images import Images

METHODS: tuple[Method, ...] = ("finetune", "lora", "bitfit", "norm")
FOLDER = "tuned"  # in the store
CHECKPOINT_S = 300.0

# what is being tuned, steps done, of how many at most
Progress = Callable[[str, int, int], None]


def tune(
    config: Config,
    methods: Sequence[Method] | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    progress: Progress | None = None,
) -> list[Result]:
    """Tune a network on each task by each method, or find the answer on file.

    methods: of METHODS, each a block of the config; all that are there if not given. device: of
    torch's; auto, the first GPU where there is one. workers: processes that read files. A run that
    was killed goes on from its last checkpoint, at most checkpoint_s seconds or an epoch before.
    Raises ConfigError where there is nothing to tune, RecipeMismatchError, LabelError, DeviceError.
    """
    given = [name for name in METHODS if getattr(config, name) is not None]
    asked = given if methods is None else methods
    if not asked or set(asked) - set(given):
        lacks = ", ".join(sorted(set(asked) - set(given))) or "any"
        raise ConfigError(
            f"The config must have a block of each method that is to tune: {', '.join(METHODS)}. "
            f"It lacks {lacks}; `lora: {{}}` takes the defaults."
        )
    results: list[Result] = []
    for cases in cases_of(config):
        for method in asked:
            said = functools.partial(progress, f"{cases.name}: {method}") if progress else None
            compute = functools.partial(
                _tuned, cases, method, device, workers, checkpoint_s, said or (lambda *_: None)
            )
            result = answer(cases, method, compute)
            for each in result.tuned:
                cases.store.bring(each.weights)
            if any(
                not (config.store / each.weights / SAFETENSORS).is_file() for each in result.tuned
            ):
                result_path(cases, method).unlink()  # a network was removed: it is made again
                result = answer(cases, method, compute)
            results.append(result)
            _drop(cases, method)
    publish(config.store, results)
    return results


def _tuned(
    cases: Cases,
    method: Method,
    device: str,
    workers: int | None,
    checkpoint_s: float,
    beat: Callable[[int, int], None],
) -> tuple[list[Score], Tested, tuple[Tuned, ...]]:
    """Tune in each fold; score what the networks say of their test units together."""
    from pipeline.embedding.forward import pick_device
    from pipeline.embedding.speed import Speed

    if cases.units.kind == "regression":
        note = "tuning needs classes: a number has none; the probe predicts it"
        return [], Tested([], cases.turns[0]["test"], None, [note]), ()
    settings: Tuning = getattr(cases.config, method)
    if cases.task.pool != "mean" and len(cases.units.rows) > len(cases.units.ids):
        raise LabelError(
            f"A network is tuned on the mean of a unit's slices. Got pool: {cases.task.pool} in "
            f"the task {cases.name!r} instead; take mean, or level: image."
        )
    recipe, weights = make_recipe(cases.config)
    found = differences(cases.store, recipe)
    if found:
        fields = "; ".join(f"{name}: {a!r}, {b!r}" for name, a, b in found)
        raise RecipeMismatchError(
            f"The store {cases.store.path} is not of the network and preprocessing that the config "
            f"asks to tune (store's, config's): {fields}. Run `radprobe extract` first."
        )
    import torch

    from pipeline.tuning.images import Images

    where = pick_device(device)
    speed = Speed(workers=workers).chosen(where, recipe)
    made = []
    for i, parts in enumerate(cases.turns):
        images = Images(cases.config, cases.store, recipe, torch.device(where), speed.workers or 0)
        fold = f"fold-{i}" if len(cases.turns) > 1 else "all"
        with torch.random.fork_rng():
            try:
                made.append(
                    _fold(cases, parts, settings, images, weights, _place(cases, method, fold),
                          checkpoint_s, beat)
                )  # fmt: skip
            except torch.OutOfMemoryError:
                raise DeviceError(
                    f"{settings.at_once} images at once do not fit into the memory of {where}. "
                    f"Set {method}.at_once to fewer: gradients add up to the same batch."
                ) from None
    tests = [rows for _, _, rows, _ in made]
    tested = together([(predictions, notes) for predictions, notes, _, _ in made], tests)
    tuned = tuple(each for _, _, _, each in made if each is not None)
    return (scores_of(cases, tested) if tested.predictions else []), tested, tuned


def _fold(
    cases: Cases,
    parts: Parts,
    settings: Tuning,
    images: Images,
    weights: Path | None,
    place: tuple[Path, Path],
    checkpoint_s: float,
    beat: Callable[[int, int], None],
) -> tuple[list[Prediction], list[str], NDArray[np.int64], Tuned | None]:
    """Tune on train until val says so, save the network, and let it say what test is.

    Returns predictions, notes, the test units that could be read, and what was made. place: where
    the network is saved, and its run's state.
    """
    import torch

    from pipeline.backbones import load_backbone
    from pipeline.heads.objective import Objective
    from pipeline.tuning.network import Network, blocks_of, opened
    from pipeline.tuning.saving import moved, save_network
    from pipeline.tuning.training import Training

    units = cases.units
    fit = Objective.of(units, parts["train"])
    if not fit.enough or not len(parts["val"]):
        notes = fit.notes if len(parts["val"]) else ["tuning needs val, to say when to end"]
        return [], notes, parts["test"], None
    recipe, device = images.recipe, images.device
    load = functools.partial(
        load_backbone,
        cases.config.backbone.name,
        weights or recipe.weights,
        image_size=recipe.image_size,
        blocks=blocks_of(settings.features),
        precision=settings.precision,
        treatment=recipe.architecture.treatment,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(settings.seed)
    backbone = load(device=device)
    parameters = sum(p.numel() for p in backbone.network.parameters())
    width = recipe.architecture.dim * (blocks_of(settings.features) + ("mean" in settings.features))
    head = torch.nn.Linear(width, fit.outputs)
    torch.nn.init.normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    notes = list(fit.notes)
    if settings.start == "probe":
        notes.append(_from_probe(head, cases, parts, settings, fit.left_out))
    network = Network(backbone, head.to(device), settings.features)
    adapters = opened(network, settings)
    counts = {name: p.numel() for name, p in network.trained().items()}
    training = Training(
        network, images, units, parts["train"], parts["val"], settings, fit, place[1],
        checkpoint_s, beat,
    )  # fmt: skip
    run = training.run()
    if adapters is not None:
        adapters.merge_and_unload()
    place[0].parent.mkdir(parents=True, exist_ok=True)
    identity = save_network(network.body, head, recipe.architecture, recipe.weights, place[0])
    proba, tested = training.say(parts["test"])
    notes += _said_of(images, len(parts["test"]) - len(tested))
    if all(value is None for value in run.history):
        notes.append("the last epoch is kept: all val units have the same labels")
    tuned = Tuned(
        weights=place[0].relative_to(cases.store.path).as_posix(),
        identity=identity,
        trained=sum(n for name, n in counts.items() if name.startswith("body.")),
        parameters=parameters,
        head=sum(n for name, n in counts.items() if name.startswith("head.")),
        moved=moved(load().network, network.body),
        history=tuple(run.history),
        epoch=run.best,
        resumed=run.resumed,
        device=str(device),
        peak_bytes=_peak_bytes(device),
        seconds=run.seconds,
    )
    return [Prediction({"epoch": run.best}, proba)], notes, tested, tuned


def _from_probe(
    head: Any, cases: Cases, parts: Parts, settings: Tuning, left_out: list[str]
) -> str:
    """Let the head be the probe of the cached features; return what was chosen for it."""
    import torch

    from pipeline.heads.probe import linear_head

    x = cases.features(settings, parts)
    weight, bias, c = linear_head(x, cases.units, parts, cases.config.probe, left_out)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return f"the head began as the probe of C = {c:.3g}"


def _said_of(images: Images, lost: int) -> list[str]:
    """Return notes on slices that could not be used, and on test units that none was left of."""
    reasons = sorted(Counter(images.bad.values()).items())
    notes = [f"{n} slices were left out: {why}" for why, n in reasons]
    return notes + ([f"{lost} test units are not scored: none of their slices"] if lost else [])


def _peak_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _place(cases: Cases, method: Method, fold: str) -> tuple[Path, Path]:
    """Return where a fold's network is saved, and where its run keeps its state."""
    name, root = result_path(cases, method).stem, cases.store.path
    return root / FOLDER / name / fold, root / RUNS / name / fold


def _drop(cases: Cases, method: Method) -> None:
    """Remove the state of runs whose answer is filed."""
    folder = cases.store.path / RUNS / result_path(cases, method).stem
    shutil.rmtree(folder, ignore_errors=True)
