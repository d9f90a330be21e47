"""Benchmarks that need hardware which is rarely there: tried on the CPU, so that they run on it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, tune
from pipeline.backbones.weights import BACKBONES
from tests.pipeline.models import write_tiny_folder


@pytest.fixture(autouse=True)
def warnings_are_heard_again() -> Iterator[None]:
    """A benchmark silences the warnings of its own process, which here is that of other tests."""
    yield
    logging.disable(logging.NOTSET)


def test_the_benchmark_of_gpus_runs_to_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = f"hf:{write_tiny_folder(tmp_path / 'tiny')}"
    out = tmp_path / "results.json"
    asked = ["--names", network, "--sizes", "56", "--batches", "1", "2", "--slices", "4"]
    few = ["--least", "0.05", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu", *asked, *few])
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    gpu.main()
    results = json.loads(out.read_text())
    (pace,) = results["pace"]
    assert pace["px"] == 56
    assert pace["batch"] in (1, 2)
    assert pace["ratio"] == pytest.approx(pace["whole/s"] / pace["bare/s"])
    assert {row["rule"] for row in results["preprocess"]} == {
        "window",
        "minmax",
        "percentiles",
        "zscore",
    }
    assert all(row["largest"] == 0 for row in results["preprocess"])  # one device
    ways = {row["way"]: row for row in results["kernels"] if "way" in row}
    assert {"as it is", "channels last", "bfloat16 weights", "MATH"} <= ways.keys()
    assert [row["largest"] for row in results["percentiles"]] == [
        0.0,
        pytest.approx(0.0, abs=1e-3),
        0.0,
    ]
    assert results["precision"][0]["least cosine"] > 0.99
    assert results["memory"][0]["largest"] == 0
    assert results["probe"][0]["device"] == "cpu"
    assert results["knn"][1]["largest"] < 1e-5
    assert "FAISS has no GPU" in results["knn"][2]["failed"]


def test_a_part_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel\nand much beside")

    monkeypatch.setitem(gpu.PARTS, "kernels", broken)
    out = tmp_path / "results.json"
    only = ["--only", "kernels", "knn", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu", *only])
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    gpu.main()
    results = json.loads(out.read_text())
    assert results["kernels"] == [{"failed": "RuntimeError: no such kernel"}]
    assert results["knn"][0]["ratio"] == 1
    monkeypatch.setattr(sys, "argv", ["gpu", *only, "--minutes", "0"])
    gpu.main()
    assert json.loads(out.read_text())["knn"] == [{"failed": "no time was left"}]


def test_the_benchmark_of_tuning_runs_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = f"hf:{write_tiny_folder(tmp_path / 'tiny')}"
    asked = ["--names", network, "--methods", "lora", "--size", "28", "--precision", "float32"]
    small = ["--at-once", "2", "--steps", "3", "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["tune", "pace", *asked, *small])
    tune.main()
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells[1:3] == ["lora", "2"]
    bare, ours, ratio = map(float, cells[3:6])
    assert ratio == pytest.approx(ours / bare, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out.startswith("No GPU here")


def test_the_work_of_a_forward_pass_is_counted_as_published() -> None:
    """ViT-B of 16 x 16 tokens: 2 x 23 GFLOP by the parameters that see each token."""
    base = BACKBONES["dinov2_vitb14"].architecture
    tokens = 16 * 16 + 1
    matrices = 2 * tokens * 12 * 12 * base.dim**2  # qkv, out and mlp: 12 d^2 a block
    attention = 12 * 4 * tokens**2 * base.dim
    patches = 2 * 256 * 3 * 14**2 * base.dim
    assert gpu.flops_a_slice(base, 224) == pytest.approx(matrices + attention + patches)
