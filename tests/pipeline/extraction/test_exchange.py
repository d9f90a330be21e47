from __future__ import annotations

import json
from pathlib import Path

import faiss
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from pipeline.extraction.exchange import export_slices, export_store, import_file
from pipeline.shared.pseudonyms import Names, load_key, pseudonym
from stores import FeatureStore
from stores.errors import ConfigError, UnwritableError
from stores.verify import verify
from tests.pipeline.collection import make_store

N = 6


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store of two studies, three series, and a row that could not be read."""
    rng = np.random.default_rng(0)
    slices = [
        {"study": f"st{i // 3}", "series": f"se{i // 2}", "patient": f"p{i // 3}", "position_mm": i}
        for i in range(N)
    ]
    status = np.array([1, 1, 2, 1, 1, 1])
    cls = rng.standard_normal((N, 4, 8)).astype(np.float16)
    cls[2] = np.nan
    return make_store(tmp_path / "store", cls, slices, status)


@pytest.fixture
def recipe(store: FeatureStore, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(json.loads(store.recipe_text)))
    return path


LIVE = [0, 1, 3, 4, 5]


def test_h5_is_what_mil_tools_read(store: FeatureStore, tmp_path: Path) -> None:
    assert export_store(store.path, tmp_path / "x.h5", "h5", "cls", 2) == 5
    with h5py.File(tmp_path / "x.h5") as file:
        expected = store.read("cls", LIVE)[:, -2:].reshape(5, -1)
        assert np.array_equal(file["features"], expected)
        assert file["coords"][:].tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]]
        assert file["row"][:].tolist() == LIVE
        assert file["path"].asstr()[1] == "f1.png"
        assert json.loads(file.attrs["recipe"]) == json.loads(store.recipe_text)


def test_h5_by_study_is_a_file_a_study(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "out", "h5", "mean", 1, per_study=True)
    key = load_key(store.path)
    rows = {}
    for path in (tmp_path / "out").iterdir():
        with h5py.File(path) as file:
            rows[path.stem] = file["row"][:].tolist()
            assert np.array_equal(file["features"], store.read("mean", rows[path.stem]))
    assert rows == {
        pseudonym(key, "study", "st0"): [0, 1],
        pseudonym(key, "study", "st1"): [3, 4, 5],
    }


def test_npy_has_its_slices_beside_it(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "x.npy", "npy", "cls", 1)
    assert np.array_equal(np.load(tmp_path / "x.npy"), store.read("cls", LIVE)[:, -1])
    assert pq.read_table(tmp_path / "x.parquet")["row"].to_pylist() == LIVE


def test_parquet_has_lists_of_fixed_size(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "x.parquet", "parquet", "cls", 1)
    table = pq.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[8]"
    assert np.array_equal(np.stack(table["features"].to_numpy()), store.read("cls", LIVE)[:, -1])


def test_a_faiss_index_finds_a_row_by_itself(store: FeatureStore, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "x.faiss", "faiss", "cls", 1)
    index = faiss.read_index(str(tmp_path / "x.faiss"))
    queries = store.read("cls", LIVE)[:, -1].astype(np.float32)
    similarity, found = index.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 1)
    assert found[:, 0].tolist() == LIVE
    assert np.allclose(similarity, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("to", "array", "blocks", "match"),
    [
        ("zip", "cls", 1, "one of h5, npy, parquet, faiss"),
        ("npy", "patch", 1, "no array 'patch'. It has: cls"),
        ("npy", "cls", 5, "between 1 and 4"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(
    store: FeatureStore, tmp_path: Path, to: str, array: str, blocks: int, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        export_store(store.path, tmp_path / "out" / "x", to, array, blocks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["h5", "npy", "parquet", "faiss"])
def test_nothing_is_replaced(store: FeatureStore, tmp_path: Path, to: str) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UnwritableError, match="replaces nothing"):
        export_store(store.path, tmp_path / "x", to, "cls", 1)
    assert (tmp_path / "x").read_text() == "mine"


# --- import -----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["h5", "npy"])
def test_what_goes_out_comes_in_again(
    store: FeatureStore, recipe: Path, tmp_path: Path, to: str
) -> None:
    out = tmp_path / f"x.{to}"
    export_store(store.path, out, to, "cls", 4)
    made = import_file(out, tmp_path / "made", recipe)
    assert np.array_equal(made.read("cls", range(5)), store.read("cls", LIVE))
    patients = store.slices().take(LIVE)["patient"].to_pylist()
    assert made.slices()["patient"].to_pylist() == patients
    assert verify(made.path).sound
    receipt = made.receipt(0)
    assert receipt is not None
    assert receipt.document["imported"]["file"] == out.name


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_slice_table_with_its_real_paths(
    store: FeatureStore, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"slices{suffix}"
    assert export_slices(store.path, out) == len(store.slices())
    table = csv.read_csv(out) if suffix == ".csv" else pq.read_table(out)
    assert table["path"].to_pylist() == [f"f{i}.png" for i in range(len(table))]
    assert table["row"].to_pylist() == store.slices()["row"].to_pylist()
    with pytest.raises(ConfigError, match="csv or .parquet"):
        export_slices(store.path, tmp_path / "slices.xls")


def test_features_of_another_tool_take_a_table_and_its_ids_are_hidden(
    recipe: Path, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "mil.h5", "w") as file:
        file["features"] = np.ones((1, 3, 32), np.float32)  # as TRIDENT may write it
        file["coords"] = np.zeros((1, 3, 2), np.int64)
    (tmp_path / "t.csv").write_text("path,patient,modality\na,ANNA,CT\nb,ANNA,CT\nc,,CT\n")
    made = import_file(tmp_path / "mil.h5", tmp_path / "made", recipe, tmp_path / "t.csv")
    anna = pseudonym(load_key(made.path), "patient", "ANNA")
    assert made.slices()["patient"].to_pylist() == [anna, anna, None]
    assert not {"a", "b", "c"} & set(made.slices()["path"].to_pylist())
    assert Names(made.path).revealed(made.slices())["path"].to_pylist() == ["a", "b", "c"]


def test_features_that_do_not_fit_the_recipe_are_refused(recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 33), np.float32))
    with pytest.raises(ConfigError, match=r"33 numbers.*4 blocks of 8 make 32"):
        import_file(tmp_path / "x.npy", tmp_path / "made", recipe)
    np.save(tmp_path / "x.npy", np.ones((3, 4, 8), np.float32))
    with pytest.raises(ConfigError, match=r"must hold features \(n, d\)"):
        import_file(tmp_path / "x.npy", tmp_path / "made", recipe)
    assert not (tmp_path / "made").exists()
