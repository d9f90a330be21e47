"""Few-shot episodes: N-way K-shot over patients, all episodes at once.

An episode draws K patients a class from train and val, and up to `queries` patients a class from
test. A support patient stands for a class with the mean of all his units of that class, a query
patient with one of them, drawn at random. Everything is on unit length (cosine).
Dims: e episodes, c classes, k shots, q queries a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.heads import FewShot
from pipeline.config.tasks import Part
from pipeline.evaluation.heads.logistic import fit_logistic
from pipeline.results import Metric, Score
from pipeline.shared.arrays import mean

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
# The units' features (..., d), of length 1, of unit numbers (...)
Features = Callable[[Rows], Floats]
PATIENTS_AT_ONCE = 256
# float32 values of gathered queries at once: 256 MB
GATHERED = 2**26
# Collections drawn anew from the patients, for the interval, and episodes in each.
REDRAWS = 100
PER_REDRAW = 10


@dataclass(frozen=True)
class _Class:
    """The patients of one class: p for support, of train and val, and p' for queries, of test."""

    known: _ByPatient
    asked: _ByPatient


@dataclass(frozen=True)
class _ByPatient:
    """Units of p patients: rows (m,), patient after patient; where each begins, and how many."""

    rows: Rows
    first: Rows  # (p,)
    sizes: Rows  # (p,)

    def __len__(self) -> int:
        return len(self.first)


def score(
    x: Floats, units: Units, parts: Mapping[Part, Rows], settings: FewShot
) -> tuple[list[Score], list[str]]:
    """Return accuracy and AUROC for each number of shots, averaged over episodes; x (n, d).

    Classes stand in equal numbers, so that accuracy is balanced. Multi-label: a two-way problem a
    label (carried or not), averaged over labels. The 95 % interval is of the mean, for other
    patients like these: see `_metrics`. Notes say which shots and labels were left out for want
    of patients.
    """
    if units.kind == "regression":
        return [], ["few-shot episodes need classes: a number has none"]
    support = np.concatenate([parts["train"], parts["val"]])
    centre = np.zeros(x.shape[1], np.float32)
    if settings.head == "simpleshot":  # CL2N of Wang et al., arXiv 1911.04623
        centre = mean(x, support).astype(np.float32)

    def unit_length(rows: Rows) -> Floats:
        return _unit_length(x[rows] - centre)

    scores, notes = [], []
    problems = {
        name: _classes(units, support, parts["test"], members) for name, members in _problems(units)
    }
    for k in settings.shots:
        results, resampled = {}, {}
        for name, classes in problems.items():
            if min(len(c.known) for c in classes) < k or not all(len(c.asked) for c in classes):
                notes.append(f"{k} shots of {name} left out: a class has too few patients")
            else:
                results[name] = _episodes(unit_length, classes, k, settings)
                resampled[name] = _episodes(unit_length, classes, k, settings, REDRAWS)
        if results:
            scores.append(_summary(k, results, resampled))
    return scores, notes


def _problems(units: Units) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each problem's name and its members (n, c): one problem, or a two-way one a label."""
    if units.kind != "multilabel":
        yield "all classes", units.indicator
    else:
        for j, name in enumerate(units.classes):
            yield name, np.stack([units.y[:, j] == 0, units.y[:, j] == 1], axis=1)


def _unit_length(values: Floats) -> Floats:
    """Return values (..., d) with rows of length 1; a zero row stays zero."""
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(norm, np.finfo(np.float32).tiny))


def _classes(units: Units, support: Rows, test: Rows, members: NDArray[np.bool_]) -> list[_Class]:
    """Return each class's patients for support and for queries; members (n, c)."""
    patient = units.patient
    return [
        _Class(*(_by_patient(rows[own[rows]], patient) for rows in (support, test)))
        for own in members.T
    ]


def _by_patient(rows: Rows, patient: Rows) -> _ByPatient:
    """Return unit numbers (m,) by their patients; patient (n,): of every unit."""
    rows = rows[np.argsort(patient[rows], kind="stable")]
    _, first, sizes = np.unique(patient[rows], return_index=True, return_counts=True)
    return _ByPatient(rows, first, sizes)


def _prototypes(features: Features, known: _ByPatient, patients: Rows) -> Floats:
    """Return (e, k, d) the mean of each drawn patient's units, some patients (e, k) at a time."""
    drawn, place = np.unique(patients, return_inverse=True)
    means = []
    for start in range(0, len(drawn), PATIENTS_AT_ONCE):
        each = drawn[start : start + PATIENTS_AT_ONCE]
        sizes = known.sizes[each]
        ends = np.cumsum(sizes)
        at = np.repeat(known.first[each] - ends + sizes, sizes) + np.arange(ends[-1])
        sums = np.add.reduceat(features(known.rows[at]), ends - sizes, axis=0)
        means.append(np.asarray(sums / sizes[:, None], np.float32))
    return np.concatenate(means)[place.reshape(patients.shape)]


def _episodes(
    features: Features, classes: list[_Class], k: int, settings: FewShot, redraws: int = 0
) -> Floats:
    """Return (e, 2): accuracy and AUROC of each episode.

    With redraws, of PER_REDRAW episodes in each of so many collections, whose patients are drawn
    from these with replacement.
    """
    rng = np.random.default_rng([settings.seed, k, redraws])
    total = redraws * PER_REDRAW or settings.episodes
    wide = features(classes[0].known.rows[:1]).shape[1]
    gathered = sum(k + min(settings.queries, len(each.asked)) for each in classes) * wide
    at_once = max(1, GATHERED // gathered)
    seeds = rng.integers(0, 2**63, (len(classes), 2), np.uint64)
    results = []
    for start in range(0, total, at_once):
        e = min(at_once, total - start)
        collection = (start + np.arange(e)) // PER_REDRAW
        supports, queries = [], []
        for each, (of_known, of_asked) in zip(classes, seeds, strict=True):
            shots = draw(rng, len(each.known), k, e)
            patients = draw(rng, len(each.asked), min(settings.queries, len(each.asked)), e)
            if redraws:
                shots = redrawn(of_known, collection, shots, len(each.known))
                patients = redrawn(of_asked, collection, patients, len(each.asked))
            supports.append(_prototypes(features, each.known, shots))
            queries.append(features(_of_patients(rng, each.asked, patients)))
        results.append(_score_episodes(_similarity(supports, queries, settings)))
    return np.concatenate(results)


def _similarity(supports: list[Floats], queries: list[Floats], settings: FewShot) -> list[Floats]:
    """Return for the queries (e, q, d) of each class what speaks for each class: (e, q, c)."""
    if settings.head == "logistic":
        support = np.concatenate(supports, axis=1)
        alpha, b = fit_logistic(support, len(supports))
        across = support.transpose(0, 2, 1)
        return [np.asarray((x @ across) @ alpha + b[:, None], np.float32) for x in queries]
    centroids: Floats = np.stack([each.mean(axis=1) for each in supports], axis=2)  # (e, d, c)
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
    return [x @ centroids for x in queries]


def draw(rng: np.random.Generator, n: int, k: int, e: int) -> Rows:
    """Return (e, k): k different numbers below n an episode, every set equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), a step for all episodes together.
    """
    chosen = np.empty((e, k), np.int64)
    for i, top in enumerate(range(n - k, n)):
        number = rng.integers(0, top + 1, e)
        taken = (chosen[:, :i] == number[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, top, number)
    return chosen


def redrawn(seed: np.uint64, collection: Rows, places: Rows, n: int) -> Rows:
    """Return (e, k) which of n patients stands at each place of a collection redrawn from them.

    Drawn with replacement, one place by itself: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of
    collection (e,) and place (e, k), so that nothing is made for the places nobody looks at.
    """
    with np.errstate(over="ignore"):
        z = (collection[:, None] * 2**40 + places).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += seed
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * n).astype(np.int64)


def _of_patients(rng: np.random.Generator, asked: _ByPatient, patients: Rows) -> Rows:
    """Return (e, q) unit numbers: one random unit of each patient (e, q)."""
    which = (rng.random(patients.shape) * asked.sizes[patients]).astype(np.int64)
    rows: Rows = asked.rows[asked.first[patients] + which]
    return rows


def _score_episodes(similarity: list[Floats]) -> Floats:
    """Return (e, 2): accuracy and macro AUROC, from what speaks for each class (e, q, c).

    A query's score for a class is what speaks for it less the most that speaks for another.
    """
    c = len(similarity)
    right, aurocs = [], []
    margins = [_margins(each) for each in similarity]
    for j in range(c):
        right.append((similarity[j].argmax(axis=2) == j).mean(axis=1))
        rest = np.concatenate([margins[i][..., j] for i in range(c) if i != j], axis=1)
        ahead = margins[j][..., j][:, :, None] - rest[:, None, :]  # (e, q, q of the others)
        aurocs.append((ahead > 0).mean(axis=(1, 2)) + (ahead == 0).mean(axis=(1, 2)) / 2)
    scores: Floats = np.stack([np.mean(right, axis=0), np.mean(aurocs, axis=0)], axis=1)
    return scores


def _margins(similarity: Floats) -> Floats:
    """Return (e, q, c): each cosine less the greatest of the other classes'."""
    top = np.sort(similarity, axis=2)
    first = similarity == top[..., -1:]
    margins: Floats = similarity - np.where(first, top[..., -2:-1], top[..., -1:])
    return margins


def _summary(k: int, results: Mapping[str, Floats], resampled: Mapping[str, Floats]) -> Score:
    """Return the score of k shots; `results` has one entry, or one a label."""
    joint = (np.mean(list(each.values()), axis=0) for each in (results, resampled))
    labels = {}
    if len(results) > 1:
        labels = {name: _metrics(own, resampled[name]) for name, own in results.items()}
    return Score(setting={"shots": k}, metrics=_metrics(*joint), labels=labels)


def _metrics(episodes: Floats, resampled: Floats) -> dict[str, Metric]:
    """Return the mean of each column of `episodes` (e, 2) with its interval.

    Collections redrawn patient by patient differ as other patients would, and as their few
    episodes do; the latter is known from within them and taken off (one-way random effects). The
    interval is the mean +- 1.96 of that and of its own standard error together, within [0, 1].
    """
    each = resampled.reshape(-1, PER_REDRAW, 2)
    by_chance = each.var(axis=1, ddof=1).mean(axis=0) / PER_REDRAW
    of_patients = np.maximum(each.mean(axis=1).var(axis=0, ddof=1) - by_chance, 0)
    mean = episodes.mean(axis=0)
    error = 1.96 * np.sqrt(of_patients + episodes.var(axis=0, ddof=1) / len(episodes))
    low, high = np.clip(mean - error, 0, 1).tolist(), np.clip(mean + error, 0, 1).tolist()
    return {
        name: Metric(value=float(mean[i]), low=low[i], high=high[i])
        for i, name in enumerate(("accuracy", "auroc"))
    }
