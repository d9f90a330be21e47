"""Folders of real files to tables: order, volumes, oddities, what is set aside, what is reused."""

from __future__ import annotations

import bz2
import gzip
import itertools
import os
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from pipeline.config.data import Data
from pipeline.extraction import discover as module
from pipeline.extraction.discover import Discovery, discover
from pipeline.extraction.selection import left_out_folders, set_aside
from pipeline.io.decode import read_headers
from pipeline.shared.pseudonyms import load_key, pseudonym
from stores import ArraySpec, FeatureStore
from stores.errors import ConfigError
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA
from tests import phantoms

KEY = b"k" * 32
SERIES = "1.2.826.0.1.3680043.8.498.2222"
REAL = os.environ.get("RADPROBE_REAL_DATA")
DOT = np.eye(4, dtype=np.uint8)
needs_real_data = pytest.mark.skipif(REAL is None, reason="RADPROBE_REAL_DATA is not set")


def look(root: Path, known: Discovery | None = None, **data) -> Discovery:
    return discover(Data(root=root, **data), KEY, known=known, workers=0)


def flags(found: Discovery) -> set[str]:
    return {flag for flags in found.slices["flags"].to_pylist() for flag in flags}


def reasons(found: Discovery) -> dict[str, str | None]:
    return dict(
        zip(found.files["path"].to_pylist(), found.files["reason"].to_pylist(), strict=True)
    )


# --- series and volumes --------------------------------------------------------------------------


def test_series_is_ordered_by_position_and_not_by_name(tmp_path):
    voxels = phantoms.volume(9)
    files = phantoms.write_series(tmp_path, voxels)
    found = look(tmp_path)
    assert found.slices.schema == SLICE_SCHEMA
    assert found.files.schema == FILE_SCHEMA
    assert found.slices["path"].to_pylist() == [path.name for path in files]
    assert found.slices["path"].to_pylist() != sorted(path.name for path in files)
    np.testing.assert_allclose(found.slices["position_mm"].to_numpy(), 100 + 2.5 * np.arange(9))
    assert set(found.slices["series"].to_pylist()) == {pseudonym(KEY, "series", SERIES)}
    assert flags(found) == set()
    assert found.slices["row"].null_count == 9


def test_files_stand_folder_by_folder_however_many_and_series_by_their_first_file(tmp_path):
    for k in range(40):
        phantoms.save(phantoms.dicom(DOT, SeriesInstanceUID=f"1.{k % 3}"), tmp_path / f"a/{k:02}/x")
    for uid, name in (("2", "a-b/x"), ("3", "a/00/y"), ("4", "a.dcm")):
        phantoms.save(phantoms.dicom(DOT, SeriesInstanceUID=uid), tmp_path / name)
    found = look(tmp_path)
    many = [f"a/{k:02}/x" for k in range(40)]
    assert found.files["path"].to_pylist() == [many[0], "a/00/y", *many[1:], "a-b/x", "a.dcm"]
    series = [name for name, _ in itertools.groupby(found.slices["series"].to_pylist())]
    raw = ("1.0", "3", "1.1", "1.2", "2", "4")
    assert series == [pseudonym(KEY, "series", uid) for uid in raw]


def test_time_points_become_volumes(tmp_path):
    voxels = phantoms.volume(4)
    for t in range(3):
        phantoms.write_series(tmp_path / f"t{t}", voxels, AcquisitionNumber=t + 1)
    found = look(tmp_path)
    counts = Counter(found.slices["series"].to_pylist())
    base = pseudonym(KEY, "series", SERIES)
    assert counts == {base: 4, f"{base}.2": 4, f"{base}.3": 4}
    # Each volume is of one time point, and one contiguous range.
    folders = [path.split("/")[0] for path in found.slices["path"].to_pylist()]
    assert folders == ["t0"] * 4 + ["t1"] * 4 + ["t2"] * 4
    assert flags(found) == set()


def test_orientations_and_shapes_of_one_series_are_told_apart(tmp_path):
    phantoms.write_series(tmp_path / "a", phantoms.volume(3))
    phantoms.write_series(tmp_path / "b", phantoms.volume(3), orientation=(1, 0, 0, 0, 0, -1))
    phantoms.write_series(tmp_path / "c", phantoms.volume(3, 10, 12))
    found = look(tmp_path)
    assert sorted(Counter(found.slices["series"].to_pylist()).values()) == [3, 3, 3]


def test_missing_duplicate_and_uneven_positions_are_flagged(tmp_path):
    def write(name: str, heights: list[float]) -> Discovery:
        places = [(0.0, 0.0, z) for z in heights]
        phantoms.write_series(tmp_path / name, phantoms.volume(len(heights)), positions=places)
        return look(tmp_path / name)

    assert flags(write("even", [0, 2, 4, 6, 8])) == set()
    assert flags(write("gap", [0, 2, 4, 8, 10])) == {"missing-position"}
    assert flags(write("uneven", [0, 2, 4, 5, 8.3])) == {"variable-spacing"}
    twice = write("twice", [0, 2, 4, 4, 6])
    assert flags(twice) == {"duplicate-position"}
    assert len(set(twice.slices["series"].to_pylist())) == 1


def test_aborted_last_time_point_is_a_volume_with_missing_positions_told_by_its_size(tmp_path):
    voxels = phantoms.volume(6)
    phantoms.write_series(tmp_path / "t0", voxels, AcquisitionNumber=1)
    last = phantoms.write_series(tmp_path / "t1", voxels, AcquisitionNumber=2)
    for path in last[4:]:
        path.unlink()
    counts = Counter(look(tmp_path).slices["series"].to_pylist())
    assert sorted(counts.values()) == [4, 6]


def test_gantry_tilt_is_found_in_the_positions(tmp_path):
    places = [(0.0, 0.3 * k, 2.0 * k) for k in range(5)]
    phantoms.write_series(tmp_path, phantoms.volume(5), positions=places)
    assert flags(look(tmp_path)) == {"gantry-tilt"}


def test_localizers_are_recognised_and_kept_apart(tmp_path):
    phantoms.write_series(
        tmp_path / "ct", phantoms.volume(3), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]
    )
    phantoms.write_series(
        tmp_path / "loc", phantoms.volume(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    found = look(tmp_path).slices.to_pylist()
    assert [row["flags"] for row in found] == [[], [], [], ["localizer"]]
    assert found[0]["series"] != found[3]["series"]


def test_enhanced_times_become_volumes(tmp_path):
    phantoms.write_enhanced(tmp_path / "e", phantoms.volume(6), [1.0] * 6, times=2)
    rows = look(tmp_path).slices.to_pylist()
    assert [row["frame"] for row in rows] == [2, 1, 0, 5, 4, 3]
    assert len({row["series"] for row in rows}) == 2


def test_frames_that_only_their_dimensions_tell_apart_become_volumes(tmp_path):
    path = phantoms.write_enhanced(tmp_path / "e", phantoms.volume(6), [1.0] * 6, times=2)
    ds = pydicom.dcmread(path)
    pointers = (0x00209056, 0x00209057, 0x20050010)  # stack, place in it, and one of the maker's
    ds.DimensionIndexSequence = [phantoms._item(DimensionIndexPointer=tag) for tag in pointers]
    # In no order in which they could have been taken.
    frames = [(time, place) for place in (0, 2, 1) for time in (1, 0)]
    groups = ds.PerFrameFunctionalGroupsSequence
    ds.PerFrameFunctionalGroupsSequence = [groups[3 * time + place] for time, place in frames]
    for group, (time, place) in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        content = group.FrameContentSequence[0]
        del content.TemporalPositionIndex
        content.DimensionIndexValues = [1, place + 1, time + 1]
    ds.save_as(path)
    by_series: dict[str, list[tuple[int, int]]] = {}
    for row in look(tmp_path).slices.to_pylist():
        assert row["flags"] == []
        by_series.setdefault(row["series"], []).append(frames[row["frame"]])
    expected = [[(time, place) for place in (2, 1, 0)] for time in (0, 1)]
    assert sorted(by_series.values()) == expected


def test_order_does_not_depend_on_the_key(tmp_path):
    for k in range(5):
        phantoms.write_series(
            tmp_path / f"{k}", phantoms.volume(2), SeriesInstanceUID=f"1.2.{9 - k}"
        )
    a = discover(Data(root=tmp_path), b"a", workers=0).slices
    b = discover(Data(root=tmp_path), b"b", workers=0).slices
    assert a["path"].equals(b["path"])
    assert not set(a["series"].to_pylist()) & set(b["series"].to_pylist())


# --- files ---------------------------------------------------------------------------------------


def test_furniture_is_other_and_broken_images_are_bad(tmp_path):
    phantoms.write_png(tmp_path / "good.png", DOT)
    for name in ("labels.csv", "README", "report.pdf"):
        (tmp_path / name).write_text("nothing to see")
    for name in ("broken.png", "broken.dcm", "broken.nii.gz", "scan.nrrd"):
        (tmp_path / name).write_text("nothing to see")
    (tmp_path / "none.dcm").write_bytes(b"")
    assert reasons(look(tmp_path)) == {
        "README": "other",
        "broken.dcm": "not-an-image",
        "broken.nii.gz": "not-an-image",
        "broken.png": "not-an-image",
        "good.png": None,
        "labels.csv": "other",
        "none.dcm": "empty",
        "report.pdf": "other",
        "scan.nrrd": "not-an-image",
    }


@pytest.mark.parametrize("content", [b"", b"nothing to see" * 9])
def test_names_tell_lost_images_from_furniture(tmp_path, content):
    lost = ["1.2.840.113", "I10", "IM0001", "x.dcm"]
    for name in [*lost, ".gitkeep", "README", "__init__.py", "notes2.txt"]:
        (tmp_path / name).write_bytes(content)
    found = reasons(look(tmp_path))
    assert sorted(name for name, reason in found.items() if reason != "other") == lost


def test_dicomdir_is_furniture():
    root = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests"
    found = look(root, include=("DICOMDIR",))
    assert reasons(found) == {"DICOMDIR": "other"}


def test_include_and_exclude(tmp_path):
    for name in ("a/x.png", "a/b/y.png", "z.png", "a/mask.png"):
        phantoms.write_png(tmp_path / name, DOT)

    def paths(**data):
        return look(tmp_path, **data).files["path"].to_pylist()

    assert paths() == ["a/b/y.png", "a/mask.png", "a/x.png", "z.png"]
    assert paths(include=("a/**",), exclude=("**/mask*",)) == ["a/b/y.png", "a/x.png"]
    assert paths(include=("*.png",)) == ["z.png"]
    assert paths(include=("**/[xy].png",)) == ["a/b/y.png", "a/x.png"]


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        ({"exclude": ("masks",)}, ["data.exclude: 'masks' .* Did you mean 'masks/\\*\\*'"]),
        ({"exclude": ("**/masks",)}, ["data.exclude: .* Did you mean"]),
        ({"exclude": ("masks/",)}, ["data.exclude: 'masks/' .* Did you mean 'masks/\\*\\*'"]),
        ({"exclude": ("/masks/**",)}, ["data.exclude: .* Did you mean 'masks/\\*\\*'"]),
        ({"exclude": ("./masks/**",)}, ["data.exclude: .* Did you mean 'masks/\\*\\*'"]),
        ({"exclude": ("MASKS/**",)}, ["data.exclude: .* Capitals and small letters"]),
        ({"exclude": ("nothing/**",)}, ["data.exclude: 'nothing/\\*\\*' matches no file.$"]),
        ({"exclude": ("masks/**", "**/._*", "**/.git/**")}, []),
        ({"include": ("a/**", "b */**", "c/**")}, ["data.include: 'c/\\*\\*' matches no file"]),
        ({"modality": {"b [1]/**": "CT"}}, ["data.modality: .* Did you mean 'b \\[\\[\\]1\\]"]),
        ({"modality": {"*.png": "CT"}}, ["data.modality: .* Did you mean '\\*\\*/\\*.png'"]),
        ({"modality": {"**": "CT", "a/**": "MR"}}, ["'a/\\*\\*' comes behind a glob"]),
        ({"modality": {"a/**": "MR", "**": "CT"}, "include": ("a/**", "masks/**")}, []),
    ],
    ids=str,
)
def test_a_glob_without_effect_is_named(tmp_path, data, notes):
    for name in ("a/x.png", "a/b/y.png", "masks/x.png", "b [1]/x.png"):
        phantoms.write_png(tmp_path / name, DOT)
    said = look(tmp_path, **data).notes
    assert len(said) == len(notes), said
    for note, expected in zip(said, notes, strict=True):
        assert re.search(expected, note), note


def test_folders_of_tools_and_hidden_ones_are_left_out_counted_and_named(tmp_path):
    hidden = [".git/annex", "a/.ipynb_checkpoints", "@eaDir", ".p7", "__MACOSX/a", "a/.datalad"]
    hidden.append("b/.git")
    for folder in hidden:
        phantoms.write_png(tmp_path / folder / "x.png", DOT)
    phantoms.write_png(tmp_path / "a/x.png", DOT)
    (tmp_path / "a/linked.png").symlink_to("../.git/annex/x.png")
    found = look(tmp_path)
    assert found.slices["path"].to_pylist() == ["a/linked.png", "a/x.png"]
    assert left_out_folders(found.files) == {
        ".git": 2, ".ipynb_checkpoints": 1, "@eaDir": 1, "__MACOSX": 1, ".datalad": 1,
        "a hidden folder": 1,
    }  # fmt: skip
    assert set_aside(found.files) == {}
    assert reasons(found)["a/.datalad"] == "other"
    named = look(tmp_path, include=("**/.git/**", "a/*"))
    of_git = [".git/annex/x.png", "b/.git/x.png"]
    assert sorted(named.slices["path"].to_pylist()) == [
        of_git[0],
        "a/linked.png",
        "a/x.png",
        of_git[1],
    ]
    assert set(look(tmp_path, found).files["path"].to_pylist()) == set(reasons(found))


def test_stores_below_the_root_are_left_out(tmp_path):
    phantoms.write_png(tmp_path / "x.png", DOT)
    arrays = {"mean": ArraySpec((6,), "float16")}
    store = FeatureStore.create(tmp_path / "out/store", "{}", arrays, 8)
    phantoms.write_png(store.path / "results/figure.png", DOT)
    found = look(tmp_path)
    assert found.slices["path"].to_pylist() == ["x.png"]
    assert reasons(found) == {"out/store": "other", "x.png": None}
    assert left_out_folders(found.files) == {"a store of radprobe": 1}


def test_archives_are_named_with_the_remedy_and_are_findings_by_their_names(tmp_path):
    (tmp_path / "x.png").write_bytes(phantoms.write_png(tmp_path / "x.png", DOT).read_bytes())
    for name in ("study.zip", "labels.xlsx", "IM0001", "labels.csv.zip", "a.npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.write(tmp_path / "x.png", "x.png")
    for name, how in (
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("b.tgz", "w:gz"),
        ("c.tar.xz", "w:xz"),
    ):
        with tarfile.open(tmp_path / name, how) as file:
            file.add(tmp_path / "x.png", "x.png")
    (tmp_path / "scan.nii.bz2").write_bytes(bz2.compress(b"n" * 400))
    for name, magic in (
        ("study.7z", b"7z\xbc\xaf\x27\x1c"),
        ("study.rar", b"Rar!\x1a\x07"),
        ("scan.nii.zst", b"\x28\xb5\x2f\xfd"),
        ("scan.nii.lz4", b"\x04\x22\x4d\x18"),
    ):
        (tmp_path / name).write_bytes(magic + bytes(400))
    (tmp_path / "x.png.gz").write_bytes(gzip.compress((tmp_path / "x.png").read_bytes()))
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(b"path,label"))
    found = look(tmp_path)
    fine = {
        "x.png": None,
        "labels.xlsx": "other",
        "labels.csv.zip": "other",
        "labels.csv.gz": "other",
    }
    told = reasons(found)
    assert {name: told.pop(name) for name in fine} == fine
    assert set(told.values()) == {"unsupported"}
    details = {row["path"]: row["detail"] for row in found.files.to_pylist()}
    assert all("unpack it" in details[name] for name in told)
    # What is packed without anybody's thinking of an archive is called what it is.
    assert details["labels.xlsx"] == "no picture: a spreadsheet"


@pytest.mark.parametrize("pixels", [True, False])
def test_objects_that_describe_pictures_are_no_finding(tmp_path, pixels):
    """By class or by modality; a picture that has lost its pixels is a finding."""
    storage = "1.2.840.10008.5.1.4.1.1."
    for number, (sop_class, modality) in enumerate(
        [
            (storage + "88.67", "SR"),
            (storage + "88.59", "KO"),
            (storage + "11.1", "PR"),
            (storage + "481.5", "RTPLAN"),
            (storage + "481.3", "RTSTRUCT"),
            (storage + "66.4", "SEG"),
            (storage + "66", "MR"),
            (storage + "4.2", "MR"),
            (storage + "104.1", "OT"),
            (storage + "9.1.1", "ECG"),
            (storage + "2", "SR"),
        ]
    ):
        ds = phantoms.dicom(DOT, SOPClassUID=sop_class, Modality=modality)
        if not pixels:
            del ds.PixelData
        phantoms.save(ds, tmp_path / f"{number}.dcm")
    assert set(reasons(look(tmp_path)).values()) == {"other"}
    ds = phantoms.dicom(DOT, SOPClassUID="1.3.12.2.1107.5.9.1", Modality="MR")
    del ds.PixelData
    phantoms.save(ds, tmp_path / "private.dcm")
    lost = phantoms.dicom(DOT)
    del lost.PixelData
    phantoms.save(lost, tmp_path / "lost.dcm")
    found = reasons(look(tmp_path))
    assert (found["private.dcm"], found["lost.dcm"]) == ("other", "not-an-image")


def test_what_macos_keeps_beside_a_file_is_furniture(tmp_path):
    (tmp_path / "._x.nii.gz").write_bytes(b"\0\x05\x16\x07\0\2\0\0Mac OS X        ")
    assert reasons(look(tmp_path)) == {"._x.nii.gz": "other"}


def test_a_capture_among_slices_is_flagged_by_itself(tmp_path):
    phantoms.write_series(tmp_path / "s", phantoms.volume(4))
    place = {"ImagePositionPatient": [-30.0, -40.0, 110.0], "PixelSpacing": [0.8, 0.7]}
    place["ImageOrientationPatient"] = list(phantoms.AXIAL)
    for name, tags in (
        ("sop", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("sop with a place", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", **place}),
        ("ge", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("philips", {"ImageType": ["DERIVED", "SECONDARY", "PATIENT_INFO"]}),
        ("siemens", {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"], **place}),
    ):
        pixels = phantoms.volume(1)[0]
        phantoms.save(phantoms.dicom(pixels, **tags), tmp_path / "s" / name)
    rgb = np.zeros((20, 24, 3), np.uint8)
    phantoms.save(phantoms.dicom(rgb, **place), tmp_path / "s/colour")
    rows = look(tmp_path).slices.to_pylist()
    captured = sorted(r["path"] for r in rows if "secondary-capture" in r["flags"])
    names = ("colour", "ge", "philips", "siemens", "sop", "sop with a place")
    assert captured == [f"s/{name}" for name in names]
    acquired = [r for r in rows if r["path"].startswith("s/IM")]
    assert all(r["flags"] == [] for r in acquired)
    others = {r["series"] for r in rows if r["path"] in captured}
    assert others.isdisjoint(r["series"] for r in acquired)


def test_text_burned_into_a_slice_is_said_of_that_slice(tmp_path):
    files = phantoms.write_series(tmp_path, phantoms.volume(4))
    ds = pydicom.dcmread(files[1])
    ds.BurnedInAnnotation = "YES"
    ds.save_as(files[1])
    rows = look(tmp_path).slices.to_pylist()
    assert [row["flags"] for row in rows] == [[], ["burned-in"], [], []]
    assert len({row["series"] for row in rows}) == 1


THREE = [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]


@pytest.mark.parametrize(
    ("orientations", "each", "is_localizer"),
    [
        (THREE, 1, True),
        (THREE, 5, True),
        (THREE[1:], 1, True),  # a view from the front and one from the side
        ([(0.98, 0.17, 0.1, -0.17, 0.98, 0), *THREE[1:]], 3, True),
        (THREE, 25, False),  # reformatted, or a localizer as long as a series
        (THREE[:1], 3, False),
        ([(np.cos(t), np.sin(t), 0, 0, 0, -1) for t in np.arange(0, 3, 0.2)], 1, False),
    ],
)
def test_localizers_are_told_by_how_they_lie(tmp_path, orientations, each, is_localizer):
    for number, orientation in enumerate(orientations):
        phantoms.write_series(
            tmp_path / f"{number}", np.zeros((each, 4, 4), np.uint8), orientation=orientation
        )
    found = look(tmp_path)
    assert ("localizer" in flags(found)) == is_localizer
    lists = found.slices["flags"].to_pylist()
    assert all(("localizer" in each) == is_localizer for each in lists)


def test_path_fills_in_modality_and_patient(tmp_path):
    for name in ("ct/p01/a.png", "xr/p02/b.png", "ct/c.png"):
        phantoms.write_png(tmp_path / name, DOT)
    found = look(
        tmp_path, modality={"ct/**": "CT", "**": "DX"}, patient=r"/(p\d+)/"
    ).slices.to_pylist()
    assert [(row["path"], row["modality"], row["patient"]) for row in found] == [
        ("ct/c.png", "CT", None),
        ("ct/p01/a.png", "CT", pseudonym(KEY, "patient", "p01")),
        ("xr/p02/b.png", "DX", pseudonym(KEY, "patient", "p02")),
    ]
    assert set(look(tmp_path).slices["modality"].to_pylist()) == {"OT"}


def test_headers_win_over_paths(tmp_path):
    phantoms.write_series(tmp_path / "p7", phantoms.volume(1))
    row = look(tmp_path, modality={"**": "MR"}, patient=r"(p7)").slices.to_pylist()[0]
    assert row["modality"] == "CT"
    assert row["patient"] == pseudonym(KEY, "patient", phantoms.IDENTITY["PatientID"])


def test_symlink_loops_end_and_dangling_links_are_told(tmp_path):
    phantoms.write_png(tmp_path / "a/x.png", DOT)
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    found = reasons(look(tmp_path))
    assert found.pop("a/x.png") is None
    assert found == {"gone.png": "vanished", "self": "corrupt"}


def test_names_that_are_not_utf8_go_through_parquet(tmp_path):
    phantoms.write_png(tmp_path / "x.png", DOT).rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    found = look(tmp_path)
    pq.write_table(found.slices, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet")["path"].to_pylist() == ["caf\\xe9.png"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    assert reasons(look(tmp_path)) == {"pipe.dcm": "not-an-image"}


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        look(tmp_path / "nowhere")


def test_workers_find_the_same(tmp_path):
    phantoms.write_series(tmp_path / "s", phantoms.volume(4))
    phantoms.write_nifti_of_series(tmp_path / "v.nii.gz", phantoms.volume())
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    counts: list[int] = []
    here = look(tmp_path)
    there = discover(Data(root=tmp_path), KEY, workers=2, progress=counts.append)
    assert there.slices.equals(here.slices)
    assert there.files.equals(here.files)
    assert counts == [1, 2, 3, 4, 5, 6]


# --- what is known already -----------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files opened for their headers."""
    names: list[str] = []

    def spy(path: Path, *how):
        names.append(path.name)
        return read_headers(path, *how)

    monkeypatch.setattr(module, "read_headers", spy)
    return names


def test_unchanged_files_are_not_opened_again(tmp_path, opened):
    phantoms.write_series(tmp_path / "s", phantoms.volume(5))
    phantoms.write_nifti_of_series(tmp_path / "v.nii", phantoms.volume())
    (tmp_path / "notes.txt").write_text("x")
    first = look(tmp_path)
    opened.clear()
    second = look(tmp_path, first)
    assert opened == []
    assert second.slices.equals(first.slices)
    assert second.files.equals(first.files)
    phantoms.write_png(tmp_path / "new.png", DOT)
    third = look(tmp_path, second)
    assert opened == ["new.png"]
    assert third.slices.num_rows == first.slices.num_rows + 1


def test_a_series_that_gained_or_lost_a_file_is_settled_anew(tmp_path, opened):
    files = phantoms.write_series(tmp_path / "s", phantoms.volume(6))
    phantoms.write_series(tmp_path / "t", phantoms.volume(3), SeriesInstanceUID="1.2.3")
    whole = look(tmp_path)
    aside = tmp_path.parent / "aside"
    files[2].rename(aside)
    opened.clear()
    short = look(tmp_path, whole)
    assert len(opened) == 5
    assert flags(short) == {"missing-position"}
    assert short.slices.num_rows == 8
    aside.rename(files[2])
    again = look(tmp_path, short)
    assert again.slices.equals(whole.slices)


def test_changed_file_is_opened_and_a_time_limit_is_tried_again(tmp_path, opened):
    path = phantoms.write_png(tmp_path / "a.png", DOT)
    first = look(tmp_path)
    path.write_bytes(b"now broken, and of another size")
    second = look(tmp_path, first)
    assert reasons(second) == {"a.png": "not-an-image"}
    assert second.slices.num_rows == 0
    row = second.files.to_pylist()[0] | {"reason": "time-limit"}
    slow = Discovery(second.files.from_pylist([row], schema=FILE_SCHEMA), second.slices)
    opened.clear()
    look(tmp_path, slow)
    assert opened == ["a.png"]


# --- privacy -------------------------------------------------------------------------------------


def test_no_identifier_leaves_discovery(tmp_path, caplog):
    phantoms.write_series(tmp_path / "s", phantoms.volume(3))
    whole = (tmp_path / "s" / "IM000").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: whole.index(b"SECRETID") + 5])
    found = discover(Data(root=tmp_path), KEY, workers=1)
    pq.write_table(found.slices, tmp_path / "slices.parquet", compression="none")
    pq.write_table(found.files, tmp_path / "files.parquet", compression="none")
    raw = [value.encode() for value in phantoms.IDENTITY.values()]
    raw += [SERIES.encode(), b"1.2.826.0.1.3680043", b"SECRET"]
    for name in ("slices.parquet", "files.parquet"):
        stored = (tmp_path / name).read_bytes()
        assert not [value for value in raw if value in stored]
    assert "SECRET" not in caplog.text


def test_key_lies_beside_the_store_and_is_made_once(tmp_path):
    store = tmp_path / "out" / "store"
    key = load_key(store)
    assert key == load_key(store)
    assert len(key) == 32
    path = tmp_path / "out" / "store.key"
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == ["store.key"]
    store.mkdir()
    (store / "recipe.json").write_text("{}")
    path.unlink()
    with pytest.raises(ConfigError, match="lost its key"):
        load_key(store)


def test_pseudonyms_depend_on_key_kind_and_value():
    made = {
        pseudonym(key, kind, raw)
        for key in (b"1", b"2")
        for kind in ("patient", "study")
        for raw in ("a", "b")
    }
    assert len(made) == 8
    assert all(len(name) == 16 for name in made)


# --- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_values_of_tags_become_pseudonyms_of_each_slice(tmp_path, workers):
    phantoms.write_series(tmp_path / "s", phantoms.volume(3), AccessionNumber="SECRET 17")
    names = ["SECRET", "TWO"]
    phantoms.write_series(tmp_path / "t", phantoms.volume(2), SeriesInstanceUID="1.2.3",
                          OperatorsName=names, AccessionNumber="")  # fmt: skip
    phantoms.write_nifti_of_series(tmp_path / "v.nii", phantoms.volume(2))
    data = Data(root=tmp_path, tags=("AccessionNumber", "OperatorsName"))
    slices = discover(data, KEY, workers=workers).slices
    assert slices.schema == SLICE_SCHEMA
    accession = [("AccessionNumber", pseudonym(KEY, "tag:AccessionNumber", "SECRET 17"))]
    operators = [("OperatorsName", pseudonym(KEY, "tag:OperatorsName", "SECRET\\TWO"))]
    assert slices["tags"].to_pylist() == [accession] * 3 + [operators] * 2 + [None] * 2
    assert "SECRET" not in str(slices.to_pylist())


def test_tags_of_kept_files_are_kept_and_unasked_ones_absent(tmp_path, opened):
    phantoms.write_series(tmp_path, phantoms.volume(3), AccessionNumber="17")
    first = look(tmp_path, tags=("AccessionNumber",))
    opened.clear()
    assert look(tmp_path, first, tags=("AccessionNumber",)).slices.equals(first.slices)
    assert opened == []
    assert look(tmp_path).slices["tags"].null_count == 3


def test_a_multi_frame_file_gives_every_frame_its_tags(tmp_path):
    path = pydicom.data.get_testdata_file("SC_rgb_rle_2frame.dcm")
    (tmp_path / "a.dcm").write_bytes(Path(path).read_bytes())
    slices = look(tmp_path, tags=("SOPInstanceUID",)).slices
    first, second = slices["tags"].to_pylist()
    assert first == second
    assert first[0][0] == "SOPInstanceUID"


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("AccesionNumber", "Got 'AccesionNumber' instead. Did you mean 'AccessionNumber'"),
        ("PixelData", "'PixelData' holds neither"),
        ("ReferencedImageSequence", "representation is SQ"),
    ],
)
def test_what_is_no_tag_is_refused(tmp_path, tag, why):
    phantoms.write_series(tmp_path, phantoms.volume(1))
    with pytest.raises(ConfigError, match=why):
        look(tmp_path, tags=(tag,))


# --- real data -----------------------------------------------------------------------------------


@needs_real_data
def test_ge_epi_is_ten_volumes_of_fifteen():
    found = look(Path(REAL) / "dicom_mr_ge")
    counts = Counter(found.slices["series"].to_pylist())
    assert list(counts.values()) == [15] * 10
    names = found.slices["path"].to_pylist()
    # Each volume is one run of 15 instances, in order of position.
    for k in range(10):
        numbers = [int(name[-9:-4]) for name in names[15 * k : 15 * k + 15]]
        assert numbers == list(range(15 * k + 1, 15 * k + 16))


@needs_real_data
def test_philips_ct_is_one_volume_of_28_in_order_of_position():
    found = look(Path(REAL) / "dicom_ct_philips")
    assert len(set(found.slices["series"].to_pylist())) == 1
    np.testing.assert_allclose(np.diff(found.slices["position_mm"].to_numpy()), 5, atol=1e-3)
    assert found.slices.num_rows == 28


def test_every_test_file_of_pydicom_is_read_or_set_aside():
    root = Path(pydicom.__file__).parent / "data"
    found = discover(Data(root=root, exclude=("**/*.py", "**/*.pyc")), KEY, workers=1)
    counts = Counter(found.files["reason"].to_pylist())
    assert counts[None] > 80
    assert set(counts) <= {
        None,
        "other",
        "not-an-image",
        "unsupported",
        "corrupt",
        "truncated",
        "empty",
    }
    assert counts["corrupt"] <= 3
