"""One fold of an answer: a network opened, trained and saved, and what there is to say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from pipeline.config.tasks import FeatureSet
from pipeline.results import Tuned
from pipeline.tuning import checkpoint
from pipeline.tuning.checkpoint import TrainingState
from pipeline.tuning.goals import Goal
from pipeline.tuning.job import TuningJob
from pipeline.tuning.network import TunableNetwork, make_trainable
from pipeline.tuning.ranks import ALONE, Ranks
from pipeline.tuning.saving import changed_parameters, save_network
from pipeline.tuning.training import Checkpoints, Training, TrainVal

if TYPE_CHECKING:
    from peft import LoraModel


@dataclass(frozen=True)
class Fold:
    """One fold of an answer, before it is trained.

    head: as it begins, on `features`; make_goal: makes what is learnt; name: of its folder.
    """

    job: TuningJob
    head: nn.Module
    features: FeatureSet | Literal["patch"]
    data: TrainVal
    make_goal: Callable[[], Goal]
    name: str

    def training(self, ranks: Ranks = ALONE) -> tuple[Training, LoraModel | None]:
        """Return the training of a network whose parameters are open to the method; LoRA's updates.

        Raises ConfigError where nothing is to be trained, WeightsError.
        """
        job = self.job
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        # A copy: the fold's own head stays as it begins, also where this is called twice.
        head = deepcopy(self.head).to(job.device)
        network = TunableNetwork(job.load(job.device), head, self.features)
        # Here, behind all else that draws: LoRA's beginnings are of the seed alone.
        torch.manual_seed(job.settings.seed)
        adapters = make_trainable(network, job.settings)
        training = Training(
            network=network,
            images=job.images(),
            data=self.data,
            goal=self.make_goal(),
            settings=job.settings,
            checkpoints=Checkpoints(job.state / self.name, job.checkpoint_s, job.filing),
            report_steps=job.report_steps,
            ranks=ranks,
        )
        return training, adapters


@dataclass(frozen=True)
class TunedFold:
    """What came of a fold. training: its network, and the images, which know what was unusable."""

    training: Training
    tuned: Tuned

    @classmethod
    def of(cls, fold: Fold, state: TrainingState | None = None) -> TunedFold:
        """Train a fold's network until val ends it, and save it.

        state: where other processes have trained it. Raises as `Fold.training` does.
        """
        job = fold.job
        training, adapters = fold.training()
        network = training.network
        # Before LoRA's updates are added in, which takes their parameters away.
        counts = {name: p.numel() for name, p in network.trained().items()}
        if state is None:
            state = training.run()
        training.images.bad.update(state.bad)
        # The best epoch's, not the last's; then with LoRA's updates as part of the weights.
        checkpoint.load_best(training.checkpoints.folder, network)
        if adapters is not None:
            adapters.merge_and_unload()
        folder = job.saved / fold.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        identity = save_network(
            network.body,
            network.linear,
            job.recipe.architecture,
            job.recipe.weights,
            folder,
            job.filing,
        )
        tuned = Tuned(
            weights=folder.relative_to(job.store.path).as_posix(),
            identity=identity,
            trained=_total(counts, "body."),
            parameters=sum(p.numel() for p in network.body.parameters()),
            head=_total(counts, "head."),
            moved=changed_parameters(job.load().network, network.body),
            history=tuple(state.history),
            epoch=state.best,
            resumed=state.resumed,
            device=" + ".join(map(str, job.devices)),
            peak_bytes=state.peak_bytes,
            seconds=state.seconds,
        )
        return cls(training, tuned)

    @property
    def notes(self) -> list[str]:
        """A sentence for each reason why slices could not be used, with their number."""
        reasons = Counter(self.training.images.bad.values())
        return [
            f"{count} slices were left out: {reason}" for reason, count in sorted(reasons.items())
        ]


def fold_name(number: int, folds: int) -> str:
    """Return the name of a fold's folder."""
    return f"fold-{number}" if folds > 1 else "all"


def _total(counts: dict[str, int], prefix: str) -> int:
    """Return how many numbers there are in the parameters of these names."""
    return sum(count for name, count in counts.items() if name.startswith(prefix))
