"""A config that asks a store of another network, or of other images, is refused by every door."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipeline import api
from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.extract import extract
from pipeline.extraction import same_folder, same_store
from pipeline.extraction.embed import Speed
from pipeline.extraction.same_store import check_store
from pipeline.report.sources import open_sources
from pipeline.shared.notes import PLACE
from stores import FeatureStore
from stores.errors import RecipeMismatchError, WeightsError
from tests.phantoms import dicom, save, volume, write_png
from tests.pipeline.collection import make_store
from tests.pipeline.models import write_tiny_folder

PATIENTS = 12


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures, labels, a network and a config, and embed them with its trained weights."""
    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    lines = ["path,patient,look"]
    for i in range(PATIENTS):
        write_png(folder / f"data/{i:02d}.png", rng.integers(0, 60_000, (30, 30), np.uint16))
        lines.append(f"{i:02d}.png,p{i},{i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    write_png(folder / "other/a.png", rng.integers(0, 60_000, (30, 30), np.uint16))
    write_tiny_folder(folder / "tiny", depth=1)
    extract(load_config(config_of(folder)), Speed(device="cpu", workers=0))
    return folder


def config_of(folder: Path, **changes: Any) -> Path:
    """Write a config of the project; changes: blocks, of which some keys replace others."""
    content: dict[str, Any] = {
        "data": {"root": "data", "modality": {"*.png": "DX"}},
        "backbone": {"name": f"hf:{folder / 'tiny'}", "image_size": 28},
        "outputs": {"blocks": 1},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "patient"},
        "tasks": {"look": {"labels": ["look"]}},
        "knn": {"k": [3], "features": "cls"},
    }
    for name, block in changes.items():
        content[name] = {**content.get(name, {}), **block}
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def check(folder: Path, **changes: Any) -> None:
    check_store(load_config(config_of(folder, **changes)))


def test_what_the_store_was_made_by_is_answered(project: Path) -> None:
    check(project)
    # Elsewhere there may be neither the weights nor the images.
    check(project, backbone={"weights": "/nowhere/model.safetensors"})
    check(project, backbone={"name": "hf:nobody/nowhere"})
    check(project, data={"root": "nowhere"})
    (project / "empty").mkdir(exist_ok=True)
    check(project, data={"root": "empty"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": {"image_size": 42}}, "image_size: the store has 28, the config asks 42"),
        ({"backbone": {"name": "dinov2_vitb14"}}, "architecture.dim: .* 48, the config asks 768"),
        ({"backbone": {"name": "mae_large", "image_size": 224}}, "architecture.family"),
        ({"backbone": {"weights": "random:0"}}, "weights: .*sha256:.* asks 'random:0'"),
        ({"backbone": {"precision": "bfloat16"}}, "precision: .*'float32'.* 'bfloat16'"),
        ({"preprocess": {"xray": "percentiles"}}, "preprocess.xray"),
        ({"outputs": {"dtype": "float32"}}, "dtype: .*'float16'.* 'float32'"),
        ({"data": {"root": "other"}}, "another folder: .*other.* such as row 0\\."),
        ({"data": {"modality": {"*.png": "CT"}}}, "data.modality: .* 12 slices as DX.* as CT"),
        ({"data": {"modality": {}}}, "data.modality: .* as OT. Run `radprobe extract`"),
        (
            {"data": {"modality": {"**/03.png": "CT", "*.png": "DX"}}},
            "data.modality: it has 1 slices as DX, such as row 3",
        ),
        (
            {"labels": {"patient": None}, "data": {"patient": "(.)"}},
            "data.patient: it has 12 slices",
        ),
        ({"data": {"study": "(.)"}}, "data.study: it has 12 slices"),
    ],
)
def test_another_network_recipe_or_folder_is_refused_with_both_values(
    project: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeMismatchError, match=said):
        check(project, **changes)


def test_globs_that_say_the_same_of_every_slice_are_answered(project: Path) -> None:
    check(project, data={"modality": {"**": "DX"}})
    check(project, data={"modality": {"*.png": "DX", "0*.png": "CT"}})
    # Patients are of the labels: a pattern of paths changes none.
    check(project, data={"patient": "(.)"})


def test_slices_that_the_config_leaves_out_are_counted_each_time(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    check(project)
    assert caplog.messages == []
    for data in ({"exclude": ["0[0-3].png"]}, {"include": ["0*.png", "11.png"]}):
        number = 4 if "exclude" in data else 1
        for _ in range(2):
            check(project, data=data)
            assert f"({number} by data.include and data.exclude, of 12)" in caplog.messages[-1]
            assert "radprobe extract" in caplog.messages[-1]
    assert len(caplog.messages) == 4


def test_files_that_are_gone_are_counted_each_time(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "copy"))
    for i in range(5):
        (folder / f"data/{i:02d}.png").unlink()
    for _ in range(2):
        check(folder)
        assert "5 of 12 files of the store" in caplog.messages[-1]
        assert "not under data.root" in caplog.messages[-1]
    assert len(caplog.messages) == 2


def test_a_file_that_names_its_own_modality_is_of_no_glob(tmp_path: Path) -> None:
    for i in range(3):
        save(dicom(volume()[i], Modality="CR"), tmp_path / f"data/{i}.dcm")
    write_png(tmp_path / "data/a.png", np.zeros((30, 30), np.uint16))
    write_tiny_folder(tmp_path / "tiny", depth=1)
    given = {"data": {"modality": {"*.png": "DX"}}, "labels": {"file": "none.csv"}}
    extract(load_config(config_of(tmp_path, **given)), Speed(device="cpu", workers=0))
    check(tmp_path, data={"modality": {"*.png": "DX", "?.dcm": "CT"}})
    with pytest.raises(RecipeMismatchError, match="has 1 slices as DX"):
        check(tmp_path, data={"modality": {"**": "CT"}})


def test_a_name_that_no_network_has_is_refused(project: Path) -> None:
    with pytest.raises(WeightsError, match="There is no backbone 'dinov2_vitx14'"):
        check(project, backbone={"name": "dinov2_vitx14"})


def test_other_weights_of_the_same_shape_are_refused(project: Path) -> None:
    other = write_tiny_folder(project / "tiny1", seed=1, depth=1)
    with pytest.raises(RecipeMismatchError, match="weights: the store has 'sha256:"):
        check(project, backbone={"name": f"hf:{other}"})


def test_random_weights_are_asked_for_by_name(project: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "copy", ignore=lambda *_: {"store"}))
    (folder / "store.key").unlink()
    random = {"weights": "random:3"}
    extract(load_config(config_of(folder, backbone=random)), Speed(device="cpu", workers=0))
    check(folder, backbone=random)
    for weights in ("/nowhere/trained.safetensors", "random:4", None):
        with pytest.raises(RecipeMismatchError, match="weights: the store has 'random:3'"):
            check(folder, backbone={"weights": weights})


def test_imported_features_are_of_the_network_that_they_say(tmp_path: Path) -> None:
    make_store(tmp_path / "store", np.ones((4, 1, 8)), [{} for _ in range(4)])
    (tmp_path / "data").mkdir()
    check(tmp_path, backbone={"name": "dinov2_vitb14"})


def test_tables_and_weights_are_looked_into_once_and_again_when_they_change(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "copy"))
    monkeypatch.setenv(PLACE, str(tmp_path / "cache"))
    looks: list[str] = []

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def look(*arguments: Any) -> Any:
            looks.append(name)
            return plain(*arguments)

        return look

    for module, name in ((same_folder, "check_folder"), (same_store, "identity_of")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(FeatureStore, "files", counted("files", FeatureStore.files))
    tiny = {"name": f"hf:{folder / 'tiny'}"}
    check(folder, backbone=tiny)
    assert sorted(looks) == ["check_folder", "files", "identity_of"]
    check(folder, backbone=tiny)
    assert len(looks) == 3
    # Another folder under the name of the first, and other weights under the same.
    shutil.rmtree(folder / "data")
    shutil.copytree(folder / "other", folder / "data")
    with pytest.raises(RecipeMismatchError, match="another folder"):
        check(folder, backbone=tiny)
    weights = folder / "tiny/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RecipeMismatchError, match="weights: the store has 'sha256:"):
        check(folder, backbone=tiny)


def test_files_of_the_same_names_are_of_this_store_where_their_sizes_are(
    project: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "copy"))
    shutil.copytree(folder / "data", folder / "moved")
    check(folder, data={"root": "moved"})
    rng = np.random.default_rng(1)
    for i in range(PATIENTS):
        write_png(folder / f"hospital/{i:02d}.png", rng.integers(0, 60_000, (31, 30), np.uint16))
    with pytest.raises(RecipeMismatchError, match="none of 12 .* has the size that it had"):
        check(folder, data={"root": "hospital"})
    # One that was mended meanwhile is for extract to find.
    write_png(folder / "moved/03.png", rng.integers(0, 60_000, (31, 30), np.uint16))
    check(folder, data={"root": "moved", "tags": ["AccessionNumber"]})


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"], ["knn"], ["probe"], ["segment"], ["search", "0"], ["report"],
        ["compare", "store"], ["retest", "pairs.csv"],
    ],
)  # fmt: skip
def test_every_command_refuses(project: Path, command: list[str]) -> None:
    config = config_of(project, backbone={"name": "dinov2_vitb14"})
    name, *more = command
    done = CliRunner().invoke(app, [name, str(config), *more])
    assert isinstance(done.exception, RecipeMismatchError)


def test_notebooks_and_pages_refuse_too(project: Path) -> None:
    config = config_of(project, backbone={"image_size": 42})
    with pytest.raises(RecipeMismatchError):
        api.evaluate(load_config(config))
    with pytest.raises(RecipeMismatchError):
        api.data(load_config(config), next(iter(load_config(config).tasks)))
    with pytest.raises(RecipeMismatchError):
        open_sources([config])


def test_every_table_names_the_network(project: Path) -> None:
    config = config_of(project)
    for command in (["knn"], ["search", "0"]):
        done = CliRunner().invoke(app, [command[0], str(config), *command[1:]])
        assert done.exit_code == 0, done.output
        assert "dinov2 1 blocks of 48, patch 14 (sha256:" in done.output
    output = CliRunner().invoke(app, ["knn", str(config)]).output
    assert "2 images of 2 patients (few)" in output
    assert "(few): a score of fewer than 20 test patients says little; `split: {kind: kf" in output
    done = CliRunner().invoke(app, ["report", str(config), "--out", str(project / "page.html")])
    assert done.exit_code == 0, done.output
    assert "dinov2 1 blocks of 48, patch 14 (sha256:" in (project / "page.html").read_text()
