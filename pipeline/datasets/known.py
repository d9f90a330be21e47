"""The public data sets by name."""

from __future__ import annotations

from pipeline.datasets.contracts import DataSet
from pipeline.datasets.lidc import LIDC
from pipeline.datasets.lungs import MONTGOMERY, SHENZHEN
from pipeline.datasets.medmnist import MEDMNIST
from pipeline.datasets.nodules import LUNA25
from pipeline.datasets.readings import RSNA, VINDR
from pipeline.datasets.slices import BRAIN_TUMOUR, CC_CCII, SARS
from pipeline.datasets.volumes import (
    AMOS,
    BRATS,
    BTCV,
    KITS,
    MSD_HEART,
    MSD_HIPPOCAMPUS,
    MSD_SPLEEN,
    TOTAL_SEGMENTATOR,
)
from pipeline.datasets.xrays import CHEXPERT, NIH

DATASETS: dict[str, DataSet] = {
    "nih": NIH,
    "chexpert": CHEXPERT,
    "rsna-pneumonia": RSNA,
    "vindr-cxr": VINDR,
    "montgomery": MONTGOMERY,
    "shenzhen": SHENZHEN,
    "sars": SARS,
    "cc-ccii": CC_CCII,
    "brain-tumour": BRAIN_TUMOUR,
    "amos": AMOS,
    "msd-heart": MSD_HEART,
    "msd-hippocampus": MSD_HIPPOCAMPUS,
    "msd-spleen": MSD_SPLEEN,
    "btcv": BTCV,
    "kits23": KITS,
    "totalsegmentator": TOTAL_SEGMENTATOR,
    "brats": BRATS,
    "lidc": LIDC,
    "luna25": LUNA25,
    "medmnist": MEDMNIST,
}
