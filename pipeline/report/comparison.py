"""Two or more stores side by side: who ranks where, by how much, and how alike their features are.

Dims: n shared slices, d features of one store, k neighbours, s stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluation.compare import Results, compare_results, with_predictions
from pipeline.evaluation.neighbours import neighbours
from pipeline.report.atlas import whole_slice
from pipeline.report.figures import forest, headline
from pipeline.report.sources import Source
from pipeline.report.wording import HEADLINE, METRICS, method_title, positive_text, units_alone
from pipeline.results import Difference, Metric, Result
from stores.errors import LabelError, StoreNotFoundError

Floats = NDArray[np.float32]
# Shared slices on which features are compared.
SAMPLE = 2000
K = 10


@dataclass(frozen=True)
class Ranked:
    """One question that every store answered: its metric (s,) in the order of the stores.

    positive: which of two classes is, and how many of the first store's test units carry it.
    """

    task: str
    positive: str
    method: str
    metric: str
    values: tuple[Metric, ...]
    ranks: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Two stores: differences of the second less the first, or why there are none; likeness.

    alone: how many test units of each answer the other store's answer lacks. alike: the tasks of
    which it lacks none.
    """

    first: str
    second: str
    differences: tuple[tuple[Result, Difference], ...]
    alone: tuple[str, ...]
    alike: frozenset[str]
    unable: str
    shared: int
    overlap: float | None
    cka: float | None


@dataclass(frozen=True)
class Comparison:
    """All stores side by side. mean_ranks (s,): over the questions that all answered.

    unranked: tasks that all answered, and that not all tested on the same units.
    """

    names: tuple[str, ...]
    ranked: tuple[Ranked, ...]
    mean_ranks: tuple[float, ...]
    unranked: tuple[str, ...]
    pairs: tuple[Pair, ...]
    forest: Figure | None


def compare_sources(sources: Sequence[Source]) -> Comparison:
    """Hold every pair of stores against each other, and rank them where all had the same test."""
    pairs = tuple(_pair(one, two) for one, two in combinations(sources, 2))
    alike = frozenset.intersection(*(pair.alike for pair in pairs))
    every = _rank(sources)
    ranked = [each for each in every if each.task in alike]
    means: list[float] = []
    if ranked:
        means = np.mean([each.ranks for each in ranked], axis=0).tolist()
    return Comparison(
        names=tuple(source.name for source in sources),
        ranked=tuple(ranked),
        mean_ranks=tuple(means),
        unranked=tuple(dict.fromkeys(each.task for each in every if each.task not in alike)),
        pairs=pairs,
        forest=_forest(sources, ranked),
    )


def _rank(sources: Sequence[Source]) -> list[Ranked]:
    """Rank the stores on each question that all of them answered with its main metric."""
    ranked = []
    for query in sources[0].results:
        if not all(query in source.results for source in sources):
            continue
        results = [source.results[query] for source in sources]
        name = headline(results[0])
        if not all(r.scores and name in r.main_score.metrics for r in results):
            continue
        values = tuple(r.main_score.metrics[name] for r in results)
        numbers = np.array([value.value for value in values])
        above = (numbers[None] > numbers[:, None]).sum(axis=1)
        ties = (numbers[None] == numbers[:, None]).sum(axis=1)
        ranks = tuple((above + (ties + 1) / 2).tolist())  # ties share their mean rank
        task, method = query
        positive = positive_text(results[0])
        ranked.append(Ranked(task, positive, method, name, values, ranks))
    return ranked


def _forest(sources: Sequence[Source], ranked: Sequence[Ranked]) -> Figure | None:
    rows = []
    for each in ranked:
        # One axis takes one metric: questions of another one are in the table alone.
        if each.metric == HEADLINE[0]:
            name = f"{each.task} · {method_title(each.method)}"
            rows.append((name, list(enumerate(each.values))))
    names = [source.name for source in sources]
    return forest(rows, names, METRICS[HEADLINE[0]], chance=0.5) if rows else None


def _predicted(source: Source) -> tuple[Path, Results]:
    """Return a source's store and answers with predictions on file. Raises StoreNotFoundError."""
    if not source.results:
        raise StoreNotFoundError(f"There are no results in {source.name!r}; evaluate it first.")
    return source.store.path, with_predictions(source.store.path, source.results.values())


def _pair(one: Source, two: Source) -> Pair:
    """Compare two stores: their scores on the same test units, their features on equal pixels."""
    differences: list[tuple[Result, Difference]] = []
    alone: dict[str, None] = {}
    unable = ""
    alike: set[str] = set()
    try:
        for result, of_result in compare_results(_predicted(one), _predicted(two)):
            wanted = headline(result)
            for difference in of_result:
                for text in units_alone(difference.paired, result.level):
                    alone[f"{result.task}, {method_title(result.method)}: {text}."] = None
            differences += [(result, d) for d in of_result if d.metric == wanted]
            if not any(units_alone(d.paired, result.level) for d in of_result):
                alike.add(result.task)
    except (LabelError, StoreNotFoundError) as error:  # the page says why, and goes on
        unable = str(error)
    x, y = _shared(one, two)
    # K neighbours need K others, and one more for a choice.
    enough = min(len(x), len(y)) > K + 1
    return Pair(
        first=one.name,
        second=two.name,
        differences=tuple(differences),
        alone=tuple(alone),
        alike=frozenset(alike),
        unable=unable,
        shared=max(len(x), len(y)),
        overlap=mutual_overlap(x, y, K) if enough else None,
        cka=linear_cka(x, y) if enough else None,
    )


def _shared(one: Source, two: Source) -> tuple[Floats, Floats]:
    """Return features (n, d) and (n, d') of slices with equal pixels, at most SAMPLE of them."""
    keys = []
    first = []
    for source in (one, two):
        digests = np.ascontiguousarray(source.store.read("pixel_digest", source.rows))
        key, at = np.unique(digests.view("V32").ravel(), return_index=True)
        keys.append(key.view("S32"))  # sorts as V32 does not compare
        first.append(source.rows[at])
    _, here, there = np.intersect1d(keys[0], keys[1], return_indices=True)
    # Evenly over the shared slices, so that no patient's or series' alone are compared.
    sample = np.unique(np.linspace(0, max(len(here) - 1, 0), SAMPLE).astype(np.int64))
    if not len(here):
        sample = sample[:0]
    x = _features(one, first[0][here[sample]])
    y = _features(two, first[1][there[sample]])
    return x, y


def _features(source: Source, rows: NDArray[np.int64]) -> Floats:
    """Return the features (n, d) of rows, in their order; (0, 0) of a store of patch tokens."""
    which = whole_slice(source)
    if which is None:  # patch tokens alone
        return np.empty((0, 0), np.float32)
    order = np.argsort(rows)  # reads go by chunk
    x = np.empty((len(rows), *which.row_shape(source.store)), np.float32)
    if len(rows):
        x[order] = which.of(source.store, rows[order])
    return x.reshape(len(rows), int(np.prod(x.shape[1:])))


def mutual_overlap(x: Floats, y: Floats, k: int) -> float:
    """Return the mean share of k nearest neighbours (cosine) that two spaces have in common.

    Mutual k-nearest-neighbour alignment of Huh et al., arXiv 2405.07987. x (n, d), y (n, d').
    """
    nearest = zip(_neighbours(x, k), _neighbours(y, k), strict=True)
    common = [len(np.intersect1d(of_x, of_y)) for of_x, of_y in nearest]
    return float(np.mean(common) / k)


def _neighbours(x: Floats, k: int) -> NDArray[np.int64]:
    every = np.arange(len(x))
    return neighbours(x, every, every, k, every)[1]


def linear_cka(x: Floats, y: Floats) -> float:
    """Return the linear centred kernel alignment of two spaces, 0 to 1.

    |Y'X|^2 / (|X'X| |Y'Y|), columns centred (Kornblith et al., arXiv 1905.00414, eq. 5 and
    section 3). x (n, d), y (n, d').
    """
    x_centred = _centred(x)
    y_centred = _centred(y)
    below = np.linalg.norm(x_centred.T @ x_centred) * np.linalg.norm(y_centred.T @ y_centred)
    # Zero where a space has all slices in one place.
    return float(np.linalg.norm(y_centred.T @ x_centred) ** 2 / below) if below > 0 else 0.0


def _centred(x: Floats) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    return centred
