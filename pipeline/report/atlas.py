"""The map of a store: every slice in two dimensions, with what it can be coloured by.

Dims: n slices, d features, s of them with a picture, k neighbours.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.labels import texts_of
from pipeline.annotations.units import Units
from pipeline.config.data import ROOT_COLUMN
from pipeline.config.tasks import CLASS_KINDS
from pipeline.evaluation.neighbours import neighbours
from pipeline.report.judged import Judged, leading_answers
from pipeline.report.sources import Source
from pipeline.shared.arrays import principal_axes
from stores.errors import ConfigError
from stores.export import Selection, batches

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

# Slices with a picture, among which neighbours are sought: so every neighbour can be seen.
PICTURES = 600
K = 6
# UMAP takes minutes beyond.
MOST_UMAP = 20_000
# Values of a column that get a colour each; what is rarer is "other".
MOST_VALUES = 7


@dataclass(frozen=True)
class Places:
    """Where slices lie: x, y (n,) in [0, 1], by a method; share: of the variance, for PCA."""

    name: str
    x: Floats
    y: Floats
    note: str


@dataclass(frozen=True)
class Column:
    """What slices are coloured by: (n,) codes into values, 255 for a slice without one."""

    name: str
    values: tuple[str, ...]
    codes: NDArray[np.uint8]

    def word(self, place: int) -> str:
        """Return what a slice is coloured by, "" for nothing."""
        code = int(self.codes[place])
        return self.values[code] if code < len(self.values) else ""


@dataclass(frozen=True)
class Scale:
    """What slices are coloured by, as a number: (n,) from low to high, NaN for a slice without."""

    name: str
    numbers: Floats
    low: float
    high: float

    def word(self, place: int) -> str:
        """Return the number of a slice, "" for none."""
        number = float(self.numbers[place])
        return "" if np.isnan(number) else f"{number:.4g}"


@dataclass(frozen=True)
class Atlas:
    """The map. pictured (s,): places of the slices that may have a picture, ascending.

    nearest (n, k): places in `pictured` of the nearest slices of other patients (other series or
    files, where no patient is named); cosine (n, k).
    """

    features: str
    places: tuple[Places, ...]
    columns: tuple[Column, ...]
    scales: tuple[Scale, ...]
    pictured: Rows
    nearest: Rows
    cosine: Floats


def draw_map(source: Source) -> Atlas | None:
    """Lay out the slices of a store; None where it has fewer than three, or patch tokens alone."""
    n = len(source.rows)
    which = whole_slice(source)
    if n < 3 or which is None:
        return None
    read = []
    for batch in batches(source.store, which, source.rows):
        read.append(batch.reshape(len(batch), -1).astype(np.float32))
    x = np.concatenate(read)
    # Evenly over the store, so that every patient and modality has its share.
    pictured = np.unique(np.linspace(0, n - 1, min(n, PICTURES)).astype(np.int64))
    nearest, cosine = _nearest(x, pictured, source)
    places = [_pca(x)]
    if importlib.util.find_spec("umap") is not None and n <= MOST_UMAP:
        places.append(_umap(x))
    return Atlas(
        features="CLS of the last block" if which.array == "cls" else "mean patch token",
        places=tuple(places),
        columns=tuple(_columns(source)),
        scales=tuple(_scales(source)),
        pictured=pictured,
        nearest=nearest,
        cosine=cosine,
    )


def whole_slice(source: Source) -> Selection | None:
    """Return which features speak for a slice as a whole, where the store has any."""
    for array in ("cls", "mean"):
        if array in source.recipe.outputs:
            return Selection(array)
    return None


# --- places --------------------------------------------------------------------------------------


def _pca(x: Floats) -> Places:
    """Return the first two principal components."""
    centred = x - x.mean(axis=0)
    variance, axes = principal_axes((centred.T @ centred).astype(np.float64) / len(x))
    two = centred @ axes[:, :2].astype(np.float32)
    share = variance[:2] / max(float(variance.sum()), 1e-12)
    note = f"horizontal and vertical {share[0]:.0%} and {share[1]:.0%} of the variance"
    x_unit, y_unit = _unit(two)
    return Places("PCA", x_unit, y_unit, note)


def _umap(x: Floats) -> Places:
    from umap import UMAP

    # A seed makes UMAP use one thread; it warns where that is not written.
    two = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(x)
    x_unit, y_unit = _unit(np.asarray(two, np.float32))
    return Places("UMAP", x_unit, y_unit, "distances between groups mean little")


def _unit(two: Floats) -> tuple[Floats, Floats]:
    """Return both columns in [0, 1], each scaled by itself: a page is wide, and PCA flat."""
    # A few slices far out would press all others into a corner: they go to the edge.
    low, high = np.percentile(two, [0.1, 99.9], axis=0)
    span = np.maximum(high - low, 1e-12)
    inside = np.clip((two - (low + high) / 2) / span + 0.5, 0, 1).astype(np.float32)
    return inside[:, 0], inside[:, 1]


def _nearest(x: Floats, pictured: Rows, source: Source) -> tuple[Rows, Floats]:
    """Return (n, k) places in `pictured` and cosines of the nearest of other patients."""
    table = source.slices
    series = table["series"].to_pylist()
    files = table["path"].to_pylist()
    # Slices of one patient are alike for no reason worth showing, and of one series even more so.
    names = [p or s or f for p, s, f in zip(source.patients, series, files, strict=True)]
    patient = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1]
    # As many neighbours as are left to a slice of the patient with most pictures.
    others = len(pictured) - int(np.bincount(patient[pictured]).max())
    k = min(K, others)
    if k < 1:
        return np.zeros((len(x), 0), np.int64), np.zeros((len(x), 0), np.float32)
    cosine, nearest = neighbours(x, pictured, np.arange(len(x)), k, patient)
    return nearest, cosine


# --- colours -------------------------------------------------------------------------------------


def _columns(source: Source) -> Iterator[Column]:
    """Yield what slices can be coloured by: their table's words, then the labels of the config."""
    table = source.slices
    yield coded("modality", [m or "" for m in table["modality"].to_pylist()])
    flags = [", ".join(f or ()) for f in table["flags"].to_pylist()]
    if any(flags):
        yield coded("flags", flags)
    if source.config is not None and source.config.data.roots:
        paths = source.names.revealed(table)["path"].to_pylist()
        yield coded(ROOT_COLUMN, [path.partition("/")[0] for path in paths])
    yield from _labels(source)
    yield from _answers(source)


def _labels(source: Source) -> Iterator[Column]:
    """Yield each task's labels, and the columns of its subgroups and shortcuts, by slice."""
    done: set[str] = set()
    for name, task, units, table in source.labelled:
        assert source.config is not None
        root = source.config.data.root
        slices = source.names.revealed(source.store.slices())
        words = _words_of_units(name, units)
        for column in (*task.subgroups, *task.shortcuts):
            words[column] = texts_of(table, column, units, slices, root, source.names)
        place = np.searchsorted(source.rows, units.rows)
        for column in words:
            if column in done:  # several tasks may list one column
                continue
            of_slice = np.full(len(source.rows), "", dtype=object)
            of_slice[place] = words[column][units.unit]
            yield coded(column, of_slice.tolist())
        done |= words.keys()


def _answers(source: Source) -> Iterator[Column]:
    """Yield what each task's answer calls its test units, and whether that is right."""
    for task, result in leading_answers(source).items():
        judged = Judged.of(source, result)
        if judged is None or judged.truth.kind not in CLASS_KINDS:
            continue
        for name, words in _words_of_answer(task, judged).items():
            of_slice = np.full(len(source.rows), "", dtype=object)
            for word, rows in zip(words, judged.rows, strict=True):
                of_slice[np.searchsorted(source.rows, rows)] = word
            yield coded(name, of_slice.tolist())


def _words_of_answer(task: str, judged: Judged) -> dict[str, list[str]]:
    """Return what an answer says of each unit, and how that is to the truth, by column."""
    truth = judged.truth
    if truth.kind == "multiclass":
        likeliest = judged.proba.argmax(axis=1)
        return {
            f"{task}: called": [truth.classes[i] for i in likeliest],
            f"{task}: right": ["right" if ok else "wrong" for ok in likeliest == truth.y],
        }
    words = {}
    labels = range(1, 2) if truth.kind == "binary" else range(len(truth.classes))
    for j in labels:
        name = task if truth.kind == "binary" else truth.classes[j]
        called = judged.called[:, j].tolist()
        others = truth.classes[0] if truth.kind == "binary" else "no"
        positive = truth.classes[1] if truth.kind == "binary" else "yes"
        words[f"{name}: called"] = [positive if each else others for each in called]
        right = []
        for is_called, is_so, known in zip(
            called, truth.indicator[:, j].tolist(), truth.known[:, j].tolist(), strict=True
        ):
            agrees = "true" if is_called == is_so else "false"
            kind = f"{agrees} {'positive' if is_called else 'negative'}"
            right.append(kind if known else "")
        words[f"{name}: right"] = right
    return words


def _words_of_units(name: str, units: Units) -> dict[str, NDArray[np.str_]]:
    """Return what a task's labels say of each unit, by column; nothing for numbers."""
    if units.kind == "regression":
        return {}
    if units.kind == "survival":
        return {name: np.where(units.indicator[:, 0], units.classes[0], "censored")}
    if units.kind != "multilabel":
        return {name: np.array(units.classes)[units.y]}
    answers = np.array(["no", "yes", ""])  # -1, the last, is not known
    return {label: answers[units.y[:, j]] for j, label in enumerate(units.classes)}


def coded(name: str, words: list[str]) -> Column:
    """Return a column of words: the commonest by name, the rest as other, "" as nothing."""
    counts = Counter(word for word in words if word)
    common = [word for word, _ in counts.most_common()]
    # By name, so that a colour does not change with the numbers of slices.
    named = sorted(common[:MOST_VALUES])
    code = {word: i for i, word in enumerate(named)} | {"": 255}
    values = (*named, "other") if len(common) > len(named) else tuple(named)
    codes = [code.get(word, len(named)) for word in words]
    return Column(name, values, np.array(codes, np.uint8))


def _scales(source: Source) -> Iterator[Scale]:
    """Yield the numbers that differ between slices: of the slice table, of labels and answers."""
    names = {
        "position_mm": "position in the volume (mm)",
        "spacing_x_mm": "pixel spacing (mm)",
        "height": "height (pixels)",
    }
    for column, name in names.items():
        yield from _scale(name, source.slices[column].to_pandas().to_numpy(np.float32))
    for name, _, units, _ in source.labelled:
        if units.kind in ("regression", "survival"):
            of_unit = units.y if units.kind == "regression" else units.y[:, 0]
            numbers = np.full(len(source.rows), np.nan, np.float32)
            numbers[np.searchsorted(source.rows, units.rows)] = of_unit[units.unit]
            yield from _scale(name if units.kind == "regression" else f"{name}: watched", numbers)
    for task, result in leading_answers(source).items():
        judged = Judged.of(source, result)
        if judged is None:
            continue
        if judged.truth.kind == "survival":
            risk = np.full(len(source.rows), np.nan, np.float32)
            for number, rows in zip(judged.proba[:, 0], judged.rows, strict=True):
                risk[np.searchsorted(source.rows, rows)] = number
            yield from _scale(f"{task}: risk", risk)
        if judged.truth.kind == "regression":
            predicted = np.full((2, len(source.rows)), np.nan, np.float32)
            each = zip(judged.proba[:, 0], judged.truth.y, judged.rows, strict=True)
            for number, true, rows in each:
                predicted[:, np.searchsorted(source.rows, rows)] = [[number], [number - true]]
            yield from _scale(f"{task}: predicted", predicted[0])
            yield from _scale(f"{task}: predicted less true", predicted[1])


def _scale(name: str, numbers: Floats) -> Iterator[Scale]:
    """Yield numbers (n,) as a scale, where they differ."""
    known = numbers[~np.isnan(numbers)]
    if len(known) and known.min() < known.max():
        # One outlier would leave all others the same colour.
        low, high = np.percentile(known, [1, 99])
        top = float(high) if high > low else float(known.max())
        yield Scale(name, numbers, float(low), top)


def check_shared(sources: list[Source]) -> None:
    """Raise ConfigError where a store holds nothing that could be shown."""
    for source in sources:
        if not len(source.rows):
            raise ConfigError(
                f"The store {str(source.store.path)!r} holds no features yet: there is nothing to "
                "report. Run `radprobe extract`, or `radprobe failures` to see what went wrong."
            )
