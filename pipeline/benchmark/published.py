"""Figures that the paper's authors published, as far as they were seen; nothing else is here.

From the notebooks that go with arXiv 2312.02366 (one draw, no interval), and for AMOS from a paper
that cites it. The names are those of `radprobe dataset` and of backbones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.benchmark.settings import FROM_SCRATCH
from pipeline.datasets.known import DATASETS
from pipeline.datasets.xrays import NIH_LABELS
from pipeline.recipe import Treatment
from pipeline.results import Result, Score, Segmented

SHOTS = (1, 2, 4, 8, 16)
# What the code of arXiv 2312.02366 counts of masks, as answers have it (`segmentation.scores`).
_DICE = ("paper_dice",)
_OVERLAP = ("paper_dice", "paper_jaccard")


@dataclass(frozen=True)
class Published:
    """One figure.

    treatment: what the network was given; None where both are the same of it. method: as
    `method_of` has it; labels: the label columns, or structures, it is a mean over; shots: images,
    or patients a class; None for all; metrics: as answers have them, of which it is the mean; note:
    what the figure is of.
    """

    dataset: str
    backbone: str
    method: str
    labels: frozenset[str]
    shots: int | None
    value: float
    note: str
    image_size: int
    metrics: tuple[str, ...]
    treatment: Treatment | None = None

    @property
    def metric(self) -> str:
        """What the figure is called in tables."""
        return " and ".join(self.metrics)

    def of_ours(self, score: Score) -> float | None:
        """Return what a score comes to as the figure was measured; None where it lacks a metric."""
        if not score.metrics.keys() >= set(self.metrics):
            return None
        return sum(score.metrics[name].value for name in self.metrics) / len(self.metrics)


# AUROC by 1, 2, 4, 8 and 16 patients a class, then by all.
_NIH = {
    "dinov2_vitl14": (0.502, 0.528, 0.519, 0.584, 0.601, 0.763),
    "vit_large_in21k": (0.520, 0.536, 0.548, 0.582, 0.586, 0.752),
    "densenet_201": (0.508, 0.525, 0.532, 0.580, 0.586, 0.735),
    "resnet_152": (0.482, 0.502, 0.505, 0.556, 0.573, 0.718),
    "vgg_19": (0.505, 0.519, 0.521, 0.557, 0.572, 0.696),
}
# By 1, 2, 4, 8 and 16 images, then by all.
_MONTGOMERY = {
    ("dinov2_vitl14", "decoder"): (0.929, 0.941, 0.962, 0.961, 0.961, 0.974),
    (FROM_SCRATCH, "unet"): (0.583, 0.788, 0.893, 0.941, 0.960, 0.973),
    (FROM_SCRATCH, "transunet"): (0.884, 0.905, 0.950, 0.951, 0.964, 0.974),
}
# Of the networks above those that get other numbers from the paper's code than from ours.
_TREATED = {"vit_large_in21k"}


def _listed() -> Iterator[Published]:
    for backbone, values in _NIH.items():
        *drawn, of_all = values
        figures: list[tuple[str, int | None, float]]
        figures = [("fewshot paper", *each) for each in zip(SHOTS, drawn, strict=True)]
        # Of all images by linear heads, which saw crops and flips there: beside both of ours.
        figures += [("linear", None, of_all), ("frozen", None, of_all)]
        for method, shots, value in figures:
            yield Published(
                dataset="nih",
                backbone=backbone,
                method=method,
                labels=frozenset(NIH_LABELS),
                shots=shots,
                value=value,
                note="AUROC of 15 labels, notebooks",
                image_size=224,
                metrics=("auroc",),
                treatment="paper" if backbone in _TREATED else None,
            )
    for (backbone, head), values in _MONTGOMERY.items():
        unnamed = " by a head that was not named" if head == "decoder" else ""
        note = f"mean of Dice and Jaccard{unnamed}, notebooks"
        for shots, value in zip((*SHOTS, None), values, strict=True):
            yield _of_masks("montgomery", backbone, head, shots, value, note, _OVERLAP)
    cited = "Dice at 448, cited by others"
    yield _of_masks("amos", "dinov2_vitg14", "decoder", None, 0.642, cited, _DICE)
    yield _of_masks("amos", FROM_SCRATCH, "transunet", None, 0.535, cited, _DICE)


def _of_masks(
    dataset: str,
    backbone: str,
    head: str,
    shots: int | None,
    value: float,
    note: str,
    metrics: tuple[str, ...],
) -> Published:
    structures = DATASETS[dataset].values
    assert isinstance(structures, Mapping)
    return Published(
        dataset=dataset,
        backbone=backbone,
        method=f"segment {head}",
        labels=frozenset(structures.values()),
        shots=shots,
        value=value,
        note=note,
        image_size=448,
        metrics=metrics,
    )


PUBLISHED: tuple[Published, ...] = tuple(_listed())


def method_of(answer: Result | Segmented) -> str:
    """Return what computed an answer, as far as figures differ by it: the head, the draw."""
    if isinstance(answer, Segmented):
        return f"segment {answer.method}"
    if answer.method == "fewshot":
        return f"fewshot {answer.settings['draw']}"
    return answer.method


def labels_of(answer: Result | Segmented) -> frozenset[str]:
    """Return the label columns, or the structures, that an answer's score is a mean over."""
    if isinstance(answer, Segmented):
        _, *structures = answer.classes
        return frozenset(structures)
    return frozenset(answer.question.labels)


def published(
    dataset: str,
    backbone: str,
    answer: Result | Segmented,
    shots: int | None,
    *,
    image_size: int,
    treatment: Treatment = "own",
) -> Published | None:
    """Return the figure of a cell, if one of the same labels, asked in the same way, was seen.

    backbone: its name in the table of networks.
    """
    query = (dataset, backbone, method_of(answer), labels_of(answer), shots, image_size)
    for figure in PUBLISHED:
        known = (figure.dataset, figure.backbone, figure.method, figure.labels, figure.shots)
        if (*known, figure.image_size) == query and figure.treatment in (None, treatment):
            return figure
    return None
