"""A model that draws masks, as it is used: from patch tokens, or images, to label values.

Dims: n units, m slices, d the width of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.annotations.units import Units
from pipeline.evaluation.heads.contract import HeadState
from pipeline.fitted.folder import parameters_of, read_verified
from pipeline.fitted.model import FiledModel
from pipeline.fitted.record import MaskRecord
from pipeline.fitted.units import unit_chunks
from pipeline.segmentation import heads
from pipeline.segmentation.contracts import FittedHead, TokenSource
from pipeline.segmentation.tokens import mean_tokens
from pipeline.shared.arrays import Floats, Rows
from stores.errors import ModelError
from stores.features import FeatureStore


@dataclass(frozen=True)
class MaskModel(FiledModel[MaskRecord]):
    """A model of masks. `classes_` are the names by label value."""

    @classmethod
    def load(cls, path: Path) -> MaskModel:
        """Read a model's folder and hold every file of it against its digest.

        Raises ModelError for one that is missing, damaged or of another version, or of a task.
        """
        record = read_verified(path)
        if not isinstance(record, MaskRecord):
            raise ModelError(
                f"The model {str(path)!r} is of the task {record.task!r}, and one that draws masks "
                "is asked for."
            )
        return cls(path, record)

    def head(self, source: TokenSource, rows: Rows, device: str = "auto") -> FittedHead:
        """Return the head, to draw on a source; rows: of which the first tells a token's width."""
        state = HeadState(self._arrays, self.record.about)
        with parameters_of(self.path):
            return heads.from_state(state, source, rows, self.record.drawn_by, device=device)


def features_of(store: FeatureStore, units: Units) -> Floats:
    """Return (n, d) the mean patch token of each unit, over all of its slices."""
    means = []
    for some in unit_chunks(units):
        tokens = mean_tokens(store, some.rows)
        total = np.zeros((len(some.ids), tokens.shape[1]))
        np.add.at(total, some.unit, tokens)
        sizes = np.bincount(some.unit, minlength=len(some.ids))
        means.append((total / sizes[:, None]).astype(np.float32))
    return np.concatenate(means)
