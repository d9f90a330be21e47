"""One collection in several folders, whose patients, series and files are called the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.prediction_rows import prediction_rows
from pipeline.extract import Summary, extract
from pipeline.extraction.embed import Speed
from pipeline.extraction.withdrawal import find_patient
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import ConfigError
from tests.phantoms import dicom, save
from tests.pipeline.models import write_tiny_folder

SITES = ("site_a", "site_b", "site_c")
PATIENTS = 8
EVERY = len(SITES) * PATIENTS


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sites, of the same names throughout, labels, a config and a store."""
    root = tmp_path_factory.mktemp("roots")
    rng = np.random.default_rng(0)
    rows = ["site,file,who,sick,mask"]
    for site in SITES:
        for i in range(PATIENTS):
            pixels = rng.integers(0, 255, (28, 28)).astype(np.uint16)
            uids = {"StudyInstanceUID": f"1.2.{i}", "SeriesInstanceUID": f"1.2.{i}.1"}
            ds = dicom(pixels, PatientID=f"{i}", SOPInstanceUID=f"1.2.{i}.1.1", **uids)
            save(ds, root / site / f"p{i}.dcm")
            rows.append(f"{site},./p{i}.dcm,{i},{i % 2},m{i}.png")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    write_tiny_folder(root / "tiny")
    extract(load_config(write_config(root)), Speed("cpu", workers=0))
    return root


def write_config(root: Path, **changes: Any) -> Path:
    settings = {
        "data": {"root": {site: site for site in SITES}},
        "backbone": {"name": f"hf:{root / 'tiny'}", "image_size": 28},
        "store": "store",
        "labels": {"file": "labels.csv", "key": "file", "patient": "who", "root": "site"},
        "tasks": {"sick": {"labels": ["sick"], "subgroups": ["data.root"]}},
        "knn": {"k": [1]},
    }
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def slices_of(config: Config) -> pa.Table:
    store = FeatureStore.open(config.store)
    return Names(store.path).revealed(store.slices())


def again(config: Config) -> Summary:
    return extract(config, Speed("cpu", workers=0))


def test_what_is_called_the_same_at_two_sites_stays_apart(project: Path) -> None:
    config = load_config(write_config(project))
    slices = slices_of(config)
    paths = [f"{site}/p{i}.dcm" for site in SITES for i in range(PATIENTS)]
    assert sorted(slices["path"].to_pylist()) == paths
    for column in ("patient", "study", "series", "instance"):
        assert len(set(slices[column].to_pylist())) == EVERY
    by_path = {row["path"]: row["patient"] for row in slices.to_pylist()}
    assert by_path["site_a/p0.dcm"] == Names(config.store).pseudonym("patient", "site_a/0")
    assert again(config).embedded == 0


def test_the_name_divides_and_groups(project: Path) -> None:
    split = {"kind": "site", "column": "data.root", "folds": 3}
    config = load_config(write_config(project, split=split))
    (answer,) = evaluate(config, ["knn"])
    # Each side has one of the three sites.
    assert {counts.patients for counts in answer.counts.values()} == {PATIENTS}
    assert answer.tally.unmatched_labels == answer.tally.unmatched_slices == 0
    config = load_config(write_config(project))
    (answer,) = evaluate(config, ["knn"])
    (score,) = answer.scores
    assert score.subgroups
    assert set(score.subgroups) <= {f"data.root={site}" for site in SITES}


def test_a_row_by_path_may_name_its_root_itself(project: Path) -> None:
    rows = [f"site_a/p{i}.dcm,{i % 2}" for i in range(PATIENTS)]
    (project / "paths.csv").write_text("\n".join(["path,sick", *rows]) + "\n")
    labels = {"file": "paths.csv"}
    config = load_config(write_config(project, labels=labels, split={"seed": 1}))
    (answer,) = evaluate(config, ["knn"])
    assert answer.tally.unmatched_slices == EVERY - PATIENTS
    assert set(answer.scores[0].subgroups) <= {"data.root=site_a"}


def test_labels_by_id_join_the_patient_of_their_site(project: Path) -> None:
    rows = [f"site_b,{i:03d},{i % 2}" for i in range(PATIENTS)]
    (project / "ids.csv").write_text("\n".join(["site,id,sick", *rows]) + "\n")
    labels = {"file": "ids.csv", "key": "id", "by": "patient", "root": "site"}
    config = load_config(write_config(project, labels=labels, split={"seed": 2}))
    (answer,) = evaluate(config, ["knn"])
    assert answer.tally.unmatched_slices == EVERY - PATIENTS
    assert answer.tally.unmatched_labels == 0
    for row in prediction_rows(config, [answer]).to_pylist():
        number = int(row["key"].removeprefix("site_b/"))
        assert row["path"] == f"site_b/p{number}.dcm"


def test_one_patient_of_two_is_withdrawn(project: Path) -> None:
    config = load_config(write_config(project))
    store = FeatureStore.open(config.store)
    theirs = find_patient(config.store, "site_b/3", config)
    assert sum(theirs.found_by.values()) == 1
    slices = slices_of(config)
    places = [p for p, name in enumerate(slices["patient"].to_pylist()) if name in theirs.names]
    assert slices["path"].take(pa.array(places)).to_pylist() == ["site_b/p3.dcm"]
    with pytest.raises(ValueError, match="No slice of the store"):
        find_patient(config.store, "3", config)
    assert len(store.live_rows()) == EVERY


def test_a_root_that_moved_is_the_same_and_one_that_is_gone_is_refused(
    project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "site_b", tmp_path / "elsewhere")
    roots = {site: site for site in SITES} | {"site_b": str(tmp_path / "elsewhere")}
    assert again(load_config(write_config(project, data={"root": roots}))).embedded == 0
    roots["site_b"] = str(tmp_path / "gone")
    config = load_config(write_config(project, data={"root": roots}))
    with pytest.raises(ConfigError, match="must be folders that exist. Got .*gone' for 'site_b'"):
        again(config)
    assert len(FeatureStore.open(config.store).live_rows()) == EVERY


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": {"root": {"a/b": "x"}}}, "must be letters, digits"),
        ({"labels": {"file": "labels.csv", "patient": "who"}}, "set labels.root to the column"),
        ({"data": {"root": "site_a"}}, "need names"),
        ({"demo": {"patients": 10}}, "Give data.root as one path"),
    ],
)
def test_a_config_that_would_mix_sites_is_refused(
    project: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(write_config(project, **changes))


@pytest.mark.parametrize("second", ["sites", "sites/inner", "link"])
def test_one_folder_under_two_names_is_refused(tmp_path: Path, second: str) -> None:
    (tmp_path / "sites/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("sites")
    content = {"data": {"root": {"a": "sites", "b": second}}, "store": "store"}
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"must have one name.*Got 'a' and 'b'"):
        load_config(tmp_path / "twice.yaml")


def test_a_link_that_leads_elsewhere_is_refused(project: Path, tmp_path: Path) -> None:
    config = write_config(project, store=str(tmp_path / "store"))
    (tmp_path / "other").mkdir()
    link = load_config(config).data.root / "site_b"
    assert link.resolve() == (project / "site_b").resolve()
    link.unlink()
    link.symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="site_b' must be a link to .* Delete the folder"):
        load_config(config)
