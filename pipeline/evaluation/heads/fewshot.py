"""Few-shot: episodes of a few patients a class, or the one draw of arXiv 2312.02366.

An episode (N-way, K-shot) draws K patients a class from train and val, and up to `queries` patients
a class from test. A support patient stands for a class with the mean of all his units of that
class, a query patient with one of them, drawn at random. Everything is on unit length (cosine), and
all episodes are computed at once.
Dims: e episodes, c classes, k shots, q queries a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotations.units import Prediction, Units
from pipeline.config.base import HeadSettings
from pipeline.evaluation.heads.contract import FitInput, Floats, Head, Predicted, Rows
from pipeline.evaluation.heads.fixed_draw import fixed_draw
from pipeline.evaluation.heads.logistic import fit_logistic
from pipeline.evaluation.heads.probe import HEAD as PROBE
from pipeline.results import Metric, Score
from pipeline.shared.arrays import mean, unit_length

if TYPE_CHECKING:
    from pipeline.evaluation.heads.probe_fit import Probe

PATIENTS_AT_ONCE = 256
# float32 values of gathered queries at once: 256 MB
GATHERED = 2**26
# Collections drawn anew from the patients, for the interval, and episodes in each.
REDRAWS = 100
PER_REDRAW = 10


class FewShotSettings(HeadSettings):
    """Few-shot settings: episodes of `shots` patients a class.

    head: the nearest centroid by cosine; SimpleShot, which first takes the mean of train and val
    from every feature; or logistic regression. draw: "paper" is the one draw of arXiv 2312.02366,
    fitted by the probe and scored on all test units. shots: patients a class in a support set.
    queries: test patients a class that an episode is scored on, at most. episodes: how many there
    are. seed: of what is drawn.
    """

    draw: Literal["episodes", "paper"] = "episodes"
    head: Literal["centroid", "simpleshot", "logistic"] = "centroid"
    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        1, 2, 4, 8, 16,
    )  # fmt: skip
    queries: Annotated[int, Field(ge=1)] = 15
    episodes: Annotated[int, Field(ge=2)] = 600
    seed: int = 0

    @property
    def built_on(self) -> tuple[str, ...]:
        """The probe, where it fits the draw of the paper."""
        return ("probe",) if self.draw == "paper" else ()


def fit(given: FitInput[FewShotSettings]) -> Supports | list[DrawnProbe]:
    """Gather the patients that support sets are drawn from, or fit the draws of the paper."""
    if given.settings.draw == "paper":
        return [_drawn_probe(given, shots) for shots in given.settings.shots]
    return Supports.of(given)


def predict(model: Supports | list[DrawnProbe], x: Floats, rows: Rows) -> Predicted:
    """Return the scores of episodes whose queries are of the units `rows`; x (n, d).

    Of the paper's draw, the predictions of the probes.
    """
    if isinstance(model, Supports):
        return score(model, x, rows)
    predictions = []
    notes: list[str] = []
    for drawn in model:
        probe = drawn.probe
        if probe.fitted is not None:
            setting = {"shots": drawn.shots} | probe.setting
            proba = probe.fitted.predict(x, rows)
            predictions.append(Prediction(setting, proba, on_val=probe.on_val))
        notes += [f"{drawn.shots} shots: {note}" for note in probe.notes]
    return Predicted(predictions, notes)


# --- the paper's draw ----------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnProbe:
    """A probe fitted on the one draw of so many shots."""

    shots: int
    probe: Probe


def _drawn_probe(given: FitInput[FewShotSettings], shots: int) -> DrawnProbe:
    from pipeline.evaluation.heads import probe_fit

    drawn = fixed_draw(given.units, given.parts["train"], shots)
    parts = {**given.parts, "train": drawn}
    settings = given.settings_of(PROBE)
    of_draw = FitInput(given.x, given.units, parts, settings, given.device)
    # Val chooses the C and is not fitted: so many shots are all that is learnt from.
    return DrawnProbe(shots, probe_fit.fit(of_draw, refit_on=("train",)))


# --- episodes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByPatient:
    """Units of p patients: rows (m,), patient after patient; where each begins, and how many."""

    rows: Rows
    first: Rows  # (p,)
    sizes: Rows  # (p,)

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, rows: Rows, patient: Rows) -> ByPatient:
        """Sort unit numbers (m,) by their patients; patient (n,): of every unit."""
        rows = rows[np.argsort(patient[rows], kind="stable")]
        _, first, sizes = np.unique(patient[rows], return_index=True, return_counts=True)
        return cls(rows, first, sizes)


@dataclass(frozen=True)
class Supports:
    """The units (r,) of train and val that support sets are drawn from.

    centre (d,): what is taken from every feature first.
    """

    units: Units
    settings: FewShotSettings
    rows: Rows
    centre: Floats

    @classmethod
    def of(cls, given: FitInput[FewShotSettings]) -> Supports:
        """Take train and val; of a number, which has no classes, none is made use of."""
        rows = given.train_and_val
        centre = np.zeros(given.x.shape[1], np.float32)
        if given.settings.head == "simpleshot":  # CL2N of Wang et al., arXiv 1911.04623
            centre = mean(given.x, rows).astype(np.float32)
        return cls(given.units, given.settings, rows, centre)


@dataclass(frozen=True)
class _Features:
    """The features of units by number, (..., d) of unit numbers (...), of length 1."""

    x: Floats
    centre: Floats

    def __call__(self, rows: Rows) -> Floats:
        return unit_length(self.x[rows] - self.centre)


@dataclass(frozen=True)
class _Class:
    """The patients of one class: of train and val for support, of test for queries."""

    support: ByPatient
    queries: ByPatient


def score(model: Supports, x: Floats, test: Rows) -> Predicted:
    """Return accuracy and AUROC for each number of shots, averaged over episodes; x (n, d).

    Classes stand in equal numbers, so that accuracy is balanced. Multi-label: a two-way problem a
    label (carried or not), averaged over labels. The 95 % interval is of the mean, for other
    patients like these: see `_metrics`. Notes say which shots and labels were left out for want
    of patients.
    """
    if model.units.kind == "regression":
        note = "few-shot episodes need classes: a number has none"
        return Predicted(notes=[note], scores=[], applies=False)
    # Once for all shots: they draw from the same patients.
    features = _Features(x, model.centre)
    problems = {}
    for name, members in _problems(model.units):
        problems[name] = _classes(model, test, members)
    scores = []
    notes = []
    for k in model.settings.shots:
        episodes = {}
        redrawn_episodes = {}
        for name, classes in problems.items():
            if not _enough(classes, k):
                notes.append(f"{k} shots of {name} left out: a class has too few patients")
                continue
            episodes[name] = _episodes(features, classes, k, model.settings)
            redrawn_episodes[name] = _episodes(features, classes, k, model.settings, REDRAWS)
        if episodes:
            tested = {name: _tested(problems[name]) for name in episodes}
            scores.append(_summary(k, episodes, redrawn_episodes, tested))
    return Predicted(notes=notes, scores=scores)


def _problems(units: Units) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each problem's name and its members (n, c): one problem, or a two-way one a label."""
    if units.kind != "multilabel":
        yield "all classes", units.indicator
        return
    for j, name in enumerate(units.classes):
        label = units.y[:, j]
        # One whose label is not known, -1, is a member of neither.
        members = [label == 0, label == 1]
        yield name, np.stack(members, axis=1)


def _classes(model: Supports, test: Rows, members: NDArray[np.bool_]) -> list[_Class]:
    """Return each class's patients for support and for queries; members (n, c).

    The class of the first unit comes first, whichever is called positive: classes draw in turn.
    """
    patient = model.units.patient
    classes = []
    in_order = np.argsort(members.argmax(axis=0), kind="stable")
    for carried in members.T[in_order]:
        support = ByPatient.of(model.rows[carried[model.rows]], patient)
        queries = ByPatient.of(test[carried[test]], patient)
        classes.append(_Class(support, queries))
    return classes


def _enough(classes: list[_Class], k: int) -> bool:
    """Return whether every class has k patients for support, and any for queries."""
    return all(len(each.support) >= k and len(each.queries) for each in classes)


def _episodes(
    features: _Features,
    classes: list[_Class],
    k: int,
    settings: FewShotSettings,
    redraws: int = 0,
) -> Floats:
    """Return (e, 2): accuracy and AUROC of each episode.

    With redraws, of PER_REDRAW episodes in each of so many collections, whose patients are drawn
    from these with replacement.
    """
    # Seeds of their own, so that neither other shots nor the redraws change these episodes.
    rng = np.random.default_rng([settings.seed, k, redraws])
    total = redraws * PER_REDRAW or settings.episodes
    d = features(classes[0].support.rows[:1]).shape[1]
    gathered = 0  # numbers of one episode
    for each in classes:
        q = min(settings.queries, len(each.queries))
        gathered += (k + q) * d
    at_once = max(1, GATHERED // gathered)
    shape = (len(classes), 2)
    seeds = rng.integers(0, 2**63, shape, np.uint64)
    results = []
    for start in range(0, total, at_once):
        e = min(at_once, total - start)
        collection = (start + np.arange(e)) // PER_REDRAW if redraws else None
        supports = []
        queries = []
        # Support before queries, class by class: the order in which chance is drawn from.
        for each, (support_seed, query_seed) in zip(classes, seeds, strict=True):
            q = min(settings.queries, len(each.queries))
            shots = draw(rng, len(each.support), k, e)
            patients = draw(rng, len(each.queries), q, e)
            if collection is not None:
                shots = redrawn(support_seed, collection, shots, len(each.support))
                patients = redrawn(query_seed, collection, patients, len(each.queries))
            supports.append(_prototypes(features, each.support, shots))
            queries.append(features(_unit_of_each(rng, each.queries, patients)))
        results.append(_score_episodes(_similarity(supports, queries, settings)))
    return np.concatenate(results)


def _prototypes(features: _Features, support: ByPatient, patients: Rows) -> Floats:
    """Return (e, k, d) the mean of each drawn patient's units, some patients (e, k) at a time."""
    drawn, place = np.unique(patients, return_inverse=True)
    means = []
    for start in range(0, len(drawn), PATIENTS_AT_ONCE):
        each = drawn[start : start + PATIENTS_AT_ONCE]
        sizes = support.sizes[each]
        ends = np.cumsum(sizes)
        # Where the units of each patient stand among `support.rows`, patient after patient.
        starts = ends - sizes
        offsets = np.repeat(support.first[each] - starts, sizes)
        at = offsets + np.arange(ends[-1])
        of_units = features(support.rows[at])
        sums = np.add.reduceat(of_units, starts, axis=0)
        mean_of = sums / sizes[:, None]
        means.append(np.asarray(mean_of, np.float32))
    return np.concatenate(means)[place.reshape(patients.shape)]


def _similarity(
    supports: list[Floats], queries: list[Floats], settings: FewShotSettings
) -> list[Floats]:
    """Return for the queries (e, q, d) of each class what speaks for each class: (e, q, c)."""
    if settings.head == "logistic":
        support = np.concatenate(supports, axis=1)
        alpha, b = fit_logistic(support, len(supports))
        across = support.transpose(0, 2, 1)
        logits = []
        for x in queries:
            of_class = (x @ across) @ alpha + b[:, None]
            logits.append(np.asarray(of_class, np.float32))
        return logits
    means = [each.mean(axis=1) for each in supports]
    centroids: Floats = np.stack(means, axis=2)  # (e, d, c)
    length = np.linalg.norm(centroids, axis=1, keepdims=True)
    centroids /= np.maximum(length, 1e-30)
    return [x @ centroids for x in queries]


def draw(
    rng: np.random.Generator,
    n: int,
    k: int,
    e: int,
) -> Rows:
    """Return (e, k): k different numbers below n an episode, every set equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), a step for all episodes together.
    """
    chosen = np.empty((e, k), np.int64)
    for i, top in enumerate(range(n - k, n)):
        number = rng.integers(0, top + 1, e)
        before = chosen[:, :i]
        taken = (before == number[:, None]).any(axis=1)
        # One that was drawn before gives way to the greatest, which could not be drawn before.
        chosen[:, i] = np.where(taken, top, number)
    return chosen


def redrawn(
    seed: np.uint64,
    collection: Rows,
    places: Rows,
    n: int,
) -> Rows:
    """Return (e, k) which of n patients stands at each place of a collection redrawn from them.

    Drawn with replacement, one place by itself: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of
    collection (e,) and place (e, k), so that nothing is made for the places nobody looks at.
    """
    with np.errstate(over="ignore"):
        place = collection[:, None] * 2**40 + places
        z = place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += seed
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    # The upper 53 bits, as a number in [0, 1).
    upper = (z >> np.uint64(11)).astype(np.float64)
    return (upper * 2.0**-53 * n).astype(np.int64)


def _unit_of_each(rng: np.random.Generator, of: ByPatient, patients: Rows) -> Rows:
    """Return (e, q) unit numbers: one random unit of each patient (e, q)."""
    chance = rng.random(patients.shape)
    which = (chance * of.sizes[patients]).astype(np.int64)
    rows: Rows = of.rows[of.first[patients] + which]
    return rows


def _score_episodes(similarity: list[Floats]) -> Floats:
    """Return (e, 2): accuracy and macro AUROC, from what speaks for each class (e, q, c).

    A query's score for a class is what speaks for it less the most that speaks for another.
    """
    margins = [_margins(each) for each in similarity]
    right = []
    aurocs = []
    for j, of_class in enumerate(similarity):
        right.append((of_class.argmax(axis=2) == j).mean(axis=1))
        others = [margin[..., j] for i, margin in enumerate(margins) if i != j]
        theirs = np.concatenate(others, axis=1)
        carriers = margins[j][..., j]
        ahead = carriers[:, :, None] - theirs[:, None, :]  # (e, q, q of the others)
        # Mann and Whitney's statistic, a tie counting one half.
        won = (ahead > 0).mean(axis=(1, 2))
        tied = (ahead == 0).mean(axis=(1, 2))
        aurocs.append(won + tied / 2)
    accuracy = np.mean(right, axis=0)
    auroc = np.mean(aurocs, axis=0)
    scores: Floats = np.stack([accuracy, auroc], axis=1)
    return scores


def _margins(similarity: Floats) -> Floats:
    """Return (e, q, c): each cosine less the greatest of the other classes'."""
    ascending = np.sort(similarity, axis=2)
    greatest = ascending[..., -1:]
    second = ascending[..., -2:-1]
    others = np.where(similarity == greatest, second, greatest)
    margins: Floats = similarity - others
    return margins


def _tested(classes: list[_Class]) -> int:
    """Return how many test patients the classes have together."""
    return sum(len(each.queries) for each in classes)


def _summary(
    k: int,
    episodes: Mapping[str, Floats],
    redrawn: Mapping[str, Floats],
    tested: Mapping[str, int],
) -> Score:
    """Return the score of k shots; `episodes`, and the others, have one entry, or one a label."""
    joint = np.mean(list(episodes.values()), axis=0)
    joint_redrawn = np.mean(list(redrawn.values()), axis=0)
    labels = {}
    if len(episodes) > 1:
        for name, of_label in episodes.items():
            labels[name] = _metrics(of_label, redrawn[name], tested[name])
    metrics = _metrics(joint, joint_redrawn, min(tested.values()))
    return Score(setting={"shots": k}, metrics=metrics, labels=labels)


def _metrics(episodes: Floats, redrawn: Floats, patients: int) -> dict[str, Metric]:
    """Return the mean of each column of `episodes` (e, 2) with its interval.

    Collections redrawn patient by patient differ as other patients would, and as their few
    episodes do; the latter is known from within them and taken off (one-way random effects). The
    interval is of that and of the mean's own standard error together, on the logit scale, where a
    share near 1 has a symmetric one, by Student's distribution of the `patients` that are tested.
    """
    by_collection = redrawn.reshape(-1, PER_REDRAW, 2)
    by_chance = by_collection.var(axis=1, ddof=1).mean(axis=0) / PER_REDRAW
    between = by_collection.mean(axis=1).var(axis=0, ddof=1)
    of_patients = np.maximum(between - by_chance, 0)
    mean_of = episodes.mean(axis=0)
    of_episodes = episodes.var(axis=0, ddof=1) / len(episodes)
    error = np.sqrt(of_patients + of_episodes)
    metrics = {}
    for i, name in enumerate(("accuracy", "auroc")):
        metrics[name] = _with_interval(float(mean_of[i]), float(error[i]), patients)
    return metrics


def _with_interval(value: float, error: float, patients: int) -> Metric:
    """Return a share with its interval; one patient says nothing of others."""
    from pipeline.evaluation.metrics.bootstrap import (
        ROUNDING,
        interval_on,
        score_bounds,
        student_reach,
    )

    if patients <= 1:
        return Metric(value=value)
    # Where all episodes agree, as on a perfect score, there is no error to see, and no more
    # certainty than so many patients give.
    if 0 < value < 1 and error > ROUNDING:
        return interval_on("logit", value, error, student_reach(patients))
    low, high = score_bounds(value, patients)
    return Metric(value=value, low=max(0.0, low), high=min(1.0, high))


HEAD = Head(
    name="fewshot",
    title="Few-shot",
    settings=FewShotSettings,
    contract=11,
    fit=fit,
    predict=predict,
    folds="first",
    compared=False,
)
