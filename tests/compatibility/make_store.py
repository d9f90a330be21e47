"""Make the store of an earlier commit: python -m tests.compatibility.make_store ARCHIVE.tar.gz

Run at that commit, with that commit's own code. The files are synthetic, the network has random
weights, and the key of the pseudonyms is one for this test. README.md has the rest.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

KEY = hashlib.sha256(b"a key for tests").hexdigest()
WITHDRAWN = "PHANTOM-2"
CONFIG = """\
data:
  root: {folder}/data
  exclude: ["masks/**"]
  modality: {"mr.nii.gz": MR, "*.png": DX}
backbone: {name: "hf:{folder}/network", image_size: 56}
outputs: {keep: [cls, mean, patch], patch: {coding: int8}, blocks: 2, part_rows: 8}
store: {folder}/store
labels: {file: {folder}/labels.csv, patient: patient}
split: {folds: 3, allow: [near-duplicates]}
tasks: {bright: {labels: [bright]}}
knn: {k: [3]}
fewshot: {shots: [1], queries: 2, episodes: 10}
masks: {square: {files: {"*.png": "masks/{stem}.png"}, values: square}}
segment: {near: {method: knn, k: [1]}}
"""


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture with a brighter square, uint8 (32, 32), and the square's mask."""
    rng = np.random.default_rng(number)
    mask = np.zeros((32, 32), np.uint8)
    top, left = rng.integers(2, 14, 2)
    mask[top : top + 14, left : left + 14] = 1
    noise = rng.integers(0, 12, mask.shape, dtype=np.uint8) * 8  # few values, for few bytes
    return noise + 96 * mask + np.uint8(48 * (number % 2)), mask


def write_slice(path: Path, patient: str, number: int, torn: bool = False) -> None:
    """Write a CT slice, int16 (24, 24), as DICOM; a torn one cannot be decoded."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    series = f"1.2.826.0.1.3680043.8.498.{patient[-1]}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.1.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = series, f"{series}.1"
    ds.Modality, ds.PatientID, ds.PatientName = "CT", patient, "Nobody"
    ds.Rows = ds.Columns = 24
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.ImagePositionPatient = [0.0, 0.0, 2.5 * number]
    ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    ds.PixelSpacing, ds.InstanceNumber = [0.8, 0.7], number
    y, x = np.mgrid[:24, :24]
    values = 60 * number + 9 * y + 4 * x + 200 * (y > 9) * (x > 12) - 500 + int(patient[-1])
    ds.PixelData = values.astype("<i2").tobytes()
    if torn:
        ds.compress(RLELossless, generate_instance_uid=False)
        whole = ds.PixelData
        ds.PixelData = whole[:90] + b"\xff" * (len(whole) - 98) + whole[-8:]
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def write_files(folder: Path) -> None:
    """Write the collection, its labels and masks, and one picture more for later."""
    data, rows = folder / "data", ["path,patient,bright"]
    (data / "masks").mkdir(parents=True)
    for number in range(13):
        pixels, mask = picture(number)
        # The last comes into the collection once the store is there.
        place = data if number < 12 else folder / "later"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"p{number:02}.png")
        Image.fromarray(mask).save(data / f"masks/p{number:02}.png")
        if number < 12:
            rows.append(f"p{number:02}.png,person {number},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (data / "cut.png").write_bytes((data / "p00.png").read_bytes()[:200])  # set aside, no row
    for number in range(4):
        write_slice(data / f"ct/one/{number}.dcm", "PHANTOM-1", number, torn=number == 3)
    for number in range(2):
        write_slice(data / f"ct/two/{number}.dcm", WITHDRAWN, number)
    z, y, x = np.mgrid[:3, :20, :24]
    voxels = (40 * z + 7 * y + 3 * x).astype(np.int16).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(voxels, np.diag([-0.7, -0.8, 2.5, 1.0])), data / "mr.nii.gz")


def write_network(folder: Path) -> None:
    """Write a DINOv2 of two blocks and 24 numbers, as Hugging Face saves it."""
    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    grid = {"image_size": 56, "patch_size": 14, "num_register_tokens": 2}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, **grid, mlp_ratio=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    normalisation = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))


def radprobe(*arguments: str | Path, code: int = 0) -> None:
    run = [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)]
    assert subprocess.run(run).returncode == code, arguments


def pack(folder: Path, archive: Path) -> None:
    def nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=nobodys)


def make(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        write_network(folder / "network")
        (folder / "store.key").write_text(KEY + "\n")
        config = folder / "config.yaml"
        config.write_text(CONFIG.replace("{folder}", name))
        radprobe("extract", config, "--device", "cpu", code=1)  # two files are bad
        radprobe("withdraw", folder / "store", "--patient", WITHDRAWN)
        radprobe("evaluate", config)
        radprobe("segment", config)
        radprobe("verify", folder / "store")
        config.write_text(CONFIG)
        pack(folder, archive)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
