"""A model as scikit-learn's users know one: `classes_`, `predict_proba`, `predict`; or of masks."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.tasks import CLASS_KINDS
from pipeline.fitted.model import Model
from pipeline.fitted.predict import decisions, number_columns, predictions
from pipeline.fitted.record import ModelRecord
from pipeline.fitted.sources import FolderOptions
from stores.errors import ModelError

if TYPE_CHECKING:
    from pipeline.fitted.draw import DrawTally
    from pipeline.fitted.mask_model import MaskModel
    from pipeline.fitted.record import MaskRecord

Doubles = NDArray[np.float64]
# Features (n, d), or a folder of images, a store or a config.
Input = NDArray[Any] | str | PathLike[str]


@dataclass(frozen=True)
class Estimator:
    """A fitted model that was read from its folder.

    What it is asked about is features as `radprobe.data` returns them, (n, d), unscaled; or the
    path of a store, of a config whose store is there, or of a folder of images, which is embedded
    by the model's recipe.
    """

    model: Model

    @property
    def record(self) -> ModelRecord:
        """What the model was made of, and how well it did."""
        return self.model.record

    @property
    def classes_(self) -> NDArray[Any]:
        """(c,): the classes or labels, in the order of `predict_proba`'s columns.

        As `radprobe.data` and `predict` have them: of two 0 and 1, the positive one, whose names
        are `record.classes`; else names.
        """
        if self.record.kind == "binary":
            return np.arange(2)
        return self.model.classes_

    @property
    def n_features_in_(self) -> int:
        """The d of features (n, d)."""
        return self.model.width

    def predict_proba(self, x: Input, **options: Any) -> Doubles:
        """Return (n, c) probabilities, or for a number or a risk (n, 1).

        Of a store or folder the units as `table` has them, NaN where no image could be read.
        options: of `FolderOptions`. Raises ModelError for features of another width.
        """
        if isinstance(x, np.ndarray):
            return self._of_features(x)
        table = self.table(x, **options)
        columns = [table[name].to_numpy() for name in number_columns(self.record)]
        return np.stack(columns, axis=1)

    def predict(self, x: Input, **options: Any) -> NDArray[Any]:
        """Return (n,) what is decided of each unit, of `classes_`; labels parted by ";".

        Or the number or risk that is said of it.

        Of a store or folder None where no image could be read.
        """
        if self.record.kind not in CLASS_KINDS:
            return self.predict_proba(x, **options)[:, 0]
        decided: list[Any]
        if isinstance(x, np.ndarray):
            decided = decisions(self.record, self._of_features(x))
        else:
            decided = self.table(x, **options)["decision"].to_pylist()
        if self.record.kind == "binary":
            number = {name: i for i, name in enumerate(self.record.classes)}
            decided = [number.get(name) for name in decided]
        return np.array(decided, dtype=object if None in decided else None)

    def table(self, target: str | PathLike[str], **options: Any) -> pa.Table:
        """Return what `radprobe predict` writes: a row a unit.

        options: of `FolderOptions`, such as store or modality.
        """
        return predictions(self.model, Path(target), FolderOptions(**options))

    def _of_features(self, x: NDArray[Any]) -> Doubles:
        if self.model.sees == "slices":
            raise ModelError(
                f"{self.record.method} sees the features of slices, not of units: ask it about a "
                "store or a folder."
            )
        if self.record.covariates.columns:
            raise ModelError(
                f"{self.record.method} sees columns beside features, which arrays have not: ask it "
                "about a config whose `labels` have them."
            )
        n = len(x)
        names = np.arange(n).astype(np.str_)
        units = Units.unlabelled(names, np.arange(n), np.arange(n))
        return self.model.proba(np.ascontiguousarray(x, np.float32), units)


@dataclass(frozen=True)
class Segmenter:
    """A fitted model that draws masks, as it was read from its folder."""

    model: MaskModel

    @property
    def record(self) -> MaskRecord:
        """What the model was made of, and how well it did."""
        return self.model.record

    @property
    def classes_(self) -> NDArray[np.str_]:
        """(c,): the names by label value, the background first."""
        return self.model.classes_

    def predict(
        self, target: str | PathLike[str], out: str | PathLike[str], **options: Any
    ) -> DrawTally:
        """Draw on the images of a folder or of a config, as `radprobe predict` does, into `out`.

        options: of `FolderOptions`, such as store or modality. Returns the counts.
        """
        from pipeline.fitted.draw import draw

        return draw(self.model, Path(target), Path(out), FolderOptions(**options))


def wrapped(model: Model | MaskModel) -> Estimator | Segmenter:
    """Return a model as Python's users know it."""
    return Estimator(model) if isinstance(model, Model) else Segmenter(model)
