"""NumPy .npy, MATLAB .mat (v5 and v7.3) and other HDF5.

- A 2D array is one slice. Of a 3D one the first axis counts the slices, of MATLAB's the last: each
  as its own language writes them. HDF5 is MATLAB's where MATLAB says so, else Python's.
- A last axis of one or three behind larger ones is that of a picture's channels; so is one of four
  (the last opacity), but for MATLAB, which has no such pictures.
- Of several arrays the largest numeric one is taken, or the `image` of the brain tumour set's
  struct `cjdata`.
- Nothing is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from pipeline.io.formats.limits import as_unreadable, check_size, luma
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError
from stores.hdf5 import check_values, member, member_there

Array = NDArray[Any]

# Characters of a text, at the most.
_LONGEST = 10_000
# How a .mat of v7.3 begins, in front of its HDF5.
_MATLAB_73 = b"MATLAB 7.3 MAT"
_MATLAB_NUMBERS = frozenset(
    {"double", "single", "logical"}
    | {"int8", "int16", "int32", "int64"}
    | {"uint8", "uint16", "uint32", "uint64"}
)


def read_headers(path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
    """Return one header a slice. Raises UnreadableError."""
    stack, patient = _open(path)
    count, height, width = stack.shape
    volume = "stack" if count > 1 else ""
    headers = []
    for frame in range(count):
        headers.append(Header(frame, None, height, width, patient=patient, volume=volume))
    return headers


def read_slices(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[Slice | Failure]:
    """Yield the requested slices in order, float32 (H, W). Raises UnreadableError."""
    stack, _ = _open(path)
    for frame in frames:
        if 0 <= frame < len(stack):
            yield Slice(frame, np.ascontiguousarray(stack[frame], dtype=np.float32))
        else:
            yield Failure(frame, "corrupt", f"the file has no frame {frame}")


def _open(path: Path) -> tuple[Array, str | None]:
    """Return the slices (n, H, W) and the patient the file names, if any."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MATLAB_73))
        if start.startswith(b"\x93NUMPY"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return _stack(array, slices=0), None
        if h5py.is_hdf5(path):
            return _open_hdf5(path, is_matlab=start == _MATLAB_73)
        return _open_mat5(path)
    except Exception as error:
        raise as_unreadable(error, "reading the array") from error


def _open_hdf5(path: Path, is_matlab: bool) -> tuple[Array, str | None]:
    """Read an HDF5 file, whose axes are reversed where MATLAB wrote it (a .mat of v7.3).

    is_matlab: whether the file begins as MATLAB's do; its arrays may say it by themselves.
    """
    with h5py.File(path, "r") as file:
        image = member(file, "cjdata/image")
        # The struct is known as MATLAB's, also where the bytes in front of the file are gone.
        is_struct = image is not None
        if image is None:
            image = member(file, "image")
        if image is None:
            image = member_there(file, _largest(_datasets(file)))
        named = member(file, "cjdata/PID")
        patient = None if named is None else hdf5_text(named)
        values = hdf5_values(image)
        if is_matlab or is_struct or "MATLAB_class" in image.attrs:
            return _stack(values.T, slices=-1), patient
        return _stack(values, slices=0), patient


def hdf5_values(dataset: Any, most: int | None = None) -> Array:
    """Return all values of an HDF5 dataset, as its shape says.

    most: how many values it may have. Raises UnreadableError, where they lie in another file too.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise UnreadableError("unsupported", "a group stands where an array is expected")
    check_values(dataset)
    values = math.prod(dataset.shape)
    if most is not None and values > most:
        raise UnreadableError("unsupported", f"{values} values where at most {most} are expected")
    check_size(1, 1, 1, values * dataset.dtype.itemsize, 0, coded=False)
    return np.asarray(dataset)


def hdf5_text(dataset: Any) -> str:
    """Return what MATLAB wrote as text: a number a character. Raises UnreadableError."""
    codes = hdf5_values(dataset, _LONGEST).ravel()
    characters = [chr(int(code)) for code in codes[:64]]
    return "".join(characters)


def _datasets(file: Any) -> dict[str, int]:
    """Return the sizes of the numeric 2D and 3D datasets at the top of an HDF5 file."""
    sizes = {}
    for name in file:
        item = member(file, name)
        if not isinstance(item, h5py.Dataset):
            continue
        if item.dtype.kind in "iufb" and len(item.shape) in (2, 3):
            sizes[name] = math.prod(item.shape)
    return sizes


def _open_mat5(path: Path) -> tuple[Array, str | None]:
    """Read a .mat of version 4 to 7."""
    # By names, shapes and types alone: nothing is loaded that has not passed the limits.
    listed = scipy.io.whosmat(path)
    if any(name == "cjdata" and kind == "struct" for name, _, kind in listed):
        loaded = scipy.io.loadmat(path, variable_names=["cjdata"])
        struct = loaded["cjdata"][0, 0]
        patient = None
        if "PID" in struct.dtype.names:
            pieces = np.ravel(struct["PID"])
            patient = "".join(map(str, pieces))
        return _stack(struct["image"], slices=-1), patient
    sizes = {}
    for name, shape, kind in listed:
        if kind in _MATLAB_NUMBERS and len(shape) in (2, 3):
            sizes[name] = math.prod(shape)
    name = _largest(sizes)
    check_size(1, 1, 1, sizes[name] * 8, 0, coded=False)  # double, the widest there is
    loaded = scipy.io.loadmat(path, variable_names=[name])
    return _stack(loaded[name], slices=-1), None


def _largest(sizes: dict[str, int]) -> str:
    """Return the name of the largest array, the last one by name of several."""
    if not sizes:
        raise UnreadableError("not-an-image", "holds no numeric array of two or three dimensions")
    return max(sizes, key=lambda name: (sizes[name], name))


def _channels(array: Array, slices: int) -> int:
    """Return how many channels a picture's last axis has; 0 where that is one of slices or pixels.

    slices: the axis that counts slices, where there are such.
    """
    if array.ndim != 3:
        return 0
    height, width, last = array.shape
    if min(height, width) <= 4:
        return 0
    # Four of MATLAB's are slices more likely than colours and their opacity.
    counts = (1, 3, 4) if slices == 0 else (1, 3)
    return last if last in counts else 0


def _grey(picture: Array) -> Array:
    """Return a picture (H, W, 1, 3 or 4) as grey levels (H, W), NaN where it is transparent."""
    height, width, channels = picture.shape
    if channels == 1:
        return picture[..., 0]
    check_size(height, width, channels, 4, picture.nbytes, coded=False)
    grey = luma(picture)
    # As in picture files. Numbers of another type are no opacity.
    if channels == 4 and picture.dtype in (np.uint8, np.uint16):
        opacity = picture[..., 3]
        if opacity.any():
            grey[opacity == 0] = np.nan
    return grey


def _stack(array: Array, slices: int) -> Array:
    """Return an array as slices (n, H, W); `slices` is the axis that counts them."""
    if array.dtype.kind not in "iufb":
        raise UnreadableError("unsupported", f"an array of type {array.dtype}")
    if _channels(array, slices):
        array = _grey(array)
    if array.ndim not in (2, 3):
        raise UnreadableError("unsupported", f"an array of {array.ndim} dimensions, not 2 or 3")
    array = array[None] if array.ndim == 2 else np.moveaxis(array, slices, 0)
    count, height, width = array.shape
    check_size(height, width, count, array.dtype.itemsize, array.nbytes, coded=False)
    return array
