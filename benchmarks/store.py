"""How fast the store writes and reads, against npy, HDF5 and plain zarr on the same bytes.

    .venv/bin/python -m benchmarks.store

`cls` is read whole (as the heads do) and by random rows; `patch` whole and by a twentieth of its
rows. Cold: the files were dropped from the page cache (posix_fadvise); warm: they were just read.
Every way once a round, in turn: the median of the rounds' speeds, and the median and quartiles of
their ratios to npy in the same round; then the same by processor time, which other work on the
machine disturbs less, but which counts both of the store's threads. The store checks every byte it
reads against its checksum.

"npy, synced" is what the store's promise costs without the store: a part is a file, with as many
small files beside it (status, two digests, a receipt), each forced to disk before the next part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from stores import ArraySpec, FeatureStore
from stores.layout import default_part_rows
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

Values = NDArray[Any]


@dataclass(frozen=True)
class Way:
    """One way to keep an array: how it is written, read whole, and read by rows."""

    write: Callable[[Path, Values], None]
    whole: Callable[[Path], Values]
    rows: Callable[[Path, NDArray[np.int64]], Values]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--scale", type=float, default=1.0, help="1.0: 307 MB cls, 411 MB patch")
    args = options.parse_args()
    rng = np.random.default_rng(0)
    for name, n, shape in (
        ("cls", int(100_000 * args.scale), (4, 384)),
        ("patch", int(2048 * args.scale), (16, 16, 384)),
    ):
        values = rng.standard_normal((n, *shape), np.float32).astype(np.float16)
        rows = np.sort(rng.choice(n, n // 20, replace=False))
        compare(name, values, rows, args.repeats)


def compare(name: str, values: Values, rows: NDArray[np.int64], repeats: int) -> None:
    """Time every way on the same values, each once a round, and print a line each."""
    part = values[:1].nbytes * len(rows)
    sizes = np.array([values.nbytes] * 3 + [part] * 2)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        homes = {label: Path(folder) / label for label in WAYS}
        written = [[write(w, homes[k], values) for k, w in WAYS.items()] for _ in range(repeats)]
        check(homes, values, rows)
        read = [[reads(w, homes[k], rows) for k, w in WAYS.items()] for _ in range(repeats)]
        files = [sum(p.is_file() for p in home.rglob("*")) for home in homes.values()]
    seconds = np.concatenate([np.array(written)[:, :, None], read], 2)  # (rounds, ways, acts, 2)
    print(f"\n{name} {values.shape} float16, {values.nbytes / 1e6:.0f} MB")
    for clock, title in enumerate(("MB/s", "MB a processor second")):
        show(f"{title} (ratio to npy, quartiles)", files, sizes, seconds[..., clock])


def show(title: str, files: list[int], sizes: Values, seconds: Values) -> None:
    """Print a line a way of speeds and ratios; seconds is (rounds, ways, acts)."""
    print(title)
    acts = ("write", "whole cold", "whole warm", "5 % rows cold", "5 % rows warm")
    print(f"{'':<12}{'files':>6}" + "".join(f"{act:>24}" for act in acts))
    speeds = sizes / np.median(seconds, 0) / 1e6
    low, middle, high = np.quantile(seconds[:, :1] / seconds, (0.25, 0.5, 0.75), axis=0)
    for i, (label, count) in enumerate(zip(WAYS, files, strict=True)):
        cells = [
            f"{speed:.0f} ({ratio:.2f}, {a:.2f}-{b:.2f})"
            for speed, ratio, a, b in zip(speeds[i], middle[i], low[i], high[i], strict=True)
        ]
        print(f"{label:<12}{count:>6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def write(way: Way, home: Path, values: Values) -> tuple[float, float]:
    """Return the seconds of writing values anew, and those of the processor."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()

    def act() -> None:
        way.write(home / "x", values)
        sync(home)

    return timed(act)


def check(homes: dict[str, Path], values: Values, rows: NDArray[np.int64]) -> None:
    """Assert that every way gives back what it was given."""
    for label, home in homes.items():
        assert np.array_equal(WAYS[label].whole(home / "x")[rows], values[rows])
        assert np.array_equal(WAYS[label].rows(home / "x", rows), values[rows])


def reads(way: Way, home: Path, rows: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Return the seconds of a round: whole cold and warm, rows cold and warm."""
    times: list[tuple[float, float]] = []
    for read in (lambda: way.whole(home / "x"), lambda: way.rows(home / "x", rows)):
        drop(home)
        times += [timed(read), timed(read)]
    return times


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of an act, and those of the processor; what it returns is freed later."""
    began, began_cpu = time.perf_counter(), time.process_time()
    kept = act()
    seconds = time.perf_counter() - began, time.process_time() - began_cpu
    del kept
    return seconds


def sync(folder: Path) -> None:
    """Force every file to disk: what the store does of itself is asked of the others too."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def drop(folder: Path) -> None:
    """Take the files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


# --- the ways --------------------------------------------------------------------------------


def write_store(path: Path, values: Values) -> None:
    n, *shape = values.shape
    part_rows = default_part_rows(values[:1].nbytes)
    store = FeatureStore.create(path, "{}", {"x": ArraySpec(tuple(shape), "float16")}, part_rows)
    table = {"row": range(n), "path": ["f"] * n, "withdrawn": [False] * n}
    columns = {name: table.get(name, [None] * n) for name in SLICE_SCHEMA.names}
    store.write_tables(
        SLICE_SCHEMA.empty_table().from_pydict(columns, SLICE_SCHEMA), FILE_SCHEMA.empty_table()
    )
    for part in store.missing():
        arrays = store.empty_part()
        here = values[part.start : part.stop]
        arrays["x"][: len(here)], arrays["status"][: len(here)] = here, 1
        claim = store.claim(part)
        assert claim is not None
        store.write(part, claim, arrays, {})
        claim.release()


def write_hdf5(path: Path, values: Values) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = values


def read_hdf5(path: Path, rows: Any = slice(None)) -> Values:
    with h5py.File(path) as file:
        return np.asarray(file["x"][rows])


def write_zarr(path: Path, values: Values) -> None:
    chunk = (default_part_rows(values[:1].nbytes), *values.shape[1:])
    zarr.create_array(path, data=values, chunks=chunk, compressors=None)


def read_zarr(path: Path, rows: Any = None) -> Values:
    array = zarr.open_array(path, mode="r")
    return np.asarray(array[:] if rows is None else array.oindex[rows])


def write_npy(path: Path, values: Values) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def write_synced(path: Path, values: Values) -> None:
    path.mkdir()
    step = default_part_rows(values[:1].nbytes)
    small = {"status": 1, "file_digest": 32, "pixel_digest": 32, "receipt": 8}
    for part, start in enumerate(range(0, len(values), step)):
        own = {"x": values[start : start + step]}
        own |= {name: np.zeros((step, n), np.uint8) for name, n in small.items()}
        for name, array in own.items():
            with (path / f"{name}-{part:05}.npy").open("xb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())


def read_synced(path: Path, rows: NDArray[np.int64] | None = None) -> Values:
    parts = [np.load(p, mmap_mode="r") for p in sorted(path.glob("x-*.npy"))]
    ends = np.cumsum([len(part) for part in parts])
    out = np.empty((ends[-1] if rows is None else len(rows), *parts[0].shape[1:]), parts[0].dtype)
    starts = ends if rows is None else np.searchsorted(rows, ends)
    for part, first, a, b in zip(parts, [0, *ends], [0, *starts], starts, strict=False):
        out[a:b] = part if rows is None else part[rows[a:b] - first]
    return out


WAYS = {
    "npy": Way(
        write_npy, np.load, lambda path, rows: np.asarray(np.load(path, mmap_mode="r")[rows])
    ),
    "npy, synced": Way(write_synced, read_synced, read_synced),
    "HDF5": Way(write_hdf5, read_hdf5, read_hdf5),
    "plain zarr": Way(write_zarr, read_zarr, read_zarr),
    "store": Way(
        write_store,
        lambda path: FeatureStore.open(path).read("x"),
        lambda path, rows: FeatureStore.open(path).read("x", rows),
    ),
}


if __name__ == "__main__":
    main()
