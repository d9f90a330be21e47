from __future__ import annotations

from typing import Any

import pyarrow as pa

from stores.reconcile import Known, Reconciled, reconcile
from tests.stores.conftest import slice_table

STORED = slice_table([(0, "a"), (1, "b"), (2, "c")])
CONTENT = {0: "A", 1: "B", 2: "C"}


def settle(
    found: pa.Table,
    now: dict[str, str],
    stored: pa.Table = STORED,
    opened: set[str] | None = None,
    content: dict[int, str] = CONTENT,
    failed: dict[int, str] | None = None,
) -> Reconciled:
    """Reconcile with every found file opened, as after a touch of the whole folder."""
    known = Known(
        opened=set(now) if opened is None else opened,
        digest_of=content.get,
        hash_file=now.get,
        boundary=8,
        failed=failed or {},
    )
    return reconcile(stored, found, known)


def counts(result: Reconciled) -> dict[str, int]:
    """Return the counts that are not zero."""
    return {name: n for name, n in result.counts.items() if n}


def found(*paths: str, **common: Any) -> pa.Table:
    return slice_table([(0, path) for path in paths], **common)


def rows(result: Reconciled) -> dict[int, tuple[str, bool]]:
    return {r["row"]: (r["path"], r["withdrawn"]) for r in result.slices.to_pylist()}


def test_a_touched_but_equal_collection_changes_nothing() -> None:
    result = settle(found("a", "b", "c"), {"a": "A", "b": "B", "c": "C"})
    assert result.slices.equals(STORED)
    assert counts(result) == {"same": 3}


def test_files_that_were_not_opened_are_not_hashed() -> None:
    result = settle(found("a", "b", "c"), {}, opened=set())
    assert result.slices.equals(STORED)


def test_added_slices_start_at_the_next_part() -> None:
    result = settle(found("a", "b", "bb", "c"), {"a": "A", "b": "B", "c": "C", "bb": "X"})
    assert rows(result)[8] == ("bb", False)
    assert counts(result) == {"same": 3, "added": 1}


def test_a_changed_file_gets_a_new_row_and_the_old_one_is_withdrawn() -> None:
    result = settle(found("a", "b", "c"), {"a": "A", "b": "other", "c": "C"})
    assert rows(result) == {0: ("a", False), 1: ("b", True), 2: ("c", False), 8: ("b", False)}
    assert counts(result) == {"same": 2, "changed": 1, "withdrawn": 1}


def test_a_moved_file_keeps_its_row() -> None:
    result = settle(found("a", "c", "z/b"), {"a": "A", "c": "C", "z/b": "B"})
    assert rows(result) == {0: ("a", False), 1: ("z/b", False), 2: ("c", False)}
    assert counts(result) == {"same": 2, "moved": 1}


def test_two_files_that_swap_names_keep_their_rows() -> None:
    result = settle(found("a", "b", "c"), {"a": "B", "b": "A", "c": "C"})
    assert rows(result) == {0: ("b", False), 1: ("a", False), 2: ("c", False)}
    assert counts(result) == {"same": 1, "moved": 2}


def test_a_removed_file_is_withdrawn_and_comes_back_to_its_row() -> None:
    gone = settle(found("a", "c"), {"a": "A", "c": "C"})
    assert rows(gone)[1] == ("b", True)
    assert counts(gone) == {"same": 2, "withdrawn": 1}
    back = settle(found("a", "b", "c"), {"a": "A", "b": "B", "c": "C"}, stored=gone.slices)
    assert back.slices.equals(STORED)


def test_another_modality_is_another_slice() -> None:
    result = settle(found("a", "b", "c", modality="MR"), {}, opened=set())
    assert counts(result) == {"changed": 3, "withdrawn": 3}


def test_a_row_that_was_never_embedded_takes_the_file_as_it_is() -> None:
    result = settle(found("a", "b", "c"), {"a": "x", "b": "y", "c": "z"}, content={})
    assert result.same == 3


def test_a_copy_is_added_and_the_original_stays() -> None:
    result = settle(found("a", "b", "c", "d"), {"a": "A", "b": "B", "c": "C", "d": "A"})
    assert rows(result)[0] == ("a", False)
    assert rows(result)[8] == ("d", False)
