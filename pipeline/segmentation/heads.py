"""One door to every way of segmenting: heads on cached patch tokens, networks from scratch."""

from __future__ import annotations

from pipeline.config.segmentation import Segment
from pipeline.segmentation.contracts import Fitted, Parts, Source


def fit(source: Source, parts: Parts, settings: Segment, *, device: str = "auto") -> Fitted:
    """Learn from parts["train"], choose by parts["val"].

    device: a torch device; `auto` is the first GPU where there is one. Raises ConfigError where
    there is nothing to learn from or to choose by, or where the store lacks the tokens.
    """
    if settings.method == "knn":
        from pipeline.segmentation import knn

        return knn.fit(source, parts, settings)
    from pipeline.segmentation import training

    return training.fit(source, parts, settings, device=device)
