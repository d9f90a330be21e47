"""One door to every way of segmenting: heads on cached patch tokens, networks from scratch."""

from __future__ import annotations

import importlib

from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.segmentation.contracts import FittedHead, Parts, TokenSource


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str = "auto"
) -> FittedHead:
    """Learn from parts["train"], choose by parts["val"].

    device: a torch device; `auto` is the first GPU where there is one. Raises ConfigError where
    there is nothing to learn from or to choose by, or where the store lacks the tokens.
    """
    # Here and not above: neighbours need no MONAI, and networks no FAISS.
    head = importlib.import_module(SEGMENTATION_HEADS[settings.method].module)
    fitted: FittedHead = head.fit(source, parts, settings, device=device)
    return fitted
