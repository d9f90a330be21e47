"""What masks and heads promise each other: where a head's tokens come from, and what it gives back.

A head is fitted by `pipeline.segmentation.heads.fit(source, parts, settings)`. It learns from the
rows of `parts["train"]`, chooses by those of `parts["val"]`, and looks at no others. Rows are those
of the store, each a slice with tokens and a mask. Dims: b rows, l blocks, h, w patch grid,
S side of the network's input, d embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.config.tasks import Part
from pipeline.evaluation.heads.contract import HeadState

Rows = NDArray[np.int64]
Parts = dict[Part, Rows]


class TokenSource(Protocol):
    """What a head learns from and predicts on; in the order of the rows that are asked for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label value; the first is "background"."""

    @property
    def image_size(self) -> int:
        """The side S of the network's input, in pixels."""

    @property
    def chunk_rows(self) -> int:
        """How many rows are read at once: whole runs of them, from a multiple of it, cost least."""

    def tokens(self, rows: Rows) -> NDArray[Any]:
        """Return (b, l, h, w, d) float16 or float32: patch tokens, oldest block first."""

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        """Return (b, S, S) label values, through the very geometry of the images."""

    def images(self, rows: Rows) -> NDArray[np.float32]:
        """Return (b, 3, S, S) as the network saw them: for heads that see the image."""


class FittedHead(Protocol):
    """A head that has learned.

    setting: what it chose, such as {"lr": 0.01}; notes: what a reader of its scores must know;
    seconds: the time it learned for.
    """

    @property
    def setting(self) -> dict[str, float]:
        """What was chosen on validation."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences without their full stop."""

    @property
    def seconds(self) -> float:
        """Time of fitting, choosing included."""

    def predict(self, source: TokenSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each row with its label values (S, S), in the order of `rows`."""


@runtime_checkable
class FileableHead(FittedHead, Protocol):
    """A head that can be filed: what it has learnt as arrays, of which its module makes it again.

    The module has `from_state(state, source, rows, settings, *, device)`, whose rows tell the width
    of the tokens; a network's has `build` in its place.
    """

    def to_state(self) -> HeadState:
        """Return what was learnt."""
