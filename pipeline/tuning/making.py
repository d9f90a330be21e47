"""One fold of an answer: a network opened, trained, saved, and what is to be told of it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.backbones import Backbone, load_backbone
from pipeline.config import Config, Tuning
from pipeline.questions import Tuned, Units
from pipeline.tuning.goals import Goal
from pipeline.tuning.images import Images, Rows
from pipeline.tuning.network import Network, blocks_of, opened
from pipeline.tuning.saving import moved, save_network
from pipeline.tuning.training import Beat, Training
from pipeline.types import Recipe
from stores.features import FeatureStore


@dataclass(frozen=True)
class Job:
    """What the folds of an answer share.

    weights: their file, None where they are random. saved, state: the folders, under the store, of
    the tuned networks and of runs. checkpoint_s: seconds between two checkpoints.
    """

    config: Config
    store: FeatureStore
    recipe: Recipe
    weights: Path | None
    settings: Tuning
    device: torch.device
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

    def begin(self) -> Backbone:
        """Return the network on its device; what is drawn next depends on the seed."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        torch.manual_seed(self.settings.seed)
        return self.load(self.device)

    def images(self) -> Images:
        """Return the images of the store's slices."""
        return Images(self.config, self.store, self.recipe, self.device, self.workers)


@dataclass(frozen=True)
class Made:
    """What a fold made. training: its network, and the images that it says more of."""

    training: Training
    tuned: Tuned

    @classmethod
    def by(
        cls,
        job: Job,
        network: Network,
        head: nn.Linear,
        units: Units,
        sides: tuple[Rows, Rows],
        goal: Goal,
        fold: str,
    ) -> Made:
        """Train what the method opens of a network until val says so, and save it.

        head: the linear part of the network's; sides: unit numbers of train and val; fold: its
        folder's name. Raises ConfigError where nothing is to be trained.
        """
        parameters = sum(p.numel() for p in network.body.parameters())
        adapters = opened(network, job.settings)
        counts = {name: p.numel() for name, p in network.trained().items()}
        training = Training(
            network, job.images(), units, *sides, job.settings, goal, job.state / fold,
            job.checkpoint_s, job.beat,
        )  # fmt: skip
        run = training.run()
        if adapters is not None:
            adapters.merge_and_unload()
        place = job.saved / fold
        place.parent.mkdir(parents=True, exist_ok=True)
        shape = job.recipe.architecture
        identity = save_network(network.body, head, shape, job.recipe.weights, place)
        tuned = Tuned(
            weights=place.relative_to(job.store.path).as_posix(),
            identity=identity,
            trained=sum(n for name, n in counts.items() if name.startswith("body.")),
            parameters=parameters,
            head=sum(n for name, n in counts.items() if name.startswith("head.")),
            moved=moved(job.load().network, network.body),
            history=tuple(run.history),
            epoch=run.best,
            resumed=run.resumed,
            device=str(job.device),
            peak_bytes=_peak_bytes(job.device),
            seconds=run.seconds,
        )
        return cls(training, tuned)

    @property
    def notes(self) -> list[str]:
        """Return what there is to say of slices that could not be used."""
        reasons = sorted(Counter(self.training.images.bad.values()).items())
        return [f"{n} slices were left out: {why}" for why, n in reasons]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
