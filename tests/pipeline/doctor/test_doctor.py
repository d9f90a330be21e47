"""The doctor on this machine, and on folders and configs with something wrong."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pipeline.backbones.models import COMPARATORS
from pipeline.backbones.weights import Checkpoint
from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.doctor import checks
from pipeline.doctor.disk import disk
from pipeline.doctor.examine import examine
from pipeline.evaluation.metrics.agreement import icc
from pipeline.extraction.plan import plan
from pipeline.extraction.recipes import locate_weights, make_recipe, recipe_with
from pipeline.inference.throughput import load_throughput
from pipeline.studies import speed
from pipeline.studies import stability as views
from pipeline.studies.compression import WAYS, fidelity
from pipeline.studies.precision import drift
from pipeline.studies.sample import take_sample
from pipeline.studies.speed import _load, bench
from pipeline.studies.stability import stability
from tests.phantoms import volume, write_nifti_of_series, write_png, write_series
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.test_extract import write_config
from tests.waiting import PATIENCE_S


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 9 CT slices, a volume of 12 and a picture; what is measured stays in the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, network = tmp_path / "data", write_tiny_folder(tmp_path / "tiny")
    write_series(root / "ct", volume(9, 40, 44))
    write_nifti_of_series(root / "mr.nii.gz", 2 * volume(12, 40, 44))
    write_png(root / "x.png", np.random.default_rng(0).integers(0, 60_000, (50, 40), np.uint16))
    (root / "notes.txt").write_text("no image")
    return write_config(tmp_path, root, network)


def levels(found: Any) -> dict[str, str]:
    return {check.name: check.level for check in found}


def test_a_machine_that_passes_the_tests_has_no_failure_and_nothing_is_left(
    config: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = list(examine(load_config(config)))
    assert [check for check in found if check.level == "failure"] == []
    assert {"python", "torch", "faiss", "open files", "hard links", "weights"} <= levels(
        found
    ).keys()
    assert sum(check.name.startswith("DICOM ") for check in found) >= 12
    assert all(check.remedy for check in found if check.level == "warning")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_wrong_with_a_config_is_told_with_its_remedy_and_exit_code_1(
    config: Path, tmp_path: Path
) -> None:
    text = config.read_text().replace(f"{tmp_path}/data", f"{tmp_path}/elsewhere")
    config.write_text(text + "\n")
    (tmp_path / "tiny/model.safetensors").unlink()
    run = CliRunner().invoke(app, ["doctor", str(config), "--json"])
    assert run.exit_code == 1
    told = json.loads(run.stdout)
    assert told["ready"] is False
    wrong = {each["name"]: each for each in told["checks"] if each["level"] == "failure"}
    assert wrong.keys() == {"collection", "weights"}
    assert "elsewhere" in wrong["collection"]["found"]
    assert "data.root" in wrong["collection"]["remedy"]


def test_a_file_system_without_hard_links_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found = {check.name: check for check in disk(tmp_path / "store")}
    assert found["hard links"].level == "failure"
    assert "another file system" in found["hard links"].remedy
    assert found["atomic rename"].level == "ok"


def test_a_file_system_on_which_two_links_win_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: None)
    found = {check.name: check for check in disk(tmp_path / "store")}
    assert found["hard links"].found == "8 of 8 that linked one name succeeded"


def test_a_rename_that_can_be_seen_halfway_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, read = os.replace, Path.read_bytes
    seen_gone = threading.Event()

    def in_two_steps(source: Path, target: Path) -> None:
        somebody_looks = Path(target).name == "swapped" and Path(target).exists()
        Path(target).unlink(missing_ok=True)
        if somebody_looks:
            assert seen_gone.wait(PATIENCE_S)
        plain(source, target)

    def looked_at(path: Path) -> bytes:
        try:
            return read(path)
        except FileNotFoundError:
            seen_gone.set()
            raise

    monkeypatch.setattr(os, "replace", in_two_steps)
    monkeypatch.setattr(Path, "read_bytes", looked_at)
    found = {check.name: check for check in disk(tmp_path / "store")}
    assert "was seen missing" in found["atomic rename"].found


def test_a_library_that_cannot_be_imported_is_a_failure() -> None:
    check = checks._library("no_such_library")
    assert (check.level, check.remedy) == ("failure", checks._REINSTALL)


def test_a_driver_without_a_torch_that_uses_it_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there, and torch uses it")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 560.35.03\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    [check] = [check for check in checks.gpu() if check.name == "gpu"]
    assert check.level == "failure"
    assert "560.35.03" in check.found


def test_a_sample_reads_slices_of_every_kind_of_file(config: Path) -> None:
    sample = take_sample(load_config(config), 100)
    assert len(sample.items) == 9 + 8 + 1  # of one file, no more than eight
    assert sorted(set(sample.modalities)) == ["CT", "DX", "MR"]
    assert sample.seconds > 0
    assert sample.megabytes > 0


def test_bench_measures_what_plan_and_extract_use(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in {"_MOST_BATCH": 4, "_MOST_PARTS": 2}.items():
        monkeypatch.setattr(speed, name, most)
    settings = load_config(config)
    lines: list[str] = []
    pace = bench(settings, "cpu", least_s=0.03, compiled=False, report=lines.append)
    recipe, _ = make_recipe(settings)
    assert load_throughput(recipe, "cpu") == pace
    assert {way.precision for way in pace.forward} == {"float32", "bfloat16"}
    assert len(lines) == len(pace.forward) + 2
    assert pace.reading is not None
    assert min(pace.reading.slices_per_s, pace.write_mb_per_s) > 0
    planned = plan(settings)
    assert planned.hours_by == "bench"
    assert planned.hours is not None
    assert not list(settings.store.parent.glob(".radprobe-bench-*"))


def test_bench_runs_the_network_of_the_recipe(config: Path) -> None:
    paper = {"backbone": {"treatment": "paper"}, "outputs": {"keep": ["cls", "patch"]}}
    content = load_config(config).model_dump(mode="json")
    content["backbone"] |= paper["backbone"]
    content["outputs"] |= {**paper["outputs"], "patch": {"blocks": 2}}
    settings = Config.model_validate(content)
    weights = locate_weights(settings)
    recipe = recipe_with(settings, weights)
    checkpoint = Checkpoint.of(settings.backbone.name, weights)
    network = _load(recipe, checkpoint, "cpu", "float32")
    assert network.architecture == recipe.architecture
    assert network.architecture.treatment == "paper"
    assert network.patch_blocks == 2


def test_the_weights_of_comparators_are_looked_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, comparator = next(iter(COMPARATORS.items()))
    cached = tmp_path / f"models--{comparator.repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file({"weight": np.zeros(1, np.float32)}, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    [check] = checks.weights(None, None)
    assert check.level == "ok"
    assert f"{name} (sha256:" in check.found


def test_drift_compares_every_way_with_float32(config: Path) -> None:
    found = list(drift(load_config(config), slices=18, device="cpu"))
    ways = {(one.precision, one.batch_size) for one in found}
    assert ways == {("float32", 8), ("float32", 32)} | {("bfloat16", b) for b in (1, 8, 32)}
    for one in found:
        exact = one.precision == "float32"
        assert one.cosine_min > (1 - 1e-6 if exact else 0.999)
        assert one.cosine_min <= one.cosine_mean <= 1 + 1e-9
        assert 0 <= one.moved <= (0 if exact else 0.5)


def test_stability_tells_how_far_views_move_features(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {one.view: one for one in stability(load_config(config), slices=18, device="cpu")}
    assert found.keys() == {*views.OF_A_SLICE.values()}
    for one in found.values():
        assert one.icc_low <= one.icc < 1
        assert 0 <= one.moved <= 1
    monkeypatch.setattr(views, "OF_A_SLICE", {"none": "as it is"})
    (same,) = stability(load_config(config), slices=18, device="cpu")
    assert same.icc == pytest.approx(1, abs=1e-6)
    assert same.moved == 0


def write_lungs(tmp_path: Path) -> Config:
    """Write twelve pictures, bright where their masks are, and a volume that has none."""
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = np.zeros((56, 56), np.uint8)
        x, y = rng.integers(0, 28, 2)
        mask[y : y + 28, x : x + 28] = 1
        write_png(
            tmp_path / f"data/p{i:02}.png",
            (150 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8),
        )
        write_png(tmp_path / f"masks/p{i:02}.png", mask)
    write_nifti_of_series(tmp_path / "data/mr.nii.gz", 2 * volume(12, 40, 44))
    network = write_tiny_folder(tmp_path / "tiny")
    masks = {"root": "masks", "files": {"*.png": "{name}"}, "values": "square"}
    return load_config(
        write_config(
            tmp_path,
            tmp_path / "data",
            network,
            data={"root": "data", "modality": {"**": "DX"}, "patient": r"(p\d+)"},
            outputs={"keep": ["patch"], "patch": {"blocks": 5}},
            masks={"square": masks},
        )
    )


def test_fidelity_tells_what_tokens_lose(tmp_path: Path) -> None:
    config = write_lungs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = {one.way: one for one in fidelity(config, slices=12, device="cpu")}
    assert sorted(tmp_path.rglob("*")) == before
    whole, half, eighth, pooled = (
        found[way] for way in ("float32", "float16", "int8", "float16, pool 2")
    )
    # 4 x 4 tokens of 48 numbers, and a scale each
    assert [one.bytes for one in (whole, half, eighth, pooled)] == [3072, 1536, 832, 384]
    assert whole.cosine_least == pytest.approx(1, abs=1e-6)
    assert whole.lost == {"square": 0}
    assert whole.cosine_mean >= half.cosine_mean > eighth.cosine_mean > pooled.cosine_mean
    assert eighth.cosine_least > 0.9999
    assert all(0 <= one.dice["square"] <= 1 for one in found.values())
    assert half.lost["square"] == pytest.approx(whole.dice["square"] - half.dice["square"])


def test_fidelity_without_masks_is_the_cosine_alone(config: Path) -> None:
    run = CliRunner().invoke(
        app, ["doctor", str(config), "--fidelity", "--json", "--device", "cpu"]
    )
    found = json.loads(run.stdout)
    assert [one["way"] for one in found] == [*WAYS]
    assert all(one["dice"] == {} for one in found)


def test_icc_is_that_of_shrout_and_fleiss() -> None:
    """Psychological Bulletin 86 (1979), tables 2 and 4: six targets, four judges."""
    judged = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    flat = np.zeros((6, 4, 1))
    values = np.concatenate([np.array(judged, float)[..., None], flat], axis=2)
    found = icc(values)
    assert found[0] == pytest.approx(0.29, abs=0.005)
    assert np.isnan(found[1])


def test_bench_without_a_config_is_refused_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    run = CliRunner().invoke(app, ["doctor", "--bench"])
    assert "CONFIG" in str(run.exception)


def volume_scope(config: Path) -> Config:
    rule = {"mr": {"kind": "percentiles", "scope": "volume"}}
    return Config.model_validate(load_config(config).model_dump(mode="json") | {"preprocess": rule})


def test_a_rule_of_volumes_can_be_measured_too(config: Path) -> None:
    sample = take_sample(volume_scope(config), 100)
    ends = [i.ends for i, m in zip(sample.items, sample.modalities, strict=True) if m == "MR"]
    assert len(ends) == 8
    assert all(end is not None for end in ends)
