"""Figures that the paper's authors published, as far as they were seen; nothing else is here.

From the notebooks that go with arXiv 2312.02366 (one draw, no interval), and for AMOS from a paper
that cites it. The names are those of `radprobe dataset` and of backbones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.benchmark.settings import FROM_SCRATCH
from pipeline.datasets.xrays import NIH_LABELS
from pipeline.results import Result, Segmented

SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Published:
    """One figure.

    method: as `method_of` has it; labels: the label columns it is a mean over, none of masks;
    shots: images, or patients a class; None for all; note: what the figure is of.
    """

    dataset: str
    backbone: str
    method: str
    labels: frozenset[str]
    shots: int | None
    value: float
    note: str


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
_FIFTEEN = frozenset(NIH_LABELS)
_MASKS: frozenset[str] = frozenset()
_AUROC = "AUROC of 15 labels, notebooks"
_FROM_SCRATCH = "mean of Dice and Jaccard, notebooks"
_OVERLAP = "mean of Dice and Jaccard by a head that was not named, notebooks"


def _listed() -> Iterator[Published]:
    for backbone, values in _NIH.items():
        # The last value is of all images, by a head that is fitted: no few-shot draw has it.
        for shots, value in zip(SHOTS, values, strict=False):
            yield Published("nih", backbone, "fewshot paper", _FIFTEEN, shots, value, _AUROC)
    for backbone, values in _NIH.items():
        yield Published("nih", backbone, "linear", _FIFTEEN, None, values[-1], _AUROC)
    for (backbone, head), values in _MONTGOMERY.items():
        note = _OVERLAP if head == "decoder" else _FROM_SCRATCH
        for number, value in zip((*SHOTS, None), values, strict=True):
            yield Published("montgomery", backbone, f"segment {head}", _MASKS, number, value, note)
    cited = "Dice at 448, cited by others"
    yield Published("amos", "dinov2_vitg14", "segment decoder", _MASKS, None, 0.642, cited)
    yield Published("amos", FROM_SCRATCH, "segment transunet", _MASKS, None, 0.535, cited)


PUBLISHED: tuple[Published, ...] = tuple(_listed())


def method_of(answer: Result | Segmented) -> str:
    """Return what computed an answer, as far as figures differ by it: the head, the draw."""
    if isinstance(answer, Segmented):
        return f"segment {answer.method}"
    if answer.method == "fewshot":
        return f"fewshot {answer.settings['draw']}"
    return answer.method


def labels_of(answer: Result | Segmented) -> frozenset[str]:
    """Return the label columns that an answer's score is a mean over; none of masks."""
    if isinstance(answer, Segmented):
        return _MASKS
    return frozenset(answer.question.labels)


def published(
    dataset: str, backbone: str, answer: Result | Segmented, shots: int | None
) -> Published | None:
    """Return the figure of a cell, if one of the same labels was seen.

    backbone: its name in the table of networks.
    """
    query = (dataset, backbone, method_of(answer), labels_of(answer), shots)
    for figure in PUBLISHED:
        known = (figure.dataset, figure.backbone, figure.method, figure.labels, figure.shots)
        if known == query:
            return figure
    return None
