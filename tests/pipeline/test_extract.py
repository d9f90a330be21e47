"""FLOW 1 on real files with a tiny network of the real architecture."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydicom.uid import RLELossless

from pipeline.backbones.load import Backbone
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Progress, Speed
from pipeline.extraction.failures import failures
from pipeline.extraction.plan import plan
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import RecipeMismatchError, TooManyBadError, WeightsError
from tests.phantoms import (
    IDENTITY,
    dicom,
    save,
    volume,
    write_nifti_of_series,
    write_png,
    write_series,
)
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import at_work, committed, extraction, opened
from tests.pipeline.slow import Hold
from tests.waiting import PATIENCE_S, until
from tests.warm import WarmProcess

HERE = Speed(device="cpu", batch_size=4, workers=0)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a CT series, an MR volume and three pictures: 24 slices in 10 files."""
    root = tmp_path_factory.mktemp("originals")
    write_series(root / "ct", volume(9, 40, 44))
    write_nifti_of_series(root / "mr.nii.gz", 2 * volume(12, 40, 44))
    rng = np.random.default_rng(0)
    for i in range(3):
        write_png(root / f"x{i}.png", rng.integers(0, 60_000, (50, 40 + i), np.uint16))
    return root


@pytest.fixture
def root(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "data"))


def write_config(folder: Path, root: Path, network: Path, **settings: Any) -> Path:
    """Write a config of the tiny network; settings replace or add top-level keys."""
    content = {
        "data": {"root": str(root), "modality": {"*.nii.gz": "MR", "**/*.png": "DX"}},
        "backbone": {"name": f"hf:{network}", "image_size": 56},
        "store": "store",
        "outputs": {"part_rows": 8},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content | settings))
    return path


@pytest.fixture
def config(tmp_path: Path, root: Path, network: Path) -> Path:
    return write_config(tmp_path, root, network)


def arrays_of(store: FeatureStore) -> dict[str, np.ndarray]:
    return {name: store.read(name) for name in ("cls", "mean", "status", "pixel_digest")}


def revealed(store: FeatureStore) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Names(store.path).revealed(store.slices()).to_pylist()
    return rows


def test_every_slice_is_embedded_once_in_volume_order(config: Path) -> None:
    told: list[int] = []
    progress = Progress(plan=lambda n: told.append(-n), advance=told.append)
    summary = extract(load_config(config), HERE, progress)
    assert (summary.slices, summary.embedded, summary.clean) == (24, 24, True)
    assert told[0] == -24
    assert sum(told[1:]) == 24
    store = FeatureStore.open(summary.store)
    slices = revealed(store)
    assert [s["path"].split("/")[0] for s in slices] == (
        ["ct"] * 9 + ["mr.nii.gz"] * 12 + ["x0.png", "x1.png", "x2.png"]
    )
    positions = [s["position_mm"] for s in slices[:9]]
    assert positions == sorted(positions)
    assert [s["modality"] for s in slices[::9]] == ["CT", "MR", "MR"]
    assert store.status().tolist() == [1] * 24


def test_a_row_holds_the_features_of_its_own_slice(config: Path, network: Path) -> None:
    """Row by row: the stored numbers are those of reading and embedding that one slice alone."""
    from pipeline.backbones.load import load_backbone
    from pipeline.io.decode import read_slices
    from pipeline.preprocessing.prepare import prepare
    from pipeline.recipe import recipe_of
    from pipeline.types import Slice

    store = FeatureStore.open(extract(load_config(config), HERE).store)
    recipe = recipe_of(store)
    backbone = load_backbone(f"hf:{network}", image_size=56)
    root = load_config(config).data.root
    for row in (0, 5, 13, 22):
        slice_ = revealed(store)[row]
        (item,) = read_slices(root / slice_["path"], [slice_["frame"]])
        assert isinstance(item, Slice)
        features = backbone(prepare(item, slice_["modality"], recipe)[None])
        assert np.allclose(store.read("cls", [row])[0], features.cls[0], atol=2e-3)
        assert np.allclose(store.read("mean", [row])[0], features.mean[0], atol=2e-3)


def test_a_finished_store_loads_no_backbone(config: Path) -> None:
    store = FeatureStore.open(extract(load_config(config), HERE).store)
    before = store.fingerprint()
    code = (
        "import sys; from pathlib import Path; from pipeline.config.loading import load_config\n"
        "from pipeline.extract import extract; s = extract(load_config(Path(sys.argv[1])))\n"
        "print(s.embedded, s.found['same'], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "24", "False"]
    assert store.fingerprint() == before


def test_batch_size_and_workers_change_no_value(config: Path, tmp_path: Path) -> None:
    one = FeatureStore.open(extract(load_config(config), HERE).store)
    for batch_size in (1, 3, 64):
        speed = Speed(device="cpu", batch_size=batch_size, workers=1)
        there = load_config(config, tmp_path / f"batches of {batch_size}")
        other = FeatureStore.open(extract(there, speed).store)
        for name in ("cls", "mean"):
            assert np.allclose(one.read(name), other.read(name), atol=2e-3, rtol=2e-3)
        assert np.array_equal(one.read("pixel_digest"), other.read("pixel_digest"))


def test_patch_tokens_are_kept_when_asked_for(tmp_path: Path, root: Path, network: Path) -> None:
    outputs = {"keep": ["cls", "mean", "patch"], "blocks": 2, "dtype": "float32", "part_rows": 8}
    config = write_config(tmp_path, root, network, outputs=outputs)
    store = FeatureStore.open(extract(load_config(config), HERE).store)
    patch = store.read("patch")
    assert patch.shape == (24, 4, 4, 48)
    assert patch.dtype == np.float32
    assert np.allclose(patch.mean(axis=(1, 2)), store.read("mean"), atol=1e-5)
    assert store.read("cls").shape == (24, 2, 48)


# --- what is never done silently --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"preprocess": {"ct": {"center": 40, "width": 400}}},
            r"preprocess.ct.low: .* -1024.*-160",
        ),
        ({"outputs": {"blocks": 2}}, "blocks: the store has 4, the config asks 2"),
        ({"outputs": {"dtype": "float32"}}, "dtype: .*'float16'.*'float32'"),
        ({"outputs": {"keep": ["cls"]}}, "outputs: "),
    ],
)
def test_another_recipe_is_refused_naming_the_field(
    change: dict[str, Any], named: str, config: Path, tmp_path: Path, root: Path, network: Path
) -> None:
    before = FeatureStore.open(extract(load_config(config), HERE).store).fingerprint()
    other = write_config(tmp_path, root, network, **change)
    with pytest.raises(RecipeMismatchError, match=named):
        extract(load_config(other), HERE)
    assert FeatureStore.open(tmp_path / "store").fingerprint() == before


def test_other_weights_under_the_same_name_are_refused(config: Path, network: Path) -> None:
    extract(load_config(config), HERE)
    kept = (network / "model.safetensors").read_bytes()
    try:
        write_tiny_folder(network, seed=1)
        with pytest.raises(RecipeMismatchError, match=r"weights: .*sha256:.*sha256:"):
            extract(load_config(config), HERE)
    finally:
        (network / "model.safetensors").write_bytes(kept)


def test_the_same_weights_under_another_name_are_a_hit(
    config: Path, tmp_path: Path, root: Path, network: Path
) -> None:
    extract(load_config(config), HERE)
    copy = shutil.copytree(network, tmp_path / "renamed")
    again = extract(load_config(write_config(tmp_path, root, Path(copy))), HERE)
    assert again.embedded == 0


def test_no_weights_is_an_error_and_nothing_is_written(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RADPROBE_WEIGHTS", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = write_config(tmp_path, root, tmp_path, backbone={"name": "dinov2_vits14"})
    with pytest.raises(WeightsError, match="Three ways to get them"):
        extract(load_config(config), HERE)
    assert not (tmp_path / "store").exists()


def test_objects_beside_pictures_and_what_is_left_out_are_no_finding(
    config: Path, root: Path
) -> None:
    for kind in ("SR", "PR", "RTPLAN"):
        ds = dicom(np.eye(4, dtype=np.uint8), Modality=kind)
        del ds.PixelData
        save(ds, root / f"{kind}.dcm")
    write_png(root / ".git/x.png", np.eye(30, dtype=np.uint8))
    shutil.move(config, root / "config.yaml")  # a store below the root, as of `root: .`
    settings = yaml.safe_load((root / "config.yaml").read_text())
    settings["data"]["exclude"] = ["masks"]
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    for _ in range(2):
        summary = extract(load_config(root / "config.yaml"), HERE)
        assert (summary.clean, summary.slices) == (True, 24)
        # The config and the store's key beside the three objects.
        assert summary.files_set_aside == {"other": 5}
        assert summary.folders_left_out == {".git": 1, "a store of radprobe": 1}
        assert summary.notes == ["data.exclude: 'masks' matches no file."]


def test_slices_are_left_out_by_their_flags_and_come_back(config: Path, root: Path) -> None:
    write_series(root / "scout", volume(1, 40, 44), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    settings = load_config(config)
    assert extract(settings, HERE).slices == 25
    data = settings.data.model_copy(update={"leave_out": ("localizer", "burnt-in")})
    without = settings.model_copy(update={"data": data})
    summary = extract(without, HERE)
    assert (summary.slices, summary.embedded) == (24, 0)
    assert summary.found["left out by their flags"] == 1
    assert summary.notes == [
        "data.leave_out: no slice has the flag 'burnt-in'. There are: localizer."
    ]
    assert plan(without).notes == summary.notes
    again = extract(settings, HERE)
    assert (again.slices, again.embedded) == (25, 0)


def test_bad_slices_are_counted_and_no_row_shifts(config: Path, root: Path) -> None:
    good = FeatureStore.open(extract(load_config(config), HERE).store)
    by_path = dict(zip((s["path"] for s in revealed(good)), good.read("mean"), strict=True))
    (root / "x1.png").write_bytes((root / "x1.png").read_bytes()[:300])
    (root / "broken.dcm").write_bytes(b"\0" * 200)
    (root / "flat.png").unlink(missing_ok=True)
    write_png(root / "flat.png", np.full((30, 30), 7, np.uint8))
    (root / "notes.txt").write_text("not a picture")
    summary = extract(load_config(config, config.parent / "second"), HERE)
    assert not summary.clean
    assert summary.files_set_aside["other"] == 1
    assert sum(summary.files_set_aside.values()) + sum(summary.unreadable.values()) == 3
    store = FeatureStore.open(summary.store)
    status = store.status()
    for slice_ in revealed(store):
        row, path = slice_["row"], slice_["path"]
        if path == "x1.png":
            assert status[row] == 2
            assert np.isnan(store.read("mean")[row]).all()
        elif path == "flat.png":
            assert np.isfinite(store.read("mean", [row])).all()
        else:
            assert status[row] == 1
    same = store.read("mean", [s["row"] for s in revealed(store) if s["path"] == "x2.png"])
    assert np.allclose(same[0], by_path["x2.png"], atol=2e-3)


def test_what_is_not_in_the_store_is_listed_by_its_real_name(config: Path, root: Path) -> None:
    (root / "x1.png").write_bytes((root / "x1.png").read_bytes()[:300])
    torn = dicom(volume(1, 40, 44)[0], SeriesInstanceUID="1.9")
    torn.compress(RLELossless)
    torn.PixelData = (
        torn.PixelData[:90] + b"\xff" * (len(torn.PixelData) - 98) + torn.PixelData[-8:]
    )
    torn.save_as(root / "torn.dcm", enforce_file_format=True)
    store = Path(extract(load_config(config), HERE).store)
    assert [(lost.path, lost.frame, lost.reason) for lost in failures(store)] == [
        ("x1.png", None, "truncated"),
        ("torn.dcm", 0, "corrupt"),
    ]
    assert all(lost.detail for lost in failures(store))


def test_too_many_bad_slices_stop_the_run(config: Path, root: Path) -> None:
    for i in range(6):
        (root / f"bad{i}.png").write_bytes((root / "x1.png").read_bytes()[:300])
    with pytest.raises(TooManyBadError, match="6 of 30 .* more than the 0.1"):
        extract(load_config(config), HERE, max_bad=0.1)
    assert extract(load_config(config), HERE, max_bad=0.2).embedded == 24


# --- increments -------------------------------------------------------------------------------


def test_an_added_study_is_appended_and_nothing_else_is_touched(config: Path, root: Path) -> None:
    store = FeatureStore.open(extract(load_config(config), HERE).store)
    before = arrays_of(store)
    write_series(root / "a-new-one", volume(5, 40, 44) + 1, SeriesInstanceUID="1.2.3.4")
    summary = extract(load_config(config), HERE)
    assert (summary.embedded, summary.found["added"], summary.found["same"]) == (5, 5, 24)
    after = arrays_of(store)
    for name, values in before.items():
        assert np.array_equal(values, after[name][: len(values)], equal_nan=name in ("cls", "mean"))


def test_changed_moved_and_removed_files(config: Path, root: Path) -> None:
    extract(load_config(config), HERE)
    write_png(root / "x0.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    (root / "sub").mkdir()
    (root / "x1.png").rename(root / "sub/renamed.png")
    (root / "x2.png").unlink()
    summary = extract(load_config(config), HERE)
    assert summary.embedded == 1
    assert {k: v for k, v in summary.found.items() if v} == {
        "same": 21, "moved": 1, "changed": 1, "withdrawn": 2,
    }  # fmt: skip
    assert extract(load_config(config), HERE).embedded == 0


def test_a_changed_modality_rule_embeds_anew(
    config: Path, tmp_path: Path, root: Path, network: Path
) -> None:
    extract(load_config(config), HERE)
    data = {"root": str(root), "modality": {"*.nii.gz": "CT", "*.png": "DX"}}
    summary = extract(load_config(write_config(tmp_path, root, network, data=data)), HERE)
    assert (summary.embedded, summary.found["changed"]) == (12, 12)


def test_tags_asked_for_later_change_the_table_and_embed_nothing(
    config: Path, tmp_path: Path, root: Path, network: Path
) -> None:
    from pipeline.shared.pseudonyms import load_key, pseudonym

    store = FeatureStore.open(extract(load_config(config), HERE).store)
    assert store.slices()["tags"].null_count == 24
    before = yaml.safe_load(config.read_text())["data"]
    data = before | {"tags": ["AccessionNumber", "StudyID"]}
    asked = write_config(tmp_path, root, network, data=data)
    summary = extract(load_config(asked), HERE)
    assert (summary.embedded, summary.found["same"]) == (0, 24)
    want = pseudonym(load_key(store.path), "tag:AccessionNumber", str(IDENTITY["AccessionNumber"]))
    tags = store.slices()["tags"].to_pylist()
    assert [dict(found)["AccessionNumber"] for found in tags[:9]] == [want] * 9
    assert tags[9:] == [None] * 15
    assert extract(load_config(asked), HERE).found["same"] == 24


# --- privacy and honesty ----------------------------------------------------------------------


def test_no_identifier_stands_in_the_store(config: Path) -> None:
    summary = extract(load_config(config), HERE)
    ct = dicom(volume(1)[0])
    secrets = {*IDENTITY.values(), ct.StudyInstanceUID, ct.SeriesInstanceUID}
    for path in Path(summary.store).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [secret for secret in secrets if str(secret).encode() in content], path
    patients = FeatureStore.open(summary.store).slices()["patient"].to_pylist()
    assert len(set(patients[:9])) == 1
    assert patients[0] is not None
    assert not list(Path(summary.store).rglob("*.key"))


def with_paths(config: Path, paths: str) -> Config:
    settings = yaml.safe_load(config.read_text())
    settings["data"]["paths"] = paths
    config.write_text(yaml.safe_dump(settings))
    return load_config(config)


def stored_bytes(store: Path) -> bytes:
    return b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_names_of_folders_and_files_stay_out_of_the_store(config: Path, root: Path) -> None:
    """Also of files that have no header to say whose they are."""
    patient = str(IDENTITY["PatientID"])
    (root / "ct").rename(root / f"scan of {patient}")
    write_png(root / "DOE^JOHN" / "x.png", np.eye(40, dtype=np.uint8))
    (root / "DOE^JOHN" / "ROE_JANE.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    summary = extract(load_config(config), HERE)
    assert (summary.telling, summary.embedded) == (0, 25)
    content = stored_bytes(Path(summary.store))
    for secret in (patient, "DOE^JOHN", "ROE_JANE"):
        assert secret.encode() not in content
    files = Names(Path(summary.store)).revealed(FeatureStore.open(summary.store).files())
    assert "DOE^JOHN/ROE_JANE.dcm" in files["path"].to_pylist()


def test_paths_can_be_kept_and_hidden_again_without_embedding(config: Path, root: Path) -> None:
    store = FeatureStore.open(extract(load_config(config), HERE).store)
    patient = str(IDENTITY["PatientID"])
    (root / "ct").rename(root / f"scan of {patient}")
    (root / "x0.png").unlink()
    kept = extract(with_paths(config, "keep"), HERE)
    assert (kept.telling, kept.embedded, kept.found["moved"]) == (9, 0, 9)
    assert patient.encode() in pq_paths(store)
    assert b"x0.png" in pq_paths(store)  # of a withdrawn row
    hidden = extract(with_paths(config, "hide"), HERE)
    assert (hidden.telling, hidden.embedded, hidden.found["same"]) == (0, 0, 23)
    assert patient.encode() not in pq_paths(store)
    assert b".png" not in pq_paths(store)
    assert patient.encode() not in stored_bytes(store.path)


def pq_paths(store: FeatureStore) -> bytes:
    tables = (store.slices(), store.files())
    return "\n".join(path for table in tables for path in table["path"].to_pylist()).encode()


def test_random_weights_are_stamped_and_only_when_asked_for(
    tmp_path: Path, root: Path, network: Path
) -> None:
    backbone = {"name": f"hf:{network}", "weights": "random:3", "image_size": 56}
    config = write_config(tmp_path, root, network, backbone=backbone)
    summary = extract(load_config(config), HERE)
    recipe = json.loads((Path(summary.store) / "recipe.json").read_text())
    assert summary.weights == recipe["weights"] == "random:3"


# --- interruption -----------------------------------------------------------------------------

# A process that says when the network gets a batch, and when the disk is to take a file.
STEPS = """
import os, sys
from pathlib import Path
import pipeline.backbones.load as b
from pipeline.config.loading import load_config
from pipeline.extract import Speed, extract
plain, sync = b.Backbone.__call__, os.fsync
b.Backbone.__call__ = lambda self, x: (print("batch", flush=True), plain(self, x))[1]
os.fsync = lambda descriptor: (print("file", flush=True), sync(descriptor))[1]
extract(load_config(Path(sys.argv[1])), Speed(device="cpu", batch_size=4, workers=1))
"""


def kill_at(config: Path, step: int) -> bool:
    """Kill (-9) an extraction at one of its steps; return whether it got there."""
    child = WarmProcess(STEPS, str(config), environment=os.environ)
    assert child.stdout is not None
    with child.stdout:
        for _ in range(step):
            child.stdout.readline()
        child.kill()
    child.communicate()
    return child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_and_resumed_gives_the_same_bits(
    seed: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    plain, sync = Backbone.__call__, os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "__call__", lambda s, x: (steps.append("batch"), plain(s, x))[1])
        patch.setattr(os, "fsync", lambda file: (steps.append("file"), sync(file))[1])
        undisturbed = extract(load_config(config, tmp_path / "undisturbed"), HERE)
    assert undisturbed.clean
    assert steps.count("batch") == 6
    rng = random.Random(seed)
    moments = [rng.randrange(1, len(steps) // 2) for _ in range(3)]
    assert kill_at(config, moments[0])  # those after it have less to do, and may be through
    for step in moments[1:]:
        kill_at(config, step)
    assert extract(load_config(config), HERE).clean
    want = arrays_of(FeatureStore.open(tmp_path / "undisturbed"))
    got = arrays_of(FeatureStore.open(tmp_path / "store"))
    for name, values in want.items():
        assert values.tobytes() == got[name].tobytes(), name
    assert not list((tmp_path / "store/claims").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_gives_claims_back_and_says_so(
    number: int, code: int, config: Path, tmp_path: Path
) -> None:
    store, hold = tmp_path / "store", Hold(tmp_path / "hold")
    hold.at(0, store)
    child = extraction(config, store, hold=hold)
    assert child.stderr is not None
    until(lambda: list((store / "claims").glob("0*.claim.*")), child)
    child.send_signal(number)
    # Behind what it said of the collection.
    said = next(line for line in child.stderr if "Interrupted" in line)
    child.send_signal(number)  # an impatient hand
    hold.release()
    _, more = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == code, more
    assert "Nothing was committed yet: that is done by parts, of up to " in said
    assert "Traceback" not in more
    assert "Interrupted" not in more
    assert not list((store / "claims").iterdir())
    assert extract(load_config(config), HERE).clean


def test_two_processes_share_one_store(root: Path, network: Path, tmp_path: Path) -> None:
    # More parts than one process has claimed ahead when the other comes.
    config = write_config(tmp_path, root, network, outputs={"part_rows": 2})
    store, hold = tmp_path / "store", Hold(tmp_path / "hold")
    hold.at(0, store)
    children = [extraction(config, store, hold=hold) for _ in range(2)]
    until(lambda: len(at_work(opened(store))) == 2)
    hold.release()
    done = []
    for child in children:
        said, complained = child.communicate(timeout=PATIENCE_S)
        done.append(json.loads(said))
        # One may be through while the other is still at its last part, and then says so.
        assert done[-1]["clean"] == (not done[-1]["parts_elsewhere"]), complained
        assert child.returncode == (0 if done[-1]["clean"] else 1)
    assert sum(summary["embedded"] for summary in done) == 24
    assert all(summary["embedded"] for summary in done)
    summary = extract(load_config(config), HERE)
    assert (summary.embedded, summary.clean) == (0, True)
    assert len(committed(FeatureStore.open(store))) == 12
