"""Nearest neighbours: block by block, by inverted files, by codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation import neighbours as searching
from pipeline.evaluation.heads import knn
from pipeline.evaluation.heads.knn import KnnSettings
from pipeline.evaluation.neighbours import (
    build_inverted_file,
    exact,
    nearest_by_distance,
    neighbours,
    recall_of,
)
from pipeline.shared.arrays import _mapped, unit_length
from tests.pipeline.collection import answered, thirds, units_of

RNG = np.random.default_rng(0)


def test_lists_that_hold_too_few_are_not_the_last_word() -> None:
    x = RNG.standard_normal((300, 4)).astype(np.float32)
    units, reference, test = units_of(np.arange(300) % 2), np.arange(200), np.arange(200, 300)
    index = build_inverted_file(x, reference, test, 60, 0.01)
    cosine, nearest = neighbours(x, reference, test, 60, index=index)
    assert (nearest >= 0).all()
    assert (np.diff(cosine, axis=1) <= 0).all()
    assert (
        len(answered(knn.HEAD, x, units, thirds(300), KnnSettings(k=(60,), exact_up_to=1))[0]) == 1
    )


def test_a_zero_feature_is_near_to_nothing_and_breaks_nothing() -> None:
    np.testing.assert_array_equal(unit_length(np.zeros((1, 4), np.float32)), np.zeros((1, 4)))


def test_nobody_is_the_neighbour_of_the_same_patient() -> None:
    x = RNG.standard_normal((60, 4)).astype(np.float32)
    patient = np.arange(60) // 5
    cosine, nearest = neighbours(x, np.arange(60), np.arange(60), 7, patient)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    plain = np.where(patient[:, None] == patient, -2, unit @ unit.T)
    np.testing.assert_allclose(cosine, -np.sort(-plain, axis=1)[:, :7], atol=1e-6)
    assert (patient[nearest] != patient[:, None]).all()


def test_blocks_find_what_all_at_once_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.standard_normal((5000, 16)).astype(np.float32)
    reference, queries = RNG.permutation(4500), np.arange(4400, 5000)
    whole = exact(x, reference, queries, 30)
    monkeypatch.setattr(searching, "BLOCK", 16 * 1024)
    monkeypatch.setattr(searching, "QUERIES", 100)
    cosine, nearest = exact(x, reference, queries, 30)
    np.testing.assert_array_equal(nearest, whole[1])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    plain = -np.sort(-(unit[queries] @ unit[reference].T), axis=1)[:, :30]
    np.testing.assert_allclose(cosine, plain, atol=1e-6)
    assert (np.sort(exact(x, np.arange(7), queries, 7)[1], axis=1) == np.arange(7)).all()


def test_codes_of_a_scratch_file_find_what_they_say_in_true_order(tmp_path: Path) -> None:
    centres = RNG.standard_normal((40, 24)) * 2
    x = _mapped(3000, 24, tmp_path)
    x[:] = centres[RNG.integers(0, 40, 3000)] + RNG.standard_normal((3000, 24))
    reference, queries = np.arange(2500), np.arange(2500, 3000)
    index = build_inverted_file(x, reference, queries, 10, 0.9)
    assert index.is_coded
    assert "by an inverted file of codes" in index.note
    cosine, nearest = index.search(queries, 10)
    true = exact(x, reference, queries, 10)
    assert recall_of(nearest, true[1]) > 0.85
    unit = unit_length(x)
    each = np.einsum("qd,qkd->qk", unit[queries], unit[reference[nearest]])
    np.testing.assert_allclose(cosine, each, atol=1e-6)
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_of_many_pairs_what_is_far_nearer_than_all_else_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = (RNG.standard_normal((3000, 32)) + 5).astype(np.float32)
    x[2990:] = x[:10] + 0.01 * RNG.standard_normal((10, 32))
    reference, queries = np.arange(2500), np.arange(2500, 3000)
    distance, _ = nearest_by_distance(x, reference, queries, 5)
    plain = np.linalg.norm(x[queries][:, None] - x[reference][None], axis=2)
    np.testing.assert_allclose(distance, np.sort(plain, axis=1)[:, :5], atol=0.01)
    monkeypatch.setattr(searching, "PAIRS", 1)
    some, near = nearest_by_distance(x, reference, queries, 5)
    np.testing.assert_array_equal(near[-10:, 0], np.arange(10))
    assert (some[:-10, 0] > 20 * some[-10:, 0].max()).all()
