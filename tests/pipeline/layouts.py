"""Public data sets as their archives unpack, made up: a few small images of the exact layouts.

Pictures show a bright disc or two, whose place and size go with the labels: heads can learn them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid

from pipeline.datasets.readings import VINDR_LABELS
from tests.phantoms import dicom
from tests.phantoms import save as save_dicom

SIZE = 40


def disc(y: float, x: float, radius: float, size: int = SIZE) -> NDArray[np.bool_]:
    """Return a disc (size, size)."""
    rows, columns = np.mgrid[:size, :size]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def noisy(marked: NDArray[np.bool_], seed: int, light: int = 60) -> NDArray[np.uint8]:
    """Return a picture that is bright where marked."""
    noise = np.random.default_rng(seed).integers(0, 140, marked.shape)
    return np.asarray(noise + light * marked, np.uint8)


def save(path: Path, pixels: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_rows(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def nih(root: Path, patients: int = 30, table: str = "Data_Entry_2017_v2020.csv") -> None:
    """Two visits a patient; the last third of the patients is the official test."""
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"]
    rows: list[list[Any]] = [[*head, "Patient Gender", "View Position"]]
    test = []
    for patient in range(1, patients + 1):
        for visit in range(2):
            name = f"{patient:08d}_{visit:03d}.png"
            # Half are the same in both visits, and ill with one thing at most: the paper's few
            # shots draw from such patients.
            same = not patient % 2
            ill = patient // 2 % 2 if same else (patient + visit) % 2
            marked = disc(12 + 8 * ill, 20, 8)
            save(root / f"images_{patient % 3 + 1:03d}/images/{name}", noisy(marked, len(rows)))
            found = ["Effusion", "Pleural_Thickening"]
            found = found[patient // 4 % 2 :][:1] if same else found
            said = "|".join(found) if ill else "No Finding"
            rows.append([name, said, visit, patient, 50, "MF"[patient % 2], "PA"])
            test += [name] if patient > patients * 2 // 3 else []
    write_rows(root / table, rows)
    (root / "test_list.txt").write_text("\n".join(test) + "\n")


def chexpert(root: Path, train: int = 24, valid: int = 8, test: int = 0) -> None:
    """Each patient with a frontal and a lateral view; uncertain findings in training alone."""
    findings = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    head = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *findings]
    first = 1
    for name, number in (("train", train), ("valid", valid), ("test", test)):
        rows: list[list[Any]] = [head]
        for patient in range(first, first + number):
            for view in ("frontal", "lateral"):
                path = f"{name}/patient{patient:05d}/study1/view1_{view}.jpg"
                ill = patient % 2
                seed = 2 * patient + (view == "lateral")
                save(root / path, noisy(disc(12 + 8 * ill, 20, 8), seed), quality=95)
                doubt = "-1.0" if name == "train" and patient % 4 == 0 else "0.0"
                marks = [ill, 1 - ill, doubt, "", ill]
                about = ["Male", 60, view.capitalize(), "AP" if view == "frontal" else ""]
                rows.append([f"CheXpert-v1.0-small/{path}", *about, "", *marks])
        first += number
        if number:
            write_rows(root / f"{name}.csv", rows)


def dicom_picture(path: Path, pixels: NDArray[np.uint8], patient: str) -> None:
    """Write a chest X-ray as DICOM: its own series, as a detector writes it."""
    series = generate_uid()
    save_dicom(dicom(pixels, Modality="DX", PatientID=patient, SeriesInstanceUID=series), path)


def rsna_pneumonia(root: Path, images: int = 24) -> None:
    """A row a box, two boxes where there is pneumonia; a test image without a label."""
    boxes: list[list[Any]] = [["patientId", "x", "y", "width", "height", "Target"]]
    classes: list[list[Any]] = [["patientId", "class"]]
    for i in range(images):
        name, ill = f"{i:04x}cfab-14fd", i % 2
        pixels = noisy(disc(12 + 8 * ill, 20, 8), i)
        dicom_picture(root / "stage_2_train_images" / f"{name}.dcm", pixels, name)
        boxes += [[name, 4.0, 9.0, 8.0, 8.0, 1]] * 2 if ill else [[name, "", "", "", "", 0]]
        classes += [[name, "Lung Opacity"]] * 2 if ill else [[name, "Normal"]]
    dicom_picture(root / "stage_2_test_images/ffff.dcm", noisy(disc(12, 20, 8), 99), "ffff")
    write_rows(root / "stage_2_train_labels.csv", boxes)
    write_rows(root / "stage_2_detailed_class_info.csv", classes)


def vindr_cxr(root: Path, train: int = 24, test: int = 8, *, kaggle: bool = False) -> None:
    """Three readers an image, one of whom errs; the test part as they agreed, one row an image."""
    names = [name for name in VINDR_LABELS if name != "Other diseases"]
    first = 0
    for part, number, other in (
        ("train", train, "Other diseases"),
        ("test", test, "Other disease"),
    ):
        readers = ["R1", "R2", "R3"] if part == "train" else [None]
        head = ["image_id", *(["rad_id"] if part == "train" else []), *names, other]
        rows: list[list[Any]] = [head]
        drawn: list[list[Any]] = [["image_id", "class_name", "class_id", "rad_id", "x_min"]]
        for i in range(first, first + number):
            name, ill = f"{i:04d}418190bc", i % 2
            dicom_picture(root / part / f"{name}.dicom", noisy(disc(12 + 8 * ill, 20, 8), i), "")
            for reader in readers:
                said = {"Cardiomegaly" if ill else "No finding"}
                said |= {"Other lesion"} if reader == "R2" else set()
                marks = [int(name in said) for name in (*names, other)]
                rows.append([name, *([reader] if reader else []), *marks])
                drawn += [[name, each, 0, reader, ""] for each in sorted(said)]
        first += number
        if not kaggle:
            write_rows(root / f"annotations/image_labels_{part}.csv", rows)
        elif part == "train":
            write_rows(root / "train.csv", drawn)


def montgomery(root: Path, images: int = 24) -> None:
    for i in range(images):
        name = f"MCUCXR_{i + 1:04d}_{i % 2}.png"
        left, right = (disc(16 + 3 * (i % 4), x, 8 + i % 2) for x in (29, 10))
        save(root / "CXR_png" / name, noisy(left | right, i))
        save(root / "ManualMask/leftMask" / name, np.uint8(255) * left)
        save(root / "ManualMask/rightMask" / name, np.uint8(255) * right)
    (root / "ClinicalReadings").mkdir()


def shenzhen(root: Path, images: int = 20) -> None:
    for i in range(images):
        stem = f"CHNCXR_{i + 1:04d}_{i % 2}"
        lungs = disc(16 + 3 * (i % 4), 29, 8) | disc(20, 10, 8 + i % 2)
        save(root / "CXR_png" / f"{stem}.png", noisy(lungs, i))
        if i:  # as in the set, some have none
            save(root / "mask" / f"{stem}_mask.png", np.uint8(255) * lungs)


def sars(root: Path, patients: int = 8) -> None:
    """So many patients a group, three slices each."""
    for group in ("Covid", "Healthy", "Others"):
        for patient in range(1, patients + 1):
            for i in range(3):
                marked = disc(20, 12 if group == "Covid" else 26, 7)
                seed = 100 * patient + 10 * len(group) + i
                save(root / group / f"Patient ({patient})" / f"{i + 1}.png", noisy(marked, seed))


def cc_ccii(root: Path, patients: int = 6) -> None:
    """So many patients a class, of the same numbers; one of each class has two scans."""
    listed: list[list[Any]] = [["zip_file", "label", "patient_id", "scan_id", "n_slice"]]
    scan = 1000
    for number, name in enumerate(("CP", "NCP", "Normal")):
        for patient in range(1, patients + 1):
            for _ in range(2 if patient == 1 else 1):
                scan += 1
                for i in range(2):
                    marked = disc(12 + 6 * number, 20, 7)
                    path = root / name / str(patient) / str(scan) / f"{i:04}.jpg"
                    save(path, noisy(marked, 7 * scan + i), quality=95)
                listed.append([f"{name}-1.zip", name, patient, scan, 2])
    write_rows(root / "unzip_filenames.csv", [*listed, ["CP-2.zip", "CP", 99, 9999, 40]])


def brain_tumour(root: Path, files: int = 30, *, torn: bool = False) -> None:
    """Two slices a patient, MATLAB v7.3 files behind their 512 bytes, in the archives' folders."""
    fold = []
    for i in range(files):
        patient, label = i // 2, i // 2 % 3 + 1
        fold.append((i if torn else patient) % 5 + 1)
        place = root / ("brainTumorDataPublic_1-766" if i < 20 else "brainTumorDataPublic_767-1532")
        place.mkdir(parents=True, exist_ok=True)
        mask = disc(10 + 6 * label, 15, 4 + label)
        with h5py.File(place / f"{i + 1}.mat", "w", userblock_size=512) as file:
            struct = file.create_group("cjdata")
            struct["image"] = (noisy(mask, i).astype(np.int16) * 10).T
            struct["tumorMask"] = mask.astype(np.uint8).T
            struct["label"] = np.array([[float(label)]])
            codes = [ord(letter) for letter in f"{100360 + patient}"]
            struct["PID"] = np.array(codes, np.uint16)[:, None]
            struct["tumorBorder"] = np.zeros((8, 1))
    with h5py.File(root / "cvind.mat", "w", userblock_size=512) as file:
        file["cvind"] = np.array(fold, float)[None]


def volume(path: Path, seed: int, values: int, *, mask: Path | None = None) -> None:
    """Write a CT or MR volume (24, 20, 4) with one organ a value, side by side."""
    shape, rng = (24, 20, 4), np.random.default_rng(seed)
    labels = np.zeros(shape, np.int16)
    start, top, bottom = rng.integers(0, 3), rng.integers(1, 9), rng.integers(14, 23)
    for value in range(1, values + 1):
        width = max(1, 18 // values)
        labels[top:bottom, start + (value - 1) * width : start + value * width, 1:] = value
    x, y, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    ground = 150 * np.sin(rng.uniform(0.1, 0.6) * x + rng.uniform(0.1, 0.6) * y + seed)
    voxels = (labels * (400 // values) + ground + rng.normal(0, 40, shape)).astype(np.int16)
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    for array, into in ((voxels, path), (labels, mask)):
        if into is not None:
            into.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), into)


def amos(root: Path, train: int = 5, val: int = 3) -> None:
    """CT below 501, one MR volume in each folder, a test volume without a mask."""
    for suffix, first, number in (("Tr", 1, train), ("Va", 200, val)):
        for case in (*range(first, first + number), 507 + first // 10):
            name = f"amos_{case:04d}.nii.gz"
            volume(root / f"images{suffix}" / name, case, 15, mask=root / f"labels{suffix}" / name)
    volume(root / "imagesTs/amos_0500.nii.gz", 500, 15)
    (root / "dataset.json").write_text("{}")


def decathlon(root: Path, prefix: str, values: int, volumes: int = 6) -> None:
    for i in range(volumes):
        name = f"{prefix}_{2 * i + 1}.nii.gz"
        volume(root / "imagesTr" / name, i, values, mask=root / "labelsTr" / name)
        (root / "imagesTr" / f"._{name}").write_bytes(b"\0\5\x16\7Mac OS X")
    volume(root / "imagesTs" / f"{prefix}_90.nii.gz", 90, values)
    (root / "dataset.json").write_text("{}")


def btcv(root: Path, volumes: int = 6) -> None:
    training = root / "RawData/Training"
    for i in range(1, volumes + 1):
        mask = training / f"label/label{i:04d}.nii.gz"
        volume(training / f"img/img{i:04d}.nii.gz", i, 13, mask=mask)
    volume(root / "RawData/Testing/img/img0061.nii.gz", 61, 13)


def kits23(root: Path, cases: int = 6) -> None:
    """As its repository has them: an instance by an annotator each, and a mask without an image."""
    for i in range(cases):
        case = root / f"dataset/case_{i:05d}"
        volume(case / "imaging.nii.gz", i, 3, mask=case / "segmentation.nii.gz")
        volume(case / "instances/kidney_instance-1_annotation-1.nii.gz", i, 1)
    volume(root / "dataset/case_00400/segmentation.nii.gz", 400, 3)


def totalsegmentator(root: Path, train: int = 4, val: int = 1, test: int = 2) -> None:
    """A file a structure, side by side."""
    rows: list[list[Any]] = [["image_id", "age", "gender", "institute", "split"]]
    parts = ["train"] * train + ["val"] * val + ["test"] * test
    for i, part in enumerate(parts):
        subject = root / f"s{i:04d}"
        volume(subject / "ct.nii.gz", i, 2, mask=subject / "both.nii.gz")
        both = nib.load(subject / "both.nii.gz")
        (subject / "segmentations").mkdir()
        for value, name in enumerate(("spleen", "kidney_right"), start=1):
            one = (np.asarray(both.dataobj) == value).astype(np.uint8)
            nib.save(nib.Nifti1Image(one, both.affine), subject / f"segmentations/{name}.nii.gz")
        (subject / "both.nii.gz").unlink()
        rows.append([subject.name, 60 + i, "mf"[i % 2], "A", part])
    root.mkdir(exist_ok=True)
    text = "\n".join(";".join(str(cell) for cell in row) for row in rows)
    (root / "meta.csv").write_text(text + "\n", encoding="utf-8-sig")


def brats(root: Path, patients: int = 5) -> None:
    """Four sequences a case with one mask; one patient has two cases, and one case no mask."""
    cases = [f"BraTS-GLI-{i:05d}-000" for i in range(patients)] + ["BraTS-GLI-00000-001"]
    for i, case in enumerate(cases):
        for sequence in ("t1c", "t1n", "t2f", "t2w"):
            mask = root / case / f"{case}-seg.nii.gz"
            volume(root / case / f"{case}-{sequence}.nii.gz", i, 3, mask=mask)
    volume(root / "BraTS-GLI-00900-000/BraTS-GLI-00900-000-t1c.nii.gz", 90, 3)


def lidc(root: Path, patients: int = 12) -> None:
    """A CT scan a patient with two nodules, the last patient's with none; X-rays of one, too.

    Readers outline a disc on the pixels around it; readings lie beside the scans, or by themselves.
    """
    for i in range(patients + 1):
        name = f"LIDC-IDRI-{i + 1:04d}"
        study = root / "LIDC-IDRI" / name / "01-01-2000-30178"
        scan, uid = study / "3000566-03192", generate_uid()
        malignant = i % 2
        radius = 3 + 3 * malignant
        marked = disc(12, 10, radius) | disc(28, 30, radius)
        for z in range(6):
            seen = marked if z in (2, 3) and i < patients else np.zeros_like(marked)
            pixels = (1000.0 * noisy(seen, 10 * i + z, 100) / 255 - 900).astype(np.int16)
            place = {
                "ImagePositionPatient": [-150.0, -140.0, -100.0 + 2.5 * z],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [0.8, 0.7],
                "PatientID": name,
                "SeriesInstanceUID": uid,
                "InstanceNumber": z + 1,
            }
            save_dicom(dicom(pixels, **place), scan / f"1-{z + 1:03d}.dcm")
        rating = (1, 4)[malignant]
        read = [[((10, 12), radius, rating), ((30, 28), radius, rating + 1)]] * (1 + i % 4)
        file = scan / "069.xml" if i % 2 else root / f"tcia-lidc-xml/157/{i:03d}.xml"
        lidc_reading(file, uid, read if i < patients else [[]])
    picture = study.parent / "01-01-2001-31000/1.000000-NA/1-001.dcm"
    dicom_picture(picture, noisy(marked, 1), name)


def lidc_reading(
    file: Path, series: str, sessions: Sequence[Sequence[tuple[tuple[int, int], int, int]]]
) -> None:
    """Write what readers say of nodules: their middle (x, y), radius in pixels, and rating.

    In slices 2 and 3. Each reader marks a nodule below 3 mm, too, and something that is none.
    """
    text = [
        '<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    ]
    for session in sessions:
        text.append("<readingSession>")
        for (x, y), radius, rating in session:
            text.append(f"<unblindedReadNodule><characteristics><malignancy>{rating}</malignancy>")
            text.append("</characteristics>")
            reach = radius + 1  # the pixels just outside
            corners = [(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)]
            text += [_lidc_roi(z, corners) for z in (2, 3)]
            text.append("</unblindedReadNodule>")
        small = _lidc_roi(4, [(20, 20)])
        text.append(f"<unblindedReadNodule>{small}</unblindedReadNodule>")
        text.append("<nonNodule><imageZposition>-95.0</imageZposition></nonNodule>")
        text.append("</readingSession>")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join([*text, "</LidcReadMessage>"]))


def _lidc_roi(z: int, points: Sequence[tuple[int, int]]) -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points
    )
    place = f"<imageZposition>{-100 + 2.5 * z}</imageZposition>"
    return f"<roi>{place}<inclusion>TRUE</inclusion>{edges}</roi>"


def luna25(root: Path, nodules: int = 24) -> None:
    """Two nodules a patient, as blocks of HU; a pickle beside each."""
    head = ["PatientID", "SeriesInstanceUID", "StudyDate", "CoordX", "CoordY", "CoordZ", "LesionID"]
    rows: list[list[Any]] = [
        [*head, "AnnotationID", "NoduleID", "label", "Age_at_StudyDate", "Gender"]
    ]
    for i in range(nodules):
        patient, lesion, label = 100_000 + i // 2, i % 2 + 1, i // 2 % 2
        name = f"{patient}_{lesion}_20000102"
        rng = np.random.default_rng(i)
        block = rng.normal(-800, 60, (2, 32, 32)) + 700 * disc(16, 16, 3 + 4 * label, 32)
        for kind, values in (
            ("image", block.astype(np.int16)),
            ("metadata", {"spacing": [1, 1, 1]}),
        ):
            path = root / f"luna25_nodule_blocks/{kind}/{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.asarray(values))
        place = [f"1.3.{patient}", 20000102, -80.5, 80.9, 1399.1, lesion]
        about = [name, f"{patient}_{lesion}", label, 75, "Female"]
        rows.append([patient, *place, *about])
    write_rows(root / "LUNA25_Public_Training_Development_Data.csv", rows)


def medmnist(
    path: Path, sizes: tuple[int, int, int] = (30, 10, 12), *, deep: bool = False, seed: int = 0
) -> None:
    """Two classes of pictures of 28 pixels, or of volumes; seed: of the first."""
    arrays: dict[str, NDArray[Any]] = {}
    for part, n in zip(("train", "val", "test"), sizes, strict=True):
        labels = np.arange(n) % 2
        images = []
        for label in labels:
            seed += 1
            flat = noisy(disc(10 + 8 * label, 14, 6, 28), seed)
            images.append(np.repeat(flat[None], 28, axis=0) if deep else flat)
        arrays[f"{part}_images"] = np.stack(images)
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
