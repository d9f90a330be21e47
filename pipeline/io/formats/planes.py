"""Volumes cut into slices as DICOM shows them, whatever file they come from.

A volume is an array (X, Y, Z) whose axes run to the patient's right, anterior and superior (RAS),
and an affine from its voxels to mm. Nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import obliquity
from numpy.typing import NDArray

from pipeline.io.formats.reorientation import OBLIQUE
from pipeline.types import Header, Plane

Voxels = NDArray[Any]
Affine = NDArray[np.float64]  # (4, 4): voxel -> mm, RAS

# Axis of the RAS array that the slices of a plane follow, and its direction along their normal.
AXIS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


def is_oblique(affine: Affine) -> bool:
    """Return whether a volume lies at an angle to the patient's axes."""
    return bool(obliquity(affine).max() > OBLIQUE)


def canonical(
    shape: tuple[int, ...], affine: Affine, turn: NDArray[np.float64]
) -> tuple[tuple[int, ...], Affine]:
    """Return the shape (X, Y, Z) and the affine of a stored volume once it is turned to RAS.

    shape: as stored; turn: (3, 2), nibabel's `io_orientation` of the affine.
    """
    order = np.argsort(turn[:, 0])
    turned = tuple(shape[int(axis)] for axis in order)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, shape)


def label_volume(
    planes: Mapping[int, NDArray[np.uint8]],
    plane: Plane,
    shape: tuple[int, ...],
    turn: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Return label planes (frame -> (H, W)) as a volume laid as it is stored, 0 where none is.

    planes: of one time point; shape and turn: as `canonical` takes them.
    """
    labels = np.zeros(shape, np.uint8)
    shown = nib.orientations.apply_orientation(labels, turn)  # a view
    count = shown.shape[AXIS[plane]]
    for frame, values in planes.items():
        cut(shown, plane, frame % count)[...] = values
    return labels


def volume_headers(
    shape: tuple[int, ...],
    affine: Affine,
    plane: Plane,
    times: int,
    flags: tuple[str, ...],
    known_spacing: Sequence[bool] = (True, True, True),
) -> list[Header]:
    """Return a header for each slice of each time point of a volume in RAS; all lie alike.

    known_spacing: which of the axes have one.
    """
    axis = AXIS[plane]
    down_axis, along_axis = (a for a in (2, 1, 0) if a != axis)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing_mm: tuple[float, float] | None = None
    if known_spacing[down_axis] and known_spacing[along_axis]:
        spacing_mm = (float(spacing[down_axis]), float(spacing[along_axis]))
    count = shape[axis]
    places = [slice_place(affine, shape, axis, (down_axis, along_axis), k) for k in range(count)]
    headers = []
    for time in range(times):
        for k, (position_mm, offset_mm) in enumerate(places):
            header = Header(
                frame=time * count + k,
                modality=None,
                height=shape[down_axis],
                width=shape[along_axis],
                volume=f"time {time}",
                order=(float(time),),
                position_mm=position_mm,
                offset_mm=offset_mm,
                spacing_mm=spacing_mm,
                flags=flags,
            )
            headers.append(header)
    return headers


def slice_place(
    affine: Affine,
    shape: tuple[int, ...],
    axis: int,
    in_plane: tuple[int, int],
    k: int,
) -> tuple[float, tuple[float, float]]:
    """Return where slice k's first pixel lies: along the normal, and along rows and columns (mm).

    axis: of the canonical volume, that the slices follow; in_plane: those that run down and along
    a slice. In the patient coordinates of DICOM (LPS), so that the numbers equal those of a DICOM
    series.
    """
    to_lps = np.diag([-1.0, -1.0, 1.0])
    linear = affine[:3, :3]
    translation = affine[:3, 3]
    step = to_lps @ linear
    # Shown rows and columns run against the RAS axes (see `cut`).
    down = -step[:, in_plane[0]]
    down = down / np.linalg.norm(down)
    along = -step[:, in_plane[1]]
    along = along / np.linalg.norm(along)
    normal = np.cross(along, down)
    index = np.array([n - 1 for n in shape], dtype=np.float64)
    index[axis] = shape[1] - 1 - k if axis == 1 else k
    corner_ras = linear @ index + translation
    corner = to_lps @ corner_ras
    offset = (float(corner @ down), float(corner @ along))
    return float(corner @ normal), offset


def cut(voxels: Voxels, plane: Plane, k: int) -> Voxels:
    """Return slice k (H, W) of a RAS volume (X, Y, Z), laid as DICOM shows it."""
    if plane == "axial":
        return voxels[::-1, ::-1, k].T
    if plane == "coronal":
        from_behind = voxels.shape[1] - 1 - k
        return voxels[::-1, from_behind, ::-1].T
    return voxels[k, ::-1, ::-1].T
