"""Where FAISS searches: what is said where it has no GPU, or two of its builds are installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.doctor.checks import faiss_packages
from pipeline.evaluation.cards import MOST, cards_of, number_of_cards, search_on
from pipeline.evaluation.neighbours import build_inverted_file, neighbours
from stores.errors import DeviceError

ROOT = Path(__file__).parents[3]
no_card = pytest.mark.skipif(number_of_cards() > 0, reason="FAISS has a GPU here")
card = pytest.mark.skipif(number_of_cards() == 0, reason="FAISS has no GPU here")


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)


@pytest.mark.parametrize("device", [None, "cpu", "mps"])
def test_other_devices_leave_the_search_to_the_processor(device):
    assert cards_of(device) == ()


@no_card
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_search_on_a_gpu_that_is_not_there_is_refused(points, device):
    half = np.arange(1500)
    with pytest.raises(DeviceError, match=f"no GPU for --device {device}: its build for proc"):
        neighbours(points, half, half + 1500, 5, device=device)
    with pytest.raises(DeviceError, match="pip install faiss-gpu"):
        build_inverted_file(points, half, half + 1500, 5, 0.9, device)


@pytest.fixture
def both_builds(tmp_path, monkeypatch) -> None:
    """A second build of FAISS, as pip notes it."""
    about = tmp_path / "faiss_gpu_cu12-1.14.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faiss-gpu-cu12\nVersion: 1.14.1")
    monkeypatch.syspath_prepend(str(tmp_path))


@no_card
def test_two_builds_in_one_folder_are_named_at_the_first_search(both_builds):
    with pytest.raises(DeviceError, match="faiss-cpu and faiss-gpu-cu12 are both installed"):
        search_on("cuda", 5)


def test_two_builds_in_one_folder_are_found_by_doctor(both_builds):
    (check,) = faiss_packages()
    assert check.level == "warning"
    assert "faiss-cpu and faiss-gpu-cu12 are both installed" in check.found
    assert "pip uninstall -y faiss-cpu faiss-gpu" in check.remedy


def test_one_build_is_nothing_to_speak_of():
    assert not list(faiss_packages())


@card
@pytest.mark.parametrize("k", [1, 50, MOST + 1])
def test_a_gpu_finds_what_the_processor_finds(points, k):
    here = neighbours(points, np.arange(2500), np.arange(2500, 3000), k)
    there = neighbours(points, np.arange(2500), np.arange(2500, 3000), k, device="cuda")
    np.testing.assert_allclose(there[0], here[0], atol=1e-5)
    assert (there[1] == here[1]).mean() > 0.999  # equals may change places


@card
def test_an_inverted_file_on_a_gpu_finds_as_many(points):
    rows = np.arange(2500), np.arange(2500, 3000)
    file = build_inverted_file(points, *rows, 10, 0.99, "cuda")
    assert not isinstance(file.index, faiss.IndexIVFFlat)
    here = neighbours(points, *rows, 10)
    there = neighbours(points, *rows, 10, index=file)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(here[1], there[1], strict=True)]) > 0.97


@pytest.mark.parametrize(
    ("driver", "argument", "builds"),
    [
        ("echo 'GPU 0: NVIDIA H100'", "", True),
        ("echo 'GPU 0: NVIDIA H100'", "GPU=0", False),
        ("exit 9", "", False),  # a driver without a card
        ("exit 9", "GPU=1", True),
    ],
)
def test_make_installs_the_build_for_gpus_where_there_is_one(tmp_path, driver, argument, builds):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{driver}\n")
    smi.chmod(0o755)
    command = ["make", "-n", f"VENV={tmp_path}/venv", "extract", *argument.split()]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("faiss-gpu" in done.stdout) == builds
    assert ("uninstall --quiet --yes faiss-cpu" in done.stdout) == builds
