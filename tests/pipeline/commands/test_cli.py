"""The command line as a user types it: real processes, exit codes, one message a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.loading import load_config
from stores import FeatureStore
from stores.errors import ConfigError, StoreNotFoundError
from tests.phantoms import write_png
from tests.pipeline.collection import make_store
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import COMMAND
from tests.warm import WarmProcess


def radprobe(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = os.environ | environment
    process = WarmProcess(COMMAND, *map(str, arguments), environment=known)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 pictures of 12 patients, mostly bright or mostly dark, and a config."""
    import numpy as np

    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    lines = ["path,patient,look"]
    for i in range(24):
        bright = (i // 2) % 2
        pixels = rng.integers(0, 20_000, (40, 40)).astype(np.uint16)
        pixels[:, : 32 if bright else 8] += 30_000
        write_png(folder / f"data/{i:02d}.png", pixels)
        lines.append(f"{i:02d}.png,p{i // 2},{'bright' if bright else 'dark'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    network = write_tiny_folder(folder / "tiny")
    config = {
        "data": {"root": "data", "modality": {"*.png": "DX"}},
        "backbone": {"name": f"hf:{network}", "weights": "random:0", "image_size": 56},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "patient"},
        "tasks": {"look": {"labels": ["look"], "positive": "bright"}},
        "fewshot": {"episodes": 50, "features": "cls+mean"},
        "knn": {"k": [3]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


# What OpenMP tells, when it is asked to, of how it was started.
OPENMP = re.compile(r"\s*OPENMP DISPLAY ENVIRONMENT BEGIN.*?ENVIRONMENT END\s*", re.DOTALL)


@pytest.fixture(scope="module")
def extraction(project: Path) -> subprocess.CompletedProcess[str]:
    """Extract the project by a process of its own, and have OpenMP tell how it was started."""
    command = ["extract", str(project / "config.yaml"), "--device", "cpu"]
    run = [sys.executable, "-c", COMMAND, *command]
    known = os.environ | {"OMP_DISPLAY_ENV": "TRUE"}
    return subprocess.run(run, capture_output=True, text=True, timeout=120, env=known)


@pytest.fixture(scope="module")
def extracted(project: Path, extraction: subprocess.CompletedProcess[str]) -> Path:
    assert extraction.returncode == 0, extraction.stderr
    assert "RANDOM WEIGHTS" in extraction.stdout
    assert "24 embedded" in extraction.stdout
    # No progress bar where nobody watches.
    assert OPENMP.sub("", extraction.stderr) == ""
    return project


def test_threads_of_the_network_leave_their_cores_to_the_readers_while_they_wait(
    extraction: subprocess.CompletedProcess[str],
) -> None:
    assert extraction.returncode == 0, extraction.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in extraction.stderr


def test_extract_then_evaluate_then_from_the_file(extracted: Path) -> None:
    config = extracted / "config.yaml"
    first = radprobe("evaluate", config)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("RANDOM WEIGHTS") == 4  # once, and on every table
    assert "3 computed" in first.stdout
    again = radprobe("evaluate", config, "--json")
    results = json.loads(again.stdout)
    assert {r["method"] for r in results} == {"knn", "probe", "fewshot"}
    assert all(r["cached"] and r["provenance"]["random"] for r in results)
    probe = next(r for r in results if r["method"] == "probe")
    assert probe["scores"][0]["metrics"]["auroc"]["value"] == 1.0


@pytest.mark.parametrize("command", ["extract", "evaluate"])
def test_what_is_done_already_imports_little(extracted: Path, command: str) -> None:
    if command == "evaluate":
        radprobe(command, extracted / "config.yaml")
    heavy = {"torch", "transformers", "sklearn", "scipy", "faiss", "zarr"}
    heavy |= {"pydicom", "nibabel", "PIL", "pyarrow.dataset", "matplotlib"}
    if command == "evaluate":
        heavy |= {"pandas", "pyarrow.compute", "pyarrow.parquet", "cryptography"}
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported', *sorted({heavy!r} & set(sys.modules))))\n"
        "from pipeline.cli import main; main()"
    )
    again = [sys.executable, "-c", code, command, str(extracted / "config.yaml")]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert {"extract": "0 embedded", "evaluate": "3 of 3 answers were on file"}[command] in (
        done.stdout
    )
    assert done.stdout.splitlines()[-1].split() == ["imported"]


def test_one_method_alone(extracted: Path) -> None:
    results = json.loads(radprobe("knn", extracted / "config.yaml", "--json").stdout)
    assert [r["method"] for r in results] == ["knn"]


def test_extract_json_and_exit_1_on_a_finding(extracted: Path, tmp_path: Path) -> None:
    config = extracted / "config.yaml"
    (extracted / "data/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    try:
        done = radprobe("extract", config, "--json", "--store", tmp_path / "s", "--device", "cpu")
        summary = json.loads(done.stdout)
        assert done.returncode == 1
        assert (summary["embedded"], summary["clean"]) == (24, False)
        assert sum(summary["files_set_aside"].values()) == 1
        stopped = radprobe("extract", config, "--store", tmp_path / "t", "--max-bad", "0.01")
        assert stopped.returncode == 1
        assert "more than the 0.01" in stopped.stderr
    finally:
        (extracted / "data/bad.png").unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["extract", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["evaluate", "{project}/config.yaml", "--store", "{tmp}/none"], "no feature store"),
        (["extract", "{tmp}/typo.yaml"], "Did you mean 'store'"),
        (["extract"], "Missing argument"),
        (["extrakt"], "No such command"),
        (["demo-data", "{project}"], "demo"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(
    arguments: list[str], says: str, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "typo.yaml").write_text("data: {root: x}\nstroe: y\n")
    done = radprobe(*(a.format(project=project, tmp=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_every_command_explains_itself_with_an_example() -> None:
    listing = radprobe("--help").stdout
    for command in ("extract", "evaluate", "knn", "probe", "fewshot", "demo-data"):
        assert command in listing
        assert "Example: radprobe" in CliRunner().invoke(app, [command, "--help"]).stdout


def test_commands_stand_in_groups_and_other_tools_words_lead_to_them() -> None:
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    titles = ["Embed", "Ask", "Models", "Look", "Keep", "Prepare"]
    places = [listed.index(f"╭─ {title} ") for title in titles]
    assert places == sorted(places)
    assert "─ Commands ─" not in listed  # every command has its group
    for word, command in [("train", "tune"), ("embed", "extract"), ("test", "evaluate")]:
        done = CliRunner().invoke(app, [word, "my.yaml"], env={"COLUMNS": "200"})
        assert done.exit_code == 2
        assert f"No such command '{word}'" in done.output
        assert f"`radprobe {command}" in done.output


def test_a_config_is_taken_where_a_store_is_asked_for(tmp_path: Path) -> None:
    make_store(tmp_path / "store", np.ones((2, 1, 4), np.float16), [{}, {}])
    config = tmp_path / "my.yaml"
    config.write_text("data: {root: .}\nstore: store\n")
    for command in ("status", "verify", "failures"):
        of_config, of_store = (
            CliRunner().invoke(app, [command, str(place), "--json"])
            for place in (config, tmp_path / "store")
        )
        assert of_config.exit_code == 0, of_config.output
        assert json.loads(of_config.stdout) == json.loads(of_store.stdout)
    with pytest.raises(StoreNotFoundError, match="is a file, and a feature store is a folder"):
        FeatureStore.open(config)
    for folder, kind in ((tmp_path / "store", "a feature store"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"is {kind}, and a config file is asked for"):
            load_config(folder)
