"""What is installed and what the machine allows, a line a check, each with its remedy."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.backbones.models import COMPARATORS
from pipeline.backbones.weights import BACKBONES, locate
from pipeline.inference.speed import cores
from pipeline.shared.arrays import memory_bytes
from stores.errors import WeightsError

Level = Literal["ok", "warning", "failure"]

_MIN_FILES = 1024
_MIN_MEMORY = 4 * 2**30
_REINSTALL = "Install radprobe anew: pip install --force-reinstall radprobe."
_GPU_BUILD = (
    "pip install torch --index-url https://download.pytorch.org/whl/cu126 (or the CUDA of the "
    "driver, see pytorch.org)."
)


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def software() -> Iterator[Check]:
    """Yield whether Python and the libraries that runs need are there."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in ("torch", "transformers", "faiss", "zarr", "pydicom", "nibabel", "sklearn"):
        yield _library(name)


def _library(name: str) -> Check:
    """Say whether a library can be imported: that it is installed does not mean so."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken library raises anything
        said = str(error).splitlines() or [type(error).__name__]
        return Check(name, "failure", f"cannot be imported: {said[0]}", _REINSTALL)
    return Check(name, "ok", str(getattr(module, "__version__", "")) or "there")


def gpu() -> Iterator[Check]:
    """Yield what there is of GPUs, their driver, and what can use them."""
    import faiss
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            yield Check("gpu", "ok", "an Apple GPU: --device mps")
        elif driver is None:
            yield Check(
                "gpu", "warning", "none", "Extraction runs on the CPU, some 100 times slower."
            )
        elif torch.version.cuda is None:
            found = f"driver {driver}, but torch {torch.__version__} is built without CUDA"
            yield Check("gpu", "failure", found, _GPU_BUILD)
        else:
            found = f"driver {driver} and torch for CUDA {torch.version.cuda} do not find a GPU"
            remedy = "Look at nvidia-smi and CUDA_VISIBLE_DEVICES; the driver may be too old."
            yield Check("gpu", "failure", found, remedy)
        return
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        lower = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        size = about.total_memory / 2**30
        yield Check(f"cuda:{i}", "ok", f"{about.name}, {size:.0f} GiB, precision: {lower}")
    yield Check("driver", "ok", f"{driver or 'unknown'}, torch for CUDA {torch.version.cuda}")
    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        yield Check(
            "faiss on gpu",
            "warning",
            "faiss is the CPU's",
            "pip install 'radprobe[gpu]', if kNN of millions is slow.",
        )


def _driver() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "that does not answer"
    lines = done.stdout.split()
    return lines[0] if not done.returncode and lines else None


def codecs() -> Iterator[Check]:
    """Yield for each transfer syntax whether the plugin that is to decode it is there."""
    from pydicom.pixels.decoders.base import get_decoder

    from pipeline.io.formats.dicom_rules import DECODERS

    for syntax, plugin in DECODERS.items():
        decoder = get_decoder(syntax)
        there = plugin in decoder.available_plugins
        lacks = "; ".join(decoder.missing_dependencies)
        yield Check(
            f"DICOM {syntax.name}",
            "ok" if there else "failure",
            plugin if there else f"{plugin} is missing ({lacks})",
            "" if there else _REINSTALL,
        )
    try:
        yield Check("DICOM JPEG of 12 bits", "ok", f"imagecodecs {version('imagecodecs')}")
    except PackageNotFoundError:
        yield Check("DICOM JPEG of 12 bits", "failure", "imagecodecs is missing", _REINSTALL)


def weights(name: str | None, path: str | None) -> Iterator[Check]:
    """Yield whether a config's weights are here; without a config, those of which network are."""
    if name is not None:
        try:
            found = locate(name, path, hub=False)
        except WeightsError as error:
            first, _, rest = str(error).partition("\n")
            yield Check("weights", "failure", first, rest)
            return
        if found.file is None:
            remedy = "Set backbone.weights to trained ones: features of these mean nothing."
            yield Check("weights", "warning", f"{name}: RANDOM ({found.identity})", remedy)
        else:
            yield Check("weights", "ok", f"{name}: {found.file} ({found.identity[:19]}...)")
        return
    here, remedies = [], []
    for each in (*BACKBONES, *COMPARATORS):
        try:
            here.append(f"{each} ({locate(each, None, hub=False).identity[:19]}...)")
        except WeightsError as error:
            remedies.append(str(error))
    if here:
        yield Check("weights", "ok", ", ".join(here))
    else:
        yield Check("weights", "warning", "of no network that is known by name", remedies[0])


def limits() -> Iterator[Check]:
    """Yield what the system allows a process: open files, memory, cores."""
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = 0 <= soft < _MIN_FILES
        remedy = f"ulimit -n {4 * _MIN_FILES}" if few else ""
        yield Check("open files", "warning" if few else "ok", f"{soft} at once", remedy)
    memory = memory_bytes()
    if memory is not None:
        little = memory < _MIN_MEMORY
        remedy = "Take a small --batch-size and few --workers." if little else ""
        yield Check(
            "memory",
            "warning" if little else "ok",
            f"{memory / 2**30:.1f} GiB for this process",
            remedy,
        )
    share = _cpu_share()
    if share is not None and share < cores():
        remedy = f"Set OMP_NUM_THREADS={max(1, int(share))} and --workers to fit."
        yield Check(
            "cores", "warning", f"{cores()} seen, {share:g} allowed by the container", remedy
        )
    else:
        yield Check("cores", "ok", str(cores()))


def _cpu_share() -> float | None:
    """Return how many cores a container may keep busy; None where nothing limits it."""
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
