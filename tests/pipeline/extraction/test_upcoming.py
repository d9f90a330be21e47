"""Parts ahead of their turn: what is claimed when, and in which order files are requested."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.extraction.upcoming import PARTS_AHEAD, UpcomingParts
from pipeline.io.types import Request
from pipeline.recipe import Percentiles, Preprocess
from stores import ArraySpec, FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA
from tests.interrupting import interrupted_at

# Rows in parts of four: two files of two frames and one of four, then an MR volume over two parts.
PATHS = ["a", "a", "b", "b", "c", "c", "c", "c", "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    rows = [
        {
            "row": row,
            "path": path,
            "frame": row - PATHS.index(path),
            "series": "m" if path.startswith("m") else path,
            "modality": "MR" if path.startswith("m") else "CT",
            "withdrawn": False,
        }
        for row, path in enumerate(PATHS)
    ]
    made = FeatureStore.create(tmp_path / "s", "{}", {"cls": ArraySpec((2,), "float16")}, 4)
    made.write_tables(pa.Table.from_pylist(rows, schema=SLICE_SCHEMA), FILE_SCHEMA.empty_table())
    return made


def upcoming(store: FeatureStore, preprocess: Preprocess | None = None) -> UpcomingParts:
    rules = preprocess or Preprocess()
    return UpcomingParts(store, store.missing(), rules, lambda path: f"real/{path}")


def claimed(store: FeatureStore) -> set[int]:
    return {part.index for part in store.missing() if store.owner(part) is not None}


def requested(parts: UpcomingParts) -> list[Request]:
    requests: list[Request] = []
    while (request := parts.next_request()) is not None:
        requests.append(request)
    return requests


def test_a_part_is_claimed_when_its_first_file_is_requested(store: FeatureStore) -> None:
    parts = upcoming(store)
    assert not claimed(store)
    assert parts.next_request() == Request("real/a", (0, 1))
    assert claimed(store) == {0}
    assert parts.next_request() == Request("real/b", (0, 1))
    assert claimed(store) == {0}
    assert parts.next_request() == Request("real/c", (0, 1, 2, 3))
    assert claimed(store) == {0, 1}


def test_no_more_parts_are_claimed_ahead_until_one_is_begun(store: FeatureStore) -> None:
    parts = upcoming(store)
    assert [request.path for request in requested(parts)] == ["real/a", "real/b", "real/c"]
    assert len(parts.waiting) == PARTS_AHEAD
    assert parts.next_request() is None
    begun = parts.waiting.popleft()
    assert [slice_.row for slice_ in begun.slices] == [0, 1, 2, 3]
    assert requested(parts)[0] == Request("real/m0", (0,))
    assert claimed(store) == {0, 1, 2}


def test_parts_that_others_have_or_have_done_are_passed_over(store: FeatureStore) -> None:
    claim = store.claim(store.layout.part(0))
    assert claim is not None
    parts = upcoming(store)
    assert requested(parts)[0].path == "real/c"
    assert [waiting.part.index for waiting in parts.waiting] == [1, 2]


def test_a_volume_is_requested_before_the_slices_that_it_scales(store: FeatureStore) -> None:
    parts = upcoming(store, Preprocess(mr=Percentiles(scope="volume")))
    requested(parts)
    parts.waiting.clear()
    paths = [request.path.removeprefix("real/") for request in requested(parts)]
    # All of it for the part that meets it first; the next part finds its range known.
    assert paths == [*PATHS[8:], *PATHS[8:12], *PATHS[12:]]


def test_claims_can_be_given_back_whatever_fails_behind_them(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = upcoming(store)

    def fail(part: object) -> list[object]:
        raise OSError("the table is gone")

    monkeypatch.setattr(parts.slices, "of", fail)
    with pytest.raises(OSError, match="the table is gone"):
        parts.next_request()
    assert [waiting.part.index for waiting in parts.waiting] == [0]
    parts.waiting[0].claim.release()
    assert not claimed(store)


@pytest.mark.parametrize("of", ["/stores/claims.py", "/extraction/upcoming.py"])
def test_no_claim_is_forgotten_wherever_an_interruption_comes_between(
    store: FeatureStore, of: str
) -> None:
    line = 0
    was_interrupted = True
    while was_interrupted:
        line += 1
        parts = upcoming(store)
        was_interrupted = interrupted_at(line, of, parts.next_request)
        assert claimed(store) == {waiting.part.index for waiting in parts.waiting}, line
        for waiting in parts.waiting:
            waiting.claim.release()
    assert line > 20
