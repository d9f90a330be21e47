"""One door to every way of segmenting: heads on cached patch tokens, networks from scratch."""

from __future__ import annotations

import importlib

from pipeline.config.segmentation import Segment
from pipeline.segmentation.contracts import FittedHead, Parts, TokenSource

# One line for each method of `config.Segment`: the module whose `fit` it is. Asking for one imports
# that module alone, so that neighbours need no MONAI and networks no FAISS.
MODULES = {
    "linear": "pipeline.segmentation.linear",
    "linear-bn": "pipeline.segmentation.linear",
    "decoder": "pipeline.segmentation.decoder",
    "image-decoder": "pipeline.segmentation.image_decoder",
    "knn": "pipeline.segmentation.knn",
    "unet": "pipeline.segmentation.unet",
    "transunet": "pipeline.segmentation.transunet",
}


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str = "auto"
) -> FittedHead:
    """Learn from parts["train"], choose by parts["val"].

    device: a torch device; `auto` is the first GPU where there is one. Raises ConfigError where
    there is nothing to learn from or to choose by, or where the store lacks the tokens.
    """
    head = importlib.import_module(MODULES[settings.method])
    fitted: FittedHead = head.fit(source, parts, settings, device=device)
    return fitted
