"""Nothing is left outside a store of a patient who was withdrawn while it was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.extraction.exchange import export_slices, export_store
from pipeline.fitted.fit import fit
from pipeline.fitted.kinds import fit_model, load_model
from pipeline.fitted.model import Model
from pipeline.fitted.predict import predict
from pipeline.report.page import write_report
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import OccupiedError, StaleTablesError, UnwritableError
from stores.leaving import leaving
from stores.purge import purge, withdraw
from tests.pipeline.collection import config_of, make_store, write_csv

N = 60
TASKS = {"sick": {"labels": ["sick"]}}
Make = Callable[[Path, Path], object]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of 20 patients, labels, an answer and a model."""
    root = tmp_path_factory.mktemp("answered")
    cls = np.random.default_rng(0).standard_normal((N, 4, 12))
    patient = np.arange(N) // 3
    cls[:, 3, 0] += 3 * (patient % 2)
    make_store(root / "store", cls, [{"patient": f"p{p}"} for p in patient], images=np.arange(N))
    write_csv(root / "labels.csv", path=[f"f{i}.png" for i in range(N)], sick=patient % 2)
    evaluate(config_of(root, tasks=TASKS), ["knn"])
    fit(config_of(root, tasks=TASKS), root / "model")
    return root


@pytest.fixture
def root(answered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(answered, tmp_path / "root"))


def predicted(root: Path, out: Path) -> object:
    model = load_model(root / "model")
    assert isinstance(model, Model)
    return predict(model, root / "store", out)


MAKE: dict[str, Make] = {
    "x.h5": lambda root, out: export_store(root / "store", out, None, "cls", 1),
    "x.npy": lambda root, out: export_store(root / "store", out, None, "cls", 1),
    "x.parquet": lambda root, out: export_store(root / "store", out, None, "cls", 1),
    "x.faiss": lambda root, out: export_store(root / "store", out, None, "cls", 1),
    "slices.csv": lambda root, out: export_slices(root / "store", out),
    "report.html": lambda root, out: write_report([root / "store"], out, out.parent / "figures"),
    "model": lambda root, out: fit_model(config_of(root, tasks=TASKS), out, method="knn"),
    "predictions.csv": predicted,
}


@pytest.mark.parametrize("name", MAKE)
def test_what_is_made_while_a_patient_is_withdrawn_is_not_left(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another process withdraws the patient when the slice table has been read."""
    patient = Names(root / "store").pseudonym("patient", "p1")
    read = FeatureStore.slices
    withdrawn = []

    def read_and_withdraw(self: FeatureStore, *columns: Any) -> Any:
        slices = read(self, *columns)
        if not withdrawn:
            withdrawn.append(withdraw(FeatureStore.open(root / "store"), patient))
        return slices

    monkeypatch.setattr(FeatureStore, "slices", read_and_withdraw)
    out = tmp_path / "out" / name
    with pytest.raises(StaleTablesError, match="A patient was withdrawn"):
        MAKE[name](root, out)
    assert withdrawn == [3]
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    # The same once more is made without the patient.
    MAKE[name](root, out)
    assert out.exists()


def test_of_a_patient_withdrawn_before_it_is_made_until_the_purge(
    root: Path, tmp_path: Path
) -> None:
    store = FeatureStore.open(root / "store")
    patient = Names(root / "store").pseudonym("patient", "p1")
    withdraw(store, patient)
    out = tmp_path / "out.csv"
    folder = tmp_path / "folder"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(folder)

    def make() -> None:
        with leaving(store) as written:
            out.write_text(patient)
            (link / "mask.png").touch()
            written += [out, link]
            purge(FeatureStore.open(store.path), patient)

    with pytest.raises(StaleTablesError):
        make()
    assert not out.exists()
    assert not folder.exists()
    with leaving(store) as written:
        written.append(root)
    assert root.exists()


def test_what_was_there_before_is_left_there(root: Path) -> None:
    with pytest.raises(OccupiedError):
        fit_model(config_of(root, tasks=TASKS), root / "model", method="knn")
    with pytest.raises(UnwritableError):
        export_store(root / "store", root / "labels.csv", "h5", "cls", 1)
    assert (root / "labels.csv").is_file()
    assert (root / "model/model.json").is_file()
