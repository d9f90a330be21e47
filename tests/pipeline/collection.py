"""Small feature stores with labels, written through FeatureStore and as real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Units
from pipeline.config.root import Config
from pipeline.evaluation.heads.contract import FitInput, Head, fit_and_predict
from pipeline.recipe import Architecture, Recipe
from pipeline.results import Tally
from pipeline.shared.pseudonyms import load_key, pseudonym
from stores import ArraySpec, FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA


def make_store(
    path: Path,
    cls: NDArray[Any],
    slices: list[dict[str, Any]],
    status: NDArray[Any] | None = None,
    images: NDArray[Any] | None = None,
) -> FeatureStore:
    """Return a store of one part with cls (n, l, d), and its last block as mean.

    slices: what differs from a CR slice of no patient in a file of its own; raw patient, study
    and series ids become pseudonyms. images (n,): numbers of pictures, equal where pixels are.
    """
    n, blocks, d = cls.shape
    recipe = Recipe(
        architecture=Architecture(dim=d, depth=12, heads=3), weights="random:0", blocks=blocks
    )
    specs = {"cls": ArraySpec((blocks, d), "float16"), "mean": ArraySpec((d,), "float16")}
    key = load_key(path)
    hidden: dict[str, Literal["patient", "study", "series"]]
    hidden = {"patient": "patient", "study": "study", "series": "series"}
    store = FeatureStore.create(path, recipe.canonical(), specs, 2 ** int(np.ceil(np.log2(n))))
    rows = [
        {"row": i, "path": f"f{i}.png", "frame": 0, "modality": "CR", "withdrawn": False}
        | {
            name: pseudonym(key, hidden[name], value) if name in hidden else value
            for name, value in own.items()
        }
        for i, own in enumerate(slices)
    ]
    store.write_tables(pa.Table.from_pylist(rows, schema=SLICE_SCHEMA), FILE_SCHEMA.empty_table())
    arrays = store.empty_part()
    arrays["cls"][:n], arrays["mean"][:n] = cls, cls[:, -1]
    arrays["status"][:n] = 1 if status is None else status
    if images is not None:
        arrays["pixel_digest"][:n, :8] = images.astype("<i8")[:, None].view(np.uint8)
    part = store.layout.part(0)
    claim = store.claim(part)
    assert claim is not None
    store.write(part, claim, arrays, {"failures": []})
    claim.release()
    return store


def write_csv(path: Path, /, **columns: Any) -> Path:
    """Write columns of equal length as a CSV."""
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config_of(root: Path, **more: Any) -> Config:
    """Return a config over `root`/store and `root`/labels.csv, its labels joined by path."""
    labels = {"file": root / "labels.csv", **more.pop("labels", {})}
    small = {
        "knn": {"k": [3, 5]},
        "probe": {"low": -3, "high": 1, "steps": 3},
        "fewshot": {"episodes": 30},
    }
    return Config.model_validate(
        {"data": {"root": root}, "store": root / "store", "labels": labels, **small, **more}
    )


def units_of(
    y: NDArray[Any], groups: NDArray[Any] | None = None, classes: tuple[str, ...] | None = None
) -> Units:
    """Return units with labels y and one slice each; a patient each unless groups says."""
    n = len(y)
    width = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
    return Units(
        ids=np.arange(n).astype(str),
        y=y,
        groups=np.array([f"p{i:05}" for i in range(n)]) if groups is None else groups.astype(str),
        classes=classes or tuple("abcdefghijklmnop"[:width]),
        kind="multilabel" if y.ndim == 2 else "binary" if width == 2 else "multiclass",
        rows=np.arange(n),
        unit=np.arange(n),
        tally=Tally(),
    )


def thirds(n: int) -> dict[Any, NDArray[np.int64]]:
    """Return train, val and test as half, a quarter and a quarter of n units in order."""
    return dict(
        zip(("train", "val", "test"), np.split(np.arange(n), [n // 2, n * 3 // 4]), strict=True)
    )


def answered(
    head: Head[Any, Any],
    x: NDArray[np.float32],
    units: Units,
    parts: dict[Any, NDArray[np.int64]],
    settings: Any,
) -> tuple[list[Prediction], list[str]]:
    """Return what a head that is fitted on train and val says of test, and its notes."""
    predicted = fit_and_predict(head, x, units, parts, settings)
    return list(predicted.predictions), list(predicted.notes)


def probed_on_train(
    x: NDArray[np.float32], units: Units, parts: dict[Any, NDArray[np.int64]], settings: Any
) -> Prediction:
    """Return what the probe says of test that is fitted on train alone, val choosing its C."""
    from pipeline.evaluation.heads import probe_fit  # heavy: scikit-learn

    model = probe_fit.fit(FitInput(x, units, parts, settings), refit_on=("train",))
    (prediction,) = probe_fit.predict(model, x, parts["test"]).predictions
    return prediction
