"""Stores used at their URLs; by several processes, and from end to end, in a real server of S3."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml

from pipeline.api import features
from pipeline.backbones.weights import identity_of
from pipeline.commands.cluster import slurm
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.extract import Speed, extract
from pipeline.extraction.distributed.processes import Processes
from pipeline.extraction.distributed.status import status
from pipeline.extraction.exchange import export_store
from pipeline.extraction.plan import plan
from pipeline.extraction.withdrawal import find_patient
from pipeline.segment import segment
from pipeline.segmentation.predictions import write_predictions
from pipeline.shared.pseudonyms import load_key
from pipeline.tune import tune
from stores import FeatureStore, mirror, remote, storage
from stores.bucket import Bucket
from stores.errors import (
    ClaimedError,
    ConfigError,
    CorruptStoreError,
    StoreNotFoundError,
    UnwritableError,
)
from stores.purge import purge, withdraw
from stores.verify import repair, verify
from tests.phantoms import write_png
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import extraction
from tests.pipeline.slow import Hold
from tests.pipeline.test_segment import volumes_config, write_volumes
from tests.pipeline.test_tune import write_collection
from tests.pipeline.tokens import token_store
from tests.stores.conftest import NO_FILES, fill, numbered
from tests.waiting import until

HERE = Speed(device="cpu", batch_size=4, workers=0)
PICTURES = 24


@pytest.fixture
def sent(full: FeatureStore, url: str) -> FeatureStore:
    """Return a store of three parts that was copied to the URL."""
    remote.push(full.path, url)
    return full


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the config of 24 pictures in three parts, with labels."""
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        picture = rng.integers(0, 256, (60, 60), dtype=np.uint8)
        write_png(tmp_path / "data" / f"{i:02}.png", picture)
    lines = [f"{i:02}.png,{i % 2},p{i}" for i in range(PICTURES)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,sick,patient", *lines]) + "\n")
    content = {
        "data": {"root": "data", "modality": {"**/*.png": "DX"}},
        "backbone": {"name": f"hf:{write_tiny_folder(tmp_path / 'network')}", "image_size": 56},
        "store": "store",
        "outputs": {"part_rows": 8},
        "labels": {"file": "labels.csv", "key": "path", "patient": "patient"},
        "tasks": {"sick": {"labels": ["sick"], "level": "image"}},
        "knn": {"k": [3]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> Path:
    """Go on as on a machine with an empty disk, to which the key alone was brought."""
    here = storage.located(url)
    monkeypatch.setenv(mirror.PLACE, str(folder))
    there = storage.located(url)
    shutil.copy(here.with_name(here.name + ".key"), there.with_name(there.name + ".key"))
    return there


# --- reading ---------------------------------------------------------------------------------


def test_a_store_at_a_url_is_read_in_its_place(
    sent: FeatureStore, url: str, tmp_path: Path
) -> None:
    there = FeatureStore.open(url)
    assert there.place == url
    assert there.fingerprint() == sent.fingerprint()
    np.testing.assert_array_equal(there.read("cls", [17, 2]), sent.read("cls", [17, 2]))
    chunks = {p.parts[-4] for p in there.path.rglob("c/*/*") if p.is_file()}
    assert "mean" not in chunks, "what was not asked for was fetched"
    np.testing.assert_array_equal(features(url, "mean")[0], sent.read("mean", range(20)))
    assert status(Path(url)).slices_done == 20  # a Path has one slash of the two
    assert export_store(Path(url), tmp_path / "x.npy", "npy", "cls", 1) == 20
    assert verify(url).findings == []


def test_what_was_added_and_taken_there_is_seen_when_opened_again(
    store: FeatureStore, url: str
) -> None:
    fill(store, 0)
    remote.push(store.path, url)
    assert len(FeatureStore.open(url).missing()) == 2
    fill(store, 1)
    remote.push(store.path, url)
    assert len(FeatureStore.open(url).missing()) == 1
    Bucket(url).remove(["parts/0000000.json"])
    assert len(FeatureStore.open(url).missing()) == 2


def test_a_corrupted_object_is_refused_found_and_queued_again(sent: FeatureStore, url: str) -> None:
    bucket = Bucket(url)
    chunk = "features.zarr/mean/c/1/0"
    data = bucket.get([chunk])[chunk]
    bucket.put({chunk: data[:9] + bytes([data[9] ^ 1]) + data[10:]})
    with pytest.raises(CorruptStoreError, match=rf"{url}/.*mean/c/1.*bits flipped"):
        FeatureStore.open(url).read("mean")
    report = verify(url)
    assert [(f.kind, f.part) for f in report.findings] == [("checksum", 1)]
    assert repair(url).mended
    assert verify(url).sound
    assert [part.index for part in FeatureStore.open(url).missing()] == [1]
    remote.push(sent.path, url)  # whoever has the part sends it again
    assert verify(url).findings == []


def test_a_corrupted_table_is_read_from_its_copy_and_mended(sent: FeatureStore, url: str) -> None:
    bucket = Bucket(url)
    good = bucket.get(["slices.parquet"])
    bucket.put({"slices.parquet": b"PAR1 and nothing"})
    assert FeatureStore.open(url).slices().equals(sent.slices())
    assert [f.where for f in verify(url).findings] == ["slices.parquet"]
    repair(url)
    assert bucket.get(["slices.parquet"]) == good
    assert verify(url).findings == []


def test_a_patient_is_withdrawn_and_purged_there(sent: FeatureStore, url: str) -> None:
    table = numbered(20)
    place = table.schema.get_field_index("patient")
    sent.write_tables(table.set_column(place, "patient", [["p"] * 3 + ["q"] * 17]), NO_FILES)
    remote.push(sent.path, url)
    with pytest.raises(UnwritableError, match="object storage"):
        withdraw(FeatureStore.open(url), "p")  # not the writer
    with storage.storage_at(url).occupied():
        there = FeatureStore.open(url)
        assert (withdraw(there, "p"), purge(there, "p")) == (3, 3)
    there = FeatureStore.open(url)
    assert there.status()[:4].tolist() == [3, 3, 3, 1]
    assert np.isnan(there.read("cls")[:3]).all()
    assert verify(url).sound


def test_places_that_cannot_be_used_are_told(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    with pytest.raises(StoreNotFoundError, match=s3_url):
        FeatureStore.open(s3_url)
    with pytest.raises(ConfigError, match="one process writes"):
        extract(load_config(config, Path(s3_url)), HERE, where=Processes(2))
    at_url = config.with_name("at_url.yaml")
    at_url.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"store": s3_url}))
    with pytest.raises(ConfigError, match="`radprobe copy FOLDER URL`"):
        slurm(at_url)
    with pytest.raises(ConfigError, match="nowhere://x/y' cannot be reached"):
        FeatureStore.open("nowhere://x/y")
    nobody = {
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", nobody)
    with pytest.raises(ConfigError, match="Check the network"):
        FeatureStore.open(s3_url)


# --- answers ---------------------------------------------------------------------------------


def at(config: Config, url: str) -> Config:
    """Return a config whose store, made in a folder, was sent to a URL with its key; there."""
    remote.push(config.store, url)
    folder = storage.located(url)
    shutil.copy(config.store.with_name(config.store.name + ".key"), f"{folder}.key")
    return config.model_copy(update={"store": folder})


def test_segmentations_are_answers_on_another_machine_too(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volumes(tmp_path)
    config = volumes_config(tmp_path)
    token_store(config)
    config = at(config, url)
    (answer,) = segment(config)
    elsewhere = another_machine(monkeypatch, tmp_path / "elsewhere", url)
    there = config.model_copy(update={"store": elsewhere})
    (again,) = segment(there)
    assert (again.cached, again.scores) == (True, answer.scores)
    assert write_predictions(there, tmp_path / "out")[0]
    assert [f.kind for f in verify(url).findings] == ["duplicate"]  # there are no pixel digests
    remote.fetch(url, tmp_path / "fetched")  # and they travel with a copy
    assert list((tmp_path / "fetched" / "segmentations").glob("*.json"))


def test_tuned_networks_go_there_and_come_when_asked_for(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_collection(tmp_path, patients=14))
    extract(config, HERE)
    config = at(config, url)
    (answer,) = tune(config, ["bitfit"], device="cpu", workers=0)
    weights = f"{answer.tuned[0].weights}/model.safetensors"
    elsewhere = another_machine(monkeypatch, tmp_path / "elsewhere", url)
    assert not (elsewhere / weights).exists(), "a network came that nobody asked for"
    assert verify(url).findings == []
    assert not (elsewhere / weights).exists(), "verify keeps what it looked at"
    there = config.model_copy(update={"store": elsewhere})
    (again,) = tune(there, ["bitfit"], device="cpu", workers=0)
    assert again.cached
    assert identity_of(elsewhere / weights) == answer.tuned[0].identity
    patient = find_patient(elsewhere, "p0", there)
    with storage.storage_of(elsewhere).occupied():
        store = FeatureStore.open(url)
        assert patient.withdraw(store) == 2
        assert patient.purge(store).rows == 2
    assert not [n for n in Bucket(url).names() if n.startswith(("tuned/", "results/"))]
    assert not (elsewhere / weights).exists()
    assert verify(url).findings == []


# --- extracting ------------------------------------------------------------------------------


def test_extraction_into_a_url_is_that_into_a_folder(
    config: Path, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_config(config, Path(s3_url))
    load_key(settings.store)  # both stores name alike
    shutil.copy(settings.store.with_name("vits.key"), tmp_path / "store.key")
    whole = FeatureStore.open(extract(load_config(config), HERE).store)
    assert plan(settings).embed == PICTURES
    summary = extract(settings, HERE)
    assert (summary.store, summary.embedded) == (s3_url, PICTURES)
    there = FeatureStore.open(s3_url)
    for name in ("cls", "mean", "status", "file_digest", "pixel_digest"):
        np.testing.assert_array_equal(there.read(name), whole.read(name))
    assert verify(s3_url).findings == []
    assert extract(load_config(config, Path(s3_url)), HERE).embedded == 0
    answers = evaluate(load_config(config, Path(s3_url)), ["knn"])
    another_machine(monkeypatch, tmp_path / "elsewhere", s3_url)
    again = load_config(config, Path(s3_url))
    assert [result.cached for result in evaluate(again, ["knn"])] == [True] * len(answers)
    # A picture more, from the other machine: its part alone is sent.
    picture = np.random.default_rng(9).integers(0, 256, (60, 60), dtype=np.uint8)
    write_png(tmp_path / "data" / "99.png", picture)
    assert extract(again, HERE).embedded == 1
    assert verify(s3_url).findings == []


def test_killed_at_any_moment_another_machine_goes_on(
    config: Path, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(s3_url)
    whole = FeatureStore.open(extract(load_config(config), HERE).store)
    storage.located(s3_url)
    here = load_config(config, Path(s3_url)).store
    shutil.copy(tmp_path / "store.key", here.with_name("vits.key"))
    hold = Hold(tmp_path / "hold")
    hold.at(1, here)  # its network waits behind the first part
    process = extraction(config, Path(s3_url), hold=hold)
    until(lambda: any((here / "parts").glob("*.json")), process)
    process.kill()
    process.communicate()
    assert any(n.startswith("claims/writer.claim.") for n in bucket.names())
    # What an upload cut short leaves: chunks, and no receipt.
    bucket.put({"features.zarr/cls/c/2/0/0": b"half"})
    another_machine(monkeypatch, tmp_path / "elsewhere", s3_url)
    assert FeatureStore.open(s3_url).missing()
    assert extract(load_config(config, Path(s3_url)), HERE).clean
    there = FeatureStore.open(s3_url)
    for name in ("cls", "mean", "status"):
        np.testing.assert_array_equal(there.read(name), whole.read(name))
    assert verify(s3_url).findings == []
    assert not any(n.startswith("claims/") for n in bucket.names())


def test_a_second_writer_is_refused_and_changes_nothing(
    config: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_config(config, Path(s3_url))
    load_key(settings.store)
    hold = Hold(tmp_path / "hold")
    hold.at(1, settings.store)  # its network waits behind the first part
    process = extraction(config, Path(s3_url), hold=hold)
    until(lambda: any((settings.store / "parts").glob("*.json")), process)
    with pytest.raises(ClaimedError, match=rf":{process.pid} writes to {s3_url}"):
        extract(load_config(config, Path(s3_url)), HERE)
    at_work = status(Path(s3_url))
    assert at_work.writer is not None
    assert at_work.writer.by.endswith(f":{process.pid}")
    assert 0 <= at_work.writer.silent_s <= at_work.writer.for_s + 0.1
    assert at_work.slices_per_s is None
    process.send_signal(signal.SIGTERM)
    hold.release()  # it ends after the batch that it is at
    process.communicate()
    assert status(Path(s3_url)).writer is None
    assert not any(n.startswith("claims/") for n in Bucket(s3_url).names()), (
        "the claim was not given back"
    )
    assert extract(load_config(config, Path(s3_url)), HERE).clean
    assert verify(s3_url).findings == []


def test_a_writer_that_was_taken_over_commits_nothing(store: FeatureStore, url: str) -> None:
    fill(store, 0)
    remote.push(store.path, url)
    folder = storage.located(url)
    bucket = Bucket(url)
    other = {"host": "other", "pid": 1, "born": "", "place": ""}
    with storage.storage_of(folder).occupied():
        there = FeatureStore.open(url)
        living = json.dumps({**other, "time": time.time()})
        bucket.put({"claims/writer.claim.1": living.encode()})
        with pytest.raises(ClaimedError, match="taken over"):
            fill(there, 1)
    assert "parts/0000001.json" not in bucket.names()
    for odd in (math.nan, 1e300, 0):  # nobody's who is alive, or silent for too long: taken over
        silent = json.dumps({**other, "time": odd})
        bucket.put({"claims/writer.claim.1": silent.encode()})
        with storage.storage_of(folder).occupied():
            pass
    with storage.storage_of(folder).occupied():
        fill(FeatureStore.open(url), 1)
    assert [part.index for part in FeatureStore.open(url).missing()] == [2]
    assert verify(url).sound
