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

from pipeline.shared.arrays import Floats, Rows, batches, unit_length

# Numbers of a block of references, and of its queries: 256 MB, and what a cache holds well
BLOCK, QUERIES = 2**26, 4096
TILE = 1024  # FAISS multiplies so many references at a time
# An inverted file: references a list that it learns from, in so many rounds, and queries that
# recall is measured on
POINTS_A_LIST, LEARNT_IN = 32, 5
SAMPLED = 256
# What the codes find is asked for so many times over; queries whose finds are read at once.
OVER, READ_AT_ONCE = 4, 64
SEED = 0


def neighbours(
    x: Floats,
    reference: Rows,
    queries: Rows,
    k: int,
    patient: Rows | None = None,
    index: Inverted | None = None,
) -> tuple[Floats, Rows]:
    """Return (q, k): cosines from the greatest, and places in `reference` of the nearest units.

    reference, queries: row numbers of x (n, d). With patient (n,), neighbours of the query's own
    patient do not count and others take their place, also where reference and queries share
    patients; k others must be there for every query. index: of the references; unset, all of them
    are looked at.
    """
    own = 0 if patient is None else _shared(patient[reference], patient[queries])
    if index is None:
        cosine, nearest = exact(x, reference, queries, k + own)
    else:
        cosine, nearest = index.search(queries, k + own)
    if patient is None or not own:
        return cosine, nearest
    for now in batches(len(queries)):
        same = patient[reference][nearest[now]] == patient[queries[now], None]
        order = np.argsort(same, axis=1, kind="stable")  # others first, nearest first
        cosine[now] = np.take_along_axis(cosine[now], order, 1)
        nearest[now] = np.take_along_axis(nearest[now], order, 1)
    return cosine[:, :k], nearest[:, :k]


def exact(x: Floats, reference: Rows, queries: Rows, k: int) -> tuple[Floats, Rows]:
    """Return (q, k) cosines and places in `reference`, of all references."""
    cosine = np.full((len(queries), k), -np.inf, np.float32)
    nearest = np.full((len(queries), k), -1)
    for block in batches(len(reference), max(TILE, BLOCK // x.shape[1] // TILE * TILE)):
        own = unit_length(x[reference[block]])
        for now in batches(len(queries), QUERIES):
            near, at = faiss.knn(
                unit_length(x[queries[now]]), own, min(k, len(own)), faiss.METRIC_INNER_PRODUCT
            )
            near = np.concatenate([cosine[now], near], axis=1)
            at = np.concatenate([nearest[now], at + block.start], axis=1)
            best = np.argsort(-near, axis=1, kind="stable")[:, :k]
            cosine[now] = np.take_along_axis(near, best, 1)
            nearest[now] = np.take_along_axis(at, best, 1)
    return cosine, nearest


def _shared(reference: Rows, queries: Rows) -> int:
    """Return how many references a patient who is also asked about has at most."""
    counts = np.bincount(reference[np.isin(reference, queries)])
    return int(counts.max()) if len(counts) else 0


@dataclass(frozen=True)
class Inverted:
    """An inverted file of the units `reference` of x, and what there is to say of it."""

    x: Floats
    reference: Rows
    index: Any
    said: str = ""

    @property
    def coded(self) -> bool:
        """Whether the file holds codes of the features, not the features."""
        return isinstance(self.index, faiss.IndexIVFPQ)

    def search(self, queries: Rows, k: int) -> tuple[Floats, Rows]:
        """Return (q, k) cosines and places; all lists are searched where some held fewer."""
        cosine = np.empty((len(queries), k), np.float32)
        nearest = np.empty((len(queries), k), np.int64)
        for now in batches(len(queries), READ_AT_ONCE if self.coded else QUERIES):
            asked = unit_length(self.x[queries[now]])
            over = min(OVER * k, len(self.reference)) if self.coded else k
            near, at = self.index.search(asked, over)
            short = (at[:, :k] < 0).any(axis=1)
            if short.any():
                everywhere = faiss.SearchParametersIVF()
                everywhere.nprobe = self.index.nlist
                near[short], at[short] = self.index.search(asked[short], over, params=everywhere)
            if self.coded:
                near, at = self._in_order(asked, at)
            cosine[now], nearest[now] = near[:, :k], at[:, :k]
        return cosine, nearest

    def _in_order(self, asked: Floats, at: Rows) -> tuple[Floats, Rows]:
        """Return what was found (b, k), -1 for none, with true cosines, from the greatest."""
        found = np.maximum(at, 0)
        each, place = np.unique(found, return_inverse=True)
        cosines = asked @ unit_length(self.x[self.reference[each]]).T
        near = np.take_along_axis(cosines, place.reshape(at.shape), 1)
        near[at < 0] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")
        return np.take_along_axis(near, order, 1), np.take_along_axis(at, order, 1)


def inverted(x: Floats, reference: Rows, queries: Rows, k: int, recall: float) -> Inverted:
    """Return an inverted file of 4 sqrt(n) lists, learnt from a sample and filled in passes.

    To learn the lists costs what exact search of 16 * POINTS_A_LIST * LEARNT_IN = 2,560 queries
    does, to fill them that of 4 sqrt(n): it pays from about the sum on. Lists to be searched are
    doubled until the share of the k nearest that is found, on a sample of the queries, is `recall`,
    or until there are no more.
    """
    n, d = len(reference), x.shape[1]
    lists = min(n, 4 * int(n**0.5))
    coarse, rng = faiss.IndexFlatIP(d), np.random.default_rng(SEED)
    index: Any
    if isinstance(x, np.memmap):
        codes = next(m for m in range(max(1, d // 8), 0, -1) if d % m == 0)
        bits = min(8, int(np.log2(n)))
        index = faiss.IndexIVFPQ(coarse, d, lists, codes, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = LEARNT_IN, POINTS_A_LIST
        index.pq.cp.min_points_per_centroid = 1
    else:
        index = faiss.IndexIVFFlat(coarse, d, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.min_points_per_centroid, index.cp.niter = True, 1, LEARNT_IN
    learnt = rng.choice(reference, min(n, POINTS_A_LIST * lists, 4 * BLOCK // d), replace=False)
    index.train(unit_length(x[np.sort(learnt)]))
    for now in batches(n):
        index.add(unit_length(x[reference[now]]))
    sample = rng.choice(queries, min(len(queries), SAMPLED), replace=False)
    true, file = exact(x, reference, sample, k)[1], Inverted(x, reference, index)
    index.nprobe = max(1, lists // 128)
    while (got := found(file.search(sample, k)[1], true)) < recall and index.nprobe < lists:
        index.nprobe = min(2 * index.nprobe, lists)
    said = (
        f"neighbours among {n} references are by an inverted file{' of codes' * file.coded}, "
        f"{index.nprobe} of {lists} lists searched: {got:.4f} of the true {k} are found, measured "
        f"on {len(sample)} test units"
    )
    return Inverted(x, reference, index, said)


def found(nearest: Rows, true: Rows) -> float:
    """Return which share of the true neighbours (q, k) is among the nearest (q, k)."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, nearest, strict=True)]))


# Pairs that are all looked at; of more, those in the lists of an inverted file that are nearest.
PAIRS, PROBED = 2**33, 8


def closest(x: Floats, reference: Rows, queries: Rows, k: int) -> tuple[Floats, Rows]:
    """Return (q, k) Euclidean distances from the least, and the references' row numbers; x (n, d).

    Of many pairs approximately: what is far nearer than all else is found.
    """
    asked, among = x[queries], x[reference]
    if len(queries) * len(reference) <= PAIRS:
        square, at = faiss.knn(asked, among, k, faiss.METRIC_L2)
    else:
        lists = 4 * int(len(reference) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(x.shape[1]), x.shape[1], lists)
        index.cp.min_points_per_centroid, index.cp.niter = 1, LEARNT_IN
        rng = np.random.default_rng(SEED)
        learnt = min(len(reference), POINTS_A_LIST * lists)
        index.train(among[rng.choice(len(reference), learnt, replace=False)])
        index.add(among)
        index.nprobe = PROBED
        square, at = index.search(asked, k)
    return np.sqrt(np.maximum(square, 0)), reference[at]
