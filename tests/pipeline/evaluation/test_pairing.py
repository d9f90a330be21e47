"""Two stores of one collection: equal answers in any order of rows, units paired by their files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline.commands.evaluation import _sides
from pipeline.commands.printing import show_differences
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.compare import compare
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.results import Result
from pipeline.shared.pseudonyms import hide_path, load_key
from stores.errors import LabelError
from tests.pipeline.collection import make_store, write_csv

N = 48
IMAGES = np.arange(N)
SICK = (IMAGES * 7 % 5 < 2).astype(int)
X = np.random.default_rng(0).standard_normal((N, 4, 16)).astype(np.float16)
X[:, :, 0] += SICK[:, None]
METHODS = ("knn", "probe", "fewshot", "efficiency")


def store_of(path: Path, images: NDArray[np.int64], x: NDArray[Any] = X) -> None:
    """Make a store of some images, a patient every two of them, in the order of its rows.

    The store called `other` hides its paths.
    """
    names = [f"i{i:02}.png" for i in images.tolist()]
    if path.name == "other":
        names = [hide_path(load_key(path), name) for name in names]
    patients = [f"P{i // 2}" for i in images.tolist()]
    slices = [{"path": p, "patient": q} for p, q in zip(names, patients, strict=True)]
    make_store(path, x[images], slices, images=images + 1)


def config(root: Path, store: str, level: str = "image", **more: Any) -> Config:
    labels = root / "labels.csv"
    # Both images of a patient are labelled alike.
    sick = SICK[IMAGES // 2 * 2]
    write_csv(labels, path=[f"i{i:02}.png" for i in IMAGES], sick=sick)
    return Config.model_validate(
        {
            "data": {"root": root, "paths": "hide" if store == "other" else "keep"},
            "store": root / store,
            "labels": {"file": labels},
            "tasks": {"sick": {"labels": ["sick"], "level": level, "permutations": 99}},
            "knn": {"k": [3, 5]},
            "probe": {"low": -3, "high": 1, "steps": 3},
            "efficiency": {"low": -3, "high": 1, "steps": 3, "draws": 3, "shots": [2]},
            "fewshot": {"episodes": 30, "shots": [1, 2]},
            **more,
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    order = np.random.default_rng(1).permutation(N)
    store_of(root / "one", IMAGES)
    store_of(root / "shuffled", order)
    noise = np.random.default_rng(2).standard_normal(X.shape).astype(np.float16)
    store_of(root / "other", order, noise)
    return root


def scores(results: list[Result]) -> list[Any]:
    return [result.model_dump(include={"scores", "counts", "notes"}) for result in results]


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
def test_neither_the_order_of_rows_nor_the_key_changes_an_answer(root: Path, kind: str) -> None:
    split = {"split": {"kind": kind}}
    # Episodes and curves are of the first fold alone.
    methods = METHODS if kind == "holdout" else METHODS[:2]
    one = evaluate(config(root, "one", **split), methods)
    shuffled = evaluate(config(root, "shuffled", **split), methods)
    # Intervals, p values and episodes, to the last digit.
    assert scores(shuffled) == scores(one)
    levels = [config(root, store, "patient", **split) for store in ("one", "shuffled")]
    by_patient = [evaluate(each, ["probe"]) for each in levels]
    for first, second in zip(by_patient[0], by_patient[1], strict=True):
        for name, metric in first.scores[0].metrics.items():
            # Two images are pooled in the order of rows, which is a rounding apart.
            other = second.scores[0].metrics[name]
            assert (other.low, other.high) == pytest.approx((metric.low, metric.high), abs=1e-6)


@pytest.mark.parametrize("kind", ["holdout", "kfold"])
@pytest.mark.parametrize("level", ["image", "patient"])
def test_units_are_paired_by_their_files_whatever_their_rows(
    root: Path, kind: str, level: str
) -> None:
    split = {"split": {"kind": kind}}
    (one,) = evaluate(config(root, "one", level, **split), ["probe"])
    (shuffled,) = evaluate(config(root, "shuffled", level, **split), ["probe"])
    (other,) = evaluate(config(root, "other", level, **split), ["probe"])
    stores = {"one": one, "shuffled": shuffled}
    found = [compare((root / name, each), (root / "other", other)) for name, each in stores.items()]
    # A copy in another order of rows differs by as much from the other, with the same interval.
    for first, second in zip(*found, strict=True):
        assert first.difference.value == pytest.approx(second.difference.value, abs=1e-6)
        assert first.difference.low == pytest.approx(second.difference.low, abs=1e-6)
        assert first.p == pytest.approx(second.p, abs=1e-6)
    (paired,) = {each.paired for each in found[0]}
    assert paired is not None
    assert paired.units == one.counts["test"].units
    assert paired.patients == one.counts["test"].patients
    assert (paired.first_only, paired.second_only) == (0, 0)


def test_units_of_one_side_alone_are_counted_and_named(root: Path) -> None:
    (one,) = evaluate(config(root, "one"), ["probe"])
    # Of two patients of test, the one is not in the other store, and a third patient is its own.
    tested = predicted_units(root / "one", one).astype(int)
    gone = tested[0]
    lines = [f"i{i:02}.png" for i in tested]
    write_csv(
        root / "parts.csv",
        key=[f"i{i:02}.png" for i in IMAGES],
        part=[
            "test" if f"i{i:02}.png" in lines else "val" if i % 4 > 1 else "train" for i in IMAGES
        ],
    )
    listed = {"split": {"kind": "list", "file": root / "parts.csv"}}
    stores = {}
    for name, images in (("whole", IMAGES), ("lacking", np.setdiff1d(IMAGES, [gone]))):
        store_of(root / name, np.roll(images, 5))
        (stores[name],) = evaluate(config(root, name, **listed), ["probe"])
    pair = [(root / name, stores[name]) for name in ("whole", "lacking")]
    (paired,) = {each.paired for each in compare(pair[0], pair[1])}
    assert paired is not None
    assert (paired.units, paired.first_only, paired.second_only) == (len(tested) - 1, 1, 0)
    row = int(np.flatnonzero(np.roll(IMAGES, 5) == gone)[0])
    assert paired.first_only_examples == (str(row),)
    into = io.StringIO()
    differences = compare(pair[1], pair[0])
    show_differences(Console(file=into, width=250), [(stores["whole"], differences)], ("a", "b"))
    assert f"1 tested in the second alone (row {row})" in into.getvalue()
    # The differences are of what both were tested on.
    truth, proba, _ = read_predictions(*pair[1])
    assert len(proba) == paired.units
    assert paired.patients == len(np.unique(truth.groups))


def test_it_is_said_in_true_words_why_answers_cannot_be_paired(root: Path, tmp_path: Path) -> None:
    (one,) = evaluate(config(root, "one"), ["probe"])
    # The same images under other names: another collection, as far as anyone can tell.
    renamed = [{"path": f"j{i:02}.png", "patient": f"P{i // 2}"} for i in IMAGES.tolist()]
    make_store(tmp_path / "renamed", X, renamed, images=IMAGES + 1)
    names = write_csv(tmp_path / "names.csv", path=[f"j{i:02}.png" for i in IMAGES], sick=SICK)
    labels = {"labels": {"file": names}}
    (other,) = evaluate(config(root, str(tmp_path / "renamed"), **labels), ["probe"])
    with pytest.raises(LabelError, match="no test unit in common"):
        compare((root / "one", one), (tmp_path / "renamed", other))
    turned = write_csv(
        tmp_path / "turned.csv", path=[f"i{i:02}.png" for i in IMAGES], sick=1 - SICK
    )
    (shuffled,) = evaluate(config(root, "shuffled", labels={"file": turned}), ["probe"])
    with pytest.raises(LabelError, match=r"of them have other labels"):
        compare((root / "one", one), (root / "shuffled", shuffled))
    (folds,) = evaluate(config(root, "one", split={"kind": "kfold"}), ["probe"])
    with pytest.raises(LabelError, match="other folds"):
        compare((root / "one", one), (root / "one", folds))
    (patients,) = evaluate(config(root, "one", "patient"), ["probe"])
    with pytest.raises(LabelError, match="Got image and patient for the units"):
        compare((root / "one", one), (root / "one", patients))


@pytest.mark.parametrize(
    ("paths", "networks", "methods", "sides"),
    [
        (("mean.yaml", "whole.yaml"), ("a", "a"), None, ["mean.yaml: a", "whole.yaml: a"]),
        (("s", "s"), ("a", "a"), ("knn", "probe"), ["knn on a", "probe on a"]),
        (("s", "t"), ("a", "b"), ("knn", "knn"), ["s: a", "t: b"]),
    ],
)
def test_sides_are_called_by_all_in_which_they_differ(
    paths: tuple[str, str],
    networks: tuple[str, str],
    methods: tuple[Method, Method] | None,
    sides: list[str],
) -> None:
    first, second = paths
    assert _sides((Path(first), Path(second)), networks, methods) == sides
