"""Series as scanners and archives really write them, from files to volumes."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydicom
import pytest

from pipeline.config.data import Data
from pipeline.extraction.discover import discover
from pipeline.io.decode import read_headers
from pipeline.types import Header
from stores.reconcile import Known, reconcile
from stores.slices import with_column
from tests import phantoms

KEY = b"k" * 32
SMALL = np.zeros((4, 4), np.uint16)


def write(path: Path, z: float, **tags: Any) -> Path:
    more = {
        "ImagePositionPatient": [0.0, 0.0, z],
        "ImageOrientationPatient": list(phantoms.AXIAL),
        "PixelSpacing": [1.0, 1.0],
    }
    return phantoms.save(phantoms.dicom(SMALL, **(more | tags)), path)


def rows(root: Path) -> list[dict[str, Any]]:
    return discover(Data(root=root), KEY, workers=0).slices.to_pylist()


def volumes(root: Path) -> list[list[str]]:
    """Return the names of the files of each volume."""
    return [
        [Path(row["path"]).name for row in group]
        for _, group in groupby(rows(root), key=lambda row: row["series"])
    ]


def flags(root: Path) -> set[str]:
    return {flag for row in rows(root) for flag in row["flags"]}


def test_what_travels_between_processes_is_what_the_header_says(tmp_path):
    path = write(tmp_path / "a", 1, EchoTime="30.0", AcquisitionTime="101112.5", TriggerTime=7)
    (header,) = read_headers(path)
    fields = json.loads(json.dumps({name: getattr(header, name) for name in Header.__slots__}))
    assert fields["axes"] == [1, 0, 0, 0, 1, 0]
    assert fields["echo_ms"] == 30
    assert fields["order"] == [None, 7, 10 * 3600 + 11 * 60 + 12.5, None, None]


# --- numbers are compared as numbers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "even"),
    [
        ([1, 1e-6, 0, 0, 1, 0], [1, -1e-6, 0, 0, 1, 0]),
        ([1, 2.05e-10, 0, 0, 1, 0], [1, -2.05e-10, 0, 0, 1, 0]),
        ([1, 0.0049999, 0, 0, 1, 0], [1, 0.0050001, 0, 0, 1, 0]),
        ([1, 0, 0, 0, 0.99215674, 0.125001], [1, 0, 0, 0, 0.99215674, 0.124999]),
        ([1.0001, 0, 0, 0, 1, 0], [0.9999, 0, 0, 0, 1, 0]),
    ],
)
def test_cosines_that_wobble_are_one_orientation(tmp_path, odd, even):
    for k in range(4):
        cosines = odd if k % 2 else even
        down = np.cross(cosines[:3], cosines[3:]) * 5 * k
        write(tmp_path / f"{k}", 0, ImageOrientationPatient=cosines, ImagePositionPatient=[*down])
    assert volumes(tmp_path) == [["0", "1", "2", "3"]]
    assert flags(tmp_path) == set()


@pytest.mark.parametrize("wobble", [1e-4, 1e-3])
def test_places_are_told_along_one_normal_far_from_the_origin(tmp_path, wobble):
    # A turn of 0.06 degrees moves a corner 0.3 m from the origin by 0.3 mm along the normal.
    rng = np.random.default_rng(0)
    for time in range(3):
        for k in range(4):
            cosines = np.array([1, 0, 0, 0, 1, 0]) + rng.normal(0, wobble, 6)
            tags = {
                "ImageOrientationPatient": [round(float(cosine), 6) for cosine in cosines],
                "ImagePositionPatient": [-180.0, 200.0, -150 + 1.5 * k],
                "InversionTime": 100.0 * time,
            }
            write(tmp_path / f"{time}{k}", 0, **tags)
    assert volumes(tmp_path) == [[f"{time}{k}" for k in range(4)] for time in range(3)]
    assert flags(tmp_path) == set()


def test_slices_a_few_degrees_apart_are_of_several_orientations(tmp_path):
    for k in range(4):
        angle = np.deg2rad(1.8 * k)
        along = [float(np.cos(angle)), float(np.sin(angle)), 0.0]
        write(tmp_path / f"{k}", 0, ImageOrientationPatient=[*along, 0, 0, -1])
    assert volumes(tmp_path) == [["0"], ["1"], ["2"], ["3"]]


def test_echo_times_are_numbers(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}", k, EchoTime="30" if k % 2 else "30.000")
        write(tmp_path / f"late{k}", k, EchoTime="30.2")
    assert volumes(tmp_path) == [[f"{k}" for k in range(4)], [f"late{k}" for k in range(4)]]
    assert flags(tmp_path) == set()


def test_what_the_maker_says_of_an_image_type_cuts_no_volume(tmp_path):
    positions = [0, 4, 8, 12, 16, 20, 27, 34, 41, 48]
    for k, z in enumerate(positions):
        kind = ["ORIGINAL", "PRIMARY", "AXIAL", *(["ADD"] if k < 5 else [])]
        write(tmp_path / f"{k}", z, ImageType=kind)
    assert len(volumes(tmp_path)) == 1
    assert flags(tmp_path) == {"variable-spacing"}


def test_water_and_fat_of_the_same_places_are_two_volumes(tmp_path):
    for k in range(3):
        for what in ("WATER", "FAT"):
            kind = ["DERIVED", "PRIMARY", "DIXON", what]
            write(tmp_path / f"{what}{k}", k, ImageType=kind, InstanceNumber=k)
    assert volumes(tmp_path) == [[f"FAT{k}" for k in range(3)], [f"WATER{k}" for k in range(3)]]


def test_slices_of_a_micro_ct_are_no_time_points(tmp_path):
    for k in range(6):
        write(tmp_path / f"{k}", 0.009 * k, PixelSpacing=[0.009, 0.009])
    assert volumes(tmp_path) == [[f"{k}" for k in range(6)]]
    assert flags(tmp_path) == set()


@pytest.mark.parametrize("spacing", [[0, 0], [-1, -1], [0, 0.5]])
def test_a_spacing_of_nought_or_less_is_none(tmp_path, spacing):
    path = write(tmp_path / "a", 0, PixelSpacing=spacing, ImagerPixelSpacing=[0.2, 0.3])
    assert read_headers(path)[0].spacing_mm == (0.2, 0.3)
    path = write(tmp_path / "a", 0, PixelSpacing=spacing)
    assert read_headers(path)[0].spacing_mm is None


def test_tiles_of_a_mosaic_without_a_spacing_lie_a_thickness_apart(tmp_path):
    path = phantoms.write_mosaic(tmp_path / "a", phantoms.volume(4, 4, 4))
    dataset = pydicom.dcmread(path)
    dataset.SpacingBetweenSlices = 0
    dataset.SliceThickness = 3
    dataset.save_as(path)
    assert [header.position_mm for header in read_headers(path)] == [5, 8, 11, 14]


@pytest.mark.parametrize("step", [0.24, -0.24])
def test_uneven_spacing_is_told_in_millimetres_too(tmp_path, step):
    for k, z in enumerate([0, 10, 20, 30 + step, 40 + step]):
        write(tmp_path / f"{k}", z)
    assert flags(tmp_path) == {"variable-spacing"}


def test_a_little_tilt_of_the_gantry_is_told(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}", k, GantryDetectorTilt=0.3)
    assert flags(tmp_path) == {"gantry-tilt"}


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0, 5, 10, 15.08, 20.16, 25.24], set()),
        ([0, 5, 10, 15.3, 20.3, 25.3], {"variable-spacing"}),
        ([0, 2.5, 5, 10, 15, 20], {"variable-spacing"}),
        ([0, 5, 10, 12.5, 15, 17.5], {"missing-position"}),
        ([0, 5, 10, 17, 24, 31], {"variable-spacing"}),
        ([0, 0.625, 1.25, 2.1, 2.725], {"variable-spacing"}),
    ],
    ids=str,
)
def test_what_dcm2niix_makes_equal_is_flagged(tmp_path, positions, expected):
    """Which is what it writes as `_Eq`: distances of which one differs by 0.2 mm from the first."""
    for k, z in enumerate(positions):
        write(tmp_path / f"{k}", z)
    assert flags(tmp_path) == expected
    steps = np.diff(positions)
    if (np.abs(steps - steps[0]) > 0.2).any():
        assert flags(tmp_path)


@pytest.mark.parametrize(("degrees", "is_tilted"), [(0.7, False), (0.85, True), (20, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_dcm2niix_shears_back_is_flagged(tmp_path, degrees, is_tilted, sign):
    """Which is what it writes as `_Tilt`: the cosine of slices to normal below 1 - 1e-4."""
    for k in range(30):
        shift = sign * np.tan(np.deg2rad(degrees)) * 2 * k
        write(tmp_path / f"{k:02}", 0, ImagePositionPatient=[0.0, round(float(shift), 2), 2.0 * k])
    assert flags(tmp_path) == ({"gantry-tilt"} if is_tilted else set())


# --- time points ---------------------------------------------------------------------------------


def test_an_acquisition_number_has_no_order_in_time(tmp_path):
    number = 0
    for z in range(6):
        for k in range(4):
            write(
                tmp_path / f"{k}_{z}",
                2 * z,
                AcquisitionNumber=19 if z in (2, 4) and k == 2 else 22,
                TemporalPositionIdentifier=1,
                DiffusionBValue=0.0 if k == 0 else 1000.0,
                InstanceNumber=number,
            )
            number += 1
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(6)] for k in range(4)]


@pytest.mark.parametrize("keyword", ["TriggerTime", "AcquisitionTime"])
def test_moments_tell_time_points_whatever_the_numbers(tmp_path, keyword):
    rng = np.random.default_rng(0)
    numbers = iter(rng.permutation(12).tolist())
    for k in range(3):
        for z in range(4):
            moment = f"{101010 + k}.{z}" if keyword == "AcquisitionTime" else 30 * k + 0.1 * z
            tags = {keyword: moment, "InstanceNumber": next(numbers)}
            write(tmp_path / f"{k}_{z}", z, **tags)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(4)] for k in range(3)]


def test_instance_numbers_tell_time_points_where_they_run_through_the_positions(tmp_path):
    for k in range(3):
        for number, z in enumerate((0, 2, 1, 3)):
            write(tmp_path / "through" / f"{k}_{z}", z, InstanceNumber=10 * k + number)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(4)] for k in range(3)]


@pytest.mark.parametrize("numbers", ["restart", "shuffled", "absent"])
def test_what_nothing_tells_apart_stays_together_and_is_flagged(tmp_path, numbers):
    shuffled = iter(np.random.default_rng(1).permutation(18).tolist())
    for k in range(3):
        for z in range(6):
            tags = {}
            if numbers != "absent":
                tags["InstanceNumber"] = z + 1 if numbers == "restart" else next(shuffled)
            write(tmp_path / f"{k}_{z}", z, **tags)
    assert len(volumes(tmp_path)) == 1
    assert flags(tmp_path) == {"duplicate-position", "time-points-unclear"}


@pytest.mark.parametrize("seed", range(6))
def test_numbers_that_go_through_positions_in_several_orders_tell_nothing(tmp_path, seed):
    numbers = iter(np.random.default_rng(seed).permutation(10).tolist())
    for k in range(2):
        for z in range(5):
            write(tmp_path / f"{k}_{z}", z, InstanceNumber=next(numbers))
    assert len(volumes(tmp_path)) == 1
    assert "time-points-unclear" in flags(tmp_path)


def test_directions_are_volumes_and_several_b0_too(tmp_path):
    shots = [(0, None), (1000, [1, 0, 0]), (0, None), (1000, [0, 1, 0])]
    for k, (b_value, direction) in enumerate(shots):
        for z in range(3):
            tags = {"DiffusionBValue": float(b_value), "InstanceNumber": 3 * k + z}
            if direction is not None:
                tags["DiffusionGradientOrientation"] = [float(cosine) for cosine in direction]
            write(tmp_path / f"{k}_{z}", z, **tags)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(3)] for k in (0, 2, 1, 3)]


def test_directions_that_differ_in_their_last_digits_are_one(tmp_path):
    rng = np.random.default_rng(0)
    directions = [[0.4995, -0.4995, 0.7078], [0.0005, 1.0, 0.0], [0.6, 0.8, 0.0], [-0.6, 0.8, 0.0]]
    for k, direction in enumerate(directions):
        for z in range(5):
            written = np.array(direction) + rng.normal(0, 2e-5, 3)
            tags = {
                "DiffusionBValue": 1000 + 1e-3 * z,
                "DiffusionGradientOrientation": [float(cosine) for cosine in written],
            }
            write(tmp_path / f"{k}_{z}", z, InstanceNumber=5 * k + z, **tags)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(5)] for k in range(4)]


def test_frames_of_a_pet_stand_in_time_without_further_numbers(tmp_path):
    for time in (40_000, 5_000, 100_000):
        for z in range(3):
            write(tmp_path / f"{-time:07}_{z}", z, Modality="PT", FrameReferenceTime=float(time))
    times = [names[0][:7] for names in volumes(tmp_path)]
    assert times == ["-005000", "-040000", "-100000"]


@pytest.mark.parametrize(
    "heights",
    [
        (range(10), range(15)),  # begun anew, further
        (range(10), range(5, 15)),  # overlapping by half
        (range(2), range(15)),  # aborted
        (range(6), range(5, 11), range(10, 16)),  # chest, abdomen, pelvis
    ],
    ids=["longer", "half", "aborted", "three"],
)
def test_passes_of_a_ct_are_volumes(tmp_path, heights):
    for number, positions in enumerate(heights, start=1):
        for z in positions:
            name = f"{number}_{z:02}"
            write(tmp_path / name, 2 * z, AcquisitionNumber=number, InstanceNumber=z)
    expected = [[f"{n}_{z:02}" for z in zs] for n, zs in enumerate(heights, start=1)]
    assert volumes(tmp_path) == expected
    assert flags(tmp_path) == set()


def test_a_number_for_each_slice_names_no_pass(tmp_path):
    for k, z in enumerate([0, 2, 4, 4, 6]):
        write(tmp_path / f"{k}", z, AcquisitionNumber=k, InstanceNumber=k)
    assert volumes(tmp_path) == [["0", "1", "2", "3", "4"]]
    assert flags(tmp_path) == {"duplicate-position"}


# --- whose a series is ---------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_a_series_that_two_patients_or_studies_share_is_no_volume(tmp_path, keyword):
    for k in range(3):
        write(tmp_path / f"a{k}", 2 * k, **{keyword: "1.1"})
        write(tmp_path / f"b{k}", 2 * k + 1, **{keyword: "1.2"})
    assert volumes(tmp_path) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert flags(tmp_path) == {"shared-series"}


def test_a_patient_who_stands_in_the_path_alone_parts_a_series_too(tmp_path):
    for patient in ("p1", "p2"):
        for z in range(2):
            write(tmp_path / patient / f"{z}", z, PatientID="")
    data = Data(root=tmp_path, patient=r"(p\d)/")
    slices = discover(data, KEY, workers=0).slices
    of_volume = {(row["series"], row["patient"]) for row in slices.to_pylist()}
    assert len(of_volume) == len({series for series, _ in of_volume}) == 2


# --- copies --------------------------------------------------------------------------------------


def test_a_slice_that_is_there_twice_is_a_copy_and_no_time_point(tmp_path):
    for z in range(4):
        path = write(tmp_path / f"a{z}", z, InstanceNumber=z)
        (tmp_path / f"b{z}").write_bytes(path.read_bytes())
    assert len(volumes(tmp_path)) == 1
    names = {Path(row["path"]).name: row["flags"] for row in rows(tmp_path)}
    assert {name for name, of_slice in names.items() if of_slice == ["copy"]} == {
        "b0",
        "b1",
        "b2",
        "b3",
    }
    assert all(names[f"a{z}"] == [] for z in range(4))


def test_one_uid_for_all_slices_makes_no_copies(tmp_path):
    for k in range(2):
        for z in range(3):
            write(tmp_path / f"{k}_{z}", z, SOPInstanceUID="1.2", InstanceNumber=3 * k + z)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(3)] for k in range(2)]
    assert flags(tmp_path) == set()


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 999, (4, 4)).astype(np.uint16)


def write_pixels(path: Path, z: float, pixels: np.ndarray, **tags: Any) -> Path:
    return write(path, z, PixelData=pixels.tobytes(), **tags)


@pytest.mark.parametrize("numbers", ["same", "further", "again", "none"])
def test_equal_pixels_under_another_uid_are_copies_and_no_time_points(tmp_path, numbers):
    for z in range(4):
        for k in range(2):
            tags: dict[str, Any] = {"AcquisitionTime": "101112"}
            if numbers != "none":
                tags["InstanceNumber"] = {"same": z, "further": 4 * k + z, "again": 9 - z}[numbers]
            tags["ContentTime"] = f"10111{k}"
            write_pixels(tmp_path / f"{'ab'[k]}{z}", z, picture(z), **tags)
    assert len(volumes(tmp_path)) == 1
    of_files = {Path(row["path"]).name: row["flags"] for row in rows(tmp_path)}
    assert of_files == {f"a{z}": [] for z in range(4)} | {f"b{z}": ["copy"] for z in range(4)}


def test_blank_slices_of_a_copy_are_copies_too(tmp_path):
    for z in range(6):
        content = picture(z) if z in (2, 3) else SMALL
        for k in range(2):
            write_pixels(tmp_path / f"{k}_{z}", z, content, InstanceNumber=10 * k + z)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(6) for k in range(2)]]
    assert flags(tmp_path) == {"copy"}


def test_slices_that_were_sent_twice_are_copies(tmp_path):
    for z in range(6):
        write_pixels(tmp_path / f"a{z}", z, picture(z), InstanceNumber=z)
    for z in (2, 3):
        write_pixels(tmp_path / f"b{z}", z, picture(z), InstanceNumber=10 + z)
    assert len(volumes(tmp_path)) == 1
    assert {Path(r["path"]).name for r in rows(tmp_path) if "copy" in r["flags"]} == {"b2", "b3"}
    assert flags(tmp_path) == {"copy"}


def test_a_time_point_that_was_sent_twice_is_a_copy_of_it_alone(tmp_path):
    for number, name in enumerate(("t0", "t1", "t2", "t2again")):
        for z in range(3):
            content = picture(10 * min(number, 2) + z)
            write_pixels(tmp_path / f"{name}_{z}", z, content, InstanceNumber=10 * number + z)
    assert volumes(tmp_path) == [
        ["t0_0", "t0_1", "t0_2"],
        ["t1_0", "t1_1", "t1_2"],
        ["t2_0", "t2again_0", "t2_1", "t2again_1", "t2_2", "t2again_2"],
    ]
    assert flags(tmp_path) == {"copy"}


def test_time_points_whose_ends_are_alike_stay_time_points(tmp_path):
    for k in range(3):
        for z in range(6):
            content = picture(77) if z in (0, 5) else picture(10 * k + z)
            write_pixels(tmp_path / f"{k}_{z}", z, content, InstanceNumber=10 * k + z)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(6)] for k in range(3)]
    assert flags(tmp_path) == set()


def test_blank_slices_of_any_value_say_nothing_of_copies(tmp_path):
    air = np.full((4, 4), -1024 % 2**16, np.uint16)
    for k in range(2):
        for z in range(4):
            content = picture(k) if z == 2 else air
            write_pixels(tmp_path / f"{k}_{z}", z, content, InstanceNumber=10 * k + z)
    assert volumes(tmp_path) == [[f"{k}_{z}" for z in range(4)] for k in range(2)]
    assert flags(tmp_path) == set()


def test_equal_pixels_at_moments_of_their_own_are_time_points(tmp_path):
    for k in range(2):
        for z in range(3):
            tags = {"TemporalPositionIdentifier": k + 1, "InstanceNumber": 3 * k + z}
            write_pixels(tmp_path / f"{k}_{z}", z, picture(z), **tags)
    assert len(volumes(tmp_path)) == 2


def test_only_slices_that_no_header_tells_apart_are_read_for_their_pixels(tmp_path, monkeypatch):
    from pipeline.extraction import discover as module

    read: list[Path] = []
    monkeypatch.setattr(module, "stored_pixels", lambda path: read.append(path))
    for k in range(3):
        for z in range(4):
            moment = f"10101{k}"
            write_pixels(tmp_path / f"{k}_{z}", z, picture(z), AcquisitionTime=moment)
    assert len(volumes(tmp_path)) == 3
    assert read == []


# --- a series a slice ----------------------------------------------------------------------------


def test_slices_with_a_series_each_are_flagged_while_they_lie_as_a_volume_does(tmp_path):
    files = []
    for k, z in enumerate([0, 2, 4, 8, 10]):  # one is missing
        files.append(write(tmp_path / f"{k}", z, SeriesInstanceUID=f"1.2.{k}"))
    whole = discover(Data(root=tmp_path), KEY, workers=0)
    assert whole.slices["flags"].to_pylist() == [["one-slice-series"]] * 5
    again = discover(Data(root=tmp_path), KEY, known=whole, workers=0)
    assert again.slices.equals(whole.slices)
    # Slices that were not opened again lose the flag as well.
    for path in files[2:]:
        path.unlink()
    few = discover(Data(root=tmp_path), KEY, known=whole, workers=0)
    assert few.slices["flags"].to_pylist() == [[], []]


@pytest.mark.parametrize("positions", [[0, 2, 5.3, 6, 9.9], [0, 0, 0, 0, 0]], ids=str)
def test_single_images_of_a_study_are_no_volume(tmp_path, positions):
    for k, z in enumerate(positions):
        write(tmp_path / f"{k}", z, SeriesInstanceUID=f"1.2.{k}")
    assert flags(tmp_path) == set()


# --- stores written before -----------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
def test_slices_grouped_otherwise_keep_their_rows_unless_scaled_by_their_volume(tmp_path, joined):
    for z in range(4):
        write(tmp_path / "a" / f"{z}", z, EchoTime="30" if z % 2 else "30.0")
        write(tmp_path / "b" / f"{z}", z, SeriesInstanceUID="1.2.3")
    now = discover(Data(root=tmp_path), KEY, workers=0).slices
    stored = with_column(now, "row", pa.array(range(8)))
    # As the store has it: one series in two volumes, by the text of its echo time.
    names = now["series"].to_pylist()
    halves = [name if k > 3 or k % 2 else f"{name}.2" for k, name in enumerate(names)]
    stored = with_column(stored, "series", pa.array(halves))
    known = Known(
        pa.array([], pa.string()),
        digest_of=lambda row: None,
        hash_file=lambda path: None,
        boundary=16,
        joined=lambda modality: joined,
    )
    result = reconcile(stored, now, known)
    live = [row for row in result.slices.to_pylist() if not row["withdrawn"]]
    anew = [16, 17, 18, 19] if joined else [0, 1, 2, 3]
    assert sorted(row["row"] for row in live) == sorted([*anew, 4, 5, 6, 7])
    assert len({row["series"] for row in live}) == 2
    # No row changes what it is of.
    before = {row["row"]: row["path"] for row in stored.to_pylist()}
    after = {row["row"]: row["path"] for row in result.slices.to_pylist()}
    assert before.items() <= after.items()
