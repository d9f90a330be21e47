"""The matrix of changes: what happens to a store when one thing changes, a test a cell.

Every cell is asked three times: `plan` must foretell what `extract` then does, and `explain` must
name the cause.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.commands.extract import _print_explanation
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import Speed, Summary, extract
from pipeline.extraction.copies import copies_of
from pipeline.extraction.distributed.processes import embed_by_processes
from pipeline.extraction.plan import explain, plan
from pipeline.extraction.progress import Progress
from pipeline.extraction.recipes import make_recipe
from pipeline.extraction.withdrawal import find_patient
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import ConfigError, RecipeMismatchError
from stores.features import WITHDRAWN
from stores.purge import purge, readmit, withdraw
from stores.verify import verify
from tests.at_once import at_once
from tests.phantoms import dicom, save, volume, write_png, write_series
from tests.pipeline.extraction.creating import create
from tests.pipeline.models import write_tiny_folder

HERE = Speed(device="cpu", batch_size=4, workers=0)
BESIDE = Speed(device="cpu", batch_size=4, workers=1)
SLICES = 14


@dataclass(frozen=True)
class Case:
    """A collection, its network, its store and its config, all in one folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def store(self) -> FeatureStore:
        return FeatureStore.open(self.folder / "store")

    def config(self, **settings: Any) -> Config:
        """Return the config; settings are dotted keys, such as `outputs__dtype`."""
        content: dict[str, Any] = {
            "data": {"root": "data", "modality": {"**/*.png": "DX"}},
            "backbone": {"name": f"hf:{self.folder / 'network'}", "image_size": 56},
            "store": "store",
            "outputs": {"part_rows": 8},
        }
        for name, value in settings.items():
            block, _, key = name.partition("__")
            content.setdefault(block, {})[key] = value
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_config(path)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a store of nine CT slices of one patient, one of another, and four pictures."""
    case = Case(tmp_path_factory.mktemp("embedded"))
    write_series(case.data / "ct", volume(9, 40, 44), PatientID="ANNA", PatientName="A")
    save(dicom(volume(3, 40, 44)[2], PatientID="BERT", SeriesInstanceUID="1.2.3"), case.data / "b")
    rng = np.random.default_rng(0)
    for i in range(4):
        write_png(case.data / f"x{i}.png", rng.integers(0, 60_000, (40, 40 + i), np.uint16))
    write_tiny_folder(case.folder / "network")
    extract(case.config(), HERE)
    return case


@pytest.fixture
def case(embedded: Case, tmp_path: Path) -> Case:
    return Case(Path(shutil.copytree(embedded.folder, tmp_path / "case")))


def run(config: Config, speed: Speed = HERE, *, rehash: bool = False) -> Summary:
    """Extract, and hold what `plan` said before against it."""
    planned = plan(config, rehash=rehash)
    failed = _failures(config)
    files = sum(1 for path in (config.store / "features.zarr").rglob("c/**/*") if path.is_file())
    summary = extract(config, speed, rehash=rehash)
    assert planned.found == summary.found
    assert planned.slices == summary.slices
    assert planned.embed == summary.embedded + summary.linked + _failures(config) - failed
    now = sum(1 for path in (config.store / "features.zarr").rglob("c/**/*") if path.is_file())
    assert planned.files == now - files + planned.parts  # and a receipt a part
    assert verify(config.store).sound
    assert explain(config).fresh
    return summary


def _failures(config: Config) -> int:
    return len(FeatureStore.open(config.store).failures()) if config.store.exists() else 0


def counts(summary: Summary) -> dict[str, int]:
    return {name: n for name, n in summary.found.items() if n}


# --- hits: nothing is embedded ----------------------------------------------------------------


def rename_network(case: Case) -> Config:
    (case.folder / "network").rename(case.folder / "renamed")
    return case.config(backbone__name=f"hf:{case.folder / 'renamed'}")


def touch_everything(case: Case) -> Config:
    for path in case.data.rglob("*"):
        os.utime(path, (1, 1))
    return case.config()


def copy_store(case: Case) -> Config:
    shutil.copytree(case.folder / "store", case.folder / "elsewhere")
    shutil.copy(case.folder / "store.key", case.folder / "elsewhere.key")
    return case.config().model_copy(update={"store": case.folder / "elsewhere"})


def add_labels(case: Case) -> Config:
    (case.folder / "labels.csv").write_text("path,sick\nx0.png,1\n")
    return case.config(labels__file="labels.csv", tasks__sick={"labels": ["sick"]})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Case.config, id="nothing"),
        pytest.param(rename_network, id="weights-under-another-name"),
        pytest.param(touch_everything, id="file-mtime"),
        pytest.param(add_labels, id="labels"),
        pytest.param(copy_store, id="store-elsewhere"),
        pytest.param(lambda case: case.config(outputs__part_rows=32), id="part-rows"),
        pytest.param(lambda case: case.config(data__exclude=["nothing/**"]), id="exclude-nothing"),
    ],
)
def test_a_hit_embeds_nothing(case: Case, change: Callable[[Case], Config]) -> None:
    summary = run(change(case))
    assert (summary.embedded, counts(summary)) == (0, {"same": SLICES})


@pytest.mark.parametrize(
    "speed",
    [
        pytest.param(Speed(device="cpu", batch_size=9, workers=0), id="batch-size"),
        pytest.param(Speed(device="cpu", batch_size=4, workers=2), id="workers"),
    ],
)
def test_speed_is_no_part_of_the_key(case: Case, speed: Speed) -> None:
    assert run(case.config(), speed).embedded == 0


def test_a_renamed_file_keeps_its_row(case: Case) -> None:
    before = case.store.read("cls")
    (case.data / "deep/er").mkdir(parents=True)
    (case.data / "x1.png").rename(case.data / "deep/er/y.png")
    why = explain(case.config())
    assert [(c.kind, c.path, c.why) for c in why.changes] == [
        ("moved", "deep/er/y.png", "it was 'x1.png'")
    ]
    summary = run(case.config())
    assert (summary.embedded, counts(summary)) == (0, {"same": SLICES - 1, "moved": 1})
    assert np.array_equal(case.store.read("cls"), before, equal_nan=True)


def test_a_stranger_reads_the_store_with_zarr_and_pyarrow_alone(case: Case) -> None:
    """Run the script of docs/STORE.md where our packages cannot be imported."""
    text = (Path(__file__).parents[3] / "docs/STORE.md").read_text()
    script = text.partition("```python\n")[2].partition("```")[0]
    block = "import sys; sys.modules['stores'] = sys.modules['pipeline'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + script, str(case.folder / "store")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = Names(case.store.path).shown
    assert done.stdout.startswith(f"({SLICES}, 48) ['{shown('b')}', '{shown('ct')}/")


def test_processes_that_create_a_store_at_once_share_it(case: Case) -> None:
    config = case.config().model_copy(update={"store": case.folder / "fresh"})
    recipe, _ = make_recipe(config)
    at_once(create, *[(config, recipe)] * 4)
    assert verify(config.store).findings == []
    assert [path.name for path in case.folder.glob(".tmp-*")] == []


# --- misses: only what changed is embedded ----------------------------------------------------


def test_changed_content_gets_a_new_row_and_the_old_is_withdrawn(case: Case) -> None:
    before, rows = case.store.read("cls"), dict(zip(*_paths(case), strict=True))
    write_png(case.data / "x0.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    why = explain(case.config())
    assert [(c.kind, c.why) for c in why.changes] == [
        ("changed", "the content of its file changed"),
        ("withdrawn", "row 16 takes its place"),
    ]
    summary = run(case.config())
    assert summary.embedded == 1
    assert counts(summary) == {"same": SLICES - 1, "changed": 1, "withdrawn": 1}
    assert case.store.status()[rows["x0.png"]] == WITHDRAWN
    assert np.array_equal(case.store.read("cls")[: len(before)], before, equal_nan=True)


def test_what_the_config_leaves_out_now_is_called_excluded(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = explain(case.config(data__exclude=["x*.png"])).changes
    assert {c.path for c in changes} == {path for path in _paths(case)[0] if path[0] == "x"}
    assert {c.why for c in changes} == {"data.include and data.exclude leave it out"}
    (case.data / "x3.png").unlink()
    _print_explanation(explain(case.config(data__exclude=["x1.png"])))
    said = capsys.readouterr().out
    assert "excluded: x1.png frame 0, row " in said
    assert "gone: x3.png frame 0, row " in said
    assert "withdrawn" not in said


def test_content_that_comes_back_finds_its_old_row(case: Case) -> None:
    first = (case.data / "x0.png").read_bytes()
    write_png(case.data / "x0.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    run(case.config())
    (case.data / "x0.png").write_bytes(first)
    summary = run(case.config())
    assert (summary.embedded, summary.found["moved"], summary.found["withdrawn"]) == (0, 1, 1)


def test_content_changed_behind_size_and_mtime_needs_rehash(case: Case) -> None:
    path = case.data / "b"
    about, data = path.stat(), bytearray(path.read_bytes())
    data[-7] ^= 0x10
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert run(case.config()).embedded == 0
    assert not explain(case.config(), rehash=True).fresh
    assert counts(run(case.config(), rehash=True)) == {
        "same": SLICES - 1, "changed": 1, "withdrawn": 1,
    }  # fmt: skip


def test_rehash_of_an_unchanged_collection_is_a_hit(case: Case) -> None:
    assert counts(run(case.config(), rehash=True)) == {"same": SLICES}


def test_an_added_file_is_appended(case: Case) -> None:
    write_png(case.data / "new.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    assert [c.why for c in explain(case.config()).changes] == ["it is new"]
    summary = run(case.config())
    assert (summary.embedded, counts(summary)) == (1, {"same": SLICES, "added": 1})


def test_a_removed_file_is_withdrawn_and_comes_back_for_nothing(case: Case) -> None:
    path = case.data / "x3.png"
    data = path.read_bytes()
    path.unlink()
    assert [c.why for c in explain(case.config()).changes] == ["it is no longer found"]
    assert counts(run(case.config())) == {"same": SLICES - 1, "withdrawn": 1}
    path.write_bytes(data)
    summary = run(case.config())
    assert (summary.embedded, summary.slices) == (0, SLICES)


def test_another_modality_rule_embeds_anew(case: Case) -> None:
    config = case.config(data__modality={"**/*.png": "MR"})
    assert explain(config).changes[0].why == "its modality was DX, now MR"
    assert counts(run(config)) == {"same": 10, "changed": 4, "withdrawn": 4}


# --- refusals ---------------------------------------------------------------------------------


def other_weights(case: Case) -> Config:
    write_tiny_folder(case.folder / "network", seed=1)
    return case.config()


@pytest.mark.parametrize(
    ("change", "field", "stored", "asked"),
    [
        pytest.param(other_weights, "weights", "sha256:", "sha256:", id="weights"),
        pytest.param(
            lambda case: case.config(preprocess__ct={"low": -100, "high": 200}),
            "preprocess.ct.low", "-1024.0", "-100.0", id="window",
        ),
        pytest.param(
            lambda case: case.config(backbone__image_size=70), "image_size", "56", "70", id="size"
        ),
        pytest.param(lambda case: case.config(outputs__blocks=2), "blocks", "4", "2", id="layers"),
        pytest.param(
            lambda case: case.config(outputs__dtype="float32"),
            "dtype", "'float16'", "'float32'", id="dtype",
        ),
        pytest.param(
            lambda case: case.config(outputs__keep=["cls"]),
            "outputs", "['cls', 'mean']", "['cls']", id="outputs",
        ),
        pytest.param(
            lambda case: case.config(backbone__precision="bfloat16"),
            "precision", "'float32'", "'bfloat16'", id="precision",
        ),
        pytest.param(
            lambda case: case.config(backbone__treatment="paper"),
            "architecture.treatment", "'own'", "'paper'", id="treatment",
        ),
    ],
)  # fmt: skip
def test_another_recipe_is_refused_naming_field_and_values(
    case: Case, change: Callable[[Case], Config], field: str, stored: str, asked: str
) -> None:
    config = change(case)
    for act in (extract, plan):
        with pytest.raises(RecipeMismatchError) as caught:
            act(config)
        assert f"{field}: the store has {stored}" in str(caught.value).replace("'sha256", "sha256")
        assert f"the config asks {asked}" in str(caught.value).replace("'sha256", "sha256")
    names = [name for name, *_ in explain(config).fields]
    assert field in names
    anew = extract(config.model_copy(update={"store": case.folder / "another"}), HERE)
    assert anew.embedded + anew.linked == SLICES  # a new store is the way out


# --- files that could not be read -------------------------------------------------------------


# Each file costs a reading process, which its time limit ends.
TOO_SLOW = Speed(device="cpu", batch_size=4, workers=1, time_limit_s=1e-9)


def two_files(case: Case) -> Config:
    """Return the config of two files alone."""
    return case.config(data__include=["b", "x0.png"])


def test_a_slow_file_is_tried_again_but_not_for_ever(case: Case) -> None:
    shutil.rmtree(case.folder / "store")
    first = extract(two_files(case), TOO_SLOW)
    assert first.unreadable == {"time-limit": 2}
    assert counts(extract(two_files(case), TOO_SLOW)) == {"retried": 2, "withdrawn": 2}
    assert counts(run(two_files(case))) == {"retried": 2, "withdrawn": 2}
    assert counts(run(two_files(case))) == {"same": 2}
    assert (case.store.status() == 1).sum() == 2


def other_picture(path: Path) -> None:
    write_png(path, np.full((31, 33), 7, np.uint8))


def of_the_same_size(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [other_picture, of_the_same_size, pipe, Path.unlink])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_lies_under_a_name_since_the_look_is_not_embedded_as_what_was_found(
    case: Case, monkeypatch: pytest.MonkeyPatch, workers: int, replace: Callable[[Path], None]
) -> None:
    shutil.rmtree(case.folder / "store")
    real = embed_by_processes

    def replaced_first(*args: Any) -> Any:
        replace(case.data / "x0.png")
        return real(*args)

    speed = Speed(device="cpu", batch_size=4, workers=workers)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.extract.embed_by_processes", replaced_first)
        assert extract(two_files(case), speed).unreadable == {"vanished": 1}
    assert verify(case.store.path).sound
    if replace is not other_picture:
        return
    # The next run looks again: what is there now is another slice, in a row of its own.
    assert run(two_files(case)).unreadable == {}
    assert (case.store.status() == 1).sum() == 2


def test_after_three_failures_only_a_touched_file_is_tried_again(case: Case) -> None:
    shutil.rmtree(case.folder / "store")
    for _ in range(3):
        extract(two_files(case), TOO_SLOW)
    rows = case.store.slices().num_rows
    assert counts(extract(two_files(case), TOO_SLOW)) == {"same": 2}
    assert case.store.slices().num_rows == rows == 3 * 2
    os.utime(case.data / "x0.png", (1, 1))
    assert counts(run(two_files(case))) == {"same": 1, "retried": 1, "withdrawn": 1}


def test_a_slice_that_could_not_be_read_is_embedded_once_it_is_mended(case: Case) -> None:
    pixels = np.full((40, 40), np.nan, np.float32)
    np.save(case.data / "x.npy", pixels)
    assert run(case.config(), BESIDE).unreadable == {"not-finite": 1}
    assert counts(run(case.config(), BESIDE)) == {"same": SLICES + 1}
    np.save(case.data / "x.npy", np.arange(1600, dtype=np.float32).reshape(40, 40))
    summary = run(case.config(), BESIDE)
    assert (summary.embedded, summary.unreadable) == (1, {})


# --- duplicates -------------------------------------------------------------------------------


def test_the_same_pixels_are_embedded_once_linked_and_reported(case: Case) -> None:
    shutil.copytree(case.data / "ct", case.data / "copied")
    pixels = np.random.default_rng(0).integers(0, 60_000, (40, 40), np.uint16)
    write_png(case.data / "again.tif", pixels)  # x0.png in another format
    summary = run(case.config(data__modality={"**/*.png": "DX", "**/*.tif": "DX"}))
    assert (summary.embedded, summary.linked) == (0, 10)
    paths, rows = _paths(case)[0], np.array(_paths(case)[1])
    cls = case.store.read("cls", rows)
    by_path = dict(zip(paths, cls, strict=True))
    assert np.array_equal(by_path["again.tif"], by_path["x0.png"])
    for path in (case.data / "ct").iterdir():
        assert np.array_equal(by_path[f"copied/{path.name}"], by_path[f"ct/{path.name}"])
    notice = next(f for f in verify(case.folder / "store").findings if f.kind == "duplicate")
    # Twice nine of the study, of which one is also Bert's; twice one picture, which is nobody's.
    assert notice.detail.startswith("21 slices have the pixels of another (10 pictures")
    assert notice.detail.endswith(
        ": 1 of more than one patient, 1 with slices that name no patient"
    )
    # All of them, by row; by real path where that is asked for, and the key is there.
    store = case.folder / "store"
    twins = verify(store).twins
    assert {copy.path for group in copies_of(store, twins) for copy in group} == {None}
    groups = copies_of(store, twins, reveal=True)
    assert sorted(len(group) for group in groups) == [2] * 9 + [3]
    every = {copy.path: copy for group in groups for copy in group}
    assert {"x0.png", "again.tif"} <= every.keys()
    assert every["x0.png"].row == rows[paths.index("x0.png")]
    (case.folder / "store.key").rename(case.folder / "elsewhere.key")
    groups = copies_of(store, twins, reveal=True)
    assert {copy.path for group in groups for copy in group} == {None}


def test_a_twin_under_another_intensity_rule_is_embedded(case: Case) -> None:
    shutil.copy(case.data / "x0.png", case.data / "mr.png")
    summary = run(case.config(data__modality={"mr.png": "MR", "**/*.png": "DX"}))
    assert (summary.embedded, summary.linked) == (1, 0)


def test_links_change_no_bit_of_other_rows(case: Case, tmp_path: Path) -> None:
    """Bert's slice is one of Anna's: in the same part, its batch must be what it would be."""
    alone = Case(Path(shutil.copytree(case.folder, tmp_path / "alone")))
    shutil.rmtree(alone.folder / "store")
    save(
        dicom(volume(3, 40, 44)[2] + 1, PatientID="BERT", SeriesInstanceUID="1.2.3"),
        alone.data / "b",
    )
    extract(alone.config(), HERE)
    here, there = (dict(zip(*_paths(c), strict=True)) for c in (case, alone))
    for path in here.keys() - {"b"}:
        assert np.array_equal(
            case.store.read("cls", [here[path]]), alone.store.read("cls", [there[path]])
        )


# --- withdrawing a patient --------------------------------------------------------------------


def test_a_withdrawn_patient_stays_out(case: Case) -> None:
    anna = find_patient(case.folder / "store", "ANNA").names[0]
    assert withdraw(case.store, anna) == 9
    assert (case.store.status() == WITHDRAWN).sum() == 9
    summary = run(case.config())
    assert (summary.embedded, counts(summary)) == (0, {"same": 5, "of withdrawn patients": 9})
    save(dicom(volume(1, 40, 44)[0] + 9, PatientID="ANNA", SeriesInstanceUID="9"), case.data / "n")
    assert counts(run(case.config())) == {"same": 5, "of withdrawn patients": 10}
    readmit(case.store, anna)
    assert counts(run(case.config())) == {"same": SLICES, "added": 1}


@pytest.mark.parametrize("purged", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_a_withdrawn_picture_stays_out_whatever_it_is_called(
    case: Case, purged: bool, copied: bool
) -> None:
    """Whom a label file names by path alone is known by the bytes once the path is another."""
    (case.folder / "l.csv").write_text("path,who\nx0.png,P0\nx1.png,P1\n")
    labels = {"labels__file": "l.csv", "labels__patient": "who"}
    config = case.config(**labels)
    shutil.copy(case.data / "x0.png", case.data / "before.png")  # in the store under no name
    run(config)
    patient = find_patient(case.folder / "store", "P0", config)
    assert patient.found_by["the bytes of their files, without a name"] == 1
    assert patient.withdraw(case.store) == 2
    if purged:
        assert patient.purge(case.store).rows == 2
    if copied:
        shutil.copy(case.data / "x0.png", case.data / "later.png")
    else:
        (case.data / "x0.png").rename(case.data / "later.png")
    for _ in range(2):
        kept_out = {"of withdrawn patients": 3 if copied else 2}
        assert counts(run(case.config(**labels))) == {"same": SLICES - 1} | kept_out
    # Another's picture of the same bytes is another's.
    shutil.copy(case.data / "later.png", case.data / "x1.png")
    assert (
        counts(run(case.config(**labels)))
        == {
            "same": SLICES - 2,
            "changed": 1,
            "withdrawn": 1,
        }
        | kept_out
    )
    patient.readmit(case.store)
    found = counts(run(case.config(**labels)))
    assert "of withdrawn patients" not in found
    live = np.invert(case.store.slices()["withdrawn"].to_numpy())
    assert live.sum() == SLICES + (2 if copied else 1)


def test_purged_numbers_are_gone_from_every_file(case: Case) -> None:
    store, bert = case.store, find_patient(case.folder / "store", "BERT").names[0]
    row = dict(zip(*_paths(case), strict=True))["b"]
    secrets = {name: store.read(name)[row].tobytes() for name in ("cls", "mean", "file_digest")}
    others = np.delete(store.read("cls"), row, axis=0)
    assert all(_occurs(secret, store.path) for secret in secrets.values())
    withdraw(store, bert)
    assert purge(store, bert) == 1
    # Anna has the same picture: its features are hers too, and stay. What is Bert's alone is gone.
    assert not _occurs(secrets["file_digest"], store.path)
    assert np.isnan(store.read("cls")[row]).all()
    assert not store.read("pixel_digest")[row].any()
    assert np.array_equal(np.delete(store.read("cls"), row, axis=0), others, equal_nan=True)
    assert store.slices().to_pylist()[row]["patient"] is None
    expected = {"same": SLICES - 1, "of withdrawn patients": 1}
    assert counts(run(case.config())) == expected


def test_a_purged_patient_let_in_again_gets_new_rows(case: Case) -> None:
    anna = find_patient(case.folder / "store", "ANNA").names[0]
    withdraw(case.store, anna)
    purge(case.store, anna)
    readmit(case.store, anna)
    summary = run(case.config())
    assert (summary.embedded + summary.linked, summary.found["added"]) == (9, 9)


def test_an_unknown_patient_is_said(case: Case) -> None:
    with pytest.raises(ConfigError, match="is of that patient"):
        find_patient(case.folder / "store", "CARL").names[0]


def _paths(case: Case) -> tuple[list[str], list[int]]:
    """Return the real paths and rows of the live slices."""
    slices = Names(case.store.path).revealed(case.store.slices()).to_pylist()
    live = [row for row in slices if not row["withdrawn"]]
    return [row["path"] for row in live], [row["row"] for row in live]


def _occurs(secret: bytes, root: Path) -> bool:
    return any(secret in path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_a_patient_of_labels_alone_stays_out(case: Case) -> None:
    """Pictures name nobody: the label file does, also of pictures that come later."""
    labels = case.folder / "labels.csv"
    labels.write_text("path,who\nx0.png,LENA\nx1.png,LENA\nlater.png,LENA\n")
    config = case.config(labels__file="labels.csv", labels__patient="who")
    lena = find_patient(config.store, "LENA", config)
    assert lena.found_by == {"labels": 2}
    assert lena.withdraw(case.store) == 2
    assert lena.purge(case.store).rows == 2
    assert counts(run(config)) == {"same": SLICES - 2, "of withdrawn patients": 2}
    shutil.copy(case.data / "x0.png", case.data / "later.png")
    assert counts(run(config)) == {"same": SLICES - 2, "of withdrawn patients": 3}
    # Without the labels, what they have named once stays out by its path.
    assert counts(run(case.config())) == {"same": SLICES - 2, "of withdrawn patients": 3}


def test_a_patient_purged_while_parts_are_embedded_is_gone(case: Case, tmp_path: Path) -> None:
    before = case.store
    paths, rows = _paths(case)
    # Of the third slice Bert has the pixels too, and so the features.
    hers = [row for path, row in zip(paths, rows, strict=True) if path.startswith("ct/")]
    secrets = [before.read("file_digest")[row].tobytes() for row in hers]
    secrets += [before.read("cls")[row].tobytes() for row in hers[:2] + hers[3:]]
    assert all(_occurs(secret, before.path) for secret in secrets)
    again = Case(Path(shutil.copytree(case.folder, tmp_path / "again")))
    shutil.rmtree(again.folder / "store")
    withdrawn = threading.Event()

    def purge_anna() -> None:
        anna = find_patient(again.folder / "store", "ANNA")
        anna.withdraw(again.store)
        withdrawn.set()
        anna.purge(again.store)  # waits for the parts that are being embedded

    other = threading.Thread(target=purge_anna)

    def advance(_: int) -> None:
        if not withdrawn.is_set():
            other.start()
            assert withdrawn.wait(30)

    summary = extract(again.config(), HERE, Progress(advance=advance))
    other.join(60)
    assert not other.is_alive()
    assert summary.embedded == SLICES - len(hers)
    assert not [secret for secret in secrets if _occurs(secret, again.folder / "store")]
    assert verify(again.folder / "store").sound
    expected = {"same": SLICES - len(hers), "of withdrawn patients": len(hers)}
    assert counts(run(again.config())) == expected
