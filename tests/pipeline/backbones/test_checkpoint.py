"""Weights are hashed once a run, and still nothing but the recipe's own is ever loaded."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.backbones import load, weights
from pipeline.backbones.load import load_recipe_backbone
from pipeline.backbones.weights import Checkpoint
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.distributed.tasks import Work, WorkerOutcome, embed_parts
from pipeline.extraction.embed import Progress, Speed
from pipeline.extraction.recipes import locate_weights, open_store, recipe_with
from pipeline.extraction.sync import update_tables
from pipeline.recipe import Recipe
from stores.errors import WeightsError
from tests.phantoms import volume, write_series
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.test_extract import write_config
from tests.warm import interpreter

HERE = Speed(device="cpu", batch_size=4, workers=0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return a config over 4 slices, in parts of 2, and a tiny network of its own."""
    write_series(tmp_path / "data/ct", volume(4, 40, 44))
    network = write_tiny_folder(tmp_path / "tiny")
    file = write_config(tmp_path, tmp_path / "data", network, outputs={"part_rows": 2})
    return load_config(file)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the weights files that were read for their digest in this process."""
    files: list[Path] = []
    plain = weights.file_sha256

    def noting(path: Path) -> str:
        files.append(path)
        return plain(path)

    monkeypatch.setattr(weights, "file_sha256", noting)
    return files


def located(config: Config) -> tuple[Recipe, Checkpoint]:
    there = locate_weights(config)
    return recipe_with(config, there), Checkpoint.of(config.backbone.name, there)


def put_others_there(config: Config, tmp_path: Path) -> Path:
    """Replace the weights by others of the same shape, size and time; return their file."""
    file = locate_weights(config).file
    assert file is not None
    before = file.stat()
    others = write_tiny_folder(tmp_path / "others", seed=1) / file.name
    shutil.copyfile(others, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return file


def work_on(config: Config) -> Work:
    """Return work on a store that knows its slices and has no features yet."""
    recipe, checkpoint = located(config)
    update_tables(config, open_store(config, recipe), workers=0)
    root = str(config.data.root)
    return Work(
        str(config.store), checkpoint.name, checkpoint.weights, root, HERE, checkpoint.stamp
    )


# --- how often a file is read for its digest -----------------------------------------------------


def test_a_run_hashes_its_weights_once(config: Config, hashed: list[Path]) -> None:
    assert extract(config, HERE).embedded == 4
    assert [file.name for file in hashed] == ["model.safetensors"]


# A process of a run that notes each file that it reads for its digest.
NOTES = """
import pipeline.backbones.weights
plain = pipeline.backbones.weights.file_sha256
def noting(path):
    with open("hashed.txt", "a") as notes:
        print(path, file=notes)
    return plain(path)
pipeline.backbones.weights.file_sha256 = noting
from pipeline.extraction.distributed.processes import child
child()
"""


def test_the_processes_of_a_run_hash_nothing_more(
    config: Config, hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.extraction.distributed.processes._CHILD", NOTES)
    monkeypatch.setattr("sys.executable", interpreter())
    assert extract(config, replace(HERE, device="cpu,cpu")).embedded == 4
    assert len(hashed) == 1
    assert not Path("hashed.txt").exists()


def test_a_worker_hashes_what_nobody_hashed_for_it_and_no_more(
    config: Config, hashed: list[Path]
) -> None:
    work = work_on(config)
    hashed.clear()
    assert embed_parts(work, [0], Progress()) == WorkerOutcome()
    assert hashed == []
    # As on a machine that has a copy of its own: it is read once, however many tasks follow.
    elsewhere = replace(work, stamp="of another file")
    assert embed_parts(elsewhere, [1], Progress()) == WorkerOutcome()
    assert embed_parts(elsewhere, [0, 1], Progress()) == WorkerOutcome()
    assert len(hashed) == 1


# --- wrong weights under the right name ----------------------------------------------------------


@pytest.mark.parametrize("stamp", ["as it was", "none"])
def test_a_worker_refuses_other_weights_of_the_same_name(
    stamp: str, config: Config, tmp_path: Path
) -> None:
    work = work_on(config)
    file = put_others_there(config, tmp_path)
    if stamp == "none":
        work = replace(work, stamp="")
    outcome = embed_parts(work, [0, 1], Progress())
    assert outcome.undone == (0, 1)
    assert outcome.error is not None
    assert f"The weights '{file}' are sha256:" in outcome.error
    assert "on this machine; the store was made by sha256:" in outcome.error


def test_weights_that_are_replaced_after_they_were_hashed_are_refused(
    config: Config, tmp_path: Path
) -> None:
    recipe, checkpoint = located(config)
    load_recipe_backbone(recipe, checkpoint)
    put_others_there(config, tmp_path)
    with pytest.raises(WeightsError, match="the store was made by"):
        load_recipe_backbone(recipe, checkpoint)


def test_weights_that_change_while_they_are_read_are_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, checkpoint = located(config)
    plain = load.read_state

    def replaced_meanwhile(file: Path) -> object:
        put_others_there(config, tmp_path)
        return plain(file)

    monkeypatch.setattr(load, "read_state", replaced_meanwhile)
    with pytest.raises(WeightsError, match="changed while they were read"):
        load_recipe_backbone(recipe, checkpoint)


def test_random_weights_of_another_seed_are_refused(config: Config) -> None:
    recipe, checkpoint = located(config)
    noise = recipe.model_copy(update={"weights": "random:1"})
    load_recipe_backbone(noise, replace(checkpoint, weights="random:1"))
    with pytest.raises(WeightsError, match=r"are random:2 .* was made by random:1"):
        load_recipe_backbone(noise, replace(checkpoint, weights="random:2"))
