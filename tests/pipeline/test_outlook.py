"""What is said of labels, masks and split before anything is embedded, on folders of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from PIL import Image

from pipeline.annotations.label_causes import _causes_of_paths
from pipeline.config.loading import load_config
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.extraction.plan import plan
from pipeline.extraction.sync import Look
from pipeline.outlook import Outlook, outlook_of
from tests.phantoms import volume, write_png, write_series, write_structures
from tests.pipeline.models import write_tiny_folder

PATIENTS = 30


def look_ahead(config: Path) -> Outlook:
    """Return the outlook that `plan` gives."""
    settings = load_config(config)
    outlooks = []

    def keep(look: Look) -> None:
        slices = look.reconciled.slices
        outlooks.append(outlook_of(settings, slices, look.names, look.withdrawn))

    plan(settings, on_look=keep)
    (outlook,) = outlooks
    return outlook


def make_project(root: Path, rows: list[str], **changes: Any) -> Path:
    """Write two pictures of each patient, labels of some rows, and a config; return its path."""
    rng = np.random.default_rng(0)
    for i in range(2 * PATIENTS):
        picture = rng.integers(0, 255, (28, 28), np.uint8)
        write_png(root / f"data/Doe^{i // 2:02d}/view{i % 2}-{i:02d}.png", picture)
    (root / "labels.csv").write_text("\n".join(["path;who;sick", *rows]) + "\n")
    settings = {
        "data": {"root": "data", "modality": {"**": "DX"}},
        "backbone": {"name": "dinov2_vits14", "image_size": 28, "weights": "random:0"},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "who"},
        "tasks": {"sick": {"labels": ["sick"]}},
    }
    config = root / "my.yaml"
    config.write_text(yaml.safe_dump(settings | changes))
    return config


def path_of(i: int) -> str:
    return f"Doe^{i // 2:02d}/view{i % 2}-{i:02d}.png"


def all_rows() -> list[str]:
    return [f"{path_of(i)};p{i // 2};{i // 2 % 3 // 2}" for i in range(2 * PATIENTS)]


def test_what_joins_is_counted_with_units_patients_and_positives(tmp_path: Path) -> None:
    outlook = look_ahead(make_project(tmp_path, all_rows()))
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.key").exists()
    modalities, *lines = outlook.lines()
    assert modalities == "Slices by modality: 60 DX."
    assert lines[0] == "Labels: 60 of 60 rows of 'labels.csv' join 60 of 60 slices by path."
    assert lines[1] == (
        "Task sick: 60 image units of 30 patients: 40 with '0' (20 patients), 20 with '1' (10 "
        "patients)."
    )
    assert lines[2].startswith("Task sick: test has 4 patients, 2 of them with '1': their score")
    assert lines[2].endswith("`split: {kind: kfold}` tests all 30 in turn.")
    assert len(lines) == 3
    in_turn = make_project(tmp_path, all_rows(), split={"kind": "kfold"})
    assert look_ahead(in_turn).lines()[1:] == lines[:2]


def test_a_path_that_is_none_is_no_fault_of_ours() -> None:
    there = {"", ".", "a/b.png"}
    causes = _causes_of_paths(["", ".", "a/b", "a/b.jpg"], there, Path())
    assert causes["they lack the suffix of a file, .png"] == 1
    assert sum(causes.values()) == 3


@pytest.mark.parametrize(
    ("spelt", "cause"),
    [
        (str.upper, "upper and lower case alone"),
        (lambda path: path.removesuffix(".png"), "they lack the suffix of a file, .png. First"),
        (lambda path: path.replace(".png", ".dcm"), "they end in .dcm, and the files in .png. "),
        (lambda path: f"images/{path}", "in another folder: paths are relative to data.root"),
        (lambda path: f"x{path}x", "no image of the collection has that path, nor one like it"),
        (lambda path: "", "their key is empty"),
    ],
)
def test_rows_that_join_nothing_have_their_likeliest_cause(
    tmp_path: Path, spelt: Any, cause: str
) -> None:
    rows = all_rows()
    for i in range(4):
        rows[i] = f"{spelt(path_of(i))};p{i // 2};0"
    outlook = look_ahead(make_project(tmp_path, rows))
    _, *lines = outlook.lines()
    assert lines[0] == "Labels: 56 of 60 rows of 'labels.csv' join 56 of 60 slices by path."
    assert lines[1].startswith("4 rows join no slice: ")
    assert cause in lines[1]
    assert lines[1].endswith("First: data row 1, data row 2, data row 3.")
    assert lines[2] == "4 slices have no row in the labels."
    # The store has no key yet by which a name could be hidden for good.
    assert "Doe" not in json.dumps([lines, outlook.labels.slice_examples])  # type: ignore[union-attr]


def test_rows_that_repeat_one_are_told_wherever_rows_are_counted(tmp_path: Path) -> None:
    twice = [f"images/{row}" for row in [*all_rows()[:50], *all_rows()[:10]]]
    labels, cause, *_ = look_ahead(make_project(tmp_path, twice)).lines()[1:]
    assert labels == (
        "Labels: 0 of 50 rows of 'labels.csv', and 10 that repeat one of them, join 0 of 60 slices "
        "by path."
    )
    assert "without the prefix 'images/' 50 of 50 rows would join. " in cause


@pytest.mark.parametrize(
    ("folder", "root", "remedy"),
    [
        ("data/", "data", "Set data.root to the folder above, in which column 'path' begins, and"),
        ("images/", "data", "Take it away from each path in column 'path': no key of the config"),
        ("", ".", "Set data.root to the folder that column 'path' begins in and extract again"),
    ],
)
def test_a_prefix_comes_with_what_helps_and_once_for_all_tasks(
    tmp_path: Path, folder: str, root: str, remedy: str
) -> None:
    rows = [folder + row for row in all_rows()]
    data = {"root": root, "modality": {"**": "DX"}}
    tasks = {"sick": {"labels": ["sick"]}, "who": {"labels": ["who"], "positive": "p1"}}
    outlook = look_ahead(make_project(tmp_path, rows, data=data, tasks=tasks))
    refused = [line for line in outlook.lines() if "cannot be answered" in line]
    assert len(refused) == 1
    assert refused[0].startswith("Tasks sick, who cannot be answered: No row of ")
    assert " ".join(outlook.lines()).count(remedy) == 1
    assert not outlook.answerable


def test_a_file_that_is_no_image_or_left_out_is_the_cause(tmp_path: Path) -> None:
    rows = [*all_rows(), "notes.txt;p1;0"]
    config = make_project(tmp_path, rows)
    (tmp_path / "data/notes.txt").write_text("text")
    assert "on the disk, but no image was read there" in look_ahead(config).lines()[2]


def test_paths_are_shown_where_the_store_keeps_them(tmp_path: Path) -> None:
    rows = [f"{path_of(i)};p{i // 2};0" for i in range(4, 60)] + ["gone.png;p1;1"]
    data = {"root": "data", "modality": {"**": "DX"}, "paths": "keep"}
    _, *lines = look_ahead(make_project(tmp_path, rows, data=data)).lines()
    assert lines[1].endswith("First: data row 57 (gone.png).")
    assert lines[2].endswith(f"First: {path_of(0)}, {path_of(1)}, {path_of(2)}.")


def test_ids_of_another_kind_are_named(tmp_path: Path) -> None:
    labels = {"file": "labels.csv", "key": "path", "by": "study"}
    data = {"root": "data", "modality": {"**": "DX"}, "patient": r"Doe\^(\d+)"}
    rows = [f"{i:02d};p{i};{i % 2}" for i in range(PATIENTS)]
    _, *lines = look_ahead(make_project(tmp_path, rows, labels=labels, data=data)).lines()
    assert lines[1].startswith(
        "30 rows join no slice: likeliest (as for 30 of 30), they are ids of another kind: set "
        "`by: patient` in labels."
    )
    assert lines[-1].startswith("Task sick cannot be answered: No row of ")


def test_a_task_that_cannot_be_answered_leaves_the_others(tmp_path: Path) -> None:
    tasks = {
        "sick": {"labels": ["sick"]},
        "typo": {"labels": ["sik"]},
        "who": {"labels": ["who"], "values": "number"},
    }
    split = {"kind": "holdout", "folds": 4}
    lines = look_ahead(make_project(tmp_path, all_rows(), tasks=tasks, split=split)).lines()
    refused = [line for line in lines if "cannot be answered" in line]
    assert "no column 'sik'. Did you mean 'sick'?" in refused[0]
    assert refused[1].startswith("Task who cannot be answered: A column of values: number must")
    assert any(line.startswith("Task sick: 60 image units") for line in lines)


def test_labels_that_cannot_be_read_are_said_and_stop_nothing(tmp_path: Path) -> None:
    config = make_project(tmp_path, ["a;b"])
    _, line = look_ahead(config).lines()
    assert line.endswith("line 2: Expected 3 columns, got 2. Correct that row, or put cells with "
                         "semicolons into quotes.")  # fmt: skip


def test_masks_that_are_not_there_are_named_and_tokens_that_are_not_kept(tmp_path: Path) -> None:
    masks = {"lung": {"root": "masks", "files": {"**": "{stem}.png"}, "values": "lung"}}
    config = make_project(tmp_path, all_rows(), masks=masks, segment={"knn": {"method": "knn"}})
    for i in range(50):
        path = tmp_path / "masks" / Path(path_of(i)).name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
    lines = look_ahead(config).lines()
    assert lines[-5:] == [
        "Masks lung: 50 of 60 slices have a mask.",
        "Masks lung: 10 files are not there.",
        "Masks lung: 50 of 50 masks looked at, values and sizes fit.",
        "Masks lung: none looked at shows 'lung'.",
        "Segmentation heads read patch tokens, which are not kept: write `outputs: {keep: [cls, "
        "mean, patch]}`, or nothing can be segmented.",
    ]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (
            {"keep": ["cls", "patch"]},
            "Nothing is answered by probe, of cls+mean, which is not kept: write `outputs: {keep: "
            "[cls, patch, mean]}`, or e.g. `probe: {features: cls}`.",
        ),
        ({"keep": ["cls", "mean", "patch"]}, None),
    ],
)
def test_features_that_heads_read_and_that_are_not_kept_are_named(
    tmp_path: Path, outputs: dict[str, Any], says: str | None
) -> None:
    lines = look_ahead(make_project(tmp_path, all_rows(), outputs=outputs)).lines()
    assert [line for line in lines if "not kept" in line] == ([says] if says else [])


def with_masks(root: Path, masks: dict[str, Any]) -> Outlook:
    """Return the outlook of a config that segments and asks nothing else."""
    config = make_project(root, all_rows(), segment={"knn": {"method": "knn"}}, masks=masks)
    settings = yaml.safe_load(config.read_text())
    del settings["tasks"]
    config.write_text(yaml.safe_dump(settings | {"outputs": {"keep": ["cls", "patch"]}}))
    return look_ahead(config)


def test_masks_are_looked_into_for_values_and_sizes(tmp_path: Path) -> None:
    masks = {"lung": {"root": "masks", "files": {"**": "{stem}.png"}, "values": {1: "lung"}}}
    (tmp_path / "masks").mkdir()
    for i in range(60):
        pixels = np.zeros((28, 28) if i < 55 else (20, 28), np.uint8)
        pixels[5:9] = 255
        Image.fromarray(pixels).save(tmp_path / "masks" / Path(path_of(i)).name)
    outlook = with_masks(tmp_path, masks)
    assert outlook.lines()[-2:] == [
        "Masks lung: 60 of 60 slices have a mask.",
        "Masks lung: 50 of 60 masks looked at, 50 cannot be used: it holds the value 255, which "
        "`values` does not name: it names 1 (46); it is 20 x 28 pixels, its image 28 x 28: save it "
        "at the size of its image (4).",
    ]
    assert not outlook.answerable
    masks["lung"]["values"] = {255: "lung", 2: "heart"}
    outlook = with_masks(tmp_path, masks)
    assert outlook.lines()[-1] == "Masks lung: none looked at shows 'heart'."
    assert outlook.answerable


def test_masks_that_name_their_images_are_joined_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "data/p1", volume())
    square = np.array([[4, 4], [12, 4], [12, 12], [4, 12]], float)
    write_structures(tmp_path / "rt/p1.dcm", files, {"GTV": {0: [square]}, "BODY": {0: [square]}})
    config = tmp_path / "my.yaml"

    def lines_of(**masks: Any) -> list[str]:
        settings = {
            "data": {"root": "data"},
            "backbone": {"name": "dinov2_vits14", "image_size": 28, "weights": "random:0"},
            "outputs": {"keep": ["cls", "patch"]},
            "store": "store",
            "masks": {"tumour": {"by": "uid", "root": "rt", **masks}},
            "segment": {"knn": {"method": "knn"}},
        }
        config.write_text(yaml.safe_dump(settings))
        return look_ahead(config).lines()[1:]

    joined = f"Masks tumour: {len(files)} of {len(files)} slices have a mask."
    assert lines_of(values={"GTV": "tumour"}) == [
        joined,
        "Masks tumour: 1 of 1 mask looked at, values and sizes fit.",
    ]
    assert lines_of(values={"GTV-1": "tumour"}) == [
        joined,
        "Masks tumour: 1 of 1 mask looked at, 1 cannot be used: it has 2 structures "
        "('GTV', 'BODY'), and none of 'GTV-1' (1).",
    ]
    (refused,) = lines_of(values="tumour", root="data")
    assert "no DICOM segmentation or structure set" in refused
    monkeypatch.setattr("pipeline.annotations.mask_matching._OPENED_AHEAD", 0)
    assert lines_of(values="tumour") == [
        "Masks tumour: 1 files, too many to be opened now, say themselves which images they are of."
    ]


def test_patterns_of_masks_that_find_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for i in range(60):
        name = f"{Path(path_of(i)).stem}.nii.gz"
        (tmp_path / "masks" / name).touch()
    masks = {
        "suffix": {"root": "masks", "files": {"**": "{stem}.png"}, "values": "lung"},
        "wild": {"root": "masks", "files": {"**": "*/{stem}*"}, "values": "lung"},
        "idle": {"root": "masks", "files": {"cxr/*": "{stem}.png"}, "values": "lung"},
        "nowhere": {"root": "msks", "files": {"**": "{stem}.png"}, "values": "lung"},
    }
    outlook = with_masks(tmp_path, masks)
    folder = repr(str(tmp_path / "masks"))
    assert sorted(outlook.lines()[-4:]) == [
        "Masks idle cannot be used: masks.files: 'cxr/*' matches no image of 60. Correct files, or "
        f"root, {folder}.",
        f"Masks nowhere cannot be used: there is no folder {str(tmp_path / 'msks')!r}. Correct its "
        "root.",
        "Masks suffix cannot be used: masks.files: '{stem}.png' is there for none of 60 images of "
        "'**' (there are files of that name in .nii.gz). Correct files, or root, "
        f"{folder}.",
        "Masks wild cannot be used: masks.files: '*/{stem}*' is there for none of 60 images of "
        f"'**'. Correct files, or root, {folder}.",
    ]
    assert not outlook.answerable


def test_extract_says_it_first_and_evaluation_comes_to_the_same(tmp_path: Path) -> None:
    rows = [*all_rows()[:50], "gone.png;p1;1"]
    network = write_tiny_folder(tmp_path / "tiny")
    backbone = {"name": f"hf:{network}", "image_size": 28}
    config = load_config(make_project(tmp_path, rows, backbone=backbone, knn={"k": [1]}))
    told: list[Outlook] = []

    def ahead(outlook: Outlook) -> None:
        # Nothing is embedded yet.
        assert not list((tmp_path / "store/parts").glob("*"))
        told.append(outlook)

    extract(config, Speed("cpu", workers=0), ahead=ahead)
    (outlook,) = told
    _, *lines = outlook.lines()
    assert lines[1].startswith("1 row joins no slice: no image of the collection has that path")
    # By rows, of the table and of the store, whose key is there.
    assert lines[1].endswith("First: data row 51.")
    assert lines[2].endswith("slices have no row in the labels. First: row 50, row 51, row 52.")
    assert "Doe" not in "".join(lines)
    (task,) = outlook.tasks
    (answer,) = evaluate(config, ["knn"])
    test = answer.counts["test"]
    assert (task.test_patients, task.units) == (test.patients, 50)
    assert outlook.labels is not None
    assert outlook.labels.slices - outlook.labels.joined_slices == answer.tally.unmatched_slices
    # The split is on file by now, and does not know a new patient.
    more = [*rows, *all_rows()[50:]]
    (tmp_path / "labels.csv").write_text("\n".join(["path;who;sick", *more]) + "\n")
    extract(config, Speed("cpu", workers=0), ahead=ahead_of(told))
    assert "5 of the task's 30 patients are not in its split" in told[-1].tasks[0].refused


def ahead_of(told: list[Outlook]) -> Any:
    return told.append


def test_slices_are_told_by_modality_and_those_that_name_none(tmp_path: Path) -> None:
    config = make_project(tmp_path, all_rows(), data={"root": "data"})
    sitk.WriteImage(sitk.GetImageFromArray(volume(4)), tmp_path / "data/ct.mha")
    write_series(tmp_path / "data/series", volume(5))
    lines = look_ahead(config).lines()
    assert lines[0] == "Slices by modality: 64 OT, 5 CT."
    (note,) = [line for line in lines if "no modality" in line]
    assert note.startswith("64 slices of 61 files name no modality and are scaled as `other`")
    assert '`data.modality: {"**/*.png": DX, "**/*.mha": CT}`' in note
    # What the config names, be it OT, is no question any more; DICOM names its own.
    named = {"root": "data", "modality": {"**/*.png": "OT", "**/*.mha": "CT"}}
    lines = look_ahead(make_project(tmp_path, all_rows(), data=named)).lines()
    assert lines[0] == "Slices by modality: 60 OT, 9 CT."
    assert not [line for line in lines if "no modality" in line]
