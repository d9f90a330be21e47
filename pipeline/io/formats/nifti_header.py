"""A NIfTI header: what it says of the voxels, mended where the standard or its readers agree how.

Everything is in millimetres, whatever the file's own unit is. A qfac (pixdim[0]) of 0 is 1, as
nifti1.h has it. Read as nifti_clib (ITK and FSL with it) reads them, and flagged `mended-header`:
an axis of a size below 1, a quaternion longer than 1, an sform without a matrix, which gives way to
the qform, and a spacing below 0, whose sign means nothing (as nibabel has it too; ITK by itself
then mirrors the axis). A spacing of 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from nibabel.spm2analyze import Spm2AnalyzeHeader
from numpy.typing import NDArray

from pipeline.io.formats.pair import HEADER_BYTES, is_analyze, is_pair
from stores.errors import UnreadableError

Affine = NDArray[np.float64]  # (4, 4): voxel -> mm, RAS

MENDED = "mended-header"

# Millimetres to a unit of space (xyzt_units, its lowest three bits); others are millimetres.
_MILLIMETRES = {1: 1000.0, 3: 0.001}
# A quaternion is of length 1; one whose square is more by this is more than 32 bits round to, and
# flagged (nibabel refuses it).
_QUATERNION = 3 * float(np.finfo(np.float32).eps)
# Below this volume of a voxel (mm3, by its own edges) a matrix is none.
_FLAT = 1e-6


@dataclass(frozen=True)
class NiftiHeader:
    """A header as it is read.

    raw: nibabel's. shape: (x, y, z, time). affine: voxel -> mm (RAS). placed: whether the file says
    how the volume lies in the patient. known_spacing: which of x, y, z have a spacing. mended:
    whether something in it was wrong. offset: where the voxels begin (bytes) in their file. paired:
    whether that is a file of their own; is_analyze: whether it is none of NIfTI, but of Analyze
    7.5.
    """

    raw: Any
    shape: tuple[int, ...]
    affine: Affine
    placed: bool
    known_spacing: tuple[bool, bool, bool]
    mended: bool
    offset: int
    paired: bool
    is_analyze: bool


def read_header(stream: BinaryIO) -> NiftiHeader:
    """Return the NIfTI-1, NIfTI-2 or Analyze header at the start of a stream, in any byte order.

    Raises UnreadableError.
    """
    start = stream.read(HEADER_BYTES)
    analyze = is_analyze(start)
    raw = _raw_header(start, analyze=analyze)
    shape, shape_mended = _four_dimensions(raw)
    spacing = _spacing(raw, shape)
    if analyze:
        # Nothing says how it lies: as nibabel (and SPM) has it, about its origin.
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
        usable = affine if _is_usable(affine) else _middle(raw, spacing.steps)
        placement = _Placement(usable, placed=False, by_spacing=True, mended=False)
        unit_mm = 1.0
    else:
        placement = _placement(raw, spacing.steps)
        unit_mm = _MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0)
    affine = placement.affine.copy()
    affine[:3] *= unit_mm
    mended = shape_mended or placement.mended
    known = (True, True, True)
    if placement.by_spacing:
        mended = mended or spacing.mended
        known = spacing.known
    paired = analyze or is_pair(start)
    return NiftiHeader(
        raw=raw,
        shape=shape,
        affine=affine,
        placed=placement.placed,
        known_spacing=known,
        mended=mended,
        offset=_offset(raw, 0 if paired else int(raw.single_vox_offset)),
        paired=paired,
        is_analyze=analyze,
    )


def _raw_header(start: bytes, *, analyze: bool) -> Any:
    is_second = start[4:7] in (b"n+2", b"ni2")
    kind = nib.Nifti2Header if is_second else nib.Nifti1Header
    if analyze:
        kind = Spm2AnalyzeHeader
    size = 540 if is_second else 348
    if len(start) < size:
        raise UnreadableError("truncated", f"has {len(start)} bytes of a header of {size}")
    return kind(start[:size], check=False)


def _offset(raw: Any, least: int) -> int:
    """Return where the voxels begin; 0 is behind the header, whose end is `least`.

    Less would take bytes of the header for voxels: raises UnreadableError.
    """
    offset = float(raw["vox_offset"])
    if not np.isfinite(offset) or (offset and offset < least):
        raise UnreadableError("corrupt", f"its voxels begin at {offset:g}, within its header")
    return int(offset) or least


def _four_dimensions(raw: Any) -> tuple[tuple[int, ...], bool]:
    """Return a volume's shape (x, y, z, time), 1 where the file has fewer, and whether mended."""
    sizes = [int(n) for n in raw["dim"]]
    dimensions = sizes[0]
    if not 1 <= dimensions <= 7 or sizes[1] < 1:
        raise UnreadableError("corrupt", f"declares {dimensions} dimensions, the first {sizes[1]}")
    stated = sizes[1 : dimensions + 1]
    shape = [max(1, n) for n in stated]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4:
        raise UnreadableError("unsupported", f"has {len(shape)} dimensions, not 2 to 4")
    while len(shape) < 4:
        shape.append(1)
    return tuple(shape), min(stated) < 1


@dataclass(frozen=True)
class _Spacing:
    """The distances of voxels (3,) in file units, 1 where a file has none that is above 0."""

    steps: NDArray[np.float64]
    known: tuple[bool, bool, bool]
    mended: bool


def _spacing(raw: Any, shape: tuple[int, ...]) -> _Spacing:
    stated = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    steps = np.abs(stated)
    known = np.isfinite(steps) & (steps > 0)
    # An axis of one voxel needs no distance, and many a picture has none.
    needed = np.array([True, True, shape[2] > 1])
    mended = bool((needed & ~(known & (stated > 0))).any())
    x, y, z = known.tolist()
    return _Spacing(np.where(known, steps, 1.0), (x, y, z), mended)


@dataclass(frozen=True)
class _Placement:
    """Voxel -> file units (RAS), and what is said of it.

    placed: whether it is of the patient. by_spacing: whether its steps are those of `_Spacing`.
    mended: whether something of it was wrong.
    """

    affine: Affine
    placed: bool
    by_spacing: bool
    mended: bool


def _placement(raw: Any, steps: NDArray[np.float64]) -> _Placement:
    """Return where a file says that its voxels lie: by its sform, else its qform, else by none."""
    has_sform = bool(raw["sform_code"] > 0)
    if has_sform:
        sform = np.asarray(raw.get_sform(), dtype=np.float64)
        if _is_usable(sform):
            return _Placement(sform, placed=True, by_spacing=False, mended=False)
    if raw["qform_code"] > 0:
        qform, mended = _qform(raw, steps)
        if _is_usable(qform):
            return _Placement(qform, placed=True, by_spacing=True, mended=mended or has_sform)
    return _Placement(_middle(raw, steps), placed=False, by_spacing=True, mended=has_sform)


def _middle(raw: Any, steps: NDArray[np.float64]) -> Affine:
    """Return where a file without a matrix lies: the first axis from right to left, about 0."""
    base = np.diag([-steps[0], steps[1], steps[2], 1.0])
    sizes = np.maximum(np.asarray(raw["dim"][1:4], dtype=np.float64), 1)
    sizes[int(raw["dim"][0]) :] = 1
    base[:3, 3] = -base[:3, :3] @ ((sizes - 1) / 2)
    return base


def _qform(raw: Any, steps: NDArray[np.float64]) -> tuple[Affine, bool]:
    """Return the qform, and whether its quaternion was too long.

    A longer one is a turn by 180 degrees, once it is cut to length, as nifti_clib takes it.
    """
    vector = np.array([float(raw[f"quatern_{axis}"]) for axis in "bcd"])
    length = float(np.linalg.norm(vector))
    mended = bool(length**2 > 1 + _QUATERNION)
    real = 0.0
    if length > 1:
        vector = vector / length
    else:
        real = float(np.sqrt(1 - min(1.0, length**2)))
    turn = quat2mat([real, *vector])
    signed = steps.copy()
    if raw["pixdim"][0] < 0:  # qfac
        signed[2] = -signed[2]
    affine = np.eye(4)
    affine[:3, :3] = turn * signed
    affine[:3, 3] = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine, mended


def _is_usable(affine: Affine) -> bool:
    """Return whether a matrix gives each voxel a place of its own."""
    if not np.isfinite(affine).all():
        return False
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3]))
    return bool(edges.min() > 0 and volume > _FLAT * edges.prod())
