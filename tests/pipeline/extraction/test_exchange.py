from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from pipeline.extraction.exchange import export_slices, export_store, exported_array, import_file
from pipeline.shared.pseudonyms import Names, load_key, pseudonym, reveal_path
from pipeline.shared.spreadsheets import unquoted_cell
from stores import FeatureStore
from stores.errors import ConfigError, CorruptStoreError, OccupiedError, UnwritableError
from stores.export import SEAL, seal_of
from stores.slices import SLICE_SCHEMA, with_column
from stores.verify import verify
from tests.pipeline.collection import make_store
from tests.stores.test_disk import no_file_above

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
    assert exported_array(store.path) == "cls"  # of several
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


@pytest.mark.parametrize("size", [50, 700, 70_000])
@pytest.mark.parametrize("to", ["h5", "npy", "parquet", "faiss"])
def test_an_export_that_the_disk_does_not_take_is_said_and_leaves_nothing(
    tmp_path: Path, to: str, size: int
) -> None:
    cls = np.random.default_rng(0).standard_normal((200, 4, 64)).astype(np.float16)
    store = make_store(tmp_path / "store", cls, [{"patient": f"p{i}"} for i in range(200)])
    with no_file_above(size), pytest.raises(UnwritableError, match="may not grow so large"):
        export_store(store.path, tmp_path / "out/x", to, "cls", 4)
    assert list((tmp_path / "out").iterdir()) == []
    assert export_store(store.path, tmp_path / "out/x", to, "cls", 4) == 200


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
    name = receipt.document["imported"]["file"]
    assert name != out.name
    assert reveal_path(load_key(made.path), name) == out.name


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


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_stay_text(recipe: Path, tmp_path: Path, suffix: str) -> None:
    ids = ["007", "7", "1.0", "NA", " x"]
    table = pa.table({"path": list("abcde"), "patient": ids, "frame": [0, 1, 0, 0, 0]})
    if suffix == ".csv":
        csv.write_csv(table, tmp_path / "t.csv")
    else:
        pq.write_table(table, tmp_path / "t.parquet")
    np.save(tmp_path / "x.npy", np.ones((5, 32), np.float32))
    made = import_file(tmp_path / "x.npy", tmp_path / "made", recipe, tmp_path / f"t{suffix}")
    key = load_key(made.path)
    expected = [pseudonym(key, "patient", raw) for raw in ids]
    assert made.slices()["patient"].to_pylist() == expected
    assert made.slices()["frame"].to_pylist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["vlen", "fixed"])
def test_text_of_hdf5_is_no_bytes(recipe: Path, tmp_path: Path, kind: str) -> None:
    ids = ["007", "ä", ""]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.ones((3, 32), np.float32)
        if kind == "vlen":
            file.create_dataset("patient", data=ids, dtype=h5py.string_dtype())
        else:
            file["patient"] = np.array([each.encode() for each in ids], "S8")
    made = import_file(tmp_path / "x.h5", tmp_path / "made", recipe)
    key = load_key(made.path)
    expected = [pseudonym(key, "patient", raw) for raw in ids[:2]]
    assert made.slices()["patient"].to_pylist() == [*expected, None]


NAMED = {"path": ["DOE/a", "b"], "patient": ["DOE^JOHN", "0" * 16], "study": ["ACC1", "ACC2"]}


def test_a_table_that_lies_beside_is_not_believed(recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 32), np.float32))
    table = pa.table(NAMED)
    pq.write_table(table, tmp_path / "x.parquet")
    made = import_file(tmp_path / "x.npy", tmp_path / "plain", recipe)
    assert made.slices()["patient"].to_pylist() == [None, None]
    # A mark that is not radprobe's own: sealed by anybody, the ids are hidden.
    pq.write_table(table.replace_schema_metadata({"radprobe": "1"}), tmp_path / "x.parquet")
    made = import_file(tmp_path / "x.npy", tmp_path / "marked", recipe)
    key = load_key(made.path)
    expected = [pseudonym(key, "patient", raw) for raw in NAMED["patient"]]
    assert made.slices()["patient"].to_pylist() == expected


def test_an_exported_table_that_was_changed_is_not_believed(
    store: FeatureStore, recipe: Path, tmp_path: Path
) -> None:
    export_store(store.path, tmp_path / "x.h5", "h5", "cls", 4)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        before = file["patient"].asstr()[0]
        file["patient"][1] = "DOE^JOHN"
    made = import_file(tmp_path / "x.h5", tmp_path / "made", recipe)
    key = load_key(made.path)
    patients = made.slices()["patient"].to_pylist()
    assert patients[:2] == [pseudonym(key, "patient", raw) for raw in (before, "DOE^JOHN")]


def test_a_sealed_table_hides_real_paths_and_what_is_no_pseudonym(
    recipe: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 32), np.float32))
    sealed = pa.table(NAMED).replace_schema_metadata({SEAL: seal_of(NAMED)})
    pq.write_table(sealed, tmp_path / "x.parquet")
    made = import_file(tmp_path / "x.npy", tmp_path / "made", recipe)
    key = load_key(made.path)
    slices = made.slices()
    assert slices["patient"].to_pylist() == [pseudonym(key, "patient", "DOE^JOHN"), "0" * 16]
    assert all(path.startswith("~") for path in slices["path"].to_pylist())
    assert Names(made.path).revealed(slices)["path"].to_pylist() == NAMED["path"]


def test_tags_are_hidden_and_odd_words_refused(recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 32), np.float32))
    tags = pa.array([[("StudyID", "DOE")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"tags": tags}), tmp_path / "t.parquet")
    made = import_file(tmp_path / "x.npy", tmp_path / "made", recipe, tmp_path / "t.parquet")
    hidden = pseudonym(load_key(made.path), "tag:StudyID", "DOE")
    assert made.slices()["tags"].to_pylist() == [[("StudyID", hidden)]]
    for name, odd in {
        "flags": ["DOE^JOHN"],
        "modality": "DOE^JOHN",
        "tags": [("DOE J", "x")],
    }.items():
        kind = SLICE_SCHEMA.field(name).type
        pq.write_table(pa.table({name: pa.array([odd], kind)}), tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match=f"column '{name}' must hold"):
            import_file(tmp_path / "x.npy", tmp_path / "odd", recipe, tmp_path / "t.parquet")


def _h5(to: Path, values: object, **more: object) -> None:
    with h5py.File(to, "w") as file:
        if values is not None:
            file["features"] = values
        for name, column in more.items():
            file[name] = column


class _Object:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("pwned"),)


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=ONES)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


ONES = np.ones((3, 32), np.float32)
DOORS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "objects": ("x.npy", lambda p: np.save(p, np.array([[_Object()]])), "loads no pickles"),
    "a cut npy": ("x.npy", lambda p: (np.save(p, ONES), _cut(p)), "no whole .npy file"),
    "an empty npy": ("x.npy", lambda p: p.write_bytes(b""), "no whole .npy file"),
    "an npz": ("x.npy", _npz, "no whole .npy file"),
    "no rows": ("x.npy", lambda p: np.save(p, ONES[:0]), "must hold features|no whole"),
    "a scalar npy": ("x.npy", lambda p: np.save(p, np.float32(3)), "must hold features"),
    "text": ("x.npy", lambda p: np.save(p, ONES.astype("S4")), "must be real numbers"),
    "complex": ("x.npy", lambda p: np.save(p, ONES * 1j), "must be real numbers"),
    "NaN": ("x.npy", lambda p: np.save(p, ONES * [[np.nan], [1], [1]]), "1 rows, first in row 0"),
    "too large": ("x.npy", lambda p: np.save(p, ONES * 1e6), "not finite as float16"),
    "no HDF5": ("x.h5", lambda p: p.write_bytes(b"x" * 99), "no whole HDF5 file"),
    "a cut HDF5": ("x.h5", lambda p: (_h5(p, ONES), _cut(p)), "no whole HDF5 file"),
    "no features": ("x.h5", lambda p: _h5(p, None, other=ONES), "a dataset `features`"),
    "a group": ("x.h5", lambda p: _h5(p, None, **{"features/x": ONES}), "Got a group"),
    "a scalar": ("x.h5", lambda p: _h5(p, 3.0), "Got a group or a scalar"),
    "strings": ("x.h5", lambda p: _h5(p, [[b"a"] * 32] * 3), "must be real numbers"),
    "a short column": ("x.h5", lambda p: _h5(p, ONES, path=[b"a"]), "must have 3 values"),
    "an odd column": ("x.h5", lambda p: _h5(p, ONES, path=ONES[:, 0] > 0), "text or numbers"),
    "a column of columns": ("x.h5", lambda p: _h5(p, ONES, path=ONES), "must have 3 values"),
    "a number too large": ("x.h5", lambda p: _h5(p, ONES, frame=[0, 1, 2**62]), "of 32 bits"),
    "half a number": ("x.h5", lambda p: _h5(p, ONES, frame=[0, 0.5, 1]), "a whole number"),
    "nowhere": ("x.h5", lambda p: None, "There is no file"),
}


@pytest.mark.parametrize("name", DOORS)
def test_what_cannot_come_in_is_said_and_nothing_is_left(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    file, write, says = DOORS[name]
    write(tmp_path / file)
    with pytest.raises(ConfigError, match=says):
        import_file(tmp_path / file, tmp_path / "new" / "made", recipe)
    left = {path.name for path in tmp_path.iterdir()} - {"store", "store.key", "recipe.json", file}
    assert left <= {"new"}
    assert not list((tmp_path / "new").glob("*"))


def test_numbers_that_a_file_does_not_hold_are_not_believed(recipe: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("features", (10**9, 32), "f4", chunks=(1000, 32))
    with pytest.raises(ConfigError, match="119 GiB, in a file of"):
        import_file(tmp_path / "x.h5", tmp_path / "made", recipe)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "must hold keys and values"),
        ("{a: [}", "is not YAML"),
        ("{}", "architecture: must be given"),
        ("{architecture: {dim: 8, depth: 2, heads: 2}, weights: 3}", "weights"),
    ],
)
def test_a_recipe_that_is_none_is_said(tmp_path: Path, text: str, says: str) -> None:
    np.save(tmp_path / "x.npy", ONES)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)recipe.*{says}"):
        import_file(tmp_path / "x.npy", tmp_path / "made", tmp_path / "r.yaml")


def test_a_store_that_is_there_is_left_alone(
    store: FeatureStore, recipe: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", ONES)
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    with pytest.raises(OccupiedError):
        import_file(tmp_path / "x.npy", store.path, recipe)
    assert before == {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    assert (tmp_path / "store.key").exists()


@pytest.mark.parametrize(("name", "is_npy"), [("x.npy", True), ("x.NPY", True), ("x.h5", False)])
def test_a_file_is_what_its_name_says(
    store: FeatureStore, tmp_path: Path, name: str, is_npy: bool
) -> None:
    export_store(store.path, tmp_path / name, None, "cls", 1)
    assert (tmp_path / name).read_bytes().startswith(b"\x93NUMPY") == is_npy


def test_no_cell_of_a_csv_is_a_formula(store: FeatureStore, tmp_path: Path) -> None:
    paths = ["=cmd|x", "+1", "-a", "@a", "a=b", "\tx"]
    slices = with_column(store.slices(), "path", pa.array(paths))
    store.write_tables(slices, store.files())
    export_slices(store.path, tmp_path / "s.csv")
    cells = csv.read_csv(tmp_path / "s.csv")["path"].to_pylist()
    assert cells == ["'=cmd|x", "'+1", "'-a", "'@a", "a=b", "'\tx"]
    assert [unquoted_cell(cell) for cell in cells] == paths


def test_features_that_do_not_fit_the_recipe_are_refused(recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 33), np.float32))
    with pytest.raises(ConfigError, match=r"33 numbers.*4 blocks of 8 make 32"):
        import_file(tmp_path / "x.npy", tmp_path / "made", recipe)
    np.save(tmp_path / "x.npy", np.ones((3, 4, 8), np.float32))
    with pytest.raises(ConfigError, match=r"must hold features \(n, d\)"):
        import_file(tmp_path / "x.npy", tmp_path / "made", recipe)
    assert not (tmp_path / "made").exists()


def test_paths_of_a_table_are_judged_as_those_of_a_store(recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 32), np.float32))
    for path in ("/a", "../a", "a/../b", "a//b", "a/./b", "a\0b"):
        pq.write_table(pa.table({"path": [path]}), tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match="a path relative to the collection"):
            import_file(tmp_path / "x.npy", tmp_path / "made", recipe, tmp_path / "t.parquet")
    # As `find .` lists them.
    pq.write_table(pa.table({"path": ["./a/b.png"]}), tmp_path / "t.parquet")
    made = import_file(tmp_path / "x.npy", tmp_path / "made", recipe, tmp_path / "t.parquet")
    assert Names(made.path).revealed(made.slices())["path"].to_pylist() == ["a/b.png"]


@pytest.mark.parametrize("study", ["../../out", "/tmp/out", "a/b", "a\x1b"])
def test_a_study_of_a_strangers_table_names_no_file_elsewhere(
    store: FeatureStore, tmp_path: Path, study: str
) -> None:
    tables = store.tables()
    studies = pa.array([study] * len(tables.slices))
    store.write_tables(with_column(tables.slices, "study", studies), tables.files)
    before = {*tmp_path.rglob("*")}
    with pytest.raises(CorruptStoreError, match="cannot name a file"):
        export_store(store.path, tmp_path / "a/out", "h5", "mean", 1, per_study=True)
    assert {*tmp_path.rglob("*")} == before
