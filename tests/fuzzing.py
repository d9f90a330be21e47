"""Mutated files of every format, and what the reader makes of them."""

from __future__ import annotations

import gzip
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import scipy.io
import SimpleITK as sitk
from pydicom import uid

from pipeline.config.data import Data
from pipeline.extraction.discover import discover
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.types import Failure, Slice

from . import phantoms

# The stem of headers whose voxels are a file of their own.
DETACHED = "detached"


def seeds(folder: Path) -> dict[str, bytes]:
    """Return whole files, one of each kind, made in `folder`."""
    voxels = phantoms.volume(6, 40, 48)
    plain = phantoms.save(phantoms.dicom(voxels[0]), folder / "plain.dcm")
    made = [plain]
    for syntax in (
        uid.ImplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ):
        made.append(
            phantoms.save(phantoms.dicom(voxels[:2]), folder / f"{syntax.keyword}.dcm", syntax)
        )
    made.append(phantoms.transcode(plain, folder / "jpeg.dcm", uid.JPEGLosslessSV1))
    made.append(phantoms.write_enhanced(folder / "enhanced.dcm", voxels, [1.0] * 6, times=2))
    made.append(phantoms.write_mosaic(folder / "mosaic.dcm", voxels))
    made.append(phantoms.write_nifti_of_series(folder / "a.nii", voxels))
    made.append(phantoms.write_nifti_of_series(folder / "b.nii.gz", voxels))
    grey = (voxels[0] % 256).astype(np.uint8)
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        made.append(phantoms.write_png(folder / name, grey))
    made.append(phantoms.write_png(folder / "sixteen.png", voxels[0].astype(np.uint16)))
    made.append(phantoms.write_png(folder / "palette.png", np.dstack([grey] * 3), "P"))
    made.append(phantoms.write_png(folder / "a.webp", grey))
    made.append(folder / "zipped.dcm.gz")
    made[-1].write_bytes(gzip.compress(plain.read_bytes()))
    made += [phantoms.write_bigtiff(folder / "big.tif", voxels[0].astype(np.uint16))]
    made += _volumes_of_itk(folder, voxels)
    np.save(folder / "a.npy", voxels)
    scipy.io.savemat(folder / "a.mat", {"image": voxels[0]}, do_compression=True)
    return {path.name: path.read_bytes() for path in [*made, folder / "a.npy", folder / "a.mat"]}


def _volumes_of_itk(folder: Path, voxels: np.ndarray) -> list[Path]:
    """Write MetaImages and NRRDs, coded and not, and headers of the voxels that lie beside them."""
    image = sitk.GetImageFromArray(voxels)
    image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    made = []
    for name, coded in (
        ("raw.mha", False),
        ("coded.mha", True),
        ("raw.nrrd", False),
        ("coded.nrrd", True),
        (f"{DETACHED}.mhd", False),
        (f"{DETACHED}.nhdr", True),
    ):
        made.append(folder / name)
        sitk.WriteImage(image, made[-1], useCompression=coded)
    return made


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the file with a few of its bytes changed, cut, doubled or shifted, mostly in front."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        end = len(out) if rng.random() < 0.4 else min(len(out), 1200)
        at = rng.randrange(end)
        match rng.randrange(7):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                out[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f")
                )
            case 3:
                out[at : at + 2] = rng.randbytes(2)
            case 4:
                del out[at : at + rng.choice((1, 2, 8, 64))]
            case 5:
                out[at:at] = out[at : at + rng.choice((1, 4, 32))]
            case 6:
                if rng.random() < 0.3:
                    del out[at:]
    return bytes(out)


def run(folder: Path, count: int, seed: int, *, workers: int, batch: int = 500) -> Counter[str]:
    """Read `count` mutated files and count what came out; batch by batch, in `folder`."""
    rng = random.Random(seed)
    whole = seeds(folder / "seeds")
    names = sorted(whole)
    found: Counter[str] = Counter()
    for start in range(0, count, batch):
        root = folder / f"batch{start}"
        root.mkdir()
        # What the headers name whose voxels lie beside them.
        for path in (folder / "seeds").glob(f"{DETACHED}.*raw*"):
            shutil.copy(path, root)
        beside = {path.name for path in root.iterdir()}
        for k in range(start, min(start + batch, count)):
            name = names[k % len(names)]
            (root / f"{k:06d}_{name}").write_bytes(mutate(whole[name], rng))
        found.update(_outcomes(root, workers, beside))
        for path in root.iterdir():
            path.unlink()
    return found


def _outcomes(root: Path, workers: int, beside: Collection[str]) -> Iterator[str]:
    """Yield one outcome a file, and hold the reader to its promises about rows.

    beside: names of files that are none of the mutated ones.
    """
    before = len(list(root.iterdir()))
    found = discover(Data(root=root), b"fuzz", workers=workers)
    assert found.files.num_rows == before
    frames: dict[str, list[int]] = {}
    for row in found.slices.to_pylist():
        frames.setdefault(row["path"], []).append(row["frame"])
    for row in found.files.to_pylist():
        if row["path"] in beside:
            continue
        assert (row["reason"] is None) == (row["path"] in frames)
        if row["reason"] is not None:
            yield f"set aside: {row['detail'] if 'crash' in row['detail'] else row['reason']}"
    # A few frames of each: a mutated count may promise thousands.
    requests = [Request(path, tuple(asked[:8])) for path, asked in frames.items()]
    reads = read_files(root, requests, workers=workers, time_limit_s=20)
    for request in requests:
        items = [read.item for read in itertools.islice(reads, len(request.frames))]
        assert tuple(item.frame for item in items) == request.frames
        bad = next((item for item in items if isinstance(item, Failure)), None)
        if bad is None:
            assert all(isinstance(i, Slice) and i.pixels.ndim == 2 and i.pixels.size for i in items)
            yield "read"
        else:
            yield f"unreadable: {bad.detail if 'crash' in bad.detail else bad.reason}"
    assert next(reads, None) is None
