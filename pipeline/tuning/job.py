"""What the folds of an answer share: the store, the network to be tuned, devices and folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.feature_sets import made_of
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases
from pipeline.extraction.recipes import check_recipe, make_recipe
from pipeline.inference.speed import Speed
from pipeline.recipe import Recipe
from pipeline.shared import devices
from pipeline.tuning.images import Images
from pipeline.tuning.options import ReportSteps, TuningOptions
from stores.errors import ConfigError, DeviceError
from stores.features import RUNS, FeatureStore
from stores.withdrawn import Withdrawn

FOLDER = "tuned"  # in the store


@dataclass(frozen=True)
class TuningJob:
    """What the folds of an answer share.

    withdrawn: who is, of whom nothing is learnt; once others are, nothing more is filed. weights:
    their file, None where they are random. devices: where it is trained, a process each;
    the first is where it is tested. name: of the answer's file. checkpoint_s: seconds between two
    checkpoints.
    """

    config: Config
    store: FeatureStore
    withdrawn: Withdrawn
    recipe: Recipe
    weights: Path | None
    settings: Tuning
    devices: tuple[torch.device, ...]
    workers: int
    name: str
    checkpoint_s: float
    report_steps: ReportSteps

    @property
    def device(self) -> torch.device:
        """Where this process trains and tests."""
        return self.devices[0]

    @property
    def saved(self) -> Path:
        """The folder of the tuned networks, a folder each."""
        return self.store.path / FOLDER / self.name

    @property
    def state(self) -> Path:
        """The folder of the state of runs, a folder each."""
        return self.store.path / RUNS / self.name

    def filing(self) -> AbstractContextManager[None]:
        """File networks and checkpoints; see `FeatureStore.filing`."""
        return self.store.filing(self.withdrawn)

    def load(self, device: str | torch.device = "cpu") -> Backbone:
        """Return the network as it was before. Raises WeightsError."""
        return load_backbone(
            self.config.backbone.name,
            self.weights or self.recipe.weights,
            image_size=self.recipe.image_size,
            blocks=made_of(self.settings.features).blocks,
            device=device,
            precision=self.settings.precision,
            treatment=self.recipe.architecture.treatment,
        )

    def images(self) -> Images:
        """Return the images of the store's slices."""
        return Images(self.config, self.store, self.recipe, self.device, self.workers)


@contextlib.contextmanager
def open_job(
    cases: Cases,
    method: Method,
    name: str,
    options: TuningOptions,
    label: str,
) -> Iterator[TuningJob]:
    """Give what the folds of an answer to some cases share.

    name: of the answer's file; label: for progress. Whoever draws from torch afterwards finds its
    random stream as it was before. Raises RecipeMismatchError where the store is not of the network
    to be tuned, ConfigError, and DeviceError, also where the images of a step do not fit into
    memory.
    """
    config = cases.config
    recipe, weights = make_recipe(config)
    check_recipe(cases.store, recipe)
    _check_view(recipe)
    settings: Tuning = getattr(config, method)
    names = pick_devices(options)
    speed = Speed(workers=options.workers).chosen(names[0], recipe)
    job = TuningJob(
        config=config,
        store=cases.store,
        withdrawn=cases.withdrawn,
        recipe=recipe,
        weights=weights,
        settings=settings,
        devices=tuple(torch.device(device) for device in names),
        workers=speed.workers or 0,
        name=name,
        checkpoint_s=options.checkpoint_s,
        report_steps=options.step_reporter(label),
    )
    with torch.random.fork_rng():
        try:
            yield job
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"{settings.at_once} images at once do not fit into the memory of {names[0]}. "
                f"Set {method}.at_once to fewer: gradients add up to the same batch."
            ) from None


def _check_view(recipe: Recipe) -> None:
    """Raise ConfigError of a view of which no slice is read by itself."""
    if recipe.preprocess.view == "thick":
        raise ConfigError(
            "A network is tuned on slices, each read by itself. The config has preprocess.view: "
            "thick, which needs their neighbours: take another view, or none."
        )


def pick_devices(options: TuningOptions) -> list[str]:
    """Return the device of each process. Raises DeviceError where there are too few."""
    first = devices.pick_device(options.device)
    if first == "cpu" or options.processes == 1:
        return [first] * options.processes
    there = devices.gpus() if options.device in ("auto", "cuda") else [first]
    if len(there) < options.processes:
        raise DeviceError(
            f"{options.processes} processes need a GPU each. There are {len(there)} of --device "
            f"{options.device}: {', '.join(there)}. Take fewer --processes, or --device cuda for "
            "all."
        )
    return there[: options.processes]
