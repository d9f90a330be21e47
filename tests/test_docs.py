"""What the documentation says is done as it says: its configs, scripts and commands run."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from docs import config_keys, house
from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.methods import Method
from pipeline.datasets.describing import describe
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from tests.phantoms import volume, write_png, write_series
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import OFTEN, environment
from tests.warm import interpreter

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def named(page: str, language: str, name: str) -> str:
    (found,) = (block for block in blocks(page, language) if block.startswith(f"# {name}"))
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("network") / "tiny")


def with_network(text: str, network: Path) -> str:
    """Return a config of the documentation with a network that can be had here."""
    settings = yaml.safe_load(text)
    settings["backbone"] = {"name": f"hf:{network}", "image_size": 28}
    return yaml.safe_dump(settings)


def picture(path: Path, seed: int) -> None:
    write_png(path, np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_config_is_valid(page: str, tmp_path: Path) -> None:
    for i, text in enumerate(blocks(page, "yaml")):
        (tmp_path / f"{i}.yaml").write_text(text)
        load_config(tmp_path / f"{i}.yaml")


# --- recipes ----------------------------------------------------------------------------------


def run_recipe(
    folder: Path, name: str, argument: str, network: Path, *methods: Method
) -> list[str]:
    """Describe a recipe's data set and run its config; return the tasks answered."""
    describe(name, folder / argument, folder / name)
    text = with_network(named("recipes.md", "yaml", f"{name}.yaml"), network)
    (folder / f"{name}.yaml").write_text(text)
    config = load_config(folder / f"{name}.yaml")
    assert extract(config, Speed(device="cpu", workers=0)).clean
    results = evaluate(config, methods)
    assert all(result.tally.unmatched_labels == 0 for result in results)
    return [result.task for result in results]


def test_chexpert(tmp_path: Path, network: Path) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    findings = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    head = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *findings]
    rng = np.random.default_rng(0)
    for name, patients in (("train", range(1, 41)), ("valid", range(64541, 64553))):
        rows = []
        for number in patients:
            path = f"{root.name}/{name}/patient{number:05d}/study1/view1_frontal.jpg"
            picture((tmp_path / path).with_suffix(".png"), number)
            (tmp_path / path).with_suffix(".png").rename(tmp_path / path)
            marks = rng.choice(["1.0", "0.0", "-1.0", ""] if name == "train" else ["1.0", "0.0"], 5)
            view, sex = rng.choice(["AP", "PA"]), rng.choice(["Male", "Female"])
            rows.append([path, sex, "60", "Frontal", view, "", *marks])
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    answered = run_recipe(tmp_path, "chexpert", root.name, network, "knn", "probe")
    assert answered[0] == "findings"
    assert any("view" in task for task in answered)


def test_nih(tmp_path: Path, network: Path) -> None:
    root = tmp_path / "NIH"
    (text,) = (b for b in blocks("recipes.md", "yaml") if b.startswith("# nih.yaml"))
    findings = yaml.safe_load(text)["tasks"]["findings"]["labels"]
    assert len(findings) == 14
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"]
    rows, rng = [], np.random.default_rng(1)
    for patient in range(1, 61):
        for visit in range(2):
            name = f"{patient:08d}_{visit:03d}.png"
            picture(root / f"images_{patient % 3 + 1:03d}/images/{name}", 2 * patient + visit)
            found = "|".join(rng.choice(findings, 3, replace=False)) if visit else "No Finding"
            rows.append([name, found, visit, patient, 50, rng.choice(["M", "F"]), "PA"])
    with (root / "Data_Entry_2017.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "Patient Gender", "View Position"], *rows])
    (root / "test_list.txt").write_text("\n".join(row[0] for row in rows if row[3] > 40) + "\n")
    assert run_recipe(tmp_path, "nih", "NIH", network, "knn")[0] == "findings"


# --- the tutorial -----------------------------------------------------------------------------


def test_the_tutorial(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = []
    for i in range(30):
        if i % 3:
            picture(tmp_path / f"studies/xray/{'ab'[i % 2]}{i}.png", i)
            labels.append(f"xray/{'ab'[i % 2]}{i}.png,P{i},{i % 2}")
        else:
            voxels = volume(3) + np.random.default_rng(i).integers(0, 90, volume(3).shape)
            about = {"SeriesInstanceUID": f"1.2.{i}", "StudyInstanceUID": f"1.3.{i}"}
            write_series(tmp_path / f"studies/ct/{i}", voxels, PatientID=f"P{i}", **about)
            labels.append(f"ct/{i},P{i},{i % 2}")
    picture(tmp_path / "studies/xray/a.png", 99)
    labels.append("xray/a.png,P99,1")
    (tmp_path / "labels.csv").write_text("\n".join(["path,patient_id,sick", *labels]) + "\n")
    (text,) = blocks("tutorial.md", "yaml")
    (tmp_path / "my.yaml").write_text(with_network(text, network))
    commands = [line for block in blocks("tutorial.md", "sh") for line in block.splitlines()]
    assert len(commands) == 8
    printed = ""
    monkeypatch.chdir(tmp_path)
    for command in commands:
        name, *arguments = command.split()
        assert name == "radprobe"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (command, done.output, done.exception)
        printed += done.stdout
    for said in ("To embed: 51 slices", "51 embedded", "Every file was read", "AUROC", "Sound"):
        assert said in printed
    assert (tmp_path / "features.h5").stat().st_size > 0
    assert "xray/a.png" in (tmp_path / "slices.csv").read_text()


def test_many_machines(tmp_path: Path, network: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"studies/{i}.png", i)
    settings = {"data": {"root": "studies"}, "store": "store", "outputs": {"part_rows": 4}}
    (tmp_path / "my.yaml").write_text(with_network(yaml.safe_dump(settings), network))
    shards, *others = blocks("scale.md", "sh")
    at_once = " & ".join(shards.splitlines())
    code = shlex.join([interpreter(), "-c", OFTEN])
    script = f'set -e; radprobe() {{ {code} "$@"; }}; {at_once} & wait\n' + "".join(others)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "20 of 20 slices done, in 5 of 5 parts." in done.stdout
    assert '"parts_done": 5' in done.stdout
    assert (tmp_path / "my.sbatch").read_text().startswith("#!/bin/bash")


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "s")],
        cwd=DOCS.parent, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")
    assert "FeatureStore" in (tmp_path / "s/reference/index.html").read_text()


def test_the_picture_of_the_house_is_of_its_layers() -> None:
    assert house.PICTURE.read_text(encoding="utf-8") == house.svg()


def test_every_key_of_a_config_is_on_its_page_with_its_meaning() -> None:
    page = config_keys.PAGE.read_text(encoding="utf-8")
    assert page == config_keys.text(), "run python -m docs.config_keys"
    meanings = config_keys.meanings()
    assert [key for key, meaning in meanings.items() if not meaning] == []
    # Of each block some, each beside what the models say of it.
    for line in (
        "| `root` | path | **needed** | The folder of the collection. |",
        "| `folds` | whole number, at least 3 | `5` |",
        "| `temperature` | number, above 0 | `0.07` |",
        "| `rank` | whole number, at least 1 | `16` |",
        "- `kind: zscore`: `clip` (3.0), `scope` (slice).",
    ):
        assert line in page
