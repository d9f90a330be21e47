"""Nearest neighbours with FAISS: exact, block by block, or by an inverted file of known recall.

Exact search takes the references some at a time and keeps the best, so that it needs no index and
no memory but a block's. An inverted file (Jegou et al., TPAMI 33(1), 2011) holds the references;
of features in a scratch file it holds codes of a byte for eight numbers (product quantisation,
TPAMI 33(1), 2011), and what the codes find is put in order by the features themselves.
Dims: n references, q queries, d, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from pipeline.evaluation.cards import MOST, cards_of, on_card, search_on
from pipeline.shared.arrays import Floats, Rows, batches, unit_length

# Cosines or distances (q, k), and places or rows (q, k)
Nearest = tuple[Floats, Rows]

# Numbers of a block of references: 256 MB.
BLOCK = 2**26
# Queries of a block: what a cache holds well.
QUERIES = 4096
# FAISS multiplies so many references at a time.
TILE = 1024
SEED = 0


def neighbours(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
    patient: Rows | None = None,
    index: InvertedFile | None = None,
    device: str | None = None,
) -> Nearest:
    """Return (q, k): cosines from the greatest, and places in `reference` of the nearest units.

    reference, queries: row numbers of x (n, d). With patient (n,), neighbours of the query's own
    patient do not count and others take their place, also where reference and queries share
    patients; k others must be there for every query. index: of the references; unset, all of them
    are looked at. device: where (`pipeline.evaluation.cards`); an index knows. Raises DeviceError.
    """
    # So many of the nearest may be of the query's own patient: as many more are looked for.
    spare = 0 if patient is None else _most_shared(patient[reference], patient[queries])
    if index is None:
        nearest = exact(x, reference, queries, k + spare, device)
    else:
        nearest = index.search(queries, k + spare)
    if patient is None or not spare:
        return nearest
    cosine, place = nearest
    for now in batches(len(queries)):
        is_same_patient = patient[reference][place[now]] == patient[queries[now], None]
        # Stable: patients other than the query's come first, and of those the nearest.
        others_first = np.argsort(is_same_patient, axis=1, kind="stable")
        cosine[now], place[now] = _reordered(cosine[now], place[now], others_first)
    return cosine[:, :k], place[:, :k]


def _most_shared(reference: Rows, queries: Rows) -> int:
    """Return how many references a patient who also has a query has at most."""
    shared = reference[np.isin(reference, queries)]
    counts = np.bincount(shared)
    return int(counts.max()) if len(counts) else 0


def _reordered(
    near: Floats,
    place: Rows,
    order: Rows,
) -> Nearest:
    """Return each query's neighbours in an order (q, k) of its own."""
    return (
        np.take_along_axis(near, order, 1),
        np.take_along_axis(place, order, 1),
    )


def exact(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
    device: str | None = None,
) -> Nearest:
    """Return (q, k) cosines and places in `reference`, of all references."""
    search = search_on(device, k)
    cosine = np.full((len(queries), k), -np.inf, np.float32)
    place = np.full((len(queries), k), -1)
    at_once = max(TILE, BLOCK // x.shape[1] // TILE * TILE)
    for block in batches(len(reference), at_once):
        references = unit_length(x[reference[block]])
        for now in batches(len(queries), QUERIES):
            of_queries = unit_length(x[queries[now]])
            most = min(k, len(references))
            near, at = search(of_queries, references, most, faiss.METRIC_INNER_PRODUCT)
            cosine[now], place[now] = _best_of_both(
                (cosine[now], place[now]),
                (near, at + block.start),
                k,
            )
    return cosine, place


def _best_of_both(
    before: Nearest,
    block: Nearest,
    k: int,
) -> Nearest:
    """Return the k nearest of those of earlier blocks and of one more; equals stay in order."""
    near = np.concatenate([before[0], block[0]], axis=1)
    place = np.concatenate([before[1], block[1]], axis=1)
    best = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return _reordered(near, place, best)


# References a list that an inverted file learns its lists from, in so many rounds.
POINTS_A_LIST = 32
ROUNDS = 5
# Queries that recall is measured on.
SAMPLED = 256
# Codes are inexact: so many times as many are looked for, and the best by the features are taken.
OVERSAMPLED = 4
# Queries whose candidates' features are read from the scratch file at once.
READ_AT_ONCE = 64
# Numbers that a byte of a code stands for, and its bits.
NUMBERS_A_CODE = 8
CODE_BITS = 8


@dataclass(frozen=True)
class InvertedFile:
    """An inverted file of the units `reference` of x; note: what results say of it.

    is_coded: whether it holds codes of the features, not the features.
    """

    x: Floats
    reference: Rows
    index: Any
    is_coded: bool
    note: str = ""

    def search(self, queries: Rows, k: int) -> Nearest:
        """Return (q, k) cosines and places; all lists are searched where some held fewer."""
        cosine = np.empty((len(queries), k), np.float32)
        place = np.empty((len(queries), k), np.int64)
        at_once = READ_AT_ONCE if self.is_coded else QUERIES
        for now in batches(len(queries), at_once):
            near, at = self._search(unit_length(self.x[queries[now]]), k)
            cosine[now] = near[:, :k]
            place[now] = at[:, :k]
        return cosine, place

    def _search(self, queries: Floats, k: int) -> Nearest:
        """Return (b, k or more) cosines and places of queries (b, d) of length 1."""
        candidates = min(OVERSAMPLED * k, len(self.reference)) if self.is_coded else k
        near, place = self.index.search(queries, candidates)
        # FAISS fills up with -1 where the lists it searched held too few.
        is_short = (place[:, :k] < 0).any(axis=1)
        if is_short.any():
            every_list = faiss.SearchParametersIVF()
            every_list.nprobe = self.index.nlist
            near[is_short], place[is_short] = self.index.search(
                queries[is_short],
                candidates,
                params=every_list,
            )
        return self._by_features(queries, place) if self.is_coded else (near, place)

    def _by_features(self, queries: Floats, place: Rows) -> Nearest:
        """Return candidates (b, k), -1 for none, with true cosines, from the greatest."""
        # A reference that several queries have as a candidate is read once.
        each, at = np.unique(np.maximum(place, 0), return_inverse=True)
        cosines = queries @ unit_length(self.x[self.reference[each]]).T
        near = np.take_along_axis(cosines, at.reshape(place.shape), 1)
        near[place < 0] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")
        return _reordered(near, place, order)


def build_inverted_file(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
    recall: float,
    device: str | None = None,
) -> InvertedFile:
    """Return an inverted file of 4 sqrt(n) lists, learnt from a sample and filled in passes.

    To learn the lists costs what exact search of 16 * POINTS_A_LIST * ROUNDS = 2,560 queries
    does, to fill them that of 4 sqrt(n): it pays from about the sum on. Lists to be searched are
    doubled until the share of the k nearest that is found, on a sample of the queries, is `recall`,
    or until there are no more. On a GPU the lists are learnt and, where FAISS has kernels for such
    an index, searched; the note says if not. Raises DeviceError.
    """
    n = len(reference)
    d = x.shape[1]
    rng = np.random.default_rng(SEED)
    is_coded = isinstance(x, np.memmap)
    index = _empty_index(n, d, coded=is_coded)
    if cards_of(device):
        index.clustering_index = on_card(faiss.IndexFlatIP(d), device)
    learnt = rng.choice(
        reference,
        min(n, POINTS_A_LIST * index.nlist, 4 * BLOCK // d),
        replace=False,
    )
    # In order, since a scratch file is read from its beginning to its end.
    index.train(unit_length(x[np.sort(learnt)]))
    for now in batches(n):
        index.add(unit_length(x[reference[now]]))
    file = InvertedFile(x, reference, index, is_coded)
    sample = rng.choice(queries, min(len(queries), SAMPLED), replace=False)
    reached = _search_enough_lists(file, sample, k, recall)
    note = (
        f"neighbours among {n} references are by an inverted file{' of codes' * is_coded}, "
        f"{index.nprobe} of {index.nlist} lists searched: {reached:.4f} of the true {k} are found, "
        f"measured on {len(sample)} test units"
    )
    if cards_of(device):
        index, of_device = _on_card(index, k, device)
        note += of_device
    return InvertedFile(x, reference, index, is_coded, note)


def _on_card(index: Any, k: int, device: str | None) -> tuple[Any, str]:
    """Return an index on a GPU; where FAISS has no kernels for it, the index, and that it is so."""
    if max(index.nlist, OVERSAMPLED * k) > MOST:  # all lists are searched where some held too few
        return index, f"; by the processor: a GPU searches {MOST} lists and candidates at most"
    try:
        copy = on_card(index, device)
    except RuntimeError as error:
        return index, f"; by the processor: {str(error).splitlines()[0]}"
    copy.nprobe = index.nprobe
    return copy, ""


def _empty_index(
    n: int,
    d: int,
    *,
    coded: bool,
) -> Any:
    """Return FAISS's index of n references that has learnt nothing; coded: it holds codes."""
    lists = min(n, 4 * int(n**0.5))
    coarse = faiss.IndexFlatIP(d)
    index: Any
    if coded:
        # A code must stand for equally many numbers as every other.
        codes = max(1, d // NUMBERS_A_CODE)
        while d % codes:
            codes -= 1
        bits = min(CODE_BITS, int(np.log2(n)))
        index = faiss.IndexIVFPQ(coarse, d, lists, codes, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter = ROUNDS
        index.pq.cp.max_points_per_centroid = POINTS_A_LIST
        index.pq.cp.min_points_per_centroid = 1
    else:
        index = faiss.IndexIVFFlat(coarse, d, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.niter = ROUNDS
    index.cp.min_points_per_centroid = 1
    return index


def _search_enough_lists(
    file: InvertedFile,
    sample: Rows,
    k: int,
    recall: float,
) -> float:
    """Set how many lists are searched, so that recall on a sample is reached; return what is."""
    index = file.index
    _, true = exact(file.x, file.reference, sample, k)
    index.nprobe = max(1, index.nlist // 128)
    reached = recall_of(file.search(sample, k)[1], true)
    while reached < recall and index.nprobe < index.nlist:
        index.nprobe = min(2 * index.nprobe, index.nlist)
        reached = recall_of(file.search(sample, k)[1], true)
    return reached


def recall_of(nearest: Rows, true: Rows) -> float:
    """Return which share of the true neighbours (q, k) is among the nearest (q, k)."""
    shares = [np.isin(t, n).mean() for t, n in zip(true, nearest, strict=True)]
    return float(np.mean(shares))


# Pairs that are all looked at; of more, those in so many nearest lists of an inverted file.
PAIRS = 2**33
PROBED = 8


def nearest_by_distance(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
) -> Nearest:
    """Return (q, k) Euclidean distances from the least, and the references' row numbers; x (n, d).

    Of many pairs approximately: what is far nearer than all else is found.
    """
    references = x[reference]
    if len(queries) * len(reference) <= PAIRS:
        square, place = faiss.knn(x[queries], references, k, faiss.METRIC_L2)
    else:
        square, place = _distance_index(references).search(x[queries], k)
    # Rounding may leave the square of no distance just below 0.
    return np.sqrt(np.maximum(square, 0)), reference[place]


def _distance_index(references: Floats) -> Any:
    """Return FAISS's inverted file of references (n, d) by Euclidean distance, filled."""
    n, d = references.shape
    lists = 4 * int(n**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists)
    index.cp.niter = ROUNDS
    index.cp.min_points_per_centroid = 1
    index.nprobe = PROBED
    rng = np.random.default_rng(SEED)
    learnt = rng.choice(n, min(n, POINTS_A_LIST * lists), replace=False)
    index.train(references[learnt])
    index.add(references)
    return index
