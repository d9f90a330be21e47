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

Severity = Literal["ok", "warning", "failure"]

_MIN_FILES = 1024  # open at once
_MIN_MEMORY = 4 * 2**30  # bytes
_REINSTALL = "Install radprobe anew: pip install --force-reinstall radprobe."
_GPU_BUILD = (
    "pip install torch --index-url https://download.pytorch.org/whl/cu126 (or the CUDA of the "
    "driver, see pytorch.org)."
)


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it.

    The names of the fields are the keys of `radprobe doctor --json`.
    """

    name: str
    level: Severity
    found: str
    remedy: str = ""


def software() -> Iterator[Check]:
    """Yield whether Python and the libraries that runs need are there."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in ("torch", "transformers", "faiss", "zarr", "pydicom", "nibabel", "sklearn"):
        yield _library(name)
    yield from faiss_packages()


def _library(name: str) -> Check:
    """Say whether a library can be imported: that it is installed does not mean so."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken library raises anything
        lines = str(error).splitlines() or [type(error).__name__]
        return Check(name, "failure", f"cannot be imported: {lines[0]}", _REINSTALL)
    return Check(name, "ok", str(getattr(module, "__version__", "")) or "there")


def gpu() -> Iterator[Check]:
    """Yield what there is of GPUs, their driver, and what can use them."""
    import torch

    from pipeline.evaluation.cards import number_of_cards, why_none

    driver = _driver()
    if not torch.cuda.is_available():
        yield _no_cuda(driver)
        return
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        lower = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        size = about.total_memory / 2**30
        yield Check(f"cuda:{i}", "ok", f"{about.name}, {size:.0f} GiB, precision: {lower}")
    yield Check("driver", "ok", f"{driver or 'unknown'}, torch for CUDA {torch.version.cuda}")
    if number_of_cards() == 0:
        yield Check("faiss on gpu", "warning", "none", f"{why_none()} If kNN of millions is slow.")


def faiss_packages() -> Iterator[Check]:
    """Yield a warning where two packages of FAISS lie in one folder."""
    from pipeline.evaluation.cards import INSTALL, installed

    packages = installed()
    if len(packages) > 1:
        both = f"{' and '.join(packages)} are both installed, and overwrite each other"
        yield Check("faiss packages", "warning", both, f"{INSTALL}; or without a GPU faiss-cpu.")


def _no_cuda(driver: str | None) -> Check:
    """Say why torch uses no NVIDIA GPU, and whether there is one that it should use."""
    import torch

    if torch.backends.mps.is_available():
        return Check("gpu", "ok", "an Apple GPU: --device mps")
    if driver is None:
        return Check("gpu", "warning", "none", "Extraction runs on the CPU, some 100 times slower.")
    if torch.version.cuda is None:
        fault = f"driver {driver}, but torch {torch.__version__} is built without CUDA"
        return Check("gpu", "failure", fault, _GPU_BUILD)
    fault = f"driver {driver} and torch for CUDA {torch.version.cuda} do not find a GPU"
    remedy = "Look at nvidia-smi and CUDA_VISIBLE_DEVICES; the driver may be too old."
    return Check("gpu", "failure", fault, remedy)


def _driver() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
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
        name = f"DICOM {syntax.name}"
        if plugin in decoder.available_plugins:
            yield Check(name, "ok", plugin)
        else:
            lacks = "; ".join(decoder.missing_dependencies)
            yield Check(name, "failure", f"{plugin} is missing ({lacks})", _REINSTALL)
    try:
        yield Check("DICOM JPEG of 12 bits", "ok", f"imagecodecs {version('imagecodecs')}")
    except PackageNotFoundError:
        yield Check("DICOM JPEG of 12 bits", "failure", "imagecodecs is missing", _REINSTALL)


def weights(name: str | None, path: str | None) -> Iterator[Check]:
    """Yield whether a config's weights are here; without a config, those of which network are."""
    if name is None:
        yield _weights_by_name()
        return
    try:
        weights = locate(name, path, hub=False)
    except WeightsError as error:
        fault, _, remedy = str(error).partition("\n")
        yield Check("weights", "failure", fault, remedy)
        return
    if weights.file is None:
        remedy = "Set backbone.weights to trained ones: features of these mean nothing."
        yield Check("weights", "warning", f"{name}: RANDOM ({weights.identity})", remedy)
    else:
        yield Check("weights", "ok", f"{name}: {weights.file} ({weights.identity[:19]}...)")


def _weights_by_name() -> Check:
    """Say of which networks the weights are here, or how to get the first of them."""
    here: list[str] = []
    remedies: list[str] = []
    for name in (*BACKBONES, *COMPARATORS):
        try:
            here.append(f"{name} ({locate(name, None, hub=False).identity[:19]}...)")
        except WeightsError as error:
            remedies.append(str(error))
    if here:
        return Check("weights", "ok", ", ".join(here))
    return Check("weights", "warning", "of no network that is known by name", remedies[0])


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
