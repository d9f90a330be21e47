"""A patient is found by whatever names one: id or pseudonym, headers, path rule, label file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.label_file import read_labels
from pipeline.annotations.patients import note_patients
from pipeline.config.root import Config
from pipeline.extraction.withdrawal import find_patient
from pipeline.shared.pseudonyms import Names, load_key, pseudonym
from stores import FeatureStore
from stores._disk import write_checked
from stores.errors import ConfigError, CorruptStoreError
from stores.features import WITHDRAWN
from tests.pipeline.collection import make_store

# By headers: H1 twice, H2 once; the last three files name nobody.
SLICES = [{"patient": "H1"}, {"patient": "H1"}, {"patient": "H2"}, {}, {}, {}]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    cls = np.ones((len(SLICES), 1, 4), np.float16)
    return make_store(tmp_path / "store", cls, SLICES)


def config_of(store: FeatureStore, rows: str, **more: Any) -> Config:
    """Return a config whose label file has these rows of path and patient."""
    folder = store.path.parent
    (folder / "l.csv").write_text(f"path,who\n{rows}")
    labels = {"file": folder / "l.csv", "patient": "who"}
    settings = {"labels": labels} | more
    data = {"root": folder} | settings.pop("data", {})
    return Config.model_validate({"data": data, "store": store.path, **settings})


def told(store: FeatureStore, patient: str, config: Config | None = None) -> dict[str, int]:
    return dict(find_patient(store.path, patient, config).found_by)


def test_by_id_and_by_pseudonym(store: FeatureStore) -> None:
    hidden = pseudonym(load_key(store.path), "patient", "H1")
    for name in ("H1", " H1 ", hidden):
        slices = find_patient(store.path, name)
        assert slices.names == (hidden,)
        assert slices.found_by == {"headers or the path rule": 2}
    for name in ("H3", "0" * 16, "h1"):
        with pytest.raises(ConfigError, match="give the config") as refused:
            find_patient(store.path, name)
        assert name not in str(refused.value)


def test_by_labels_alone(store: FeatureStore) -> None:
    config = config_of(store, "f3.png,L1\nf4.png,L1\nf5.png,L2\nf0.png,\n")
    slices = find_patient(store.path, "L1", config)
    assert slices.found_by == {"labels": 2}
    assert slices.withdraw(store) == 2
    assert np.flatnonzero(store.status() == WITHDRAWN).tolist() == [3, 4]
    names = Names(store.path)
    assert store.withdrawn.all_files == {names.pseudonym("file", f"f{i}.png") for i in (3, 4)}
    slices.readmit(store)
    assert not store.withdrawn.patients


def test_one_who_has_no_slice_yet_is_kept_out_beforehand(store: FeatureStore) -> None:
    config = config_of(store, "elsewhere.png,L9\n")
    slices = find_patient(store.path, "L9", config)
    assert (slices.found_by, slices.withdraw(store)) == ({}, 0)
    assert store.withdrawn.patients == set(slices.names)


def test_headers_and_labels_of_one_patient_go_together(store: FeatureStore) -> None:
    """The label file calls H1 by another name, and gives that name to a picture."""
    rows = "f0.png,L1\nf1.png,L1\nf3.png,L1\nf2.png,L2\n"
    config = config_of(store, rows)
    expected = {"headers": 2, "labels": 1}
    for name in ("H1", "L1"):
        slices = find_patient(store.path, name, config)
        assert slices.found_by == expected
        assert len(slices.names) == 2
    wrong = config_of(
        store,
        rows,
        labels={"file": store.path.parent / "l.csv", "patient": "who", "headers": "ignore"},
    )
    assert told(store, "L1", wrong) == {"labels": 3}
    assert told(store, "H1", wrong) == {"headers": 2}


def test_by_the_path_rule(store: FeatureStore) -> None:
    data = {"patient": r"^(f2)"}
    config = config_of(store, "f3.png,L1\n", data=data)
    assert told(store, "H2", config) == {"headers": 1}
    cls = np.ones((2, 1, 4), np.float16)
    other = make_store(store.path.parent / "other", cls, [{"patient": "f0"}, {"patient": "x"}])
    config = config_of(other, "f9.png,L1\n", data={"patient": r"^(f\d)"})
    assert told(other, "f0", config) == {"the path rule": 1}


@pytest.mark.parametrize(
    "odd", [pa.table({"row": [0]}), pa.table({"row": ["x"], "patient": ["p"]})]
)
def test_an_odd_note_of_a_label_file_is_corrupt(store: FeatureStore, odd: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(odd, sink)
    (store.path / "patients").mkdir()
    for data in (sink.getvalue().to_pybytes(), b"no table"):
        write_checked(store.path / "patients/odd.parquet", data)
        with pytest.raises(CorruptStoreError, match="is no"):
            find_patient(store.path, "H1")


def test_an_evaluation_leaves_word_of_a_label_file(store: FeatureStore) -> None:
    config = config_of(store, "f0.png,L1\nf3.png,L1\nf4.png,L2\n")
    assert config.labels is not None
    names = Names(store.path)
    table = read_labels(config.labels, [])
    for _ in range(2):  # the second changes nothing
        note_patients(store, table, names.revealed(store.slices()), config.data.root, names)
    notes = list((store.path / "patients").iterdir())
    assert len(notes) == 2  # with its checksum
    assert not any(b"L1" in path.read_bytes() for path in notes)
    assert told(store, "L1") == {"headers or the path rule": 2, "labels": 1}
    assert told(store, "L2") == {"labels": 1}
    slices = find_patient(store.path, "L2")
    slices.withdraw(store)
    purged = slices.purge(store)
    assert purged.rows == 1
    assert any("images and label files" in line for line in purged.out_of_reach)
    assert store.slices()["path"][4].as_py() == ""
    with pytest.raises(ConfigError):  # not told any more, but still kept out by name
        find_patient(store.path, "L3")
    assert told(store, "L2") == {}
