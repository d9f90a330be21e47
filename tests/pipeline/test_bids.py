"""Folders of BIDS: what their names and tables say, without a word of it in the config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline.annotations.bids_table import read_bids_table
from pipeline.annotations.label_file import read_labels
from pipeline.annotations.mask_paths import bids_masks
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.evaluate import evaluate
from pipeline.extract import Summary, extract
from pipeline.extraction.embed import Speed
from pipeline.extraction.same_store import check_store
from pipeline.outlook import outlook_of
from pipeline.segment import segment
from pipeline.shared.bids import parse_bids
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.errors import ConfigError, LabelError
from tests.pipeline.models import write_tiny_folder

SUBJECTS = [f"sub-{i:02d}" for i in range(1, 9)]
DEPTH = 2
# What a config over such a folder has, in lines of YAML.
CONFIG = """
data: {root: site_a}
backbone: {name: "hf:tiny", image_size: 28}
outputs: {keep: [cls, patch]}
store: store
masks:
  lesion: {by: bids, values: lesion}
segment:
  knn: {method: knn, k: [1]}
"""


def write_volume(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), path)


def write_bids(root: Path, seed: int) -> None:
    """Write subjects with a T1w and a FLAIR of two sessions, masks of the T1w, and tables."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    (root / "README").write_text("A test.")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
    rows = ["participant_id\tage\tgroup"]
    for i, subject in enumerate(SUBJECTS):
        rows.append(f"{subject}\t{50 + i}\t{'patient' if i % 2 else 'control'}")
        sessions = ["session_id\tscore"]
        for session in ("ses-1", "ses-2"):
            sessions.append(f"{session}\t{'n/a' if session == 'ses-2' else i}")
            mask = np.zeros((28, 28, DEPTH), np.int16)
            y, x = rng.integers(0, 14, 2)
            mask[y : y + 14, x : x + 14] = 1
            beginning = f"{subject}/{session}/anat/{subject}_{session}"
            for suffix in ("T1w", "FLAIR"):
                voxels = 400 * mask + rng.integers(0, 100, mask.shape)
                write_volume(root / f"{beginning}_{suffix}.nii.gz", voxels)
            name = f"{beginning}_space-T1w_desc-lesion_mask.nii.gz"
            write_volume(root / "derivatives/manual" / name, mask)
        (root / subject / f"{subject}_sessions.tsv").write_text("\n".join(sessions) + "\n")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sites of the same subjects, a config, and a store of the first."""
    root = tmp_path_factory.mktemp("bids")
    for seed, site in enumerate(("site_a", "site_b")):
        write_bids(root / site, seed)
    write_tiny_folder(root / "tiny")
    extract(config_of(root), Speed("cpu", workers=0))
    return root


def config_of(root: Path, **changes: Any) -> Config:
    settings = yaml.safe_load(CONFIG) | {"backbone": {"name": f"hf:{root / 'tiny'}"}} | changes
    settings["backbone"]["image_size"] = 28
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_config(path)


def embed(config: Config) -> Summary:
    return extract(config, Speed("cpu", workers=0))


def test_subjects_are_patients_and_derivatives_no_images(project: Path) -> None:
    config = config_of(project)
    store = FeatureStore.open(config.store)
    names = Names(store.path)
    slices = names.revealed(store.slices())
    assert len(slices) == len(SUBJECTS) * 2 * 2 * DEPTH
    assert set(slices["modality"].to_pylist()) == {"MR"}
    assert set(slices["patient"].to_pylist()) == {names.pseudonym("patient", s) for s in SUBJECTS}
    studies = {f"{subject}/ses-{i}" for subject in SUBJECTS for i in (1, 2)}
    assert set(slices["study"].to_pylist()) == {names.pseudonym("study", s) for s in studies}
    assert not any("derivatives" in path for path in slices["path"].to_pylist())
    assert not any("sub-" in path for path in store.slices()["path"].to_pylist())
    # Tables and texts are no files that could not be read.
    assert not any(store.files(["reason"])["reason"].to_pylist())
    assert not embed(config).notes  # of what was filled in, nothing is missed


def test_from_a_folder_with_derivatives_to_dice_and_a_second_site(project: Path) -> None:
    assert len(CONFIG.strip().splitlines()) <= 12
    (answer,) = segment(config_of(project))
    # The masks say that they are of the T1w.
    assert sum(counts.units for counts in answer.counts.values()) == len(SUBJECTS) * 2
    assert answer.level == "volume"
    shutil.copytree(project / "store", project / "two")
    shutil.copy(project / "store.key", project / "two.key")
    two = {"data": {"root": {"site_a": "site_a", "site_b": "site_b"}}, "store": "two"}
    two |= {"split": {"seed": 1}}  # dealt anew: patients have a site's name before their own
    config = config_of(project, **two)
    # Those of the first site are known by their pixels.
    assert embed(config).embedded == len(SUBJECTS) * 2 * 2 * DEPTH
    assert embed(config).embedded == 0
    (answer,) = segment(config)
    assert sum(counts.patients for counts in answer.counts.values()) == 2 * len(SUBJECTS)


def test_the_folders_own_tables_are_labels(project: Path) -> None:
    tasks = {
        "group": {"labels": ["group"], "level": "patient", "subgroups": ["bids.session"]},
        "score": {"labels": ["score"], "values": "number", "level": "series"},
        "contrast": {"labels": ["bids.suffix"], "level": "series", "positive": "FLAIR"},
    }
    config = config_of(project, tasks=tasks, knn={"k": [1]})
    answers = {answer.task: answer for answer in evaluate(config, ["knn"])}
    group, score, contrast = (answers[name] for name in tasks)
    assert group.tally.unmatched_labels == group.tally.unmatched_slices == 0
    assert contrast.classes == ("T1w", "FLAIR")
    # What n/a stands for has no score.
    assert score.tally.unlabelled_units == 2 * len(SUBJECTS)
    assert not set(group.scores[0].subgroups) - {"bids.session=1", "bids.session=2"}


def test_a_second_site_divides_and_images_left_out_are_no_labels_lost(project: Path) -> None:
    config = config_of(
        project,
        data={"root": {"a": "site_a", "b": "site_b"}, "include": ["**/*_T1w.nii.gz"]},
        store="t1w",
        outputs={"keep": ["cls"]},
        split={"kind": "site", "column": "data.root", "folds": 3},
        tasks={"group": {"labels": ["group"], "level": "patient"}},
    )
    embed(config)
    store = FeatureStore.open(config.store)
    names = Names(store.path)
    outlook = outlook_of(config, names.revealed(store.slices()), names)
    assert outlook.labels is not None
    assert outlook.labels.rows == outlook.labels.joined_rows == 2 * len(SUBJECTS) * 2
    assert outlook.labels.file == "BIDS tables"


def test_a_store_is_asked_where_its_folder_is_not(project: Path, tmp_path: Path) -> None:
    for name in ("store", "store.key", "tiny"):
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, tmp_path / name)
    config = config_of(tmp_path)
    assert config.data.patient is None
    check_store(config)


def test_a_folder_that_is_none_of_bids_is_as_it_was(project: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "site_a/sub-01/scan.nii.gz", np.zeros((28, 28, 2)))
    shutil.copytree(project / "tiny", tmp_path / "tiny")
    config = config_of(tmp_path)
    assert config.data == config.data.model_copy(
        update={"patient": None, "exclude": (), "modality": {}}
    )
    assert config.labels is None


def test_what_the_config_says_stands(project: Path) -> None:
    data = {
        "root": "site_a",
        "patient": r"sub-(\d+)",
        "modality": {"**/anat/*": "CT"},
        "include": ["derivatives/**"],
    }
    labels = {"file": "site_a/participants.tsv", "key": "participant_id", "by": "patient"}
    config = config_of(project, data=data, labels=labels)
    assert config.data.patient == r"sub-(\d+)"
    assert next(iter(config.data.modality)) == "**/anat/*"
    assert "**/derivatives/**" not in config.data.exclude
    assert config.labels is not None
    assert config.labels.file == project / "site_a/participants.tsv"
    # A subject is joined by the table's own ids, where the patient is the subject.
    assert set(read_labels(config.labels, []).columns["participant_id"]) == set(SUBJECTS)


# --- names ---------------------------------------------------------------------------------


def test_entities_of_a_name() -> None:
    path = "a/sub-01/ses-x/anat/sub-01_ses-x_acq-hi_run-2_T1w.nii.gz"
    name = parse_bids(path)
    assert name is not None
    assert (name.dataset, name.subject, name.session) == ("a", "sub-01", "ses-x")
    assert name.entities == {"ses": "x", "acq": "hi", "run": "2"}
    assert (name.suffix, name.extension, name.folder) == ("T1w", ".nii.gz", "a/sub-01")
    assert [name.value(n) for n in ("session", "acquisition", "run", "suffix", "echo")] == [
        "x",
        "hi",
        "2",
        "T1w",
        "",
    ]
    folder = parse_bids("sub-01/ses-x")
    assert folder is not None
    assert folder.value("session") == "x"
    assert parse_bids("images/01.png") is None
    other = parse_bids("sub-01/anat/scan.nii")
    assert other is not None
    assert other.suffix == ""


def write_names(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


IMAGES = [
    "sub-1/ses-1/anat/sub-1_ses-1_run-1_T1w.nii.gz",
    "sub-1/ses-1/anat/sub-1_ses-1_run-2_T1w.nii.gz",
    "sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii.gz",
    "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz",
    "sub-2/anat/sub-2_T1w.nii.gz",
]
M = "derivatives/m"


@pytest.mark.parametrize(
    ("masks", "of"),
    [
        # of one run, of one contrast, of a session alone
        ([f"{M}/sub-1/ses-1/anat/sub-1_ses-1_run-2_label-L_dseg.nii.gz"], [1]),
        ([f"{M}/sub-1/ses-1/anat/sub-1_ses-1_space-FLAIR_mask.nii"], [2]),
        ([f"{M}/sub-1/ses-1/anat/sub-1_ses-1_T1w_desc-x_mask.nii"], [0, 1]),
        ([f"{M}/sub-1/ses-2/sub-1_ses-2_mask.nii"], [3]),
        # no session is not any session, and no probabilities are a mask
        ([f"{M}/sub-1/sub-1_mask.nii", f"{M}/sub-2/sub-2_probseg.nii"], []),
        # another acquisition is another image
        ([f"{M}/sub-2/anat/sub-2_acq-hi_mask.nii.gz"], []),
        # beside the image, as some public sets have it
        (["sub-2/anat/sub-2_space-orig_mask.nii.gz", "sub-2/anat/sub-2_mask.json"], [4]),
    ],
)
def test_masks_are_found_by_entities(tmp_path: Path, masks: list[str], of: list[int]) -> None:
    write_names(tmp_path, *IMAGES, *masks)
    settings = Masks(by="bids", values="x")
    found = bids_masks(settings, tmp_path, IMAGES)
    assert [i for i, sources in enumerate(found) if sources] == of
    assert all(sources in ((), (masks[0],)) for sources in found)


def test_the_nearest_of_several_masks_counts_and_two_as_near_are_refused(tmp_path: Path) -> None:
    near = f"{M}/sub-1/ses-1/anat/sub-1_ses-1_run-1_desc-a_mask.nii"
    far = f"{M}/sub-1/ses-1/anat/sub-1_ses-1_desc-a_mask.nii"
    other = f"{M}/sub-1/ses-1/anat/sub-1_ses-1_desc-b_mask.nii"
    mni = f"{M}/sub-1/ses-1/anat/sub-1_ses-1_run-1_space-MNI_desc-a_mask.nii"
    write_names(tmp_path, *IMAGES, near, far, mni)
    found = bids_masks(Masks(by="bids", values="x"), tmp_path, IMAGES)
    assert found[:3] == [(near,), (far,), (far,)]
    write_names(tmp_path, other)
    with pytest.raises(ConfigError, match=r"2 masks .*: desc-a_mask.nii, desc-b_mask.nii\. Say"):
        bids_masks(Masks(by="bids", values="x"), tmp_path, IMAGES)
    files: dict[str, str | tuple[str, ...]] = {"**": "*_desc-b_mask.*"}
    found = bids_masks(Masks(by="bids", values="x", files=files), tmp_path, IMAGES)
    assert found[:3] == [(other,)] * 3
    apart = Masks(by="bids", values=("a", "b"), files={"**": ("*_desc-a_*", f"{M}/**/*-b_*")})
    assert bids_masks(apart, tmp_path, IMAGES)[0] == (near, other)


# --- tables --------------------------------------------------------------------------------


def test_what_is_said_nearest_to_the_image_counts(tmp_path: Path) -> None:
    write_names(tmp_path, *IMAGES)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tSex\n1\t40\tF\nsub-9\t1\tM\n")
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-1\t41\nses-2\tn/a\n")
    scans = "filename\tage\nanat/sub-1_ses-1_run-2_T1w.nii.gz\t42\n"
    (tmp_path / "sub-1/ses-1/sub-1_ses-1_scans.tsv").write_text(scans)
    table = read_bids_table(tmp_path, ["path", "age", "sex"])
    paths, ages, sexes = table.columns.values()
    said = {path: (age, sex) for path, age, sex in zip(paths, ages, sexes, strict=True)}
    assert [said[path] for path in IMAGES] == [
        ("41", "F"),
        ("42", "F"),
        ("41", "F"),
        ("40", "F"),
        ("", ""),
    ]
    assert table.notes == (
        "participants.tsv: 1 subject has no image",
        "participants.tsv: 1 subject has no row there",
    )


def test_a_measure_of_phenotype_is_a_label(tmp_path: Path) -> None:
    write_names(tmp_path, *IMAGES, "phenotype/moca.tsv", "phenotype/panss.tsv")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t40\n")
    of_tools = {
        "moca": ["participant_id session_id score age", "sub-1 ses-1 28 1", "sub-1 n/a 20 1"],
        "panss": ["participant_id score Total", "sub-1 7 70"],
    }
    for tool, lines in of_tools.items():
        text = "\n".join(lines).replace(" ", "\t")
        (tmp_path / f"phenotype/{tool}.tsv").write_text(f"{text}\n")
    names = ["moca.score", "panss.score", "total", "age"]
    columns = read_bids_table(tmp_path, ["path", *names]).columns
    rows = zip(*(columns[name] for name in names), strict=True)
    said = dict(zip(columns["path"], rows, strict=True))
    # What is of a session goes before what is of none; a participant's own age before a measure's.
    assert said[IMAGES[0]] == ("28", "7", "70", "40")
    assert said[IMAGES[3]] == ("20", "7", "70", "40")
    with pytest.raises(LabelError, match="'score' stands in several.*moca.score.*panss.score"):
        read_bids_table(tmp_path, ["path", "score"])
    with pytest.raises(LabelError, match="Did you mean 'moca.score'"):
        read_bids_table(tmp_path, ["path", "moca.scoer"])


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("agee", "has no column 'agee' in participants.tsv.*Did you mean 'age'"),
        ("bids.sesion", "Did you mean 'bids.session'"),
        ("bids.subject", "A subject is a patient"),
    ],
)
def test_a_column_that_is_not_there(project: Path, column: str, why: str) -> None:
    config = config_of(project)
    assert config.labels is not None
    with pytest.raises(LabelError, match=why):
        read_labels(config.labels, [], [column])


def test_a_subject_of_two_rows_is_refused_without_a_name(tmp_path: Path) -> None:
    write_names(tmp_path, *IMAGES)
    rows = "participant_id\tage\nsub-1\t40\nsub-1\t41\n"
    (tmp_path / "participants.tsv").write_text(rows)
    with pytest.raises(LabelError, match="two rows of one participant_id") as refused:
        read_bids_table(tmp_path, ["path", "age"])
    assert "sub-1" not in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelError, match="is a folder, and none of BIDS"):
        read_bids_table(tmp_path / "empty", ["path"])


def test_entities_of_rows_that_name_no_paths(project: Path) -> None:
    labels = {"file": "site_a/participants.tsv", "key": "participant_id", "by": "patient"}
    config = config_of(project, labels=labels)
    assert config.labels is not None
    with pytest.raises(LabelError, match="are joined by patient"):
        read_labels(config.labels, [], ["bids.session"])
