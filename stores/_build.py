"""An empty store on disk. zarr-python writes the metadata, so that the format is its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stores import manifest
from stores.contents import (
    FEATURES,
    FILES,
    FOLDERS,
    KEY_CHECK,
    RECIPE,
    SLICES,
    WITHDRAWN_PATIENTS,
    ArraySpec,
)
from stores.layout import Layout
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, table_bytes


def build(
    root: Path,
    recipe_text: str,
    specs: Mapping[str, ArraySpec],
    layout: Layout,
    key_check: str | None = None,
) -> None:
    """Write a store of no rows into a new folder; specs: of all its arrays, by name.

    key_check: by which the key of its pseudonyms is known again.
    """
    import zarr

    for folder in FOLDERS:
        if folder.from_start:
            (root / folder.name).mkdir(parents=True)
    attributes: dict[str, Any] = {"part_rows": layout.part_rows}
    if key_check is not None:
        attributes[KEY_CHECK] = key_check
    group = zarr.create_group(root / FEATURES, zarr_format=3, attributes=attributes)
    for name, spec in specs.items():
        _create_array(group, name, spec, layout)
    # All that the manifest vouches for from the first moment on; features come under receipts.
    files = {
        RECIPE: recipe_text.encode(),
        SLICES: table_bytes(SLICE_SCHEMA.empty_table()),
        FILES: table_bytes(FILE_SCHEMA.empty_table()),
        WITHDRAWN_PATIENTS: json.dumps({"patients": []}).encode(),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    for path in sorted((root / FEATURES).rglob("zarr.json")):
        files[path.relative_to(root).as_posix()] = path.read_bytes()
    # Last: a folder without a manifest is no store.
    manifest.begin(root, files)


def _create_array(group: Any, name: str, spec: ArraySpec, layout: Layout) -> None:
    """Make one array of no rows: plain chunks with a checksum, which costs reading nothing."""
    from zarr.codecs import Crc32cCodec

    dtype = np.dtype(spec.dtype)
    group.create_array(
        name,
        shape=(0, *spec.row_shape),
        chunks=(layout.chunk_rows(spec.row_bytes), *spec.row_shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        fill_value=float("nan") if dtype.kind == "f" else 0,
        dimension_names=_dimensions(name, len(spec.row_shape)),
    )


def _dimensions(name: str, axes: int) -> tuple[str, ...]:
    """Return the names of an array's dimensions, by which xarray opens the group as it is.

    The dimensions of an array of another name or shape are named after the array.
    """
    tokens = ("block", "y", "x")
    names = {
        "cls": ("block", "d"),
        "mean": ("d",),
        "patch": (*tokens, "d"),
        "patch_scale": tokens,
    }
    digest = ("byte",) if name.endswith("_digest") else ()
    known = names.get(name, digest)
    if len(known) < axes:
        known = tuple(f"{name}_{axis}" for axis in range(axes))
    return ("row", *known[len(known) - axes :])
