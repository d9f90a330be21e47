"""One door to every way of segmenting: heads on cached patch tokens, networks from scratch."""

from __future__ import annotations

import importlib
from types import ModuleType

from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.evaluation.heads.contract import HeadState
from pipeline.segmentation.contracts import FittedHead, Parts, Rows, TokenSource


def fit(
    source: TokenSource, parts: Parts, settings: Segment, *, device: str = "auto"
) -> FittedHead:
    """Learn from parts["train"], choose by parts["val"].

    device: a torch device; `auto` is the first GPU where there is one. Raises ConfigError where
    there is nothing to learn from or to choose by, or where the store lacks the tokens.
    """
    fitted: FittedHead = _module(settings).fit(source, parts, settings, device=device)
    return fitted


def from_state(
    state: HeadState, source: TokenSource, rows: Rows, settings: Segment, *, device: str = "auto"
) -> FittedHead:
    """Return a head that was filed, to draw on a source; see `contracts.FileableHead`.

    rows: of which the first tells the width of the tokens. Raises KeyError where the state is
    another head's.
    """
    module = _module(settings)
    if not hasattr(module, "build"):
        fitted: FittedHead = module.from_state(state, source, rows, settings, device=device)
        return fitted
    from pipeline.segmentation import training

    return training.from_state(module.build, state, source, rows, settings, device=device)


def _module(settings: Segment) -> ModuleType:
    # Here and not above: neighbours need no MONAI, and networks no FAISS.
    return importlib.import_module(SEGMENTATION_HEADS[settings.method].module)
