"""Peak memory of an extraction by the number of slices, with a network that costs next to nothing.

    .venv/bin/python -m benchmarks.memory --slices 1000 10000 50000

`rss` is the highest sum of resident memory over the run's process and its readers, by /proc, 20
times a second; `own` that of the run's process alone; `KiB more` what rss grew by, a slice, over
the smallest size. `again` is the same of a second run, which looks at the collection and has
nothing to embed. Each run has a process of its own. The slices are small pictures, so that what
grows is not hidden behind their pixels: `files` has a file each, `volume` has all in one gzipped
NIfTI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from PIL import Image

from tests.pipeline.models import write_tiny_folder

RUN = """
import sys
from pathlib import Path
from pipeline.config.loading import load_config
from pipeline.extraction.embed import Speed
from pipeline.extract import extract
summary = extract(load_config(Path(sys.argv[1])), Speed(device="cpu", batch_size=32))
assert (summary.slices, summary.embedded) == tuple(map(int, sys.argv[2:])), summary
"""
SIDE = 64


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", nargs="+", type=int, default=[1000, 10_000, 50_000])
    args = options.parse_args()
    names = ("slices", "rss MiB", "own MiB", "KiB more", "seconds", "again MiB", "KiB more")
    print(f"{'':>8}" + "".join(f"{name:>10}" for name in names))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_folder(folder / "tiny", depth=1)
        for kind, write in (("files", write_files), ("volume", write_volume)):
            first: tuple[int, float, float] | None = None
            for slices in args.slices:
                place = folder / kind / str(slices)
                write(place / "images", slices)
                config = write_config(place, folder / "tiny")
                began = time.perf_counter()
                whole, own = peak_of_run(config, slices, slices)
                seconds = time.perf_counter() - began
                again, _ = peak_of_run(config, slices, 0)
                first = first or (slices, whole, again)
                more, more_again = (
                    (now - before) * 1024 / max(1, slices - first[0])
                    for now, before in ((whole, first[1]), (again, first[2]))
                )
                print(
                    f"{kind:>8}{slices:>10}{whole:>10.0f}{own:>10.0f}{more:>10.2f}{seconds:>10.1f}"
                    f"{again:>10.0f}{more_again:>10.2f}",
                    flush=True,
                )


def peak_of_run(config: Path, slices: int, embedded: int) -> tuple[float, float]:
    """Extract, which must find and embed so many slices; return the peaks of it."""
    run = subprocess.Popen([sys.executable, "-c", RUN, str(config), str(slices), str(embedded)])
    whole, own = peak(run)
    assert run.returncode == 0
    return whole, own


def write_files(root: Path, slices: int) -> None:
    """Write pictures, each its own, a thousand a folder."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
    for i in range(slices):
        pixels = base.copy()
        pixels[0, :4] = np.frombuffer(np.uint32(i).tobytes(), np.uint8)
        path = root / f"{i // 1000:03d}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def write_volume(root: Path, slices: int) -> None:
    """Write pictures, each its own, as one volume of fifty slices at many times."""
    voxels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 50, slices // 50), np.uint8)
    root.mkdir(parents=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "volume.nii.gz")


def write_config(folder: Path, network: Path) -> Path:
    """Write the config that embeds the pictures of a folder."""
    content = {
        "data": {"root": str(folder / "images"), "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{network}", "image_size": 56},
        "outputs": {"blocks": 1, "part_rows": 1024},
        "store": str(folder / "store"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def peak(run: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Return the peak MiB of a process with its children, and of itself alone."""
    whole = own = 0.0
    while run.poll() is None:
        sizes = [resident(pid) for pid in (run.pid, *children(run.pid))]
        whole, own = max(whole, sum(sizes)), max(own, sizes[0])
        time.sleep(0.05)
    return whole / 1024, own / 1024


def children(pid: int) -> list[int]:
    """Return the processes that one started, but for those that are its own image still."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return [child for child in found if command(child) != command(pid)]


def command(pid: int) -> bytes:
    """Return what a process was started with; nothing of one that ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def resident(pid: int) -> float:
    """Return the resident KiB of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    main()
