"""Copies on two sides of a split: what is one, what is none, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.data import SplitChoice
from pipeline.evaluate import evaluate
from pipeline.evaluation.leakage import (
    DIRECTIONS,
    NEAR,
    Copies,
    NearCopy,
    WaysOut,
    equal_pixels,
    near_copies,
)
from stores.errors import LabelError
from tests.pipeline.collection import config_of, make_store, units_of, write_csv

N, D = 400, 96
SIDE = np.arange(N) % 5
UNKNOWN = np.zeros((N, 32), np.uint8)


def features(seed: int = 0) -> NDArray[np.float32]:
    """Return features as a ViT's: far from the origin, a falling spectrum, dense in places."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)) * np.geomspace(1, 0.1, D)
    x[: N // 4] *= 0.1  # alike among each other, and no copies for that
    return (x + 30).astype(np.float32)


def some(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    yield from np.array_split(x, 7)


def pairs(x: NDArray[np.float32], digests: NDArray[np.uint8] = UNKNOWN, side: Any = SIDE) -> Any:
    found = near_copies(some(x), digests, units_of(np.arange(N) % 2), side)
    assert all(each.share < NEAR for each in found)
    return {tuple(sorted((each.first, each.second))) for each in found}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [16, D])
def test_different_images_are_no_copies(seed: int, width: int) -> None:
    assert width < DIRECTIONS or width == D
    assert pairs(features(seed)[:, :width]) == set()


def test_a_copy_that_was_encoded_again_is_found_on_another_side_alone() -> None:
    x, rng = features(), np.random.default_rng(1)
    usual = np.median(np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, 5])
    for first, second in ((11, 307), (200, 399), (150, 155)):  # the last on one side
        noise = rng.standard_normal(D)
        x[second] = x[first] + 0.03 * usual * noise / np.linalg.norm(noise)
    # among the dense ones a copy must be nearer, as everything is
    assert pairs(x) == {(200, 399)}
    x[307] = x[11] + 0.03 * (x[307] - x[11])
    assert pairs(x) == {(11, 307), (200, 399)}
    assert pairs(x, side=np.where(np.arange(N) < 350, 0, -1)) == set()
    assert pairs(x * 1000) == {(11, 307), (200, 399)}  # no unit of length
    equal = UNKNOWN.copy()
    equal[[200, 399]] = 7  # the check of pixels has spoken of these
    assert pairs(x, equal) == {(11, 307)}


def test_what_is_all_the_same_is_no_copy() -> None:
    assert pairs(np.ones((N, D), np.float32)) == set()
    few = replace(units_of(np.array([0, 1])), groups=np.array(["a", "b"]))
    assert near_copies([features()[:2]], UNKNOWN[:2], few, np.array([0, 1])) == []
    assert near_copies([features()[:2]], UNKNOWN[:2], few, np.array([0, -1])) == []


def collection(root: Path) -> Path:
    """Write a store of 80 patients, one image each; the last is the first, encoded again."""
    rng = np.random.default_rng(0)
    cls = rng.standard_normal((80, 4, 16))
    cls[-1] = cls[0] + 0.02 * rng.standard_normal((4, 16))
    make_store(root / "store", cls, [{} for _ in cls], images=np.arange(80) + 1)
    write_labels(root, [f"P{i}" for i in range(80)])
    return root


def write_labels(root: Path, patients: list[str], last: Any = 1) -> None:
    sick = [*(np.arange(79) % 2), last]
    write_csv(
        root / "labels.csv",
        path=[f"f{i}.png" for i in range(80)],
        sick=sick,
        patient=patients,
        day=[f"2024-01-{1 + i % 28:02}" for i in range(80)],
    )


def ask(root: Path, **split: Any) -> Any:
    more = {"labels": {"patient": "patient"}, "tasks": {"t": {"labels": ["sick"]}}}
    (result,) = evaluate(config_of(root, split={"kind": "kfold", **split}, **more), ["knn"])
    return result


def test_a_near_copy_is_refused_until_it_is_said_what_it_is(tmp_path: Path) -> None:
    root = collection(tmp_path)
    with pytest.raises(LabelError, match=r"1 units are all but copies.*rows (0 and 79|79 and 0) "):
        ask(root)
    allowed = ask(root, allow=["near-duplicates"])
    assert "1 units are all but copies" in allowed.notes[0]
    # What is allowed already stays so, and a split that is not radprobe's puts nobody elsewhere.
    both = r'set split\.group: .* split\.allow: \["duplicates", "near-duplicates"\]'
    with pytest.raises(LabelError, match=both):
        ask(root, allow=["duplicates"])
    with pytest.raises(LabelError, match=r"copies empty, or accept them"):
        ask(root, kind="date", column="day")
    write_labels(root, [f"P{i}" for i in range(79)] + ["P0"])  # one patient after all
    assert not any("copies" in note for note in ask(root).notes)


def test_only_what_helps_is_named_as_a_way_out() -> None:
    near = Copies(equal_pixels(UNKNOWN, units_of(np.arange(N) % 2), SIDE), [NearCopy(0, 1, 0.1)])

    def text(is_filed: bool = False, **split: Any) -> str:
        return WaysOut(SplitChoice(**split), is_filed, "one id", "leave them out").text(near)

    allow = 'accept them by split.allow: ["near-duplicates"].'
    group = 'set split.group: "duplicates"'
    keeps = " to keep whoever has copies on one side"
    assert text().endswith(f"need one id. Else leave them out, or {group}{keeps}, or {allow}")
    assert f"{group}, which deals all patients anew,{keeps}" in text(is_filed=True)
    # Whoever has copies is on one side, unless an earlier split parted them: it would help no more.
    parted = text(is_filed=True, group="duplicates")
    assert "delete the split file to deal all patients anew, copies on one side" in parted
    assert group not in parted
    assert text(kind="date", column="day").endswith(f"Else leave them out, or {allow}")


def test_a_near_copy_without_a_label_is_left_out(tmp_path: Path) -> None:
    root = collection(tmp_path)
    write_labels(root, [f"P{i}" for i in range(80)], last="")
    assert not any("copies" in note for note in ask(root).notes)
