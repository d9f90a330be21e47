"""Predictions as DICOM structured reports, read back by highdicom and pydicom."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import yaml
from pydicom.sr.codedict import codes
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.draw import TABLE
from pipeline.fitted.fit import fit
from pipeline.fitted.model import Model
from pipeline.fitted.reports import report
from pipeline.fitted.sources import FolderOptions
from stores.errors import ConfigError, OccupiedError
from tests.phantoms import dicom, save, write_png, write_series
from tests.pipeline.models import write_tiny_folder

HERE = FolderOptions(speed=Speed(device="cpu", workers=0))
SLICES = 3


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 24 series of as many patients, a config, its store and its model."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    lines = ["path,look"]
    for i in range(24):
        voxels = rng.integers(0, 300, (SLICES, 40, 40)).astype(np.int16)
        voxels[:, : 20 if i % 2 else 8] += 400
        ids = {"PatientID": f"MUELLER-{i}", "PatientName": f"MUELLER^{i}"}
        ids |= {"StudyInstanceUID": f"1.2.3.{i}", "SeriesInstanceUID": f"1.2.3.{i}.1"}
        write_series(root / f"data/s{i:02d}", voxels, **ids)
        lines.append(f"s{i:02d},{('dark', 'bright')[i % 2]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    settings = {
        "data": {"root": "data"},
        "backbone": {"name": f"hf:{write_tiny_folder(root / 'tiny')}", "image_size": 28},
        "store": "store",
        "labels": {"file": "labels.csv"},
        "tasks": {"look": {"labels": ["look"], "level": "series", "positive": "bright"}},
        "split": {"allow": ["near-duplicates"]},
        "probe": {"low": -3, "high": 1, "steps": 3},
    }
    (root / "my.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(root / "my.yaml")
    extract(config, HERE.speed)
    fit(config, root / "model")
    return root


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_says_of_each_series_what_the_table_says(project: Path, tmp_path: Path) -> None:
    for i in (3, 4):
        shutil.copytree(project / f"data/s{i:02d}", tmp_path / f"new/s{i:02d}")
    model = Model.load(project / "model")
    out = tmp_path / "out"
    tally = report(model, tmp_path / "new", out, HERE, tag="PatientID")
    assert (tally.units, tally.unwritten) == (2, 0)
    for i, row in zip((3, 4), rows_of(out), strict=True):
        assert row["files"] == f"s{i:02d}.sr.dcm"
        assert row["PatientID"] == f"MUELLER-{i}"
        made = hd.sr.srread(out / row["files"])
        # Of the images, and of nothing else.
        assert str(made.PatientName) == f"MUELLER^{i}"
        assert made.PatientID == f"MUELLER-{i}"
        assert made.StudyInstanceUID == f"1.2.3.{i}"
        assert made.AccessionNumber == "SECRETACC99"
        (group,) = made.content.get_image_measurement_groups()
        assert group.tracking_identifier == "look"
        images = {image.referenced_sop_instance_uid for image in group.source_images}
        files = sorted((tmp_path / f"new/s{i:02d}").iterdir())
        assert images == {pydicom.dcmread(file).SOPInstanceUID for file in files}
        numbers = {each.name.meaning: each.value for each in group.get_measurements()}
        assert numbers["Probability of bright"] == float(row["proba:bright"])
        assert numbers["Probability of dark"] == float(row["proba:dark"])
        assert numbers["Operating point of bright"] == model.record.thresholds["bright"]
        name = "Conformal p-value of being like the training images"
        assert numbers[name] == float(row["unlike_p"])
        decided = {
            each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()
        }
        assert decided["Decision on look"] == row["decision"]
        # By pydicom alone: TID 1500, nobody has verified it, each image is referenced.
        plain = pydicom.dcmread(out / row["files"])
        assert plain.ContentTemplateSequence[0].TemplateIdentifier == "1500"
        assert (
            plain.ConceptNameCodeSequence[0].CodeValue == codes.DCM.ImagingMeasurementReport.value
        )
        assert plain.VerificationFlag == "UNVERIFIED"
        (study,) = plain.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        assert len(series.ReferencedSOPSequence) == SLICES


def test_random_weights_stand_in_every_report(project: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((project / "my.yaml").read_text())
    settings |= {"store": str(tmp_path / "store"), "data": {"root": str(project / "data")}}
    settings["labels"] = {"file": str(project / "labels.csv")}
    settings["backbone"]["weights"] = "random:0"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(tmp_path / "my.yaml")
    extract(config, HERE.speed)
    model = fit(config, tmp_path / "model")
    shutil.copytree(project / "data/s03", tmp_path / "new/s03")
    report(model, tmp_path / "new", tmp_path / "out", HERE)
    made = hd.sr.srread(tmp_path / "out/s03.sr.dcm")
    (group,) = made.content.get_image_measurement_groups()
    notes = [each.value.meaning for each in group.get_qualitative_evaluations()]
    assert "RANDOM WEIGHTS" in notes


def test_what_is_no_dicom_has_a_row_and_no_report(project: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (40, 40))
    write_png(tmp_path / "new/a.png", pixels.astype(np.uint8))
    save(dicom(pixels.astype(np.int16)), tmp_path / "new/b.dcm")
    (tmp_path / "new/c.dcm").write_bytes(b"")
    run = CliRunner()
    words = ["predict", str(project / "model"), str(tmp_path / "new"), "--to", "dicom-sr"]
    done = run.invoke(app, [*words, "--out", str(tmp_path / "out"), "--workers", "0"])
    assert done.exit_code == 1, done.output
    assert "1 have no report" in done.output
    rows = {row["path"]: row for row in rows_of(tmp_path / "out")}
    assert rows["b.dcm"]["files"] == "b.sr.dcm"
    assert rows["a.png"]["files"] == ""
    assert rows["a.png"]["proba:bright"]
    assert "its files are no DICOM" in rows["a.png"]["notes"]
    assert rows["c.dcm"]["files"] == ""
    assert rows["c.dcm"]["notes"] == "cannot be read: empty (the file has no bytes)"


def test_a_store_alone_and_a_full_folder_are_refused(project: Path, tmp_path: Path) -> None:
    model = Model.load(project / "model")
    with pytest.raises(ConfigError, match="does not say where they are"):
        report(model, project / "store", tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OccupiedError, match="not empty"):
        report(model, project / "data", project, HERE)
