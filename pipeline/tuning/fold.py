"""One fold of an answer: a network opened, trained, saved, and what is to be told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraModel
from torch import nn

from pipeline.annotations.units import Units
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.config.tasks import FeatureSet
from pipeline.config.tuning import Tuning
from pipeline.recipe import Recipe
from pipeline.results import Tuned
from pipeline.tuning import checkpoint
from pipeline.tuning.goals import Goal
from pipeline.tuning.images import Images, Rows
from pipeline.tuning.network import Network, blocks_of, opened
from pipeline.tuning.ranks import ALONE, Ranks
from pipeline.tuning.saving import moved, save_network
from pipeline.tuning.training import Beat, Training
from stores.features import FeatureStore


@dataclass(frozen=True)
class Job:
    """What the folds of an answer share.

    weights: their file, None where they are random. devices: where it is trained, a process each;
    the first is where it is tested. saved, state: the folders, under the store, of the tuned
    networks and of runs. checkpoint_s: seconds between two checkpoints.
    """

    config: Config
    store: FeatureStore
    recipe: Recipe
    weights: Path | None
    settings: Tuning
    devices: tuple[torch.device, ...]
    workers: int
    saved: Path
    state: Path
    checkpoint_s: float
    beat: Beat

    def load(self, device: str | torch.device = "cpu") -> Backbone:
        """Return the network as it was before. Raises WeightsError."""
        return load_backbone(
            self.config.backbone.name,
            self.weights or self.recipe.weights,
            image_size=self.recipe.image_size,
            blocks=blocks_of(self.settings.features),
            device=device,
            precision=self.settings.precision,
            treatment=self.recipe.architecture.treatment,
        )

    @property
    def device(self) -> torch.device:
        """Where this process trains and tests."""
        return self.devices[0]

    def images(self) -> Images:
        """Return the images of the store's slices."""
        return Images(self.config, self.store, self.recipe, self.device, self.workers)


@dataclass(frozen=True)
class Fold:
    """One fold of an answer, before it is trained.

    head: as it begins, on `features`; train, val: unit numbers; goal: makes what is learnt; name:
    of its folder.
    """

    job: Job
    head: nn.Module
    features: FeatureSet | Literal["patch"]
    units: Units
    train: Rows
    val: Rows
    goal: Callable[[], Goal]
    name: str

    def training(self, ranks: Ranks = ALONE) -> tuple[Training, LoraModel | None]:
        """Return the training of a network that what the method trains is open in; LoRA's updates.

        Raises ConfigError where nothing is to be trained, WeightsError.
        """
        job = self.job
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        network = Network(job.load(job.device), deepcopy(self.head).to(job.device), self.features)
        torch.manual_seed(job.settings.seed)  # of LoRA's beginnings
        adapters = opened(network, job.settings)
        training = Training(
            network, job.images(), self.units, self.train, self.val, job.settings, self.goal(),
            job.state / self.name, job.checkpoint_s, job.beat, ranks,
        )  # fmt: skip
        return training, adapters


@dataclass(frozen=True)
class Made:
    """What a fold made. training: its network, and the images that it says more of."""

    training: Training
    tuned: Tuned

    @classmethod
    def of(cls, fold: Fold, run: checkpoint.Run | None = None) -> Made:
        """Train a fold's network until val says so, and save it.

        run: where others have trained it. Raises as `Fold.training` does.
        """
        job, (training, adapters) = fold.job, fold.training()
        network = training.network
        counts = {name: p.numel() for name, p in network.trained().items()}
        run = run or training.run()
        training.images.bad.update(run.bad)
        checkpoint.load_best(training.folder, network)
        if adapters is not None:
            adapters.merge_and_unload()
        place = job.saved / fold.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shape = job.recipe.architecture
        identity = save_network(network.body, network.linear, shape, job.recipe.weights, place)
        tuned = Tuned(
            weights=place.relative_to(job.store.path).as_posix(),
            identity=identity,
            trained=sum(n for name, n in counts.items() if name.startswith("body.")),
            parameters=sum(p.numel() for p in network.body.parameters()),
            head=sum(n for name, n in counts.items() if name.startswith("head.")),
            moved=moved(job.load().network, network.body),
            history=tuple(run.history),
            epoch=run.best,
            resumed=run.resumed,
            device=" + ".join(map(str, job.devices)),
            peak_bytes=run.peak_bytes,
            seconds=run.seconds,
        )
        return cls(training, tuned)

    @property
    def notes(self) -> list[str]:
        """Return what there is to say of slices that could not be used."""
        reasons = sorted(Counter(self.training.images.bad.values()).items())
        return [f"{n} slices were left out: {why}" for why, n in reasons]
